"""The widgets of notebook 01 in JupyterLab, in a real browser: decoding playground, routing, beam tree, KV cache."""

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page

from cme295lab.units import format_bytes
from cme295lab.widgets import KvCacheScenario, kv_cache_scenario
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]


def check_cache(page: Page, expected: KvCacheScenario) -> None:
    """The bars' labels and the table show the scenario."""
    labels = [format_bytes(layout.cache_bytes, binary=True) for layout in expected.layouts]
    labels += [f"{layout.bytes_per_token:,} B" for layout in expected.layouts]
    shows = """texts => [...document.querySelectorAll('.kv-explorer .bartext')]
      .map(e => e.textContent).filter(t => t).join('|') === texts"""
    page.wait_for_function(shows, arg="|".join(labels), timeout=10_000)
    fits = """texts => [...document.querySelectorAll('.kv-summary td:nth-child(4)')]
      .map(e => e.innerText).join('|') === texts"""
    tokens = "|".join(f"{layout.max_tokens:,}" for layout in expected.layouts)
    page.wait_for_function(fits, arg=tokens, timeout=10_000)  # the text comes after the bars


def test_kv_cache_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import KvCacheExplorer\ncache = KvCacheExplorer()\ncache"
    notebook = open_notebook(write_notebook("kv_cache", [source, "cache.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".kv-explorer .bartext")
    call: dict[str, Any] = {"model": "llama-2-7b", "batch": 1}
    check_cache(page, kv_cache_scenario(seq=4096, **call))
    context = page.locator(".kv-seq .noUi-handle")
    context.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    check_cache(page, kv_cache_scenario(seq=16384, **call))
    page.locator(".kv-model select").select_option("llama-2-70b")  # four kinds of attention instead of three
    call["model"] = "llama-2-70b"
    check_cache(page, kv_cache_scenario(seq=16384, **call))
    assert "does not fit" in page.locator(".kv-summary b").inner_text()
    page.locator(".kv-num_gpus .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    check_cache(page, kv_cache_scenario(seq=16384, num_gpus=2, **call))
    notebook.screenshot(SCREENSHOTS / "kv_cache_explorer.png")
    drag(page, page.locator(".kv-batch .noUi-handle"), 400)
    check_cache(page, kv_cache_scenario(seq=16384, num_gpus=2, **(call | {"batch": 512})))
    keys = ["ArrowLeft", "ArrowRight"] * (NUM_PRESSES // 2)
    shown = [".kv-explorer .bartext", ".kv-summary table"]
    assert measure(page, "kv_cache_explorer", context, shown, keys) < HANGING_MS
    assert notebook.error_outputs() == []
