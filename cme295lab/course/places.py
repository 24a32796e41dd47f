"""Where the course lies and which notebooks it has."""

import difflib
from dataclasses import dataclass
from pathlib import Path


class CourseError(Exception):
    """Something the user can put right: a message for people, which the command line prints without a traceback."""


class UsageError(CourseError):
    """The user asked for something that does not exist; the command line ends with exit code 2."""


@dataclass(frozen=True)
class Course:
    """A course: a folder that holds `notebooks/`, and, in a clone of the repository, everything else.

    Args:
        root: the folder that holds `notebooks/` and `pyproject.toml`.
    """

    root: Path

    @property
    def build(self) -> Path:
        """Folder for everything that is made and not committed."""
        return self.root / "build"

    def notebooks(self) -> list[Path]:
        """The course's notebooks in reading order."""
        return sorted((self.root / "notebooks").glob("*.ipynb"))

    def solutions(self) -> list[Path]:
        """The instructor's notebooks, one per exercise."""
        return sorted((self.root / "solutions").glob("*/*.ipynb"))

    def find_notebooks(self, names: list[str]) -> list[Path]:
        """Resolve what a user typed: a path, a file name, or how the name begins.

        Args:
            names: for example `07`, `07_flash_attention`, `notebooks/07_flash_attention.ipynb`; none means all.

        Returns:
            Paths of existing notebooks, in the order asked for.

        Raises:
            UsageError: if a name fits no notebook, with the closest one there is.
        """
        if not names:
            found = self.notebooks()
            if not found:
                raise UsageError(f"there are no notebooks in {self.root / 'notebooks'}: run `make notebooks`")
            return found
        return [self._find_notebook(name) for name in names]

    def _find_notebook(self, name: str) -> Path:
        if name.endswith(".ipynb") and Path(name).is_file():
            return Path(name).resolve()
        stem = Path(name).name.removesuffix(".ipynb")
        candidates = {path.stem: path for path in [*self.notebooks(), *self.solutions()]}
        if stem in candidates:
            return candidates[stem]
        matches = [path for key, path in candidates.items() if stem and key.startswith(stem)]
        if len(matches) == 1:
            return matches[0]
        close = difflib.get_close_matches(stem, candidates, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(candidates) or 'none'}"
        raise UsageError(f"no notebook {name!r}; {hint}")

    def relative(self, path: Path) -> str:
        """The path as it is printed: relative to the course where it lies inside."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)


def find_course(start: Path | None = None) -> Course:
    """Find the course: the folder `start` or one above it, else the clone that this package is installed from.

    Args:
        start: where to begin; the current folder by default.

    Raises:
        CourseError: if there is no course in any of these.
    """
    here = (start or Path.cwd()).resolve()
    candidates = [here, *here.parents, Path(__file__).resolve().parents[2]]
    for folder in candidates:
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return Course(folder)
    raise CourseError(f"no course in {here} or above it: change into a clone of the repository (it holds notebooks/)")
