"""Watch a call: which tensors it allocates, how much they hold at once, and whether it calls something forbidden."""

from __future__ import annotations

import linecache
import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Ready-made attention, in the operator's or the function's name.
_ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "flex_attention", "multi_head_attention")
# Ways out of PyTorch, where nothing can be counted.
_WAYS_OUT = ("Tensor.numpy", "Tensor.__array__", "Tensor.tolist", "Tensor.data_ptr", "Tensor.__dlpack__")
_LIBRARY = "cme295lab.attention"
# No attention without a matrix product: only there is it worth asking who called.
_PRODUCTS = ("matmul", "mm", "bmm", "baddbmm", "einsum", "__matmul__", "__rmatmul__", "linear")


@dataclass(frozen=True)
class Allocation:
    """A tensor that was allocated.

    Args:
        shape: its shape.
        num_elements: elements of its storage, which a view can hide.
        operator: the PyTorch operator that made it.
        line: the student's line, such as "line 7: s = q @ k", or an empty string.
    """

    shape: tuple[int, ...]
    num_elements: int
    operator: str
    line: str


def line_text(filename: str, number: int) -> str:
    """A line of source in words, such as "line 7: s = q @ k"; without the source, its number alone."""
    source = linecache.getline(filename, number).strip()
    return f"line {number}: {source}" if source else f"line {number}"


class Watch:
    """A context manager that records allocations and forbidden calls of the code in its block.

    Args:
        before_call: tensors that exist already and are not counted.
        is_student: tells from a file name whether a line is the student's.
    """

    def __init__(self, before_call: Iterable[Tensor], is_student: Callable[[str], bool]) -> None:
        self.largest: Allocation | None = None
        self.peak_bytes = 0
        self.forbidden: list[str] = []
        self._live_bytes = 0
        self._known: dict[int, Any] = {}
        self._is_student = is_student
        for tensor in before_call:
            self._remember(tensor, 0)
        self._modes = (_Functions(self), _Operators(self))

    def __enter__(self) -> Watch:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)

    @property
    def live_bytes(self) -> int:
        """What is alive now of the tensors that were allocated in the block."""
        return self._live_bytes

    def allocated(self, operator: str, tensor: Tensor) -> None:
        """Record a tensor that an operator returned, unless it shares the memory of a known one."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        num_bytes = storage.nbytes()
        self._remember(tensor, num_bytes)
        self._live_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        num_elements = num_bytes // max(tensor.element_size(), 1)
        if self.largest is None or num_elements > self.largest.num_elements:
            self.largest = Allocation(tuple(tensor.shape), num_elements, operator, self._line())

    def called(self, name: str) -> None:
        """Record a call, if it is one that does the exercise's work or that escapes the counting.

        Args:
            name: of the function or operator, such as "torch.Tensor.matmul".
        """
        if name not in _JUDGED_NAMES:
            _JUDGED_NAMES[name] = _reason(name)
        reason = _JUDGED_NAMES[name]
        if reason == _IF_LIBRARY:
            if _called_from_library():
                self._forbid(f"your code calls the library's {_LIBRARY}: write the tiles yourself")
        elif reason:
            self._forbid(reason)

    def _forbid(self, sentence: str) -> None:
        line = self._line()
        sentence = f"{sentence} ({line})" if line else sentence
        if sentence not in self.forbidden:
            self.forbidden.append(sentence)

    def _remember(self, tensor: Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata

        def freed(_: object) -> None:
            self._known.pop(key, None)
            self._live_bytes -= num_bytes

        self._known[key] = weakref.ref(storage, freed)

    def _line(self) -> str:
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            filename = frame.f_code.co_filename
            if self._is_student(filename):
                return line_text(filename, frame.f_lineno)
            frame = frame.f_back
        return ""


_IF_LIBRARY = "if the library called it"
_JUDGED_NAMES: dict[str, str] = {}  # tens of thousands of calls, tens of names


def _reason(name: str) -> str:
    """Why a function must not be called, or an empty string."""
    if any(part in name for part in _ATTENTION):
        return f"your code calls {name}, ready-made attention: write the tiles yourself"
    if name.endswith(_WAYS_OUT):
        return f"your code leaves PyTorch through {name}, so its memory cannot be measured"
    return _IF_LIBRARY if name.rpartition(".")[2] in _PRODUCTS else ""


def _called_from_library() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name == _LIBRARY or name.startswith(_LIBRARY + "."):
            return True
        frame = frame.f_back
    return False


class _Functions(TorchFunctionMode):
    """Sees torch's Python functions, before they turn into operators."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.watch.called(resolve_name(func) or getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    """Sees every operator that makes a tensor, whoever called it."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.watch.called(name)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self.watch.allocated(name, leaf)
        return result
