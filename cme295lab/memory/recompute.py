"""Activation checkpointing, written out: forget what a function computed, and compute it again in the backward pass.

While the function runs, each tensor that autograd wants to save is exchanged for a ticket: a number, and the call that
it belongs to. The call keeps its arguments and nothing else. When the backward pass asks for the first ticket, the
function runs again under the same random numbers and the same autocast, and the tensors that autograd wants to save
this time are the ones that were forgotten, in the same order. Each is handed out once and then let go.

    none         everything is kept
    selective    the attention core alone (scores, softmax, dropout, times V) runs twice: with `standard` attention it
                 keeps most and costs little. Q, K and V are kept.
    full         whole blocks run twice: one tensor per block is kept, for one more forward pass; with `every=k`, each
                 k-th block does
    offload      what a call keeps moves to the host, too; a copy out, a copy back

The gradients are the same to the last bit. What the function does besides returning a value (counters, running
statistics) happens twice. A call within a call works, but its arguments are kept from the start. Tickets can be asked
for again (a second backward pass over the same graph): then the function runs again.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"; Korthikanti et al. 2022, "Reducing Activation
Recomputation in Large Transformer Models", section 5.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten

from cme295lab.memory.measurement.records import OFFLOADED
from cme295lab.memory.measurement.timeline import running_timelines
from cme295lab.transformer.config import ModelConfig

Kind = Literal["none", "selective", "full"]


def checkpoint(function: Callable[..., Any], *arguments: Any, offload: bool = False) -> Any:
    """Call a function, and keep its arguments instead of what its backward pass needs.

    Args:
        function: computes the same from the same arguments and random numbers, whenever it is called.
        *arguments: tensors, or nests of such, and other things.
        offload: keep those arguments that need a gradient on the host, in a copy of their own.

    Returns:
        What the function returns.

    Raises:
        TypeError: if the function cannot be called.
        RuntimeError: in the backward pass, if an argument was changed in place meanwhile, or if the function does not
            save the same tensors when it runs again.

    Example:
        >>> import torch
        >>> x = torch.ones(3, requires_grad=True)
        >>> checkpoint(lambda x: x.exp().sin(), x).sum().backward()
        >>> bool(torch.equal(x.grad, x.detach().exp().cos() * x.detach().exp()))
        True
    """
    if not callable(function):
        raise TypeError(f"function must be something to call, got {function!r} of type {type(function).__name__}")
    if not torch.is_grad_enabled():
        return function(*arguments)
    call = _Call(function, arguments, offload)
    with saved_tensors_hooks(call.forget, call.recall):
        result = function(*arguments)
    call.surroundings.function_is_over()
    return result


def apply_recompute(model: nn.Module, kind: Kind, *, every: int = 1, offload: bool = False) -> None:
    """Let a model recompute in its backward pass, from now on; what was applied before is undone.

    Args:
        model: has its blocks in `model.layers`; for "selective", each with its core in `block.attention.core`.
        kind: "none", "selective" or "full".
        every: only each so-maniest layer recomputes, the first one included.
        offload: keep what is kept of a recomputed layer on the host.

    Raises:
        ValueError: if the kind is unknown, `every` is below 1, or there is nothing to offload.
        TypeError: if the model is not built like that.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a number of layers, at least 1, got {every!r}")
    if offload and kind == "none":
        raise ValueError("offload moves what recomputation keeps: it needs kind 'selective' or 'full', got 'none'")
    blocks = _blocks_of(model)
    for block in blocks:
        for part in (block, getattr(getattr(block, "attention", None), "core", None)):
            if part is not None and isinstance(part.__dict__.get("forward"), _Recomputed):
                del part.forward
    if kind == "none":
        return
    for block in blocks[::every]:
        part = block if kind == "full" else _core_of(block)
        part.forward = _Recomputed(part.forward, offload)


def recomputed_flops(config: ModelConfig, kind: Kind, *, batch: int, seq: int, every: int = 1) -> int:
    """FLOPs of the matrix products that a training step runs a second time; a multiply-add is two.

        core   4 batch seq² query_dim       (Q Kᵀ and P V, causal or not)
        layer  core + 2 batch seq (dim (2 query_dim + 2 kv_dim) + m dim mlp_dim), m = 3 for SwiGLU and 2 for GELU

    Args:
        config: the model.
        kind: "none", "selective" or "full".
        batch, seq: tokens of the step.
        every: as in `apply_recompute`.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    core = 4 * batch * seq**2 * config.query_dim
    num_mlp_products = 3 if config.mlp == "swiglu" else 2
    weights = config.dim * (2 * config.query_dim + 2 * config.kv_dim + num_mlp_products * config.mlp_dim)
    per_layer = {"none": 0, "selective": core, "full": core + 2 * batch * seq * weights}[kind]
    return per_layer * len(range(0, config.num_layers, every))


class _Recomputed:
    """A module's forward that is recomputed; an object rather than a function, so that it can be found and copied."""

    def __init__(self, forward: Callable[..., Any], offload: bool) -> None:
        self.forward = forward
        self.offload = offload

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        function = functools.partial(self.forward, **options) if options else self.forward
        return checkpoint(function, *arguments, offload=self.offload)


class _Ticket(NamedTuple):
    """Stands for a tensor that was forgotten."""

    number: int


