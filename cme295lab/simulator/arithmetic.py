"""Arithmetic on blocks: promotion, broadcasting, casts, comparisons, element-wise functions.

Two things make it quick. Integers stay lazy sums (see `values`), so addresses and in-bounds masks cost next to
nothing; and a floating-point result overwrites an operand that nobody else holds, as a register would be.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes
from cme295lab.simulator.broadcasting import broadcast_sizes, common_shape, lazy_sum, lifted, result
from cme295lab.simulator.casts import cast
from cme295lab.simulator.deferred import blank, elementwise, is_deferred, is_pending
from cme295lab.simulator.dtypes import LARGEST_FP32, DType
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block, Pointer, add_terms, as_torch, require_block, scalar, sum_terms

Number = bool | int | float
Operand = Block | Number

_PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "<<": operator.lshift,
    ">>": operator.rshift,
    "**": operator.pow,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_FLOAT: dict[str, Callable[..., torch.Tensor]] = {
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "%": torch.fmod,
    "min": torch.fmin,
    "max": torch.fmax,
    "minnan": torch.minimum,
    "maxnan": torch.maximum,
}
_INT: dict[str, Callable[..., np.ndarray]] = {
    "*": np.multiply, "%": np.fmod, "&": np.bitwise_and, "|": np.bitwise_or, "^": np.bitwise_xor, "<<": np.left_shift,
    ">>": np.right_shift, "min": np.minimum, "max": np.maximum, "minnan": np.minimum, "maxnan": np.maximum,
}  # fmt: skip
_COMPARE_FLOAT = {"<": torch.lt, "<=": torch.le, ">": torch.gt, ">=": torch.ge, "==": torch.eq, "!=": torch.ne}
_COMPARE_INT = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_WORTH_REUSING = 1024  # elements; below that, allocating is cheaper than deciding
_KEEPS_TYPE = frozenset(["+", "-", "*", "min", "max", "minnan", "maxnan", "<", "<=", ">", ">=", "==", "!="])
_BITWISE = frozenset(["&", "|", "^", "<<", ">>"])


def binary(m: Machine, op: str, a: Operand, b: Operand) -> Operand:
    """`a op b` with Triton's promotion and broadcasting; `op` is the Python operator, or min, max, minnan, maxnan."""
    if not isinstance(a, Block) and not isinstance(b, Block):
        return _numbers(op, a, b)
    if isinstance(a, Pointer) or isinstance(b, Pointer):
        return _pointer_arithmetic(m, op, a, b)
    a, b, dtype = promoted(m, op, a, b)
    if dtype.is_fp8():
        return _in_fp32(m, op, a, b, dtype)
    shape = common_shape(a, b)
    if op in _COMPARE_INT:
        return _compare(m, op, a, b, dtype, shape)
    if dtype.is_float:
        return _float_binary(m, op, a, b, dtype, shape)
    return _int_binary(m, op, as_block(m, a, dtype), as_block(m, b, dtype), dtype, shape)


def _in_fp32(m: Machine, op: str, a: Operand, b: Operand, dtype: DType) -> Operand:
    """Arithmetic of 8-bit floats, which torch does not have; rounded once, since fp32 holds it exactly or nearly so."""
    wide = [cast(m, x, dtypes.float32) if isinstance(x, Block) else x for x in (a, b)]
    found = binary(m, op, *wide)
    return cast(m, found, dtype) if isinstance(found, Block) and found.dtype.is_float else found


def _numbers(op: str, a: Any, b: Any) -> Any:
    if op in ("min", "minnan"):
        return min(a, b)
    if op in ("max", "maxnan"):
        return max(a, b)
    return _PYTHON[op](a, b)


def compare_constants(op: str, a: object, b: object) -> bool:
    """A comparison of compile-time values, which may be types or strings."""
    return bool(_PYTHON[op](a, b))


