"""Program ids, creation, memory access, casts, hints and messages."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from cme295lab.simulator import access, arithmetic, atomics, casts, dtypes, selection
from cme295lab.simulator.aggregates import Aggregate
from cme295lab.simulator.arithmetic import Operand
from cme295lab.simulator.broadcasting import lifted, result, sharing
from cme295lab.simulator.dtypes import BlockType, DType, PointerType
from cme295lab.simulator.errors import KernelTypeError, SimulatorError, UnsupportedFeatureError
from cme295lab.simulator.language import block_pointers
from cme295lab.simulator.language.block_pointers import BlockPointer
from cme295lab.simulator.language.constants import block_shape, whole_number
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.memory import by_tensor
from cme295lab.simulator.values import Block, Pointer, as_numpy, scalar


@native("program_id")
def program_id(m: Machine, axis: int) -> Block:
    if axis not in (0, 1, 2):
        raise KernelTypeError(f"tl.program_id: axis must be 0, 1 or 2, got {axis!r}")
    ids = m.program_ids[m.active.ids, axis]
    same = len(ids) > 1 and (ids == ids[0]).all()
    return Block([ids[:1] if same else ids], dtypes.int32, (), m.active)


@native("num_programs")
def num_programs(m: Machine, axis: int) -> Block:
    return scalar(m.grid[axis], m.active, dtypes.int32)


@native("get_int_dtype")
def get_int_dtype(m: Machine, bitwidth: int, signed: bool) -> DType:
    return dtypes.BY_NAME[f"{'int' if signed else 'uint'}{bitwidth}"]


@native("arange")
def arange(m: Machine, start: object, end: object) -> Block:
    first, last = whole_number(start, "tl.arange's start"), whole_number(end, "tl.arange's end")
    shape = block_shape(last - first, "tl.arange") if last > first else ()
    if not shape:
        raise KernelTypeError(f"tl.arange: end must be greater than start, got {first} and {last}")
    return result(m, np.arange(first, last, dtype=np.int32)[None], dtypes.int32, shape)


@native("full")
def full(m: Machine, shape: object, value: Operand, dtype: DType) -> Block:
    if not isinstance(dtype, DType):
        raise KernelTypeError(f"tl.full and tl.zeros need a type such as tl.float32, got {dtype!r}")
    sizes = block_shape(shape, "tl.full") if shape not in ((), []) else ()
    one = casts.cast(m, value, dtype) if isinstance(value, Block) else scalar(value, m.active, dtype)
    return sharing(one, result(m, lifted(one.data(m.active), len(sizes)), dtype, sizes))


@native("zeros")
def zeros(m: Machine, shape: object, dtype: DType) -> Block:
    return full(m, shape, 0, dtype)


@native("zeros_like")
def zeros_like(m: Machine, input: Block) -> Block:
    return full(m, input.shape, 0, input.dtype)


@native("load", method=False)
def load(
    m: Machine,
    pointer: Operand | BlockPointer,
    mask: Operand | None = None,
    other: Operand | None = None,
    boundary_check: object = (),
    padding_option: str = "",
    cache_modifier: str = "",
    eviction_policy: str = "",
    volatile: bool = False,
) -> Block:
    if isinstance(pointer, BlockPointer):
        return block_pointers.load(m, pointer, mask, other, boundary_check, padding_option)
    if boundary_check or padding_option:
        raise KernelTypeError("tl.load: boundary_check and padding_option go with block pointers, not with pointers")
    return by_tensor(  # type: ignore[no-any-return]
        m, pointer, mask, lambda where, lanes: access.load(m, where, lanes, other), partial(selection.where, m)
    )


@native("store", method=True)
def store(
    m: Machine, pointer: Operand | BlockPointer, value: Operand, mask: Operand | None = None,
    boundary_check: object = (),
    cache_modifier: str = "", eviction_policy: str = "",
) -> None:  # fmt: skip
    if isinstance(pointer, BlockPointer):
        block_pointers.store(m, pointer, value, mask, boundary_check)
        return
    if boundary_check:
        raise KernelTypeError("tl.store: boundary_check goes with block pointers, not with pointers")
    by_tensor(m, pointer, mask, lambda where, lanes: access.store(m, where, value, lanes), partial(selection.where, m))


def _register_atomics() -> None:
    for op in ("add", "max", "min", "and", "or", "xor", "xchg"):

        def run(
            m: Machine,
            pointer: Operand,
            val: Operand,
            mask: Operand | None = None,
            sem: Any = None,
            scope: Any = None,
            _op: str = op,
        ) -> Block:
            _check_atomic_type(_op, pointer)
            return by_tensor(  # type: ignore[no-any-return]
                m, pointer, mask, lambda where, lanes: atomics.atomic(m, _op, where, val, lanes),
                partial(selection.where, m),
            )  # fmt: skip

        native(f"atomic_{op}", method=True)(run)


def _check_atomic_type(op: str, pointer: Operand) -> None:
    """The compiler refuses atomics on 8-bit numbers and 16-bit integers, and all but `add` on 16-bit floats."""
    if isinstance(pointer, Pointer):
        dtype = pointer.dtype
        if dtype.primitive_bitwidth < 16 or (dtype.primitive_bitwidth == 16 and (op != "add" or not dtype.is_float)):
            raise KernelTypeError(f"tl.atomic_{op} does not support {dtype}")
        if dtype.is_float and op in ("and", "or", "xor"):
            raise KernelTypeError(f"tl.atomic_{op} needs integers, got {dtype}")


_register_atomics()


@native("atomic_cas", method=True)
def atomic_cas(m: Machine, pointer: Operand, cmp: Operand, val: Operand, sem: Any = None, scope: Any = None) -> Block:
    return by_tensor(  # type: ignore[no-any-return]
        m, pointer, None, lambda where, _: atomics.compare_and_swap(m, where, cmp, val), partial(selection.where, m)
    )


@native("atomic_load", method=True)
def atomic_load(m: Machine, pointer: Operand, mask: Operand | None = None, sem: Any = None, scope: Any = None) -> Block:
    """A load that no store of another program can tear; every load here is one."""
    return load(m, pointer, mask)


@native("atomic_store", method=True)
def atomic_store(
    m: Machine, pointer: Operand, val: Operand, mask: Operand | None = None, sem: Any = None, scope: Any = None
) -> None:
    store(m, pointer, val, mask)


@native("atomic_poll", method=True)
def atomic_poll(
    m: Machine, pointer: Operand, expected_value: Operand, sem: Any = None, scope: Any = None,
    timeout_ns: Operand | None = None,
) -> Operand:  # fmt: skip
    """Programs run one after another: what is not there yet will never come while this one waits."""
    found = arithmetic.binary(m, "==", load(m, pointer), expected_value)
    if timeout_ns is None:
        device_assert(m, found, "tl.atomic_poll waits for a value that no earlier program has stored")
    return found


@native("expect_zero")
def expect_zero(m: Machine, x: Operand, mask: Operand) -> Operand:
    """A promise about x where the mask is true, checked as Triton's debug builds do."""
    holds = arithmetic.logical(m, "or", arithmetic.binary(m, "==", x, 0), arithmetic.invert(m, mask, logical=True))
    device_assert(m, holds, "tl.expect_zero: x is not zero everywhere under the mask")
    return x