class _Call:
    """A call of a function that can be made again."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], offload: bool) -> None:
        self.function = function
        leaves, self.structure = tree_flatten(arguments)
        self.arguments = [_Kept.keep(leaf, offload) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.surroundings = _Surroundings(leaves)
        self.forgotten: list[tuple[torch.Size, torch.dtype]] = []
        self.recalled: dict[int, Tensor] = {}

    def forget(self, tensor: Tensor) -> _Ticket:
        """A ticket for a tensor."""
        self.forgotten.append((tensor.shape, tensor.dtype))
        return _Ticket(len(self.forgotten) - 1)

    def recall(self, ticket: _Ticket) -> Tensor:
        """The tensor that a ticket stands for."""
        if ticket.number not in self.recalled:
            self.recalled = self.run_again()
        return self.recalled.pop(ticket.number)

    def run_again(self) -> dict[int, Tensor]:
        """Call the function again and return what autograd wants to save, by number."""
        saved: dict[int, Tensor] = {}

        def collect(tensor: Tensor) -> Tensor:
            saved[len(saved)] = tensor = tensor.detach()
            return tensor

        leaves = [part.bring_back() if isinstance(part, _Kept) else part for part in self.arguments]
        arguments = tree_unflatten(leaves, self.structure)
        del leaves
        with self.surroundings.restored(), torch.enable_grad(), saved_tensors_hooks(collect, lambda tensor: tensor):
            self.function(*arguments)
        found = [(tensor.shape, tensor.dtype) for tensor in saved.values()]
        if found != self.forgotten:
            raise RuntimeError(
                f"a recomputed function must do the same again: autograd saved {len(self.forgotten)} tensors at first "
                f"and {len(found)} now, {_first_difference(self.forgotten, found)}. Does it depend on a counter, or on "
                f"random numbers that are not torch's?"
            )
        return saved


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """An argument that is kept for the second run.

    Attributes:
        tensor: it, or its copy on the host.
        version: of the tensor when it was kept.
        device: where it was.
        requires_grad: whether it needs a gradient.
        offloaded: whether `tensor` is the copy.
    """

    tensor: Tensor
    version: int
    device: torch.device
    requires_grad: bool
    offloaded: bool

    @classmethod
    def keep(cls, tensor: Tensor, offload: bool) -> _Kept:
        """Keep a tensor; on the host if it needs a gradient and `offload` says so."""
        offloaded = offload and tensor.requires_grad and not isinstance(tensor, nn.Parameter)
        device = tensor.device
        kept = _to_host(tensor.detach()) if offloaded else tensor
        for timeline in running_timelines():
            timeline.note_kept(kept)
        return cls(
            tensor=kept, version=kept._version, device=device, requires_grad=tensor.requires_grad, offloaded=offloaded
        )

    def bring_back(self) -> Tensor:
        """The tensor, cut off from the graph, as the function got it."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"an argument of a recomputed function, of shape {tuple(self.tensor.shape)}, was changed in place "
                f"after the call: what is recomputed would be wrong. Give the function a copy, or change the copy"
            )
        tensor = self.tensor.detach()
        if self.offloaded:
            tensor = tensor.clone() if self.device.type == "cpu" else tensor.to(self.device, non_blocking=True)
        return tensor.requires_grad_(self.requires_grad)


def _to_host(tensor: Tensor) -> Tensor:
    """A copy on the host: page-locked for a tensor on a GPU, so that the copy runs beside the computation."""
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    host.copy_(tensor, non_blocking=tensor.is_cuda)
    for timeline in running_timelines():
        timeline.mark(host, OFFLOADED)
    return host


class _Surroundings:
    """What a function's values depend on besides its arguments: random numbers and autocast.

    Args:
        leaves: the arguments; GPUs among their devices have generators of their own.
    """

    def __init__(self, leaves: list[Any]) -> None:
        self._gpus = sorted({leaf.get_device() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_cuda})
        self._random: list[bytes] | None = self._random_states()
        self._caches_casts = torch.is_autocast_cache_enabled()
        self._autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
            if kind == "cpu" or torch.cuda.is_available()
        }

    def function_is_over(self) -> None:
        """Keep the states of the generators, 5 kB on a CPU, only if the function has drawn from them."""
        if self._random == self._random_states():
            self._random = None

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Make them what they were while a block runs, and put everything back."""
        with ExitStack() as stack:
            if self._random is not None:
                stack.enter_context(torch.random.fork_rng(devices=self._gpus))
                host, *gpus = (torch.frombuffer(bytearray(state), dtype=torch.uint8) for state in self._random)
                torch.set_rng_state(host)
                for gpu, state in zip(self._gpus, gpus, strict=True):
                    torch.cuda.set_rng_state(state, gpu)
            for kind, (enabled, dtype) in self._autocast.items():
                options: dict[str, Any] = {"enabled": enabled, "dtype": dtype, "cache_enabled": self._caches_casts}
                stack.enter_context(torch.autocast(kind, **options))
            yield

    def _random_states(self) -> list[bytes]:
        states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)]
        return [state.numpy().tobytes() for state in states]


def _first_difference(then: list[Any], now: list[Any]) -> str:
    for number, (before, after) in enumerate(zip(then, now)):
        if before != after:
            return f"number {number} was {_describe(before)} and is {_describe(after)}"
    return "one list is the beginning of the other"


def _describe(tensor: tuple[torch.Size, torch.dtype]) -> str:
    return f"{str(tensor[1]).removeprefix('torch.')} {tuple(tensor[0])}"


def _blocks_of(model: nn.Module) -> list[nn.Module]:
    layers = getattr(model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise TypeError(
            f"model must have its blocks in a ModuleList `model.layers`, as DecoderLM has; {type(model).__name__} has "
            f"{'none' if layers is None else type(layers).__name__}"
        )
    return list(layers)


def _core_of(block: nn.Module) -> nn.Module:
    core = getattr(getattr(block, "attention", None), "core", None)
    if not isinstance(core, nn.Module):
        raise TypeError(
            f"kind 'selective' needs each block's attention core in `block.attention.core`; {type(block).__name__} has "
            f"none: use 'full'"
        )
    return core
