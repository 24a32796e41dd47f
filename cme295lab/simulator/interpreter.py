"""Runs a kernel's syntax tree, all programs at once: statements, control flow, calls of jit functions.

Control flow on compile-time values, or on scalars that agree in all programs, is plain control flow; where programs
disagree, see `divergence`. Expressions are evaluated by the base class.
"""

from __future__ import annotations

import ast
import functools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from cme295lab.simulator import dtypes, frontend
from cme295lab.simulator.aggregates import AggregateType
from cme295lab.simulator.divergence import EMPTY, Group, Leaving, Variables, reconverge
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.errors import KernelTypeError, SimulatorError, UnsupportedFeatureError, explained
from cme295lab.simulator.expressions import Expressions, handlers, keep, run_time_value
from cme295lab.simulator.language import NATIVE, Builtin
from cme295lab.simulator.machine import AssignEvent, Machine
from cme295lab.simulator.names import CompileTimeFunction, Frame, KernelFunction, Range
from cme295lab.simulator.programs import ProgramSet
from cme295lab.simulator.source import KernelSource, kernel_source
from cme295lab.simulator.values import Block, as_numpy, scalar

_MAX_ITERATIONS = 1_000_000


class Interpreter(Expressions):
    """Executes jit functions on a machine."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._executors = handlers(type(self), "do_")
        self.base = 0  # bytes held by the calls below the current one
        me = weakref.ref(self)  # a cycle would keep the launch's tensors alive until the garbage collector runs
        machine.call = lambda function, arguments: _alive(me).call(function, arguments, {})

    # ---- calls

    def run(self, function: Callable[..., Any], arguments: Variables) -> None:
        """Run a kernel for the machine's active programs."""
        self._enter(kernel_source(function), {n: self.resolve(v) for n, v in arguments.items()})

    def call(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call anything a kernel can call."""
        m = self.m
        if isinstance(function, Builtin):
            return function(m, *args, **kwargs)
        if isinstance(function, AggregateType):
            return function.make(args, kwargs, self.resolve)
        if isinstance(function, KernelFunction):
            source = kernel_source(function.function)
            if function.owner is not None:
                args.insert(0, function.owner)
            try:
                bound = source.signature.bind(*args, **kwargs)
            except TypeError as error:
                raise KernelTypeError(f"{source.name}: {error}") from None
            bound.apply_defaults()
            variables = {n: self.resolve(v) for n, v in bound.arguments.items()}
            for value in variables.values():
                keep(value)
            args.clear()  # the variables are now the only holders of values that the caller has finished with
            kwargs.clear()
            del bound, value
            return self._enter(source, variables)
        if isinstance(function, CompileTimeFunction):
            function = functools.partial(frontend.call_at_compile_time, function.function, args, kwargs)
            args, kwargs = [], {}
        if not callable(function):
            raise KernelTypeError(f"{function!r} cannot be called in a kernel")
        if isinstance(function, type) and issubclass(function, tuple):  # a named tuple
            return function(*args, **kwargs)
        if any(isinstance(a, Block) for a in (*args, *kwargs.values())):
            raise UnsupportedFeatureError(
                f"calling the Python function {getattr(function, '__name__', function)} on kernel values",
                "use a function of tl, or decorate your own with @triton.jit",
            )
        return self.resolve(function(*args, **kwargs))

    def _enter(self, source: KernelSource, variables: Variables) -> Any:
        m, outer, entry = self.m, getattr(self, "frame", None), self.m.active
        held, temporary, line, line_text, place = m.held_bytes, m.temporary_bytes, m.line, m.line_text, m.source
        statement = m.statement
        self.frame = frame = Frame(source, variables)
        m.source = source
        self.base, saved_base = held + temporary, self.base
        try:
            self.body(source.tree.body)
            if m.num_active:
                frame.returned.append((m.active, None))
            return self._returned(frame, entry)
        except SimulatorError as error:
            raise error.locate(source.place(m.line)) from error.__cause__
        except RecursionError:
            raise SimulatorError(f"kernel {source.name!r} calls itself without end") from None
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
            raise explained(error).locate(source.place(m.line)) from error
        finally:
            m.active, m.held_bytes, m.temporary_bytes = entry, held, temporary
            m.line, m.line_text, m.source = line, line_text, place
            m.statement = statement
            self.base = saved_base
            if outer is not None:
                self.frame = outer

    def _returned(self, frame: Frame, entry: ProgramSet) -> Any:
        name = f"{frame.source.name}()"
        groups = [Group(programs, {name: value}) for programs, value in frame.returned if len(programs)]
        return self.reunited(name, entry, groups)

    # ---- statements

    def body(self, statements: list[ast.stmt]) -> None:
        """Run statements until no program is left."""
        m = self.m
        for node in statements:
            if not m.active.size:
                return
            self._begin(node)
            if m.counting:
                self._note_held(self.frame.source.live.before.get(node, frozenset()))
            self.frame.last_reads = self.frame.source.live.last_reads(node)
            handler = self._executors.get(type(node))
            if handler is None:
                raise UnsupportedFeatureError(f"the statement {ast.unparse(node).splitlines()[0]!r}")
            handler(self, node)

    def _begin(self, node: ast.stmt) -> None:
        """A statement, or the next turn of a loop, begins."""
        m, source = self.m, self.frame.source
        m.line = source.line_number(node)
        m.begun += 1
        m.statement = m.begun
        if m.recording:
            m.line_text = source.place(m.line).source

    def _note_held(self, names: frozenset[str]) -> None:
        """Bytes that variables hold during the next statement: those still needed, each value once."""
        variables, lent = self.frame.variables, self.frame.lent
        seen: dict[int, int] = {}
        for name in names:
            value = variables.get(name)
            if isinstance(value, Block):
                if name not in lent:
                    seen[id(value)] = value.block_bytes
            elif isinstance(value, tuple) and name not in lent:
                seen |= {id(v): v.block_bytes for v in value if isinstance(v, Block)}
        self.m.held_bytes = self.base + sum(seen.values())
        self.m.temporary_bytes = 0

    def do_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        self.eval(node.value, discard=True)

    def do_Pass(self, node: ast.Pass) -> None:
        pass

    def do_Assert(self, node: ast.Assert) -> None:
        message = self.eval(node.msg) if node.msg is not None else ""
        NATIVE["device_assert"](self.m, self.eval(node.test), message)

    def do_Assign(self, node: ast.Assign) -> None:
        value = self.eval(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name) and target.id in self.frame.constants:  # name: tl.constexpr
                self.frame.constants.discard(target.id)
                self.bind(target, value)
            else:
                self.bind(target, run_time_value(self.m, value))

    def do_AnnAssign(self, node: ast.AnnAssign) -> None:
        annotation = ast.unparse(node.annotation)
        if node.value is None:
            if annotation.endswith("constexpr") and isinstance(node.target, ast.Name):
                self.frame.constants.add(node.target.id)
            return
        value = self.eval(node.value)
        self.bind(node.target, value if annotation.endswith("constexpr") else run_time_value(self.m, value))

    def do_AugAssign(self, node: ast.AugAssign) -> None:
        if not isinstance(node.target, ast.Name):
            raise UnsupportedFeatureError(f"{ast.unparse(node)!r}", "assign to a plain variable")
        current = self.name(node.target.id)
        value = self.operation(node, node.op, current, self.eval(node.value))
        self.bind(node.target, run_time_value(self.m, value))

    def bind(self, target: ast.expr, value: Any) -> None:
        """Assign to a variable, or to the variables of a tuple."""
        if isinstance(target, ast.Name):
            keep(value)
            self.frame.variables[target.id] = value
            self.frame.lent.discard(target.id)
            for watcher in self.m.watchers:
                watcher.assigned(self.m, target.id, value)
            if target.id in self.m.watch and isinstance(value, Block):
                values = as_numpy(value.full(self.m.active)).copy()
                self.m.counters.events.append(
                    AssignEvent(target.id, self.m.line, self.m.line_text, self.m.active_numbers(), values)
                )
            return
        if isinstance(target, ast.Tuple | ast.List):
            if not isinstance(value, tuple | list) or len(value) != len(target.elts):
                raise KernelTypeError(f"cannot unpack {value!r} into {len(target.elts)} variables")
            for element, v in zip(target.elts, value, strict=True):
                self.bind(element, v)
            return
        raise UnsupportedFeatureError(
            f"assigning to {ast.unparse(target)!r}", "blocks cannot be changed in place; use tl.where or tl.store"
        )

    def do_Return(self, node: ast.Return) -> None:
        value = self.eval(node.value) if node.value is not None else None
        keep(value)
        self.frame.returned.append((self.m.active, value))
        self.m.active = self.m.active.select(EMPTY)

    def do_If(self, node: ast.If) -> None:
        truth = self.truth(self.eval(node.test))
        if isinstance(truth, bool):
            self.body(node.body if truth else node.orelse)
            return
        m, frame, entry = self.m, self.frame, self.m.active
        before, groups = frame.variables, []
        for rows, branch in ((np.flatnonzero(truth), node.body), (np.flatnonzero(~truth), node.orelse)):
            m.active, frame.variables = entry.select(rows), dict(before)
            self.body(branch)
            groups.append(Group(m.active, frame.variables))
        frame.variables = reconverge(m, entry, groups, frame.source.live.after[node])

    def do_For(self, node: ast.For) -> None:
        iterable = self.eval(node.iter)
        if node.orelse:
            raise UnsupportedFeatureError("for … else")
        if isinstance(iterable, Range):
            if iterable.static and any(isinstance(b, Block) for b in iterable.bounds):
                raise KernelTypeError("tl.static_range needs compile-time bounds")
            bounds, dtype = [self._bound(b) for b in iterable.bounds], _index_type(iterable.bounds)
            if all(isinstance(b, int) for b in bounds):
                start, stop, step = bounds
                self._plain_loop(node, range(start, stop, step), None if iterable.static else dtype)
            else:
                self._ragged_loop(node, bounds, dtype)
        elif isinstance(iterable, tuple | list):
            self._plain_loop(node, iterable, None)
        else:
            raise UnsupportedFeatureError(f"a for loop over {ast.unparse(node.iter)!r}", "loop over range(...)")

    def _bound(self, value: Any) -> int | np.ndarray:
        """A loop bound: one number, or one per active program."""
        if not isinstance(value, Block):
            if not isinstance(value, int):
                raise KernelTypeError(f"a loop bound must be an integer, got {value!r}{_bound_advice(value)}")
            return value
        if value.shape or value.dtype.is_float:
            raise KernelTypeError(
                f"a loop bound must be an integer scalar, got {value.dtype} of shape {value.shape}"
                f"{_bound_advice(0.0 if value.dtype.is_float else None)}"
            )
        numbers = np.asarray(value.data(self.m.active)).reshape(-1)
        return int(numbers[0]) if (numbers == numbers[0]).all() else numbers.astype(np.int64)

    def _plain_loop(self, node: ast.For, items: Any, dtype: DType | None) -> None:
        """A loop of the same length in all programs; without a type the items are compile-time values."""
        for item in items:
            if not self.m.num_active:
                return
            self._begin(node)
            self.bind(node.target, item if dtype is None else scalar(item, self.m.active, dtype))
            self.body(node.body)

    def _ragged_loop(self, node: ast.For, bounds: list[Any], dtype: DType) -> None:
        """A loop whose length differs: programs are put in order of length, so that those still in it are always the
        first rows."""
        m, frame, entry, live = self.m, self.frame, self.m.active, self.frame.source.live
        start, stop, step = (np.broadcast_to(np.asarray(b, np.int64), (m.num_active,)) for b in bounds)
        lengths = np.maximum(0, -((start - stop) // step))
        size = int(entry.ids.max()) + 1
        first, stride, count = (
            np.zeros(size, np.int64) for _ in range(3)
        )  # by program, so that they survive narrowing
        first[entry.ids], stride[entry.ids], count[entry.ids] = start, step, lengths
        order = np.argsort(-lengths, kind="stable")
        base = entry if (order == np.arange(len(order))).all() else entry.select(order)
        loop = Leaving(m, base, live.after[node], live.before[node])
        turn = 0
        while m.num_active:
            staying = int(np.count_nonzero(count[m.active.ids] > turn))
            if staying < m.num_active:
                loop.park(slice(staying, m.num_active), frame.variables)
                loop.keep(slice(0, staying), frame.variables)
                if not staying:
                    break
            ids = m.active.ids
            position = first[ids] + turn * stride[ids]
            same = (position == position[0]).all()
            self._begin(node)
            self.bind(
                node.target, Block([(position[:1] if same else position).astype(dtype.numpy)], dtype, (), m.active)
            )
            self.body(node.body)
            turn += 1
        frame.variables = loop.finish(entry, frame.variables)

    def do_While(self, node: ast.While) -> None:
        m, frame, entry = self.m, self.frame, self.m.active
        live = frame.source.live
        loop: Leaving | None = None
        for _ in range(_MAX_ITERATIONS):
            if not m.num_active:
                break
            self._begin(node)
            frame.last_reads = frozenset()
            truth = self.truth(self.eval(node.test))
            if truth is False:
                break
            if not isinstance(truth, bool):
                loop = loop or Leaving(m, m.active, live.after[node], live.before[node])
                loop.park(np.flatnonzero(~truth), frame.variables)
                loop.keep(np.flatnonzero(truth), frame.variables)
            self.body(node.body)
        else:
            raise SimulatorError(
                f"the while loop ran {_MAX_ITERATIONS:,} times: programs run in step or one after another here, "
                "so waiting for another one never ends"
            )
        if loop is not None:
            frame.variables = loop.finish(entry, frame.variables)


def _alive(interpreter: weakref.ref[Interpreter]) -> Interpreter:
    found = interpreter()
    assert found is not None
    return found


def _bound_advice(value: object) -> str:
    return "; use // instead of /, or tl.cdiv to round up" if isinstance(value, float) else ""


def _index_type(bounds: tuple[Any, ...]) -> DType:
    """The type of a loop's variable: that of its bounds, combined."""
    kinds = [b.dtype if isinstance(b, Block) else dtypes.of_number(b) for b in bounds]
    return functools.reduce(dtypes.promote_integers, kinds)
