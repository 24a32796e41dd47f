"""The tile walk shows the real kernel's recorded run: its tiles, its bytes and its running softmax."""

import json
import math
from typing import Any

import pytest
import torch
from traitlets import TraitError

from cme295lab import simulator
from cme295lab.attention import flash_attention
from cme295lab.units import format_bytes
from cme295lab.widgets import TileWalk, WatchedNames
from cme295lab.widgets.tile_walk import record_launch
from tests.widgets.fake_launch import FakeLaunch

FLOAT32_ABS = 2e-6  # the kernel's running maximum and sum are fp32; the reference is computed in fp64


def fake_walk(**options: Any) -> TileWalk:
    return TileWalk(launch=FakeLaunch(**({"seq": 128, "head_dim": 32, "block": 32, "causal": True} | options)))


@pytest.mark.parametrize(
    ("seq", "block_m", "block_n", "causal"), [(128, 32, 32, True), (128, 32, 16, False), (80, 32, 16, True)]
)
def test_real_kernel_leaves_the_log_sum_exp_of_its_scores(seq: int, block_m: int, block_n: int, causal: bool) -> None:
    walk = TileWalk(seq=seq, head_dim=32, block_m=block_m, block_n=block_n, causal=causal, seed=3)
    generator = torch.Generator().manual_seed(3)
    q, k = (torch.randn(1, 1, seq, 32, generator=generator).half().double()[0, 0] for _ in range(2))
    scores = q @ k.T / math.sqrt(32)
    if causal:
        scores = scores.masked_fill(~torch.ones(seq, seq, dtype=torch.bool).tril(), -math.inf)
    expected = scores.logsumexp(1)
    assert len(walk.records) == math.ceil(seq / block_m)
    for record in walk.records:
        last = record.steps[-1]
        assert last.row_max is not None
        assert last.row_sum is not None
        shown = [m + math.log(l_sum) for m, l_sum in zip(last.row_max, last.row_sum, strict=True)]
        assert shown == pytest.approx(expected[list(record.sampled_rows)].tolist(), abs=FLOAT32_ABS)


def test_real_kernel_visits_each_causal_tile_once_and_its_bytes_are_those_of_the_trace() -> None:
    q, k, v = (torch.randn(1, 2, 128, 32).half() for _ in range(3))
    with simulator.trace(device="H100", record=True, watch=tuple(WatchedNames())) as trace:
        flash_attention(q, k, v, causal=True, block_m=32, block_n=32)
    walk = TileWalk.from_trace(trace)
    assert walk.device.name == "H100-SXM5"
    assert [record.program for record in walk.records] == [(x, y, 0) for y in range(2) for x in range(4)]
    for record in walk.records:
        assert record.visited == tuple((first, first + 32) for first in range(0, record.query_rows[1], 32))
    last = walk.records[-1]
    assert last.read_bytes_before + last.steps[-1].read_bytes == trace.read_bytes
    assert last.written_bytes_before + last.steps[-1].written_bytes == trace.written_bytes
    assert TileWalk.from_trace(trace.launches[0]).records == walk.records


def test_every_step_shows_a_line_of_the_kernel_that_does_what_it_says() -> None:
    launch = record_launch(64, 16, 32, 32, True, 0, fake_walk().device)
    for step in TileWalk(launch=launch).records[1].steps:
        if step.kind in ("load", "store"):
            assert f"tl.{step.kind}({step.name}_ptrs" in step.source
        elif step.name == "rescale":
            assert step.source.startswith("rescale = tl.exp2(")


def test_payload_is_plain_json_and_small() -> None:
    walk = fake_walk()
    assert len(json.dumps(walk.walk, allow_nan=False)) < 60_000
    assert len(walk.walk["programs"]) == 4
    first = walk.walk["programs"][0]["steps"][3]
    assert first["caption"] == "Load K rows 0 to 31 from HBM: 2.05 kB"
    assert first["row_max"] == ["−∞"] * 4
    assert first["meters"][0][1] == "4.1 kB, all programs 4.1 kB"
    assert first["meters"][2][1] == "4 KiB of 163 KiB"


def test_meters_of_the_last_step_show_the_totals() -> None:
    walk = fake_walk()
    (read, read_text), (written, _), _ = walk.walk["programs"][-1]["steps"][-1]["meters"]
    assert read + written == pytest.approx(1)
    tiles = 4 + 10 + 10  # of Q, of K and of V
    assert read_text.endswith(f"all programs {format_bytes(tiles * 32 * 32 * 2)}")


def test_step_and_program_can_be_set_and_are_checked() -> None:
    walk = fake_walk()
    walk.program, walk.step = 3, 24
    for name, value in (("program", 4), ("program", -1), ("step", 25)):
        with pytest.raises((ValueError, TraitError), match=f"{name} must be from 0 to"):
            setattr(walk, name, value)


def test_figure_shows_the_step_asked_for_in_words_and_in_a_small_picture() -> None:
    walk = fake_walk()
    picture = walk.figure(program=1, step=3)
    assert "Program 2 of 4, step 4 of 15, queries 32 to 63, at the tile of keys 0 to 31." in picture.alt_text
    assert "Load K rows 0 to 31 from HBM" in picture.alt_text
    assert len(picture.png()) < 60_000
    assert "Compute the rescaling factor α" in walk.figure().alt_text
    with pytest.raises(ValueError, match="program must be from 0 to 3, got 4"):
        walk.figure(program=4)
    with pytest.raises(ValueError, match="step must be from 0 to 9, got 10"):
        walk.figure(program=0, step=10)


def test_widget_has_a_view_and_a_line_of_text() -> None:
    bundle = fake_walk()._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"] == "TileWalk(forward_kernel, 4 programs, 49.2 kB read, 8.7 kB written)"


def test_a_trace_without_attention_is_refused_and_says_what_it_holds() -> None:
    with simulator.trace(record=True) as trace:
        pass
    with pytest.raises(ValueError, match="no flash-attention launch; its launches: none"):
        TileWalk.from_trace(trace)


def test_too_long_a_run_is_refused_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"steps, more than the 6000 .* larger blocks"):
        fake_walk(seq=1024, head_dim=16, block=16)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq": 0}, "seq must be at least 1, got 0"),
        ({"block_m": 24}, "block_m must be a power of two"),
        ({"block_n": 8}, "block_n must be a power of two"),
        ({"device": "A1000"}, "unknown device 'A1000'"),
        ({"head_dim": 0}, "head_dim must be at least 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TileWalk(**arguments)
