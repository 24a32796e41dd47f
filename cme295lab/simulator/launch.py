"""One launch: bind the arguments, cut the grid into batches, run them.

A batch is as many programs as fit a budget of elements for the largest block, so memory stays bounded. The largest
block is not known before the kernel has run; so the first batch of its first launch is a single program.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cme295lab.simulator import dtypes, frontend
from cme295lab.simulator.compound import Compound, parts, rebuilt
from cme295lab.simulator.errors import SimulatorError, UnsupportedFeatureError
from cme295lab.simulator.interpreter import Interpreter
from cme295lab.simulator.language import descriptors
from cme295lab.simulator.machine import Counters, Machine, Observer, Watcher
from cme295lab.simulator.source import KernelSource, kernel_source
from cme295lab.simulator.storage import Storage
from cme295lab.simulator.tape import CHUNK_ELEMENTS, BlankTape, Tape
from cme295lab.simulator.values import Pointer, scalar

ELEMENT_BUDGET = 1 << 22
_ORDERED = frozenset({"atomic_cas", "atomic_xchg", "atomic_poll"})
_COMPILER_OPTIONS = frozenset(
    [
        "num_warps", "num_stages", "num_ctas", "maxnreg", "warp_size", "ptx_version", "ptx_options", "ir_override",
        "enable_fp_fusion", "launch_cooperative_grid", "launch_pdl", "debug", "sanitize_overflow", "extern_libs",
        "arch", "instrumentation_mode", "min_shared_mem", "waves_per_eu", "matrix_instr_nonkdim", "kpack",
        "schedule_hint",
    ]
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to do besides running: count, keep every access in order, keep the values of some variables, and (if
    counting) let observers see every access. If `blank` is a set, floats are not computed, and it gets the memory in
    which they would have been stored."""

    counting: bool = False
    recording: bool = False
    watch: frozenset[str] = frozenset()
    observers: tuple[Observer, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    element_budget: int = ELEMENT_BUDGET
    chunk_elements: int = CHUNK_ELEMENTS
    blank: set[int] | None = None


@dataclass(kw_only=True)
class Outcome:
    """What came out of a launch, for the trace to present."""

    source: KernelSource
    grid: tuple[int, int, int]
    constants: dict[str, Any]
    config: str | None
    kernel: Any = None  # the jit function, its arguments and the options for the compiler
    arguments: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    storages: list[Storage] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    seconds: float = 0.0


def launch(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any], settings: Settings) -> Outcome:
    """Run every program of a grid on CPU tensors.

    Args:
        kernel: a jit function, possibly inside autotuners and heuristics.
        grid: one to three sizes, or a function of the meta-parameters that returns them.
        args, kwargs: the kernel's arguments; options for the compiler (num_warps, …) are accepted and have no effect.
        settings: what to count.

    Raises:
        SimulatorError: the kernel or its arguments are wrong; see the subclasses.
    """
    started = time.perf_counter()
    names = list(_signature(kernel).parameters)
    jit, options, config = frontend.unwrap(kernel, dict(zip(names, args, strict=False)), kwargs)
    function = frontend.kernel_function(jit)
    source = kernel_source(function)
    with _launching(source):
        bound = _bind(source, args, options)
        sizes = _grid(grid, bound)
    constant_names = frontend.constexpr_names(function)
    outcome = Outcome(
        source=source, grid=sizes, config=config, kernel=jit, arguments=bound, options=options,
        constants={n: v for n, v in bound.items() if n in constant_names and not isinstance(v, torch.Tensor)},
    )  # fmt: skip
    machine = Machine(
        sizes, counting=settings.counting, recording=settings.recording, watch=settings.watch,
        observers=settings.observers, watchers=settings.watchers, kernel_name=source.name,
        tape=Tape(settings.chunk_elements) if settings.blank is None else BlankTape(settings.blank),
    )  # fmt: skip
    machine.counters = outcome.counters
    machine.memory.storages = outcome.storages
    for watcher in settings.watchers:
        watcher.begin(machine)
    with _launching(source):
        arguments = {
            n: v if n in constant_names else _argument(n, v, machine, outcome.storages) for n, v in bound.items()
        }
    with torch.no_grad():
        _run_batches(source, arguments, machine, settings, tuple((n, str(v)) for n, v in outcome.constants.items()))
    outcome.seconds = time.perf_counter() - started
    return outcome


@contextlib.contextmanager
def _launching(source: KernelSource) -> Iterator[None]:
    """Errors name the kernel; its lines have not begun to run."""
    try:
        yield
    except SimulatorError as error:
        error.message = f"launching {source.name}: {error.message}"
        raise


def _signature(kernel: Any) -> Any:
    while not frontend.is_kernel(kernel):
        kernel = kernel.fn
    return kernel_source(frontend.kernel_function(kernel)).signature


