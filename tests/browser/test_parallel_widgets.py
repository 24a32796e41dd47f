"""The widgets of notebook 05 in JupyterLab, in a real browser: ring walk, shard map and trade-off."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page

from cme295lab.units import format_bytes, format_seconds
from cme295lab.widgets import RingWalk, TradeOff, trade_off
from cme295lab.widgets.shard_scenario import shard_scenario
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, drag_range, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
CAPTION_SHOWS = "([where, text]) => document.querySelector(where).innerText.includes(text)"


def check_ring(page: Page, num_ranks: int, step: int) -> None:
    """Caption, meters and every chunk of every rank are those of the step."""
    moment = RingWalk(num_bytes=400e6).walk["rings"][str(num_ranks)]["moments"][step]
    page.wait_for_function(CAPTION_SHOWS, arg=[".rw-caption", moment["caption"]], timeout=10_000)
    assert page.locator(".rw-sent-text").inner_text() == moment["sent"]
    assert page.locator(".rw-complete-text").inner_text() == moment["complete"]
    counts = [len(held) for copies in moment["summed"] for held in copies]
    assert [int(text) for text in page.locator(".rw-count").all_text_contents()] == counts
    assert page.locator(".rw-cell.rw-whole").count() == counts.count(num_ranks)
    assert page.locator(".rw-arrow").count() == len(moment["arrows"])


def test_ring_walk_follows_keys_and_mouse_and_needs_no_kernel(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    source = "from cme295lab.widgets import RingWalk\nring = RingWalk(num_bytes=400e6)\nring"
    notebook = open_notebook(write_notebook("ring_walk", [source, "ring.figure(3)"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".rw-ring")
    check_ring(page, 4, 0)
    steps = page.locator(".rw .tw-step input")
    steps.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    check_ring(page, 4, 3)
    notebook.screenshot(SCREENSHOTS / "ring_walk.png")
    drag_range(page, page.locator(".rw-ranks input"), from_share=2 / 6, to_share=1)
    check_ring(page, 8, 0)
    page.click(".rw button[aria-label='play']")
    page.wait_for_function("() => Number(document.querySelector('.rw .tw-step input').value) >= 2", timeout=10_000)
    page.click(".rw button[aria-label='pause']")
    check_ring(page, 8, int(steps.input_value()))
    notebook.screenshot(SCREENSHOTS / "ring_walk_8.png")

    session = notebook._session()
    notebook.server.delete(f"api/sessions/{session['id']}")
    steps.focus()
    page.keyboard.press("Home")
    check_ring(page, 8, 0)
    keys = ["ArrowRight"] * NUM_PRESSES
    assert measure(page, "ring_walk", steps, [".rw-caption"], keys) < HANGING_MS
    check_ring(page, 8, NUM_PRESSES)


def check_shards(page: Page, stage: int, num_ranks: int, number: int, holds: str) -> None:
    """Caption, number of held pieces and bytes per rank are those of the moment."""
    moment = shard_scenario(stage=stage, num_ranks=num_ranks).moments[number]
    page.wait_for_function(CAPTION_SHOWS, arg=[".shard-caption", f"{number + 1} of"], timeout=10_000)
    page.wait_for_function(CAPTION_SHOWS, arg=[".shard-caption", moment.caption], timeout=10_000)
    pieces = sum(len(held) for held in moment.holdings)
    page.wait_for_function("n => document.querySelectorAll('.shard-held').length === n", arg=pieces, timeout=10_000)
    assert page.locator(".shard-table td").nth(3).inner_text() == holds


def test_shard_map_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import ShardMap\nshards = ShardMap()\nshards"
    notebook = open_notebook(write_notebook("shard_map", [source, "shards.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".shard-held")
    check_shards(page, 0, 4, 0, "105 GB")  # 14 bytes for each of 7.5 billion parameters: no gradients yet
    page.click(".shard-stage button:has-text('ZeRO-3')")
    check_shards(page, 3, 4, 0, "26.2 GB")
    handle = page.locator(".shard-moment .noUi-handle")
    handle.focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    check_shards(page, 3, 4, 6, "27.2 GB")
    notebook.screenshot(SCREENSHOTS / "shard_map.png")
    page.locator(".shard-parameters select").select_option("70 B")
    page.locator(".shard-num_ranks .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    check_shards(page, 3, 8, 0, "122 GB")
    handle.focus()
    keys = ["ArrowRight"] * 8
    assert measure(page, "shard_map", handle, [".shard-caption"], keys) < HANGING_MS
    assert notebook.error_outputs() == []


def check_trade_off(page: Page, expected: TradeOff) -> None:
    """The bars' labels and the table show the scenario."""
    labels = [format_bytes(cost.state_bytes) for cost in expected.stages]
    labels += [format_seconds(cost.time.step_s) for cost in expected.stages]
    shows = """texts => [...document.querySelectorAll('.trade-explorer .bartext')]
      .map(e => e.textContent).filter(t => t).join() === texts"""
    page.wait_for_function(shows, arg=",".join(labels), timeout=10_000)
    sent = format_bytes(expected.stages[3].time.sent_bytes)
    page.wait_for_function(CAPTION_SHOWS, arg=[".trade-summary tr:nth-child(5)", sent], timeout=10_000)


def test_trade_off_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import TradeOffExplorer\ntrade = TradeOffExplorer()\ntrade"
    notebook = open_notebook(write_notebook("trade_off", [source, "trade.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".trade-explorer .bartext")
    check_trade_off(page, trade_off(num_parameters=7.5e9, num_ranks=64, tokens_per_gpu=4096))
    link = page.locator(".trade-link_bytes_per_s .noUi-handle")
    link.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    slow = {"tokens_per_gpu": 4096, "link_bytes_per_s": 3.125e9}
    check_trade_off(page, trade_off(num_parameters=7.5e9, num_ranks=64, **slow))
    notebook.screenshot(SCREENSHOTS / "trade_off.png")
    drag(page, page.locator(".trade-num_ranks .noUi-handle"), -400)
    page.locator(".trade-device select").select_option("H100-SXM5")
    check_trade_off(page, trade_off(num_parameters=7.5e9, num_ranks=1, device="H100", **slow))
    keys = ["ArrowRight", "ArrowLeft"] * (NUM_PRESSES // 2)
    ranks = page.locator(".trade-num_ranks .noUi-handle")
    assert measure(page, "trade_off_explorer", ranks, [".trade-summary table"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
