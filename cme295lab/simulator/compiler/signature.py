"""From the arguments of a launch to what the compiler must know of them: types, constants, alignment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cme295lab.simulator import frontend
from cme295lab.simulator.errors import SimulatorError

POINTER_TYPES = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "u8", torch.uint16: "u16", torch.uint32: "u32", torch.uint64: "u64",
    torch.float8_e5m2: "fp8e5", torch.float8_e4m3fn: "fp8e4nv", torch.bool: "i1",
}  # fmt: skip
_ALIGNMENT = 16  # what Triton asks of an address or a number before it relies on its divisibility
_DIVISIBLE = [["tt.divisibility", _ALIGNMENT]]


@dataclass(frozen=True)
class Signature:
    """Attributes:
    types: parameter name to Triton's name of its type; nested tuples for tuples.
    constants: values of the tl.constexpr parameters and of those that a launch makes constant (None, 1), by path.
    attributes: what is known of a parameter, by path: the position of the parameter, and in a tuple of its element.
    """

    types: dict[str, Any]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]

    def key(self) -> str:
        """Equal for equal signatures."""
        return repr((self.types, {k: _name(v) for k, v in self.constants.items()}, self.attributes))


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.fn.__qualname__}" if frontend.is_kernel(value) else repr(value)


def signature_of(kernel: Any, function: Callable[..., Any], bound: dict[str, Any]) -> Signature:
    """Types, constants and alignment, as Triton derives them from the arguments of a launch.

    Args:
        kernel: the jit function.
        function: the Python function behind it.
        bound: value of every parameter. Of tensors only dtype and storage offset are used: the start of an allocation
            is aligned on every device.

    Raises:
        SimulatorError: an argument that no kernel can have.
    """
    constant_names = frontend.constexpr_names(function)
    hints = {p.name: p for p in getattr(kernel, "params", ())}
    made = Signature({}, {}, {})
    for position, (name, value) in enumerate(bound.items()):
        if name in constant_names:
            made.types[name], made.constants[(position,)] = "constexpr", value
        else:
            hint = hints.get(name)
            fixed = getattr(hint, "annotation_type", "")
            specialize = not getattr(hint, "do_not_specialize", False)
            aligned = specialize and not getattr(hint, "do_not_specialize_on_alignment", False)
            made.types[name] = _type(name, value, (position,), made, specialize and not fixed, aligned, fixed)
    return made


def _type(
    name: str, value: Any, path: tuple[int, ...], made: Signature, specialize: bool, aligned: bool, fixed: str = ""
) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_type(f"{name}.{n}", v, (*path, n), made, specialize, aligned) for n, v in enumerate(value))
    if value is None or frontend.is_kernel(value) or (specialize and type(value) is int and value == 1):
        made.constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        if value.dtype not in POINTER_TYPES:
            raise SimulatorError(f"argument {name!r} of dtype {value.dtype} has no type in a kernel")
        if aligned and value.storage_offset() * value.dtype.itemsize % _ALIGNMENT == 0:
            made.attributes[path] = _DIVISIBLE
        return f"*{POINTER_TYPES[value.dtype]}"
    if isinstance(value, bool | int | float):
        if aligned and type(value) is int and value % _ALIGNMENT == 0:
            made.attributes[path] = _DIVISIBLE
        return fixed or _number_type(value)
    if hasattr(value, "block_shape") and hasattr(value, "base"):  # a tensor descriptor made on the host
        return f"tensordesc<{POINTER_TYPES[value.base.dtype]}{list(value.block_shape)}>"
    raise SimulatorError(
        f"argument {name!r} of type {type(value).__name__} has no type in a kernel: "
        "pass tensors, numbers, tuples of them, or make the parameter a tl.constexpr"
    )


def _number_type(value: int | float) -> str:
    if isinstance(value, bool):
        return "i1"
    if not isinstance(value, int):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64" if value < 2**63 else "u64"


def without_data(value: Any) -> Any:
    """An argument as the compiler needs it: tensors on the meta device, with dtype, shape, strides and alignment."""
    if isinstance(value, torch.Tensor):
        offset = value.storage_offset() % _ALIGNMENT
        extent = 1 + sum((n - 1) * abs(s) for n, s in zip(value.shape, value.stride(), strict=True) if n)
        memory = torch.empty(offset + extent, dtype=value.dtype, device="meta")
        return memory.as_strided(value.shape, value.stride(), offset)
    if isinstance(value, tuple | list):
        parts = [without_data(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    base = getattr(value, "base", None)
    if isinstance(base, torch.Tensor) and dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, base=without_data(base))
    return value
