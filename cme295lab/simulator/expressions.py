"""Expressions of a kernel: names, operators, calls, indexing.

Python numbers, strings, tuples and types are compile-time values; everything else is a `Block`. A node costs a
microsecond or two, the operation behind it works on every program of the batch.
"""

from __future__ import annotations

import ast
import builtins
import functools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np

from cme295lab.simulator import arithmetic, frontend
from cme295lab.simulator.arithmetic import binary
from cme295lab.simulator.compound import Compound, parts
from cme295lab.simulator.divergence import Differs, Group, Variables, reconverge
from cme295lab.simulator.dtypes import BlockType
from cme295lab.simulator.errors import KernelTypeError, SimulatorError, UnsupportedFeatureError
from cme295lab.simulator.language import METHODS, NATIVE, Builtin
from cme295lab.simulator.language.descriptors import Descriptor
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.source import KernelSource
from cme295lab.simulator.values import Block, Pointer, as_numpy

OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "+",
    ast.Sub: "-",
    ast.Mult: "*",
    ast.Div: "/",
    ast.FloorDiv: "//",
    ast.Mod: "%",
    ast.BitAnd: "&",
    ast.BitOr: "|",
    ast.BitXor: "^",
    ast.LShift: "<<",
    ast.RShift: ">>",
    ast.Pow: "**",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
}
_SOLE_REFERENCE = 2  # the local variable and getrefcount's own argument
_PYTHON_FUNCTIONS = frozenset(
    [
        "range",
        "min",
        "max",
        "abs",
        "len",
        "int",
        "float",
        "bool",
        "print",
        "tuple",
        "isinstance",
        "type",
        "zip",
        "enumerate",
    ]
)


class Language:
    """Stands for the modules `triton` and `triton.language` in a kernel."""


LANGUAGE = Language()


class KernelFunction:
    """A jit function that a kernel can call."""

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
        self.last_reads: frozenset[str] = frozenset()  # of the statement that runs


