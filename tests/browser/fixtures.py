"""Fixtures for browser tests. `open_notebook(path)` is all that most tests need.

    @pytest.mark.browser
    def test_slider_redraws(open_notebook, write_notebook):
        notebook = open_notebook(write_notebook("slider", ["from cme295lab.widgets import ...", "..."]))
        notebook.run_all()
        notebook.page.locator(...)

The server serves a copy of the course (notebooks/ with the fast profile, exercises/) in a temporary folder.
"""

import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest

from cme295lab.course import browser as browsers
from cme295lab.course.places import Course
from cme295lab.course.validation import parameterised_copy
from tests.browser.lab import LabNotebook, LabServer

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """A running Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=str(browsers.find_browser()), args=browsers.LAUNCH_ARGUMENTS
        )
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def lab_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """JupyterLab on a copy of the course."""
    root = tmp_path_factory.mktemp("course")
    (root / "notebooks").mkdir()
    for path in Course(REPOSITORY).notebooks():
        parameterised_copy(path, root / "notebooks", "fast")
    if (REPOSITORY / "exercises").is_dir():
        shutil.copytree(REPOSITORY / "exercises", root / "exercises")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LabServer(root, tmp_path_factory.mktemp("log") / "lab.log", port)
    yield server
    server.stop()


@pytest.fixture
def write_notebook(lab_server: LabServer) -> Callable[[str, list[str]], str]:
    """`write_notebook(name, [code, ...])` puts a notebook of code cells on the server and returns its path there."""

    def write(name: str, sources: list[str]) -> str:
        cells = [nbformat.v4.new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), lab_server.root / f"{name}.ipynb")
        return f"{name}.ipynb"

    return write


@pytest.fixture
def open_notebook(lab_server: LabServer, chromium: object) -> Iterator[Callable[[str], LabNotebook]]:
    """`open_notebook(path)` opens a notebook of the served folder in JupyterLab; it is closed after the test."""
    opened: list[LabNotebook] = []

    def open_one(path: str) -> LabNotebook:
        opened.append(LabNotebook(lab_server, chromium, path))
        return opened[-1]

    yield open_one
    for notebook in opened:
        notebook.close()
