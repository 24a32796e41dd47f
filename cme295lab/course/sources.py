"""From reviewable text (jupytext percent format) to notebook cells that are the same on every machine.

A source `notebooks/source/07_topic.py` becomes `notebooks/07_topic.ipynb`; `solutions/source/topic.py` becomes
`solutions/topic/topic.ipynb`. Cell ids are derived from the cell's own text, so that editing one cell leaves the ids of
all others alone; an explicit `# %% id="name"` wins, then nbgrader's `grade_id`.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from cme295lab.course.places import Course, CourseError

NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_VALID_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")


@dataclass(frozen=True)
class NotebookSource:
    """A text source and the notebook that is built from it.

    Args:
        text: the `.py` file.
        notebook: the `.ipynb` file.
        is_solution: whether it is an instructor's notebook (stored without outputs).
    """

    text: Path
    notebook: Path
    is_solution: bool


def notebook_sources(course: Course) -> list[NotebookSource]:
    """All text sources of a course, in reading order."""
    lessons = [
        NotebookSource(text, course.root / "notebooks" / f"{text.stem}.ipynb", is_solution=False)
        for text in sorted((course.root / "notebooks" / "source").glob("*.py"))
    ]
    solutions = [
        NotebookSource(text, course.root / "solutions" / text.stem / f"{text.stem}.ipynb", is_solution=True)
        for text in sorted((course.root / "solutions" / "source").glob("*.py"))
    ]
    return lessons + solutions


def read_source(path: Path) -> nbformat.NotebookNode:
    """Read a text source as a notebook without outputs.

    Args:
        path: a jupytext percent file.

    Returns:
        A notebook whose ids and metadata depend on the text alone.

    Raises:
        CourseError: if two cells ask for the same id, or an id has characters that notebooks do not allow.
    """
    parsed = jupytext.read(path, fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=NOTEBOOK_METADATA)
    taken: Counter[str] = Counter()
    for number, cell in enumerate(parsed.cells, start=1):
        if not cell.source.strip() and not cell.metadata:
            continue  # a blank line on top of the file
        metadata = {key: value for key, value in cell.metadata.items() if key not in ("id", "lines_to_next_cell")}
        explicit_id = cell.metadata.get("id") or metadata.get("nbgrader", {}).get("grade_id")
        cell_id = explicit_id or _text_id(cell)
        taken[cell_id] += 1
        if taken[cell_id] > 1:
            if explicit_id:
                raise CourseError(f"{path.name}: cell {number} repeats the id {cell_id!r}: give it another one")
            cell_id = f"{cell_id}-{taken[cell_id]}"
        if not _VALID_ID.fullmatch(cell_id):
            raise CourseError(f"{path.name}: cell {number}: id {cell_id!r} may hold letters, digits, - and _ only")
        notebook.cells.append(_new_cell(cell, cell_id, metadata))
    return notebook


def _text_id(cell: nbformat.NotebookNode) -> str:
    """The heading of a text cell plus a digest of the cell's text."""
    digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:10]
    heading = re.match(r"#+\s+(.+)", cell.source) if cell.cell_type == "markdown" else None
    words = re.sub(r"[^a-z0-9]+", "-", heading[1].lower()).strip("-")[:24].strip("-") if heading else ""
    return f"{words}-{digest}" if words else digest


def _new_cell(cell: nbformat.NotebookNode, cell_id: str, metadata: dict[str, Any]) -> nbformat.NotebookNode:
    make = {
        "code": nbformat.v4.new_code_cell,
        "markdown": nbformat.v4.new_markdown_cell,
        "raw": nbformat.v4.new_raw_cell,
    }[cell.cell_type]
    return make(cell.source, id=cell_id, metadata=metadata)
