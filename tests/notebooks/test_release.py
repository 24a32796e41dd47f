"""Exercises come from solutions, the same bytes every time, without what would give the solution away."""

from pathlib import Path

import nbformat
import pytest

from cme295lab.course.build import build_notebooks
from cme295lab.course.places import Course, CourseError
from cme295lab.course.release import release_exercises, stale_exercises

SOLUTION = '''\
# %% [markdown]
# # An exercise

# %% nbgrader={"grade": false, "grade_id": "double", "locked": false, "schema_version": 3, "solution": true, "task": false}
def double(x):
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "check", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
assert double(2) == 4
### BEGIN HIDDEN TESTS
assert double(-3) == -6
### END HIDDEN TESTS
'''  # fmt: skip  # noqa: E501


@pytest.fixture
def released(course: Course) -> Course:
    """The course with one released exercise."""
    (course.root / "solutions" / "source").mkdir(parents=True)
    (course.root / "solutions" / "source" / "doubling.py").write_text(SOLUTION)
    build_notebooks(course, say=str)
    release_exercises(course)
    return course


def exercise(course: Course) -> Path:
    return course.root / "exercises" / "doubling" / "doubling.ipynb"


def test_release_strips_solutions_and_hidden_tests(released: Course) -> None:
    cells = {cell.id: cell.source for cell in nbformat.read(exercise(released), as_version=4).cells}
    assert "return 2 * x" not in cells["double"]
    assert "NotImplementedError" in cells["double"]
    assert cells["check"] == "assert double(2) == 4"


def test_release_is_reproducible_and_registers_in_the_gradebook(released: Course) -> None:
    first = exercise(released).read_bytes()
    release_exercises(released)
    assert exercise(released).read_bytes() == first
    assert stale_exercises(released) == []
    assert (released.root / "gradebook.db").is_file()


def test_edited_missing_and_orphaned_exercises_are_found(released: Course) -> None:
    path = exercise(released)
    path.write_text(path.read_text().replace("An exercise", "My exercise"))
    (released.root / "exercises" / "orphan.ipynb").write_text("{}")
    problems = {finding.file: finding.problem for finding in stale_exercises(released)}
    assert problems == {
        "exercises/doubling/doubling.ipynb": "is stale",
        "exercises/orphan.ipynb": "has no solution",
    }
    path.unlink()
    assert "is missing" in {finding.problem for finding in stale_exercises(released)}


def test_helper_module_and_nested_notebook_are_refused(released: Course) -> None:
    folder = released.root / "solutions" / "doubling"
    (folder / "helper.py").write_text("answer = 42\n")
    with pytest.raises(CourseError, match=r"helper.py in solutions/doubling/ would be released with its solutions"):
        release_exercises(released)
    (folder / "helper.py").unlink()
    (folder / "more").mkdir()
    (folder / "more" / "more.ipynb").write_bytes((folder / "doubling.ipynb").read_bytes())
    with pytest.raises(CourseError, match=r"more.ipynb in solutions/doubling/more/ would not be released"):
        release_exercises(released)


def test_notebook_that_nbgrader_refuses_is_reported(released: Course) -> None:
    source = released.root / "solutions" / "source" / "doubling.py"
    source.write_text(SOLUTION.replace("    ### END SOLUTION\n", ""))
    build_notebooks(released, say=str)
    with pytest.raises(CourseError, match="could not generate 'doubling'"):
        release_exercises(released)
