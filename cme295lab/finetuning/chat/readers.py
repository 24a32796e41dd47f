"""Conversations from your own files: JSON lines or Parquet, in the three layouts that data sets come in.

    messages             {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    instruction          {"instruction": "Translate.", "input": "Hallo", "output": "Hello"}     ("input" may be missing)
    prompt-completion    {"prompt": "Hi", "completion": "Hello"}

The last two may have a "system" message, too. The layout is found by the fields of the first row that has those of one.
From then on all rows must have it: a file that changes its layout half-way is more likely damaged than meant.

A row can be wrong in many ways: no JSON, a field that is missing or no text, an unknown role, no answer. The error
names the line (of Parquet, the row, from 0) and what is wrong with it; or the row is left out, and listed in
`problems`. What is wrong with the whole file (not UTF-8, no Parquet, no row that can be used) is refused in any case.

Further fields of a row ("id", "source") are passed over. Text is taken as it is, white space included.

What is not covered: files larger than memory (conversations are held as text), and other layouts: turn them into one
of these three first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as arrow
import pyarrow.parquet as parquet

from cme295lab.finetuning.chat.messages import Message, as_messages
from cme295lab.pretraining.corpora.readers import existing_file, numbered_lines

Layout = Literal["messages", "instruction", "prompt-completion"]
LAYOUTS: tuple[str, ...] = get_args(Layout)
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "instruction": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
}
_SHOWN_PROBLEMS = 5
_ROWS_IN_MEMORY = 1000


class Problem(NamedTuple):
    """A row that was left out: its line in the file (of Parquet, its row, from 0), and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class ConversationFile:
    """What was read from a file.

    Attributes:
        conversations: each a list of messages, in the order of the file.
        lines: of each conversation, its line (of Parquet, its row, from 0).
        problems: rows that were left out.
        layout: which of the three was read.
        name: of the file.
    """

    conversations: list[list[Message]]
    lines: list[int]
    problems: list[Problem]
    layout: Layout
    name: str

    def __str__(self) -> str:
        word = _word(Path(self.name))
        text = [f"{self.name}: {len(self.conversations)} conversations ({self.layout}), {len(self.problems)} left out"]
        text += [f"  {word} {problem.line}: {problem.reason}" for problem in self.problems[:_SHOWN_PROBLEMS]]
        if len(self.problems) > _SHOWN_PROBLEMS:
            text.append(f"  and {len(self.problems) - _SHOWN_PROBLEMS} more (in .problems)")
        return "\n".join(text)


def read_conversations(
    path: str | Path,
    layout: Literal["auto", "messages", "instruction", "prompt-completion"] = "auto",
    on_error: Literal["refuse", "skip"] = "refuse",
    *,
    input_separator: str = "\n\n",
) -> ConversationFile:
    """Read conversations from a file: .jsonl, .jsonl.gz or .parquet.

    Args:
        path: of the file.
        layout: of its rows; "auto" finds it.
        on_error: "refuse" the file for a row that is wrong, or "skip" the row and say so in `problems`.
        input_separator: between an instruction and its input. For the Alpaca template, "\\n\\n### Input:\\n".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name ends in something else, it is damaged, no row is a conversation, an option is unknown,
            or, with "refuse", a row is wrong; the message names file, line and reason.
    """
    path = Path(path)
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout must be one of auto, {', '.join(LAYOUTS)}, got {layout!r}")
    if on_error not in ("refuse", "skip"):
        raise ValueError(f"on_error must be 'refuse' or 'skip', got {on_error!r}")
    found: Layout | None = None if layout == "auto" else layout
    conversations, lines, problems = [], [], []
    for line, record in _records(path):
        try:
            fields = _object(record)
            found = found or _layout_of(fields)
            conversations.append(_READERS[found](_with_fields(fields, found), input_separator))
            lines.append(line)
        except (TypeError, ValueError) as error:
            if on_error == "refuse":
                raise ValueError(f"{path}, {_word(path)} {line}: {error}") from error
            problems.append(Problem(line, str(error)))
    if found is None or not conversations:
        first = f"; {_word(path)} {problems[0].line}: {problems[0].reason}" if problems else ""
        raise ValueError(f"{path} has no conversation: {len(problems)} rows, none of them usable{first}")
    return ConversationFile(conversations, lines, problems, found, path.name)


