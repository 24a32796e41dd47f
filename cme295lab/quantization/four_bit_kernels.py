"""4-bit weights on a GPU, or on a CPU in the simulator: launches `cme295lab.kernels.nf4`.

What a matrix of n weights costs to read, with a scale per block of 64:

    16 bits                  2 n bytes
    4 bits                   n / 2 + 4 n / 64 = 0.5625 n bytes: a quarter for the codes, 28 % with the scales

`matmul` reads that once per tile of rows of x, and nothing else of the weights' size. To dequantise first and multiply
then would move 0.5625 n + 2 n + 2 n, eight times as much. It pays where a layer waits for its weights: in decoding and
small batches. With hundreds of rows the product itself takes the time, and undoing the codes in every tile of rows is
work on top.

Not covered: splitting the inner dimension over programs, which a single row needs to fill a large GPU, and scales that
are quantised themselves (get fp32 scales from `FourBitTensor.scales()` first).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from cme295lab.quantization.codebooks import midpoints
from cme295lab.quantization.four_bit import DTYPES, check_block_size
from cme295lab.simulator.placement import input_precision, place_to_run

_VALUES_PER_PROGRAM = 2048  # of quantising and dequantising; larger blocks come one at a time
_GROUP_M = 8


@dataclass(frozen=True, kw_only=True)
class MatmulTiles:
    """How a product is cut into tiles.

    Args:
        block_m: rows of x, a power of two of at least 16.
        block_n: rows of the weight, likewise.
        block_k: of the inner dimension, likewise; each block of weights must be a number of these.
        num_warps: of a program.

    Raises:
        ValueError: if a size is not such a power.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int = 4

    def __post_init__(self) -> None:
        for name in ("block_m", "block_n", "block_k"):
            size = getattr(self, name)
            if size < 16 or size & (size - 1):
                raise ValueError(f"{name} must be a power of two and at least 16, got {size}; 64 is a good start")


def choose_tiles(num_rows: int, inner: int, block_size: int, dtype: torch.dtype) -> MatmulTiles:
    """Tiles for a product: few rows want many programs along the weight, many rows want tiles that are reused.

    They are the largest that keep a program's values in registers (a test compiles them): fp32 products run on ordinary
    cores and unroll the inner dimension, and rows that are not whole blocks need addresses for each weight.

    Args:
        num_rows: of x.
        inner: columns of x and of the weight.
        block_size: weights to a scale.
        dtype: of x.
    """
    if dtype is torch.float32:
        return MatmulTiles(block_m=16 if num_rows <= 16 else 32, block_n=32, block_k=32)
    block_k = min(64, block_size)
    if num_rows <= 16:
        return MatmulTiles(block_m=16, block_n=32, block_k=block_k)
    if num_rows < 256 or inner % block_size:
        return MatmulTiles(block_m=32 if num_rows <= 32 else 64, block_n=64, block_k=block_k)
    return MatmulTiles(block_m=128, block_n=128, block_k=block_k, num_warps=8)


