"""A kernel's source: its syntax tree, its parameters, and which variables are still needed after each statement.

Liveness is used twice: values of programs that leave a loop are kept only if somebody reads them later, and the
    on-chip bytes of a
program at a statement are those of the variables that are still needed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from cme295lab.simulator.errors import Place, SimulatorError


class KernelSource:
    """The parsed source of one jit function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = function.__name__
        try:
            lines, self.first_line = inspect.getsourcelines(function)
        except (OSError, TypeError):
            raise SimulatorError(
                f"the source of kernel {self.name!r} is not available: define it in a file or a notebook cell"
            ) from None
        self.lines = lines
        self.file = (inspect.getsourcefile(function) or "?").rsplit("/", 1)[-1]
        node = ast.parse(textwrap.dedent("".join(lines))).body[0]
        assert isinstance(node, ast.FunctionDef)
        self.tree = node
        self.signature = inspect.signature(function)
        self.globals = function.__globals__
        self.closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        self.live = Liveness(node)
        self.resolved: dict[
            str, tuple[Any, Any]
        ] = {}  # objects outside the kernel, and what they mean to the simulator
        self.largest_blocks: dict[
            tuple[tuple[str, str], ...], int
        ] = {}  # by values of the constants, from earlier launches

    def line_number(self, node: ast.AST) -> int:
        """Line of a node in its file."""
        return int(getattr(node, "lineno", 1)) + self.first_line - 1

    def place(self, line: int) -> Place:
        """Where a line is, for an error message."""
        index = min(max(line - self.first_line, 0), len(self.lines) - 1)
        return Place(kernel=self.name, file=self.file, line=line, source=self.lines[index].rstrip())

    @functools.cached_property
    def called_names(self) -> set[str]:
        """Names of everything that the kernel calls (`tl.load` → "load")."""
        names = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                names.add(node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        return names

    @functools.cached_property
    def called_functions(self) -> list[Any]:
        """The objects that the kernel calls by name (`f(…)`, `module.f(…)`), as far as they exist before it runs."""
        found = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                with contextlib.suppress(KeyError, AttributeError, ValueError):
                    found.append(self._named(node.func))
        return found

    def _named(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Attribute):
            return getattr(self._named(node.value), node.attr)
        name = getattr(node, "id", "")
        return self.closure[name].cell_contents if name in self.closure else self.globals[name]


@functools.lru_cache(maxsize=512)
def kernel_source(function: Callable[..., Any]) -> KernelSource:
    """The parsed source of a function, parsed once."""
    return KernelSource(function)


class Liveness:
    """For each statement: the names that may be read at or after it (`before`), and after it (`after`)."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self._last_reads: dict[ast.stmt, frozenset[str]] = {}
        self.before: dict[ast.stmt, frozenset[str]] = {}
        self.after: dict[ast.stmt, frozenset[str]] = {}
        self._body(function.body, frozenset())

    def last_reads(self, node: ast.stmt) -> frozenset[str]:
        """Names that a simple statement reads exactly once, and nobody after it."""
        found = self._last_reads.get(node)
        if found is None:
            reads = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
            simple = isinstance(node, ast.Assign | ast.Expr | ast.Return)
            once = {name for name in reads if reads.count(name) == 1} if simple else set()
            found = self._last_reads[node] = frozenset(once) - (self.after[node] - _writes([node]))
        return found

    def _body(self, body: list[ast.stmt], live: frozenset[str]) -> frozenset[str]:
        for statement in reversed(body):
            self.after[statement] = live
            live = self._statement(statement, live)
            self.before[statement] = live
        return live

    def _statement(self, node: ast.stmt, live: frozenset[str]) -> frozenset[str]:
        if isinstance(node, ast.If):
            return _reads([node.test]) | self._body(node.body, live) | self._body(node.orelse, live)
        if isinstance(node, ast.For):
            return self._loop(node, live, _reads([node.iter]), _writes([node.target]))
        if isinstance(node, ast.While):
            return self._loop(node, live, _reads([node.test]), frozenset())
        if isinstance(node, ast.Return):
            return _reads([node])
        return (live - _writes([node])) | _reads([node])

    def _loop(
        self, node: ast.For | ast.While, live: frozenset[str], head: frozenset[str], target: frozenset[str]
    ) -> frozenset[str]:
        entry = live | head
        while True:
            body = self._body(node.body, entry) - target
            if body <= entry:
                return entry
            entry = entry | body


def _names(nodes: Iterable[ast.AST], context: type[ast.expr_context]) -> frozenset[str]:
    return frozenset(
        n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)
    )


def _reads(nodes: list[Any]) -> frozenset[str]:
    names = _names(nodes, ast.Load)
    return names | frozenset(
        n.target.id for n in nodes if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name)
    )


def _writes(nodes: list[Any]) -> frozenset[str]:
    return _names(nodes, ast.Store)
