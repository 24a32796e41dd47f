"""The widget of notebook 13 in JupyterLab, in a real browser: models are chosen, ranks changed, bad ones refused."""

from collections.abc import Callable

import pytest

from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, SCREENSHOTS, measure

pytestmark = pytest.mark.browser

TEXT_SHOWS = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
BARS = "() => document.querySelectorAll('.qlora-explorer .bars .point').length"
WAIT_MS = 10_000
SOURCE = "from cme295lab.widgets import QloraBars\nQloraBars()"


def test_memory_bars_follow_menus_and_keys_and_say_what_is_impossible(
    open_notebook: Callable[[str], LabNotebook], write_notebook: Callable[[str, list[str]], str]
) -> None:
    notebook = open_notebook(write_notebook("qlora", [SOURCE]))
    notebook.run_all()
    assert notebook.error_outputs() == []
    page = notebook.page
    page.wait_for_selector(".qlora-explorer .main-svg")
    page.wait_for_function(f"({BARS})() === 18", timeout=WAIT_MS)  # three bars of six parts
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-summary", "QLoRA 44.1 GB; QLoRA fits 48 GB"], timeout=WAIT_MS)
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-ratios", "17.78 times less"], timeout=WAIT_MS)
    page.locator(".qlora-scales select").select_option("in fp32")
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-ratios", "4.500 bits"], timeout=WAIT_MS)
    page.locator(".qlora-budget select").select_option("24 GB")
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-summary", "none fits 24 GB"], timeout=WAIT_MS)
    page.locator(".qlora-model select").select_option("llama-2-7b")
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-summary", "LoRA and QLoRA fit 24 GB"], timeout=WAIT_MS)
    notebook.screenshot(SCREENSHOTS / "lab_13.png")
    rank = page.locator(".qlora-rank .noUi-handle")
    keys = ["ArrowRight", "ArrowLeft"] * 3
    assert measure(page, "qlora_bars", rank, [".qlora-summary b"], keys) < HANGING_MS
    page.locator(".qlora-model select").select_option("course-1m")
    rank.focus()
    page.keyboard.press("End")
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-summary", "Not possible: rank must be at most"], timeout=WAIT_MS)
    page.keyboard.press("Home")
    page.wait_for_function(TEXT_SHOWS, arg=[".qlora-summary", "all fit"], timeout=WAIT_MS)
    assert notebook.error_outputs() == []