class Expressions(ABC):
    """Evaluates expressions in the current frame; `Interpreter` adds statements and calls of jit functions."""

    def __init__(self, machine: Machine) -> None:
        self.m = machine
        self.frame: Frame
        self._evaluators: dict[type, Callable[[Any], Any]] = {
            getattr(ast, name.removeprefix("eval_")): getattr(self, name)
            for name in dir(self)
            if name.startswith("eval_")
        }

    @abstractmethod
    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call anything a kernel can call."""

    def eval(self, node: ast.expr, *, discard: bool = False) -> Any:
        """The value of an expression; intermediate results count as on-chip bytes until their consumer is done.

        `discard`: the expression is a statement of its own, nobody looks at the value.
        """
        m = self.m
        if discard and isinstance(node, ast.Call):
            self.eval_Call(node, discard=True)
            return None
        mark = m.temporary_bytes
        handler = self._evaluators.get(type(node))
        if handler is None:
            raise UnsupportedFeatureError(f"the expression {ast.unparse(node)!r}")
        value = handler(node)
        if m.counting and not isinstance(node, ast.Name):
            size = value.block_bytes if isinstance(value, Block) and value.temporary else 0
            peak = m.held_bytes + m.temporary_bytes + size
            if peak > m.counters.sram_by_line.get(m.line, 0):
                m.counters.sram_by_line[m.line] = peak
                m.counters.sram_peak_bytes = max(m.counters.sram_peak_bytes, peak)
            m.temporary_bytes = mark + size
        return value

    def truth(self, value: Any) -> bool | np.ndarray:
        """A condition: one answer, or one per active program."""
        if isinstance(value, Differs):
            raise value.error()
        if not isinstance(value, Block):
            return bool(value)
        if value.num_elements != 1:
            raise KernelTypeError(
                f"a condition must be a scalar, got a block of shape {value.shape}; use tl.where, or reduce it first"
            )
        answers = np.asarray(as_numpy(value.data(self.m.active))).reshape(-1) != 0
        if len(answers) == 1 or (answers == answers[0]).all():
            return bool(answers[0])
        return answers

    def eval_Constant(self, node: ast.Constant) -> Any:
        return node.value

    def eval_Name(self, node: ast.Name) -> Any:
        return self._name(node.id)

    def _name(self, name: str) -> Any:
        variables = self.frame.variables
        if name in variables:
            value = variables[name]
            if isinstance(value, Differs):
                raise value.error()
            if name in self.frame.last_reads and value.__class__ is Block:
                del variables[name]
                value.expiring = sys.getrefcount(value) == _SOLE_REFERENCE
            return value
        source = self.frame.source
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
        found = self._resolve(value)
        self.frame.source.resolved[name] = (value, found)
        return found

    def _resolve(self, value: Any) -> Any:
        if isinstance(value, Block | int | float | str | Builtin):
            return value
        return frontend.resolve(value, native=NATIVE.get, language=LANGUAGE, kernel=KernelFunction)

    def _python_builtin(self, name: str, *args: Any, **kwargs: Any) -> Any:
        m = self.m
        if name == "range":
            return Range(m, *args, **kwargs)
        if name in ("min", "max") and any(isinstance(a, Block) for a in args):
            return functools.reduce(lambda a, b: binary(m, name, a, b), args)
        if name == "abs" and isinstance(args[0], Block):
            return NATIVE["abs"](m, args[0])
        if name == "print" and any(isinstance(a, Block) for a in args):
            return NATIVE["device_print"](m, "", *args)
        if name == "len" and isinstance(args[0], Block):
            return args[0].shape[0]
        return getattr(builtins, name)(*args, **kwargs)

    def eval_Attribute(self, node: ast.Attribute) -> Any:
        owner, name = self.eval(node.value), node.attr
        if isinstance(owner, Language):
            return self._language_member(name)
        if isinstance(owner, Block):
            return self._block_attribute(owner, name)
        if isinstance(owner, Compound):
            return self._compound_attribute(owner, name)
        if isinstance(owner, int | float) and name in METHODS:
            return _method(name, owner)
        if isinstance(owner, int | float) and name == "value":
            return owner
        return self._resolve(getattr(owner, name))

    def _language_member(self, name: str) -> Any:
        if name in NATIVE:
            return NATIVE[name]
        if name in ("language", "math", "core", "standard", "extra", "libdevice", "random", "cuda"):
            return LANGUAGE
        if name in ("range", "static_range"):
            return Builtin(
                name, lambda m, *args, **kwargs: Range(m, *args, **{"static": name == "static_range", **kwargs})
            )
        if name == "tuple":
            return tuple
        member = frontend.language_member(name)
        if member is None:
            raise UnsupportedFeatureError(f"tl.{name}", "the installed Triton has no such name either")
        return self._resolve(member)

    def _compound_attribute(self, owner: Any, name: str) -> Any:
        """An attribute or method of a descriptor, a block pointer or an aggregate."""
        method = owner.method(name) if isinstance(owner, Descriptor) else None
        if method is not None:
            return Builtin(name, method)
        if name in METHODS:
            return _method(name, owner)
        if not hasattr(owner, name):
            raise KernelTypeError(f"a {type(owner).__name__} has no attribute {name!r}")
        return self._resolve(getattr(owner, name))

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
        raise UnsupportedFeatureError(f"the attribute .{name} of a kernel value")

    def eval_Call(self, node: ast.Call, *, discard: bool = False) -> Any:
        function = self.eval(node.func)
        args: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                args.extend(self.eval(argument.value))
            else:
                args.append(self.eval(argument))
        kwargs = {k.arg: self.eval(k.value) for k in node.keywords if k.arg is not None}
        self.m.discard_result = discard
        return self.call(function, args, kwargs)

    def eval_BinOp(self, node: ast.BinOp) -> Any:
        left, right = self.eval(node.left), self.eval(node.right)
        operator = OPERATORS.get(type(node.op))
        if operator is None:
            raise UnsupportedFeatureError(f"the operator in {ast.unparse(node)!r}")
        if isinstance(left, tuple) and isinstance(right, tuple):
            return left + right
        if operator == "**" and (isinstance(left, Block) or isinstance(right, Block)):
            raise UnsupportedFeatureError("** on kernel values", "multiply, or use tl.exp2(tl.log2(x) * y)")
        return binary(self.m, operator, left, right)

    def eval_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.eval(node.operand)
        if isinstance(node.op, ast.USub):
            return arithmetic.negative(self.m, value)
        if isinstance(node.op, ast.UAdd):
            return value
        return arithmetic.invert(self.m, value, logical=isinstance(node.op, ast.Not))

    def eval_BoolOp(self, node: ast.BoolOp) -> Any:
        is_and = isinstance(node.op, ast.And)
        value = self.eval(node.values[0])
        for other in node.values[1:]:
            if not isinstance(value, Block):
                if bool(value) != is_and:
                    return value
                value = self.eval(other)
            else:
                value = arithmetic.logical(self.m, "and" if is_and else "or", value, self.eval(other))
        return value

    def eval_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) != 1:
            raise UnsupportedFeatureError("a chained comparison", "write (a < b) & (b < c)")
        left, right, op = self.eval(node.left), self.eval(node.comparators[0]), node.ops[0]
        if isinstance(op, ast.Is | ast.IsNot):
            return (left is right) == isinstance(op, ast.Is)
        if isinstance(op, ast.In | ast.NotIn):
            return (left in right) == isinstance(op, ast.In)
        if isinstance(left, Block) or isinstance(right, Block):
            return binary(self.m, OPERATORS[type(op)], left, right)
        return arithmetic.compare_constants(OPERATORS[type(op)], left, right)

    def eval_IfExp(self, node: ast.IfExp) -> Any:
        truth = self.truth(self.eval(node.test))
        if isinstance(truth, bool):
            return self.eval(node.body if truth else node.orelse)
        name, entry, groups = ast.unparse(node), self.m.active, []
        for rows, branch in ((np.flatnonzero(truth), node.body), (np.flatnonzero(~truth), node.orelse)):
            self.m.active = entry.select(rows)
            groups.append(Group(self.m.active, {name: self.eval(branch)}))
        return self.reunited(name, entry, groups)

    def reunited(self, name: str, entry: ProgramSet, groups: list[Group]) -> Any:
        """One value for all programs, made of what groups of them have computed under this name."""
        if len(groups) == 1 and groups[0].programs is entry:
            return groups[0].variables[name]
        value = reconverge(self.m, entry, groups, frozenset({name})).get(name)
        if isinstance(value, Differs):
            raise value.error()
        return value

    def eval_Tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.eval(e) for e in node.elts)

    def eval_List(self, node: ast.List) -> tuple[Any, ...]:
        return tuple(self.eval(e) for e in node.elts)

    def eval_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join(str(self.eval(v.value if isinstance(v, ast.FormattedValue) else v)) for v in node.values)

    def eval_Slice(self, node: ast.Slice) -> slice:
        return slice(*(None if part is None else self.eval(part) for part in (node.lower, node.upper, node.step)))

    def eval_Subscript(self, node: ast.Subscript) -> Any:
        value, index = self.eval(node.value), self.eval(node.slice)
        if not isinstance(value, Block):
            return value[index]
        for axis, part in enumerate(index if isinstance(index, tuple) else (index,)):
            if part is None:
                value = NATIVE["expand_dims"](self.m, value, axis)
            elif part != slice(None):
                raise UnsupportedFeatureError(
                    f"indexing {ast.unparse(node)!r}", "blocks can only be indexed with None and `:`"
                )
        return value


def _method(name: str, owner: Any) -> Builtin:
    """`x.name(...)`: the function with x as its first argument."""
    return Builtin(name, lambda m, *args, **kwargs: NATIVE[name](m, owner, *args, **kwargs))


def keep(value: Any) -> None:
    """A variable holds this value from now on: operations must not overwrite it."""
    if isinstance(value, Block):
        value.temporary = value.expiring = False
    elif isinstance(value, tuple | Compound):
        for v in parts(value) or ():
            keep(v)
