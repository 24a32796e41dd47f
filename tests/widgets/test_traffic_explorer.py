"""The explorer shows what `traffic_scenario` says, after every change of a control."""

from typing import Any

import pytest

from cme295lab.units import KiB, format_bytes
from cme295lab.widgets import TrafficExplorer, traffic_scenario
from cme295lab.widgets.traffic_text import headline


def shown_bytes(explorer: TrafficExplorer) -> list[str]:
    return list(explorer.plot.data[0].text)


def summary(explorer: TrafficExplorer) -> str:
    return str(explorer._text.value)


def test_bars_text_and_points_follow_a_slider() -> None:
    explorer = TrafficExplorer(seq=1024, head_dim=64, num_heads=16)
    explorer.controls["seq"].value = 4096
    expected = traffic_scenario(seq=4096, head_dim=64, num_heads=16, sram_bytes=192 * KiB)
    assert explorer.scenario == expected
    assert shown_bytes(explorer) == [format_bytes(value) for value in expected.bars.values()]
    assert list(explorer.plot.data[0].x) == list(expected.bars.values())
    assert explorer.plot.data[3].x[0] == pytest.approx(expected.standard.intensity)
    assert explorer.plot.data[4].x[0] == pytest.approx(expected.flash.intensity)
    assert format_bytes(expected.flash.num_bytes) in summary(explorer)
    assert headline(expected) in summary(explorer)


def test_switches_reach_the_scenario() -> None:
    explorer = TrafficExplorer()
    for name, value in (("causal", True), ("backward", True), ("dtype", "fp32"), ("block_m", 64), ("block_n", 32)):
        explorer.controls[name].value = value
        assert getattr(explorer.scenario, name) == value
    explorer.controls["log"].value = True
    assert explorer.plot.layout.xaxis.type == "log"


def test_another_device_brings_its_sram_its_formats_and_its_roof() -> None:
    explorer = TrafficExplorer(dtype="bf16")
    explorer.controls["device"].value = "T4"  # it has no bf16
    assert explorer.controls["dtype"].value == "fp16"
    assert "bf16" not in explorer.controls["dtype"].options
    assert explorer.scenario.sram_bytes == 96 * KiB
    assert explorer.plot.data[2].x[0] == pytest.approx(203.1, abs=0.1)
    assert "65 TFLOP/s, 320 GB/s" in explorer.plot.layout.annotations[1].text
    explorer.controls["device"].value = "H100-SXM5"
    assert list(explorer.controls["dtype"].options) == ["fp32", "fp16", "bf16"]
    assert explorer.scenario.sram_bytes == 256 * KiB


def test_verdict_says_when_blocks_do_not_fit_with_the_formula() -> None:
    explorer = TrafficExplorer(head_dim=128, block_m=256, block_n=256)
    assert "<b>Does not fit.</b> Tiles (BLOCK_M + 2 BLOCK_N) d × 2 B = <b>192 KiB of 163 KiB</b>" in summary(explorer)
    assert "= <b>386 KiB of 256 KiB</b> of registers" in summary(explorer)
    explorer.controls["block_m"].value, explorer.controls["block_n"].value = 64, 64
    assert "<b>Fits.</b>" in summary(explorer)


def test_headline_admits_when_flash_moves_more() -> None:
    assert "fewer" in headline(traffic_scenario(seq=1024, head_dim=64))
    assert "more bytes: blocks too small" in headline(traffic_scenario(seq=1024, head_dim=64, block_m=16, block_n=16))


def test_figure_is_a_small_picture_that_says_the_bytes_in_words() -> None:
    explorer = TrafficExplorer()
    picture = explorer.figure()
    assert len(picture.png()) < 60_000
    assert format_bytes(explorer.scenario.standard.num_bytes) in picture.alt_text
    assert [bar.get_width() for bar in picture.axes[0].patches] == list(explorer.scenario.bars.values())


def test_widget_has_a_view_and_a_line_of_text() -> None:
    data: Any = TrafficExplorer()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"].startswith(
        "TrafficExplorer(N=1024, d=64, 1024 heads, fp16, A100-80GB-SXM: standard 9.13 GB"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq": 1000}, "seq must be one of 64, 128, .*, got 1000"),
        ({"block_m": 48}, "block_m must be one of 16, 32, 64, 128, 256, got 48"),
        ({"device": "A1000"}, "unknown device"),
        ({"device": "T4", "dtype": "bf16"}, "dtype must be one of fp32, fp16, got 'bf16'"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrafficExplorer(**arguments)
