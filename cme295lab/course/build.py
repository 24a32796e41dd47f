"""Build the course's notebooks from their text: execute, reduce the outputs, write.

Lessons are executed with the profile students use (`full`) and keep their outputs. Solutions are stored without
outputs: nbgrader strips them anyway, and the tests execute them.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cme295lab.course.outputs import normalise_outputs
from cme295lab.course.places import Course, CourseError
from cme295lab.course.sources import NotebookSource, notebook_sources, read_source

CELL_TIMEOUT_S = 600
QUIET_KERNEL = ["--log-level=CRITICAL"]  # kernels warn about TCP at every start, and complain when interrupted


def build_notebooks(
    course: Course, names: list[str] | None = None, *, force: bool = False, say: Callable[[str], object] = print
) -> list[Path]:
    """Build the notebooks whose text, or the library they use, changed since the last build on this machine.

    Args:
        course: the course.
        names: stems of sources; none means all.
        force: build even what has not changed.
        say: called with one line per notebook.

    Returns:
        The notebooks written.

    Raises:
        CourseError: if a name has no source, or a cell fails.
    """
    sources = notebook_sources(course)
    unknown = set(names or ()) - {source.text.stem for source in sources}
    if unknown:
        known = ", ".join(source.text.stem for source in sources)
        raise CourseError(f"no source for {', '.join(sorted(unknown))}; there are: {known}")
    stamp = course.build / "notebooks.json"
    built: dict[str, str] = json.loads(stamp.read_text()) if stamp.is_file() else {}
    library = _library_digest(course)
    written = []
    for source in sources:
        if names and source.text.stem not in names:
            continue
        key, digest = course.relative(source.text), _digest([source.text], library if not source.is_solution else "")
        if not force and source.notebook.is_file() and built.get(key) == digest:
            say(f"{course.relative(source.notebook)}: up to date")
            continue
        say(f"{course.relative(source.notebook)}: building")
        build_notebook(source)
        written.append(source.notebook)
        built[key] = digest
        write_atomically(stamp, json.dumps(built, indent=1))
    return written


def build_notebook(source: NotebookSource) -> None:
    """Build one notebook.

    Args:
        source: the text, and where the notebook goes.

    Raises:
        CourseError: naming the cell and the error, if a cell fails; nothing is written then.
    """
    notebook = read_source(source.text)
    if not source.is_solution:
        execute(notebook, source.notebook)
        normalise_outputs(notebook)
    write_atomically(source.notebook, nbformat.writes(notebook) + "\n")


def execute(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Execute a notebook in place, in the folder where it lies.

    Args:
        notebook: the notebook.
        path: where it is stored; names it in errors.

    Raises:
        CourseError: naming the cell and the error, if a cell fails.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=resources, record_timing=False,
        extra_arguments=QUIET_KERNEL,
    )  # fmt: skip
    try:
        client.execute()
    except CellExecutionError as error:
        failing = next(
            cell for cell in notebook.cells if any(o.output_type == "error" for o in cell.get("outputs", ()))
        )
        raise CourseError(f"{path.name}: cell {failing.id!r} failed: {error.ename}: {error.evalue}") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that whoever looks, even after Ctrl-C, sees the old one or the new one, never half of it.

    Args:
        path: the file; folders above it are made.
        text: what to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _library_digest(course: Course) -> str:
    return _digest(sorted([*(course.root / "cme295lab").rglob("*.py"), *(course.root / "kernels").rglob("*.py")]))


def _digest(paths: list[Path], seed: str = "") -> str:
    digest = hashlib.sha256(seed.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
