"""Reads of memory that nobody has written: by kernels, by torch operations, and by whoever looks at the result.

While a check is on, tensors made by `torch.empty`, `empty_like`, `new_empty`, `empty_strided`, … are undefined until
written, element by element: by a torch operation (in place, `out=`, `fill_`), or by a store or atomic of a kernel.
What counts as a problem:

- a kernel loads (or updates atomically) an element that nobody has written;
- a torch operation reads one. Operations that pick elements or ignore an argument (`x[index]`, `gather`, `where`, …)
  are not judged, views and `empty_like` read nothing, and a copy of undefined elements is undefined itself;
- at the end of the block a tensor still exists, kernels have stored to it, and elements that one can look at are
  unwritten. If only a view of a larger tensor is left (`padded[:n]`), only the view is looked at.

Not seen: memory written behind torch's back. A tensor of which somebody asked for a numpy array is not followed any
further. In-place operations count as writes of their target, even if they also read it.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cme295lab.simulator.addresses import Access
from cme295lab.simulator.debug.memory import Memory
from cme295lab.simulator.debug.problem import Problem, Program, shown_index, shown_line, shown_program
from cme295lab.simulator.debug.runs import runs_of
from cme295lab.simulator.errors import Place
from cme295lab.simulator.indices import index_of
from cme295lab.simulator.machine import AccessKind, Machine
from cme295lab.simulator.storage import Storage

_ALLOCATE = frozenset(
    f"aten::{n}" for n in ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
)
_COPY = frozenset({"aten::clone", "aten::_to_copy", "aten::copy_"})
_READ_NOTHING = frozenset(
    f"aten::{n}" for n in (
        "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like", "new_zeros", "new_ones",
        "new_full", "is_same_size", "is_pinned", "resize_", "set_",
    )
)  # fmt: skip
_PICK = frozenset(
    f"aten::{n}" for n in (
        "index", "gather", "index_select", "take", "masked_select", "where", "masked_fill", "embedding", "index_put",
        "scatter", "slice_scatter", "select_scatter", "convolution_backward",
    )
)  # fmt: skip
_TO_NUMPY = frozenset({"numpy", "__array__", "__dlpack__"})


class Initialization:
    """Follows the undefined tensors of one `trace(check=True)` block."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._memories: dict[int, Memory] = {}
        self._found: dict[tuple[str, int, str, str], tuple[Place, tuple[int, ...], Program, int]] = {}

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Inside, torch operations are seen; launches must be run with the modes switched off."""
        with _Operations(self), _Conversions(self):
            yield

    # ---- kernels

    def access(self, m: Machine, access: Access, kind: AccessKind) -> None:
        """One load, store or atomic of all active programs."""
        storage = access.pointer.storage
        memory = self._memories.get(storage.tensor.untyped_storage()._cdata)
        runs = None if memory is None else runs_of(m, access)
        if memory is None or runs is None:
            return
        flags = memory.flags(storage.dtype.itemsize)
        scaled = runs.scaled(storage.dtype.itemsize // memory.unit_bytes)
        window = scaled.windows(flags)
        if kind != "store":
            missing = np.flatnonzero(~window[scaled.starts])
            if len(missing):
                run = int(missing[0]) // scaled.length
                element = int(scaled.starts[run]) + int(missing[0]) % scaled.length
                element //= storage.dtype.itemsize // memory.unit_bytes
                self._note_read(m, kind, storage, element, int(runs.rows[run]), len(missing))
        if kind != "load":
            window[scaled.starts] = True
            memory.stored_by.setdefault(m.kernel_name, storage.name)

    def _note_read(self, m: Machine, kind: AccessKind, storage: Storage, element: int, row: int, count: int) -> None:
        assert m.source is not None
        place = m.source.place(m.line)
        key = (m.kernel_name, place.line, storage.name, kind)
        known = self._found.get(key)
        if known is not None:
            self._found[key] = (*known[:3], known[3] + count)
            return
        index = index_of(storage.tensor.shape, storage.tensor.stride(), element - storage.first_element)
        self._found[key] = (place, index, m.program_of_row(row), count)

    def end_launch(self) -> None:
        """Make problems of what the launch's programs read, and forget tensors that are fully written."""
        for (kernel, line, tensor, kind), (place, index, program, count) in self._found.items():
            verb = "loads" if kind == "load" else "updates atomically"
            fix = (
                "start from torch.zeros: an atomic adds to what is there" if kind == "atomic" else
                "store to it before it is read (by an earlier launch, or in torch), make it with torch.zeros, or mask "
                "the lanes that are not wanted"
            )  # fmt: skip
            more = f"\n  {count:,} such reads in all; this is the first" if count > 1 else ""
            message = (
                f"uninitialized memory in kernel {kernel}: {shown_program(program)} {verb} {tensor}"
                f"{shown_index(index)}, which nobody has written since torch.empty made it\n  {shown_line(place)}"
                f"{more}\n  fix: {fix}"
            )
            self.problems.append(
                Problem(
                    kind="uninitialized", kernel=kernel, file=place.file, line=line, source=place.source.strip(),
                    tensor=tensor, index=index, programs=(program,), count=count, message=message,
                )
            )  # fmt: skip
        self._found.clear()
        self._memories = {k: v for k, v in self._memories.items() if v.is_alive and not v.is_complete}

    # ---- torch

    def operation(self, function: Any, inputs: list[Any], result: Any) -> None:
        """A torch operation has run."""
        schema = function._schema
        if schema.name in _ALLOCATE:
            for tensor in _tensors(result):
                if tensor.numel():
                    self._memories[tensor.untyped_storage()._cdata] = Memory(tensor)
            return
        if not self._memories:
            return
        written, read = _split(schema, inputs)
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
        if schema.name in _COPY:
            self._copied(read[0], written[0] if written else result)
            return
        if not is_view and schema.name not in _READ_NOTHING and schema.name not in _PICK:
            for tensor in read:
                self.looked_at(tensor, f"torch operation {schema.name.removeprefix('aten::')}")
        for tensor in written:
            memory = self._of(tensor)
            if memory is not None:
                memory.mark(tensor)
        if is_view:
            for tensor in _tensors(result):
                memory = self._of(tensor)
                if memory is not None:
                    memory.note_view(tensor)

    def _of(self, tensor: torch.Tensor) -> Memory | None:
        storage = tensor.untyped_storage()
        memory = self._memories.get(storage._cdata)
        if memory is not None and memory.num_bytes != storage.nbytes():  # resized
            del self._memories[storage._cdata]
            return None
        return memory

    def _copied(self, source: torch.Tensor, target: Any) -> None:
        """A copy is as undefined as its source."""
        known = self._of(source)
        mine = self._of(target)
        if known is None or known.first_unwritten(source) is None:
            if mine is not None:
                mine.mark(target)
            return
        if mine is None:
            mine = self._memories[target.untyped_storage()._cdata] = Memory(target)
        mine.stored_by.update(known.stored_by)
        flags, goal = known.of(source), mine.of(target)
        flags = flags.all(-1) if flags.ndim > source.ndim else flags
        goal.copy_(flags.unsqueeze(-1) if goal.ndim > target.ndim else flags)

    def forget(self, tensor: torch.Tensor) -> None:
        """Somebody may write to this tensor without torch."""
        self._memories.pop(tensor.untyped_storage()._cdata, None)

    def looked_at(self, tensor: torch.Tensor, by: str) -> None:
        """Somebody reads all elements of a tensor."""
        memory = self._of(tensor)
        found = None if memory is None else memory.first_unwritten(tensor)
        if memory is None or found is None:
            return
        place = _caller()
        memory.mark(tensor)  # once is enough
        self._unwritten(memory, found, f"the {by} reads", place)

    def converted(self, tensor: torch.Tensor, name: str) -> None:
        """A tensor becomes a numpy array (to be filled, if no kernel has done so) or a list."""
        memory = self._of(tensor)
        if memory is not None and (memory.stored_by or name not in _TO_NUMPY):
            self.looked_at(tensor, f"conversion .{name}()")

    def end_block(self) -> None:
        """What is left of tensors that kernels have stored to must have been written."""
        for memory in self._memories.values():
            if not memory.is_alive or not memory.stored_by:
                continue
            for tensor in memory.shown():
                found = memory.first_unwritten(tensor)
                if found is not None:
                    self._unwritten(memory, found, "the result has", None)
                    memory.mark(tensor)
        self._memories.clear()

    def _unwritten(self, memory: Memory, found: tuple[tuple[int, ...], int], what: str, place: Place | None) -> None:
        index, count = found
        kernel, name = next(iter(memory.stored_by.items()), ("", "a tensor"))
        if kernel:
            whose = f"which no program of kernel {kernel} has stored"
            fix = (
                "check that the grid has enough programs (triton.cdiv(n, BLOCK)) and that the mask keeps the tail; if "
                "nobody is meant to read these elements, return a view without them, or make it with torch.zeros"
            )
        else:
            whose = "which nobody has written since torch.empty made it"
            fix = "launch the kernel that fills it first, or make it with torch.zeros"
        title = f"uninitialized memory: {what} {name}{shown_index(index)}, {whose}"
        lines = [title] + ([f"  {shown_line(place)}"] if place else [])
        if count > 1:
            lines.append(f"  {count:,} such elements in all; this is the first")
        self.problems.append(
            Problem(
                kind="uninitialized", kernel=kernel, file=place.file if place else "", line=place.line if place else 0,
                source=place.source.strip() if place else "", tensor=name, index=index, programs=(), count=count,
                message="\n".join([*lines, f"  fix: {fix}"]),
            )
        )  # fmt: skip


