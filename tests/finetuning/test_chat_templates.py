import pytest
from transformers import PreTrainedTokenizerFast

from cme295lab.finetuning.chat import TEMPLATE_NAMES, Message, as_messages, chat_template
from cme295lab.finetuning.chat.jinja_template import JinjaTemplate
from tests.finetuning.templates import (
    ALPACA_PREAMBLE,
    CHATML,
    CHATML_MARKED,
    CONVERSATIONS,
    LLAMA_2,
    LLAMA_3,
    LONG,
    OTHERS,
    PUBLISHED,
    SHORT,
    TOKENS,
    published,
    tokenizer,
)

NAMES = list(PUBLISHED)


def expected(name: str, messages: list[dict], source: str | None = None, **options: object) -> str:
    """What `transformers` renders."""
    oracle = PreTrainedTokenizerFast(tokenizer_object=tokenizer().tokenizer, **TOKENS[name])
    oracle.chat_template = source or PUBLISHED[name]
    return oracle.apply_chat_template(messages, tokenize=False, **options)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_our_templates_write_what_transformers_writes(name, conversation, add_generation_prompt):
    messages = CONVERSATIONS[conversation]
    text = published(name).render(messages, add_generation_prompt=add_generation_prompt)
    assert text == expected(name, messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_jinja_template_writes_what_transformers_writes(name, conversation, add_generation_prompt):
    messages = CONVERSATIONS[conversation]
    text = chat_template(PUBLISHED[name], **TOKENS[name]).render(messages, add_generation_prompt)
    assert text == expected(name, messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_marks_leave_the_text_as_it_is(conversation):
    messages = CONVERSATIONS[conversation]
    assert chat_template(CHATML_MARKED).render(messages) == expected("chatml", messages, CHATML_MARKED)
    assert chat_template(CHATML_MARKED).render(messages) == published("chatml").render(messages)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", OTHERS)
def test_templates_of_other_models_need_no_marks(name, conversation):
    messages = CONVERSATIONS[conversation]
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    template = chat_template(OTHERS[name], **tokens)
    for add_generation_prompt in (False, True):
        oracle = PreTrainedTokenizerFast(tokenizer_object=tokenizer().tokenizer, **tokens)
        oracle.chat_template = OTHERS[name]
        text = oracle.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
        assert template.render(messages, add_generation_prompt) == text
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    spoken = [piece.text for piece in template.segments(messages) if piece.is_assistant]
    end = {"smollm2": "<|im_end|>", "gemma": "<end_of_turn>", "zephyr": "</s>"}[name]
    assert spoken == [answer + end for answer in answers]


SPACED = """
{% for message in messages %}
    {% if tools is not none or documents is not none %}{% break %}{% endif %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {{ message | tojson }}<end>
{% endfor %}
{% if add_generation_prompt %}
  next
{% endif %}
"""


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_white_space_loops_and_json_are_as_in_transformers(conversation):
    messages = [message | {"content": message["content"] + " <b>é"} for message in CONVERSATIONS[conversation]]
    template = chat_template(CHATML)
    template._template = JinjaTemplate(CHATML)._template.environment.from_string(SPACED)  # its end of turn is no matter
    for add_generation_prompt in (False, True):
        text = template.render(messages, add_generation_prompt)
        assert text == expected("chatml", messages, SPACED, add_generation_prompt=add_generation_prompt)
        assert "<b>é" in text


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_segments_are_the_text_and_jinja_finds_the_same_answers(name, conversation):
    messages = CONVERSATIONS[conversation]
    ours, jinja = published(name), chat_template(PUBLISHED[name], **TOKENS[name])
    assert jinja.end_of_turn == ours.end_of_turn
    assert not jinja.has_marks
    for template in (ours, jinja):
        assert "".join(piece.text for piece in template.segments(messages)) == ours.render(messages)
    spoken, found = (
        [piece.text for piece in template.segments(messages) if piece.is_assistant] for template in (ours, jinja)
    )
    assert found == spoken
    assert len(spoken) == sum(message["role"] == "assistant" for message in messages)


def test_published_formats_by_hand():
    assert published("chatml").segments(SHORT) == [
        ("<|im_start|>user\n", False), ("Hi<|im_end|>", False), ("\n", False),
        ("<|im_start|>assistant\n", False), ("Hello<|im_end|>", True), ("\n", False),
    ]  # fmt: skip
    assert published("llama-3").render(SHORT[:1], True) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    with_scene = [Message("system", "Be brief."), *SHORT, Message("user", "Why?")]
    assert published("llama-2").render(with_scene) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Why? [/INST]"
    )
    assert [piece.text for piece in published("llama-2").segments(with_scene) if piece.is_assistant] == [" Hello </s>"]
    alpaca = published("alpaca").render(SHORT[:1], True)
    assert alpaca == f"<s>{ALPACA_PREAMBLE}\n\n### Instruction:\nHi\n\n### Response:\n"


def test_marks_say_what_is_the_assistants():
    template = chat_template(CHATML_MARKED)
    assert template.has_marks
    assert template.end_of_turn == "<|im_end|>"
    spoken = [piece.text for piece in template.segments(LONG) if piece.is_assistant]
    assert spoken == ["Yes, by hand: 30 °C.<|im_end|>", "In the shade 🙂. Größe: same.<|im_end|>"]


def test_an_answer_that_repeats_the_question_is_found_in_its_place():
    """A search for the answer's text would find the question."""
    messages = [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "ping"}] * 2
    for template in (published("chatml"), chat_template(CHATML), chat_template(CHATML_MARKED)):
        starts = [i for i, piece in enumerate(template.segments(messages)) if piece.is_assistant]
        before = "".join(piece.text for piece in template.segments(messages)[: starts[0]])
        assert before == "<|im_start|>user\nping<|im_end|>\n<|im_start|>assistant\n"


