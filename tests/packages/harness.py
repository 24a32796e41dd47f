"""Runs a package's public function in the simulator and in plain PyTorch, and keeps count of the kernels launched.

`check(ledger, function, reference, *inputs)` calls `function` with the inputs as they are and `reference` with the
same numbers in float64. Outputs are compared, and then the gradients of every input that asks for one, from the same
random output gradient.

*Tolerance.* One rounding to a type of machine epsilon e changes a number by at most e/2 of its size. What a kernel
returns has been rounded at least once; intermediate results in the type itself, and sums whose terms cancel, add more.
So |got - expected| <= roundings * e * (|expected| + rms(expected)), where the second term stands for the size of
what was summed. `roundings` is 8 unless a test says otherwise. fp32 results get 16: a sum of n terms in another
order differs by about sqrt(n) roundings, and n is a few hundred here.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from cme295lab.simulator import frontend
from cme295lab.simulator.launch import Settings, launch

ROUNDINGS = {torch.float32: 16.0, torch.bfloat16: 8.0, torch.float16: 8.0}
FLOAT_TYPES = [torch.float32, torch.bfloat16, torch.float16]


@dataclass
class Ledger:
    """Which kernels of a package were launched by tests that passed, and which tests have run.

    Attributes:
        package: the distribution's name in the package index.
        part: what of it a test file is about.
        kernels: names of the jit functions that passing tests launched.
        functions: the public functions that were called.
        failing: what does not work, with the reason: function name -> reason.
    """

    package: str
    part: str
    kernels: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    failing: dict[str, str] = field(default_factory=dict)

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    @contextmanager
    def launches(self, function: str) -> Iterator[Callable[[], None]]:
        """Notes what is launched inside; it counts once the function that this yields is called.

        The first time that a function is called it is traced, too: counting must not stumble over any kernel.
        """
        kernels: set[str] = set()

        def passed() -> None:
            assert kernels, f"{function} launched no kernel"
            self.kernels |= kernels
            self.functions.add(function)

        def run(kernel: Any, grid: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            launch(kernel, grid, args, kwargs, Settings(counting=function not in self.functions))
            kernels.add(_full_name(kernel))

        with frontend.launches_go_to(run):
            yield passed

    def row(self) -> str:
        """The row in docs/simulator.md."""
        counts = f"{len(self.functions)} | {len(self.kernels)} | {len(self.failing)}"
        return f"| `{self.package}` {self.version} | {self.part} | {counts} |"


def _full_name(kernel: Any) -> str:
    """Module and name of a jit function inside autotuners and heuristics."""
    while not frontend.is_kernel(kernel):
        kernel = kernel.fn
    function = frontend.kernel_function(kernel)
    return f"{function.__module__}.{function.__qualname__}"


def check(
    ledger: Ledger,
    function: Callable[..., Any],
    reference: Callable[..., Any],
    *inputs: Any,
    name: str = "",
    roundings: float | None = None,
    rounded_to: torch.dtype | None = None,
    backward: bool = True,
) -> None:
    """Compare a package's function with a reference in float64, forwards and backwards.

    `rounded_to`: the type that intermediate results are kept in, where it is coarser than that of the result.
    """
    name = name or getattr(function, "__qualname__", str(function))
    with ledger.launches(name) as passed:
        ours = [_leaf(x) for x in inputs]
        got = _tuple(function(*ours))
        seeds = [torch.randn_like(y) if _differentiable(y) else None for y in got]
        if backward:
            _backward(got, [s if s is None else s.clone() for s in seeds])  # some kernels write over them
    exact = [_leaf(x, torch.float64) for x in inputs]
    expected = _tuple(reference(*exact))
    assert len(got) == len(expected), f"{name}: {len(got)} outputs, the reference has {len(expected)}"
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert_close(a, b, f"{name}, output {i}", roundings, rounded_to)
    if backward:
        _backward(expected, [s if s is None else s.to(y.dtype) for s, y in zip(seeds, expected, strict=True)])
        for i, (a, b) in enumerate(zip(ours, exact, strict=True)):
            if isinstance(a, torch.Tensor) and a.requires_grad:
                assert a.grad is not None, f"{name}: no gradient of input {i}"
                assert_close(a.grad, b.grad, f"{name}, gradient of input {i}", roundings, rounded_to)
    passed()


def assert_close(
    got: torch.Tensor,
    expected: torch.Tensor,
    what: str,
    roundings: float | None = None,
    rounded_to: torch.dtype | None = None,
) -> None:
    """Elementwise within the tolerance described above; exactly, if the type is an integer."""
    assert got.shape == expected.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if not got.is_floating_point():
        assert torch.equal(got, expected.to(got.dtype)), f"{what}: {got} expected {expected}"
        return
    a, b = got.detach().double(), expected.detach().double()
    finite = torch.isfinite(b)
    assert torch.equal(torch.where(finite, 0, b).nan_to_num(7.0), torch.where(finite, 0, a).nan_to_num(7.0)), what
    a, b = a[finite], b[finite]
    size = b.abs() + b.square().mean().sqrt()
    dtype = rounded_to or got.dtype
    allowed = (roundings or ROUNDINGS[dtype]) * torch.finfo(dtype).eps * size
    excess = ((a - b).abs() / allowed.clamp_min(1e-30)).nan_to_num(torch.inf)
    worst = float(excess.max()) if excess.numel() else 0.0
    assert worst <= 1, f"{what} ({got.dtype}): off by {worst:.1f} times what {roundings or 'the usual'} roundings allow"


def randn(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = True, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers of a type, asking for a gradient."""
    return (torch.randn(shape) * scale).to(dtype).requires_grad_(grad)


def _leaf(x: Any, dtype: torch.dtype | None = None) -> Any:
    """An independent copy of an input, in another type if it is a float tensor."""
    if not isinstance(x, torch.Tensor):
        return x
    copy = x.detach().clone(memory_format=torch.preserve_format)
    copy = copy.to(dtype) if dtype is not None and copy.is_floating_point() else copy
    return copy.requires_grad_(x.requires_grad)


def _tuple(x: Any) -> tuple[torch.Tensor, ...]:
    """The tensors among the outputs."""
    return tuple(y for y in (x if isinstance(x, tuple | list) else (x,)) if isinstance(y, torch.Tensor))


def _differentiable(y: torch.Tensor) -> bool:
    return y.is_floating_point() and y.requires_grad


def _backward(outputs: tuple[torch.Tensor, ...], seeds: list[torch.Tensor | None]) -> None:
    pairs = [(y, s) for y, s in zip(outputs, seeds, strict=True) if s is not None]
    if pairs:
        torch.autograd.backward([y for y, _ in pairs], [s for _, s in pairs])