def promoted(m: Machine, op: str, a: Operand, b: Operand) -> tuple[Operand, Operand, DType]:
    """Both operands in the type of the operation; Python numbers stay numbers (rounded to that type)."""
    if isinstance(a, Block) and isinstance(b, Block) and a.dtype is b.dtype and op in _KEEPS_TYPE:
        return a, b, a.dtype
    a_type = a.dtype if isinstance(a, Block) else dtypes.of_number(a)
    b_type = b.dtype if isinstance(b, Block) else dtypes.of_number(b)
    if a_type == b_type and op != "/":
        dtype = dtypes.float32 if op == "%" and a_type.is_float and a_type.primitive_bitwidth < 32 else a_type
    else:
        dtype = dtypes.promote(
            a_type,
            b_type,
            a_is_number=not isinstance(a, Block),
            b_is_number=not isinstance(b, Block),
            division=op in ("/", "//", "%"),
        )
    if op == "/" and not dtype.is_float:  # a number must fit the integers, before both become floats
        a, b = (x if isinstance(x, Block) else _to(m, x, dtype) for x in (a, b))
    if (op == "/" and not dtype.is_float) or (op == "/" and dtype.primitive_bitwidth < 32):
        dtype = dtypes.float32
    if dtype.is_float and (op == "//" or op in _BITWISE):
        raise KernelTypeError(f"{op!r} needs integers, got {a_type} and {b_type}")
    return _to(m, a, dtype), _to(m, b, dtype), dtype


def _to(m: Machine, x: Operand, dtype: DType) -> Operand:
    if isinstance(x, Block):
        return x if x.dtype == dtype else cast(m, x, dtype)
    if dtype.is_float:
        if dtype.primitive_bitwidth < 32:
            return float(torch.tensor(float(x), dtype=dtype.torch))
        return float(x) if dtype.primitive_bitwidth == 64 or not abs(x) > LARGEST_FP32 else math.copysign(math.inf, x)
    if x < 0 and not dtype.signed and dtype.kind == dtypes.INTEGER:
        raise KernelTypeError(
            f"cannot combine an unsigned {dtype} value with the negative number {x}: cast one of them"
        )
    if not dtype.get_int_min_value() <= x <= dtype.get_int_max_value():
        raise KernelTypeError(f"the number {x} does not fit in {dtype}: cast the block to a wider type first")
    return x


def as_block(m: Machine, x: Operand, dtype: DType) -> Block:
    """An operand as a kernel value of a type."""
    return x if isinstance(x, Block) else scalar(x, m.active, dtype)


def make_room(m: Machine, operands: tuple[Operand, ...], dtype: DType, shape: tuple[int, ...]) -> None:
    """The on-chip count goes by the expression alone: a temporary of the result's type and shape makes room for it."""
    for x in operands:
        if isinstance(x, Block) and x.temporary and x.dtype == dtype and x.shape == shape:
            m.temporary_bytes -= x.block_bytes
            return


def in_place(
    m: Machine, operands: tuple[Operand, ...], dtype: DType, shape: tuple[int, ...], size: Sequence[int]
) -> torch.Tensor | None:
    """Memory of an operand that the result may overwrite, as a register would be; None if there is none."""
    if _size(shape) < _WORTH_REUSING:
        return None
    for x in operands:
        if not isinstance(x, Block) or x.dtype != dtype:
            continue
        array = x.arrays[0]
        if (
            (x.temporary or x.expiring)
            and not x.exposed
            and x.programs is m.active
            and tuple(array.shape) == tuple(size)
        ):
            return as_torch(array)
    return None


def _float_binary(m: Machine, op: str, a: Operand, b: Operand, dtype: DType, shape: tuple[int, ...]) -> Block:
    m.count_float_ops(_size(shape))
    make_room(m, (a, b), dtype, shape)
    rank = len(shape)
    function = _FLOAT[op]
    if is_deferred(m, a, b):
        if not isinstance(b, Block) and op in ("+", "-", "*", "/"):
            return elementwise(m, function, (a, b), dtype, shape)
        if not isinstance(a, Block) and op in ("+", "*"):
            return elementwise(m, function, (b, a), dtype, shape)
        return elementwise(m, function, [as_block(m, x, dtype) for x in (a, b)], dtype, shape)
    x: Any = as_torch(lifted(a.data(m.active), rank)) if isinstance(a, Block) else a
    y: Any = as_torch(lifted(b.data(m.active), rank)) if isinstance(b, Block) else b
    if not isinstance(x, torch.Tensor):
        if op == "*" or op == "+":
            x, y, a, b = y, x, b, a
        else:
            x = torch.full((1,) * (rank + 1), x, dtype=dtype.torch)
    if not isinstance(y, torch.Tensor) and op in ("min", "max", "minnan", "maxnan", "%"):
        y = torch.full((1,) * (rank + 1), y, dtype=dtype.torch)
    size = broadcast_sizes(x.shape, y.shape) if isinstance(y, torch.Tensor) else tuple(x.shape)
    out = in_place(m, (a, b), dtype, shape, size)
    return result(m, function(x, y) if out is None else function(x, y, out=out), dtype, shape)


