"""Pictures of a timeline show its numbers, and say them in words."""

import io

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import Rectangle
from PIL import Image

from cme295lab.memory import MemoryTimeline
from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.units import format_bytes
from cme295lab.widgets import memory_figures
from cme295lab.widgets.memory_figures import peak_treemap, timeline_figure
from cme295lab.widgets.memory_layout import colours_of, kept_events, phase_spans, pieces_at, rectangles
from cme295lab.widgets.timeline_explorer import TimelineExplorer

CONFIG = ModelConfig(name="s", vocab_size=64, num_layers=2, dim=24, num_heads=3, mlp_dim=40, max_seq=16)


@pytest.fixture(scope="module")
def timeline() -> MemoryTimeline:
    model = DecoderLM(CONFIG)
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)
    tokens = torch.randint(CONFIG.vocab_size, (2, 9))
    with MemoryTimeline(model=model, optimizer=optimizer) as m:
        m.mark(torch.zeros(10), "my bucket")
        model.loss(tokens, tokens).backward()
        optimizer.step()
    return m


def test_pictures_are_small_and_say_the_peak(timeline: MemoryTimeline) -> None:
    for picture in (timeline_figure(timeline), peak_treemap(timeline)):
        png = picture.png()
        assert len(png) < 60_000
        assert len(Image.open(io.BytesIO(png)).convert("RGB").getcolors(2**24) or []) > 5
        assert format_bytes(timeline.peak_bytes) in picture.alt_text
    assert "optimizer state" in timeline_figure(timeline).alt_text


def test_stack_is_as_high_as_the_live_bytes(timeline: MemoryTimeline) -> None:
    axes = timeline_figure(timeline).axes[0]
    tops = [collection.get_paths()[0].vertices[:, 1].max() for collection in axes.collections]
    assert max(tops) == timeline.peak_bytes
    assert [text.get_text() for text in axes.texts if "peak" in text.get_text()] == [
        f"peak {format_bytes(timeline.peak_bytes)}"
    ]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[-1] == "weight"
    assert legend[0] == "my bucket"
    assert {"forward", "backward", "optimizer step"} <= {text.get_text() for text in axes.texts}


def test_areas_of_the_treemap_are_in_proportion(timeline: MemoryTimeline) -> None:
    axes = peak_treemap(timeline).axes[0]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    pieces = pieces_at(timeline, timeline.peak_event)
    assert sum(piece.num_bytes for piece in pieces) == timeline.peak_bytes
    area = sum(frame.get_width() * frame.get_height() for frame in frames)
    sizes: dict[str, int] = {}
    for piece in pieces:
        sizes[piece.group] = sizes.get(piece.group, 0) + piece.num_bytes
    shares = sorted(size / timeline.peak_bytes for size in sizes.values())
    drawn = sorted(frame.get_width() * frame.get_height() / area for frame in frames)
    assert drawn == pytest.approx(shares)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 9), st.integers(1, 9))
def test_rectangles_fill_the_whole_without_overlap(sizes: list[int], width: int, height: int) -> None:
    sizes = sorted(sizes, reverse=True)
    boxes = rectangles(sizes, 1, 2, width, height)
    areas = [w * h for _, _, w, h in boxes]
    assert areas == pytest.approx([size / sum(sizes) * width * height for size in sizes])
    slack = 1e-6
    for x, y, w, h in boxes:
        assert x >= 1 - slack
        assert y >= 2 - slack
        assert x + w <= 1 + width + slack
        assert y + h <= 2 + height + slack
    for number, (x, y, w, h) in enumerate(boxes):
        for left, top, wide, high in boxes[:number]:
            overlap = min(x + w, left + wide) - max(x, left), min(y + h, top + high) - max(y, top)
            assert min(overlap) < slack


def test_thinned_course_keeps_peak_and_end(timeline: MemoryTimeline) -> None:
    kept = kept_events(timeline, 40)
    assert len(kept) <= 42
    assert timeline.peak_event in kept
    assert kept[-1] == len(timeline.events) - 1
    assert kept[0] == timeline.start_event - 1
    spans = phase_spans(timeline)
    assert [name for name, _, _ in spans][-3:] == ["forward", "backward", "optimizer step"]
    assert all(first <= last for _, first, last in spans)


def test_each_class_has_a_colour_of_its_own(timeline: MemoryTimeline) -> None:
    colours = colours_of([*timeline.curve(), "offloaded", "master weight", "another"])
    assert len(set(colours.values())) == len(colours)


def test_explorer_shows_the_chosen_moment(timeline: MemoryTimeline) -> None:
    explorer = TimelineExplorer(timeline)
    assert "the peak" in repr(explorer)
    trace = explorer.map.data[0]
    assert sum(v for v, parent in zip(trace.values, trace.parents) if not parent) == timeline.peak_bytes
    last = len(timeline.events) - 1
    explorer.moment.value = last
    trace = explorer.map.data[0]
    assert sum(v for v, parent in zip(trace.values, trace.parents) if not parent) == timeline.live_bytes
    assert explorer.plot.layout.shapes[0].x0 == last
    assert f"event {last}" in explorer.children[2].value
    heights = [sum(values) for values in zip(*(line.y for line in explorer.plot.data), strict=True)]
    assert max(heights) == timeline.peak_bytes
    assert explorer.figure().alt_text == timeline_figure(timeline).alt_text
    assert format_bytes(timeline.live_bytes) in explorer.map_figure().alt_text


def test_nothing_measured_is_refused() -> None:
    with MemoryTimeline() as empty:
        pass
    for draw in (timeline_figure, peak_treemap, TimelineExplorer):
        with pytest.raises(ValueError, match="nothing to draw"):
            draw(empty)
    with MemoryTimeline() as m:
        torch.zeros(4)
    with pytest.raises(ValueError, match="nothing is alive"):
        peak_treemap(m, len(m.events) - 1)
    assert memory_figures.peak_treemap(m).alt_text
