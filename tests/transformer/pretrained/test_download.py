"""Downloads from a real server: resumed, checked, interrupted, and a file under its name only when it is complete."""

import hashlib
import subprocess
import sys
import time

import numpy as np
import pytest

from cme295lab.transformer.pretrained.download import FetchError, download, part_of
from tests.transformer.pretrained.server import Served, serve

CONTENT = np.random.default_rng(0).bytes(700_001)
EXPECTED = {"size_bytes": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest(), "progress": False}


@pytest.fixture
def server():
    with serve(Served(CONTENT)) as served:
        yield served


@pytest.fixture
def target(tmp_path):
    return tmp_path / "model.gguf"


def files(target):
    return sorted(path.name for path in target.parent.iterdir())


def test_file_arrives_whole_and_leaves_no_part(server, target):
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT
    assert files(target) == ["model.gguf"]
    assert server.asked == [("/file", None)]


def test_broken_connections_are_continued_where_they_broke(server, target):
    server.break_after = [300_000, 0, 50_000]
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-", "bytes=300000-", "bytes=350000-"]


def test_part_of_an_earlier_run_is_continued(server, target):
    part_of(target).write_bytes(CONTENT[:123_456])
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/file", "bytes=123456-")]


def test_redirect_keeps_the_range(server, target):
    part_of(target).write_bytes(CONTENT[:10])
    download(server.url + "/moved", target, **EXPECTED)
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/moved", "bytes=10-"), ("/file", "bytes=10-")]


def test_complete_part_needs_no_server(target):
    part_of(target).write_bytes(CONTENT)
    download("http://127.0.0.1:1/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_server_without_ranges_sends_all_of_it_again(server, target):
    server.ranges = False
    part_of(target).write_bytes(b"x" * 1000)
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_part_that_is_too_long_is_started_over(server, target):
    part_of(target).write_bytes(CONTENT + b"more")
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_server_that_names_no_length_is_believed_in_the_end_only(server, target):
    server.content_length = False
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_bar_counts_from_what_was_there(server, target, capfd):
    part_of(target).write_bytes(CONTENT[:350_000])
    download(server.url + "/file", target, **EXPECTED | {"progress": True})
    error = capfd.readouterr().err
    assert "50%" in error
    assert "100%" in error
    assert "700k" in error


def test_bytes_that_are_wrong_are_deleted(server, target):
    part_of(target).write_bytes(b"x" + CONTENT[1:1000])
    with pytest.raises(FetchError, match=r"is not the file it should be: its SHA-256 is [0-9a-f]{64}, expected"):
        download(server.url + "/file", target, **EXPECTED)
    assert files(target) == []
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT


def test_connection_that_keeps_breaking_leaves_a_part_that_is_continued(server, target):
    server.break_after = [100_000, 100_000]
    with pytest.raises(FetchError, match=r"broke .*, 2 times; 200000 of 700001 bytes are here, and the same command"):
        download(server.url + "/file", target, num_attempts=2, **EXPECTED)
    assert files(target) == ["model.gguf.part"]
    assert part_of(target).read_bytes() == CONTENT[:200_000]
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "have", "message"),
    [
        ({"content": CONTENT[:-1]}, 0, "has 700000 bytes, and the file should have 700001: it is another file"),
        ({"content": CONTENT + b"x"}, 5, "asked for what follows byte 5 of 700001, .*'bytes 5-700001/700002'"),
        ({"content_range": "bytes 0-1/2"}, 5, "the server answered with 'bytes 0-1/2'"),
        ({"content_range": "nonsense"}, 5, "the server answered with 'nonsense'"),
        ({"content": CONTENT + b"x", "content_length": False}, 0, "more bytes than the file should have"),
    ],
    ids=["shorter", "longer", "another range", "nonsense", "longer, without a length"],
)
def test_other_file_on_the_server_is_noticed(server, target, change, have, message):
    for name, value in change.items():
        setattr(server, name, value)
    if have:
        part_of(target).write_bytes(CONTENT[:have])
    with pytest.raises(FetchError, match=message):
        download(server.url + "/file", target, **EXPECTED)
    assert not target.exists()


def test_missing_file_and_missing_server_are_named(server, target):
    with pytest.raises(FetchError, match=r"/missing: the server says 404 Not Found"):
        download(server.url + "/missing", target, **EXPECTED)
    with pytest.raises(FetchError, match=r"cannot be reached: .*Is there a network"):
        download("http://127.0.0.1:1/file", target, **EXPECTED)
    with pytest.raises(FetchError, match=r"file:///etc/passwd is not an address on the web"):
        download("file:///etc/passwd", target, **EXPECTED)
    assert files(target) == []


def test_killed_download_leaves_a_part_that_is_continued(server, target):
    """A real process, killed while it waits for more: nothing tidies up behind it."""
    server.break_after = [400_000]
    server.content_length = False
    script = (
        "import sys, time; from pathlib import Path\n"
        "from cme295lab.transformer.pretrained import download as module\n"
        "module._BrokenConnectionError = type('Never', (Exception,), {})\n"
        "real = module._pieces\n"
        "def pieces(response):\n"
        "    yield from real(response)\n"
        "    print('waiting', flush=True); time.sleep(60)\n"
        "module._pieces = pieces\n"
        f"module.download({server.url + '/file'!r}, Path({str(target)!r}), **{EXPECTED!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "waiting\n"
        deadline = time.monotonic() + 10
        while not part_of(target).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    arrived = part_of(target).stat().st_size
    assert 0 < arrived <= 400_000
    assert files(target) == ["model.gguf.part"]
    download(server.url + "/file", target, **EXPECTED)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file", f"bytes={arrived}-")
