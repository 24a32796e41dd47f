"""Kernels from text. A kernel needs its source in a file, so generated ones are written to a temporary module."""

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch

from cme295lab import simulator

_number = itertools.count()
_HEAD = "import triton\nimport triton.language as tl\n\n\n"


@pytest.fixture(scope="session")
def module_from(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], ModuleType]]:
    """Makes a module of a source text, which starts below `import triton` and `import triton.language as tl`."""
    folder = tmp_path_factory.mktemp("kernels")
    made: dict[str, ModuleType] = {}

    def make(source: str) -> ModuleType:
        if source not in made:
            name = f"generated_kernel_{next(_number)}"
            path = folder / f"{name}.py"
            path.write_text(_HEAD + source)
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            made[source] = module
        return made[source]

    yield make
    for module in made.values():
        sys.modules.pop(module.__name__, None)


class Evaluator:
    """Evaluates one expression of the Triton language on tensors: `evaluate("x + y", x=a, y=b)`."""

    def __init__(self, module_from: Callable[[str], ModuleType]) -> None:
        self._module_from = module_from

    def __call__(
        self, expression: str, out: torch.dtype | None = None, *, programs: int = 1, before: str = "", **given: Any
    ) -> torch.Tensor:
        """The value of an expression.

        Args:
            expression: of the names in `given`; a tensor is loaded whole by each of `programs` programs, which split
                its first axis; a Python number is inserted as a literal.
            out: dtype of the result tensor; by default the dtype that the expression has in the simulator.
            before: statements that stand above the expression.
        """
        tensors = {n: v for n, v in given.items() if isinstance(v, torch.Tensor)}
        numbers = {n: v for n, v in given.items() if n not in tensors}
        lines = [f"    {n}: tl.constexpr = {v!r}" for n, v in numbers.items()]
        for n, t in tensors.items():
            shape = (t.shape[0] // programs, *t.shape[1:]) if t.ndim else ()
            lines.append(f"    {n} = tl.load({_pointers(n, shape)})")
        lines += [f"    {line}" for line in before.splitlines()]
        parameters = ", ".join(f"{n}_ptr" for n in tensors)
        body = "\n".join(lines)
        probe = f"@triton.jit\ndef kernel(found, {parameters}):\n{body}\n    found(({expression}))\n"
        shape, dtype = self._probe(probe, programs, tensors)
        result = torch.empty((programs * shape[0], *shape[1:]) if shape else (programs,), dtype=out or dtype)
        source = (
            f"@triton.jit\ndef kernel(out_ptr, {parameters}):\n{body}\n"
            f"    result = {expression}\n    tl.store({_pointers('out', shape)}, result)\n"
        )
        with simulator.enabled():
            self._module_from(source).kernel[(programs,)](result, *[t.contiguous() for t in tensors.values()])
        return result

    def _probe(
        self, source: str, programs: int, tensors: dict[str, torch.Tensor]
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and dtype of the expression, told by the kernel itself."""
        text = source.replace("found, ", "").replace("    found(", "    report(")
        module = self._module_from(_REPORT + text)
        seen: list[tuple[tuple[int, ...], str]] = []
        module.notes = ModuleType("notes")  # a kernel may use modules of its surroundings
        module.notes.add = lambda shape, dtype: seen.append((tuple(shape), str(dtype)))
        with simulator.enabled():
            module.kernel[(programs,)](*[t.contiguous() for t in tensors.values()])
        shape, name = seen[0]
        return shape, TORCH[name]


_REPORT = "@triton.jit\ndef report(value):\n    notes.add(value.shape, value.dtype)\n\n\n"

TORCH = {
    "fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
    "fp8e5": torch.float8_e5m2, "fp8e4nv": torch.float8_e4m3fn,
    "fp8e5b16": torch.float8_e5m2fnuz, "fp8e4b8": torch.float8_e4m3fnuz,
    "int1": torch.bool, "int8": torch.int8,
    "int16": torch.int16, "int32": torch.int32, "int64": torch.int64, "uint8": torch.uint8, "uint16": torch.uint16,
    "uint32": torch.uint32, "uint64": torch.uint64,
}  # fmt: skip


def _pointers(name: str, shape: tuple[int, ...]) -> str:
    """Pointers to a contiguous tensor of which every program has `shape`."""
    size, terms, stride = 1, [], 1
    for n in shape:
        size *= n
    for axis in reversed(range(len(shape))):
        index = ", ".join(":" if a == axis else "None" for a in range(len(shape)))
        terms.append(f"tl.arange(0, {shape[axis]})[{index}] * {stride}")
        stride *= shape[axis]
    return " + ".join([f"{name}_ptr + tl.program_id(0) * {size}", *terms])


@pytest.fixture(scope="session")
def evaluate(module_from: Callable[[str], ModuleType]) -> Evaluator:
    return Evaluator(module_from)