def _word(path: Path) -> str:
    return "row" if path.suffix == ".parquet" else "line"


class _NotJson(NamedTuple):
    reason: str


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Every row with its number; one that is no JSON as a `_NotJson`."""
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".jsonl":
        return _json_lines(existing_file(path))
    if path.suffix == ".parquet":
        return _parquet_rows(existing_file(path))
    raise ValueError(f"{path}: the name must end in .jsonl, .jsonl.gz or .parquet")


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            yield number, _NotJson(f"column {error.colno}: not JSON ({error.msg})")
        except RecursionError:
            yield number, _NotJson("too many brackets within brackets")


def _parquet_rows(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file, or a damaged one: {error}") from error
    needed = {field for fields in _FIELDS.values() for field in (*fields, "input", "system")}
    columns = [name for name in file.schema_arrow.names if name in needed]
    row = 0
    for batch in file.iter_batches(batch_size=_ROWS_IN_MEMORY, columns=columns):
        for record in batch.to_pylist():
            yield row, record
            row += 1


def _object(record: Any) -> dict[str, Any]:
    """The fields of a row that have a value."""
    if isinstance(record, _NotJson):
        raise ValueError(record.reason)
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object, got {type(record).__name__}")
    return {name: value for name, value in record.items() if value is not None}


def _layout_of(fields: dict[str, Any]) -> Layout:
    fitting: list[Layout] = [layout for layout in get_args(Layout) if set(_FIELDS[layout]) <= set(fields)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"has the fields of {' and '.join(fitting)}: say which is meant with layout=")
    known = "; ".join(" and ".join(names) for names in _FIELDS.values())
    raise ValueError(f"has the fields {', '.join(fields) or 'none'}, of no known layout: it needs {known}")


def _with_fields(fields: dict[str, Any], layout: Layout) -> dict[str, Any]:
    for name in _FIELDS[layout]:
        if name not in fields:
            raise ValueError(f"no {name!r}, which the layout {layout} needs; it has {', '.join(fields) or 'nothing'}")
    return fields


def _from_messages(fields: dict[str, Any], _: str) -> list[Message]:
    if not isinstance(fields["messages"], list):
        raise TypeError(f"messages must be a list, got {type(fields['messages']).__name__}")
    return _answered(as_messages(fields["messages"]))


def _from_instruction(fields: dict[str, Any], input_separator: str) -> list[Message]:
    question, given = _text(fields, "instruction"), _text(fields, "input")
    if given.strip():
        question = f"{question}{input_separator}{given}"
    return _asked(fields, question, _text(fields, "output"))


def _from_prompt(fields: dict[str, Any], _: str) -> list[Message]:
    return _asked(fields, _text(fields, "prompt"), _text(fields, "completion"))


_READERS: Mapping[Layout, Callable[[dict[str, Any], str], list[Message]]] = {
    "messages": _from_messages, "instruction": _from_instruction, "prompt-completion": _from_prompt
}  # fmt: skip


def _asked(fields: dict[str, Any], question: str, answer: str) -> list[Message]:
    if not question.strip():
        raise ValueError("the question is empty")
    scene = _text(fields, "system")
    before = [Message("system", scene)] if scene.strip() else []
    return [*before, Message("user", question), Message("assistant", answer)]


def _answered(messages: list[Message]) -> list[Message]:
    if not any(message.role == "assistant" for message in messages):
        raise ValueError(f"no message is of the assistant (roles: {', '.join(m.role for m in messages)})")
    return messages


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    return value
