"""Examples, their files, and what is measured of them."""

import json

import pytest

from cme295lab.finetuning.chat import Message, read_conversations
from cme295lab.finetuning.instructions import (
    PROBES,
    Example,
    conversation,
    leakage,
    normalised,
    read_jsonl,
    token_lengths,
    variety,
    write_jsonl,
)
from cme295lab.finetuning.instructions.measures import as_table


def example(question, answer, *more, kind="story", family="", system=""):
    return Example(messages=conversation(question, answer, *more, system=system), kind=kind, family=family)


def test_an_example_by_hand():
    one = example("Hi?", "Hello!", "And you?", "Fine.", system="Be kind.", kind="poem")
    assert (one.prompt, one.answer, one.num_turns) == ("Hi?", "Fine.", 2)
    assert one.text == "Hi?\nHello!\nAnd you?\nFine."
    assert one.family == "poem#hi hello and you fine"
    assert one.messages[0] == Message("system", "Be kind.")
    document = one.as_document("here")
    assert (document.text, document.domain, document.source, document.family) == (one.text, "poem", "here", one.family)


def test_normalised_text_keeps_signs_and_drops_the_rest():
    assert normalised("  What is 7 - 2?\n") == "what is 7 - 2"
    assert normalised("7+2") != normalised("7-2")
    assert normalised("It's «good», Ünal_1.") == "it s good ünal_1"


def test_examples_that_are_none_are_refused():
    with pytest.raises(ValueError, match="last message must be the assistant's"):
        Example(messages=(Message("user", "Hi"),), kind="story")
    with pytest.raises(ValueError, match="kind is empty"):
        example("Hi", "Hello", kind="")
    with pytest.raises(TypeError, match="kind must be a string"):
        example("Hi", "Hello", kind=3)
    with pytest.raises(ValueError, match="message is empty"):
        example("Hi", " ")
    with pytest.raises(ValueError, match="as many of each, got 3 texts"):
        conversation("a", "b", "c")
    with pytest.raises(ValueError, match="as many of each, got 0 texts"):
        conversation()


def test_files_give_back_what_was_written(tmp_path):
    odd = example('Quote "this"\nand \u2028 that, \x85 too', "Grüße 🧸", system="S", kind="code", family="f#1")
    examples = [*PROBES, odd]
    path = write_jsonl(tmp_path / "data.jsonl", examples)
    assert read_jsonl(path) == examples
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(examples) + 1
    first = json.loads(lines[0])
    assert first["messages"][0] == {"role": "user", "content": "Can I put my teddy bear in the washing machine?"}
    assert [m["role"] for m in json.loads(lines[-2])["messages"]] == ["system", "user", "assistant"]


def test_files_are_read_by_the_reader_of_chats(tmp_path):
    """It passes over kind and family, and gives the same messages."""
    path = write_jsonl(tmp_path / "data.jsonl", PROBES)
    found = read_conversations(path)
    assert found.layout == "messages"
    assert [tuple(messages) for messages in found.conversations] == [probe.messages for probe in PROBES]


def test_files_without_family_and_with_empty_lines_are_read(tmp_path):
    path = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path.write_text("\n" + json.dumps({"messages": messages, "kind": "poem"}) + "\n\n")
    assert read_jsonl(path) == [example("Hi", "Hello", kind="poem")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2, column 2: not JSON"),
        ("[1]", "line 2: must be a JSON object, got list"),
        ("{}", "line 2: no field messages and no kind"),
        ('{"messages": [], "kind": "poem"}', "line 2: messages is empty"),
        ('{"messages": [{"role": "user", "content": "a"}], "kind": "poem"}', "line 2: the last message must be"),
        ('{"messages": [{"role": "cat", "content": "a"}], "kind": "poem"}', "line 2: message 0: role must be one of"),
    ],
    ids=["no-json", "a-list", "no-fields", "no-message", "no-answer", "unknown-role"],
)
def test_broken_lines_are_named(tmp_path, line, message):
    path = write_jsonl(tmp_path / "data.jsonl", PROBES[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_jsonl(path)


def test_files_that_are_empty_or_missing_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="there is no example to write"):
        write_jsonl(tmp_path / "data.jsonl", [])
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_jsonl(tmp_path / "empty.jsonl")


def test_variety_by_hand():
    """Runs of three words: "a b c" and "b c d" in both, "c d e" in one and "c d f" in the other; 2 of 4 are rare."""
    examples = [example("a b", "c d e"), example("A, b!", "c d f"), example("x", "y", "z", "w", kind="poem")]
    rows = variety(examples)
    story = rows["story"]
    assert (story.num_examples, story.num_questions, story.num_answers, story.num_several_turns) == (2, 1, 2, 0)
    assert (story.num_words, story.rare_runs) == (6, 0.5)
    assert list(rows) == ["poem", "story", "all"]
    assert (rows["all"].num_examples, rows["all"].num_several_turns, rows["poem"].num_words) == (3, 1, 4)
    assert len(as_table(rows).splitlines()) == 4


def test_lengths_by_hand():
    """One token a character: lengths 4, 5 ... 13, with a line feed between question and answer."""
    examples = [example("a", "b" * (number + 2)) for number in range(10)]
    row = token_lengths(examples, list, limit=11)["all"]
    assert (row.median, row.ninety_percent, row.longest, row.share_above) == (8, 12, 13, 0.2)
    assert "20.0%" in as_table({"all": row})
    with pytest.raises(ValueError, match="limit must be positive"):
        token_lengths(examples, list, limit=0)
    with pytest.raises(ValueError, match="nothing to measure"):
        variety([])


def test_leaks_are_found_by_hand():
    train = [
        example("What is one and one, please?", "It is two, and two it will be for ever and a day.", family="sum 1 1"),
        example("Where is it?", "Here."),
    ]
    evaluation = [
        example("what is one, and one please", "No idea.", family="new"),
        example("Where is it?", "HERE!", family="other"),
        example("How much is that?", "Three.", family="sum 1 1"),
        example("What is one and one please?", "It is two and two it will be for ever and a night.", family="third"),
        example("A very different question", "with a very different answer", family="fourth"),
    ]
    found = leakage(train, evaluation, ngram=3)
    assert (found.num_same_family, found.num_same_question, found.num_same_text) == (1, 3, 1)
    assert found.num_near_copies == 2  # the second, and the fourth with 13 of 15 runs of five words
    assert not found.is_clean
    assert "of 5 items 1 share a family" in str(found)
    twice = [evaluation[-1], example("A very different question", "with a very different answer.", family="fifth")]
    assert leakage(train, twice, ngram=3).is_clean  # what is alike within the evaluation is no leak
