"""What the names and attributes in a kernel stand for.

A name is a variable, or an object that the kernel finds in its closure or among its globals: a module, a type, a
constant, another jit function. The modules `triton`, `triton.language` and `libdevice` are stood for by tables of the
simulator's own functions.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from cme295lab.simulator import frontend
from cme295lab.simulator.aggregates import Aggregate, AggregateType
from cme295lab.simulator.arithmetic import binary
from cme295lab.simulator.compound import Compound
from cme295lab.simulator.divergence import Differs, Variables
from cme295lab.simulator.dtypes import BlockType, DType, PointerType
from cme295lab.simulator.errors import KernelTypeError, SimulatorError, UnsupportedFeatureError
from cme295lab.simulator.language import LIBDEVICE, METHODS, NATIVE, Builtin
from cme295lab.simulator.language.descriptors import Descriptor
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.source import KernelSource
from cme295lab.simulator.values import Block, Pointer

_MISSING = object()
_SOLE_REFERENCE = 2  # the local variable and getrefcount's own argument
_PYTHON_FUNCTIONS = frozenset(
    [
        "range", "min", "max", "abs", "len", "int", "float", "bool", "print", "tuple", "list", "isinstance", "type",
        "zip", "enumerate", "getattr", "hasattr", "str",
    ]
)  # fmt: skip
_MODULES = frozenset(["language", "math", "core", "standard", "extra", "random", "cuda", "hip"])
_CLASSES: dict[str, type] = {"tensor": Block, "dtype": DType, "block_type": BlockType, "tensor_descriptor": Descriptor}
_LIBRARY_METHODS = frozenset(["sort", "reduce_or"])  # methods of blocks that Triton's library defines


class Language:
    """Stands for one of Triton's modules in a kernel."""

    def __init__(self, functions: Mapping[str, Builtin]) -> None:
        self.functions = functions


LANGUAGE = Language(NATIVE)
DEVICE_LIBRARY = Language({**NATIVE, **LIBDEVICE})


class KernelFunction:
    """A jit function that a kernel can call; as a method of an aggregate it has the aggregate as first argument."""

    def __init__(self, function: Callable[..., Any], owner: Any = None) -> None:
        self.function = function
        self.owner = owner


