import gzip
import json
import re

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from cme295lab.finetuning.chat import Message, chat_template, encode_chats, read_conversations
from tests.finetuning.templates import ALPACA_PREAMBLE, tokenizer

ROWS = {
    "messages": [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "id": 7},
        {"messages": [{"role": "system", "content": "Größe 🙂"}, {"role": "user", "content": " a "},
                      {"role": "assistant", "content": "b\n"}, {"role": "user", "content": "c"},
                      {"role": "assistant", "content": "d"}], "id": 8},
    ],
    "instruction": [
        {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
        {"instruction": "Sing.", "input": "", "output": "La.", "system": "Be loud."},
        {"instruction": "Dance.", "input": " \n", "output": "No.", "system": " "},
        {"instruction": "Rest.", "output": "Yes."},
    ],
    "prompt-completion": [{"prompt": "Hi", "completion": " Hello", "id": 1}, {"prompt": "2+2", "completion": "4"}],
}  # fmt: skip
EXPECTED = {
    "messages": [[("user", "Hi"), ("assistant", "Hello")],
                 [("system", "Größe 🙂"), ("user", " a "), ("assistant", "b\n"), ("user", "c"), ("assistant", "d")]],
    "instruction": [[("user", "Translate.\n\nHallo"), ("assistant", "Hello")],
                    [("system", "Be loud."), ("user", "Sing."), ("assistant", "La.")],
                    [("user", "Dance."), ("assistant", "No.")], [("user", "Rest."), ("assistant", "Yes.")]],
    "prompt-completion": [[("user", "Hi"), ("assistant", " Hello")], [("user", "2+2"), ("assistant", "4")]],
}  # fmt: skip


def write(path, rows) -> None:
    if path.suffix == ".parquet":
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        parquet.write_table(arrow.table(columns), path, row_group_size=2)
        return
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


def as_tuples(conversations):
    return [[(message.role, message.content) for message in messages] for messages in conversations]


@pytest.mark.parametrize("layout", ["auto", "named"])
@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz", "own.parquet"])
@pytest.mark.parametrize("kind", list(ROWS))
def test_all_layouts_come_back(tmp_path, kind, name, layout):
    write(tmp_path / name, ROWS[kind])
    found = read_conversations(tmp_path / name, kind if layout == "named" else "auto")
    assert as_tuples(found.conversations) == EXPECTED[kind]
    assert found.layout == kind
    assert found.problems == []
    first = 0 if name.endswith("parquet") else 1
    assert found.lines == list(range(first, first + len(ROWS[kind])))
    assert str(found) == f"{name}: {len(ROWS[kind])} conversations ({kind}), 0 left out"


def test_more_rows_than_are_held_at_once(tmp_path):
    path = tmp_path / "own.parquet"
    write(path, [{"prompt": f"{n}?", "completion": f"{n}!"} for n in range(1200)])
    found = read_conversations(path)
    assert found.lines == list(range(1200))
    assert found.conversations[1100] == [Message("user", "1100?"), Message("assistant", "1100!")]


BAD = {
    "no JSON": ('{"prompt": "a", ', r"column 1[67]: not JSON"),
    "a list": ("[1, 2]", "must be a JSON object, got list"),
    "another layout": (ROWS["messages"][0], "no 'prompt', which the layout .* needs; it has messages, id"),
    "a number": ({"prompt": "a", "completion": 4}, "completion must be a string, got int"),
    "null": ({"prompt": "a", "completion": None}, "no 'completion', .* it has prompt"),
    "no answer": ({"prompt": "a", "completion": " \n"}, "an assistant's message is empty"),
    "no question": ({"prompt": "", "completion": "b"}, "the question is empty"),
    "half a character": ('{"prompt": "\\ud83d", "completion": "b"}', "half a character"),
    "deep": ('{"prompt": ' + "[" * 100_000, "too many brackets|not JSON"),
    "a number as scene": ({"prompt": "a", "completion": "b", "system": 3}, "system must be a string, got int"),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_a_malformed_row_is_reported_by_its_line(tmp_path, kind):
    path = tmp_path / "own.jsonl"
    row, reason = BAD[kind]
    good = {"prompt": "a", "completion": "b"}
    write(path, [good, "", row, good])  # an empty line counts
    with pytest.raises(ValueError, match=rf"own\.jsonl, line 3: .*({reason})"):
        read_conversations(path)
    found = read_conversations(path, on_error="skip")
    assert found.lines == [1, 4]
    assert as_tuples(found.conversations) == [[("user", "a"), ("assistant", "b")]] * 2
    (problem,) = found.problems
    assert problem.line == 3
    assert re.search(reason, problem.reason)
    assert "1 left out\n  line 3: " in str(found)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages is empty"),
        ("Hi", "messages must be a list, got str"),
        ([{"role": "user", "content": "Hi"}], r"no message is of the assistant \(roles: user\)"),
        ([{"role": "bot", "content": "Hi"}], "message 0: role must be one of system, user, assistant, got 'bot'"),
        ([{"from": "human", "value": "Hi"}], "message 0 has no content and no role; it has from, value"),
        (["Hi"], "message 0 must be a Message or a dict, got str"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 0: content .* must be a string, got list"),
    ],
    ids=["none", "text", "no answer", "role", "sharegpt", "list of text", "parts"],
)
def test_malformed_messages_are_reported(tmp_path, messages, reason):
    path = tmp_path / "own.jsonl"
    write(path, [*ROWS["messages"], {"messages": messages}])
    with pytest.raises(ValueError, match=f"line 3: {reason}"):
        read_conversations(path)
    assert read_conversations(path, on_error="skip").lines == [1, 2]


