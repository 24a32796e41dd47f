"""The cache explorer in JupyterLab, in a real browser: keys and mouse move the bars, the maps and the text."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from cme295lab.units import KiB, MiB, format_bytes
from cme295lab.widgets import CacheScenario, cache_scenario
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
A100 = "A100-80GB-SXM"
BARS_SHOW = """texts => [...document.querySelectorAll('.cache-explorer .bartext')]
  .map(e => e.textContent).join() === texts"""
TEXT_SHOWS = "words => words.every(part => document.querySelector('.cache-summary').innerText.includes(part))"


def check(page: Page, expected: CacheScenario) -> None:
    """Bars, headline, the sentence on the first wave and the map of C show the scenario."""
    values = (expected.requested_bytes, expected.hit_bytes, expected.dram_read_bytes, expected.distinct_bytes)
    page.wait_for_function(BARS_SHOW, arg=",".join(format_bytes(value) for value in values), timeout=10_000)
    rows, columns = expected.first_wave
    words = [f"{format_bytes(expected.dram_read_bytes)} from DRAM", f"{rows} rows of tiles of A and {columns} columns"]
    page.wait_for_function(TEXT_SHOWS, arg=words, timeout=10_000)


def test_cache_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import CacheExplorer\nexplorer = CacheExplorer(tiles=16)\nexplorer"
    notebook = open_notebook(write_notebook("cache_explorer", [source, "explorer.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".cache-explorer .bartext")
    check(page, cache_scenario(tiles=16, l2_bytes=2 * MiB, device=A100))

    handle = page.locator(".cache-group .noUi-handle")
    handle.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    check(page, cache_scenario(tiles=16, group=6, l2_bytes=2 * MiB, device=A100))

    page.locator(".cache-l2_kib .noUi-handle").focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    check(page, cache_scenario(tiles=16, group=6, l2_bytes=256 * KiB, device=A100))

    drag(page, page.locator(".cache-ctas_per_sm .noUi-handle"), 300)
    check(page, cache_scenario(tiles=16, group=6, ctas_per_sm=4, l2_bytes=256 * KiB, device=A100))

    page.locator(".cache-show select").select_option("which run together")
    page.wait_for_function("() => document.querySelector('.cache-explorer').textContent.includes('C: wave by wave')")
    notebook.screenshot(SCREENSHOTS / "cache_explorer.png")

    page.locator(".cache-device select").select_option("T4")
    check(page, cache_scenario(tiles=16, group=6, ctas_per_sm=4, l2_bytes=256 * KiB, device="T4"))

    page.locator(".cache-device select").select_option(A100)
    keys = ["ArrowLeft", "ArrowRight"] * (NUM_PRESSES // 2)
    assert measure(page, "cache_explorer", handle, [".cache-summary"], keys) < HANGING_MS
    assert page.locator(".jp-RenderedImage img").count() == 1
    assert notebook.error_outputs() == []
