"""The widgets of notebook 12 in JupyterLab, in a real browser: the rank slider, and the switches of adapters."""

from collections.abc import Callable

import pytest

from cme295lab.widgets import rank_scenario
from cme295lab.widgets.rank_explorer import headline
from tests.browser.lab import LabNotebook
from tests.browser.test_widgets import SCREENSHOTS

pytestmark = pytest.mark.browser

OpenNotebook = Callable[[str], LabNotebook]
WriteNotebook = Callable[[str, list[str]], str]
TEXT_SHOWS = "([where, text]) => document.querySelector(where)?.innerText.includes(text)"
LABEL_SHOWS = "([where, text]) => document.querySelector(where).textContent.includes(text)"
TEXT_GONE = "([where, text]) => !document.querySelector(where).innerText.includes(text)"
RANKS = """from cme295lab.widgets import AdapterSwitchboard, RankExplorer
RankExplorer(rank=8, targets="mlp")"""
ADAPTERS = """from cme295lab.finetuning import lora
from cme295lab.finetuning.chat import chat_template
from cme295lab.transformer.pretrained import load_pretrained
pretrained = load_pretrained("course-4m")
for name in ("spam", "sentiment"):
    summary = lora.add_lora(pretrained.model, rank=2, adapter=name)
template = chat_template("alpaca", bos_token="", eos_token="<|end|>")
AdapterSwitchboard(pretrained.model, pretrained.tokenizer, template)"""


def test_rank_explorer_and_switchboard_follow_keys_and_mouse(
    open_notebook: OpenNotebook, write_notebook: WriteNotebook
) -> None:
    notebook = open_notebook(write_notebook("adapters", [RANKS, ADAPTERS]))
    notebook.run_all()
    page = notebook.page
    page.wait_for_selector(".rank-explorer .bars .point", state="attached")  # the first of them is 0 GB wide

    def shows(where: str, text: str, script: str = TEXT_SHOWS) -> None:
        page.wait_for_function(script, arg=[where, text], timeout=10_000)

    shows(".rank-summary", headline(rank_scenario("llama-3-8b", rank=8, targets="mlp")))
    page.locator(".rank-rank .noUi-handle").focus()
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    shows(".rank-summary", headline(rank_scenario("llama-3-8b", rank=256, targets="mlp")))
    page.locator(".rank-targets select").select_option("all-linear + head")
    shows(".rank-summary", "704,970,752 trainable")
    shows(".rank-explorer .yaxislayer-above", "LoRA", LABEL_SHOWS)
    notebook.screenshot(SCREENSHOTS / "rank_explorer.png")
    page.locator(".rank-model select").select_option("course-4m")
    shows(".rank-summary", headline(rank_scenario("course-4m", rank=128, targets="all-linear + head")))

    page.wait_for_selector(".switchboard-explorer .bars .point", state="attached")
    shows(".switchboard-summary", "weighted-sum: ")
    page.locator("button.switchboard-weighted-sum").click()
    shows(".switchboard-summary", "weighted-sum: ", TEXT_GONE)
    page.locator("button.switchboard-none").click()
    shows(".switchboard-summary", "none: ", TEXT_GONE)
    field = page.locator(".switchboard-text input")
    field.fill("   ")
    field.press("Enter")
    shows(".switchboard-summary", "text is empty")
    field.fill("The soup was good.")
    field.press("Enter")
    shows(".switchboard-summary", "sentiment: ")
    notebook.screenshot(SCREENSHOTS / "adapter_switchboard.png")
    assert notebook.error_outputs() == []
