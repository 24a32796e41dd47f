import gzip
import json
import tracemalloc
from datetime import date

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from cme295lab.pretraining.corpora import read_documents, read_jsonl, read_parquet, read_text

TEXTS = ["one\ntwo", "Größe 日本 🙂", "  spaces  ", "a" * 5000]


@pytest.mark.parametrize("name", ["own.jsonl", "own.jsonl.gz"])
def test_json_lines_come_back(tmp_path, name):
    path = tmp_path / name
    records = [json.dumps({"text": text, "id": 1}, ensure_ascii=len(text) % 2 == 0) for text in TEXTS]
    lines = "\n".join(records) + "\n"
    path.write_bytes(gzip.compress(lines.encode()) if name.endswith("gz") else lines.encode())
    documents = list(read_documents(path, domain="mine"))
    assert [document.text for document in documents] == TEXTS
    assert [document.source for document in documents] == [f"{name}:{number}" for number in (1, 2, 3, 4)]
    assert {document.domain for document in documents} == {"mine"}


@pytest.mark.parametrize("rows_in_memory", [1, 3, 1000])
def test_parquet_comes_back(tmp_path, rows_in_memory):
    path = tmp_path / "own.parquet"
    parquet.write_table(arrow.table({"id": range(4), "words": TEXTS}), path, row_group_size=2)
    documents = list(read_parquet(path, text_field="words", rows_in_memory=rows_in_memory))
    assert [document.text for document in documents] == TEXTS
    assert documents[3].source == "own.parquet:3"


@pytest.mark.parametrize("name", ["own.txt", "own.md", "own.txt.gz"])
def test_a_text_file_is_one_document(tmp_path, name):
    path = tmp_path / name
    data = "\n".join(TEXTS).encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (document,) = read_documents(path)
    assert document.text == "\n".join(TEXTS)


def test_a_line_may_stand_between_documents(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\ufefffirst\nstill first\n---\n---\nsecond\n", encoding="utf-8")
    documents = list(read_text(path, separator="---"))
    assert [(d.text, d.source) for d in documents] == [("first\nstill first\n", "own.txt:1"), ("second\n", "own.txt:5")]


def test_dates_are_read(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"body": "x", "on": "2024-10-07"}\n\n')
    (document,) = read_jsonl(path, text_field="body", date_field="on")
    assert document.date == date(2024, 10, 7)


def test_a_large_file_takes_little_memory(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps({"text": "word " * 2000}) + "\n"
    with path.open("w") as file:
        file.writelines(line for _ in range(2000))
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    count = sum(1 for _ in read_jsonl(path))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak_bytes < 1e6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b'{"text": "ok"}\n{"text": 3}\n', "line 2: field 'text' must be a string, got int"),
        (b'{"text": "ok"}\n{"body": "x", "id": 1}\n', "line 2: no field 'text'; there is body, id"),
        (b'{"text": "ok"}\n{"text": \n', "line 2, column 9: not JSON"),
        (b'{"text": "ok"}\n[1]\n', "line 2: must be a JSON object, got list"),
        (b'{"text": "ok"}\n{"text": "caf\xe9"}\n', r"line 2: byte 28 \(0xe9\) is not UTF-8 .*iconv -f LATIN1"),
        ('{"text": "ok"}'.encode("utf-16"), "is UTF-16, not UTF-8: .*iconv -f UTF-16"),
        (gzip.compress(b'{"text": "ok"}'), "packed with gzip: give it a name that ends in .gz"),
    ],
    ids=["empty", "blank", "number", "no field", "no json", "list", "latin-1", "utf-16", "gzip"],
)
def test_json_lines_refuse(tmp_path, data, message):
    path = tmp_path / "own.jsonl"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"own.jsonl.*{message}"):
        list(read_jsonl(path))


def test_mistakes_at_the_start_show_at_the_call(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"ok \xff")
    with pytest.raises(ValueError, match=r"own.txt, line 1: byte 3 \(0xff\) is not UTF-8"):
        read_text(path)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.txt"):
        read_text(tmp_path / "missing.txt")
    with pytest.raises(ValueError, match=r"must end in one of .txt, .md, .jsonl, .parquet"):
        read_documents(tmp_path / "own.csv")
    with pytest.raises(ValueError, match="separator must be one line"):
        read_text(path, separator="a\nb")


def test_dates_refuse(tmp_path):
    path = tmp_path / "own.jsonl"
    for value in ('"yesterday"', "7", "null"):
        path.write_text(f'{{"text": "x", "on": {value}}}\n')
        with pytest.raises(ValueError, match="line 1: field 'on' must be a date such as 2024-10-07"):
            read_jsonl(path, date_field="on")


def test_damaged_gzip_is_refused(tmp_path):
    path = tmp_path / "own.txt.gz"
    path.write_bytes(gzip.compress(b"words " * 10000)[:40])
    with pytest.raises(ValueError, match="no gzip file, or a damaged one"):
        list(read_documents(path))


def test_parquet_refuses(tmp_path):
    path = tmp_path / "own.parquet"
    parquet.write_table(arrow.table({"text": ["a", None], "id": [1, 2]}), path)
    with pytest.raises(ValueError, match="no column 'body'; it has text, id"):
        read_parquet(path, text_field="body")
    with pytest.raises(ValueError, match="column 'id' must hold text, got int64"):
        read_parquet(path, text_field="id")
    with pytest.raises(ValueError, match=r"own\.parquet, row 1: column 'text' has no value"):
        list(read_parquet(path))
    with pytest.raises(ValueError, match="rows_in_memory must be positive"):
        read_parquet(path, rows_in_memory=0)
    parquet.write_table(arrow.table({"text": arrow.array([], arrow.string())}), path)
    with pytest.raises(ValueError, match="is empty"):
        read_parquet(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match="is not a Parquet file, or a damaged one"):
        read_parquet(path)
