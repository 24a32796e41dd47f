"""The widgets of notebook 08 in JupyterLab, in a real browser: bits are clicked, numbers typed and sliders dragged."""

from collections.abc import Callable

import pytest

from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import HANGING_MS, SCREENSHOTS, drag, measure

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
TEXT_SHOWS = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
BITS = "() => [...document.querySelectorAll('.be-bit')].map(bit => bit.textContent).join('')"
CHANGED = "([where, before]) => document.querySelector(where).innerText !== before"
LEVELS = "() => document.querySelectorAll('.quantizer-explorer .subplot.x3y3 .point').length"
WAIT_MS = 10_000
SOURCE = "from cme295lab.widgets import BitExplorer\nbits = BitExplorer(0.1)\nbits"


def test_bits_follow_mouse_keys_and_what_is_typed(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    notebook = open_notebook(write_notebook("bits", [SOURCE]))
    notebook.run_all()
    assert notebook.error_outputs() == []
    page = notebook.page
    page.wait_for_selector(".be-bit")
    assert page.evaluate(BITS) == "0010111001100110"
    page.locator(".be-bit").nth(0).click()
    page.wait_for_function(TEXT_SHOWS, arg=[".be-result", "−0.0999755859375"], timeout=WAIT_MS)
    page.wait_for_function(TEXT_SHOWS, arg=["tr[data-format='bf16']", "−0.10009765625"], timeout=WAIT_MS)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.wait_for_function(f"({BITS})() === '1110111001100110'", timeout=WAIT_MS)
    page.wait_for_function(TEXT_SHOWS, arg=[".be-result", "−6552"], timeout=WAIT_MS)
    page.locator(".be-number input").fill("1 + 2^-11")
    page.keyboard.press("Enter")
    page.wait_for_function(TEXT_SHOWS, arg=[".be-result", "= 1 "], timeout=WAIT_MS)
    page.locator(".be-number input").fill("two")
    page.keyboard.press("Enter")
    page.wait_for_function(TEXT_SHOWS, arg=[".be-message", "cannot read 'two'"], timeout=WAIT_MS)
    page.locator(".be-format select").select_option("fp64")
    page.wait_for_function("document.querySelectorAll('.be-bit').length === 64", timeout=WAIT_MS)
    notebook.screenshot(SCREENSHOTS / "bits_fp64.png")
    page.get_by_role("button", name="show the bits of fp8_e4m3fn").click()
    page.get_by_role("button", name="write max", exact=True).click()
    page.wait_for_function(TEXT_SHOWS, arg=[".be-result", "448"], timeout=WAIT_MS)
    assert page.get_by_role("button", name="the next larger number of this format").is_disabled()
    notebook.screenshot(SCREENSHOTS / "bits.png")
    assert notebook.error_outputs() == []


def test_notebook_08_answers_a_click_and_two_slides(open_notebook: OpenNotebook) -> None:
    notebook = open_notebook("notebooks/08_float_formats_quantization.ipynb")
    notebook.run_all(400)
    assert notebook.error_outputs() == []
    page = notebook.page
    page.locator(".be-bit").nth(3).click()
    page.wait_for_function(f"({BITS})() !== '0010111001100110'", timeout=WAIT_MS)
    page.wait_for_function(TEXT_SHOWS, arg=[".be-result", "= 1.599609375"], timeout=WAIT_MS)
    assert measure(page, "bit_explorer", page.locator(".be-bit").nth(0), [".be-result"], ["Space"] * 4) < HANGING_MS

    before = page.locator(".line-summary").inner_text()
    number = page.locator(".line-number .noUi-handle")
    number.scroll_into_view_if_needed()
    drag(page, number, 60)
    page.wait_for_function(CHANGED, arg=[".line-summary", before], timeout=WAIT_MS)
    levels = page.evaluate(LEVELS)
    before = page.locator(".quantizer-summary").inner_text()
    assert "one scale: 4.000 bits" in before
    bits = page.locator(".quantizer-bits .noUi-handle")
    bits.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(TEXT_SHOWS, arg=[".quantizer-summary", "absmax, 5 bits"], timeout=WAIT_MS)
    page.wait_for_function(f"n => ({LEVELS})() > n", arg=levels, timeout=WAIT_MS)
    notebook.screenshot(SCREENSHOTS / "lab_08.png")
    page.locator(".quantizer-scheme select").select_option("nf4")
    page.wait_for_function(TEXT_SHOWS, arg=[".quantizer-summary", "nf4, blocks of 64: 4.500"], timeout=WAIT_MS)
    page.locator(".quantizer-weights select").select_option("course-4m, layer 3 down")
    page.wait_for_function(f"n => ({LEVELS})() === n", arg=32, timeout=WAIT_MS)
    keys = ["ArrowLeft", "ArrowRight"] * 3
    outlier = page.locator(".quantizer-outlier .noUi-handle")
    assert measure(page, "quantizer_explorer", outlier, [".quantizer-summary b"], keys) < HANGING_MS
    assert notebook.error_outputs() == []
