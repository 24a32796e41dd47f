"""The token-mask view: masks by hand, every template against plain splitting, rows against the conversations."""

from html import unescape

import pytest

from cme295lab.finetuning.chat import TEMPLATE_NAMES, Message, chat_template
from cme295lab.finetuning.instructions import PROBES
from cme295lab.transformer import load_pretrained
from cme295lab.widgets import TokenMaskView, packed_rows, token_mask
from cme295lab.widgets.token_mask_scenario import FILLINGS
from cme295lab.widgets.token_mask_view import headline, packed_headline

SHORT = [Message("user", "Hi"), Message("assistant", "Hello!")]
LONG = [Message("system", "Be kind."), *SHORT, Message("user", "And now?"), Message("assistant", "So be it.")]
CONVERSATIONS = {"short": SHORT, "long": LONG, "teddy": list(PROBES[0].messages)}


@pytest.fixture(scope="module")
def tokenizer():
    return load_pretrained("course-4m").tokenizer


@pytest.fixture
def view(tokenizer):
    return TokenMaskView(tokenizer, CONVERSATIONS)


def said(tokens):
    return "".join(token.text for token in tokens if token.carries_loss)


def test_chatml_by_hand(tokenizer):
    mask = token_mask(SHORT, tokenizer, "chatml")
    text = "".join(token.text for token in mask.tokens)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n"
    assert said(mask.tokens) == "Hello!<|im_end|>"
    by_role = {role: "".join(t.text for t in mask.tokens if t.role == role) for role in ("user", "assistant")}
    assert by_role == {"user": "Hi", "assistant": "Hello!"}
    assert mask.tokens[-2].role == "template"  # the end of turn is nobody's word, and is learned
    assert mask.tokens[-2].carries_loss


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
@pytest.mark.parametrize("number", range(len(PROBES)))
def test_what_carries_loss_is_what_the_assistant_says(tokenizer, name, number):
    messages = PROBES[number].messages
    mask = token_mask(messages, tokenizer, name)
    template = chat_template(name)
    assert "".join(token.text for token in mask.tokens) == template.render(messages)
    answers = [message.content for message in messages if message.role == "assistant"]
    gap = " " if name == "llama-2" else ""
    assert said(mask.tokens) == "".join(f"{gap}{answer}{gap}{template.end_of_turn}" for answer in answers)
    assert [token.position for token in mask.tokens] == list(range(len(mask.tokens)))
    for role in ("user", "assistant"):
        spoken = "".join(token.text for token in mask.tokens if token.role == role)
        assert spoken.strip().replace(" ", "").startswith(next(
            m.content for m in messages if m.role == role).replace(" ", "")[:20])  # fmt: skip


def test_first_turns_are_dropped_and_the_scene_stays(tokenizer):
    whole = token_mask(LONG, tokenizer)
    with pytest.raises(ValueError, match="an answer is never cut"):
        token_mask(LONG, tokenizer, max_length=len(whole.tokens) - 1)
    mask = token_mask(LONG, tokenizer, max_length=len(whole.tokens) - 1, on_too_long="drop-first-turns")
    assert mask.num_dropped_messages == 2
    assert "".join(t.text for t in mask.tokens if t.role == "system") == "Be kind."
    assert "".join(t.text for t in mask.tokens if t.role == "user") == "And now?"
    assert said(mask.tokens) == "So be it.<|im_end|>"


