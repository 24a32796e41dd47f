"""Whole numbers instead of floats: absmax and zero-point quantisers, from 2 to 8 bits.

A quantised tensor is a grid of small integers and the distance between two neighbours on it:

    x̂ = (q - z) · scale

    absmax      symmetric: scale = max|x| / (2^(bits-1) - 1), z = 0, q from -127 to 127 in 8 bits. The code -128 stays
                unused, so that zero is a level and -x is as well off as x. In 2 bits three levels are left: -1, 0, 1.
    zero-point  asymmetric: scale = (max - min) / (2^bits - 1), z = -round(min / scale) - 2^(bits-1). All codes are
                used, and q is clamped: min and max are rounded separately, so max may fall one code beyond the last.
                Better for what lies on one side of zero, at the price of a second constant.

One constant for how many values? An outlier makes the grid coarse for all that share its scale, so fewer sharers mean
a smaller error and more constants: one for the tensor, one per channel (an index along `axis`), or one per block of
`block_size` values that follow each other in memory (row-major; the last block may be shorter).

Decisions. Scales are computed in float64 and stored in float32 (float64 for float64 tensors); codes are rounded by the
*stored* scale, half to even, so that what is decoded is what was rounded. The range is that of the values and is not
stretched to contain 0, so z may lie far outside the codes and is an int32. To fit there, the scale of a slice that is
narrow and far from zero is at least max|x| / 2^30. That covers constant slices too, which come back exactly. A slice
of zeros has scale 1 and codes that decode to 0.

Bytes are real: `packed()` writes codes of less than 8 bits side by side, the first one in the highest bits, and
`num_bytes` counts them together with the constants.

Not here: percentile clipping, scales learnt by gradient, and error-compensating rounding (GPTQ).

Source: Dettmers et al. 2022, "LLM.int8()", §2.1; Jacob et al. 2018, "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", §2.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int, Int8, Int32, UInt8
from torch import Tensor

from cme295lab.quantization.checking import check_finite, check_float, check_int

Granularity = Literal["tensor", "channel", "block"]

_MAX_ZERO_POINT = 2**30  # leaves room in an int32 for the codes


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor:
    """Integer codes, and the constants that turn them into numbers: x̂ = (codes - zero_point) · scale.

    Attributes:
        codes: int8, of the original's shape.
        scale: one per tensor (shape ()), channel or block (shape (number,)); float32, or float64 for float64 tensors.
        zero_point: int32, shaped like `scale`; None where it is 0 throughout (absmax).
        shape: of the original.
        dtype: of the original.
        bits: per code, 2 to 8.
        granularity: what shares a scale: "tensor", "channel" or "block".
        axis: along which the channels are counted, not negative; None otherwise.
        block_size: values per block; None otherwise.
    """

    codes: Int8[Tensor, "*shape"]
    scale: Float[Tensor, "*slices"]
    zero_point: Int32[Tensor, "*slices"] | None
    shape: torch.Size
    dtype: torch.dtype
    bits: int
    granularity: Granularity
    axis: int | None = None
    block_size: int | None = None

    def dequantize(self, dtype: torch.dtype | None = None) -> Float[Tensor, "*shape"]:
        """The numbers that the codes stand for, rounded once, to `dtype` (the original's, unless told).

        A code's number may lie half a scale beyond the largest value. In the original's dtype, what that puts out of
        range comes back as the largest finite number: nothing that was finite becomes infinite.
        """
        slices = _Slices(self.shape, self.granularity, self.axis, self.block_size)
        levels = self.codes.to(torch.float64)
        if self.zero_point is not None:
            levels = levels - slices.spread(self.zero_point.to(torch.float64))
        numbers = levels * slices.spread(self.scale.to(torch.float64))
        if dtype in (None, self.dtype):
            numbers = numbers.clamp(-torch.finfo(self.dtype).max, torch.finfo(self.dtype).max)
        return numbers.to(dtype or self.dtype)

    def packed(self) -> UInt8[Tensor, " bytes"]:
        """The codes as bytes, without gaps: `pack_codes`."""
        return pack_codes(self.codes, self.bits)

    @property
    def num_bytes(self) -> int:
        """Bytes of packed codes, scales and zero points."""
        packed = (self.codes.numel() * self.bits + 7) // 8
        return packed + self.scale.nbytes + (0 if self.zero_point is None else self.zero_point.nbytes)

    @property
    def bits_per_value(self) -> float:
        """All bits, those of the constants among them, for each value.

        Raises:
            ValueError: if there is no value.
        """
        if not self.codes.numel():
            raise ValueError(f"a tensor of shape {tuple(self.shape)} has no values, so no bits per value")
        return 8 * self.num_bytes / self.codes.numel()


def absmax_quantize(
    x: Float[Tensor, "*shape"],
    *,
    bits: int = 8,
    granularity: Granularity = "tensor",
    axis: int = 0,
    block_size: int | None = None,
) -> QuantizedTensor:
    """Quantise symmetrically: q = round(x / scale), scale = max|x| / (2^(bits-1) - 1).

    Args:
        x: any shape; float16, bfloat16, float32 or float64, finite. An empty tensor stays one.
        bits: per code, 2 to 8.
        granularity: what shares a scale: "tensor", "channel" or "block".
        axis: for channels: the axis that counts them (0 for the outputs of an nn.Linear's weight).
        block_size: for blocks: values per block.

    Returns:
        Codes and scales. Away from the ends of float32's range no value is off by more than half a scale.

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if a value is NaN or infinite, or bits, granularity, axis or block_size are not possible.

    Source: Dettmers et al. 2022, §2.1.

    >>> quantized = absmax_quantize(torch.tensor([1.2, -0.5, 3.1, -2.4, 0.0]))
    >>> quantized.codes.tolist()
    [49, -20, 127, -98, 0]
    """
    slices = _check(x, bits, granularity, axis, block_size)
    values = x.detach().to(torch.float64)
    largest_code = 2 ** (bits - 1) - 1
    _, high = slices.ranges(values.abs())
    scale = _stored(high / largest_code, high, x.dtype)
    codes = (values / slices.spread(scale.to(torch.float64))).round()
    return _make(x, slices, bits, codes.clamp(-largest_code, largest_code), scale, None)


def zero_point_quantize(
    x: Float[Tensor, "*shape"],
    *,
    bits: int = 8,
    granularity: Granularity = "tensor",
    axis: int = 0,
    block_size: int | None = None,
) -> QuantizedTensor:
    """Quantise from the smallest value to the largest: q = clamp(round(x / scale) + z).

    Formulas: scale = (max - min) / (2^bits - 1), z = -round(min / scale) - 2^(bits-1).

    Args:
        x: any shape; float16, bfloat16, float32 or float64, finite. An empty tensor stays one.
        bits: per code, 2 to 8.
        granularity: what shares a scale and a zero point: "tensor", "channel" or "block".
        axis: for channels: the axis that counts them (0 for the outputs of an nn.Linear's weight).
        block_size: for blocks: values per block.

    Returns:
        Codes, scales and zero points. No value is off by more than a scale, and only clamped ones by more than half.

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if a value is NaN or infinite, or bits, granularity, axis or block_size are not possible.

    Source: Dettmers et al. 2022, §2.1; Jacob et al. 2018, §2.1.

    >>> quantized = zero_point_quantize(torch.tensor([0.1, 1.5, 2.0, 3.9, -0.4]))
    >>> quantized.codes.tolist(), quantized.zero_point.item()
    ([-98, -15, 15, 127, -128], -104)
    """
    slices = _check(x, bits, granularity, axis, block_size)
    values = x.detach().to(torch.float64)
    smallest_code, largest_code = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = slices.ranges(values)
    largest = torch.maximum(low.abs(), high.abs())
    half_width = high / 2 - low / 2  # halves are exact, and high - low may be more than a float64 holds
    scale = _stored(torch.maximum(half_width / ((2**bits - 1) / 2), largest / _MAX_ZERO_POINT), largest, x.dtype)
    zero_point = smallest_code - (low / scale.to(torch.float64)).round()
    codes = (values / slices.spread(scale.to(torch.float64))).round() + slices.spread(zero_point)
    return _make(x, slices, bits, codes.clamp(smallest_code, largest_code), scale, zero_point.to(torch.int32))


def pack_codes(codes: Int[Tensor, "*shape"], bits: int) -> UInt8[Tensor, " bytes"]:
    """Write codes side by side into bytes, each in two's complement, the first in the highest bits.

    Two codes of 4 bits share a byte, four of 2; codes of 3, 5, 6 or 7 bits run across the bytes' borders. The last
    byte is filled up with zeros.

    Args:
        codes: whole numbers from -2^(bits-1) to 2^(bits-1) - 1.
        bits: per code, 2 to 8.

    Returns:
        ceil(number · bits / 8) bytes.

    Raises:
        ValueError: if a code does not fit.

    >>> pack_codes(torch.tensor([1, -1, 7]), 4).tolist()  # 0001 1111, 0111 0000
    [31, 112]
    """
    check_int("bits", bits, 2, 8)
    if codes.numel():
        low, high = (int(bound) for bound in codes.aminmax())
        if low < -(2 ** (bits - 1)) or high >= 2 ** (bits - 1):
            raise ValueError(
                f"codes of {bits} bits must lie from {-(2 ** (bits - 1))} to {2 ** (bits - 1) - 1}, got {low} to {high}"
            )
    flat = codes.reshape(-1).to(torch.uint8)  # two's complement: -1 becomes 255
    places = torch.arange(bits - 1, -1, -1, dtype=torch.uint8, device=codes.device)
    stream = ((flat[:, None] >> places) & 1).reshape(-1)
    stream = torch.nn.functional.pad(stream, (0, -len(stream) % 8)).reshape(-1, 8)
    return (stream << torch.arange(7, -1, -1, dtype=torch.uint8, device=codes.device)).sum(1).to(torch.uint8)


def unpack_codes(packed: UInt8[Tensor, " bytes"], bits: int, num_codes: int) -> Int8[Tensor, " codes"]:
    """Read back what `pack_codes` wrote.

    Args:
        packed: the bytes.
        bits: per code, 2 to 8.
        num_codes: how many there are; the bytes alone do not say where the filling begins.

    Raises:
        ValueError: if the bytes are not as many as that number of codes needs.
    """
    check_int("bits", bits, 2, 8)
    check_int("num_codes", num_codes, 0)
    if packed.numel() != (num_codes * bits + 7) // 8:
        needed = (num_codes * bits + 7) // 8
        raise ValueError(f"{num_codes} codes of {bits} bits take {needed} bytes, got {packed.numel()}")
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    stream = ((packed[:, None] >> places) & 1).reshape(-1)[: num_codes * bits].reshape(-1, bits)
    weights = 2 ** torch.arange(bits - 1, -1, -1, device=packed.device)
    unsigned = (stream * weights).sum(1)
    return torch.where(unsigned >= 2 ** (bits - 1), unsigned - 2**bits, unsigned).to(torch.int8)


@dataclass(frozen=True)
class _Slices:
    """What shares a constant, in a tensor of some shape."""

    shape: torch.Size
    granularity: Granularity
    axis: int | None
    block_size: int | None

    def ranges(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each slice; 0 where a slice is empty."""
        if self.granularity == "block":
            return self._block_ranges(values.reshape(-1))
        if not values.numel():
            nothing = values.new_zeros(() if self.axis is None else self.shape[self.axis])
            return nothing, nothing
        if self.axis is None:
            low, high = values.aminmax()
        else:
            low, high = values.movedim(self.axis, 0).reshape(self.shape[self.axis], -1).aminmax(dim=1)
        return low, high

    def _block_ranges(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        assert self.block_size is not None
        whole = flat.numel() // self.block_size
        parts = [flat[: whole * self.block_size].reshape(whole, self.block_size), flat[whole * self.block_size :][None]]
        bounds = [part.aminmax(dim=1) for part in parts if part.numel()]
        if not bounds:
            return flat.new_zeros(0), flat.new_zeros(0)
        return torch.cat([low for low, _ in bounds]), torch.cat([high for _, high in bounds])

    def spread(self, constants: Tensor) -> Tensor:
        """The constants where they apply: something that broadcasts against the tensor."""
        if self.axis is not None:
            return constants.reshape([-1 if axis == self.axis else 1 for axis in range(len(self.shape))])
        if self.block_size is not None:
            return constants.repeat_interleave(self.block_size)[: self.shape.numel()].reshape(self.shape)
        return constants


def _check(x: Tensor, bits: int, granularity: Granularity, axis: int, block_size: int | None) -> _Slices:
    check_float("x", x)
    check_int("bits", bits, 2, 8)
    if granularity not in get_args(Granularity):
        raise ValueError(f'granularity must be "tensor", "channel" or "block", got {granularity!r}')
    if granularity != "channel" and axis != 0:
        raise ValueError(f'axis is for granularity="channel", got axis={axis!r} with granularity={granularity!r}')
    if granularity == "block":
        if block_size is None:
            raise ValueError('granularity="block" needs a block_size, such as 64')
        check_int("block_size", block_size, 1)
    elif block_size is not None:
        raise ValueError(f'block_size is for granularity="block", got {block_size!r} with {granularity!r}')
    channels = None
    if granularity == "channel":
        if x.ndim == 0:
            raise ValueError('x has no axes, so no channels: use granularity="tensor"')
        check_int("axis", axis, -x.ndim, x.ndim - 1)
        channels = axis % x.ndim
    check_finite("x", x)
    return _Slices(x.shape, granularity, channels, block_size)


def _stored(scale: Tensor, largest: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as they are kept: never 0, because codes are divided by them."""
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    smallest = torch.finfo(kept).smallest_normal * torch.finfo(kept).eps  # the first subnormal
    scale = scale.to(kept).clamp(min=smallest)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def _make(
    x: Tensor, slices: _Slices, bits: int, codes: Tensor, scale: Tensor, zero_point: Tensor | None
) -> QuantizedTensor:
    return QuantizedTensor(
        codes=codes.to(torch.int8),
        scale=scale,
        zero_point=zero_point,
        shape=x.shape,
        dtype=x.dtype,
        bits=bits,
        granularity=slices.granularity,
        axis=slices.axis,
        block_size=slices.block_size,
    )
