"""What a notebook in the repository may not contain; each finding names the file, the cell and the fix."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

import nbformat

from cme295lab.course.outputs import MAX_BLOB_BYTES
from cme295lab.course.places import Course
from cme295lab.course.sources import NotebookSource, notebook_sources, read_source

MAX_NOTEBOOK_BYTES = 1_000_000
MAX_CODE_LINES = 15
MAX_TEXT_WORDS = 120
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:home|root|tmp|work|Users|var/folders)/[\w.~-]+|\b[A-Z]:\\+Users\\+\w+")
MEMORY_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
_NOT_PROSE = re.compile(r"```.*?```|\$\$.*?\$\$|^\|.*?$|!\[[^\]]*\]\([^)]*\)|\]\([^)]*\)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with the course's files.

    Args:
        file: path relative to the course.
        cell: id of the cell, or empty where the whole file is meant.
        problem: what is wrong.
        fix: what to do about it.
    """

    file: str
    cell: str
    problem: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file}, cell {self.cell}" if self.cell else self.file
        return f"{place}: {self.problem}. Fix: {self.fix}"


def check_course(course: Course) -> list[Finding]:
    """Check all notebooks of a course: drift from their text, and what they store.

    Args:
        course: the course.

    Returns:
        What is wrong; empty if all is well.
    """
    sources = notebook_sources(course)
    findings = [finding for source in sources for finding in check_drift(source, course.relative(source.notebook))]
    built = {source.notebook for source in sources}
    for path in [*course.notebooks(), *course.solutions()]:
        name = course.relative(path)
        if path not in built:
            findings.append(Finding(name, "", "has no text source", f"add {path.stem}.py to the folder source/"))
        notebook = nbformat.read(path, as_version=4)
        findings += check_stored(notebook, name, path.stat().st_size)
        if path.parent.name == "notebooks":
            findings += check_length(notebook, name)
    return findings


def check_drift(source: NotebookSource, name: str) -> list[Finding]:
    """Compare a notebook with what its text would be built into.

    Args:
        source: the text and its notebook.
        name: how to call the notebook.

    Returns:
        One finding for the first difference.
    """
    fix = f"edit {source.text.name} in source/, then `make notebooks`"
    if not source.notebook.is_file():
        return [Finding(name, "", "is missing", "`make notebooks`")]
    stored, wanted = nbformat.read(source.notebook, as_version=4), read_source(source.text)
    for have, want in zip(stored.cells, wanted.cells):
        for part in ("id", "cell_type", "source", "metadata"):
            if have.get(part) != want.get(part):
                return [Finding(name, want.id, f"its {part} differs from {source.text.name}", fix)]
    if len(stored.cells) != len(wanted.cells):
        problem = f"has {len(stored.cells)} cells, {source.text.name} has {len(wanted.cells)}"
        return [Finding(name, "", problem, fix)]
    if stored.metadata != wanted.metadata:
        return [Finding(name, "", f"its metadata differ from what {source.text.name} is built into", fix)]
    return []


def check_stored(notebook: nbformat.NotebookNode, name: str, num_bytes: int) -> list[Finding]:
    """Check the size and the stored outputs of a notebook.

    Args:
        notebook: the notebook.
        name: how to call it.
        num_bytes: size of its file.

    Returns:
        What is wrong.
    """
    findings = []
    if num_bytes > MAX_NOTEBOOK_BYTES:
        problem = f"is {num_bytes:,} bytes, more than {MAX_NOTEBOOK_BYTES:,}"
        findings.append(Finding(name, "", problem, "print less, draw smaller figures, or split the notebook"))
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            findings += [Finding(name, cell.id, problem, fix) for problem, fix in _output_problems(output)]
        for file_name, bundle in cell.get("attachments", {}).items():
            for value in bundle.values():
                if _num_bytes("attachment", value) > MAX_BLOB_BYTES:
                    problem = f"attachment {file_name} is over {MAX_BLOB_BYTES:,} bytes"
                    findings.append(
                        Finding(name, cell.id, problem, "put a smaller picture in docs/images and link to it")
                    )
    return findings


def _output_problems(output: nbformat.NotebookNode) -> Iterator[tuple[str, str]]:
    if output.output_type == "error":
        yield f"stores the error {output.ename}: {output.evalue}", "make the cell run, then `make notebooks`"
        return
    data = {"text/plain": output.text} if output.output_type == "stream" else output.data
    for mime, value in data.items():
        num_bytes = _num_bytes(mime, value)
        if num_bytes > MAX_BLOB_BYTES:
            yield f"stores {num_bytes:,} bytes of {mime}, more than {MAX_BLOB_BYTES:,}", "draw it smaller or print less"
        if "widget" in mime or "plotly" in mime:
            yield f"stores a live widget ({mime})", "`make notebooks`, which keeps a still picture or a line of text"
        if mime.startswith("image/") and "svg" not in mime:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if path := MACHINE_PATH.search(text):
            yield f"stores a path of one machine, {path[0]}", "print the file's name, or a path relative to the course"
        if address := MEMORY_ADDRESS.search(text):
            yield (
                f"stores a memory address ({address[0]})",
                "end the cell with an expression that prints well, or plt.show()",
            )


def _num_bytes(mime: str, value: object) -> int:
    if isinstance(value, str) and (mime == "attachment" or (mime.startswith("image/") and "svg" not in mime)):
        return len(base64.b64decode(value))
    return len(value.encode() if isinstance(value, str) else json.dumps(value).encode())


def check_length(notebook: nbformat.NotebookNode, name: str) -> list[Finding]:
    """Check that cells are short enough to be read in one look.

    Args:
        notebook: the notebook.
        name: how to call it.

    Returns:
        Cells with too many lines of code or words of text (see `count_words`).
    """
    findings = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and (num_lines := len(cell.source.strip().splitlines())) > MAX_CODE_LINES:
            problem = f"has {num_lines} lines of code, more than {MAX_CODE_LINES}"
            findings.append(Finding(name, cell.id, problem, "split it, or move code into the library"))
        if cell.cell_type == "markdown" and (num_words := count_words(cell.source)) > MAX_TEXT_WORDS:
            problem = f"has {num_words} words, more than {MAX_TEXT_WORDS}"
            findings.append(
                Finding(name, cell.id, problem, "say it shorter, or split the cell where a reader would pause")
            )
    return findings


def count_words(markdown: str) -> int:
    """Number of words of running text.

    Args:
        markdown: a text cell.

    Returns:
        Words outside tables, code blocks, displayed formulas and link targets.
    """
    return sum(bool(re.search(r"\w", word)) for word in _NOT_PROSE.sub(" ", markdown).split())
