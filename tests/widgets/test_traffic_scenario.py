"""The scenario puts the published formulas together: bytes, FLOPs, roofline time, fit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cme295lab import simulator
from cme295lab.attention import flash_attention
from cme295lab.units import KiB
from cme295lab.widgets import traffic_scenario


def test_worked_case_of_the_flash_attention_paper() -> None:
    """N = 1024, d = 64, 192 KiB in fp16: 4,456,448 against 733,184 elements per head, a ratio of 6.08."""
    scenario = traffic_scenario(seq=1024, head_dim=64, block_m=64, block_n=64, device="A100", dtype="fp16")
    assert scenario.standard.num_bytes == 2 * 4_456_448
    assert scenario.flash1_bytes == 2 * 733_184
    assert scenario.standard.num_bytes / scenario.flash1_bytes == pytest.approx(6.08, abs=0.005)
    assert scenario.lower_bound_bytes == pytest.approx(2 * 1024**2 * 64**2 / 98_304)
    # FlashAttention-2 with 16 tiles of 64 queries: 2 Nd + 2 * 16 Nd + N elements
    assert scenario.flash.num_bytes == 2 * (34 * 1024 * 64 + 1024)
    assert scenario.bars == {
        "standard": 8_912_896,
        "flash": scenario.flash.num_bytes,
        "flash, Alg. 1": 1_466_368,
        "N²d²/M": scenario.lower_bound_bytes,
    }


def test_roofline_time_is_the_larger_of_moving_and_computing() -> None:
    scenario = traffic_scenario(seq=1024, head_dim=64, block_m=64, block_n=64, device="A100")
    flops = 4 * 1024**2 * 64
    assert scenario.standard.flops == flops
    assert scenario.standard.intensity == pytest.approx(flops / 8_912_896)
    assert scenario.standard.seconds == pytest.approx(8_912_896 / 2039e9)  # 30 FLOP/B is far below the ridge at 153
    wide = traffic_scenario(seq=65_536, head_dim=64, block_m=256, block_n=64, device="A100")
    assert wide.flash.intensity > 153
    assert wide.flash.seconds == pytest.approx(4 * 65_536**2 * 64 / 312e12)


def test_backward_adds_two_forward_passes_of_flops_and_half_a_pass_for_recomputation() -> None:
    forward, both = (traffic_scenario(seq=512, head_dim=64, backward=backward) for backward in (False, True))
    assert both.standard.flops == 3 * forward.standard.flops
    assert both.flash.flops == 3.5 * forward.flash.flops
    # standard backward: 7 N^2 + 8 N d; with N = 8 d a forward pass is 4.5 N^2 and a backward one 8 N^2
    assert both.standard.num_bytes / forward.standard.num_bytes == pytest.approx((4.5 + 8) / 4.5)
    assert both.flash.num_bytes > 2 * forward.flash.num_bytes


def test_causal_mask_halves_flops_and_nearly_halves_flash_traffic_but_not_the_standard_one() -> None:
    full, causal = (traffic_scenario(seq=8192, head_dim=64, causal=flag) for flag in (False, True))
    assert causal.flash.flops == full.flash.flops / 2
    assert causal.standard.num_bytes == full.standard.num_bytes
    assert 0.5 < causal.flash.num_bytes / full.flash.num_bytes < 0.52


def test_blocks_fit_until_shared_memory_or_registers_are_full() -> None:
    small = traffic_scenario(seq=1024, head_dim=128, block_m=128, block_n=64, device="A100")
    assert small.fits
    assert small.tile_limit_bytes == 163 * KiB
    assert small.accumulator_limit_bytes == 256 * KiB
    sums_too_large = traffic_scenario(seq=1024, head_dim=128, block_m=256, block_n=256, device="H100")
    assert sums_too_large.working_set.tile_bytes <= sums_too_large.tile_limit_bytes
    assert not sums_too_large.fits
    tiles_too_large = traffic_scenario(seq=1024, head_dim=256, block_m=16, block_n=256, device="A100")
    assert tiles_too_large.working_set.accumulator_bytes <= tiles_too_large.accumulator_limit_bytes
    assert not tiles_too_large.fits


def test_less_sram_means_smaller_tiles_and_more_traffic_for_the_first_algorithm() -> None:
    half = traffic_scenario(seq=1024, head_dim=64, device="A100", sram_bytes=96 * KiB)
    assert half.tile_limit_bytes == 81.5 * KiB
    assert half.flash1_bytes > traffic_scenario(seq=1024, head_dim=64, device="A100").flash1_bytes


@given(
    seq=st.integers(1, 5000),
    head_dim=st.sampled_from([16, 33, 64, 128]),
    num_heads=st.integers(1, 64),
    block_m=st.sampled_from([16, 64, 256]),
    causal=st.booleans(),
    backward=st.booleans(),
)
def test_flash_never_moves_less_than_its_inputs_and_outputs(
    seq: int, head_dim: int, num_heads: int, block_m: int, causal: bool, backward: bool
) -> None:
    scenario = traffic_scenario(
        seq=seq, head_dim=head_dim, num_heads=num_heads, block_m=block_m, causal=causal, backward=backward
    )
    once = num_heads * seq * head_dim * 2  # bytes of one matrix
    assert (
        scenario.flash.num_bytes >= (4 + (8 if backward else 0)) * once
    )  # q, k, v, o; then o, do, q, k, v, dq, dk, dv
    assert scenario.standard.num_bytes >= 4 * once
    assert scenario.flash.seconds > 0
    assert set(scenario.bars) == set(scenario.BAR_NAMES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq": 0}, "seq must be at least 1, got 0"),
        ({"seq": -5}, "seq must be at least 1, got -5"),
        ({"head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be at least 1, got 0"),
        ({"block_m": 100}, "block_m must be a power of two .*, got 100"),
        ({"block_n": 0}, "block_n must be a power of two .*, got 0"),
        ({"device": "A10"}, "unknown device 'A10'. Did you mean 'A100"),
        ({"dtype": "int4"}, "dtype must be one of fp32, fp16, bf16, got 'int4'"),
        ({"device": "T4", "dtype": "bf16"}, "T4 has no peak for dtype 'bf16'"),
        ({"sram_bytes": 0}, "sram_bytes must be at least 1, got 0"),
        ({"sram_bytes": 64}, "m must be at least d"),
    ],
)
def test_bad_input_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        traffic_scenario(**({"seq": 1024, "head_dim": 64} | changes))


@pytest.mark.parametrize("causal", [False, True])
def test_flash_bytes_are_what_the_simulator_counts_for_the_kernel(causal: bool) -> None:
    """The kernel stores its log-sum-exp in fp32: N more half-precision elements per head than the formula's."""
    seq, heads = 160, 2  # a ragged last block of queries
    q, k, v = (torch.randn(1, heads, seq, 64).half() for _ in range(3))
    with simulator.trace(device="A100") as trace:
        flash_attention(q, k, v, causal=causal, block_m=64, block_n=32)
    scenario = traffic_scenario(seq=seq, head_dim=64, num_heads=heads, block_m=64, block_n=32, causal=causal)
    assert trace.read_bytes + trace.written_bytes == scenario.flash.num_bytes + heads * seq * 2
    assert trace.dot_flops >= scenario.flash.flops  # whole tiles are multiplied, masked scores included
