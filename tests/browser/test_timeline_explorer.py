"""The timeline explorer in JupyterLab, in a real browser: the slider moves through a measured training step."""

from collections.abc import Callable

import pytest

from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, SCREENSHOTS, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
STEP = """
import torch
from cme295lab.memory import MemoryTimeline
from cme295lab.widgets import TimelineExplorer
model = torch.nn.Sequential(torch.nn.Linear(50, 80), torch.nn.ReLU(), torch.nn.Linear(80, 10))
with MemoryTimeline(model=model) as timeline:
    with timeline.phase("forward"):
        loss = model(torch.randn(30, 50)).square().sum()
    with timeline.phase("backward"):
        loss.backward()
explorer = TimelineExplorer(timeline)
explorer
"""


def test_timeline_explorer_draws_the_step_and_follows_the_slider(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    notebook = open_notebook(write_notebook("timeline", [STEP]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".timeline-explorer .scatterlayer .fills path", timeout=20_000)
    page.wait_for_selector(".timeline-explorer .treemaplayer .slice path", timeout=20_000)
    names = page.locator(".timeline-explorer .legendtext").all_text_contents()
    assert {"weight", "activation", "gradient"} <= set(names)
    text = page.locator(".timeline-explorer .timeline-text")
    assert "the peak" in text.inner_text()
    notebook.screenshot(SCREENSHOTS / "timeline_explorer.png")

    handle = page.locator(".timeline-explorer .timeline-moment .noUi-handle")
    handle.focus()
    page.keyboard.press("Home")
    page.wait_for_function("() => !document.querySelector('.timeline-text').innerText.includes('the peak')")
    labels = page.locator(".timeline-explorer .treemaplayer .slicetext").all_text_contents()
    assert any("weight" in label for label in labels)
    assert measure(page, "timeline_explorer", handle, [".timeline-text"], ["ArrowRight"] * 6) < HANGING_MS
    assert notebook.error_outputs() == []
    assert notebook.console_errors == []
