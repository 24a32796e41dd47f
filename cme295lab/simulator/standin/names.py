"""What `triton.language` holds: types, constants, and functions that only a kernel can call.

The functions are those that the simulator implements (`simulator.language`), so nothing is listed twice.
"""

from __future__ import annotations

import enum
import inspect
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from cme295lab.simulator import dtypes
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.language import LIBDEVICE, NATIVE

_CORE = "triton.language.core"


class dtype:
    """A scalar type; what kernels and programs ask of it is answered by the simulator's type of that name."""

    __module__ = _CORE

    def __init__(self, name: str) -> None:
        self.name = str(getattr(name, "value", name))

    def __getattr__(self, name: str) -> Any:
        known = dtypes.BY_NAME.get(self.__dict__.get("name", ""))
        if known is None:
            raise AttributeError(f"the type {self.__dict__.get('name')} has no attribute {name!r} in the simulator")
        return getattr(known, name)

    @property
    def scalar(self) -> dtype:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dtype) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"triton.language.{self.name}"


class pointer_type:
    """The type of a pointer."""

    __module__ = _CORE

    def __init__(self, element_ty: Any, address_space: int = 1, const: bool = False) -> None:
        self.element_ty = element_ty
        self.address_space, self.const = address_space, const

    def __eq__(self, other: object) -> bool:
        return isinstance(other, pointer_type) and self.element_ty == other.element_ty

    def __hash__(self) -> int:
        return hash((pointer_type, self.element_ty))

    def __str__(self) -> str:
        return f"pointer<{self.element_ty}>"


class constexpr:
    """A compile-time value; operators on it give another one."""

    __module__ = _CORE

    def __init__(self, value: Any) -> None:
        self.value = _plain(value)

    def __repr__(self) -> str:
        return f"constexpr[{self.value}]"

    def __bool__(self) -> bool:
        return bool(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __hash__(self) -> int:
        return hash((constexpr, self.value))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.value(*args, **kwargs)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, constexpr) else value


def _add_operators() -> None:
    def forward(function: Callable[..., Any]) -> Callable[..., constexpr]:
        return lambda self, *other: constexpr(function(self.value, *map(_plain, other)))

    def backward(function: Callable[..., Any]) -> Callable[..., constexpr]:
        return lambda self, other: constexpr(function(_plain(other), self.value))

    both = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "lshift", "rshift", "and", "or", "xor")
    for name in (*both, "lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "invert", "getitem"):
        setattr(constexpr, f"__{name}__", forward(getattr(operator, f"__{name}__")))
    for name in both:
        setattr(constexpr, f"__r{name}__", backward(getattr(operator, f"__{name}__")))


_add_operators()


class PropagateNan(enum.Enum):
    """What `tl.maximum` does with a NaN: keep it, or prefer the number."""

    NONE = 0
    ALL = 0xFFFF


PropagateNan.__module__ = "triton"  # a constant, not a function of the language


class LanguageFunction:
    """A function of `triton.language`, which has a meaning only in a kernel."""

    __module__ = _CORE

    def __init__(self, name: str, module: str = _CORE) -> None:
        self.__name__ = self.__qualname__ = name
        self.__module__ = module

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"tl.{self.__name__} works only inside a kernel (a function decorated with @triton.jit)")

    def __repr__(self) -> str:
        return f"<function triton.language.{self.__name__} (stand-in)>"


def aggregate(cls: type) -> type:
    """`@_aggregate`: a class whose fields are kernel values; the simulator makes its instances, by these attributes."""
    fields = inspect.get_annotations(cls)
    constructor = cls.__dict__.get("__init__", aggregate_by_field)
    made: Any = cls
    made.__triton_builtin__ = True
    made.hash_attrs = [constructor]
    made.__aggregate_fields__ = tuple(fields)
    made.__aggregate_defaults__ = {name: cls.__dict__[name] for name in fields if name in cls.__dict__}
    return cls


def aggregate_by_field(self: object, *args: Any, **kwargs: Any) -> None:
    """Marks an aggregate without a constructor of its own."""


aggregate_by_field.__module__ = _CORE


def _marker(name: str) -> type:
    """A class that is only named: in annotations and `isinstance`, or known to the simulator by its name."""
    return type(name, (), {"__module__": _CORE, "__doc__": f"Stands for `tl.{name}`."})


_NOT_SIMULATED = {"float8e4b15": "fp8e4b15", "void": "void"}
TYPES = {name: dtype(found.name) for name, found in vars(dtypes).items() if isinstance(found, DType)}
CONSTANTS: dict[str, Any] = {
    **{name: dtype(text) for name, text in _NOT_SIMULATED.items()},
    **TYPES,
    "dtype": dtype,
    "constexpr": constexpr,
    "pointer_type": pointer_type,
    "_aggregate": aggregate,
    "PropagateNan": PropagateNan,
    "TRITON_MAX_TENSOR_NUMEL": 1 << 20,
    **{name: _marker(name) for name in ("tensor", "tuple", "range", "static_range", "const", "slice", "block_type")},
}
_functions: dict[tuple[str, str], LanguageFunction] = {}


class LanguageModule(ModuleType):
    """`triton.language` or a module in it: constants, and a function for every name that the simulator implements."""

    def __getattr__(self, name: str) -> Any:
        if name in CONSTANTS:
            return CONSTANTS[name]
        device_library = self.__name__.endswith("libdevice")
        if name in NATIVE or (device_library and name in LIBDEVICE):
            module = self.__name__ if device_library else _CORE
            return _functions.setdefault((module, name), LanguageFunction(name, module))
        if name == "__all__":
            return [n for n in dir(self) if not n.startswith("_")]
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}: the simulator does not implement it (this is its "
            "stand-in for Triton, which is not installed)"
        )

    def __dir__(self) -> list[str]:
        more = LIBDEVICE if self.__name__.endswith("libdevice") else {}
        return sorted({*super().__dir__(), *CONSTANTS, *NATIVE, *more})
