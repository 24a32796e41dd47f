"""From values to codes and back.

`encode` takes the bits of its input apart and builds the code from them, by the integer arithmetic of ``bits``:

    nearest      ties to the even code. Beyond max plus half a step: infinity ("ieee"), NaN ("nan-only")
    zero         what does not fit is cut off; too large a value becomes max, infinity stays infinity
    stochastic   up or down with probabilities that make the mean right, among subnormals, too. Between max and the next
                 value that a wider exponent would have, x overflows with the probability of that next value

With `saturate` all that is too large becomes max, infinity included (OCP's SATFINITE). "finite" formats have nothing
above max: values clamp to it always (OCP's rule for fp6 and fp4), infinity is refused unless `saturate` allows it, and
NaN is refused always. A "scale" has no zero and no sign: zero and negative values are refused, positive ones below the
smallest become the smallest; nearest is nearest in value, and a tie goes up, because there is no mantissa to be even;
zero is 2^floor(log2 x), the rule of MX blocks.

Rounding happens once, from the exact value of the input: float64 inputs don't pass through float32. Inputs of 16 and 8
bits are widened first, which is exact.

Where libraries differ: this module follows ml_dtypes for e4m3fn (465 is NaN, 464 is 448) while PyTorch saturates
(2.13: even infinity becomes 448). ml_dtypes clamps infinity in fp6 and fp4 and turns NaN into zero; here both are
errors. It gives NaN for an e8m0 of zero or less, and rounds values between 2^-127 and 2^-126 up always. NaN keeps its
sign and becomes the quiet NaN, as in ml_dtypes; NumPy keeps more of the payload.

Source: IEEE 754-2019, §4.3; Rouhani et al. 2023, "OCP Microscaling Formats (MX) Specification v1.0", §5.3 and §6.3.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from jaxtyping import Float, Float64, Integer, Shaped
from torch import Tensor

from cme295lab.precision.formats.bits import (
    FLOAT64,
    Rounding,
    decode_bits,
    decode_magnitude,
    encode_bits,
    round_bits,
    source_of,
)
from cme295lab.precision.formats.description import FloatFormat, get_format

CHUNK_VALUES = 1 << 17  # encoded at a time: intermediate integers stay in the cache


def code_dtype(format: str | FloatFormat) -> torch.dtype:
    """Integers that `encode` answers in: int32 for less than 32 bits, else int64 (fp64: with the bits of the sign)."""
    return torch.int32 if get_format(format).num_bits < 32 else torch.int64


def encode(
    x: Float[Tensor, "*shape"],
    format: str | FloatFormat,
    *,
    rounding: Rounding = "nearest",
    saturate: bool = False,
    generator: torch.Generator | None = None,
) -> Integer[Tensor, "*shape"]:
    """Codes of the values that the format has next to x.

    Args:
        x: any floating dtype.
        format: a name of `FORMATS`, or a format of your own.
        rounding: "nearest" (ties to even), "zero" or "stochastic".
        saturate: let what is too large become the largest finite value, infinity included.
        generator: of the random bits of stochastic rounding; PyTorch's own where left out.

    Returns:
        Codes from 0 to num_codes - 1, int32 for formats of less than 32 bits, else int64. Codes of fp64 are its bits
        as int64, negative where the sign is set.

    Raises:
        TypeError: if x is not of a floating dtype.
        ValueError: if the rounding is unknown, a generator is given that nothing asks, or x holds what the format has
            no code for (the module says what).

        >>> encode(torch.tensor([1.0, -6.0, 0.26]), "fp4_e2m1").tolist()
        [2, 15, 1]
    """
    chosen = get_format(format)
    _check_input(x, rounding, generator)
    values = x.detach() if x.dtype.itemsize > 1 else x.detach().float()  # PyTorch's 8-bit dtypes can do little
    _refuse_what_has_no_code(values, chosen, saturate)
    source = source_of(values.dtype, chosen, rounding)
    codes = torch.empty(values.shape, dtype=code_dtype(chosen), device=values.device)
    inputs, outputs = values.reshape(-1), codes.view(-1)
    step = _chunk_length(inputs)
    for start in range(0, inputs.numel(), step):
        bits = inputs[start : start + step].to(source.float_dtype).view(source.int_dtype)
        outputs[start : start + step] = encode_bits(bits, chosen, source, rounding, saturate, generator)
    return codes


def decode(codes: Integer[Tensor, "*shape"], format: str | FloatFormat) -> Float64[Tensor, "*shape"]:
    """Values of codes, exactly.

    Args:
        codes: 0 to num_codes - 1, of any integer dtype; fp64's are its bits as int64.

    Raises:
        TypeError: if the codes are not integers.
        ValueError: if there is no such code.

        >>> decode(torch.tensor([0x7E, 0x7F, 0x81]), "fp8_e4m3fn").tolist()
        [448.0, nan, -0.001953125]
    """
    chosen = get_format(format)
    if codes.dtype in (torch.uint16, torch.uint32, torch.uint64):
        codes = codes.to(torch.int64)  # PyTorch's unsigned integers of more than a byte can do little
    _check_codes(codes, chosen)
    if chosen.num_bits <= 16 and codes.numel() > chosen.num_codes:
        return look_up(all_values(chosen).to(codes.device), codes)
    values = torch.empty(codes.shape, dtype=torch.float64, device=codes.device)
    inputs, outputs = codes.reshape(-1), values.view(-1)
    step = _chunk_length(inputs)
    for start in range(0, inputs.numel(), step):
        outputs[start : start + step] = decode_bits(inputs[start : start + step].to(torch.int64), chosen)
    return values


def look_up(table: Shaped[Tensor, " codes"], codes: Integer[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """Entries of a table with one for each code: what decoding is where there are more values than codes."""
    index = codes.reshape(-1)
    return table.index_select(0, index if index.dtype is torch.int32 else index.to(torch.int64)).view(codes.shape)


def all_values(format: str | FloatFormat) -> Float64[Tensor, " codes"]:
    """Values of all codes, in the order of codes: entry c is what code c means.

    Raises:
        ValueError: if the format has more than 16 bits.
    """
    chosen = get_format(format)
    if chosen.num_bits > 16:
        raise ValueError(f"{chosen.name} has 2^{chosen.num_bits} codes; all_values lists formats of at most 16 bits")
    return decode(torch.arange(chosen.num_codes), chosen)


def neighbours(
    x: Float[Tensor, "*shape"], format: str | FloatFormat
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """The values of a format around x: the largest that is not above it, and the smallest that is not below.

    Where the format has no such value the answer is -infinity or +infinity, which "ieee" formats really have and others
    do not. Both answers are x where x is a value of the format, NaN where x is.

    Raises:
        TypeError: if x is not of a floating dtype.
    """
    chosen = get_format(format)
    _check_input(x, "zero", None)
    values = x.detach().to(torch.float64)
    bits = values.abs().view(torch.int64)
    code = round_bits(bits, chosen, FLOAT64, "zero", None).clamp(max=chosen.max_code)
    below = decode_magnitude(code, chosen)
    above = decode_magnitude((code + 1).clamp(max=chosen.max_code), chosen)
    size = values.abs()
    inner = torch.where(below <= size, below, -torch.inf)  # a scale has nothing below its smallest value
    outer = torch.where(below >= size, below, torch.where(above >= size, above, torch.inf))
    if chosen.specials == "ieee":
        inner = torch.where(size.isinf(), size, inner)
    lowest = 0.0 if chosen.specials != "scale" else chosen.min_positive
    negative = values < 0
    if chosen.signed:
        lower, upper = torch.where(negative, -outer, inner), torch.where(negative, -inner, outer)
    else:
        lower, upper = torch.where(negative, -torch.inf, inner), torch.where(negative, lowest, outer)
    unknown = values.isnan()
    return lower.masked_fill(unknown, torch.nan), upper.masked_fill(unknown, torch.nan)


def _chunk_length(flat: Tensor) -> int:
    return CHUNK_VALUES if flat.device.type == "cpu" else max(1, flat.numel())


def _check_codes(codes: Tensor, format: FloatFormat) -> None:
    if codes.is_floating_point() or codes.is_complex() or codes.dtype is torch.bool:
        raise TypeError(f"codes must be integers, got {codes.dtype}: encode() makes them")
    if format.num_bits == 64 or codes.numel() == 0:
        return
    lowest, highest = (int(edge) for edge in torch.aminmax(codes))
    if lowest < 0 or highest >= format.num_codes:
        raise ValueError(
            f"codes of {format.name} must be 0 to {format.num_codes - 1}, got {lowest} to {highest}: bits that were "
            f"read as a signed integer need `& {format.num_codes - 1:#x}`"
        )


def _check_input(x: Tensor, rounding: str, generator: torch.Generator | None) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x must be of a floating dtype, got {x.dtype}: convert it first, as x.double()")
    if rounding not in get_args(Rounding):
        raise ValueError(f"rounding must be one of {get_args(Rounding)}, got {rounding!r}")
    if generator is not None and rounding != "stochastic":
        raise ValueError(f'a generator is for rounding="stochastic"; rounding={rounding!r} draws nothing')


def _refuse_what_has_no_code(x: Tensor, format: FloatFormat, saturate: bool) -> None:
    """Raise where x holds NaN, infinity, a sign or zero and the format cannot say so."""
    if x.numel() == 0 or (format.signed and format.specials != "finite"):
        return
    lowest, highest = (float(edge) for edge in torch.aminmax(x))  # NaN if there is one
    finite = format.specials == "finite"
    if finite and math.isnan(lowest):
        count = int(x.isnan().sum())
        raise ValueError(f"x holds NaN ({count} of {x.numel()} values), {format.name} has no code for it")
    if finite and not saturate and (math.isinf(lowest) or math.isinf(highest)):
        raise ValueError(
            f"x holds infinity ({int(x.isinf().sum())} of {x.numel()} values), {format.name} has no code for it: "
            f"saturate=True makes it {format.max:g}"
        )
    if format.specials == "scale" and bool((x <= 0).any()):
        raise ValueError(
            f"x holds {float(x[x <= 0].reshape(-1)[0]):g}, but {format.name} is a scale, with neither zero nor sign: "
            "give positive values"
        )
    if not format.signed and bool((x < 0).any()):
        raise ValueError(f"x holds {float(x[x < 0].reshape(-1)[0]):g}, but {format.name} has no sign")