NO_END = CHATML.replace(" + '<|im_end|>'", "")
END_BETWEEN = "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% if not loop.last %}<end>{% endif %}" \
    "{% endfor %}{% if add_generation_prompt %}<end><assistant>{% endif %}"  # fmt: skip
NO_PROMPT = CHATML.partition("{% if add")[0]
FORGETS = "{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ '<' + m.role + '>' + m.content }}<end>" \
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip
THINKS = CHATML.replace("<|im_start|>assistant\n' }}{% endif %}", "<|im_start|>assistant\n<think>\n' }}{% endif %}")
UPPER = CHATML.replace("message['content']", "message['content'] | upper")


def test_an_end_of_turn_that_depends_on_the_answer_is_refused():
    template = chat_template(CHATML.replace("'<|im_end|>'", "('<a>' if message['content'] | length < 9 else '<b>')"))
    assert template.end_of_turn == "<a>"
    assert len(template.segments(SHORT)) == 3
    with pytest.raises(ValueError, match="ends the answer 'Hello, hello' with '<b>', and others with '<a>'"):
        template.segments([SHORT[0], {"role": "assistant", "content": "Hello, hello"}])


def test_text_with_our_own_marks_is_refused():
    forged = [{"role": "user", "content": "\ue000<\ue001"}, SHORT[1]]
    with pytest.raises(ValueError, match="message 0 contains the private characters"):
        chat_template(CHATML_MARKED).segments(forged)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CHATML.replace("'<|im_end|>'", "'<end ' + loop.index | string + '>'"), "needs the same end of turn, the"),
        (NO_END, "no end of turn after the answer 'Pong.'"),
        (END_BETWEEN, "no end of turn after the answer 'Pong.'"),
        (NO_PROMPT, "cannot be told what the assistant writes: .*'<.im_start.>assistant.*where the answer is 'Pong.'"),
        (FORGETS, "cannot be told what the assistant writes: .*<user>Ping.<end><assistant>', which the whole"),
        (THINKS, "cannot be told what the assistant writes: after 1 messages and the generation prompt"),
        (UPPER, "has 'PONG.<.im_end.>.*where the answer is 'Pong.'"),
        (CHATML_MARKED.replace(" + '<|im_end|>' }}", " }}"), "no end of turn after the answer .* inside of them"),
        (CHATML_MARKED.replace("message.role == 'assistant'", "message.content == 'Pong.'"), "marks 1 answers of 2"),
        (CHATML_MARKED.replace("{{- message.content", "{{- message.content | upper"), "changes the answer 'Pong.'"),
        (LLAMA_3, "writes bos_token: give it"),
        (LLAMA_2, "writes bos_token: give it"),
        ("{% for message in messages %}", "line 1 is not Jinja that can be read"),
        ("{{ raise_exception('no') }}", "the template refuses this conversation: no"),
        ("{{ messages[0].content / 2 }}", "the template fails: TypeError"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "refuses this conversation: access to attribute"),
        ("{{ messages.append(messages[0]) }}", "refuses this conversation: access to attribute 'append'"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "the template fails: OverflowError"),
    ],
    ids=["two ends", "no end", "end between turns", "no prompt", "forgets", "thinks", "changes the answer",
         "end outside the marks", "marks one", "changes the marked answer", "bos",
         "bos and eos", "syntax", "raises", "crashes", "escapes", "writes", "long loop"],
)  # fmt: skip
def test_templates_that_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        chat_template(source)


