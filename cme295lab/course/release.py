"""Generate the students' exercises from the instructor's solutions with nbgrader, and say when they are stale.

nbgrader releases everything in an assignment's folder: it would hand out helper modules with their solutions in them,
and silently leave out notebooks in subfolders. Both are refused here.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nbgrader.apps.api import NbGraderAPI
from nbgrader.coursedir import CourseDirectory
from traitlets.config.loader import Config, PyFileConfigLoader

from cme295lab.course.build import write_atomically
from cme295lab.course.checks import Finding
from cme295lab.course.places import Course, CourseError

CONFIG_FILE = "nbgrader_config.py"


def release_exercises(course: Course) -> list[Path]:
    """Write `exercises/` from `solutions/`, and register the assignments in the gradebook.

    Args:
        course: the course.

    Returns:
        The students' files.

    Raises:
        CourseError: if nbgrader refuses a notebook, or a solution's folder holds what would leak.
    """
    written = []
    with tempfile.TemporaryDirectory() as folder:
        for name, text in generate(course, Path(folder)).items():
            write_atomically(course.root / "exercises" / name, text)
            written.append(course.root / "exercises" / name)
    return written


def stale_exercises(course: Course) -> list[Finding]:
    """Compare `exercises/` with what `solutions/` would generate; touches neither.

    Args:
        course: the course.

    Returns:
        One finding per file that differs, is missing, or has no solution.
    """
    with tempfile.TemporaryDirectory() as folder:
        gradebook = f"sqlite:///{Path(folder) / 'scratch.db'}"
        wanted = generate(course, Path(folder), gradebook)
    folder_of_exercises = course.root / "exercises"
    stored = {
        path.relative_to(folder_of_exercises).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(folder_of_exercises.rglob("*"))
        if path.is_file() and ".ipynb_checkpoints" not in path.parts
    }
    fix = "`make notebooks release`; never edit exercises/ by hand"
    findings = []
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            problem = "is missing" if name not in stored else "has no solution" if name not in wanted else "is stale"
            findings.append(Finding(f"exercises/{name}", "", problem, fix))
    return findings


def generate(course: Course, scratch: Path, gradebook: str | None = None) -> dict[str, str]:
    """Generate the students' files of all solutions in a scratch folder.

    Args:
        course: the course.
        scratch: an empty folder.
        gradebook: database URL; by default the one that nbgrader's configuration names.

    Returns:
        Text by path relative to `exercises/`.

    Raises:
        CourseError: as `release_exercises`.
    """
    files: dict[str, str] = {}
    for assignment in sorted({path.parent.name for path in course.solutions()}):
        refuse_leaks(course.root / "solutions" / assignment)
        _generate_assignment(course, assignment, scratch / "exercises", gradebook)
        for path in sorted((scratch / "exercises" / assignment).rglob("*")):
            if path.is_file():
                files[path.relative_to(scratch / "exercises").as_posix()] = path.read_text(encoding="utf-8")
    return files


def refuse_leaks(solution: Path) -> None:
    """Refuse a solution's folder that nbgrader would release wrongly.

    Args:
        solution: a folder of `solutions/`.

    Raises:
        CourseError: naming the file and where it should go.
    """
    for path in sorted(solution.rglob("*")):
        where = f"{path.name} in {path.parent.relative_to(solution.parents[1]).as_posix()}/"
        if path.suffix == ".py":
            raise CourseError(
                f"{where} would be released with its solutions: move it to cme295lab/ or solutions/source/"
            )
        if path.suffix == ".ipynb" and path.parent != solution and ".ipynb_checkpoints" not in path.parts:
            raise CourseError(f"{where} would not be released: nbgrader ignores subfolders; move it one up")


def _generate_assignment(course: Course, assignment: str, release_folder: Path, gradebook: str | None) -> None:
    config: Config = PyFileConfigLoader(CONFIG_FILE, path=str(course.root)).load_config()
    config.CourseDirectory.root = str(course.root)
    config.CourseDirectory.release_directory = os.path.relpath(release_folder, course.root)
    if gradebook:
        config.CourseDirectory.db_url = gradebook
    with _inside(course.root), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbgrader's own, about its dependencies
        api = NbGraderAPI(CourseDirectory(config=config), config=config)
        result = api.generate_assignment(assignment, force=True, create=True)
    if not result["success"]:
        log = (result.get("log") or result.get("error") or "").strip()
        raise CourseError(f"nbgrader could not generate {assignment!r}:\n{log}")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """nbgrader resolves some paths against the working folder, and looks for `alembic` on the PATH."""
    folder_before, path_before = Path.cwd(), os.environ.get("PATH", "")
    os.chdir(folder)
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), path_before])
    try:
        yield
    finally:
        os.chdir(folder_before)
        os.environ["PATH"] = path_before
