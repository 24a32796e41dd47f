"""The widgets in JupyterLab, in a real browser: keys and mouse change the picture, and change it to the right one.

How long a key takes until the picture shows it is measured in the page and written to `build/browser_latency.json`; the
bound asserted here only catches a widget that hangs, because a busy machine says nothing about a quiet one.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page

from cme295lab.units import KiB, format_bytes
from cme295lab.widgets import TileWalk, TrafficScenario, traffic_scenario
from cme295lab.widgets.traffic_text import headline
from tests.browser.lab import LabNotebook

pytestmark = pytest.mark.browser

REPOSITORY = Path(__file__).resolve().parents[2]
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
LATENCIES = REPOSITORY / "build" / "browser_latency.json"
NUM_PRESSES = 14
HANGING_MS = 1000
OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]

# Of every real key press: the time from the key event to the first frame in which all of the texts have changed.
WATCH_KEYS = """selectors => {
  window.latencies = [];
  const read = () => selectors.map(s => [...document.querySelectorAll(s)].map(e => e.textContent).join('|'));
  document.addEventListener('keydown', event => {
    const before = read();
    const look = () => {
      const waited = performance.now() - event.timeStamp;
      if (read().every((text, i) => text !== before[i])) window.latencies.push(waited);
      else if (waited < 10000) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  }, true);
}"""

BARS_SHOW = """texts => [...document.querySelectorAll('.traffic-explorer .bartext')]
  .map(e => e.textContent).join() === texts"""

HEADLINE_SHOWS = "text => document.querySelector('.traffic-summary .big').innerText === text"

TEXTS = {  # the property that colours each
    ".tw-caption": "color",
    ".tw-matrix .tw-name": "fill",
    ".traffic-summary": "color",
    ".traffic-explorer .bartext": "fill",
    ".traffic-explorer .xtick text": "fill",
}


def measure(page: Page, name: str, control: Locator, selectors: list[str], keys: list[str]) -> float:
    """Press keys on a control, note the latencies in the build folder, and return their median in ms."""
    control.focus()
    page.evaluate(WATCH_KEYS, selectors)
    for number, key in enumerate(keys):
        page.keyboard.press(key)
        page.wait_for_function("n => window.latencies.length > n", arg=number, timeout=10_000)
        page.wait_for_timeout(120)
    milliseconds = page.evaluate("window.latencies")
    result = {
        "median_ms": round(statistics.median(milliseconds), 1),
        "min_ms": round(min(milliseconds), 1),
        "max_ms": round(max(milliseconds), 1),
        "key_presses": len(milliseconds),
    }
    known = json.loads(LATENCIES.read_text()) if LATENCIES.exists() else {}
    LATENCIES.parent.mkdir(exist_ok=True)
    LATENCIES.write_text(json.dumps(known | {name: result}, indent=2) + "\n")
    print(f"{name}: key press to redrawn picture: {result}")
    return float(result["median_ms"])


def drag(page: Page, handle: Locator, pixels: float) -> None:
    """Drag a slider's handle with the mouse."""
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=8)
    page.mouse.up()


def set_theme(page: Page, name: str) -> None:
    """Choose "JupyterLab Light" or "JupyterLab Dark" in the menu."""
    page.click(".lm-MenuBar-itemLabel:text-is('Settings')")
    page.hover(".lm-Menu-itemLabel:text-is('Theme')")
    page.click(f".lm-Menu-itemLabel:text-is('{name}')")
    page.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=name)
    page.wait_for_timeout(300)


def brightness(page: Page, selector: str, style: str) -> float:
    """Mean of red, green and blue, 0 to 255, of a computed colour."""
    colour = page.eval_on_selector(selector, f"e => getComputedStyle(e).{style}")
    return statistics.mean(float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3])


def check_traffic(page: Page, expected: TrafficScenario) -> None:
    """Bars, table and headline show the scenario."""
    texts = [format_bytes(value) for value in expected.bars.values()]
    page.wait_for_function(BARS_SHOW, arg=",".join(texts), timeout=10_000)
    page.wait_for_function(HEADLINE_SHOWS, arg=headline(expected), timeout=10_000)  # it comes after the bars
    for name, cost in (("standard", expected.standard), ("flash", expected.flash)):
        cells = page.locator(f".traffic-summary tr.traffic-{name} td").all_inner_texts()
        assert cells[1] == format_bytes(cost.num_bytes)
        assert cells[3] == f"{cost.intensity:.3g}"


