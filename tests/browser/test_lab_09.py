"""The loss-scale explorer of notebook 09 in JupyterLab, in a real browser: bars move, the format's range stays."""

from collections.abc import Callable

import pytest
import torch

from cme295lab.widgets import loss_scale_scenario
from cme295lab.widgets.loss_scale_explorer import headline
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
TEXT_SHOWS = "([where, text]) => document.querySelector(where).innerText.includes(text)"
GRADIENTS = {"weight": torch.logspace(-9, -4, 501), "bias": torch.logspace(-7, -2, 101)}
SOURCE = """import torch
from cme295lab.widgets import LossScaleExplorer
scales = LossScaleExplorer({"weight": torch.logspace(-9, -4, 501), "bias": torch.logspace(-7, -2, 101)})
scales"""


def test_loss_scale_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    notebook = open_notebook(write_notebook("scales", [SOURCE, "scales.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".lossscale-explorer .bars .point")

    def shows(power: int, **choices: str) -> None:
        expected = headline(loss_scale_scenario(gradients=GRADIENTS, power=power, **choices))
        page.wait_for_function(TEXT_SHOWS, arg=[".lossscale-summary", expected], timeout=10_000)

    shows(0)
    first_bar = page.locator(".lossscale-explorer .bars .point path").first
    before = first_bar.bounding_box()
    scale = page.locator(".lossscale-power .noUi-handle")
    scale.focus()
    for _ in range(8):
        page.keyboard.press("ArrowRight")
    shows(8)
    after = first_bar.bounding_box()
    assert before
    assert after
    assert after["x"] > before["x"] + 50
    notebook.screenshot(SCREENSHOTS / "loss_scale.png")
    page.locator(".lossscale-format select").select_option("bf16")
    shows(8, format="bf16")
    page.locator(".lossscale-tensor select").select_option("bias")
    shows(8, format="bf16", tensor="bias")
    page.locator(".lossscale-format select").select_option("fp16")
    drag(page, scale, 600)
    shows(32, tensor="bias")
    keys = ["ArrowLeft"] * NUM_PRESSES
    assert measure(page, "loss_scale_explorer", scale, [".lossscale-summary table"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
