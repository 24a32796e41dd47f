"""What is left out because it teaches nothing, with a count for each reason and an example.

Filters are rules of thumb. Each looks at one text and says keep or drop; a document is charged to the first filter that
drops it. What a filter costs shows only in counts and examples, so a report keeps both, and `print(report)` is a table
to be read before training. The rules: a text too short or too long, too many symbols, lines that repeat, bytes that do
not print, and tables that a program wrote (lines that are all the same once numbers and quoted text are taken out).

Source: the families of rules are those of Rae et al. 2021, "Scaling Language Models" (Gopher), section A.1.1, and of
Raffel et al. 2020 (C4); the thresholds here are ours, chosen by reading what they drop from Python's library.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from cme295lab import units
from cme295lab.pretraining.corpora.document import Document

_QUOTED = re.compile(r"""[rbu]?'(?:\\.|[^'\\])*'|[rbu]?"(?:\\.|[^"\\])*\"""")
_NUMBER = re.compile(r"\b0x[0-9a-fA-F]+\b|\b\d[\d_.eE+-]*\b")
_COMMENT = re.compile(r"#.*")
_SYMBOL = re.compile(r"[^\w\s]|_")
_INK = re.compile(r"\S")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd]")
_IDENTIFIER = re.compile(r"[A-Za-z_]{2,}")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One reason to leave a document out.

    Attributes:
        name: what the report calls it.
        drops: whether a document is to be dropped.
    """

    name: str
    drops: Callable[[Document], bool]


@dataclass(frozen=True, kw_only=True)
class FilterCount:
    """What one filter dropped.

    Attributes:
        name: the filter's.
        num_documents: dropped.
        num_bytes: of their texts.
        example: source and first words of the first one; empty if there was none.
    """

    name: str
    num_documents: int
    num_bytes: int
    example: str


@dataclass(frozen=True, kw_only=True)
class FilterReport:
    """What came in, what each filter dropped, and what was kept; prints as a table."""

    num_documents: int
    num_bytes: int
    dropped: tuple[FilterCount, ...]

    @property
    def num_kept(self) -> int:
        """Documents that passed all filters."""
        return self.num_documents - sum(row.num_documents for row in self.dropped)

    @property
    def num_bytes_kept(self) -> int:
        """Bytes of the documents that passed all filters."""
        return self.num_bytes - sum(row.num_bytes for row in self.dropped)

    def __str__(self) -> str:
        rows = [
            FilterCount(name="read", num_documents=self.num_documents, num_bytes=self.num_bytes, example=""),
            *self.dropped,
            FilterCount(name="kept", num_documents=self.num_kept, num_bytes=self.num_bytes_kept, example=""),
        ]
        width = max(len(row.name) for row in rows)
        lines = [
            f"{row.name:<{width}} {row.num_documents:>8,} {units.format_bytes(row.num_bytes):>10}  {row.example}"
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def apply_filters(
    documents: Iterable[Document], filters: Sequence[Filter]
) -> tuple[list[Document], FilterReport]:
    """Leave out what any filter drops.

    Args:
        documents: any number.
        filters: asked in this order; the first that drops a document is charged.

    Returns:
        The documents kept, in their order, and the report.
    """
    kept: list[Document] = []
    dropped: dict[str, list[Document]] = {rule.name: [] for rule in filters}
    if len(dropped) < len(filters):
        raise ValueError(f"filters must have different names, got {[rule.name for rule in filters]}")
    num_documents = num_bytes = 0
    for document in documents:
        num_documents, num_bytes = num_documents + 1, num_bytes + document.num_bytes
        reason = next((rule.name for rule in filters if rule.drops(document)), None)
        (kept if reason is None else dropped[reason]).append(document)
    rows = tuple(_count(name, documents) for name, documents in dropped.items())
    return kept, FilterReport(num_documents=num_documents, num_bytes=num_bytes, dropped=rows)


def _count(name: str, documents: Sequence[Document]) -> FilterCount:
    example = ""
    if documents:
        example = f"{documents[0].source}: {' '.join(documents[0].text[:200].split())[:50]}"
    num_bytes = sum(document.num_bytes for document in documents)
    return FilterCount(name=name, num_documents=len(documents), num_bytes=num_bytes, example=example)


def length_outside(smallest: int, largest: int) -> Filter:
    """Drop texts shorter than `smallest` or longer than `largest` characters."""
    if not 0 <= smallest <= largest:
        raise ValueError(f"smallest and largest must be in order and not negative, got {smallest} and {largest}")
    return Filter(
        name=f"shorter than {smallest:,} or longer than {largest:,} characters",
        drops=lambda document: not smallest <= len(document.text) <= largest,
    )


def too_many_symbols(largest_share: float) -> Filter:
    """Drop texts in which more than this share of characters is neither letter, digit nor space."""
    _check_share(largest_share)
    return Filter(
        name=f"more than {largest_share:.0%} symbols",
        drops=lambda document: symbol_share(document.text) > largest_share,
    )


def too_many_repeated_lines(largest_share: float) -> Filter:
    """Drop texts in which more than this share of lines was there before."""
    _check_share(largest_share)
    return Filter(
        name=f"more than {largest_share:.0%} repeated lines",
        drops=lambda document: repeated_line_share(document.text) > largest_share,
    )


def not_printable(largest_share: float) -> Filter:
    """Drop texts in which more than this share of characters does not print (control characters, lost bytes)."""
    _check_share(largest_share)
    return Filter(
        name=f"more than {largest_share:.1%} unprintable",
        drops=lambda document: unprintable_share(document.text) > largest_share,
    )


def generated_table(largest_share: float) -> Filter:
    """Drop texts in which more than this share of lines is a row of literals, all of the same form."""
    _check_share(largest_share)
    return Filter(name="generated table", drops=lambda document: table_share(document.text) > largest_share)


def from_folders(folders: Iterable[str]) -> Filter:
    """Drop documents whose source has one of these folders in its path."""
    unwanted = frozenset(folders)
    return Filter(
        name=f"in {', '.join(sorted(unwanted))}",
        drops=lambda document: not unwanted.isdisjoint(PurePosixPath(document.source.split("#")[0]).parts),
    )


def symbol_share(text: str) -> float:
    """The share of characters other than space that are neither letter nor digit."""
    return len(_SYMBOL.findall(text)) / max(1, len(_INK.findall(text)))


def repeated_line_share(text: str) -> float:
    """The share of lines that are a copy of an earlier one; empty and very short lines are not counted."""
    lines = [line for line in map(str.strip, text.splitlines()) if len(line) > 8]
    return (len(lines) - len(set(lines))) / max(1, len(lines))


def unprintable_share(text: str) -> float:
    """The share of control characters and of replacement characters, which stand for bytes that were lost."""
    return len(_UNPRINTABLE.findall(text)) / max(1, len(text))


def table_share(text: str) -> float:
    """The share of lines that consist of literals in the most common arrangement.

    Example:
        >>> table_share("x = {\\n 'a': 1,\\n 'b': 2,\\n 'c': 3,\\n}")
        0.6
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    forms = Counter(form for form in map(_form, lines) if not _IDENTIFIER.search(form) and ("'" in form or "0" in form))
    return max(forms.values(), default=0) / max(1, len(lines))


def _form(line: str) -> str:
    """A line with its literals replaced: 'a': 17, becomes '': 0,."""
    return _COMMENT.sub("", _NUMBER.sub("0", _QUOTED.sub("''", line))).rstrip()


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"largest_share must be between 0 and 1, got {share}")