class CompileTimeFunction:
    """A `triton.constexpr_function`: runs as plain Python, on compile-time values."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class Range:
    """`range`, `tl.range` or `tl.static_range` with its bounds."""

    def __init__(self, m: Machine, *bounds: Any, static: bool = False, **options: Any) -> None:
        if not 1 <= len(bounds) <= 3:
            raise KernelTypeError(f"range takes one to three bounds, got {len(bounds)}")
        self.static = static or options.get("static", False)
        start, stop = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
        self.bounds = (start, stop, bounds[2] if len(bounds) == 3 else 1)


class Frame:
    """One call of a jit function: its variables, and what its programs have returned so far."""

    def __init__(self, source: KernelSource, variables: Variables) -> None:
        self.source = source
        self.variables = variables
        self.returned: list[tuple[ProgramSet, Any]] = []
        self.lent = set(variables)  # parameters not assigned to yet: the caller counts their bytes
        self.constants: set[str] = set()  # declared by `name: tl.constexpr` without a value, not assigned yet
        self.last_reads: frozenset[str] = frozenset()  # of the statement that runs


class Names(ABC):
    """Looks up names and attributes in the current frame."""

    def __init__(self, machine: Machine) -> None:
        self.m = machine
        self.frame: Frame

    @abstractmethod
    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call anything a kernel can call."""

    def name(self, name: str) -> Any:
        """The value of a name."""
        frame = self.frame
        value = frame.variables.get(name, _MISSING)
        if value is not _MISSING:
            if isinstance(value, Block):
                if name in frame.last_reads and not isinstance(value, Pointer):
                    del frame.variables[name]
                    value.expiring = sys.getrefcount(value) == _SOLE_REFERENCE
            elif isinstance(value, Differs):
                raise value.error()
            return value
        source = frame.source
        if name in source.closure:
            return self._outside(name, source.closure[name].cell_contents)
        if name in source.globals:
            return self._outside(name, source.globals[name])
        if name in _PYTHON_FUNCTIONS:
            return Builtin(name, lambda m, *args, **kwargs: self._python_builtin(name, *args, **kwargs))
        raise SimulatorError(f"the name {name!r} is not defined (or not on the path that was taken)")

    def _outside(self, name: str, value: Any) -> Any:
        """An object that the kernel finds outside itself."""
        known = self.frame.source.resolved.get(name)
        if known is not None and known[0] is value:
            return known[1]
        if not frontend.is_constant_global(value):
            raise KernelTypeError(
                f"the global {name!r} is a {type(value).__name__}: Triton lets kernels see only tl.constexpr globals; "
                f"write {name} = tl.constexpr(...), or pass it as an argument"
            )
        found = self.resolve(value)
        self.frame.source.resolved[name] = (value, found)
        return found

    def resolve(self, value: Any) -> Any:
        """The simulator's counterpart of an object."""
        if isinstance(value, Block | int | float | str | Builtin):
            return value
        if frontend.is_compile_time_function(value):
            return CompileTimeFunction(value.fn)
        if frontend.is_aggregate(value):
            return AggregateType(value)
        return frontend.resolve(
            value, native=NATIVE.get, device_library=LIBDEVICE.get,
            language=lambda name: DEVICE_LIBRARY if name.endswith("libdevice") else LANGUAGE, kernel=KernelFunction,
        )  # fmt: skip

    def _python_builtin(self, name: str, *args: Any, **kwargs: Any) -> Any:
        m = self.m
        if name == "range":
            return Range(m, *args, **kwargs)
        if name in ("min", "max") and any(isinstance(a, Block) for a in args):
            suffix = "nan" if getattr(kwargs.get("propagate_nan"), "name", "") == "ALL" else ""
            return functools.reduce(lambda a, b: binary(m, name + suffix, a, b), args)
        if name == "abs" and isinstance(args[0], Block):
            return NATIVE["abs"](m, args[0])
        if name == "print" and any(isinstance(a, Block) for a in args):
            return NATIVE["device_print"](m, "", *args)
        if name == "len" and isinstance(args[0], Block):
            return args[0].shape[0]
        if name in ("int", "float", "bool") and isinstance(args[0], Block):
            raise KernelTypeError(f"{name}(...) of a value that is only known when the kernel runs: use .to(...)")
        if name == "isinstance":
            return _is_instance(*args)
        if name == "getattr":
            return self.attribute(args[0], args[1]) if self.has(args[0], args[1]) or len(args) == 2 else args[2]
        if name == "hasattr":
            return self.has(args[0], args[1])
        if name == "list":
            return tuple(*args)
        return getattr(builtins, name)(*args, **kwargs)

    def has(self, owner: Any, name: str) -> bool:
        """`hasattr` in a kernel."""
        try:
            self.attribute(owner, name)
        except (SimulatorError, AttributeError):
            return False
        return True

    def attribute(self, owner: Any, name: str) -> Any:
        """`owner.name`."""
        if isinstance(owner, Language):
            return self._language_member(owner, name)
        if isinstance(owner, Block):
            return self._block_attribute(owner, name)
        if isinstance(owner, Compound):
            return self._compound_attribute(owner, name)
        if isinstance(owner, int | float) and name in METHODS:
            return _method(name, owner)
        if name == "value" and not hasattr(owner, "value"):
            return owner  # x.value of a tl.constexpr
        if not hasattr(owner, name):
            what = f"the module {owner.__name__}" if inspect.ismodule(owner) else f"a {type(owner).__name__}"
            raise KernelTypeError(f"{what} has no attribute {name!r}")
        return self.resolve(getattr(owner, name))

    def _language_member(self, owner: Language, name: str) -> Any:
        if name in owner.functions:
            return owner.functions[name]
        if name == "libdevice":
            return DEVICE_LIBRARY
        if name in _MODULES:
            return LANGUAGE
        if name in ("range", "static_range"):
            return Builtin(
                name, lambda m, *args, **kwargs: Range(m, *args, **{"static": name == "static_range", **kwargs})
            )
        if name == "tuple":
            return tuple
        if name in _CLASSES:
            return _CLASSES[name]
        if owner is DEVICE_LIBRARY:
            raise UnsupportedFeatureError(f"libdevice.{name}")
        member = frontend.language_member(name)
        if member is None:
            raise UnsupportedFeatureError(f"tl.{name}", "the installed Triton has no such name either")
        return self.resolve(member)

    def _compound_attribute(self, owner: Any, name: str) -> Any:
        """An attribute or method of a descriptor, a block pointer or an aggregate."""
        if isinstance(owner, Aggregate):
            return owner.attribute(name, self.resolve)
        method = owner.method(name) if isinstance(owner, Descriptor) else None
        if method is not None:
            return Builtin(name, method)
        if name in METHODS:
            return _method(name, owner)
        if not hasattr(owner, name):
            raise KernelTypeError(f"a {type(owner).__name__} has no attribute {name!r}")
        return self.resolve(getattr(owner, name))

    def _block_attribute(self, block: Block, name: str) -> Any:
        if name == "dtype":
            return block.pointer_type if isinstance(block, Pointer) else block.dtype
        if name == "shape":
            return block.shape
        if name == "T":
            return NATIVE["trans"](self.m, block)
        if name == "numel":
            return block.num_elements
        if name == "type":
            element = block.pointer_type if isinstance(block, Pointer) else block.dtype
            return BlockType(element, block.shape) if block.shape else element
        if name in METHODS:
            return _method(name, block)
        if name in _LIBRARY_METHODS:
            function = self._language_member(LANGUAGE, name)
            return Builtin(name, lambda m, *args, **kwargs: self.call(function, [block, *args], kwargs))
        raise UnsupportedFeatureError(f"the attribute .{name} of a kernel value")


def _method(name: str, owner: Any) -> Builtin:
    """`x.name(...)`: the function with x as its first argument."""
    return Builtin(name, lambda m, *args, **kwargs: NATIVE[name](m, owner, *args, **kwargs))


def _is_instance(value: Any, kinds: Any) -> bool:
    """`isinstance` in a kernel, where `tl.constexpr` is whatever is known at compile time."""
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if NATIVE["constexpr"] in wanted and not isinstance(value, Block | Compound | tuple):
        return True
    if NATIVE["pointer_type"] in wanted and isinstance(value, PointerType):
        return True
    if any(isinstance(k, AggregateType) and isinstance(value, Aggregate) and value.kind.cls is k.cls for k in wanted):
        return True
    return isinstance(value, tuple(k for k in wanted if isinstance(k, type)))
