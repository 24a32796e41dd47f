"""The widgets of notebooks 02 and 03 in JupyterLab, in a real browser: mixture, cost, frontier and iso-FLOP curves."""

from collections.abc import Callable

import pytest

from cme295lab.widgets import CostCalculator, MeasuredMixtures, frontier_scenario, mixture_scenario
from cme295lab.widgets.frontier_explorer import headline
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


def test_cost_calculator_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import CostCalculator\ncosts = CostCalculator()\ncosts"
    notebook = open_notebook(write_notebook("costs", [source, "costs.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".cost-summary table")
    gpus = page.locator(".cost-num_gpus .noUi-handle")
    gpus.focus()
    page.keyboard.press("ArrowRight")
    days = f"{CostCalculator(num_gpus=4096).cost.days.central:,.3g} days"
    page.wait_for_function(TEXT_SHOWS, arg=[".cost-summary", days], timeout=10_000)
    page.locator(".cost-device select").select_option("A100-80GB-SXM")
    days = f"{CostCalculator(num_gpus=4096, device='A100-80GB-SXM').cost.days.central:,.3g} days"
    page.wait_for_function(TEXT_SHOWS, arg=[".cost-summary", days], timeout=10_000)
    notebook.screenshot(SCREENSHOTS / "costs.png")
    keys = ["ArrowLeft", "ArrowRight"] * (NUM_PRESSES // 2)
    assert measure(page, "cost_calculator", gpus, [".cost-summary table"], keys) < HANGING_MS
    assert notebook.error_outputs() == []


def test_frontier_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import FrontierExplorer\nfrontier = FrontierExplorer()\nfrontier"
    notebook = open_notebook(write_notebook("frontier", [source, "frontier.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".frontier-summary table")
    budget = page.locator(".frontier-flops .noUi-handle")
    budget.focus()
    page.keyboard.press("ArrowRight")
    expected = frontier_scenario(flops=1e24)
    page.wait_for_function(TEXT_SHOWS, arg=[".frontier-summary", headline(expected)], timeout=10_000)
    page.locator(".frontier-served_tokens .noUi-handle").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    expected = frontier_scenario(flops=1e24, served_tokens=1e13)
    page.wait_for_function(TEXT_SHOWS, arg=[".frontier-summary", headline(expected)], timeout=10_000)
    page.locator(".frontier-constants select").select_option("Chinchilla")
    expected = frontier_scenario(flops=1e24, served_tokens=1e13, constants="Chinchilla")
    page.wait_for_function(TEXT_SHOWS, arg=[".frontier-summary", headline(expected)], timeout=10_000)
    notebook.screenshot(SCREENSHOTS / "frontier.png")
    keys = ["ArrowLeft"] * NUM_PRESSES
    assert measure(page, "frontier_explorer", budget, [".frontier-summary table"], keys) < HANGING_MS
    assert notebook.error_outputs() == []


RUNS = """from cme295lab.scaling import Run
from cme295lab.widgets import IsoFlopExplorer
runs = []
for flops in (1e12, 3e12, 1e13, 3e13):
    for factor, extra in ((0.25, 0.096), (0.5, 0.024), (1, 0.0), (2, 0.024), (4, 0.096)):
        size = factor * 0.3 * flops**0.5
        runs.append(Run(num_parameters=size, num_tokens=flops / 6 / size, loss=2 + (1e12 / flops) ** 0.1 + extra))
isoflop = IsoFlopExplorer(runs, outcome=Run(num_parameters=2.9e6, num_tokens=1e14 / 6 / 2.9e6, loss=2.63))
isoflop"""


def test_isoflop_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    notebook = open_notebook(write_notebook("isoflop", [RUNS, "isoflop.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".isoflop-summary table")
    page.wait_for_function(TEXT_SHOWS, arg=[".isoflop-summary", "N* ~ C^0.50"], timeout=10_000)
    used = page.locator(".isoflop-num_budgets .noUi-handle")
    used.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(TEXT_SHOWS, arg=[".isoflop-summary tr:nth-child(5)", "held back"], timeout=10_000)
    notebook.screenshot(SCREENSHOTS / "isoflop.png")
    asked = page.locator(".isoflop-flops .noUi-handle")
    keys = ["ArrowRight", "ArrowLeft"] * (NUM_PRESSES // 2)
    assert measure(page, "isoflop_explorer", asked, [".isoflop-summary b"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
