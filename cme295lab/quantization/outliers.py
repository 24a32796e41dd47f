"""LLM.int8: a linear layer in 8 bits, but for the few features that 8 bits would ruin.

Large language models have features (columns of a layer's input) whose values are up to 20 times larger than all others,
in nearly every token. Quantised together with them, a row's other values share a scale that is 20 times too coarse,
and few codes are left for what carries the meaning. There are very few such columns (6 or 7 in models of up to 13
billion parameters), so they are taken out:

    y = (S_x S_w) ⊙ (Q_x Q_wᵀ)          the other columns: int8 codes, multiplied in integers
        + X_out W_outᵀ                  columns with some |x| >= 6: in 16 bits
        + bias

    vector-wise: a scale for each row of x (a token) and for each row of w (an output): S = max|row| / 127. An output is
    the product of one of each, so both can be taken out of the sum; a scale per *input* feature could not be.

More than 99.9 % of the values stay in 8 bits.

Decisions. Products of codes are summed exactly, as a GPU's int32 accumulators do: in float64, where every such sum is a
whole number below 2^53, then stored as int32. The weight's scales cover all its columns, because a weight is quantised
once, before any input is seen. 16-bit operands are multiplied in float32, because half precision is slow on a CPU and
tensor cores accumulate in float32 too.

bitsandbytes differs twice. It keeps the weight's int8 codes alone, and reads the outliers' weights from them; here, as
in the paper, these keep 16 bits. And it leaves the large *values* out of a row's scale, where the paper leaves out the
*columns*: a 5 in an outlier column makes its row coarser there, and not here.

This is the mathematics, not a fast kernel: nothing here is faster than `torch.nn.functional.linear`.

Source: Dettmers et al. 2022, "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", §3.1, §3.2.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int8, Int32, Int64
from torch import Tensor

from cme295lab.quantization.checking import check_finite, check_float
from cme295lab.quantization.integers import absmax_quantize

OUTLIER_THRESHOLD = 6.0
"""Values of at least this size make their column an outlier (§3.2 of the paper)."""

_MAX_SUMMANDS = (2**31 - 1) // 127**2  # what an int32 holds of products of two codes


def outlier_columns(
    x: Float[Tensor, "*rows features"], threshold: float = OUTLIER_THRESHOLD
) -> Int64[Tensor, " found"]:
    """Find the features (last axis) in which some value is at least as large as the threshold.

    Args:
        x: a layer's inputs.
        threshold: positive; math.inf finds none.

    Returns:
        Their numbers, ascending.

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has no axes, or a value that is not finite, or the threshold is not positive.

    >>> outlier_columns(torch.tensor([[0.5, -7.0, 1.0], [0.1, 0.2, 6.0]])).tolist()
    [1, 2]
    """
    check_float("x", x)
    if x.ndim == 0:
        raise ValueError("x must have features as its last axis, got a tensor without axes")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold > 0:
        raise ValueError(f"threshold must be a positive number (math.inf: no outliers), got {threshold!r}")
    check_finite("x", x)
    large = x.detach().reshape(-1, x.shape[-1]).abs() >= threshold if x.numel() else x.new_zeros(1, x.shape[-1]) > 0
    return large.any(dim=0).nonzero().flatten()


def int8_product(
    x_codes: Int8[Tensor, "rows features"], weight_codes: Int8[Tensor, "outputs features"]
) -> Int32[Tensor, "rows outputs"]:
    """Multiply codes, Q_x Q_wᵀ, and sum without any rounding, into int32.

    Args:
        x_codes: (rows, features), int8, from -127 to 127.
        weight_codes: (outputs, features), likewise.

    Raises:
        TypeError: if the codes are not int8.
        ValueError: if the numbers of features differ, or are so many that an int32 might overflow.

    >>> int8_product(torch.tensor([[127, -1]], dtype=torch.int8), torch.tensor([[127, 2]], dtype=torch.int8)).item()
    16127
    """
    for name, codes in (("x_codes", x_codes), ("weight_codes", weight_codes)):
        if codes.dtype != torch.int8:
            raise TypeError(f"{name} must be int8, got {codes.dtype}")
    num_features = x_codes.shape[1]
    if weight_codes.shape[1] != num_features:
        raise ValueError(f"x_codes has {num_features} features, weight_codes {weight_codes.shape[1]}")
    if num_features > _MAX_SUMMANDS:
        raise ValueError(f"an int32 holds {_MAX_SUMMANDS} products of int8 codes, got {num_features} features")
    return (x_codes.double() @ weight_codes.double().T).to(torch.int32)


def mixed_int8_linear(
    x: Float[Tensor, "*rows features"],
    weight: Float[Tensor, "outputs features"],
    bias: Float[Tensor, " outputs"] | None = None,
    threshold: float = OUTLIER_THRESHOLD,
) -> Float[Tensor, "*rows outputs"]:
    """Compute x Wᵀ + bias with 8-bit codes, and with 16 bits for the outlier columns of x.

    Args:
        x: inputs, finite.
        weight: as an nn.Linear keeps it, finite.
        bias: added in float32.
        threshold: what makes a column an outlier; math.inf takes none out.

    Returns:
        In x's dtype. The 16 bits are x's own where it has 16, float16 otherwise. No gradients.

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if the shapes do not fit, a value is not finite, an outlier or its weight is more than float16
            holds, or the threshold is not positive.

    Source: Dettmers et al. 2022, equation 8.
    """
    _check_shapes(x, weight, bias)
    outliers = outlier_columns(x, threshold)
    rows = x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1])
    inliers = torch.ones(x.shape[-1], dtype=torch.bool, device=x.device)
    inliers[outliers] = False
    x_int8 = absmax_quantize(rows[:, inliers], granularity="channel")
    weight_int8 = absmax_quantize(weight, granularity="channel")
    product = int8_product(x_int8.codes, weight_int8.codes[:, inliers])
    result = product.float() * x_int8.scale.float()[:, None] * weight_int8.scale.float()
    result += _sixteen_bits("x", rows[:, outliers], x.dtype) @ _sixteen_bits("weight", weight[:, outliers], x.dtype).T
    if bias is not None:
        result += bias.detach().float()
    return result.reshape(*x.shape[:-1], weight.shape[0]).to(x.dtype)


def _check_shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_float("x", x)
    check_float("weight", weight)
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"x must be (..., features) and weight (outputs, features), got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    check_finite("weight", weight)
    if bias is not None:
        check_float("bias", bias)
        if bias.shape != (weight.shape[0],):
            raise ValueError(f"bias must have the shape ({weight.shape[0]},), got {tuple(bias.shape)}")
        check_finite("bias", bias)


def _sixteen_bits(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values rounded to 16 bits, as float32 for the arithmetic."""
    half = dtype if dtype in (torch.float16, torch.bfloat16) else torch.float16
    rounded = values.detach().to(half).float()
    if not bool(torch.isfinite(rounded).all()):
        raise ValueError(
            f"{name} has an outlier of {float(values.abs().max()):.6g}, more than {half} holds "
            f"({torch.finfo(half).max:g}): pass x in bfloat16"
        )
    return rounded