@native("aggregate_replace")
def aggregate_replace(m: Machine, instance: Any, **changes: Any) -> Any:
    if not isinstance(instance, Aggregate):
        raise KernelTypeError(f"tl.aggregate_replace needs an aggregate, got {instance!r}")
    unknown = [n for n in changes if n not in instance.fields]
    if unknown:
        raise KernelTypeError(f"{instance.kind.name} has no field {unknown[0]!r}")
    return Aggregate(instance.kind, {**instance.fields, **changes})


@native("cast", "to", method=True)
def cast(
    m: Machine,
    input: Operand,
    dtype: DType | PointerType | BlockType,
    fp_downcast_rounding: str | None = None,
    bitcast: bool = False,
) -> Block:
    block = input if isinstance(input, Block) else scalar(input, m.active)
    dtype = dtype.scalar if isinstance(dtype, BlockType) else dtype
    if isinstance(dtype, PointerType):
        return _as_pointer(m, block, dtype)
    if not isinstance(dtype, DType):
        raise KernelTypeError(f"cannot convert to {dtype!r}: pass a type such as tl.float32")
    if isinstance(block, Pointer):
        if dtype.is_float or dtype.primitive_bitwidth not in (1, 64):
            raise KernelTypeError(f"a pointer can be converted to a 64-bit integer or another pointer, not to {dtype}")
        address = m.memory.address(m, block)
        return result(m, address != 0 if dtype.is_bool() else address.astype(dtype.numpy), dtype, block.shape)
    if fp_downcast_rounding is not None and block.dtype != dtype:  # to its own type there is nothing to round
        narrower = dtype.is_float and block.dtype.is_float and dtype.primitive_bitwidth < block.dtype.primitive_bitwidth
        if fp_downcast_rounding not in ("rtne", "rtz") or not narrower:
            raise KernelTypeError(
                f"fp_downcast_rounding is 'rtne' or 'rtz', for a float to a narrower one; got {fp_downcast_rounding!r} "
                f"from {block.dtype} to {dtype}"
            )
    return casts.bitcast(m, block, dtype) if bitcast else casts.cast(m, block, dtype, rounding=fp_downcast_rounding)


