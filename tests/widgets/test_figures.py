"""Static figures are small, say in words what they show, and refuse what they cannot draw."""

import io
import runpy
from itertools import product
from pathlib import Path

import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from PIL import Image

from cme295lab.hardware import DEVICES
from cme295lab.widgets.figures import RooflinePoint, block_size_map, memory_hierarchy, roofline, traffic_bars
from cme295lab.widgets.picture import Picture

MAX_PNG_BYTES = 60_000
POINTS = [
    RooflinePoint(label="standard", flops=825e9, num_bytes=40e9),
    RooflinePoint(label="flash", flops=925e9, num_bytes=4.4e9),
    RooflinePoint(label="measured", flops=925e9, num_bytes=4.4e9, seconds=7.3e-3),
]
SIZES = (16, 32, 64, 128, 256)


def all_pictures() -> dict[str, Picture]:
    sweep = {(m, n): 4e6 * 64 / m + 1e6 for m, n in product(SIZES, SIZES)}
    bars = {"formula": {"standard": 40.27e9, "flash": 4.1e9}, "counted": {"standard": 40.3e9, "flash": 4.38e9}}
    return {
        "hierarchy": memory_hierarchy("H100"),
        "bars": traffic_bars(bars, title="Forward and backward"),
        "log bars": traffic_bars(bars, log=True),
        "roofline": roofline(POINTS, "A100", "bf16"),
        "map": block_size_map(sweep, {key: key[0] * key[1] <= 2**14 for key in sweep}, title="Forward"),
    }


@pytest.mark.parametrize("name", ["hierarchy", "bars", "log bars", "roofline", "map"])
def test_picture_is_a_small_png_with_a_text_alternative(name: str) -> None:
    picture = all_pictures()[name]
    assert isinstance(picture, Figure)
    png = picture.png()
    assert len(png) < MAX_PNG_BYTES
    image = Image.open(io.BytesIO(png))
    assert 1000 < image.width < 2000
    assert len(image.convert("RGB").getcolors(2**24) or []) > 3  # something is drawn
    assert len(picture.alt_text) > 60


def test_notebook_shows_the_png_with_alt_text_and_half_the_pixel_width() -> None:
    picture = memory_hierarchy("A100")
    data, metadata = DisplayFormatter().format(picture)
    assert data["text/plain"] == picture.alt_text
    assert set(data) == {"image/png", "text/plain"}
    assert metadata["image/png"] == {"alt": picture.alt_text, "width": round(picture.get_figwidth() * 96)}


@pytest.mark.parametrize("name", DEVICES)
def test_hierarchy_names_the_kind_of_memory_of_every_device(name: str) -> None:
    text = memory_hierarchy(name).alt_text
    assert name in text
    assert f"{DEVICES[name].memory_kind}: " in text


def test_hierarchy_of_the_a100_says_what_the_data_sheet_says() -> None:
    text = memory_hierarchy("A100").alt_text
    assert "SRAM: 192 KiB × 108 SMs = 20.25 MiB, 19.5 TB/s" in text
    assert "L2 cache: 40 MiB, 7.22 TB/s" in text
    assert "L2 cache: 50 MiB, not published" in memory_hierarchy("H100").alt_text


def test_bars_have_the_lengths_that_were_given() -> None:
    axes = traffic_bars({"formula": {"a": 1e6, "b": 2e6}, "counted": {"a": 3e6}}).axes[0]
    assert sorted(bar.get_width() for bar in axes.patches) == [1e6, 2e6, 3e6]
    assert [text.get_text() for text in axes.texts] == ["1 MB", "2 MB", "3 MB"]


def test_an_empty_series_is_left_out() -> None:
    picture = traffic_bars({"formula": {"a": 1e6}, "counted": {}})
    assert len(picture.axes[0].patches) == 1
    assert "counted" not in picture.alt_text


def test_roofline_places_points_on_the_roof_or_at_the_measured_rate() -> None:
    picture = roofline(POINTS, "A100", "fp16")
    positions = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in picture.axes[0].lines[2:]}
    assert positions["standard: 20.6 FLOP/B"] == pytest.approx((20.625, 20.625 * 2039e9))
    assert positions["flash: 210 FLOP/B"] == pytest.approx((925 / 4.4, 312e12))
    assert positions["measured: 210 FLOP/B"] == pytest.approx((925 / 4.4, 925e9 / 7.3e-3))
    assert "standard at 20.6 FLOP per byte, limited by memory; flash at 210 FLOP per byte, limited by arithmetic" in (
        picture.alt_text
    )


def test_map_names_the_best_choice_that_fits_and_those_that_do_not() -> None:
    values = {(16, 16): 4e6, (16, 32): 3e6, (32, 16): 2e6, (32, 32): 1e6}
    text = block_size_map(values, {key: key != (32, 32) for key in values}).alt_text
    assert "Least traffic that fits: BLOCK_M 32, BLOCK_N 16, 2 MB." in text
    assert "Does not fit: 32 by 32." in text


def test_map_of_equal_values_or_without_a_fit_can_be_drawn() -> None:
    picture = block_size_map({(16, 16): 5.0}, {(16, 16): False})
    assert "Does not fit: 16 by 16." in picture.alt_text
    assert picture.png()


@pytest.mark.parametrize(
    "make",
    [
        lambda: traffic_bars({}),
        lambda: traffic_bars({"formula": {"a": 0.0}}, log=True),
        lambda: roofline([RooflinePoint(label="none", flops=1, num_bytes=0)]),
        lambda: roofline([RooflinePoint(label="past", flops=1, num_bytes=1, seconds=-1)]),
        lambda: roofline(POINTS, "T4", "bf16"),
        lambda: roofline(POINTS, "A1000"),
        lambda: block_size_map({}, {}),
        lambda: block_size_map({(16, 16): 1.0, (32, 32): 1.0}, {(16, 16): True, (32, 32): True}),
        lambda: block_size_map({(16, 16): 1.0}, {(16, 32): True}),
    ],
)
def test_what_cannot_be_drawn_is_refused(make: object) -> None:
    with pytest.raises(ValueError, match=r"must|needs|unknown device|has no peak"):
        make()  # type: ignore[operator]


def test_the_pictures_of_the_documentation_can_be_made_again(tmp_path: Path, repository: Path) -> None:
    script = repository / "docs" / "images" / "make_images.py"
    made = runpy.run_path(str(script))["make_images"](tmp_path)
    for path in made:
        assert path.stat().st_size < MAX_PNG_BYTES
        assert (script.parent / path.name).stat().st_size < MAX_PNG_BYTES  # the one that is stored
