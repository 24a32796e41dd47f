"""Each check of the stored notebooks can fail, and says where and what to do."""

import base64
from collections.abc import Callable

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cme295lab.course.build import build_notebooks
from cme295lab.course.checks import (
    Finding,
    check_course,
    check_drift,
    check_length,
    check_stored,
    count_words,
)
from cme295lab.course.links import anchors_of, check_links, links_of
from cme295lab.course.places import Course
from cme295lab.course.sources import NotebookSource

WriteLesson = Callable[..., NotebookSource]
TEXT_ONLY = '# %% [markdown]\n# # A title\n\n# %% tags=["parameters"]\n\n# %% [markdown]\n# An end.\n'


def stored_findings(output: nbformat.NotebookNode) -> list[Finding]:
    cell = new_code_cell("code", id="the-cell", outputs=[output])
    return check_stored(new_notebook(cells=[cell]), "notebooks/x.ipynb", 1000)


def text_output(text: str) -> nbformat.NotebookNode:
    return new_output("stream", name="stdout", text=text)


def test_fresh_course_has_no_findings(course: Course, write_lesson: WriteLesson) -> None:
    write_lesson(TEXT_ONLY)
    build_notebooks(course, say=str)
    assert check_course(course) == []


def _edit_source(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[0].source += "\nEdited by hand."


def _edit_id(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[0].id = "another"


def _edit_metadata(notebook: nbformat.NotebookNode) -> None:
    notebook.cells[1].metadata.tags.append("hidden")


def _add_cell(notebook: nbformat.NotebookNode) -> None:
    notebook.cells.append(new_markdown_cell("More."))


def _rename_kernel(notebook: nbformat.NotebookNode) -> None:
    notebook.metadata.kernelspec.name = "my-kernel"


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (_edit_source, "its source differs"),
        (_edit_id, "its id differs"),
        (_edit_metadata, "its metadata differs"),
        (_add_cell, "has 4 cells, 01_lesson.py has 3"),
        (_rename_kernel, "its metadata differ"),
    ],
)
def test_drift_is_found(
    course: Course, write_lesson: WriteLesson, edit: Callable[[nbformat.NotebookNode], None], problem: str
) -> None:
    source = write_lesson(TEXT_ONLY)
    build_notebooks(course, say=str)
    notebook = nbformat.read(source.notebook, as_version=4)
    edit(notebook)
    nbformat.write(notebook, source.notebook)
    (finding,) = check_drift(source, "notebooks/01_lesson.ipynb")
    assert problem in finding.problem
    assert "make notebooks" in finding.fix


def test_missing_notebook_and_missing_text_are_found(course: Course, write_lesson: WriteLesson) -> None:
    write_lesson(TEXT_ONLY)
    nbformat.write(new_notebook(), course.root / "notebooks" / "09_stray.ipynb")
    problems = {finding.file: finding.problem for finding in check_course(course)}
    assert problems == {"notebooks/01_lesson.ipynb": "is missing", "notebooks/09_stray.ipynb": "has no text source"}


@pytest.mark.parametrize("path", ["/home/ada/lab/x.py", "/root/x", "/tmp/y.log", "/Users/ada/x", r"C:\Users\ada\x"])
def test_machine_path_is_found(path: str) -> None:
    (finding,) = stored_findings(text_output(f"saved to '{path}'\n"))
    assert "stores a path of one machine" in finding.problem
    assert str(finding).startswith("notebooks/x.ipynb, cell the-cell: ")


@pytest.mark.parametrize("text", ["build/home/x.png", "40 flop/work/unit", "https://example.org/home/page", "a /tmp b"])
def test_other_slashes_are_no_machine_path(text: str) -> None:
    assert stored_findings(text_output(text)) == []


def test_machine_path_in_html_is_found() -> None:
    data = {"text/html": "<b>/home/ada/x</b>", "text/plain": "x"}
    assert len(stored_findings(new_output("display_data", data))) == 1


def test_large_blob_is_found() -> None:
    data = {"image/png": base64.b64encode(bytes(100_001)).decode()}
    (finding,) = stored_findings(new_output("display_data", data))
    assert "100,001 bytes of image/png" in finding.problem
    assert stored_findings(new_output("display_data", {"image/png": base64.b64encode(bytes(99_999)).decode()})) == []


def test_error_widget_and_address_are_found() -> None:
    error = new_output("error", ename="ValueError", evalue="no", traceback=[])
    widget = new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})
    address = new_output("execute_result", {"text/plain": "<Line2D object at 0x7f0123456789>"}, execution_count=1)
    problems = [stored_findings(output)[0].problem for output in (error, widget, address)]
    assert problems[0] == "stores the error ValueError: no"
    assert "live widget" in problems[1]
    assert "memory address" in problems[2]


def test_large_notebook_is_found() -> None:
    (finding,) = check_stored(new_notebook(), "notebooks/x.ipynb", 1_000_001)
    assert "1,000,001 bytes" in finding.problem


def test_large_attachment_is_found() -> None:
    cell = new_markdown_cell("![x](attachment:x.png)", attachments={"x.png": {"image/png": "A" * 200_000}})
    (finding,) = check_stored(new_notebook(cells=[cell]), "notebooks/x.ipynb", 1000)
    assert "attachment x.png" in finding.problem


def test_long_cells_are_found() -> None:
    cells = [new_code_cell("x = 1\n" * 16), new_code_cell("x = 1\n" * 15)]
    cells += [new_markdown_cell("word " * 121), new_markdown_cell("word " * 120)]
    problems = [finding.problem for finding in check_length(new_notebook(cells=cells), "notebooks/x.ipynb")]
    assert problems == ["has 16 lines of code, more than 15", "has 121 words, more than 120"]


def test_tables_formulas_and_code_are_not_counted_as_words() -> None:
    assert (
        count_words("Two words\n\n| a | b |\n|---|---|\n\n$$x = y z$$\n\n```python\ncode here\n```\n— [end](a/b.md)")
        == 3
    )


def test_broken_links_are_found(course: Course, write_lesson: WriteLesson) -> None:
    text = (
        "# %% [markdown]\n# [good](../document.md#a-heading) [no file](nothing.md) [no heading](../document.md#nope)\n"
    )
    write_lesson(text)
    build_notebooks(course, say=str)
    (course.root / "README.md").write_text("![picture](docs/missing.png) [web](https://example.org) `[code](x)`\n")
    findings = [(finding.file, finding.problem) for finding in check_links(course)]
    assert findings == [
        ("README.md", "link 'docs/missing.png' leads to no file"),
        ("notebooks/01_lesson.ipynb", "link 'nothing.md' leads to no file"),
        ("notebooks/01_lesson.ipynb", "link '../document.md#nope' leads to no heading"),
    ]


def test_links_and_anchors_are_read_as_a_repository_browser_does() -> None:
    assert links_of('[a](b.md "title") <img src="c.png"> [mail](mailto:x@y) [d](#e)') == ["b.md", "c.png", "#e"]
    assert anchors_of("# What `make test` does\n\n## GPU, or not?\n") == {"what-make-test-does", "gpu-or-not"}