def quantize(
    x: Float[Tensor, "*shape"], code: Float32[Tensor, " 16"], block_size: int = 64
) -> tuple[UInt8[Tensor, "bytes 1"], Float32[Tensor, " blocks"]]:
    """Quantise a tensor to 4 bits, bit for bit as `quantize_four_bit` does.

    Args:
        x: any shape, fp32, fp16 or bf16.
        code: the 16 levels in the order of their codes, `nf4.CODE` or `fp4.CODE`, on x's device.
        block_size: values to a scale, one of `BLOCK_SIZES`.

    Returns:
        Packed codes and a scale per block.

    Raises:
        TypeError: if `x` or `code` is of another dtype.
        ValueError: if `x` is empty or holds NaN or infinity (found afterwards, in the scales), or sizes do not fit.
    """
    from cme295lab.kernels.nf4 import quantize_kernel

    _check_float("x", x)
    _check_code(code, x)
    check_block_size(block_size)
    if not x.numel():
        raise ValueError(f"x has shape {tuple(x.shape)} and no values: there is nothing to quantise")
    values = x.detach().contiguous()
    num_bytes, num_blocks = -(-values.numel() // 2), -(-values.numel() // block_size)
    packed = torch.empty((num_bytes, 1), dtype=torch.uint8, device=x.device)
    absmax = torch.empty(num_blocks, dtype=torch.float32, device=x.device)
    between, order = midpoints(code)
    blocks = max(1, _VALUES_PER_PROGRAM // block_size)
    with place_to_run(x):
        quantize_kernel[(-(-num_blocks // blocks),)](
            values, between, packed, absmax, values.numel(), num_bytes, _in_one_number(order),
            BLOCK_SIZE=block_size, NUM_BLOCKS=blocks,
        )  # fmt: skip
    if not bool(absmax.isfinite().all()):
        first = int((~absmax.isfinite()).nonzero()[0])
        raise ValueError(
            f"x holds NaN or infinity, the first in block {first} (values {first * block_size} to "
            f"{(first + 1) * block_size - 1}): they have no nearest level and would spoil their blocks; mend them first"
        )
    return packed, absmax


def dequantize(
    packed: UInt8[Tensor, "*packed"],
    absmax: Float32[Tensor, " blocks"],
    code: Float32[Tensor, " 16"],
    shape: Sequence[int],
    dtype: torch.dtype,
    block_size: int = 64,
) -> Float[Tensor, "*shape"]:
    """Level × scale, bit for bit as `FourBitTensor.dequantize`.

    Args:
        packed: two codes a byte, the first in the high half, (bytes, 1) or (bytes,).
        absmax: a scale per block.
        code: the 16 levels.
        shape: of the result.
        dtype: of the result, fp32, fp16 or bf16.
        block_size: values to a scale.

    Raises:
        TypeError: if a tensor is of another dtype.
        ValueError: if sizes or devices do not fit.
    """
    from cme295lab.kernels.nf4 import dequantize_kernel

    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype}")
    num_values = math.prod(shape)
    _check_quantized(packed, absmax, code, num_values, block_size)
    out = torch.empty(tuple(shape), dtype=dtype, device=packed.device)
    blocks = max(1, _VALUES_PER_PROGRAM // block_size)
    if num_values:
        with place_to_run(packed):
            dequantize_kernel[(-(-absmax.numel() // blocks),)](
                packed, absmax, code, out, num_values, packed.numel(), BLOCK_SIZE=block_size, NUM_BLOCKS=blocks
            )
    return out


def matmul(
    x: Float[Tensor, "*batch inner"],
    packed: UInt8[Tensor, "*packed"],
    absmax: Float32[Tensor, " blocks"],
    code: Float32[Tensor, " 16"],
    out_features: int,
    block_size: int = 64,
    bias: Float[Tensor, " out"] | None = None,
    *,
    tiles: MatmulTiles | None = None,
) -> Float[Tensor, "*batch out"]:
    """y = x Wᵀ + bias for a weight in 4 bits, which is never written out.

    Each weight is level × scale rounded to x's dtype, as `dequantize(..., dtype=x.dtype)` gives it; products are summed
    in fp32, the bias is added there, and the result is rounded once.

    Args:
        x: fp32, fp16 or bf16, any strides.
        packed: codes of the (out_features, inner) weight.
        absmax: a scale per block of it.
        code: the 16 levels.
        out_features: rows of the weight.
        block_size: weights to a scale. Rows of whole blocks are fastest; others run, reading each byte twice and a
            scale for each weight.
        bias: in x's dtype.
        tiles: of the product; None chooses by the rows of x.

    Raises:
        TypeError: if a tensor is of another dtype.
        ValueError: if sizes or devices do not fit, or the tiles do not fit the blocks.
    """
    from cme295lab.kernels.nf4 import dequantize_matmul_kernel

    _check_float("x", x)
    if x.ndim < 1 or not x.shape[-1]:
        raise ValueError(f"x must have a last dimension of at least 1, got shape {tuple(x.shape)}")
    inner = x.shape[-1]
    _check_count("out_features", out_features)
    _check_quantized(packed, absmax, code, out_features * inner, block_size, x)
    if bias is not None and (bias.shape != (out_features,) or bias.dtype != x.dtype or bias.device != x.device):
        raise ValueError(
            f"bias must be ({out_features},) in {x.dtype} on {x.device}, got {tuple(bias.shape)} in {bias.dtype} on "
            f"{bias.device}"
        )
    rows = x.detach().reshape(-1, inner)
    tiles = choose_tiles(rows.shape[0], inner, block_size, x.dtype) if tiles is None else tiles
    if block_size % tiles.block_k:
        raise ValueError(f"tiles.block_k must divide block_size {block_size}, got {tiles.block_k}")
    y = torch.empty((rows.shape[0], out_features), dtype=x.dtype, device=x.device)
    if rows.shape[0]:
        grid = (-(-rows.shape[0] // tiles.block_m) * -(-out_features // tiles.block_n),)
        with place_to_run(x):
            dequantize_matmul_kernel[grid](
                rows, packed, absmax, code, y if bias is None else bias.detach().contiguous(), y,
                rows.shape[0], out_features, inner, *rows.stride(), *y.stride(),
                BLOCK_SIZE=block_size, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
                GROUP_M=_GROUP_M, WHOLE_BLOCKS=inner % block_size == 0, HAS_BIAS=bias is not None,
                PRECISION=input_precision(x.dtype), num_warps=tiles.num_warps,
            )  # fmt: skip
    return y.view(*x.shape[:-1], out_features)


def _in_one_number(order: Tensor) -> int:
    """Sixteen codes of four bits as one signed 64-bit number, the first in the lowest bits."""
    number = sum(code << (4 * position) for position, code in enumerate(order.tolist()))
    return number - 2**64 if number >= 2**63 else number


def _check_float(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype not in DTYPES:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a tensor of {', '.join(map(str, DTYPES))}, got {got}: convert it first")
    if x.device.type not in ("cuda", "cpu"):
        raise ValueError(f"{name} is on {x.device}, where no Triton kernel runs: move it to a GPU or to the CPU")


def _check_code(code: Tensor, neighbour: Tensor) -> None:
    if code.dtype != torch.float32:
        raise TypeError(f"code must be torch.float32, got {code.dtype}; give nf4.CODE or fp4.CODE")
    if code.shape != (16,) or not code.is_contiguous():
        raise ValueError(f"code must be 16 contiguous levels, got shape {tuple(code.shape)}; give nf4.CODE or fp4.CODE")
    if code.device != neighbour.device:
        raise ValueError(f"code must be on {neighbour.device}, got {code.device}; use .to({str(neighbour.device)!r})")


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an int of at least 1, got {value!r}")


def _check_quantized(
    packed: Tensor, absmax: Tensor, code: Tensor, num_values: int, block_size: int, x: Tensor | None = None
) -> None:
    if packed.dtype != torch.uint8:
        raise TypeError(f"packed must be torch.uint8, got {packed.dtype}")
    if absmax.dtype != torch.float32:
        raise TypeError(f"absmax must be torch.float32, got {absmax.dtype}; give FourBitTensor.scales()")
    check_block_size(block_size)
    for name, tensor, needed, what in (
        ("packed", packed, -(-num_values // 2), "bytes"), ("absmax", absmax, -(-num_values // block_size), "scales"),
    ):  # fmt: skip
        if tensor.numel() != needed or not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be {needed} contiguous {what} for {num_values} values in blocks of {block_size}, "
                f"got shape {tuple(tensor.shape)}, strides {tensor.stride()}"
            )
        if tensor.device != (packed if x is None else x).device:
            raise ValueError(f"{name} must be on {(packed if x is None else x).device}, got {tensor.device}; move it")
    _check_code(code, packed)
