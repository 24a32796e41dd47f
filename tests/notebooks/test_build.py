"""Text becomes notebooks: the same bytes every time, the same ids after an edit elsewhere."""

from collections.abc import Callable

import nbformat
import pytest

from cme295lab.course.build import build_notebook, build_notebooks, write_atomically
from cme295lab.course.places import Course, CourseError
from cme295lab.course.sources import NotebookSource, read_source

WriteLesson = Callable[..., NotebookSource]


def test_ids_follow_the_cell_not_its_place(write_lesson: WriteLesson) -> None:
    before = {c.source: c.id for c in read_source(write_lesson("# %%\na = 1\n\n# %%\nb = 2\n").text).cells}
    after = {
        c.source: c.id for c in read_source(write_lesson("# %%\nnew = 0\n\n# %%\na = 1\n\n# %%\nb = 2\n").text).cells
    }
    assert before["a = 1"] == after["a = 1"]
    assert before["b = 2"] == after["b = 2"]
    assert len(set(after.values())) == 3


def test_equal_cells_get_different_ids(write_lesson: WriteLesson) -> None:
    ids = [cell.id for cell in read_source(write_lesson("# %%\na = 1\n\n# %%\na = 1\n").text).cells]
    assert ids[1] == f"{ids[0]}-2"


def test_explicit_id_and_grade_id_win_and_leave_no_trace(write_lesson: WriteLesson) -> None:
    text = '# %% id="sum"\n1 + 1\n\n# %% nbgrader={"grade": true, "grade_id": "check-sum", "points": 1}\nassert True\n'
    first, second = read_source(write_lesson(text).text).cells
    assert (first.id, dict(first.metadata)) == ("sum", {})
    assert (second.id, second.metadata.nbgrader.points) == ("check-sum", 1)


@pytest.mark.parametrize(("cell_ids", "complaint"), [(("a", "a"), "repeats the id 'a'"), (("a", "b c"), "'b c'")])
def test_bad_ids_are_refused(write_lesson: WriteLesson, cell_ids: tuple[str, str], complaint: str) -> None:
    source = write_lesson("".join(f'# %% id="{cell_id}"\n1\n\n' for cell_id in cell_ids))
    with pytest.raises(CourseError, match=complaint):
        read_source(source.text)


@pytest.mark.notebook
def test_rebuilding_gives_the_same_bytes(course: Course, write_lesson: WriteLesson) -> None:
    source = write_lesson()
    build_notebooks(course, say=str)
    first = source.notebook.read_bytes()
    assert build_notebooks(course, say=str) == []
    assert build_notebooks(course, force=True, say=str) == [source.notebook]
    assert source.notebook.read_bytes() == first
    cells = nbformat.reads(first.decode(), as_version=4).cells
    assert [cell.execution_count for cell in cells if cell.cell_type == "code"] == [1, 2, 3]
    assert cells[2].outputs[0].text == "size 5\n"


def test_change_of_text_or_library_rebuilds(course: Course, write_lesson: WriteLesson) -> None:
    source = write_lesson("# %% [markdown]\n# text\n")
    build_notebooks(course, say=str)
    write_lesson("# %% [markdown]\n# other text\n")
    assert build_notebooks(course, say=str) == [source.notebook]
    (course.root / "cme295lab").mkdir()
    (course.root / "cme295lab" / "module.py").write_text("x = 1\n")
    assert build_notebooks(course, say=str) == [source.notebook]


@pytest.mark.notebook
def test_failing_cell_is_named_and_nothing_is_written(write_lesson: WriteLesson) -> None:
    source = write_lesson('# %% id="divide"\n1 / 0\n')
    with pytest.raises(CourseError, match="cell 'divide' failed: ZeroDivisionError: division by zero"):
        build_notebook(source)
    assert not source.notebook.exists()


def test_unknown_name_lists_what_there_is(course: Course, write_lesson: WriteLesson) -> None:
    write_lesson()
    with pytest.raises(CourseError, match="no source for 02_other; there are: 01_lesson"):
        build_notebooks(course, ["02_other"], say=str)


def test_interrupted_write_leaves_the_old_file(course: Course) -> None:
    path = course.root / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in course.root.glob(".*")] == []
