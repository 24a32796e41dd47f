"""When is a gradient there, and when is the backward pass over? Hooks that say so to whoever sends gradients.

A hook on each parameter runs when its gradient is complete: autograd has added up all of its uses by then, so a tied
weight comes once. A callback of autograd's runs when the pass is over. Nothing has to wrap the model for that: call it,
or any method of it, as ever.

**Passes that fail.** If a pass ends in an exception, its callback never runs. The next forward notices.

**Checkpointing** in torch's older way (`use_reentrant=True`) runs small backward passes within the large one. So that
the end of a small one is not taken for the end of all, the pass is noticed where its gradient enters the model's
output.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class BackwardWatch:
    """Tells of the gradients of a model's parameters, and of the end of each backward pass.

    Args:
        model: the module whose forward and backward passes are watched.
        parameters: name in the model -> parameter that is trained.
        on_gradient: called with the name when a parameter's `.grad` is complete.
        on_end: called when the pass is over.
        on_forward: called before a forward pass, with whether the backward pass before it failed.

    Attributes:
        is_syncing: False within `no_sync`: then nobody is told of gradients.

    Raises:
        ValueError: if the model is watched already.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        *,
        on_gradient: Callable[[str], None],
        on_end: Callable[[], None],
        on_forward: Callable[[bool], None],
    ) -> None:
        check_unwatched(model)
        self.is_syncing = True
        self._model, self._parameters = model, dict(parameters)
        self._on_gradient, self._on_end, self._on_forward = on_gradient, on_end, on_forward
        self._in_backward = False
        self._arrived: set[str] = set()
        self._hooks: list[Any] = [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward),
            *(
                parameter.register_post_accumulate_grad_hook(partial(self._take, name))
                for name, parameter in self._parameters.items()
            ),
        ]

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Backward passes in this block send nothing; see the wrapper's own `no_sync`."""
        before, self.is_syncing = self.is_syncing, False
        try:
            yield
        finally:
            self.is_syncing = before

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _before_forward(self, *_: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # a forward that runs again, within backward
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad is not (name in self._parameters):
                now = "trained" if parameter.requires_grad else "frozen"
                raise RuntimeError(
                    f"{name} is {now} now and was not when the model was wrapped; set requires_grad before, or close() "
                    "the wrapper and make a new one"
                )
        self._on_forward(self._in_backward)
        self._in_backward = False

    def _after_forward(self, _: nn.Module, __: Any, output: Any) -> None:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.requires_grad:
                leaf.register_hook(self._begin)

    def _begin(self, *_: Any) -> None:
        """A backward pass runs; called by whichever hook comes first, any number of times."""
        if self.is_syncing and not self._in_backward:
            self._in_backward = True
            self._arrived.clear()
            torch.autograd.Variable._execution_engine.queue_callback(self._end)

    def _take(self, name: str, parameter: nn.Parameter) -> None:
        if not self.is_syncing:
            return
        self._begin()
        if name in self._arrived:
            raise RuntimeError(
                f"the gradient of {name} came twice in one backward pass, so it was sent before it was complete; this "
                "is what checkpointing with use_reentrant=True does to shared parameters: pass use_reentrant=False"
            )
        if parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise TypeError(f"the gradient of {name} is sparse, and cannot be put into a flat vector: use sparse=False")
        self._arrived.add(name)
        self._on_gradient(name)

    def _end(self) -> None:
        self._in_backward = False
        self._on_end()


def check_unwatched(model: nn.Module) -> None:
    """Refuse a model whose gradients are sent by somebody already, with a ValueError."""
    for hook in model._forward_pre_hooks.values():
        if isinstance(getattr(hook, "__self__", None), BackwardWatch):
            raise ValueError(
                "the gradients of this model are sent by another wrapper already; call close() on that one first"
            )
