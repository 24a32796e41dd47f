"""Expressions of a kernel: names, operators, calls, indexing.

Python numbers, strings, tuples and types are compile-time values; everything else is a `Block`. A node costs a
microsecond or two, the operation behind it works on every program of the batch.
"""

from __future__ import annotations

import ast
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from cme295lab.simulator import arithmetic
from cme295lab.simulator.aggregates import Aggregate
from cme295lab.simulator.arithmetic import binary
from cme295lab.simulator.compound import Compound, parts
from cme295lab.simulator.divergence import Differs, Group, reconverge
from cme295lab.simulator.errors import KernelTypeError, UnsupportedFeatureError
from cme295lab.simulator.language import NATIVE
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.names import Names
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.values import Block, Pointer, as_numpy, scalar

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
METHOD_NAMES: dict[type[ast.AST], str] = {
    ast.Add: "__add__", ast.Sub: "__sub__", ast.Mult: "__mul__", ast.Div: "__truediv__", ast.FloorDiv: "__floordiv__",
    ast.Mod: "__mod__", ast.Pow: "__pow__", ast.LShift: "__lshift__", ast.RShift: "__rshift__", ast.BitAnd: "__and__",
    ast.BitOr: "__or__", ast.BitXor: "__xor__",
}  # fmt: skip


def _kind(value: Any) -> str:
    """What a value is, for an error message."""
    if isinstance(value, Pointer):
        return "a pointer"
    if isinstance(value, Block):
        return f"a block of {value.dtype}" if value.shape else f"an {value.dtype} scalar"
    return f"a {type(value).__name__}"


@functools.cache
def handlers(interpreter: type, prefix: str) -> dict[type, Callable[[Any, Any], Any]]:
    """The methods of a class for the nodes of a syntax tree: `eval_Call` for `ast.Call`, and so on."""
    names = [name for name in dir(interpreter) if name.startswith(prefix)]
    return {getattr(ast, name.removeprefix(prefix)): getattr(interpreter, name) for name in names}


