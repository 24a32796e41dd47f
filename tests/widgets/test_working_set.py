"""The working set of a program follows its formula and refuses sizes that no kernel takes."""

import pytest

from cme295lab.units import KiB
from cme295lab.widgets.working_set import working_set


def test_worked_case_128_by_64_at_head_dim_64_in_fp16() -> None:
    """Q 128x64x2 = 16 KiB, K and V 64x64x2 = 8 KiB each; S 128x64x4 = 32 KiB, O 128x64x4 = 32 KiB, m and l 1 KiB."""
    sizes = working_set(block_m=128, block_n=64, head_dim=64, dtype="fp16")
    assert sizes.tile_bytes == (16 + 8 + 8) * KiB
    assert sizes.accumulator_bytes == (32 + 32 + 1) * KiB


def test_fp32_doubles_the_tiles_and_leaves_the_accumulators() -> None:
    half, single = (working_set(block_m=32, block_n=16, head_dim=128, dtype=dtype) for dtype in ("bf16", "fp32"))
    assert single.tile_bytes == 2 * half.tile_bytes
    assert single.accumulator_bytes == half.accumulator_bytes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_m": 48}, "block_m must be a power of two and at least 16 .*, got 48"),
        ({"block_n": 8}, "block_n must be a power of two and at least 16 .*, got 8"),
        ({"block_m": 0}, "block_m must be a power of two"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"dtype": "int8"}, "dtype must be one of fp32, fp16, bf16, got 'int8'"),
    ],
)
def test_bad_sizes_are_refused_by_name(changes: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"block_m": 64, "block_n": 64, "head_dim": 64, "dtype": "fp16"}
    with pytest.raises(ValueError, match=message):
        working_set(**(arguments | changes))  # type: ignore[arg-type]
