"""Weights in 4 bits: a scale per block, the nearest of 16 levels, two codes to a byte.

    1. cut the tensor, row by row, into blocks of 64 values; a block's scale is its largest absolute value (absmax)
    2. multiply by the reciprocal of the scale: every value is now between -1 and 1
    3. replace each value by the code of the nearest level; exactly between two levels, the lower one
    4. put two codes into a byte, the first into the high half

    values      0.5  -2.0   0.1   1.4        absmax 2.0
    scaled      0.25 -1.0   0.05  0.7
    levels      0.246 -1.0  0.080 0.723      codes 10, 0, 8, 14 of NF4
    bytes       0xA0  0x8E

`quantize_plainly` is these four steps and nothing else (`four_bit_steps`). `quantize_four_bit` does the same quicker
(`four_bit_fast` says how). Both give the bytes and scales of bitsandbytes' CPU path.

NaN and infinity have no nearest level. They are refused with their number and place. `allow_non_finite=True` lets them
through as bitsandbytes does: a NaN makes NaN of its whole block, an infinity makes NaN of all others in its block. Not
with `double_quant`, where one of them would make NaN of the whole tensor.

Source: Dettmers et al. 2023, "QLoRA", §2 and §3; Dettmers et al. 2022, "8-bit Optimizers", §2.1 (blocks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from cme295lab.quantization.checking import check_finite
from cme295lab.quantization.codebooks import QuantType, check_quant_type, code_of
from cme295lab.quantization.double_quantization import DoubleQuantized, double_quantize
from cme295lab.quantization.four_bit_fast import dequantize_into, quantize_values
from cme295lab.quantization.four_bit_steps import quantize_values_plainly, unpack
from cme295lab.quantization.large_pages import empty_in_large_pages

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, kw_only=True, eq=False)
class FourBitTensor:
    """A tensor in 4 bits per value.

    Args:
        packed: two codes a byte, the first in the high half, (bytes, 1).
        absmax: a scale per block: fp32, or doubly quantised.
        shape: of the tensor that was quantised.
        dtype: of the tensor that was quantised, and what `dequantize` returns.
        block_size: values to a scale.
        quant_type: "nf4" or "fp4".

    Raises:
        ValueError: if sizes do not fit each other, or a setting is not one of those allowed.
        TypeError: if a dtype is not the one above.
    """

    packed: UInt8[Tensor, "bytes 1"]
    absmax: Float[Tensor, " blocks"] | DoubleQuantized
    shape: torch.Size
    dtype: torch.dtype
    block_size: int
    quant_type: QuantType

    def __post_init__(self) -> None:
        check_quant_type(self.quant_type)
        check_block_size(self.block_size)
        if self.dtype not in DTYPES:
            raise TypeError(f"dtype must be one of {_names(DTYPES)}, got {self.dtype}")
        if self.packed.dtype != torch.uint8:
            raise TypeError(f"packed must be torch.uint8, got {self.packed.dtype}")
        if self.num_values == 0:
            raise ValueError(f"shape {tuple(self.shape)} has no values")
        num_bytes = (self.num_values + 1) // 2
        if tuple(self.packed.shape) != (num_bytes, 1):
            raise ValueError(
                f"shape {tuple(self.shape)} packs into ({num_bytes}, 1) bytes, got packed of {tuple(self.packed.shape)}"
            )
        num_blocks = -(-self.num_values // self.block_size)
        scales = self.absmax.codes if isinstance(self.absmax, DoubleQuantized) else self.absmax
        if scales.numel() != num_blocks:
            raise ValueError(
                f"{self.num_values} values in blocks of {self.block_size} have {num_blocks} scales, got "
                f"{scales.numel()} in absmax"
            )
        allowed = torch.uint8 if isinstance(self.absmax, DoubleQuantized) else torch.float32
        if scales.dtype != allowed:
            raise TypeError(f"scales in absmax must be {allowed}, got {scales.dtype}")

    @property
    def num_values(self) -> int:
        """Values of the tensor."""
        return math.prod(self.shape)

    @property
    def code(self) -> Float[Tensor, " 16"]:
        """The levels, in the order of their codes: a constant of the type, not stored here."""
        return code_of(self.quant_type).to(self.packed.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of codes and scales."""
        scales = self.absmax.num_bytes if isinstance(self.absmax, DoubleQuantized) else self.absmax.nbytes
        return self.packed.nbytes + scales

    @property
    def bits_per_parameter(self) -> float:
        """Bits that a value takes, its share of the scales among them."""
        return 8 * self.num_bytes / self.num_values

    def scales(self) -> Float[Tensor, " blocks"]:
        """A scale per block in fp32."""
        return self.absmax.dequantize() if isinstance(self.absmax, DoubleQuantized) else self.absmax

    def dequantize(self, dtype: torch.dtype | None = None, out: Tensor | None = None) -> Float[Tensor, "*shape"]:
        """Level × scale of the block, computed in fp32 and rounded once.

        Args:
            dtype: of the result; by default that of the tensor that was quantised, or of `out`.
            out: contiguous memory of the tensor's shape to write into, instead of new memory.

        Raises:
            ValueError: if `out` has another shape or device, or is not contiguous.
            TypeError: if a dtype is not fp32, fp16 or bf16, or `out` has another than `dtype`.
        """
        if dtype is None:
            dtype = self.dtype if out is None else out.dtype
        if dtype not in DTYPES:
            raise TypeError(f"dtype must be one of {_names(DTYPES)}, got {dtype}")
        if out is None:
            out = empty_in_large_pages(self.shape, dtype, self.packed.device)
        elif out.dtype != dtype:
            raise TypeError(f"out is {out.dtype}, and dtype asks for {dtype}: leave dtype out, or give another out")
        elif out.shape != self.shape or out.device != self.packed.device or not out.is_contiguous():
            raise ValueError(
                f"out must be contiguous, of shape {tuple(self.shape)}, on {self.packed.device}; got shape "
                f"{tuple(out.shape)}, strides {out.stride()}, on {out.device}"
            )
        dequantize_into(out.view(-1), self.packed.view(-1), self.scales(), self.quant_type, self.block_size)
        return out

    def to(self, device: torch.device | str) -> FourBitTensor:
        """The same on another device."""
        return replace(self, packed=self.packed.to(device), absmax=self.absmax.to(device))

    def clone(self) -> FourBitTensor:
        """The same in memory of its own."""
        return replace(self, packed=self.packed.clone(), absmax=self.absmax.clone())