class Expressions(Names):
    """Evaluates expressions in the current frame; `Interpreter` adds statements and calls of jit functions."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._evaluators = handlers(type(self), "eval_")

    @abstractmethod
    def bind(self, target: ast.expr, value: Any) -> None:
        """Assign to a variable, or to the variables of a tuple."""

    def eval(self, node: ast.expr, *, discard: bool = False) -> Any:
        """The value of an expression; intermediate results count as on-chip bytes until their consumer is done.

        `discard`: the expression is a statement of its own, nobody looks at the value.
        """
        if node.__class__ is ast.Name:
            return self.name(node.id)
        if discard and isinstance(node, ast.Call):
            self.eval_Call(node, discard=True)
            return None
        m = self.m
        mark = m.temporary_bytes
        handler = self._evaluators.get(node.__class__)
        if handler is None:
            raise UnsupportedFeatureError(f"the expression {ast.unparse(node)!r}")
        value = handler(self, node)
        if m.counting:
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
        return self.name(node.id)

    def eval_NamedExpr(self, node: ast.NamedExpr) -> Any:
        value = run_time_value(self.m, self.eval(node.value))
        self.bind(node.target, value)
        return value

    def eval_Attribute(self, node: ast.Attribute) -> Any:
        return self.attribute(self.eval(node.value), node.attr)

    def eval_Call(self, node: ast.Call, *, discard: bool = False) -> Any:
        function = self.eval(node.func)
        args: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                args.extend(self.eval(argument.value))
            else:
                args.append(self.eval(argument))
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise UnsupportedFeatureError(f"** in the call {ast.unparse(node)!r}", "write the keywords out")
            kwargs[keyword.arg] = self.eval(keyword.value)
        self.m.discard_result = discard
        return self.call(function, args, kwargs)

    def eval_BinOp(self, node: ast.BinOp) -> Any:
        return self.operation(node, node.op, self.eval(node.left), self.eval(node.right))

    def operation(self, node: ast.AST, op: ast.operator, left: Any, right: Any) -> Any:
        """`left op right`; `node` is quoted in messages."""
        operator = OPERATORS.get(type(op))
        if operator is None:
            raise UnsupportedFeatureError(f"the operator in {ast.unparse(node)!r}")
        plain = isinstance(left, Block | int | float) and isinstance(right, Block | int | float)
        if not plain and (isinstance(left, tuple | Aggregate) or isinstance(right, tuple | Aggregate)):
            return self._compound_operation(node, op, left, right)
        if operator == "**" and (isinstance(left, Block) or isinstance(right, Block)):
            raise UnsupportedFeatureError("** on kernel values", "multiply, or use tl.exp2(tl.log2(x) * y)")
        return binary(self.m, operator, left, right)

    def _compound_operation(self, node: ast.AST, op: ast.operator, left: Any, right: Any) -> Any:
        """Tuples are joined and repeated; aggregates may define operators."""
        if isinstance(left, tuple):
            if isinstance(op, ast.Add) and isinstance(right, tuple):
                return left + right
            if isinstance(op, ast.Mult) and isinstance(right, int):
                return left * right
        method = METHOD_NAMES.get(type(op), "")
        for owner, other, name in ((left, right, method), (right, left, method.replace("__", "__r", 1))):
            if isinstance(owner, Aggregate) and hasattr(owner.kind.cls, name):
                return self.call(self.attribute(owner, name), [other], {})
        raise KernelTypeError(
            f"{ast.unparse(node)!r} has no meaning for {_kind(left)} and {_kind(right)}; a list or tuple that was "
            "passed to the kernel is a tuple here: pass a tensor"
        )

    def eval_UnaryOp(self, node: ast.UnaryOp) -> Any:
        value = self.eval(node.operand)
        if isinstance(node.op, ast.USub):
            return arithmetic.negative(self.m, value)
        if isinstance(node.op, ast.UAdd):
            return value
        return arithmetic.invert(self.m, value, logical=isinstance(node.op, ast.Not))

    def eval_BoolOp(self, node: ast.BoolOp) -> Any:
        return self._all_or_any(isinstance(node.op, ast.And), (lambda v=v: self.eval(v) for v in node.values))  # type: ignore[misc]

    def _all_or_any(self, is_and: bool, operands: Iterable[Callable[[], Any]]) -> Any:
        """`and` or `or`: a compile-time operand decides or is left out, the others are combined element by element."""
        combined: Any = None
        value: Any = None
        for operand in operands:
            value = operand()
            if not isinstance(value, Block):
                if bool(value) != is_and:
                    return value
                continue
            combined = (
                value if combined is None else arithmetic.logical(self.m, "and" if is_and else "or", combined, value)
            )
        return value if combined is None else combined

    def eval_Compare(self, node: ast.Compare) -> Any:
        left = self.eval(node.left)
        if len(node.ops) == 1:
            return self._compare(node.ops[0], left, self.eval(node.comparators[0]))
        between = [left]

        def pair(op: ast.cmpop, comparator: ast.expr) -> Any:
            right = self.eval(comparator)
            keep(right)
            first, between[0] = between[0], right
            return self._compare(op, first, right)

        keep(left)
        pairs = zip(node.ops, node.comparators, strict=True)
        return self._all_or_any(True, (lambda o=o, c=c: pair(o, c) for o, c in pairs))  # type: ignore[misc]

    def _compare(self, op: ast.cmpop, left: Any, right: Any) -> Any:
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

    def eval_ListComp(self, node: ast.ListComp) -> tuple[Any, ...]:
        """A comprehension over a tuple; its variable belongs to the kernel, as in Triton."""
        if len(node.generators) != 1:
            raise UnsupportedFeatureError(f"nested comprehensions ({ast.unparse(node)!r})", "use one loop in each")
        (generator,) = node.generators
        items = self.eval(generator.iter)
        if not isinstance(items, tuple | list):
            raise UnsupportedFeatureError(f"{ast.unparse(node)!r}", "a comprehension runs over a tuple")
        found = []
        for item in items:
            self.bind(generator.target, item)
            if all(self.truth(self.eval(test)) for test in generator.ifs):
                found.append(self.eval(node.elt))
        return tuple(found)

    def eval_JoinedStr(self, node: ast.JoinedStr) -> str:
        return "".join(self._text(part) for part in node.values)

    def _text(self, part: ast.expr) -> str:
        """One piece of an f-string."""
        if not isinstance(part, ast.FormattedValue):
            return str(self.eval(part))
        value = self.eval(part.value)
        if isinstance(value, Block):
            raise KernelTypeError(f"an f-string is made at compile time; {ast.unparse(part.value)!r} is not known then")
        return repr(value) if part.conversion == ord("r") else str(value)

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


def run_time_value(m: Machine, value: Any) -> Any:
    """What a variable gets: a number becomes a scalar of the kernel, which takes part in promotion as blocks do."""
    if isinstance(value, Block):
        return value
    if isinstance(value, int | float):
        return scalar(value, m.active)
    if type(value) is tuple:
        return tuple(run_time_value(m, v) for v in value)
    return value


def keep(value: Any) -> None:
    """A variable holds this value from now on: operations must not overwrite it."""
    if isinstance(value, Block):
        value.temporary = value.expiring = False
    elif isinstance(value, tuple | Compound):
        for v in parts(value) or ():
            keep(v)
