"""The token-mask view of notebook 10 in JupyterLab, in a real browser: tokens follow menus, keys and typing."""

from collections.abc import Callable

import pytest

from cme295lab.finetuning.instructions import PROBES
from cme295lab.transformer import load_pretrained
from cme295lab.widgets import packed_rows, token_mask
from cme295lab.widgets.token_mask_view import headline, packed_headline
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import SCREENSHOTS

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
TEXT_SHOWS = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
SOURCE = """from cme295lab.finetuning.instructions import PROBES
from cme295lab.transformer import load_pretrained
from cme295lab.widgets import TokenMaskView
names = ("bear", "story", "poem")
view = TokenMaskView(load_pretrained("course-4m").tokenizer, {n: p.messages for n, p in zip(names, PROBES)})
view"""


def test_token_mask_follows_menus_keys_and_typing(open_notebook: OpenNotebook, write_notebook: WriteNotebook) -> None:
    tokenizer = load_pretrained("course-4m").tokenizer
    bear, story, poem = (list(probe.messages) for probe in PROBES[:3])
    notebook = open_notebook(write_notebook("masks", [SOURCE, "view.figure()"]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".tokenmask-tokens .loss")

    def shows(text: str) -> None:
        page.wait_for_function(TEXT_SHOWS, arg=[".tokenmask-summary", text], timeout=10_000)

    mask = token_mask(bear, tokenizer)
    shows(headline(mask))
    learned = page.locator(".tokenmask-tokens .loss")
    assert learned.count() == mask.num_targets
    style = "node => [getComputedStyle(node).fontWeight, getComputedStyle(node).textDecorationLine]"
    assert learned.first.evaluate(style) == ["700", "underline"]  # not colour alone
    assert page.locator(".tokenmask-tokens .t:not(.loss)").first.evaluate(style) == ["400", "none"]

    page.locator(".tokenmask-template select").select_option("llama-3")
    shows(headline(token_mask(bear, tokenizer, "llama-3")))
    notebook.screenshot(SCREENSHOTS / "token_mask.png")
    answer = page.locator(".tokenmask-answer textarea")
    answer.fill("Wash it by hand <b>today</b>.")
    answer.press("Tab")
    page.wait_for_function(TEXT_SHOWS, arg=[".tokenmask-tokens", "<b>"], timeout=10_000)
    answer.fill(" ")
    answer.press("Tab")
    page.wait_for_selector('.tokenmask-summary[role="alert"]')
    shows("an assistant's message is empty")

    page.locator(".tokenmask-conversation select").select_option("poem")
    shows(headline(token_mask(poem, tokenizer, "llama-3")))
    limit = page.locator(".tokenmask-limit .noUi-handle")
    limit.focus()
    for _ in range(3):
        page.keyboard.press("ArrowLeft")  # none, 512, 256, 192
    page.locator(".tokenmask-view select").select_option("packed rows")
    shows(packed_headline(packed_rows([bear, story, poem], tokenizer, "llama-3", seq=192)))
    assert page.locator(".tokenmask-tokens svg polygon").count() == 3
    notebook.screenshot(SCREENSHOTS / "token_mask_packed.png")
    assert notebook.error_outputs() == []
