"""Run notebooks with papermill: parameters in, executed copies, readable pages and their figures out."""

import ast
import base64
import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from cme295lab.course.build import QUIET_KERNEL, write_atomically
from cme295lab.course.places import UsageError

CELL_TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class NotebookRun:
    """What came of running one notebook.

    Args:
        name: stem of the notebook.
        title: its first heading.
        seconds: wall-clock time.
        notebook: the executed copy.
        page: the executed copy as a web page.
        figures: its pictures, as files.
        failed_cell: id of the cell that failed, or empty.
        error: that cell's error, or empty.
    """

    name: str
    title: str
    seconds: float
    notebook: Path
    page: Path
    figures: list[Path] = field(default_factory=list)
    failed_cell: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether every cell ran."""
        return not self.error


def run_notebook(path: Path, output: Path, parameters: Mapping[str, Any], *, progress: bool) -> NotebookRun:
    """Run one notebook.

    The copy is written under another name and renamed at the end: an interrupted run leaves nothing half-written.

    Args:
        path: the notebook.
        output: folder for the copy, its page and its figures.
        parameters: values for its parameters.
        progress: draw a progress bar on stderr.

    Returns:
        The result; a failing cell is reported in it, not raised.
    """
    output.mkdir(parents=True, exist_ok=True)
    started, failed_cell, error = time.perf_counter(), "", ""
    with _partial_file(output / path.name) as partial:
        try:
            papermill.execute_notebook(
                str(path), str(partial), parameters=dict(parameters), cwd=str(path.parent), kernel_name="python3",
                progress_bar={"desc": path.stem, "leave": False} if progress else False,
                execution_timeout=CELL_TIMEOUT_S, extra_arguments=QUIET_KERNEL,
            )  # fmt: skip
        except PapermillExecutionError as failure:
            failed_cell, error = _failure(failure, nbformat.read(partial, as_version=4))
    executed = nbformat.read(output / path.name, as_version=4)
    page, _ = HTMLExporter().from_notebook_node(executed, {"metadata": {"name": path.stem}})
    write_atomically(output / f"{path.stem}.html", page)
    return NotebookRun(
        name=path.stem,
        title=title_of(executed) or path.stem,
        seconds=time.perf_counter() - started,
        notebook=output / path.name,
        page=output / f"{path.stem}.html",
        figures=_save_figures(executed, output / "figures", path.stem),
        failed_cell=failed_cell,
        error=error,
    )


def resolve_parameters(path: Path, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `wanted` that a notebook has parameters for.

    Args:
        path: the notebook.
        wanted: parameter names and values.

    Returns:
        Names that the notebook's cell tagged `parameters` defines, with the wanted values.
    """
    return {name: value for name, value in wanted.items() if name in parameter_names(path)}


def parameter_names(path: Path) -> list[str]:
    """Names that the notebook's cell tagged `parameters` assigns.

    Args:
        path: the notebook.

    Returns:
        Names in order.
    """
    names = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", ()):
            for statement in ast.parse(cell.source).body:
                single = [getattr(statement, "target", None)]
                targets = statement.targets if isinstance(statement, ast.Assign) else single
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def check_parameters(notebooks: list[Path], wanted: Mapping[str, Any]) -> None:
    """Refuse parameters that none of the notebooks has.

    Args:
        notebooks: what is to be run.
        wanted: parameter names and values.

    Raises:
        UsageError: naming the parameter and those that exist.
    """
    known = sorted({name for path in notebooks for name in parameter_names(path)})
    for name in wanted:
        if name not in known:
            raise UsageError(f"no notebook here has a parameter {name!r}; there are: {', '.join(known) or 'none'}")


def title_of(notebook: nbformat.NotebookNode) -> str:
    """The notebook's first heading, or an empty string.

    Args:
        notebook: the notebook.
    """
    headings = (
        line.lstrip("# ").strip()
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    )
    return next(headings, "")


@contextlib.contextmanager
def _partial_file(final: Path) -> Iterator[Path]:
    """A name to write to; it becomes `final` if the block ends well, and is removed if it does not."""
    partial = final.with_name(f".{final.stem}.partial.ipynb")
    try:
        yield partial
        partial.replace(final)
    finally:
        partial.unlink(missing_ok=True)


def _failure(failure: PapermillExecutionError, executed: nbformat.NotebookNode) -> tuple[str, str]:
    for cell in executed.cells:
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            return cell.id, f"{failure.ename}: {failure.evalue}"
    return str(failure.exec_count), f"{failure.ename}: {failure.evalue}"


def _save_figures(notebook: nbformat.NotebookNode, folder: Path, stem: str) -> list[Path]:
    for stale in folder.glob(f"{stem}_*.png"):
        stale.unlink()
    figures: list[Path] = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                folder.mkdir(parents=True, exist_ok=True)
                figures.append(folder / f"{stem}_{len(figures) + 1:02d}.png")
                figures[-1].write_bytes(base64.b64decode(output.data["image/png"]))
    return figures