def _tensors(values: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, torch.Tensor) and t.device.type == "cpu"]


def _split(schema: Any, inputs: list[Any]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors that an operation writes, and those that it only reads."""
    written: list[torch.Tensor] = []
    read: list[torch.Tensor] = []
    args, kwargs = inputs
    named = dict(zip([a.name for a in schema.arguments], args, strict=False)) | kwargs
    for argument in schema.arguments:
        value = named.get(argument.name)
        changes = argument.alias_info is not None and argument.alias_info.is_write
        (written if changes else read).extend(_tensors(value))
    return written, read


def _caller() -> Place:
    """The line outside torch and this module from which an operation was called."""
    frame = sys._getframe(1)
    while frame.f_back is not None and ("/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__):
        frame = frame.f_back
    file, line = frame.f_code.co_filename, frame.f_lineno
    return Place(
        kernel=frame.f_code.co_name, file=file.rsplit("/", 1)[-1], line=line, source=linecache.getline(file, line)
    )


class _Operations(TorchDispatchMode):
    """Shows every torch operation to the check."""

    def __init__(self, check: Initialization) -> None:
        super().__init__()
        self._check = check

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._check.operation(func, [args, kwargs or {}], result)
        return result


class _Conversions(TorchFunctionMode):
    """Sees tensors that become numpy arrays, which torch operations do not show."""

    def __init__(self, check: Initialization) -> None:
        super().__init__()
        self._check = check

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _TO_NUMPY or name == "tolist":
            self._check.converted(args[0], name)
            if name in _TO_NUMPY:
                self._check.forget(args[0])
        return func(*args, **(kwargs or {}))
