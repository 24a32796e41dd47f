"""The widgets of notebook 01 in JupyterLab, in a real browser: decoding playground, routing, beam tree, KV cache."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from cme295lab.transformer.decoding import Sampling
from cme295lab.units import format_bytes
from cme295lab.widgets import KvCacheScenario, kv_cache_scenario, routing_scenario
from cme295lab.widgets.beam_scenario import beam_scenario
from cme295lab.widgets.decoding_playground import DecodingPlayground
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, NUM_PRESSES, SCREENSHOTS, drag, measure
from tests.widgets.fake_language_model import fake_mixtures, fake_pretrained

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
REPOSITORY = Path(__file__).resolve().parents[2]
# A random model with a tokenizer of letters, the same on the page and in the test.
LETTERS = f"""import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from tests.widgets.fake_language_model import fake_mixtures, fake_pretrained
letters = fake_pretrained()"""
BAR_LABELS_SHOW = """texts => [...document.querySelectorAll('.decoding-explorer .textpoint')]
  .map(e => e.textContent).join('|') === texts"""


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


def check_chances(page: Page, expected: DecodingPlayground) -> None:
    """Every label behind a bar, every name before it, and the headline are those of the playground."""
    scenario = expected.scenario
    labels = "|".join(f"{c.after:.1%}" if c.kept else "cut off" for c in scenario.chances)
    page.wait_for_function(BAR_LABELS_SHOW, arg=labels, timeout=10_000)
    names = [c.text for c in scenario.chances]
    assert [name.strip() for name in page.locator(".decoding-explorer .ytick text").all_text_contents()] == names
    kept = f"{scenario.num_kept:,} of {scenario.vocab_size:,} tokens can be drawn"
    expect(page.locator(".decoding-summary b")).to_have_text(kept)


def test_decoding_playground_follows_keys_mouse_and_typing(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    source = (
        "from cme295lab.widgets import DecodingPlayground\n"
        "playground = DecodingPlayground(letters, prompt='the cat', max_new_tokens=8)\nplayground"
    )
    notebook = open_notebook(write_notebook("decoding", [LETTERS, source, "playground.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".decoding-explorer .textpoint")
    twin = DecodingPlayground(fake_pretrained(), prompt="the cat", max_new_tokens=8)  # what the page must show
    check_chances(page, twin)
    temperature = page.locator(".decoding-temperature .noUi-handle")
    temperature.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    drag(page, page.locator(".decoding-top_p .noUi-handle"), -60)
    page.wait_for_timeout(300)
    top_p = float(page.locator(".decoding-top_p .widget-readout").inner_text())
    assert top_p < 0.9
    twin.controls["temperature"].value, twin.controls["top_p"].value = 0.6, top_p
    assert twin.sampling == Sampling(temperature=0.6, top_p=top_p)
    check_chances(page, twin)
    notebook.screenshot(SCREENSHOTS / "decoding_playground.png")

    bar = page.locator(".decoding-explorer .trace.bars").nth(0).locator(".point").nth(1)
    bar.click(force=True)  # an empty layer that follows the mouse lies above it
    twin.append(twin.scenario.chances[1].token)
    expect(page.locator(".decoding-prompt input")).to_have_value(twin.prompt.value)
    check_chances(page, twin)
    chosen = page.locator(".decoding-next select option:checked")
    expect(chosen).to_contain_text(twin.scenario.chances[0].text)
    page.locator(".decoding-prompt input").fill("a dog")
    page.keyboard.press("Enter")
    twin.prompt.value = "a dog"
    check_chances(page, twin)
    page.click("button.decoding-sample")
    twin.sample()
    twin.wait()
    for number, continuation in enumerate(twin.continuations):
        cell = page.locator(".decoding-drawn td").nth(number)
        expect(cell).to_have_text(continuation.text.strip(), timeout=20_000)
    notebook.screenshot(SCREENSHOTS / "decoding_playground_drawn.png")
    keys = ["ArrowRight", "ArrowLeft"] * (NUM_PRESSES // 2)
    shown = [".decoding-explorer .textpoint", ".decoding-entropy"]
    assert measure(page, "decoding_playground", temperature, shown, keys) < HANGING_MS
    assert notebook.error_outputs() == []


def test_beam_tree_follows_keys(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = "from cme295lab.widgets import BeamTree\ntree = BeamTree(letters, prompt='the cat', end='')\ntree"
    notebook = open_notebook(write_notebook("beams", [LETTERS, source, "tree.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".beam-explorer .textpoint")
    letters = fake_pretrained()
    prompt = letters.tokenizer.encode("the cat")
    options = {"decode": letters.tokenizer.decode, "max_new_tokens": 8, "end_token": letters.tokenizer.end_token}
    handle = page.locator(".beam-num_beams .noUi-handle")
    handle.focus()
    for num_beams in (3, 4):
        expected = beam_scenario(letters.model, prompt, num_beams=num_beams, **options)
        expect(page.locator(".beam-explorer .textpoint")).to_have_count(len(expected.points), timeout=10_000)
        score = page.locator(".beam-summary tr:nth-child(2) td").last
        expect(score).to_have_text(f"{expected.answers[0].score:.2f}")
        page.keyboard.press("ArrowRight")
    notebook.screenshot(SCREENSHOTS / "beam_tree.png")
    keys = ["ArrowLeft", "ArrowRight"] * (NUM_PRESSES // 2)
    shown = [".beam-explorer .textpoint", ".beam-summary table"]
    assert measure(page, "beam_tree", handle, shown, keys) < HANGING_MS
    assert notebook.error_outputs() == []


def test_routing_explorer_follows_keys_and_menus(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    source = (
        "from cme295lab.widgets import RoutingExplorer\nmodels, text = fake_mixtures()\n"
        "routing = RoutingExplorer(models, text)\nrouting"
    )
    notebook = open_notebook(write_notebook("routing", [LETTERS, source, "routing.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".routing-explorer .trace.bars")
    models, text = fake_mixtures()

    def check(coefficient: float, **options: Any) -> None:
        """Headline and number of crosses are those of the model."""
        found = routing_scenario(models[coefficient], text, **options)
        share = f"The most wanted expert gets {found.busiest_share:.0%} of the text"
        dropped = f"{found.num_dropped} of {found.num_assignments} assignments dropped"
        headline = page.locator(".routing-summary b")
        expect(headline).to_contain_text(share, timeout=10_000)
        expect(headline).to_contain_text(dropped)
        points = page.locator(".routing-explorer .scatterlayer .point")  # crosses, and a square for each token
        expect(points).to_have_count(found.num_dropped + len(text.tokens))

    check(0.0, experts_per_token=2, capacity_factor=1.25)
    notebook.screenshot(SCREENSHOTS / "routing_explorer.png")
    coefficient = page.locator(".routing-coefficient .noUi-handle")
    coefficient.focus()
    page.keyboard.press("ArrowRight")
    check(0.1, experts_per_token=2, capacity_factor=1.25)
    drag(page, page.locator(".routing-capacity_factor .noUi-handle"), 300)
    check(0.1, experts_per_token=2, capacity_factor=None)
    page.locator(".routing-experts_per_token select").select_option("all: dense")
    check(0.1, experts_per_token=5, capacity_factor=None)
    page.locator(".routing-experts_per_token select").select_option("2")
    check(0.1, experts_per_token=2, capacity_factor=None)
    keys = ["ArrowLeft", "ArrowRight"] * (NUM_PRESSES // 2)
    assert measure(page, "routing_explorer", coefficient, [".routing-summary b"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
