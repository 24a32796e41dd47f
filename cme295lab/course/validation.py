"""Run notebooks with nbval: no cell may fail, and marked cells must print what is stored.

The stored outputs are those of the students' profile. nbval runs copies whose parameter `profile` is overridden, so
cells marked for comparison (tag `nbval-check-output` or the comment `# NBVAL_CHECK_OUTPUT`) must not depend on it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from cme295lab.course.places import Course

SANITIZE_FILE = Path(__file__).with_name("nbval_sanitize.cfg")
CELL_TIMEOUT_S = 600


def parameterised_copy(path: Path, folder: Path, profile: str) -> Path:
    """Copy a notebook, outputs included, with its profile overridden.

    Args:
        path: a notebook.
        folder: where the copy goes.
        profile: `fast` or `full`.

    Returns:
        The copy; unchanged if the notebook has no cell tagged `parameters`.
    """
    notebook = load_notebook_node(str(path))
    if any("parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells):
        notebook = parameterize_notebook(notebook, {"profile": profile})
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / path.name
    nbformat.write(notebook, copy)
    return copy


def validate(course: Course, notebooks: list[Path], *, profile: str = "fast", num_workers: int = 1) -> int:
    """Run nbval over copies of notebooks.

    Args:
        course: the course; copies go to its build folder.
        notebooks: what to run.
        profile: `fast` or `full`.
        num_workers: notebooks run at the same time.

    Returns:
        pytest's exit code: 0 if every cell ran and every marked cell printed what is stored.
    """
    folder = course.build / f"nbval-{profile}"
    shutil.rmtree(folder, ignore_errors=True)
    copies = [parameterised_copy(path, folder, profile) for path in notebooks]
    command = [
        sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT_S}",
        f"--nbval-sanitize-with={SANITIZE_FILE}", "-c", os.devnull, f"--rootdir={folder}", "-p", "no:cacheprovider",
        "-q",
    ]  # fmt: skip
    if num_workers > 1:
        command += ["-n", str(num_workers), "--dist", "loadfile"]
    return subprocess.run([*command, *map(str, copies)], cwd=course.root, check=False).returncode
