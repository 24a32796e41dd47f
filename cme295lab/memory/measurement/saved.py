"""Which tensors autograd has saved for the backward pass, found by reading the graph and changing nothing in it.

After an operator has run, its output has a node of the graph, and the node tells what it saved. Reading gives back the
very tensor: no copy is made, versions are checked as before, a second backward pass works as before. Where the
program's own saved-tensor hooks are at work (activation checkpointing, offloading), reading would call them out of
turn. There the node is left alone, and what the hook packed is looked at instead, the moment that it is handed to
autograd.

Not seen: what nodes of in-place operators on views save (torch hides them); such storages stay "temporary".
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cme295lab.memory.measurement.stand_in import PUSH_SAVED_TENSOR_HOOKS

_RAW = "_raw_saved_"
_MAX_WAITING = 256  # outputs that wait for a node before those that are gone are dropped

_autograd: Any = torch._C._autograd


class SavedTensors:
    """Finds saved tensors, and calls `found` with each, between `start` and `stop`.

    Args:
        found: what to do with a saved tensor; also told whether a hook of the program's own packed it.
    """

    def __init__(self, found: Callable[[Tensor, bool], None]) -> None:
        self._found = found
        self._waiting: list[weakref.ref[Tensor]] = []
        self._late: list[weakref.ref[Tensor]] = []
        self._task = -1
        self._limit = _MAX_WAITING
        self._attributes: dict[type, list[str]] = {}

    def start(self) -> None:
        """Watch what saved-tensor hooks pack."""
        PUSH_SAVED_TENSOR_HOOKS.add(self._push)

    def stop(self) -> None:
        """Watch no more."""
        PUSH_SAVED_TENSOR_HOOKS.remove(self._push)
        self._waiting.clear()
        self._late.clear()

    def expect(self, outputs: Iterable[Tensor]) -> None:
        """An operator has made these; their node comes when autograd is done with it."""
        if _autograd._top_saved_tensors_default_hooks(True) is None:
            self._waiting += map(weakref.ref, outputs)

    def look(self) -> None:
        """Read the nodes that have come.

        Some are late: what a function's own forward makes has no node before it is over. Who has none is asked once
        more, when an operator extends the graph or when a backward pass begins, before it frees anything.
        """
        if not self._waiting and not self._late:
            return
        task = torch._C._current_graph_task_id()
        last_call = torch.is_grad_enabled() or task != self._task
        self._task = task
        waiting, self._waiting = self._waiting, []
        if last_call:
            self._late, late = [], self._late
            self._read_nodes_of(late)
        self._late += self._read_nodes_of(waiting)
        if len(self._late) > self._limit:
            self._late = [reference for reference in self._late if reference() is not None]
            self._limit = max(_MAX_WAITING, 2 * len(self._late))

    def _read_nodes_of(self, outputs: list[weakref.ref[Tensor]]) -> list[weakref.ref[Tensor]]:
        """Read each node once; returns the outputs that have none."""
        without: list[weakref.ref[Tensor]] = []
        read: list[Any] = []
        for reference in outputs:
            output = reference()
            node = None if output is None else output.grad_fn
            if node is None:
                if output is not None:
                    without.append(reference)
            elif not any(node is other for other in read):
                read.append(node)
                self._read(node)
        return without

    def _read(self, node: Any) -> None:
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            saved = [*node.saved_tensors, *tree_leaves(vars(node))]
        else:
            kind = type(node)
            names = self._attributes.get(kind)
            if names is None:
                names = self._attributes[kind] = ["_saved_" + n[len(_RAW) :] for n in dir(kind) if n.startswith(_RAW)]
            saved = [getattr(node, name) for name in names]
        for tensors in saved:
            for tensor in tensors if isinstance(tensors, tuple) else (tensors,):
                if isinstance(tensor, Tensor):
                    self._found(tensor, False)

    def _push(self, original: Any, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Any:
        def watched_pack(tensor: Tensor) -> Any:
            packed = pack(tensor)
            for leaf in tree_leaves(packed):
                if isinstance(leaf, Tensor):
                    self._found(leaf, True)
            return packed

        return original(watched_pack, unpack)