def test_traffic_explorer_follows_keys_and_mouse(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import TrafficExplorer\nTrafficExplorer(seq=1024, head_dim=64, num_heads=16)"
    notebook = open_notebook(write_notebook("traffic_explorer", [source]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".traffic-explorer .bartext")
    call: dict[str, Any] = {"head_dim": 64, "num_heads": 16, "sram_bytes": 192 * KiB}
    check_traffic(page, traffic_scenario(seq=1024, **call))

    handle = page.locator(".traffic-seq .noUi-handle")
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    check_traffic(page, traffic_scenario(seq=8192, **call))

    drag(page, page.locator(".traffic-block_m .noUi-handle"), 60)
    page.wait_for_timeout(300)
    block_m = int(page.locator(".traffic-block_m .widget-readout").inner_text())
    assert block_m > 128
    check_traffic(page, traffic_scenario(seq=8192, block_m=block_m, **call))
    assert page.locator(".traffic-fit").inner_text().startswith("Fits.")

    page.locator(".traffic-head_dim .noUi-handle").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".traffic-fit.no")
    assert page.locator(".traffic-fit").inner_text().startswith("Does not fit.")

    keys = ["ArrowLeft", "ArrowRight"] * (NUM_PRESSES // 2)
    shown = [".traffic-explorer .bartext", ".traffic-summary tr.traffic-flash td:nth-child(2)"]
    assert measure(page, "traffic_explorer", handle, shown, keys) < HANGING_MS
    assert notebook.error_outputs() == []


def test_tile_walk_follows_keys_and_mouse_and_needs_no_kernel(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    notebook = open_notebook(write_notebook("tile_walk", ["from cme295lab.widgets import TileWalk\nTileWalk()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".tw-matrix")
    walk = TileWalk().walk  # the same seed: what the page must show
    steps = page.locator(".tw-step input")
    check_step(page, walk, 0, 0)

    steps.focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    check_step(page, walk, 0, 5)
    page.keyboard.press("End")
    check_step(page, walk, 0, len(walk["programs"][0]["steps"]) - 1)
    page.click("button[aria-label='one step on']")  # goes on with the next program
    check_step(page, walk, 1, 0)

    drag_range(page, page.locator(".tw-program input"), from_share=1 / 3, to_share=1)
    check_step(page, walk, 3, 0)
    drag_range(page, steps, from_share=0, to_share=0.5)
    middle = int(steps.input_value())
    assert middle > 5
    check_step(page, walk, 3, middle)

    page.click("button[aria-label='play']")
    page.wait_for_function("step => Number(document.querySelector('.tw-step input').value) > step", arg=middle + 1)
    page.click("button[aria-label='pause']")
    paused = int(steps.input_value())
    page.wait_for_timeout(1000)
    check_step(page, walk, 3, paused)

    session = notebook._session()
    notebook.server.delete(f"api/sessions/{session['id']}")
    steps.focus()
    page.keyboard.press("Home")
    check_step(page, walk, 3, 0)
    keys = ["ArrowRight"] * NUM_PRESSES
    assert measure(page, "tile_walk", steps, [".tw-step output"], keys) < HANGING_MS
    check_step(page, walk, 3, NUM_PRESSES)


def drag_range(page: Page, slider: Locator, from_share: float, to_share: float) -> None:
    """Drag the thumb of a native slider between two shares of its length."""
    box = slider.bounding_box()
    assert box is not None
    thumb = 16  # pixels: the thumb's centre stays half a thumb inside either end
    x = [box["x"] + thumb / 2 + share * (box["width"] - thumb) for share in (from_share, to_share)]
    y = box["y"] + box["height"] / 2
    page.mouse.move(x[0], y)
    page.mouse.down()
    page.mouse.move(x[1], y, steps=8)
    page.mouse.up()


def check_step(page: Page, walk: dict[str, Any], program: int, step: int) -> None:
    """Caption, line, numbers, meters and the tile at hand are those of the step."""
    record = walk["programs"][program]
    expected = record["steps"][step]
    page.wait_for_function(
        "text => document.querySelector('.tw-step output').textContent === text",
        arg=f"{step + 1} of {len(record['steps'])}",
        timeout=10_000,
    )
    assert page.locator(".tw-program output").inner_text() == record["label"]
    assert page.locator(".tw-caption").inner_text() == expected["caption"]
    assert page.locator(".tw-source").inner_text().split() == [
        str(expected["line"]),
        *walk["sources"][expected["source"]].split(),
    ]
    assert page.locator(".tw-meters .tw-number").all_inner_texts() == [text for _, text in expected["meters"]]
    maxima = page.locator(".tw-rows tbody td:nth-child(2)").all_inner_texts()
    assert maxima == (expected["row_max"] or ["–"] * len(record["sampled_rows"]))
    at_hand = page.locator(".tw-matrix .tw-tile.tw-current")
    assert at_hand.count() == (0 if expected["key_rows"] is None else 1)
    if expected["key_rows"] is not None:
        size, left, top = 320, 74, 84  # of the matrix in the drawing
        x = left + size * expected["key_rows"][0] / walk["num_keys"] + 1
        y = top + size * record["query_rows"][0] / walk["num_queries"] + 1
        assert float(at_hand.get_attribute("x") or "nan") == pytest.approx(x)
        assert float(at_hand.get_attribute("y") or "nan") == pytest.approx(y)
    skipped = page.locator(".tw-matrix .tw-tile.tw-skipped").count()
    assert skipped == 6  # 4 by 4 tiles, those above the diagonal


def test_widgets_and_figures_are_legible_in_both_themes(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    sources = [
        "from cme295lab.hardware import get_device\nget_device('B200')",
        "from cme295lab.widgets import TileWalk, TrafficExplorer",
        "walk = TileWalk()\nwalk.program, walk.step = 2, 9\nwalk",
        "explorer = TrafficExplorer(backward=True, causal=True)\nexplorer",
        "walk.figure()",
        "explorer.figure()",
    ]
    notebook = open_notebook(write_notebook("themes", sources))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".traffic-explorer .bartext")
    page.wait_for_selector(".tw-matrix")
    for theme, dark in (("JupyterLab Dark", True), ("JupyterLab Light", False)):
        set_theme(page, theme)
        notebook.screenshot(SCREENSHOTS / f"widgets_{'dark' if dark else 'light'}.png")
        page_is_bright = brightness(page, ".jp-Notebook", "backgroundColor") > 127
        assert page_is_bright is not dark
        for selector, style in TEXTS.items():
            assert (brightness(page, selector, style) > 160) is dark, (theme, selector)
    assert page.locator(".jp-RenderedImage img").count() == 2
    assert notebook.error_outputs() == []
