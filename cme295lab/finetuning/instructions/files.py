"""Conversations on disk: JSONL in the messages layout, a conversation on each line.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}], "kind": "...",
     "family": "..."}

Any tool that reads this layout reads the messages and passes over the two further fields. What is read back here is
what was written; a line without a kind is refused, since `cme295lab.finetuning.chat` has readers for files from
elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cme295lab.finetuning.chat.messages import as_messages
from cme295lab.finetuning.instructions.example import Example


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> Path:
    """Write conversations, one on a line; a file of that name is replaced.

    Args:
        path: of the file; its folder must exist.
        examples: to write, at least one.

    Returns:
        The path.

    Raises:
        ValueError: if there is no example.
    """
    path = Path(path)
    lines = [json.dumps(as_record(example), ensure_ascii=False) for example in examples]
    if not lines:
        raise ValueError(f"there is no example to write to {path}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return path


def read_jsonl(path: str | Path) -> list[Example]:
    """Read conversations that `write_jsonl` wrote.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a line is no conversation with a kind, or there is none; the error says which line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    # Only a line feed ends a record: a text may have other line separators in it, which splitlines would split at.
    lines = path.read_text(encoding="utf-8").split("\n")
    examples = [_example(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not examples:
        raise ValueError(f"{path} is empty: there is no conversation in it")
    return examples


def as_record(example: Example) -> dict[str, Any]:
    """The example as it stands in a file."""
    messages = [{"role": message.role, "content": message.content} for message in example.messages]
    return {"messages": messages, "kind": example.kind, "family": example.family}


def _example(path: Path, number: int, line: str) -> Example:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}, column {error.colno}: not JSON ({error.msg})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{where}: must be a JSON object, got {type(record).__name__}")
    if missing := [name for name in ("messages", "kind") if name not in record]:
        raise ValueError(
            f"{where}: no field {' and no '.join(missing)}. For files from elsewhere, see cme295lab.finetuning.chat"
        )
    try:
        messages = tuple(as_messages(record["messages"]))
        return Example(messages=messages, kind=record["kind"], family=record.get("family", ""))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
