"""The course's notebooks run from top to bottom in JupyterLab, in a real browser."""

from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest

from cme295lab.course.places import Course
from tests.browser.lab import LabNotebook

REPOSITORY = Path(__file__).resolve().parents[2]
OpenNotebook = Callable[[str], LabNotebook]
NOTEBOOK_TIMEOUT_S = 400

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("path", Course(REPOSITORY).notebooks(), ids=lambda path: path.stem)
def test_notebook_runs_without_an_error(path: Path, open_notebook: OpenNotebook) -> None:
    notebook = open_notebook(f"notebooks/{path.name}")
    notebook.run_all(NOTEBOOK_TIMEOUT_S)
    notebook.screenshot(REPOSITORY / "build" / "screenshots" / f"{path.stem}.png")
    code_cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    assert notebook.error_outputs() == []
    assert notebook.num_executed() >= len(code_cells)


def test_error_outputs_are_seen(open_notebook: OpenNotebook, write_notebook: Callable[[str, list[str]], str]) -> None:
    notebook = open_notebook(write_notebook("failing", ["print('before')", "1 / 0", "print('never')"]))
    notebook.run_all()
    errors = notebook.error_outputs()
    assert len(errors) == 1
    assert "ZeroDivisionError" in errors[0]


def test_widget_is_drawn(open_notebook: OpenNotebook, write_notebook: Callable[[str, list[str]], str]) -> None:
    source = "import ipywidgets\nslider = ipywidgets.IntSlider(value=3, description='tile')\nslider"
    notebook = open_notebook(write_notebook("slider", [source]))
    notebook.run_all()
    notebook.page.wait_for_selector(".widget-slider")
    assert notebook.page.locator(".widget-readout").inner_text() == "3"
    assert notebook.page.get_by_text("Jupyter news").count() == 0, "JupyterLab asks whether to fetch news"