def test_names_and_tokens_that_are_refused():
    assert TEMPLATE_NAMES == ("chatml", "llama-3", "llama-2", "alpaca")
    with pytest.raises(ValueError, match="one of chatml, llama-3, llama-2, alpaca, or Jinja text; got 'vicuna'"):
        chat_template("vicuna")
    with pytest.raises(ValueError, match="the template 'chatml' writes no eos_token"):
        chat_template("chatml", eos_token="</s>")
    for name in ("llama-2", "alpaca"):
        with pytest.raises(ValueError, match=f"{name} without an end of turn"):
            chat_template(name, eos_token=" ")
    with pytest.raises(TypeError, match="bos_token must be a string, got int"):
        chat_template("alpaca", bos_token=1)
    with pytest.raises(TypeError, match="template must be a string, got NoneType"):
        chat_template(None)


@pytest.mark.parametrize("name", ["llama-2", "alpaca"])
def test_turns_are_needed_where_nothing_else_says_who_speaks(name):
    with pytest.raises(ValueError, match="turn 1 is of the user"):
        published(name).render([SHORT[0], SHORT[0]])
    with pytest.raises(ValueError, match="turn 0 is of the assistant"):
        published(name).render(SHORT[1:])
    with pytest.raises(ValueError, match="needs a message of the user"):
        published(name).render([{"role": "system", "content": "Be brief."}])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ([{"role": "tool", "content": "x"}], "message 0: role must be one of system, user, assistant, got 'tool'"),
        ([{"role": ["user"], "content": "x"}], "message 0: role must be one of"),
        ([SHORT[0], {"role": "assistant", "content": " \n"}], "message 1: an assistant's message is empty"),
        ([{"role": "user"}], "message 0 has no content; it has role"),
        ([{"role": None, "content": "x"}], "message 0 has no role"),
        ([{"from": "human", "value": "x"}], "message 0 has no content and no role; it has from, value"),
        ([SHORT[0] | {"tool_calls": [1]}], "message 0 has tool_calls besides role and content"),
        ([SHORT[0], {"role": "system", "content": "x"}], "message 1 is a system message"),
        ([{"role": "user", "content": "\ud800"}], "message 0: content of a message has half a character"),
    ],
    ids=["none", "tool", "list", "empty answer", "no content", "null role", "sharegpt", "tool calls", "late system",
         "surrogate"],
)  # fmt: skip
def test_messages_that_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        as_messages(messages)


def test_messages_of_other_types_are_refused():
    for messages in ("Hi", SHORT[0], Message("user", "Hi")):
        with pytest.raises(TypeError, match="messages must be a list of messages, got one"):
            as_messages(messages)
    with pytest.raises(TypeError, match="message 1 must be a Message or a dict, got str"):
        as_messages([SHORT[0], "Hi"])
    with pytest.raises(TypeError, match="message 0: content of a message must be a string, got int"):
        as_messages([{"role": "user", "content": 3}])
    assert as_messages([SHORT[0] | {"tool_calls": None}]) == [Message("user", "Hi")]