def _as_pointer(m: Machine, block: Block, kind: PointerType) -> Pointer:
    """A pointer to another type, or an integer that is an address."""
    target = kind.element_ty
    if not isinstance(target, DType):
        raise KernelTypeError(f"cannot convert to {kind}: pass a pointer to a type such as tl.float32")
    if isinstance(block, Pointer):
        return m.memory.recast(m, block, target)
    if block.dtype.is_float or block.dtype.primitive_bitwidth != 64:
        raise KernelTypeError(f"an address is a 64-bit integer, got {block.dtype}")
    return m.memory.pointer(m, block, target)


@native("pointer_type")
def pointer_type(m: Machine, element_ty: DType, address_space: int = 1, const: bool = False) -> PointerType:
    return PointerType(element_ty)


@native("to_tensor")
def to_tensor(m: Machine, x: Operand) -> Block:
    return x if isinstance(x, Block) else scalar(x, m.active)


@native("constexpr")
def constexpr(m: Machine, value: object) -> object:
    if isinstance(value, Block):
        raise KernelTypeError("tl.constexpr(...) of a value that is only known when the kernel runs")
    return value


@native("cdiv", method=True)
def cdiv(m: Machine, x: Operand, div: Operand) -> Operand:
    if not isinstance(x, Block) and not isinstance(div, Block):
        return -(-x // div)
    return arithmetic.binary(m, "//", arithmetic.binary(m, "+", x, arithmetic.binary(m, "-", div, 1)), div)


@native("next_power_of_2")
def next_power_of_2(m: Machine, n: object) -> int:
    return 1 << (whole_number(n, "next_power_of_2's argument") - 1).bit_length()


@native("multiple_of", "max_contiguous", "max_constancy")
def hint(m: Machine, input: Operand, values: object) -> Operand:
    """Promises to the compiler; the simulator looks at the values themselves."""
    return input


@native("debug_barrier")
def debug_barrier(m: Machine) -> None:
    """Programs run in step: there is nothing to wait for."""


@native("assume")
def assume(m: Machine, cond: Operand) -> None:
    device_assert(m, cond, "tl.assume does not hold")


@native("condition")
def condition(m: Machine, arg1: Operand, disable_licm: bool = False) -> Operand:
    """A while loop's condition with an option for the compiler."""
    return arg1


@native("static_assert")
def static_assert(m: Machine, cond: object, msg: object = "") -> None:
    if isinstance(cond, Block):
        raise KernelTypeError("tl.static_assert needs a compile-time condition; use tl.device_assert")
    if not cond:
        raise SimulatorError(f"tl.static_assert failed{': ' if msg else ''}{msg}")


@native("device_assert")
def device_assert(m: Machine, cond: Operand, msg: object = "", mask: Operand | None = None) -> None:
    holds = cond if mask is None else arithmetic.logical(m, "or", cond, arithmetic.invert(m, mask, logical=True))
    if not isinstance(holds, Block):
        if not holds:
            raise SimulatorError(f"assertion failed{': ' if msg else ''}{msg}")
        return
    good = np.asarray(holds.data(m.active)).astype(bool).reshape(holds.data(m.active).shape[0], -1).all(axis=1)
    if not good.all():
        raise SimulatorError(
            f"assertion failed in program {m.program_of_row(int(np.argmin(good)))}{': ' if msg else ''}{msg}"
        )


@native("static_print")
def static_print(m: Machine, *values: object, sep: str = " ", end: str = "\n") -> None:
    print(*values, sep=sep, end=end)


@native("device_print")
def device_print(m: Machine, prefix: str, *args: Operand, hex: bool = False) -> None:
    for row in range(m.num_active):
        for value in args:
            shown: Any = value
            if isinstance(value, Pointer):
                shown = value.terms(m.active)
            elif isinstance(value, Block):
                data = as_numpy(value.full(m.active))
                shown = data[row if data.shape[0] > 1 else 0]
            print(f"{m.program_of_row(row)} {prefix}{shown}")


@native("inline_asm_elementwise", "inline_asm")
def inline_assembly(m: Machine, *args: object, **kwargs: object) -> None:
    raise UnsupportedFeatureError("inline assembly", "it has a meaning only for a GPU")
