"""What the course's models read: real text that is on any machine with Python, and two generated parts.

Read ``document`` first (a text, where it is from, what family it belongs to), then where text comes from:
``python_library`` (the language reference, docstrings and source that ship with CPython), ``worked_sums`` and
``story_telling`` (generated, seeded), ``dated`` (facts with a date, to cut a training set at one), ``readers`` (your
own files). Then what is done to it: ``quality`` (filters that count what they drop), ``duplicates`` (exact and near),
``splitting`` (training and validation text that share nothing, and a measure of it), ``mixing`` (how much of which
domain). ``course`` puts it all together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.corpora.course import course_corpus
    from cme295lab.pretraining.corpora.dated import published_after, published_until, python_history
    from cme295lab.pretraining.corpora.document import Corpus, Document, total_bytes
    from cme295lab.pretraining.corpora.duplicates import DuplicateReport, remove_duplicates, similar_pairs
    from cme295lab.pretraining.corpora.mixing import mixture_weights, temperature_weights
    from cme295lab.pretraining.corpora.python_library import python_docs, standard_library_code
    from cme295lab.pretraining.corpora.quality import (
        Filter,
        FilterReport,
        apply_filters,
        from_folders,
        generated_table,
        length_outside,
        not_printable,
        too_many_repeated_lines,
        too_many_symbols,
    )
    from cme295lab.pretraining.corpora.readers import read_documents, read_jsonl, read_parquet, read_text
    from cme295lab.pretraining.corpora.splitting import Overlap, link_families, overlap, split
    from cme295lab.pretraining.corpora.story_telling import stories
    from cme295lab.pretraining.corpora.worked_sums import arithmetic

_HOME: dict[str, str] = {
    "Corpus": "document",
    "Document": "document",
    "DuplicateReport": "duplicates",
    "Filter": "quality",
    "FilterReport": "quality",
    "Overlap": "splitting",
    "apply_filters": "quality",
    "arithmetic": "worked_sums",
    "course_corpus": "course",
    "from_folders": "quality",
    "generated_table": "quality",
    "length_outside": "quality",
    "link_families": "splitting",
    "mixture_weights": "mixing",
    "not_printable": "quality",
    "overlap": "splitting",
    "published_after": "dated",
    "published_until": "dated",
    "python_docs": "python_library",
    "python_history": "dated",
    "read_documents": "readers",
    "read_jsonl": "readers",
    "read_parquet": "readers",
    "read_text": "readers",
    "remove_duplicates": "duplicates",
    "similar_pairs": "duplicates",
    "split": "splitting",
    "standard_library_code": "python_library",
    "stories": "story_telling",
    "temperature_weights": "mixing",
    "too_many_repeated_lines": "quality",
    "too_many_symbols": "quality",
    "total_bytes": "document",
}
_MODULES = ("course", "dated", "document", "duplicates", "mixing", "python_library", "quality", "readers", "splitting")

__all__: list[str] = [
    "course_corpus",
    "Corpus",
    "Document",
    "total_bytes",
    "python_docs",
    "standard_library_code",
    "arithmetic",
    "stories",
    "python_history",
    "published_until",
    "published_after",
    "read_documents",
    "read_text",
    "read_jsonl",
    "read_parquet",
    "Filter",
    "FilterReport",
    "apply_filters",
    "length_outside",
    "too_many_symbols",
    "too_many_repeated_lines",
    "not_printable",
    "generated_table",
    "from_folders",
    "remove_duplicates",
    "similar_pairs",
    "DuplicateReport",
    "split",
    "link_families",
    "overlap",
    "Overlap",
    "temperature_weights",
    "mixture_weights",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
