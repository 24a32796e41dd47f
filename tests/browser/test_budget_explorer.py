"""The 80 GB budget in JupyterLab, in a real browser: menus, sliders, the proposed change and a pasted link."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from playwright.sync_api import Page

from cme295lab.memory import cheapest_fix
from cme295lab.widgets import Budget
from cme295lab.widgets.budget_explorer import default_budget
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
SHOWS = "([where, text]) => document.querySelector(where).innerText.toLowerCase().includes(text.toLowerCase())"


def check(page: Page, budget: Budget) -> None:
    """Verdict, proposed change and link are those of the budget, and the capacity stands in the plot."""
    page.wait_for_function(SHOWS, arg=[".budget-verdict", str(budget.verdict)], timeout=10_000)
    assert (page.locator(".budget-verdict.no").count() == 0) is bool(budget.verdict)
    page.wait_for_function(
        "link => document.querySelector('.budget-share input').value === link", arg=budget.fragment, timeout=10_000
    )
    fix = cheapest_fix(budget.setting, budget.device)
    for change in fix.changes:
        assert change.name in page.locator(".budget-change").inner_text()
    assert page.locator(".budget-fix").is_visible() is bool(fix.changes and fix)
    page.wait_for_function(SHOWS, arg=[".budget-explorer .js-plotly-plot", budget.device.name], timeout=10_000)


def test_budget_explorer_follows_keys_mouse_and_link(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    source = "from cme295lab.widgets import BudgetExplorer\nexplorer = BudgetExplorer()\nexplorer"
    notebook = open_notebook(write_notebook("budget", [source, "explorer.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".budget-verdict")
    start = default_budget()
    check(page, start)

    page.locator(".budget-recompute select").select_option("full")
    budget = replace(start, setting=start.setting.changed(recompute="full"))
    check(page, budget)
    notebook.screenshot(SCREENSHOTS / "budget_explorer.png")
    page.click(".budget-fix")
    fixed = cheapest_fix(budget.setting, budget.device).ledger.setting
    assert fixed is not None
    check(page, replace(budget, setting=fixed))

    handle = page.locator(".budget-micro_batch .noUi-handle")
    handle.focus()
    page.keyboard.press("ArrowRight")
    check(page, replace(budget, setting=fixed.changed(micro_batch=2)))
    drag(page, handle, 300)
    check(page, replace(budget, setting=fixed.changed(micro_batch=128)))

    page.locator(".budget-share input").fill("https://example.org/lab" + start.fragment)
    page.keyboard.press("Enter")
    check(page, start)
    assert page.locator(".budget-recompute select").input_value() == "none"

    handle.focus()
    keys = ["ArrowRight", "ArrowLeft"] * (NUM_PRESSES // 2)
    assert measure(page, "budget_explorer", handle, [".budget-verdict"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