def test_rows_of_parquet_are_reported_by_number(tmp_path):
    path = tmp_path / "own.parquet"
    write(path, [{"instruction": "a", "output": "b", "x": 1}, {"instruction": "a", "output": None, "x": 2}])
    with pytest.raises(ValueError, match=r"own\.parquet, row 1: no 'output', .* it has instruction"):
        read_conversations(path)
    found = read_conversations(path, on_error="skip")
    assert found.problems[0].line == 1
    assert "\n  row 1: no 'output'" in str(found)


def test_the_layout_is_that_of_the_first_row_that_has_one(tmp_path):
    path = tmp_path / "own.jsonl"
    write(path, [{"text": "x"}, "nonsense", *ROWS["instruction"]])
    with pytest.raises(ValueError, match="line 1: has the fields text, of no known layout: it needs messages; instr"):
        read_conversations(path)
    found = read_conversations(path, on_error="skip")
    assert (found.layout, found.lines, [problem.line for problem in found.problems]) == (
        "instruction", [3, 4, 5, 6], [1, 2]
    )  # fmt: skip
    both = ROWS["messages"][0] | ROWS["prompt-completion"][0]
    write(path, [both])
    with pytest.raises(ValueError, match="line 1: has the fields of messages and prompt-completion: say which"):
        read_conversations(path)
    assert as_tuples(read_conversations(path, "prompt-completion").conversations) == EXPECTED["prompt-completion"][:1]


def test_many_problems_are_counted_and_the_first_are_shown(tmp_path):
    path = tmp_path / "own.jsonl"
    write(path, [*ROWS["prompt-completion"], *["{"] * 8])
    text = str(read_conversations(path, on_error="skip"))
    assert text.count("not JSON") == 5
    assert text.endswith("and 3 more (in .problems)")


def test_an_input_stands_where_alpaca_has_it(tmp_path):
    path = tmp_path / "own.jsonl"
    write(path, ROWS["instruction"][:1])
    found = read_conversations(path, input_separator="\n\n### Input:\n")
    text = chat_template("alpaca").render(found.conversations[0])
    assert text == (
        f"<s>{ALPACA_PREAMBLE}\n\n### Instruction:\nTranslate.\n\n### Input:\nHallo\n\n### Response:\nHello</s>\n\n"
    )


def test_what_is_read_can_be_encoded(tmp_path):
    path = tmp_path / "own.jsonl"
    write(path, ROWS["messages"])
    encoded = encode_chats(read_conversations(path).conversations, tokenizer(), chat_template("chatml"))
    assert len(encoded.examples) == 2


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "own.jsonl"
    for data, message in (
        (b"", "has no conversation: 0 rows"),
        (b"\n \n", "has no conversation: 0 rows"),
        (b"{}\n", "line 1: has the fields none"),
        (b'{"prompt": "caf\xe9"}', r"line 1: byte 15 \(0xe9\) is not UTF-8"),
        ('{"prompt": "a"}'.encode("utf-16"), "is UTF-16, not UTF-8"),
        (gzip.compress(b"{}"), "packed with gzip"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_conversations(path)
    path.write_bytes(b"{}\n[]\n")
    with pytest.raises(ValueError, match="no conversation: 2 rows, none of them usable; line 1: has the fields"):
        read_conversations(path, on_error="skip")
    path.write_bytes(b'{"prompt": "a", "completion": ""}\n')
    with pytest.raises(ValueError, match=r"no conversation: 1 rows, .*; line 1: an assistant's message is empty"):
        read_conversations(path, on_error="skip")
    damaged = tmp_path / "own.parquet"
    damaged.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="is not a Parquet file, or a damaged one"):
        read_conversations(damaged, on_error="skip")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_conversations(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match=r"must end in \.jsonl, \.jsonl\.gz or \.parquet"):
        read_conversations(tmp_path / "own.csv")
    with pytest.raises(ValueError, match=r"must end in \.jsonl, \.jsonl\.gz or \.parquet"):
        read_conversations(tmp_path / "own.parquet.gz")
    with pytest.raises(ValueError, match="one of auto, messages, instruction, prompt-completion, got 'x'"):
        read_conversations(path, "x")
    with pytest.raises(ValueError, match="on_error must be 'refuse' or 'skip', got 'warn'"):
        read_conversations(path, on_error="warn")
