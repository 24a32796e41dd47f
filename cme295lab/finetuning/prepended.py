"""Attention that sees keys and values in front of the sequence: what prefix and prompt tuning do to a layer.

    softmax(q [P_k; K]ᵀ / sqrt(head_dim)) [P_v; V]        P_k, P_v: (kv_heads, length, head_dim), the same for all rows

The core of a layer, softmax(Q Kᵀ) V, is wrapped, and nothing else. At the core, queries and keys are rotated already
and the cache has given its content, so:

- caches hold tokens only, with their lengths, cuts, padding and exchanged rows, and know nothing of the prefix;
- tokens keep the positions that they have without it, and the whole of max_seq;
- every query sees the whole prefix, whatever document of a packed row it belongs to;
- queries that share a key/value head (GQA) share its prefix, too.

The price: keys and values are copied once per call, behind the prefix, and a causal mask is written out.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.finetuning.attached import Attachment, attach, check_free, check_int, detach
from cme295lab.transformer.decoder import Block, DecoderLM


class PrependedTuning(Attachment):
    """Named sources of keys and values, of which one is active, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.named = nn.ModuleDict()
        self.active: str | None = None

    def front(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """What stands in front of a layer's own k and v: (kv_heads, length, head_dim) each; None for nothing.

        Subclasses say it.
        """
        raise NotImplementedError


class PrependedCore(nn.Module):
    """The core of one layer, with keys and values in front."""

    def __init__(self, core: nn.Module, tuning: PrependedTuning, layer: int) -> None:
        super().__init__()
        self.core = core
        self.layer = layer
        self._tuning = (tuning,)  # in a tuple: its parameters are the model's, not those of every layer

    def forward(
        self,
        q: Float[Tensor, "batch heads seq head_dim"],
        k: Float[Tensor, "batch kv_heads keys head_dim"],
        v: Float[Tensor, "batch kv_heads keys head_dim"],
        mask: Tensor | None = None,
    ) -> Float[Tensor, "batch heads seq head_dim"]:
        front = self._tuning[0].front(self.layer, k, v)
        if front is None:
            return self.core(q, k, v, mask)  # type: ignore[no-any-return]
        length, seq = front[0].shape[1], q.shape[2]
        k, v = (torch.cat((part.to(x).expand(len(x), -1, -1, -1), x), dim=2) for part, x in zip(front, (k, v)))
        if mask is None and seq > 1:  # plain causality: the first query sees the prefix and one key
            mask = torch.ones(seq, k.shape[2], dtype=torch.bool, device=q.device).tril_(diagonal=length)
        elif mask is not None:
            mask = F.pad(mask, (length, 0), value=1.0 if mask.dtype == torch.bool else 0.0)
        return self.core(q, k, v, mask)  # type: ignore[no-any-return]


def blocks(model: DecoderLM) -> list[Block]:
    """The layers of a model, which must be `Block`s."""
    layers = list(model.layers)
    for number, layer in enumerate(layers):
        if not isinstance(layer, Block):
            raise TypeError(f"layer {number} must be a Block, got {type(layer).__name__}: add this before wrapping")
    return [layer for layer in layers if isinstance(layer, Block)]


def check_name(model: DecoderLM, tuning: PrependedTuning | None, name: str) -> None:
    """Refuse a name that is none or taken, and a model that carries another method.

    Raises:
        ValueError: if it is so.
    """
    if tuning is None:
        check_free(model)
    if not isinstance(name, str) or not name.isidentifier() or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"name must be a Python name that no method of a ModuleDict has, got {name!r}")
    if tuning is not None and name in tuning.named:
        raise ValueError(f"the model already has {name!r} in {tuning.place}: remove it, or take another name")


def find_tuning(model: DecoderLM, place: str) -> PrependedTuning | None:
    """What is attached at a place, if anything."""
    found = getattr(model, place, None)
    return found if isinstance(found, PrependedTuning) else None


def wrap_cores(model: DecoderLM, tuning: PrependedTuning) -> None:
    """Attach a tuning to a model: its layers see what it puts in front."""
    layers = blocks(model)
    attach(model, tuning)
    for number, layer in enumerate(layers):
        layer.attention.add_module("core", PrependedCore(layer.attention.core, tuning, number))


def unwrap_cores(model: DecoderLM, tuning: PrependedTuning) -> None:
    """Give every layer its own core back."""
    for layer in blocks(model):
        core: Any = layer.attention.core
        layer.attention.core = core.core
    detach(model, tuning)


def choose(tuning: PrependedTuning | None, place: str, name: str | None) -> None:
    """Make one active, or none: the model is its base then.

    Raises:
        ValueError: if there is none of that name.
    """
    known = [] if tuning is None else list(tuning.named)
    if tuning is None or (name is not None and name not in tuning.named):
        raise ValueError(f"the model has no {name!r} in {place}; it has {', '.join(known) or 'none'}")
    tuning.active = name


def check_length(model: DecoderLM, length: object) -> None:
    """Refuse a length that is no number of positions."""
    check_int("length", length, 1, model.config.max_seq, " (the model's max_seq)")