def quantize_four_bit(
    w: Float[Tensor, "*shape"],
    *,
    quant_type: QuantType = "nf4",
    block_size: int = 64,
    double_quant: bool = False,
    allow_non_finite: bool = False,
) -> FourBitTensor:
    """Quantise a tensor to 4 bits, quickly.

    Args:
        w: any shape, fp32, fp16 or bf16; its gradient is not followed.
        quant_type: "nf4" or "fp4".
        block_size: values to a scale, one of `BLOCK_SIZES`.
        double_quant: whether to store the scales in 8 bits.
        allow_non_finite: whether to let NaN and infinity through, which spoil their blocks, instead of refusing them;
            without `double_quant` only.

    Raises:
        TypeError: if `w` is of another dtype.
        ValueError: if `w` is empty or holds NaN or infinity, or a setting is not one of those allowed.
    """
    _check_input(w, quant_type, block_size)
    values = w.detach().contiguous().view(-1)
    quantized = quantize_values(values, quant_type, block_size)
    if quantized is None:
        _refuse_non_finite(w, allow_non_finite, double_quant)
        quantized = quantize_values_plainly(values, quant_type, block_size)  # the quick way has no place for NaN
    return _tensor(w, *quantized, quant_type, block_size, double_quant)


def quantize_plainly(
    w: Float[Tensor, "*shape"],
    *,
    quant_type: QuantType = "nf4",
    block_size: int = 64,
    double_quant: bool = False,
    allow_non_finite: bool = False,
) -> FourBitTensor:
    """Quantise a tensor to 4 bits in the four steps of the definition: to read, and to hold the quick one against.

    Arguments and errors are those of `quantize_four_bit`.
    """
    _check_input(w, quant_type, block_size)
    values = w.detach().contiguous().view(-1)
    _refuse_non_finite(w, allow_non_finite, double_quant)
    quantized = quantize_values_plainly(values, quant_type, block_size)
    return _tensor(w, *quantized, quant_type, block_size, double_quant)


def dequantize_plainly(tensor: FourBitTensor, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
    """Unpack, look the levels up, multiply by the scales: what `FourBitTensor.dequantize` does quicker."""
    levels = tensor.code[unpack(tensor.packed.view(-1)).int()][: tensor.num_values]
    scales = tensor.scales().repeat_interleave(tensor.block_size)[: tensor.num_values]
    return (levels * scales).view(tensor.shape).to(tensor.dtype if dtype is None else dtype)


def check_block_size(block_size: int) -> None:
    """Refuse a block size that is not one of `BLOCK_SIZES`.

    Raises:
        ValueError: naming them.
    """
    if not isinstance(block_size, int) or block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size!r}")


def _tensor(
    w: Tensor, packed: Tensor, absmax: Tensor, quant_type: QuantType, block_size: int, double_quant: bool
) -> FourBitTensor:
    return FourBitTensor(
        packed=packed.unsqueeze(1),
        absmax=double_quantize(absmax) if double_quant else absmax,
        shape=w.shape,
        dtype=w.dtype,
        block_size=block_size,
        quant_type=quant_type,
    )


def _check_input(w: Tensor, quant_type: QuantType, block_size: int) -> None:
    check_quant_type(quant_type)
    check_block_size(block_size)
    if not isinstance(w, Tensor):
        raise TypeError(f"w must be a torch.Tensor, got {type(w).__name__}")
    if w.dtype not in DTYPES:
        raise TypeError(f"w must be one of {_names(DTYPES)}, got {w.dtype}: convert it first, as in w.float()")
    if w.numel() == 0:
        raise ValueError(f"w has shape {tuple(w.shape)} and no values: there is nothing to quantise")


def _refuse_non_finite(w: Tensor, allow_non_finite: bool, double_quant: bool) -> None:
    if not allow_non_finite or double_quant:
        # Doubly quantised, they would spoil the mean of all scales, and with it the whole tensor.
        check_finite("w", w)


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)
