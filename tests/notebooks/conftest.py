"""A small course in a temporary folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cme295lab.course.places import Course
from cme295lab.course.sources import NotebookSource, notebook_sources

LESSON = """
# %% [markdown]
# # A lesson
#
# See [the document](../document.md#a-heading).

# %% tags=["parameters"]
profile = "full"

# %% id="size"
size = {"fast": 3, "full": 5}[profile]
print("size", size)

# %% tags=["nbval-check-output"]
6 * 7
"""


@pytest.fixture
def course(tmp_path: Path, repository: Path) -> Course:
    """A course with one lesson's text, not built yet."""
    root = tmp_path / "course"
    (root / "notebooks" / "source").mkdir(parents=True)
    (root / "pyproject.toml").touch()
    (root / "document.md").write_text("# A heading\n")
    shutil.copy(repository / "nbgrader_config.py", root)
    return Course(root)


@pytest.fixture
def write_lesson(course: Course) -> Callable[..., NotebookSource]:
    """`write_lesson(text, stem)` writes a lesson's text into the course and returns its source."""

    def write(text: str = LESSON, stem: str = "01_lesson") -> NotebookSource:
        (course.root / "notebooks" / "source" / f"{stem}.py").write_text(text)
        return next(source for source in notebook_sources(course) if source.text.stem == stem)

    return write
