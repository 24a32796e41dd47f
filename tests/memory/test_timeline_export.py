"""A timeline as text, as a page, and as a file that PyTorch's own viewers read."""

import base64
import itertools
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.cuda import _memory_viz

from cme295lab.memory import MemoryTimeline
from cme295lab.memory.measurement.snapshot import memory_snapshot


@pytest.fixture
def timeline() -> MemoryTimeline:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    with MemoryTimeline(model=model) as m:
        model(torch.zeros(5, 8)).square().mean().backward()
        grown = torch.zeros(3)
        grown.resize_(700)
    return m


def test_snapshot_is_read_by_pytorchs_viewers(timeline: MemoryTimeline, tmp_path: Path) -> None:
    path = tmp_path / "step.pickle"
    timeline.save_snapshot(path)
    snapshot = pickle.loads(path.read_bytes())
    segments = _memory_viz.segsum(snapshot)
    assert f"segments: {len(snapshot['segments'])}" in segments
    assert f"total_allocated: {_memory_viz.Bytes(timeline.live_bytes)}" in segments
    assert "2.7KiB" in _memory_viz.trace(snapshot) or "= MEM[" in _memory_viz.trace(snapshot)
    flames = _memory_viz.memory(snapshot, format_flamegraph=lambda lines: lines)
    assert sum(int(line.rpartition(" ")[2]) for line in flames.splitlines()) == timeline.live_bytes
    assert re.search(r"gradient:0:0 0\.weight aten\.mm\.default 512$", flames, re.MULTILINE)
    page = _memory_viz.trace_plot(snapshot)
    embedded = json.loads(re.search(r"local_files = (\[.*\])", page)[1])
    assert pickle.loads(base64.b64decode(embedded[0]["base64"])) == snapshot


def test_snapshot_replays_to_the_same_peak_and_end(timeline: MemoryTimeline) -> None:
    snapshot = memory_snapshot(timeline.events)
    (trace,) = snapshot["device_traces"]
    alive: dict[int, int] = {}
    highest = 0
    for entry in trace:
        if entry["action"] == "alloc":
            assert entry["addr"] not in alive
            alive[entry["addr"]] = entry["size"]
        elif entry["action"] == "free_completed":
            assert alive.pop(entry["addr"]) == entry["size"]
        highest = max(highest, sum(alive.values()))
    assert highest == timeline.peak_bytes
    assert sum(alive.values()) == timeline.live_bytes
    assert {s["address"] for s in snapshot["segments"]} == set(alive)
    assert {e["category"] for e in trace if e["action"] == "alloc"} >= {"weight", "gradient", "activation"}


def test_blocks_of_a_snapshot_do_not_overlap(timeline: MemoryTimeline) -> None:
    (trace,) = memory_snapshot(timeline.events)["device_traces"]
    spans = sorted((e["addr"], e["addr"] + e["size"]) for e in trace if e["action"] == "alloc")
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


def test_text_says_peak_classes_and_largest(timeline: MemoryTimeline) -> None:
    text = str(timeline)
    assert f"{timeline.peak_bytes:,} bytes" in text
    assert "weight" in text
    assert re.search(r"largest .*weight, 0\.weight +512 B", text)


def test_page_escapes_what_it_shows() -> None:
    with MemoryTimeline() as m:
        m.mark(torch.zeros(3), "<script>")
    assert "<script>" not in m._repr_html_()
    assert "&lt;script&gt;" in m._repr_html_()