def _bind(source: KernelSource, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    known = {k: v for k, v in options.items() if k in source.signature.parameters or k not in _COMPILER_OPTIONS}
    try:
        bound = source.signature.bind(*args, **known)
    except TypeError as error:
        raise SimulatorError(f"{error}; its parameters are {', '.join(source.signature.parameters)}") from None
    bound.apply_defaults()
    return {name: frontend.constant_value(value) for name, value in bound.arguments.items()}


def _grid(grid: Any, bound: dict[str, Any]) -> tuple[int, int, int]:
    try:
        sizes = grid(bound) if callable(grid) else grid
    except KeyError as error:
        raise SimulatorError(f"the grid function asks for {error}, but the arguments are {', '.join(bound)}") from None
    sizes = tuple(sizes) if isinstance(sizes, tuple | list) else (sizes,)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(n, int | np.integer) and n >= 0 for n in sizes):
        advice = "; round up with triton.cdiv(n, BLOCK)" if any(isinstance(n, float) for n in sizes) else ""
        raise SimulatorError(f"the grid must be one to three non-negative integers, got {sizes!r}{advice}")
    x, y, z = (*(int(n) for n in sizes), 1, 1)[:3]
    return x, y, z


def _argument(name: str, value: Any, machine: Machine, storages: list[Storage]) -> Any:
    """A launch argument as the kernel sees it."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise SimulatorError(
                f"argument {name!r} is on {value.device}; put all tensors on the CPU (or all on the GPU)"
            )
        short = name.removesuffix("_ptr").lower()
        storage = Storage(name if any(s.name == short for s in storages) else short, value)
        storages.append(storage)
        return Pointer([np.array([storage.first_element], np.int64)], storage.dtype, (), machine.active, storage)
    if isinstance(value, bool | int | float):
        return scalar(value, machine.active, dtypes.of_argument(value))
    if isinstance(value, tuple | list):
        return rebuilt(value, [_argument(f"{name}.{i}", v, machine, storages) for i, v in enumerate(value)])
    if frontend.is_tensor_descriptor(value):
        return descriptors.from_host(machine, value, _argument(name, value.base, machine, storages))
    if value is None or isinstance(value, str):
        return value
    if frontend.is_kernel(value) or hasattr(value, "name"):
        return value
    advice = "pass torch.from_numpy(array)" if isinstance(value, np.ndarray) else "pass tensors, numbers or tuples"
    raise UnsupportedFeatureError(f"argument {name!r} of type {type(value).__name__}", advice)


def _needs_order(source: KernelSource, arguments: dict[str, Any]) -> bool:
    """Whether the kernel, or a jit function that it calls, orders programs against each other, so that they must run
    one after another."""
    waiting, seen = [source], {source}
    while waiting:
        current = waiting.pop()
        if current.called_names & _ORDERED:
            return True
        functions = [f for f in (*current.called_functions, *arguments.values()) if frontend.is_own_kernel(f)]
        new = {kernel_source(frontend.kernel_function(f)) for f in functions} - seen
        waiting.extend(new)
        seen |= new
    return False


def _run_batches(
    source: KernelSource,
    arguments: dict[str, Any],
    machine: Machine,
    settings: Settings,
    constants: tuple[tuple[str, str], ...],
) -> None:
    total = machine.grid[0] * machine.grid[1] * machine.grid[2]
    one_by_one = _needs_order(source, arguments)
    machine.largest_block = source.largest_blocks.get(constants, settings.element_budget)
    first = 0
    interpreter = Interpreter(machine)
    while first < total:
        size = 1 if one_by_one else max(1, settings.element_budget // machine.largest_block)
        last = min(total, _whole_rows(first + size, first, machine.grid[0]))
        if first == 0:
            machine.largest_block = 1
        machine.begin_batch(first, last)
        interpreter.run(source.function, {n: _moved(v, machine) for n, v in arguments.items()})
        machine.tape.play(finish=True)
        first = last
    if total:
        source.largest_blocks[constants] = machine.largest_block


def _whole_rows(last: int, first: int, row: int) -> int:
    """The end of a batch, moved back to where a row of the grid ends: programs of a row often share what they read."""
    whole = last // row * row
    return whole if whole > first else last


def _moved(value: Any, machine: Machine) -> Any:
    """An argument belongs to the set of programs of the current batch."""
    if isinstance(value, Pointer):
        return Pointer(value.arrays, value.dtype, (), machine.active, value.storage)
    if isinstance(value, tuple | Compound):
        return rebuilt(value, [_moved(v, machine) for v in parts(value) or ()])
    if hasattr(value, "programs"):
        return value.restricted(machine.active, slice(None))
    return value
