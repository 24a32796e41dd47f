"""The cache scenario agrees with a counted launch of the real kernel, and with cases worked by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from cme295lab import hardware, simulator
from cme295lab.kernels.matmul import matmul_kernel
from cme295lab.units import KiB, MiB
from cme295lab.widgets import cache_scenario
from cme295lab.widgets.cache_scenario import INNER_TILES, TILE, TILE_BYTES, grouped_order

INNER = TILE * INNER_TILES


@pytest.fixture(scope="module")
def launches():
    """The course's matrix product in tiles of 128, counted, by group."""
    found = {}
    size = 6 * TILE
    a, b, c = torch.zeros(size, INNER).half(), torch.zeros(INNER, size).half(), torch.zeros(size, size).half()
    for group in (1, 4):
        blocks = {"BLOCK_M": TILE, "BLOCK_N": TILE, "BLOCK_K": TILE, "GROUP_M": group, "PRECISION": "ieee"}
        with simulator.trace() as t:
            matmul_kernel[(36,)](a, b, c, size, size, INNER, *a.stride(), *b.stride(), *c.stride(), **blocks)
        found[group] = t.launches[0]
    return found


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("l2_bytes", [128 * KiB, 512 * KiB, MiB, 8 * MiB])
@pytest.mark.parametrize("num_sms", [5, 12])
def test_scenario_agrees_with_a_counted_launch(launches, group, l2_bytes, num_sms) -> None:
    """Few SMs, so that a small product has several waves."""
    gpu = dataclasses.replace(hardware.get_device("A100"), name="small", num_sms=num_sms)
    scenario = cache_scenario(tiles=6, group=group, ctas_per_sm=1, l2_bytes=l2_bytes, device=gpu)
    counted = launches[group].cache(gpu, ctas_per_sm=1, l2_bytes=l2_bytes)
    assert scenario.a_reads.sum() * TILE_BYTES == counted.tensors["a"].dram_read_bytes
    assert scenario.b_reads.sum() * TILE_BYTES == counted.tensors["b"].dram_read_bytes
    assert scenario.written_bytes == counted.tensors["c"].dram_written_bytes
    assert scenario.requested_bytes == launches[group].tensors["a"].read_bytes + launches[group].tensors["b"].read_bytes


def test_a_cache_that_holds_everything_reads_each_tile_once() -> None:
    scenario = cache_scenario(tiles=8, l2_bytes=64 * MiB)
    assert (scenario.a_reads == 1).all()
    assert (scenario.b_reads == 1).all()
    assert scenario.dram_read_bytes == scenario.distinct_bytes == 2 * 8 * INNER_TILES * TILE_BYTES
    assert scenario.hit_bytes + scenario.dram_read_bytes == scenario.requested_bytes


def test_a_wave_needs_its_rows_and_columns() -> None:
    """108 programs in rows of 32 reach into four rows and need all columns; in groups of 8, a block of 8 by 14."""
    assert cache_scenario(tiles=32, group=1).first_wave == (4, 32)
    assert cache_scenario(tiles=32, group=8).first_wave == (8, 14)
    assert cache_scenario(tiles=32, group=8).dram_read_bytes < 0.7 * cache_scenario(tiles=32, group=1).dram_read_bytes


@pytest.mark.parametrize(("tiles", "group"), [(8, 1), (8, 3), (12, 32)])
def test_every_tile_has_one_program(tiles: int, group: int) -> None:
    order = grouped_order(tiles, group)
    assert len(np.unique(order, axis=0)) == tiles * tiles
    assert order.min() == 0
    assert order.max() == tiles - 1


def test_order_by_hand() -> None:
    """Three tiles a side, groups of two rows: down, then right; the last group has one row."""
    expected = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 0), (2, 1), (2, 2)]
    assert [tuple(place) for place in grouped_order(3, 2)] == expected


@pytest.mark.parametrize("name", ["tiles", "group", "ctas_per_sm", "l2_bytes"])
def test_sizes_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        cache_scenario(**{name: 0})
