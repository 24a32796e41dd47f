"""The formulas for memory traffic, against published numbers."""

import subprocess
import sys

import pytest

from cme295lab.attention import io

SRAM = 192 * 1024 // 2  # an A100's 192 KiB in fp16 elements


def test_counts_of_one_head_of_gpt2_medium():
    assert SRAM == 98_304
    assert io.flash1_block_sizes(64, SRAM) == (384, 64)
    assert io.standard_forward_elements(1024, 64) == 4_456_448
    assert io.flash1_forward_elements(1024, 64, SRAM) == 733_184
    assert pytest.approx(6.08, abs=0.005) == 4_456_448 / 733_184


def test_ratio_tends_to_m_over_3_d_squared():
    assert io.asymptotic_ratio(64, SRAM) == 8.0
    n = 384 * 4096  # a multiple of Bc, so that no tile is cut
    ratio = io.standard_forward_elements(n, 64) / io.flash1_forward_elements(n, 64, SRAM)
    # The statistics (4 N per tile of keys, next to 3 N d) keep it below the limit by 4 / (3 d + 4).
    assert ratio == pytest.approx(8.0 * 192 / 196, rel=1e-3)


@pytest.mark.parametrize("d", [16, 64, 128])
def test_flash_wins_above_the_crossover(d):
    m = io.crossover_sram_elements(d)
    assert m == 3 * d * d
    n = 4 * d * 3 * 1000

    def flash_moves_less(m: int) -> bool:
        # Without the statistics l and m, which the crossover neglects.
        tiles = -(-n // io.flash1_block_sizes(d, m)[0])
        return io.flash1_forward_elements(n, d, m) - 4 * n * tiles < io.standard_forward_elements(n, d)

    assert flash_moves_less(m + 8 * d)
    assert not flash_moves_less(m - 8 * d)
    assert io.asymptotic_ratio(d, m) == 1.0


def test_flash1_is_12_n2_d2_over_m_to_leading_order():
    n, d = 384 * 4096, 64
    statistics = 4 * n * (n // 384)
    assert io.flash1_forward_elements(n, d, SRAM) - statistics == pytest.approx(12 * n**2 * d**2 / SRAM, rel=1e-3)
    assert io.lower_bound_elements(n, d, SRAM) == pytest.approx(n**2 * d**2 / SRAM)


def test_flash2_counts_by_hand():
    # 4 tiles of 16 queries over N = 64, d = 8: Q and O 2 * 512, K and V 4 * 2 * 512, LSE 64.
    assert io.flash2_forward_elements(64, 8, 16) == 1024 + 4096 + 64
    # Causal: the tiles read 16, 32, 48 and 64 keys.
    assert io.flash2_forward_elements(64, 8, 16, causal=True, block_n=16) == 1024 + 2 * 8 * 160 + 64
    # In tiles of 32 keys: 32, 32, 64 and 64.
    assert io.flash2_forward_elements(64, 8, 16, causal=True, block_n=32) == 1024 + 2 * 8 * 192 + 64
    # A sequence that does not divide: 5 tiles, the last of 6 queries.
    assert io.flash2_forward_elements(70, 8, 16) == 2 * 70 * 8 + 5 * 2 * 70 * 8 + 70


def test_steps_of_standard_attention_are_18_nn_and_12_nd():
    assert sum(step.score_matrices + step.byte_masks / 2 for step in io.STANDARD_STEPS) == 18
    assert sum(step.row_matrices for step in io.STANDARD_STEPS) == 12
    # Without mask and dropout they are the pseudocode's forward and backward pass.
    plain = [step for step in io.STANDARD_STEPS if "mask" not in step.name and "dropout" not in step.name]
    for direction, count in (("forward", io.standard_forward_elements), ("backward", io.standard_backward_elements)):
        steps = [step for step in plain if step.direction == direction]
        assert count(100, 7) == sum(step.score_matrices * 100**2 + step.row_matrices * 700 for step in steps)


def test_paper_table():
    # FlashAttention (2022), Figure 2 left: 40.3 and 4.4 GB.
    table = io.paper_table_bytes()
    assert table.standard_bytes / 1e9 == pytest.approx(40.27, abs=0.005)
    assert table.flash_bytes / 1e9 == pytest.approx(4.10, abs=0.005)
    assert table.flash_initialised_bytes / 1e9 == pytest.approx(4.38, abs=0.005)
    assert round(table.standard_bytes / 1e9, 1) == 40.3
    assert round(table.flash_initialised_bytes / 1e9, 1) == 4.4


def test_flops():
    assert io.attention_flops(1024, 64) == 4 * 1024**2 * 64
    assert io.attention_flops(1024, 64, 16, 64, causal=True) == 2 * 1024**2 * 64 * 1024
    # The FlashAttention authors' benchmark: backward 2.5 x forward, both 3.5 x; standard attention 2 x and 3 x.
    assert io.attention_flops(512, 64, backward=True) == 3.5 * io.attention_flops(512, 64)
    assert io.attention_flops(512, 64, backward=True, recompute=False) == 3 * io.attention_flops(512, 64)


def test_formulas_refuse_sizes_below_1_and_fractions():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        io.standard_forward_elements(0, 64)
    with pytest.raises(ValueError, match="m must be at least d"):
        io.flash1_forward_elements(1024, 64, 63)
    with pytest.raises(TypeError, match=r"d must be an int, got 64.0"):
        io.standard_forward_elements(1024, 64.0)


def test_formulas_do_not_import_torch():
    code = "import sys; from cme295lab.attention import io; io.paper_table_bytes(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