@pytest.mark.parametrize("filling", FILLINGS)
def test_rows_hold_each_conversation_once(tokenizer, filling):
    seq, conversations = 130, list(CONVERSATIONS.values())
    packed = packed_rows(conversations, tokenizer, seq=seq, filling=filling)
    alone = sorted((t.text, t.role, t.carries_loss, t.position) for c in conversations
                   for t in token_mask(c, tokenizer).tokens)  # fmt: skip
    inside = sorted((t.text, t.role, t.carries_loss, t.position) for row in packed.rows for t in row if t.document)
    assert inside == alone
    assert {len(row) for row in packed.rows} == {seq}
    assert len(packed.rows) == (3 if filling == "one-per-row" else 2)
    assert packed.utilisation == pytest.approx(len(alone) / (seq * len(packed.rows)))
    assert sum(map(sum, map(packed.documents, range(len(packed.rows))))) == len(alone)
    for row in packed.rows:
        begins = [t.document for t in row if t.document and not t.position]
        assert begins == list(range(1, len(begins) + 1))


def test_what_is_too_long_for_a_row_is_listed(tokenizer):
    packed = packed_rows(list(CONVERSATIONS.values()), tokenizer, seq=48)
    assert list(packed.left_out) == [2]
    assert packed.num_conversations == 2
    with pytest.raises(ValueError, match="no conversation fits a row"):
        packed_rows(list(CONVERSATIONS.values()), tokenizer, seq=8)


@pytest.mark.parametrize(("change", "words"), [
    ({"template": "vicuna"}, "template must be one of chatml"),
    ({"on_too_long": "cut"}, "on_too_long must be one of refuse"),
    ({"max_length": 1}, "max_length must be at least 2"),
    ({"messages": SHORT[:1]}, "no message is of the assistant"),
    ({"messages": [SHORT[0], Message("assistant", "x" * 20_001)]}, "20,003: shorten it"),
])  # fmt: skip
def test_bad_input_is_refused(tokenizer, change, words):
    with pytest.raises(ValueError, match=words):
        token_mask(**{"messages": SHORT, "tokenizer": tokenizer} | change)
    with pytest.raises(ValueError, match="filling must be one of"):
        packed_rows([SHORT], tokenizer, filling="worst-fit")


def test_view_follows_its_controls(view, tokenizer):
    text = view._text
    assert headline(view.scenario) in unescape(text.value)
    assert text.value.count(" loss\"") == view.scenario.num_targets  # bold and underlined by this class
    view.controls["template"].value = "llama-3"
    assert "&lt;|eot_id|&gt;" in text.value
    view.controls["answer"].value = "Bye <b>now</b>."
    assert said(view.scenario.tokens) == "Bye <b>now</b>.<|eot_id|>"
    assert "<b>now" not in text.value
    view.controls["conversation"].value = "long"
    assert view.controls["answer"].value == "So be it."
    view.controls["view"].value = "packed rows"
    view.controls["limit"].value = 192
    assert packed_headline(view.packed) in unescape(text.value)
    assert text.value.count("<polygon") == 3
    padding = sum(not token.document for row in view.packed.rows for token in row)
    assert sum(int(part.rsplit(">", 1)[1]) for part in text.value.split(" × padding")[:-1]) == padding > 0
    assert view.figure().png()[:4] == b"\x89PNG"
    assert headline(view.scenario) in repr(view)


def test_bad_input_is_shown_in_the_view(view):
    for control, value, words in (
        ("answer", "  ", "an assistant's message is empty"),
        ("answer", "Fine<|im_end|>", "would be read as the special token"),
        ("limit", 24, "max_length is 24"),
    ):
        view.controls["conversation"].value = "teddy"
        before = view.controls[control].value
        view.controls[control].value = value
        assert 'role="alert"' in view._text.value
        assert words in unescape(view._text.value)
        assert words in repr(view)
        view.controls[control].value = before
        assert 'role="alert"' not in view._text.value


def test_view_refuses_what_it_cannot_show(tokenizer):
    with pytest.raises(ValueError, match="must have at least one"):
        TokenMaskView(tokenizer, {})
    with pytest.raises(ValueError, match="must end with an answer"):
        TokenMaskView(tokenizer, {"open": SHORT[:1]})
    with pytest.raises(ValueError, match="template must be one of"):
        TokenMaskView(tokenizer, {"short": SHORT}, template="vicuna")
