"""How 4-bit codes are found and undone quickly in plain PyTorch, bit by bit as `four_bit_steps` does it.

Quantising. Searching 15 midpoints for each value is what costs. Instead, -1 to 1 is cut into 4,096 cells, narrow enough
that none holds more than one midpoint. A value's cell is a multiplication and a conversion away; one table says which
midpoint the cell holds (infinity if none), a second one, asked with the cell and whether the value is above that
midpoint, says the code. The cell of a value is computed with rounding, but the cell of its midpoint was computed with
the same rounding, and rounding keeps order: the answer is exact.

Dequantising. A byte is two codes, so a table of 256 pairs of levels turns one look-up into two values: a pair of fp32
is moved as one 64-bit number.

Both work through chunks that stay in the processor's cache, with buffers that are used again for each chunk: tensors of
millions of values cost no memory but their result, and each pass reads what the one before has left in the cache.

What is not covered: values that are not finite (they have no cell), which `four_bit` sends the plain way.
"""

from __future__ import annotations

from functools import cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from cme295lab.quantization.codebooks import QuantType, code_of, midpoints
from cme295lab.quantization.four_bit_steps import SMALLEST_SCALE, quantize_values_plainly

CHUNK_VALUES = 262144
"""Values worked on at a time: a multiple of every block size; enough to pay for the calls, and few for the caches."""

_CELLS_PER_UNIT = 2048.0


