"""`tl.dot_scaled`: products of blocks in microscaling formats, where groups of numbers along K share a scale.

Every number is decoded and multiplied by its scale exactly; the products are summed in fp32. Blackwell does that in
hardware, on earlier GPUs Triton converts to bf16 first.

Source: OCP Microscaling Formats (MX) Specification v1.0 (2023), sections 5.2 to 5.4.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from cme295lab.simulator import casts, dtypes
from cme295lab.simulator.broadcasting import result
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # by the lower three bits; the fourth is the sign
_E8M0_BIAS, _E8M0_NAN = 127, 255
_FORMATS: dict[str, tuple[DType, DType]] = {  # format: type of the numbers, type that may hold their bits instead
    "e4m3": (dtypes.float8e4nv, dtypes.uint8), "e5m2": (dtypes.float8e5, dtypes.uint8),
    "bf16": (dtypes.bfloat16, dtypes.uint16), "fp16": (dtypes.float16, dtypes.uint16),
}  # fmt: skip


@native("dot_scaled")
def dot_scaled(
    m: Machine, lhs: Block, lhs_scale: Block | None, lhs_format: str, rhs: Block, rhs_scale: Block | None,
    rhs_format: str, acc: Block | None = None, fast_math: bool = False, lhs_k_pack: bool = True,
    rhs_k_pack: bool = True, out_dtype: DType = dtypes.float32,
) -> Block:  # fmt: skip
    """acc + (lhs * lhs_scale) @ (rhs * rhs_scale); scales are [M, K / group] and [N, K / group]."""
    if out_dtype != dtypes.float32:
        raise KernelTypeError(f"tl.dot_scaled: the result is fp32, got out_dtype={out_dtype}")
    for name, x in (("lhs", lhs), ("rhs", rhs)):
        if not isinstance(x, Block) or len(x.shape) not in (2, 3):
            raise KernelTypeError(f"tl.dot_scaled's {name} must be a block of rank 2 or 3, got {x!r}")
    left = _decoded(m, lhs, lhs_format, -1 if lhs_k_pack else -2, "lhs")
    right = _decoded(m, rhs, rhs_format, -2 if rhs_k_pack else -1, "rhs").transpose(-1, -2)
    if left.shape[-1] != right.shape[-1]:
        raise KernelTypeError(f"tl.dot_scaled: K is {left.shape[-1]} in lhs and {right.shape[-1]} in rhs")
    left, right = _scaled(m, left, lhs_scale, "lhs_scale"), _scaled(m, right, rhs_scale, "rhs_scale")
    product = torch.matmul(left, right.transpose(-1, -2))
    shape = tuple(product.shape[1:])
    m.counters.count_dot(2 * math.prod(shape) * left.shape[-1] * m.num_active, "fp8")
    if acc is not None:
        if acc.shape != shape or acc.dtype != dtypes.float32:
            raise KernelTypeError(f"tl.dot_scaled: the accumulator must be fp32 of shape {shape}, got {acc!r}")
        product = product + torch.as_tensor(acc.full(m.active))
    return result(m, product, dtypes.float32, shape)


def _decoded(m: Machine, x: Block, kind: str, packed_axis: int, name: str) -> torch.Tensor:
    """The numbers of an operand in fp32; two fp4 numbers share a byte along `packed_axis`, the first one below."""
    if kind == "e2m1":
        if x.dtype != dtypes.uint8:
            raise KernelTypeError(f"tl.dot_scaled: e2m1 numbers come in pairs in uint8, {name} is {x.dtype}")
        data = torch.from_numpy(np.ascontiguousarray(x.full(m.active))).long()
        both = torch.stack([data & 15, data >> 4], dim=data.dim() + packed_axis + 1)
        nibbles = both.flatten(data.dim() + packed_axis, data.dim() + packed_axis + 1)
        return torch.where(nibbles >= 8, -_E2M1[nibbles & 7], _E2M1[nibbles & 7])
    if kind not in _FORMATS:
        raise KernelTypeError(f"tl.dot_scaled: the format must be e2m1, {', '.join(_FORMATS)}, got {kind!r}")
    dtype, bits = _FORMATS[kind]
    if packed_axis != (-1 if name == "lhs" else -2):
        raise KernelTypeError("tl.dot_scaled: only e2m1 numbers can be packed along another axis than K")
    if x.dtype not in (dtype, bits):
        raise KernelTypeError(f"tl.dot_scaled: {kind} numbers are {dtype} or {bits}, {name} is {x.dtype}")
    values = x if x.dtype == dtype else casts.bitcast(m, x, dtype)
    return torch.as_tensor(values.full(m.active)).float()


def _scaled(m: Machine, data: torch.Tensor, scale: Block | None, name: str) -> torch.Tensor:
    """Multiply groups along the last axis by their scale."""
    if scale is None:
        return data
    rows, size = data.shape[-2:]
    if not isinstance(scale, Block) or len(scale.shape) < 2 or scale.shape[-2] != rows or size % scale.shape[-1]:
        raise KernelTypeError(f"tl.dot_scaled: {name} must have shape [{rows}, {size} / group], got {scale!r}")
    if scale.dtype == dtypes.uint8:  # e8m0: a power of two
        codes = torch.from_numpy(np.ascontiguousarray(scale.full(m.active))).double()
        factors = torch.where(codes == _E8M0_NAN, torch.nan, torch.exp2(codes - _E8M0_BIAS)).float()
    elif scale.dtype == dtypes.float8e4nv:  # nvfp4
        factors = torch.as_tensor(scale.full(m.active)).float()
    else:
        raise KernelTypeError(f"tl.dot_scaled: {name} must be uint8 (e8m0) or fp8e4nv, got {scale.dtype}")
    return data * factors.repeat_interleave(size // scale.shape[-1], dim=-1)
