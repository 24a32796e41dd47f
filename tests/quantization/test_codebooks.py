"""The tables of levels: from their definitions, against bitsandbytes', bit by bit."""

import bitsandbytes.functional as theirs
import pytest
import torch

from cme295lab.quantization import fp4, nf4
from cme295lab.quantization.codebooks import (
    OFFSET,
    code_of,
    dynamic_code,
    dynamic_code_of_position,
    midpoints,
    nf4_code,
)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype == torch.float32 and torch.equal(a.view(torch.int32), b.view(torch.int32))


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_code_from_its_definition_is_the_published_table_bit_by_bit(name: str) -> None:
    module = {"nf4": nf4, "fp4": fp4}[name]
    assert same_bits(module.code(), module.CODE)
    assert torch.equal(module.code(), theirs.get_4bit_type(name, device="cpu"))
    assert torch.equal(code_of(name), module.CODE)


def test_nf4_has_zero_seven_levels_below_and_eight_above() -> None:
    assert int((nf4.CODE < 0).sum()) == 7
    assert int((nf4.CODE > 0).sum()) == 8
    assert float(nf4.CODE[7]) == 0
    assert torch.equal(nf4.CODE, nf4.CODE.sort().values)


def test_offset_is_the_mean_of_two_quantiles() -> None:
    """Half a bin from the end, of 16 bins on one side and of 15 on the other: 1 - 1/32 and 1 - 1/30."""
    assert pytest.approx(((1 - 1 / 32) + (1 - 1 / 30)) / 2, abs=5e-8) == OFFSET


def test_another_offset_is_another_code() -> None:
    assert not torch.equal(nf4_code(0.99), nf4_code())
    with pytest.raises(ValueError, match=r"offset must be a quantile above 0.5 and below 1, got 1"):
        nf4_code(1)


def test_fp4_is_eight_magnitudes_twice_and_not_the_e2m1_of_ocp() -> None:
    """FACTS: {0, .0625, 2, 3, 4, 6, 8, 12} / 12 against {0, .5, 1, 1.5, 2, 3, 4, 6} / 6: the smallest one differs."""
    magnitudes = fp4.CODE[:8].sort().values.double() * 12
    assert magnitudes.tolist() == pytest.approx([0, 0.0625, 2, 3, 4, 6, 8, 12], rel=1e-7)
    assert torch.equal(fp4.CODE[8:], -fp4.CODE[:8])
    e2m1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / 6
    assert ((magnitudes / 12 - e2m1).abs() > 1e-7).tolist() == [False, True] + [False] * 6


def test_dynamic_code_is_that_of_bitsandbytes_bit_by_bit() -> None:
    code = dynamic_code()
    assert same_bits(code, theirs.create_dynamic_map())
    assert len(code.unique()) == 256
    assert float(code[0]) == pytest.approx(-0.99296875)  # the middle of the last of 64 parts; there is no -1
    assert float(code[255]) == 1


def test_dynamic_codes_of_all_positions_are_those_that_bitsandbytes_uses() -> None:
    positions = torch.arange(65536)
    values = (positions.double() / 32767.5 - 1).float()
    codes, state = theirs.quantize_blockwise(values, blocksize=65536)
    assert float(state.absmax) == 1
    assert torch.equal(dynamic_code_of_position(), codes)


def test_midpoints_by_hand() -> None:
    """Levels -1, 0, 2 with codes 2, 0, 1: between them lie -0.5 and 1."""
    between, code_of_level = midpoints(torch.tensor([0.0, 2.0, -1.0]))
    assert between.tolist() == [-0.5, 1.0]
    assert code_of_level.tolist() == [2, 0, 1]


def test_unknown_type_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="quant_type must be one of 'nf4', 'fp4', got 'nf3'"):
        code_of("nf3")
