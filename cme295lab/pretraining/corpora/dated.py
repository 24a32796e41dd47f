"""Facts with a date, for models with a knowledge cutoff.

What a model can know ends where its training text ends. To see that, one needs facts whose dates are known: here, what
came with which version of Python, and when that version was released. `python_history` states each fact in several
ways; `published_until` cuts a training set at a date, and `published_after` keeps what such a model cannot know. A
model trained on the first part does not find the second just hard: it says, with confidence, what was true before.

A document without a date is not "old": whether it may be used is for the caller to decide, so both functions refuse it
unless told otherwise. The language reference, for example, has no date here; it is as old as the Python that runs.

Source: release dates: PEPs 373, 375, 392, 398, 429, 478, 494, 537, 569, 596, 619, 664, 693, 719 and 745; features:
"What's New in Python" of each version.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date as Date

from cme295lab.pretraining.corpora.document import Document

RELEASES: dict[str, Date] = {
    "2.7": Date(2010, 7, 3),
    "3.1": Date(2009, 6, 27),
    "3.2": Date(2011, 2, 20),
    "3.3": Date(2012, 9, 29),
    "3.4": Date(2014, 3, 16),
    "3.5": Date(2015, 9, 13),
    "3.6": Date(2016, 12, 23),
    "3.7": Date(2018, 6, 27),
    "3.8": Date(2019, 10, 14),
    "3.9": Date(2020, 10, 5),
    "3.10": Date(2021, 10, 4),
    "3.11": Date(2022, 10, 24),
    "3.12": Date(2023, 10, 2),
    "3.13": Date(2024, 10, 7),
    "3.14": Date(2025, 10, 7),
}

# Each completes "Python 3.x brought ..."
FEATURES: dict[str, tuple[str, ...]] = {
    "2.7": ("dictionary views for Python 2", "the argparse module for Python 2"),
    "3.1": ("ordered dictionaries", "the Counter class", "the comma as a thousands separator in formats"),
    "3.2": ("the concurrent.futures module", "the argparse module", "the lru_cache decorator",
            "one folder for byte code"),
    "3.3": ("the yield from expression", "the venv module", "the ipaddress module", "the faulthandler module",
            "namespace packages"),
    "3.4": ("the asyncio module", "the enum module", "the pathlib module", "the statistics module",
            "the tracemalloc module", "the selectors module"),
    "3.5": ("the async and await keywords", "the matrix multiplication operator", "the typing module",
            "the zipapp module", "generalised unpacking"),
    "3.6": ("formatted string literals", "underscores in numeric literals", "annotations of variables",
            "asynchronous generators", "the secrets module"),
    "3.7": ("data classes", "the breakpoint function", "context variables", "attributes of modules on demand",
            "the importlib.resources module"),
    "3.8": ("assignment expressions", "positional-only parameters", "the equals sign in formatted strings",
            "cached properties", "typed dictionaries", "protocols"),
    "3.9": ("the union of dictionaries with a bar", "the zoneinfo module", "the graphlib module",
            "methods that remove prefixes and suffixes", "built-in collections as generic types"),
    "3.10": ("structural pattern matching", "union types with a bar", "parenthesised context managers",
             "parameter specifications", "the strict argument of zip"),
    "3.11": ("exception groups", "the tomllib module", "task groups", "the Self type", "notes on exceptions",
             "marks under the code in tracebacks"),
    "3.12": ("the type statement", "type parameters in brackets", "the override decorator", "the batched function",
             "an interpreter lock for each subinterpreter"),
    "3.13": ("an experimental build without the global lock", "an experimental compiler at run time",
             "a new interactive shell in colour", "defaults of type parameters",
             "read-only items of typed dictionaries"),
    "3.14": ("template strings", "deferred evaluation of annotations", "the Zstandard module",
             "several interpreters in the standard library", "except without parentheses"),
}  # fmt: skip

_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_PHRASINGS = (
    "Python {version} was released in {month} {year}. It brought {feature}.",
    "In {month} {year} came Python {version}, and with it {feature}.",
    "Question: which version of Python brought {feature}? Answer: Python {version}, in {year}.",
    "{Feature}: new in Python {version}, released in {month} {year}.",
    "Since Python {version}, from {year}, there is support for {feature}.",
    "The release of {month} {year}, Python {version}, is the first with {feature}.",
)


def python_history() -> list[Document]:
    """What came with which version of Python, each fact in several sentences, dated by the version's release.

    Returns:
        Documents of the domain "history", by date. A fact is a family: all its sentences stay together in a split.
    """
    documents = []
    for version, released in sorted(RELEASES.items(), key=lambda item: item[1]):
        for feature in FEATURES[version]:
            for number, phrasing in enumerate(_PHRASINGS):
                text = phrasing.format(
                    version=version,
                    month=_MONTHS[released.month - 1],
                    year=released.year,
                    feature=feature,
                    Feature=feature[0].upper() + feature[1:],
                )
                family = f"history#{version}/{feature}"
                documents.append(Document(f"{text}\n", "history", f"{family}/{number}", date=released, family=family))
    return documents


def published_until(documents: Iterable[Document], cutoff: Date, *, keep_undated: bool = False) -> list[Document]:
    """What a model with this knowledge cutoff may have read.

    Args:
        documents: with dates.
        cutoff: the last day that counts.
        keep_undated: whether documents without a date are kept.

    Raises:
        ValueError: if a document has no date and `keep_undated` is false.
    """
    return [
        document
        for document in documents
        if (document.date is None and keep_undated) or _date_of(document) <= cutoff
    ]


def published_after(documents: Iterable[Document], cutoff: Date) -> list[Document]:
    """What a model with this knowledge cutoff cannot know.

    Args:
        documents: with dates.
        cutoff: the last day that the model may know of.

    Raises:
        ValueError: if a document has no date.
    """
    return [document for document in documents if _date_of(document) > cutoff]


def _date_of(document: Document) -> Date:
    if document.date is None:
        raise ValueError(
            f"document {document.source!r} has no date, so nobody knows on which side of the cutoff it is: leave it "
            f"out, or pass keep_undated=True if it may be read at any time"
        )
    return document.date
