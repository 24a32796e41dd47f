"""Pictures of data parallelism show the numbers that they are given, and say them in words."""

import io
from typing import Any

import pytest
from PIL import Image

from cme295lab.units import format_bytes
from cme295lab.widgets.parallel_figures import BackwardTrace, backward_traces, held_bars, rank_bars, time_lines
from cme295lab.widgets.picture import Picture

NAIVE = BackwardTrace(label="naive", gradients_s=(0.1, 0.2, 0.3), sends=((0.31, 8e6), (0.35, 2e6)), end_s=0.4)
BUCKETED = BackwardTrace(label="bucketed", gradients_s=(0.1, 0.2, 0.3), sends=((0.2, 6e6), (0.3, 4e6)), end_s=0.32)
HELD = {"plain": {"weight": 4e6, "gradient": 4e6}, "sharded": {"weight": 4e6, "gradient": 1e6}}
SENT = {"plain": {"gradients": 6e6}, "sharded": {"gradients": 3e6, "weights": 3e6, "my own": 1e6}}


def is_small_and_colourful(picture: Picture) -> bool:
    png = picture.png()
    colours = Image.open(io.BytesIO(png)).convert("RGB").getcolors(2**24) or []
    return len(png) < 60_000 and len(colours) > 5


def _tops(axes: Any) -> list[float]:
    """How high the stacks at 0 and 1 are."""
    return [
        max(bar.get_y() + bar.get_height() for bar in axes.patches if abs(bar.get_center()[0] - at) < 0.1)
        for at in (0, 1)
    ]


def test_traces_put_gradients_and_messages_where_they_happened() -> None:
    picture = backward_traces([NAIVE, BUCKETED])
    axes = picture.axes[0]
    marks = [line.get_xdata().tolist() for line in axes.lines if len(line.get_xdata())]
    assert marks == [pytest.approx([100, 200, 300])] * 2
    triangles = [points.get_offsets() for points in axes.collections if len(points.get_offsets())]
    assert [list(offsets[:, 0]) for offsets in triangles] == [pytest.approx([310, 350]), pytest.approx([200, 300])]
    sizes = [points.get_sizes() for points in axes.collections if len(points.get_offsets())]
    assert sizes[0][0] > sizes[1][0] > sizes[0][1]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert bars == [pytest.approx(pair) for pair in ((0, 300), (300, 400), (0, 300), (300, 320))]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["naive", "bucketed"]
    assert is_small_and_colourful(picture)


def test_traces_say_how_many_messages_started_early() -> None:
    assert (NAIVE.num_early, BUCKETED.num_early) == (0, 1)
    text = backward_traces([NAIVE, BUCKETED]).alt_text
    assert "naive: 2 messages, 0 of them started before the last gradient" in text
    assert "bucketed: 2 messages, 1 of them" in text
    assert "400 ms" in text


def test_impossible_traces_are_refused() -> None:
    with pytest.raises(ValueError, match=r"end_s of 'x' must not lie before 0.5 s"):
        BackwardTrace(label="x", gradients_s=(0.1,), sends=((0.5, 1.0),), end_s=0.4)
    with pytest.raises(ValueError, match="gradients_s of 'x'"):
        BackwardTrace(label="x", gradients_s=(), sends=(), end_s=0.4)
    with pytest.raises(ValueError, match="at least one BackwardTrace"):
        backward_traces([])


def test_rank_bars_stack_to_the_sums_and_mark_the_formula() -> None:
    picture = rank_bars(HELD, SENT, formula_bytes=[8e6, 5.5e6])
    memory, traffic = picture.axes
    assert _tops(memory) == [8e6, 5e6]
    assert _tops(traffic) == [6e6, 7e6]
    assert [line.get_ydata()[0] for line in memory.lines] == [8e6, 5.5e6]
    texts = [text.get_text() for text in memory.texts]
    assert format_bytes(8e6) in texts
    assert format_bytes(5e6) in texts
    assert len({bar.get_facecolor() for bar in traffic.patches}) == 3
    assert "sharded: a rank holds weight 4 MB, gradient 1 MB, and sends gradients 3 MB" in picture.alt_text
    assert is_small_and_colourful(picture)


def test_held_bars_name_what_is_too_small_to_be_labelled_in_words_only() -> None:
    picture = held_bars({"a": {"weight": 1e9, "gradient": 1e6}, "b": {"weight": 2e9}}, title="two")
    labels = [text.get_text() for text in picture.axes[0].texts if text.get_text()]
    assert sorted(labels) == sorted(["1 GB", "2 GB", format_bytes(1.001e9), "2 GB"])
    assert "gradient 1 MB" in picture.alt_text
    assert is_small_and_colourful(picture)


def test_bars_of_other_or_no_strategies_are_refused() -> None:
    with pytest.raises(ValueError, match="same strategies"):
        rank_bars(HELD, {"plain": {}}, formula_bytes=[1, 2])
    with pytest.raises(ValueError, match="1 numbers"):
        rank_bars(HELD, SENT, formula_bytes=[1])
    with pytest.raises(ValueError, match="got none"):
        held_bars({})


def test_time_lines_cross_where_they_are_said_to() -> None:
    lines = {"ring": {1e3: 1e-3, 1e6: 2e-3, 1e9: 1.0}, "tree": {1e9: 3.0, 1e3: 1e-4, 1e6: 2e-3}}
    picture = time_lines(lines, title="an all-reduce", mark_bytes=1e6)
    ring, tree, mark = picture.axes[0].lines
    assert list(ring.get_ydata()) == [1e-3, 2e-3, 1.0]
    assert list(tree.get_xdata()) == [1e3, 1e6, 1e9]
    assert set(mark.get_xdata()) == {1e6}
    assert ring.get_linestyle() != tree.get_linestyle()
    assert "tree: 100 µs for 1 kB, 3 s for 1 GB" in picture.alt_text
    assert "cross at 1 MB" in picture.alt_text
    assert "cross" not in time_lines(lines).alt_text
    assert is_small_and_colourful(picture)
    for wrong in ({}, {"ring": {0: 1.0}}, {"ring": {1.0: 0.0}}):
        with pytest.raises(ValueError, match="positive bytes and seconds"):
            time_lines(wrong)
