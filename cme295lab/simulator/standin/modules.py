"""The stand-in's modules, by the names that Triton gives them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.standin import launching
from cme295lab.simulator.standin.names import LanguageModule, aggregate

VERSION = "3.9.0+standin"  # the release whose language the simulator follows
_LANGUAGE = (
    "language", "language.core", "language.standard", "language.math", "language.random", "language.extra",
    "language.extra.libdevice", "language.extra.cuda", "language.extra.cuda.libdevice",
)  # fmt: skip


@launching.ConstexprFunction
def cdiv(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


@launching.ConstexprFunction
def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length() if n > 0 else 0


def set_allocator(allocator: Any) -> None:
    """Scratch memory of kernels on a GPU: not needed here."""


class OutOfResources(Exception):
    """A kernel needs more of a GPU than there is; never raised here."""

    __module__ = "triton.runtime.errors"


@dataclass
class TensorDescriptor:
    """A tensor and the tile in which a kernel reads it, made on the host."""

    base: torch.Tensor
    shape: list[int]
    strides: list[int]
    block_shape: list[int]
    padding: str = "zero"
    round_f32_to_tf32: bool = False

    def __post_init__(self) -> None:
        rank, item = len(self.shape), self.base.element_size()
        if not 1 <= rank <= 5 or len(self.strides) != rank or len(self.block_shape) != rank:
            raise ValueError(
                f"shape, strides and block_shape must have the same length, 1 to 5; got {list(self.shape)}, "
                f"{list(self.strides)}, {list(self.block_shape)}"
            )
        if self.strides[-1] != 1 or any(stride * item % 16 for stride in self.strides[:-1]):
            raise ValueError(
                f"strides must be multiples of 16 bytes, the last one 1; got {list(self.strides)} elements of {item} B"
            )
        if self.padding not in ("zero", "nan"):
            raise ValueError(f"padding must be 'zero' or 'nan', got {self.padding!r}")

    @staticmethod
    def from_tensor(
        tensor: torch.Tensor, block_shape: list[int], padding: str = "zero", round_f32_to_tf32: bool = False
    ) -> TensorDescriptor:
        """A descriptor of a whole tensor."""
        shape, strides = list(tensor.shape), list(tensor.stride())
        return TensorDescriptor(tensor, shape, strides, block_shape, padding, round_f32_to_tf32)


TensorDescriptor.__module__ = "triton.tools.tensor_descriptor"


class Benchmark:
    """The description of a benchmark; kept, never run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.description = (args, kwargs)


class Mark:
    """A benchmark that says where it can run."""

    def __init__(self, fn: Any, benchmarks: Any) -> None:
        self.fn, self.benchmarks = fn, benchmarks

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Say where it can run."""
        do_bench(self.fn)


def perf_report(benchmarks: Any) -> Any:
    """`@triton.testing.perf_report(...)`."""
    return lambda fn: Mark(fn, benchmarks)


def do_bench(fn: Any, *args: Any, **kwargs: Any) -> float:
    """Say where kernels can be timed."""
    raise SimulatorError(
        "triton.testing times kernels on a GPU, with the real Triton: use Linux, or WSL 2. simulator.trace() counts "
        "what a kernel moves and computes"
    )


def assert_close(x: Any, y: Any, atol: float | None = None, rtol: float | None = None, err_msg: str = "") -> None:
    """Like torch.testing.assert_close, with tolerances that default to 0.01 and 0."""
    actual, expected = torch.as_tensor(x), torch.as_tensor(y)
    with contextlib.suppress(RuntimeError):
        actual, expected = torch.broadcast_tensors(actual, expected)
    message = (lambda text: f"{err_msg}\n{text}") if err_msg else None
    atol, rtol = 1e-2 if atol is None else atol, 0.0 if rtol is None else rtol
    torch.testing.assert_close(actual, expected, atol=atol, rtol=rtol, check_dtype=False, msg=message)


def _driver() -> SimpleNamespace:
    """`triton.runtime.driver`: programs ask it for the device to put tensors on."""
    target = SimpleNamespace(backend="simulator", arch=0, warp_size=32)
    active = SimpleNamespace(
        get_active_torch_device=lambda: torch.device("cpu"),
        get_current_target=lambda: target,
        get_current_device=lambda: 0,
    )
    return SimpleNamespace(active=active)


def _make() -> dict[str, ModuleType]:
    kernels = {n: getattr(launching, n) for n in ("JITFunction", "KernelInterface", "ConstexprFunction", "jit")}
    kernels["constexpr_function"] = launching.ConstexprFunction
    tuning = {n: getattr(launching, n) for n in ("Autotuner", "Config", "Heuristics", "autotune", "heuristics")}
    errors = {"OutOfResources": OutOfResources}
    contents: dict[str, dict[str, Any]] = {
        "": {
            **kernels, **tuning, **errors, "cdiv": cdiv, "next_power_of_2": next_power_of_2,
            "set_allocator": set_allocator, "aggregate": aggregate, "__version__": VERSION,
        },
        "runtime": {**kernels, **tuning, **errors, "driver": _driver()},
        "runtime.jit": kernels,
        "runtime.autotuner": {**tuning, **errors},
        "runtime.errors": errors,
        "testing": {
            "do_bench": do_bench, "do_bench_cudagraph": do_bench, "perf_report": perf_report, "Benchmark": Benchmark,
            "assert_close": assert_close,
        },
        "tools": {},
        "tools.tensor_descriptor": {"TensorDescriptor": TensorDescriptor},
        **{name: {} for name in _LANGUAGE},
    }  # fmt: skip
    made: dict[str, ModuleType] = {}
    for name, members in contents.items():
        full = f"triton.{name}".rstrip(".")
        kind = LanguageModule if name in _LANGUAGE else ModuleType
        module = made[full] = kind(full, "Stands for the module of Triton with this name, which is not installed.")
        vars(module).update(members, __path__=[])
        parent, _, last = full.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
    return made


MODULES = _make()
