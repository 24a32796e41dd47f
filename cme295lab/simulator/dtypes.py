"""The types of kernel values and how they combine.

Floats are held by torch (it has fp16, bf16 and fp8), integers and booleans by numpy (it has all unsigned types and is
quicker on the small arrays that addresses are made of). The promotion rules are Triton's: usual C conversions between
blocks, while a Python number never widens a block of the same or a higher kind.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cme295lab.simulator.errors import KernelTypeError

BOOLEAN, INTEGER, FLOATING = 0, 1, 2


@dataclass(frozen=True, eq=False)
class DType:
    """A scalar type: name as Triton prints it, kind, width in bits, and the library type that holds it. There is one
    object for each type.

    The methods are those that kernels call on `x.dtype`.
    """

    name: str
    kind: int
    primitive_bitwidth: int
    signed: bool = True
    numpy: np.dtype = field(default=np.dtype(np.int32), compare=False)
    torch: torch.dtype = field(default=torch.float32, compare=False)

    @functools.cached_property
    def itemsize(self) -> int:
        return max(1, self.primitive_bitwidth // 8)

    @property
    def int_bitwidth(self) -> int:
        return self.primitive_bitwidth

    @property
    def scalar(self) -> DType:
        return self

    @functools.cached_property
    def is_float(self) -> bool:
        return self.kind == FLOATING

    def is_floating(self) -> bool:
        return self.kind == FLOATING

    def is_int(self) -> bool:
        return self.kind != FLOATING

    def is_bool(self) -> bool:
        return self.kind == BOOLEAN

    is_int1 = is_bool

    def is_int_signed(self) -> bool:
        return self.kind == INTEGER and self.signed

    def is_int_unsigned(self) -> bool:
        return self.kind != FLOATING and not self.signed

    def is_ptr(self) -> bool:
        return False

    def is_block(self) -> bool:
        return False

    def is_fp8(self) -> bool:
        return self.kind == FLOATING and self.primitive_bitwidth == 8

    def is_standard_floating(self) -> bool:
        return self.kind == FLOATING and self.primitive_bitwidth > 8

    def is_fp16(self) -> bool:
        return self.name == "fp16"

    def is_bf16(self) -> bool:
        return self.name == "bf16"

    def is_fp32(self) -> bool:
        return self.name == "fp32"

    def is_fp64(self) -> bool:
        return self.name == "fp64"

    def is_const(self) -> bool:
        return False

    is_void = is_const

    def get_int_max_value(self) -> int:
        return 1 if self.is_bool() else int(np.iinfo(self.numpy).max)

    def get_int_min_value(self) -> int:
        return 0 if self.is_bool() else int(np.iinfo(self.numpy).min)

    @property
    def fp_mantissa_width(self) -> int:
        return _MANTISSA_BITS[self.name]

    def __getattr__(self, name: str) -> Any:
        """`x.dtype.is_int32()` and its like, for every type."""
        asked = name.removeprefix("is_")
        if asked in BY_NAME and name.startswith("is_"):
            return lambda: self.name == asked
        raise AttributeError(f"a type has no attribute {name!r}")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class PointerType:
    """The type of a pointer or block of pointers: `x_ptr.dtype.element_ty` is what it points to."""

    element_ty: DType | BlockType

    @property
    def scalar(self) -> PointerType:
        return self

    @property
    def primitive_bitwidth(self) -> int:
        return 64

    def is_ptr(self) -> bool:
        return True

    def is_floating(self) -> bool:
        return False

    is_int = is_bool = is_block = is_const = is_fp8 = is_int_signed = is_int_unsigned = is_floating

    def __str__(self) -> str:
        return f"pointer<{self.element_ty}>"


@dataclass(frozen=True)
class BlockType:
    """The type of a block: `x.type` of a kernel value that is no scalar."""

    element_ty: DType | PointerType
    shape: tuple[int, ...]

    @property
    def scalar(self) -> DType | PointerType:
        return self.element_ty

    @property
    def nbytes(self) -> int:
        element = self.element_ty
        return math.prod(self.shape) * (8 if isinstance(element, PointerType) else element.itemsize)

    def get_block_shapes(self) -> tuple[int, ...]:
        return self.shape

    def is_block(self) -> bool:
        return True

    def is_ptr(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        """A question about the elements, such as `x.type.is_floating()`."""
        if name.startswith(("is_", "primitive_", "int_")):
            return getattr(self.element_ty, name)
        raise AttributeError(f"a block type has no attribute {name!r}")

    def __str__(self) -> str:
        return f"<{list(self.shape)}, {self.element_ty}>"


def _float(name: str, bits: int, held: torch.dtype) -> DType:
    return DType(name, FLOATING, bits, True, np.dtype(np.float32), held)


def _int(name: str, bits: int, held: type[np.generic], kind: int = INTEGER) -> DType:
    return DType(name, kind, bits, name.startswith("i") and kind == INTEGER, np.dtype(held), torch.int32)


float64 = _float("fp64", 64, torch.float64)
float32 = _float("fp32", 32, torch.float32)
float16 = _float("fp16", 16, torch.float16)
bfloat16 = _float("bf16", 16, torch.bfloat16)
float8e5 = _float("fp8e5", 8, torch.float8_e5m2)
float8e4nv = _float("fp8e4nv", 8, torch.float8_e4m3fn)
float8e5b16 = _float("fp8e5b16", 8, torch.float8_e5m2fnuz)
float8e4b8 = _float("fp8e4b8", 8, torch.float8_e4m3fnuz)
int1 = _int("int1", 1, np.bool_, BOOLEAN)
int8, int16, int32, int64 = (
    _int(f"int{b}", b, t) for b, t in ((8, np.int8), (16, np.int16), (32, np.int32), (64, np.int64))
)
uint8, uint16, uint32, uint64 = (
    _int(f"uint{b}", b, t) for b, t in ((8, np.uint8), (16, np.uint16), (32, np.uint32), (64, np.uint64))
)

ALL = (
    float64,
    float32,
    float16,
    bfloat16,
    float8e5,
    float8e4nv,
    float8e5b16,
    float8e4b8,
    int1,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
_MANTISSA_BITS = {
    "fp64": 52, "fp32": 23, "fp16": 10, "bf16": 7, "fp8e5": 2, "fp8e4nv": 3, "fp8e5b16": 2, "fp8e4b8": 3,
}  # fmt: skip
BY_NAME = {d.name: d for d in ALL}
BY_TORCH = {d.torch: d for d in ALL if d.is_float} | {
    torch.bool: int1, torch.int8: int8, torch.int16: int16, torch.int32: int32, torch.int64: int64,
    torch.uint8: uint8, torch.uint16: uint16, torch.uint32: uint32, torch.uint64: uint64,
}  # fmt: skip

_SMALLEST_NORMAL_FP32, LARGEST_FP32 = 2.0**-126, (2 - 2**-23) * 2.0**127


def of_number(value: bool | int | float) -> DType:
    """The type that Triton gives to a Python number."""
    if isinstance(value, bool):
        return int1
    if isinstance(value, int):
        for bound_low, bound_high, dtype in (
            (-(2**31), 2**31, int32),
            (0, 2**32, uint32),
            (-(2**63), 2**63, int64),
            (0, 2**64, uint64),
        ):
            if bound_low <= value < bound_high:
                return dtype
        raise KernelTypeError(f"the integer {value} does not fit in 64 bits")
    size = abs(value)
    ordinary = size == 0 or size != size or size == float("inf") or _SMALLEST_NORMAL_FP32 <= size <= LARGEST_FP32
    return float32 if ordinary else float64


def of_argument(value: bool | int | float) -> DType:
    """The type that Triton gives to a number passed to a launch."""
    if isinstance(value, float):
        return float32
    dtype = of_number(value)
    return int64 if dtype == uint32 else dtype


def promote_integers(a: DType, b: DType) -> DType:
    """C's usual arithmetic conversions: the wider type wins, unsigned wins among equals."""
    if a.signed == b.signed:
        return a if a.primitive_bitwidth > b.primitive_bitwidth else b
    unsigned, signed = (b, a) if a.signed else (a, b)
    return unsigned if unsigned.primitive_bitwidth >= signed.primitive_bitwidth else signed