def quantize_values(
    values: Float[Tensor, " values"], quant_type: QuantType, block_size: int
) -> tuple[UInt8[Tensor, " bytes"], Float[Tensor, " blocks"]] | None:
    """Packed codes and scales of a flat, contiguous tensor; None if a value is NaN or infinite."""
    num_values = values.numel()
    packed = torch.empty((num_values + 1) // 2, dtype=torch.uint8, device=values.device)
    absmax = torch.empty(-(-num_values // block_size), dtype=torch.float32, device=values.device)
    num_whole = num_values // block_size * block_size
    chunk = CHUNK_VALUES if values.device.type == "cpu" else max(num_whole, 1)
    buffers = _QuantizeBuffers(min(chunk, num_whole), values.device, quant_type)
    for start in range(0, num_whole, chunk):
        end = min(start + chunk, num_whole)
        scales = absmax[start // block_size : end // block_size]
        if not buffers.quantize_chunk(values[start:end], packed[start // 2 : end // 2], scales, block_size):
            return None
    if num_whole < num_values:
        packed[num_whole // 2 :], absmax[-1:] = quantize_values_plainly(values[num_whole:], quant_type, block_size)
        if not bool(absmax[-1].isfinite()):
            return None
    return packed, absmax


def dequantize_into(
    out: Float[Tensor, " values"],
    packed: UInt8[Tensor, " bytes"],
    absmax: Float[Tensor, " blocks"],
    quant_type: QuantType,
    block_size: int,
) -> None:
    """Write level × scale into `out`, flat and contiguous, of fp32, fp16 or bf16."""
    num_values = out.numel()
    num_whole = num_values // block_size * block_size
    pairs = _pairs(quant_type).to(out.device)
    chunk = CHUNK_VALUES if out.device.type == "cpu" else max(num_whole, 1)
    size = min(chunk, num_whole)
    positions = torch.empty(size // 2, dtype=torch.int32, device=out.device)
    # A pair can be written in place where two fp32 numbers of `out` are one 64-bit number: not from an odd offset on.
    direct = out.dtype == torch.float32 and out.storage_offset() % 2 == 0
    scratch = torch.empty(0 if direct else size, dtype=torch.float32, device=out.device)
    parts = zip(
        out[:num_whole].split(chunk),
        packed[: num_whole // 2].split(chunk // 2),
        absmax[: num_whole // block_size].unsqueeze(1).split(chunk // block_size),
        strict=True,
    )
    for result, pair_codes, scales in parts if num_whole else ():
        values = result if direct else scratch[: result.numel()]
        torch.index_select(
            pairs, 0, positions[: pair_codes.numel()].copy_(pair_codes), out=values.view(torch.int64)
        )
        values.view(-1, block_size).mul_(scales)
        if not direct:
            result.copy_(values)
    if num_whole < num_values:
        rest = pairs[packed[num_whole // 2 :].int()].view(torch.float32)[: num_values - num_whole]
        out[num_whole:] = rest * absmax[-1]


class _QuantizeBuffers:
    """Tables and scratch memory for chunks of at most `size` values."""

    def __init__(self, size: int, device: torch.device, quant_type: QuantType) -> None:
        self._midpoint_of_cell, self._code_of_side = (table.to(device) for table in _cells(quant_type))
        self._scaled = torch.empty(size, dtype=torch.float32, device=device)
        self._work = torch.empty(size, dtype=torch.float32, device=device)
        self._cells = torch.empty(size, dtype=torch.int32, device=device)
        self._codes = torch.empty(size, dtype=torch.uint8, device=device)

    def quantize_chunk(self, values: Tensor, packed: Tensor, absmax: Tensor, block_size: int) -> bool:
        """Fill `packed` and `absmax` from a whole number of blocks; False if a value is NaN or infinite."""
        num_values = values.numel()
        scaled, work = self._scaled[:num_values], self._work[:num_values]
        cells, codes = self._cells[:num_values], self._codes[:num_values]
        scaled.copy_(values)
        torch.amax(torch.abs(scaled, out=work).view(-1, block_size), dim=1, out=absmax)
        if not bool(absmax.isfinite().all()):
            return False
        reciprocals = (1.0 / absmax.clamp(min=SMALLEST_SCALE)).unsqueeze(1)
        scaled.view(-1, block_size).mul_(reciprocals).clamp_(-1, 1)
        _cell(scaled, work, cells)
        torch.index_select(self._midpoint_of_cell, 0, cells, out=work)
        # The sign bit of midpoint - value says whether the value is above: 0 or -1 after the shift.
        above = work.sub_(scaled).view(torch.int32).bitwise_right_shift_(31)
        torch.sub(cells.mul_(2), above, out=cells)
        torch.index_select(self._code_of_side, 0, cells, out=codes)
        # Two codes read as one 16-bit number, low byte first: first × 16 + second is its lowest byte.
        both = codes.view(torch.int16)
        packed.copy_((both >> 8).add_(both, alpha=16))
        return True


def _cell(values: Tensor, work: Tensor, cells: Tensor) -> Tensor:
    """Number of the cell of each value between -1 and 1."""
    return cells.copy_(torch.add(values, 1.0, out=work).mul_(_CELLS_PER_UNIT))


@cache
def _cells(quant_type: QuantType) -> tuple[Float[Tensor, " cells"], UInt8[Tensor, " sides"]]:
    """The midpoint in each cell, or infinity; and the code on either side of it, at 2 × cell and 2 × cell + 1."""
    between, code_of_level = midpoints(code_of(quant_type))
    cell_of_midpoint = _cell(between, torch.empty_like(between), torch.empty(len(between), dtype=torch.int32))
    num_cells = 2 * int(_CELLS_PER_UNIT) + 1
    assert len(cell_of_midpoint.unique()) == len(between), "a cell must not hold two midpoints"
    cells = torch.arange(num_cells, dtype=torch.int32)
    midpoint_of_cell = torch.full((num_cells,), torch.inf).index_put_((cell_of_midpoint.long(),), between)
    below = torch.bucketize(cells, cell_of_midpoint)  # midpoints in cells before this one
    levels = torch.stack((below, (below + 1).clamp(max=len(between))), dim=1).flatten()
    return midpoint_of_cell, code_of_level.to(torch.uint8)[levels]


@cache
def _pairs(quant_type: QuantType) -> Int[Tensor, " 256"]:
    """Two fp32 levels for each byte, as one 64-bit number."""
    code = code_of(quant_type)
    byte = torch.arange(256)
    return torch.stack((code[byte >> 4], code[byte & 0x0F]), dim=1).view(torch.int64).flatten()
