"""The corpus of the course: four domains, filtered, free of duplicates, split without leakage. No download.

    english      the language reference that ships with Python, and long docstrings of its standard library
    code         the standard library's source, without these docstrings
    arithmetic   generated sums, worked step by step
    stories      generated stories for children

"full" reads all of it, which takes some ten seconds; "fast" reads an eighth, in about one, for tests and first tries.
Both depend on the Python version, because its text does: `Corpus.fingerprint` says whether two corpora are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from cme295lab.pretraining.corpora.document import Corpus, Document
from cme295lab.pretraining.corpora.duplicates import DuplicateReport, remove_duplicates
from cme295lab.pretraining.corpora.python_library import language_reference, standard_library
from cme295lab.pretraining.corpora.quality import (
    Filter,
    FilterReport,
    apply_filters,
    length_outside,
    not_printable,
    too_many_repeated_lines,
    too_many_symbols,
)
from cme295lab.pretraining.corpora.splitting import link_families, split
from cme295lab.pretraining.corpora.story_telling import stories
from cme295lab.pretraining.corpora.worked_sums import arithmetic

DOMAINS = ("english", "code", "arithmetic", "stories")
VALIDATION_SHARE = 0.05
ENGLISH_FILTERS = (
    length_outside(200, 200_000), not_printable(0.001), too_many_symbols(0.35), too_many_repeated_lines(0.4)
)  # fmt: skip
CODE_FILTERS = (length_outside(200, 300_000), too_many_repeated_lines(0.6))
Profile = Literal["full", "fast"]


@dataclass(frozen=True, kw_only=True)
class CleaningReport:
    """What was left out of a domain; prints as text.

    Attributes:
        files: of source files, if the domain is made of them.
        filters: of documents.
        duplicates: of those that passed.
    """

    files: FilterReport | None
    filters: FilterReport
    duplicates: DuplicateReport

    def __str__(self) -> str:
        return "\n\n".join(str(part) for part in (self.files, self.filters, self.duplicates) if part is not None)


def course_corpus(profile: Profile = "full") -> Corpus:
    """The course's own corpus: the same for the same Python version, kept in memory after the first call.

    Args:
        profile: "full", or "fast" for an eighth of it.

    Returns:
        Documents of the domains "english", "code", "arithmetic" and "stories".

    Raises:
        ValueError: if the profile is unknown.
        RuntimeError: if this Python comes without its reference or its source files.
    """
    if profile not in ("full", "fast"):
        raise ValueError(f'profile must be "full" or "fast", got {profile!r}')
    return _course_corpus(profile)


@functools.cache
def _course_corpus(profile: Profile) -> Corpus:
    share = 1 if profile == "full" else 8
    library = standard_library(one_in=share)
    reference = [document for number, document in enumerate(language_reference()) if number % share == 0]
    english, english_filters, english_copies = _clean([*reference, *library.docstrings], ENGLISH_FILTERS)
    code, code_filters, code_copies = _clean(library.code, CODE_FILTERS)
    documents = [
        *link_families([*english, *code]),
        *arithmetic(seed=0, num_documents=8000 // share),
        *stories(seed=0, num_documents=4000 // share),
    ]
    train, validation = split(documents, validation_share=VALIDATION_SHARE)
    return Corpus(
        train=_by_domain(train),
        validation=_by_domain(validation),
        reports={
            "english": CleaningReport(files=None, filters=english_filters, duplicates=english_copies),
            "code": CleaningReport(files=library.report, filters=code_filters, duplicates=code_copies),
        },
    )


def _clean(
    documents: Iterable[Document], filters: Sequence[Filter]
) -> tuple[list[Document], FilterReport, DuplicateReport]:
    kept, filtered = apply_filters(documents, filters)
    unique, copies = remove_duplicates(kept)
    return unique, filtered, copies


def _by_domain(documents: Iterable[Document]) -> dict[str, list[Document]]:
    """Documents by domain; a domain that got none is an error."""
    found: dict[str, list[Document]] = {domain: [] for domain in DOMAINS}
    for document in documents:
        found[document.domain].append(document)
    if empty := [domain for domain, kept in found.items() if not kept]:
        raise RuntimeError(
            f"nothing is left of {', '.join(empty)} on one side of the split: this Python comes with too little text"
        )
    return found
