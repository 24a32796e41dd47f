"""Your own files as documents: text, JSON lines, Parquet; read as a stream, whatever their size.

One document is in memory at a time (of Parquet, one batch of rows). Readers return iterators; the file is opened, and
its first mistakes are found, when the reader is called, not when somebody reads the first document. Text has to be
UTF-8: a file that is not is refused with the place of the first wrong byte, because replacing it would train a model
on damaged text without a word. `.gz` files are unpacked on the way.

What is not covered: Parquet files whose row groups are larger than memory, and files on the web.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import date as Date
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from cme295lab.pretraining.corpora.document import Document

_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip"}


def read_documents(path: str | Path, *, domain: str = "own") -> Iterator[Document]:
    """Read a file by what its name ends in: .txt, .md, .jsonl, .parquet; the first three also with .gz.

    Args:
        path: of the file.
        domain: of its documents.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if its name ends in something else, or for what the reader of its kind refuses.
    """
    path = Path(path)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS or (suffix == ".parquet" and path.suffix == ".gz"):
        known = ", ".join(_READERS)
        raise ValueError(f"{path}: the name must end in one of {known} (.txt, .md and .jsonl also with .gz)")
    return _READERS[suffix](path, domain=domain)


def read_text(path: str | Path, *, domain: str = "own", separator: str | None = None) -> Iterator[Document]:
    """Read a text file.

    Args:
        path: of the file, UTF-8.
        domain: of its documents.
        separator: a line that stands between documents, such as "" (an empty line: paragraphs) or "<|endoftext|>";
            None: the file is one document.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 or empty, or the separator is more than one line.
    """
    if separator is not None and "\n" in separator:
        raise ValueError(f"separator must be one line, got {separator!r}")
    path = existing_file(path)

    def documents() -> Iterator[Document]:
        lines: list[str] = []
        first = 1
        for number, line in numbered_lines(path):
            if separator is not None and line.rstrip("\r\n") == separator:
                if lines:
                    yield Document("".join(lines), domain, f"{path.name}:{first}")
                lines, first = [], number + 1
            else:
                lines.append(line)
        if lines:
            yield Document("".join(lines), domain, f"{path.name}:{first}")

    return _not_empty(path, documents())


def read_jsonl(
    path: str | Path, *, domain: str = "own", text_field: str = "text", date_field: str | None = None
) -> Iterator[Document]:
    """Read a file with a JSON object on each line; empty lines are passed over.

    Args:
        path: of the file, UTF-8.
        domain: of its documents.
        text_field: where the text is.
        date_field: where the date is, as "2024-10-07"; None: documents get no date.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not UTF-8 or empty, or a line is no object, lacks a field or has another type in it; the
            message names file, line and field.
    """
    path = existing_file(path)

    def documents() -> Iterator[Document]:
        for number, line in numbered_lines(path):
            if line.strip():
                where = f"{path}, line {number}"
                try:
                    record = json.loads(line.rstrip())
                except json.JSONDecodeError as error:
                    raise ValueError(f"{where}, column {error.colno}: not JSON ({error.msg})") from error
                if not isinstance(record, dict):
                    raise ValueError(f"{where}: must be a JSON object, got {type(record).__name__}")
                text = _text(record, text_field, where)
                date = None if date_field is None else _date(record, date_field, where)
                yield Document(text, domain, f"{path.name}:{number}", date=date)

    return _not_empty(path, documents())


def read_parquet(
    path: str | Path, *, domain: str = "own", text_field: str = "text", rows_in_memory: int = 1000
) -> Iterator[Document]:
    """Read a Parquet file, some rows at a time.

    Args:
        path: of the file.
        domain: of its documents.
        text_field: the column with the text.
        rows_in_memory: as many at a time.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no Parquet file, has no such column, no text in it, or no rows; the message names file, row
            (from 0) and column.
    """
    path = existing_file(path)
    if rows_in_memory < 1:
        raise ValueError(f"rows_in_memory must be positive, got {rows_in_memory}")
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a Parquet file, or a damaged one: {error}") from error
    names = file.schema_arrow.names
    if text_field not in names:
        raise ValueError(f"{path} has no column {text_field!r}; it has {', '.join(names)}: give one as text_field")
    kind = file.schema_arrow.field(text_field).type
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise ValueError(f"{path}: column {text_field!r} must hold text, got {kind}")

    def documents() -> Iterator[Document]:
        row = 0
        for batch in file.iter_batches(batch_size=rows_in_memory, columns=[text_field]):
            for text in batch.column(0).to_pylist():
                if text is None:
                    raise ValueError(f"{path}, row {row}: column {text_field!r} has no value")
                yield Document(text, domain, f"{path.name}:{row}")
                row += 1

    return _not_empty(path, documents())


_READERS: dict[str, Callable[..., Iterator[Document]]] = {
    ".txt": read_text, ".md": read_text, ".jsonl": read_jsonl, ".parquet": read_parquet
}  # fmt: skip


def existing_file(path: str | Path) -> Path:
    """The path, if there is such a file."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def _not_empty(path: Path, documents: Iterator[Document]) -> Iterator[Document]:
    """Read the first document now, so that mistakes at the start of a file show at once."""
    first = next(documents, None)
    if first is None:
        raise ValueError(f"{path} is empty: there is no document in it")

    def all_of_them() -> Iterator[Document]:
        yield first
        yield from documents

    return all_of_them()


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1; what is not UTF-8 is an error that says where."""
    offset = 0
    with (gzip.open(path) if path.suffix == ".gz" else path.open("rb")) as file:
        try:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    _check_start(path, line)
                    line = line.removeprefix(b"\xef\xbb\xbf")  # some editors mark UTF-8 with these three bytes
                yield number, _decoded(path, line, number, offset)
                offset += len(line)
        except (gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path} is no gzip file, or a damaged one: {error}") from error


def _check_start(path: Path, line: bytes) -> None:
    found = _BYTE_ORDER_MARKS.get(line[:2])
    if found == "gzip":
        raise ValueError(f"{path} is packed with gzip: give it a name that ends in .gz")
    if found:
        raise ValueError(
            f"{path} is {found}, not UTF-8: convert it, for example with iconv -f {found} -t UTF-8 OLD > NEW"
        )


def _decoded(path: Path, line: bytes, number: int, offset: int) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        place = offset + error.start
        raise ValueError(
            f"{path}, line {number}: byte {place} (0x{line[error.start]:02x}) is not UTF-8 ({error.reason}). If you "
            f"know the file's encoding, convert it: iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from error


def _text(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise ValueError(f"{where}: no field {field!r}; there is {', '.join(record) or 'none'}: give one as text_field")
    if not isinstance(record[field], str):
        raise ValueError(f"{where}: field {field!r} must be a string, got {type(record[field]).__name__}")
    return record[field]


def _date(record: dict[str, Any], field: str, where: str) -> Date:
    value = record.get(field)
    try:
        return Date.fromisoformat(value)  # type: ignore[arg-type]  # what is no string is refused below
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: field {field!r} must be a date such as 2024-10-07, got {value!r}") from error
