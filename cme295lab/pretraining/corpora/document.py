"""A document, and a corpus of them: by domain, split into training and validation.

A `Document` knows where its text is from and to what family it belongs: documents of one family (the docstrings and
the source of one module, the two texts of which one contains the other) go to the same side of a split, whatever domain
they are in. A `Corpus` has a fingerprint. "The same corpus" means: on the same Python version, because the text that
ships with Python changes from one version to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date as Date

from cme295lab import units


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: the text.
        domain: what kind of text it is, such as "english" or "code".
        source: where it is from, such as "json/decoder.py" or "notes.jsonl:17".
        date: when it was published, if that is known.
        family: documents of one family stay together in a split; by default a document is its own family.
    """

    text: str
    domain: str
    source: str
    date: Date | None = None
    family: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise TypeError(f"text must be a string, got {type(self.text).__name__}")
        if not self.family:
            object.__setattr__(self, "family", self.source)

    @property
    def num_bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents by domain, for training and for validation.

    Attributes:
        train: domain -> documents.
        validation: domain -> documents, of other families.
        reports: what was left out on the way, by domain; printable.

    Raises:
        ValueError: if both parts are empty.
    """

    train: Mapping[str, list[Document]]
    validation: Mapping[str, list[Document]]
    reports: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(self.train.values()) and not any(self.validation.values()):
            raise ValueError("the corpus is empty: there is not one document in it")

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, those of training first."""
        return tuple(dict.fromkeys([*self.train, *self.validation]))

    @property
    def fingerprint(self) -> str:
        """A number for all texts of both parts, in their order: equal if and only if the corpus is."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            for domain in sorted(part):
                digest.update(f"[{domain} {len(part[domain])}]".encode())
                for document in part[domain]:
                    digest.update(hashlib.sha256(document.text.encode()).digest())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        lines = [f"{'domain':<14} {'train':>8} {'':>9} {'validation':>12}"]
        for domain in self.domains:
            cells = [domain.ljust(14)]
            for part in (self.train, self.validation):
                documents = part.get(domain, [])
                cells.append(f"{len(documents):>8,} {units.format_bytes(total_bytes(documents)):>9}")
            lines.append(" ".join(cells))
        return "\n".join([*lines, f"fingerprint {self.fingerprint}"])


def total_bytes(documents: Iterable[Document]) -> int:
    """Length of all texts in UTF-8."""
    return sum(document.num_bytes for document in documents)