def promote(
    a: DType, b: DType, *, a_is_number: bool = False, b_is_number: bool = False, division: bool = False
) -> DType:
    """The type in which Triton computes `a op b`.

    Args:
        a, b: operand types.
        a_is_number, b_is_number: the operand is a Python number, not a kernel value.
        division: the operation is `/`, `//` or `%`, which Triton does not do in 16-bit floats.
    """
    if a_is_number != b_is_number:
        number, block = (a, b) if a_is_number else (b, a)
        if number.kind <= block.kind:
            a = b = block
    if "fp64" in (a.name, b.name):
        return float64
    if division and (a.is_float or b.is_float):
        return float32
    if "fp32" in (a.name, b.name):
        return float32
    if "fp16" in (a.name, b.name):
        return float16
    if a.is_bf16() and b.is_bf16():
        return bfloat16
    if a.is_bf16() or b.is_bf16():
        return float32
    if a.is_fp8() and b.is_fp8():
        return a if a == b else float16
    if a.is_float or b.is_float:
        raise KernelTypeError(f"cannot combine {a} and {b}: cast one of them with .to(...)")
    if division and a.signed != b.signed:
        raise KernelTypeError(f"cannot divide {a} and {b}, one signed and one unsigned: cast one of them with .to(...)")
    return promote_integers(a, b)
