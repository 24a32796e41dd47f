"""The explorer shows what `cache_scenario` says, after every change of a control."""

from typing import Any

import pytest

from cme295lab.units import MiB, format_bytes
from cme295lab.widgets import CacheExplorer, cache_scenario


def summary(explorer: CacheExplorer) -> str:
    return str(explorer._text.value)


def test_bars_maps_and_text_follow_the_sliders() -> None:
    explorer = CacheExplorer(tiles=16)
    for name, value in (("group", 8), ("l2_kib", 1024), ("ctas_per_sm", 2), ("tiles", 12)):
        explorer.controls[name].value = value
    expected = cache_scenario(tiles=12, group=8, ctas_per_sm=2, l2_bytes=MiB, device="A100-80GB-SXM")
    assert explorer.scenario == expected
    bars, a, b, c = explorer.plot.data
    values = [expected.requested_bytes, expected.hit_bytes, expected.dram_read_bytes, expected.distinct_bytes]
    assert list(bars.x) == values
    assert list(bars.text) == [format_bytes(value) for value in values]
    assert (a.z == expected.a_reads).all()
    assert (b.z == expected.b_reads).all()
    assert (c.z == expected.hit_share).all()
    assert f"<b>{format_bytes(expected.dram_read_bytes)} from DRAM" in summary(explorer)


def test_the_map_of_c_shows_which_programs_run_together() -> None:
    explorer = CacheExplorer(tiles=16)
    explorer.controls["show"].value = "which run together"
    assert (explorer.plot.data[3].z == explorer.scenario.start).all()
    assert explorer.scenario.start.max() == 2  # 256 programs, 108 at a time
    assert "wave" in explorer.plot.data[3].hovertemplate


def test_another_gpu_runs_another_number_of_programs() -> None:
    explorer = CacheExplorer(tiles=16)
    explorer.controls["device"].value = "T4"
    assert explorer.scenario.num_running == 40
    assert "The first 40 programs run together" in summary(explorer)


def test_figure_is_a_small_picture_that_says_the_bytes_in_words() -> None:
    explorer = CacheExplorer(tiles=16, group=4)
    picture = explorer.figure()
    assert len(picture.png()) < 60_000
    assert format_bytes(explorer.scenario.dram_read_bytes) in picture.alt_text
    assert "groups of 4 rows" in picture.alt_text


def test_widget_has_a_view_and_a_line_of_text() -> None:
    data: Any = CacheExplorer(tiles=8)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"].startswith("CacheExplorer(1024 × 1024 times 1024 × 1024 in float16, row by row, 108")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tiles": 9}, "tiles must be one of 8, 12, .*, got 9"),
        ({"group": 5}, "group must be one of 1, 2, .*, got 5"),
        ({"l2_mib": 3}, "l2_kib must be one of 128, .*, got 3072"),
        ({"device": "A1000"}, "unknown device"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CacheExplorer(**arguments)