def _size(shape: tuple[int, ...]) -> int:
    return math.prod(shape)


def _int_binary(m: Machine, op: str, a: Block, b: Block, dtype: DType, shape: tuple[int, ...]) -> Block:
    rank = len(shape)
    if op in ("+", "-") and not dtype.is_bool():
        left = [lifted(t, rank) for t in a.terms(m.active)]
        right = [lifted(t, rank) for t in b.terms(m.active)]
        return lazy_sum(m, add_terms(left, right if op == "+" else [-t for t in right]), dtype, shape)
    if op == "*":
        for x, y in ((a, b), (b, a)):
            if len(x.arrays) > 1 and not y.shape:
                factor = lifted(y.data(m.active), rank)
                return lazy_sum(m, [lifted(t, rank) * factor for t in x.terms(m.active)], dtype, shape)
    left_data, right_data = lifted(a.data(m.active), rank), lifted(b.data(m.active), rank)
    with np.errstate(all="ignore"):
        if op == "//":
            return result(m, _divide(left_data, right_data), dtype, shape)
        if op in ("+", "-"):
            return result(m, np.bitwise_xor(left_data, right_data), dtype, shape)
        return result(m, _INT[op](left_data, right_data).astype(dtype.numpy, copy=False), dtype, shape)


def _divide(a: Any, b: Any) -> np.ndarray:
    """Integer division that truncates toward zero, as the hardware does (numpy's rounds down)."""
    if a.min() >= 0 and b.min() >= 0:
        return np.asarray(a // b)
    return ((a - np.fmod(a, b)) // b).astype(a.dtype)


def _pointer_arithmetic(m: Machine, op: str, a: Operand, b: Operand) -> Block:
    if isinstance(b, Pointer):
        a, b = b, a
    assert isinstance(a, Pointer)
    if isinstance(b, Pointer):
        if op in _COMPARE_INT and a.storage is b.storage:
            return result(m, _COMPARE_INT[op](a.data(m.active), b.data(m.active)), dtypes.int1, common_shape(a, b))
        raise KernelTypeError(f"cannot compute pointer {op} pointer")
    offset = as_block(m, b, dtypes.of_number(b)) if not isinstance(b, Block) else b
    if op not in ("+", "-"):
        raise KernelTypeError(
            f"cannot compute pointer {op} {offset.dtype}: {a.storage.name!r} is a tensor, so the kernel gets a "
            "pointer; tl.load its numbers, or pass a Python number (of a tensor with one element: .item())"
        )
    if offset.dtype.is_float:
        raise KernelTypeError(
            f"cannot compute pointer {op} {offset.dtype}: offsets are added as integers; use // instead of /, or "
            "convert with .to(tl.int32)"
        )
    shape = common_shape(a, offset)
    rank = len(shape)
    terms = offset.terms(m.active)
    if offset.may_wrap(m.active):
        _refuse_overflow(offset, m)
        terms = [offset.data(m.active)]
    wide: list[Array] = [np.asarray(lifted(t, rank)).astype(np.int64, copy=False) for t in terms]
    if op == "-":
        wide = [-t for t in wide]
    return Pointer(add_terms([lifted(t, rank) for t in a.terms(m.active)], wide), a.dtype, shape, m.active, a.storage)


def _refuse_overflow(offset: Block, m: Machine) -> None:
    """A signed offset that leaves its type is a mistake; an unsigned one may be meant to wrap around."""
    total = sum_terms([np.asarray(t).astype(np.int64) for t in offset.terms(m.active)])
    limits = np.iinfo(offset.dtype.numpy)
    if offset.dtype.is_int_signed() and limits.bits < 64 and (total.min() < limits.min or total.max() > limits.max):
        reached = total.max() if total.max() > limits.max else total.min()
        raise KernelTypeError(
            f"the offset can reach {reached}, more than {offset.dtype} holds: "
            "on a GPU it would wrap around; widen one factor with .to(tl.int64)"
        )


def _compare(m: Machine, op: str, a: Operand, b: Operand, dtype: DType, shape: tuple[int, ...]) -> Block:
    rank = len(shape)
    if not dtype.is_float and not m.tape.computes and (is_pending(a, m) or is_pending(b, m)):
        return blank(m, dtypes.int1, shape)
    if dtype.is_float:
        m.count_float_ops(_size(shape))
        if is_deferred(m, a, b):
            operands = [as_block(m, v, dtype) for v in (a, b)]
            return elementwise(m, _COMPARE_FLOAT[op], operands, dtypes.int1, shape)
        x: Any = as_torch(lifted(a.data(m.active), rank)) if isinstance(a, Block) else a
        y: Any = as_torch(lifted(b.data(m.active), rank)) if isinstance(b, Block) else b
        if not isinstance(x, torch.Tensor):
            x = torch.tensor(x, dtype=dtype.torch)
        return result(m, _COMPARE_FLOAT[op](x, y).numpy(), dtypes.int1, shape)
    left, right = as_block(m, a, dtype), as_block(m, b, dtype)
    if shape and op not in ("==", "!=") and not (left.may_wrap(m.active) or right.may_wrap(m.active)):
        known = _decided(_COMPARE_INT[op], left.bounds(m.active), right.bounds(m.active))
        if known is not None:
            return result(m, np.full((1,) * (rank + 1), known), dtypes.int1, shape)
    x, y = lifted(left.data(m.active), rank), lifted(right.data(m.active), rank)
    return result(m, _COMPARE_INT[op](x, y), dtypes.int1, shape)


def _decided(compare: Callable[..., Any], a: tuple[int, int], b: tuple[int, int]) -> bool | None:
    """The outcome of an order comparison when the bounds alone decide it: the usual in-bounds masks are true
    everywhere."""
    outcomes = {bool(compare(x, y)) for x in a for y in b}
    return outcomes.pop() if len(outcomes) == 1 else None


def negative(m: Machine, x: Operand) -> Operand:
    """`-x`."""
    if not isinstance(x, Block):
        return -x
    if isinstance(x, Pointer):
        raise KernelTypeError("a pointer has no negative")
    if x.dtype.is_fp8():
        return cast(m, require_block(negative(m, cast(m, x, dtypes.float32)), "-x"), x.dtype)
    if x.dtype.is_float:
        m.count_float_ops(x.num_elements)
        if is_deferred(m, x):
            return elementwise(m, torch.neg, [x], x.dtype, x.shape)
        return result(m, -as_torch(x.data(m.active)), x.dtype, x.shape)
    if x.dtype.is_bool():  # modulo 2
        return x
    return lazy_sum(m, [-t for t in x.terms(m.active)], x.dtype, x.shape)


def invert(m: Machine, x: Operand, *, logical: bool = False) -> Operand:
    """`~x`, or `not x` with logical=True."""
    if not isinstance(x, Block):
        return (not x) if logical else ~x  # type: ignore[operator]
    if x.dtype.is_float or isinstance(x, Pointer):
        raise KernelTypeError(f"~ and `not` need integers or booleans, got {x.dtype}")
    data = x.data(m.active)
    assert isinstance(data, np.ndarray)
    if logical and not x.dtype.is_bool():
        return result(m, data == 0, dtypes.int1, x.shape)
    return result(m, ~data, x.dtype, x.shape)


def logical(m: Machine, op: str, a: Operand, b: Operand) -> Operand:
    """`a and b`, `a or b` on kernel values: element by element, without short cut."""
    truth = [x if not isinstance(x, Block) or x.dtype.is_bool() else binary(m, "!=", x, 0) for x in (a, b)]
    return binary(m, "&" if op == "and" else "|", *[bool(x) if not isinstance(x, Block) else x for x in truth])


def unary(
    m: Machine, function: Callable[..., torch.Tensor], x: Operand, name: str, *, transcendental: bool = True
) -> Block:
    """An element-wise function of 32- or 64-bit floats, as in Triton."""
    block = x if isinstance(x, Block) else scalar(float(x), m.active)
    if not block.dtype.is_float or block.dtype.primitive_bitwidth < 32:
        raise KernelTypeError(f"{name} needs fp32 or fp64, got {block.dtype}: convert with .to(tl.float32)")
    m.count_float_ops(block.num_elements, transcendental=transcendental)
    make_room(m, (block,), block.dtype, block.shape)
    if is_deferred(m, block):
        return elementwise(m, function, [block], block.dtype, block.shape)
    data = as_torch(block.data(m.active))
    out = in_place(m, (block,), block.dtype, block.shape, data.shape)
    return result(m, function(data) if out is None else function(data, out=out), block.dtype, block.shape)
