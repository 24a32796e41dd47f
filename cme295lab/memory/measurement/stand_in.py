"""Functions of torch that are no operators and must be seen all the same: a stand-in runs while somebody watches.

A watcher is called with the function and its arguments, and must return what the function returns. The stand-in is
there from the first watcher's coming to the last one's going, in whatever order and on whichever threads they do so.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch

Watcher = Callable[..., Any]  # (original, *arguments) -> what the original returns


class StandIn:
    """Stands in for a function while it is watched.

    Args:
        owner: the class or module that has the function.
        name: its name there.
    """

    def __init__(self, owner: Any, name: str) -> None:
        self._owner = owner
        self._name = name
        self._watchers: list[Watcher] = []
        self._lock = threading.Lock()
        self._own: Any = None  # the owner's attribute; None where the function is inherited

    def add(self, watcher: Watcher) -> None:
        """Let calls pass through a watcher."""
        with self._lock:
            if not self._watchers:
                self._own = vars(self._owner).get(self._name)
                setattr(self._owner, self._name, self._make(getattr(self._owner, self._name)))
            self._watchers.append(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Let it go; with the last one the stand-in goes, too."""
        with self._lock:
            self._watchers.remove(watcher)
            if not self._watchers:
                if self._own is None:
                    delattr(self._owner, self._name)
                else:
                    setattr(self._owner, self._name, self._own)

    def _make(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def stand_in(*arguments: Any, **options: Any) -> Any:
            call = original
            for watcher in tuple(self._watchers):
                call = functools.partial(watcher, call)
            return call(*arguments, **options)

        return stand_in


RESIZE = StandIn(torch.UntypedStorage, "resize_")
PUSH_SAVED_TENSOR_HOOKS = StandIn(torch._C._autograd, "_push_saved_tensors_default_hooks")
