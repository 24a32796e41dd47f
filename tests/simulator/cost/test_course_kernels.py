"""The course's own kernels through the cache: what only a cache can see."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.attention.block_sizes import LaunchConfig
from cme295lab.attention.flash import flash_forward
from cme295lab.kernels.matmul import matmul_kernel
from cme295lab.simulator import Launch
from cme295lab.units import KiB
from tests.simulator.cost.reference import with_sms


def multiplied(size: int, group: int) -> Launch:
    a, b, c = (torch.ones(size, size) for _ in range(3))
    sizes = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 32, "GROUP_M": group, "PRECISION": "ieee"}
    with simulator.trace() as t:
        matmul_kernel[((size // 32) ** 2,)](a, b, c, size, size, size, *a.stride(), *b.stride(), *c.stride(), **sizes)
    return t.launches[0]


def test_only_the_cache_sees_the_order_of_a_matrix_product():
    row_major, grouped = multiplied(512, 1), multiplied(512, 4)
    for name in ("a", "b", "c"):
        assert row_major.tensors[name] == grouped.tensors[name]  # requested and distinct bytes
    seen = [launch.cache(with_sms(16), ctas_per_sm=1, l2_bytes=256 * KiB) for launch in (row_major, grouped)]
    matrix = 512 * 512 * 4
    # a wave of 16 programs is one row of tiles: it reads a sixteenth of A, and all of B; 16 waves
    assert seen[0].tensors["a"].dram_read_bytes == matrix
    assert seen[0].tensors["b"].dram_read_bytes == 16 * matrix
    # a wave is 4 by 4 tiles: it reads a quarter of A and of B; 16 waves
    assert seen[1].tensors["a"].dram_read_bytes == seen[1].tensors["b"].dram_read_bytes == 4 * matrix
    assert row_major.dram_bytes == grouped.dram_bytes == 3 * matrix  # the A100's 40 MiB hold it all


def test_keys_and_values_of_a_head_are_read_once_if_its_programs_run_together():
    q, k, v = (torch.ones(1, 2, 512, 32) for _ in range(3))
    config = LaunchConfig(block_m=64, block_n=64, num_warps=4, num_stages=2)
    with simulator.trace() as t:
        flash_forward(q, k, v, causal=False, scale=1.0, config=config)
    done = t.launches[0]
    assert done.tensors["k"].read_bytes == 8 * k.nbytes  # 8 blocks of queries a head
    assert done.tensors["k"].dram_bytes == done.tensors["v"].dram_bytes == k.nbytes
    head = k.nbytes // 2
    together = done.cache(with_sms(8), ctas_per_sm=1, l2_bytes=32 * KiB)  # smaller than K and V of a head
    assert together.tensors["k"].dram_bytes == 2 * head
    alone = done.cache(with_sms(1), ctas_per_sm=1, l2_bytes=32 * KiB)
    assert alone.tensors["k"].dram_bytes == 8 * 2 * head


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("l2_bytes", [1 << 12, 1 << 16, 1 << 24])
def test_bounds_between_distinct_and_moved(causal, l2_bytes):
    q, k, v = (torch.ones(1, 2, 200, 32) for _ in range(3))
    with simulator.trace() as t:
        flash_forward(
            q, k, v, causal=causal, scale=1.0, config=LaunchConfig(block_m=32, block_n=64, num_warps=4, num_stages=2)
        )
    done = t.launches[0]
    found = done.cache(with_sms(4), l2_bytes=l2_bytes)
    for name, traffic in done.tensors.items():
        cached = found.tensors[name]
        assert traffic.distinct_read_bytes <= cached.dram_read_bytes <= cached.sector_bytes
        assert traffic.distinct_written_bytes <= cached.dram_written_bytes <= cached.sector_bytes
        assert cached.sector_bytes == sum(a.moved_bytes for a in done.accesses if a.tensor == name)
        loaded = sum(a.requested_bytes for a in done.accesses if a.tensor == name)
        assert loaded == traffic.read_bytes + traffic.written_bytes
    assert found.dram_bytes == sum(c.dram_bytes for c in found.tensors.values())
    assert found.hit_rate == pytest.approx(found.l2_hit_bytes / found.sector_bytes)
