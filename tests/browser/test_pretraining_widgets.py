"""The widgets of notebooks 02 and 03 in JupyterLab, in a real browser: mixture, cost, frontier and iso-FLOP curves."""

from collections.abc import Callable

import pytest

from cme295lab.widgets import MeasuredMixtures, mixture_scenario
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
BARS_SHOW = """([where, texts]) => [...document.querySelectorAll(where + ' .bartext')]
  .map(e => e.textContent).filter(t => t).join() === texts"""
TEXT_SHOWS = "([where, text]) => document.querySelector(where).innerText.includes(text)"

MIXTURES = """from cme295lab.widgets import MeasuredMixtures, MixtureExplorer
measured = MeasuredMixtures(
    domain="code", shares=(0.0, 0.25, 0.5, 0.75, 1.0),
    losses={"english": (3.0, 3.05, 3.2, 3.5, 4.4), "code": (4.2, 2.9, 2.6, 2.5, 2.45)})
mixture = MixtureExplorer({"english": 1_000_000, "code": 400_000, "stories": 200_000}, measured=measured)
mixture"""


def test_mixture_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    notebook = open_notebook(write_notebook("mixture", [MIXTURES, "mixture.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".mixture-explorer .bartext")
    page.wait_for_function(BARS_SHOW, arg=[".mixture-explorer", "33%,33%,33%"], timeout=10_000)
    ticks = page.locator(".mixture-explorer .xtick text").all_text_contents()
    assert ticks[:3] == ["english", "code", "stories"]
    code = page.locator(".mixture-code .noUi-handle")
    code.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    page.wait_for_function(BARS_SHOW, arg=[".mixture-explorer", "25%,50%,25%"], timeout=10_000)
    sizes = {"english": 1_000_000, "code": 400_000, "stories": 200_000}
    weights = {"english": 0.5, "code": 1.0, "stories": 0.5}
    measured = MeasuredMixtures(domain="code", shares=(0.0, 0.5), losses={"code": (4.2, 2.6)})
    expected = mixture_scenario(sizes=sizes, weights=weights, num_tokens=5_000_000, measured=measured)
    epochs = f"{expected.domains[1].epochs:.2f}"
    assert epochs == "6.25"
    page.wait_for_function(TEXT_SHOWS, arg=[".mixture-summary tr:nth-child(3)", epochs], timeout=10_000)
    page.wait_for_function(TEXT_SHOWS, arg=[".mixture-summary tr:nth-child(3)", "2.600"], timeout=10_000)
    notebook.screenshot(SCREENSHOTS / "mixture.png")
    drag(page, page.locator(".mixture-stories .noUi-handle"), -400)
    page.wait_for_function(BARS_SHOW, arg=[".mixture-explorer", "33%,67%,0%"], timeout=10_000)
    keys = ["ArrowLeft"] * NUM_PRESSES
    assert measure(page, "mixture_explorer", code, [".mixture-summary table"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
