"""Adapters: small MLPs with a narrow waist between the parts of a frozen model.

    A(h) = up(gelu(down h + b)) + b'          down: d → m, up: m → d          2 d m + d + m parameters each

    kind         y becomes                       where, unless said otherwise
    "houlsby"    y + A(y)                        after attention and after the MLP of every layer: 2 per layer
    "parallel"   y + scale · A(x)                beside the MLP, whose input is x: 1 per layer

Both act before y is added to the residual stream. `up` starts at zero, so the model starts as its base, exactly;
Houlsby et al. start near the identity, with all weights of standard deviation 0.01, which `up_std=0.01` gives.

An adapter cannot be merged: unlike LoRA's product it is not linear, so it costs its time in every pass.

They are put in by forward hooks: modules of the base keep their places and names.

Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", §2.1; He et al. 2022, "Towards a Unified
View of Parameter-Efficient Transfer Learning", §4 (parallel, scale 4 beside the MLP).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cme295lab.finetuning.attached import (
    Attachment,
    TrainableParameters,
    attach,
    check_free,
    check_int,
    detach,
    fill,
    read_attached,
    save_attached,
    trainable_parameters,
)
from cme295lab.finetuning.prepended import blocks
from cme295lab.transformer.decoder import DecoderLM

AdapterKind = Literal["houlsby", "parallel"]
INIT_STD = 0.01
_PLACES = ("attention", "mlp")
_PLACE = "bottleneck_adapters"


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """What the adapters of a model are like.

    Args:
        bottleneck: m, below the width of the model.
        kind: "houlsby" or "parallel".
        places: after or beside which parts of a layer, "attention", "mlp" or both.
        scale: of the output of a parallel adapter.
        up_std: standard deviation that `up` starts with; 0 makes the start exactly the base.

    Raises:
        ValueError: if a value is not one of those allowed.
    """

    bottleneck: int
    kind: AdapterKind
    places: tuple[str, ...]
    scale: float = 1.0
    up_std: float = 0.0

    def __post_init__(self) -> None:
        check_int("bottleneck", self.bottleneck, 1)
        if self.kind not in get_args(AdapterKind):
            raise ValueError(f"kind must be 'houlsby' or 'parallel', got {self.kind!r}")
        if not self.places or len(set(self.places)) < len(self.places) or set(self.places) - set(_PLACES):
            raise ValueError(f"places must be 'attention', 'mlp' or both, each once, got {self.places!r}")
        if not isinstance(self.scale, int | float) or not math.isfinite(self.scale) or self.scale == 0:
            raise ValueError(f"scale must be a finite number other than 0, got {self.scale!r}")
        if self.kind == "houlsby" and self.scale != 1:
            raise ValueError(f"scale is of parallel adapters, got {self.scale} with kind='houlsby'")
        if not isinstance(self.up_std, int | float) or not 0 <= self.up_std < math.inf:
            raise ValueError(f"up_std must be a finite number of at least 0, got {self.up_std!r}")


class Adapter(nn.Module):
    """up(gelu(down x))."""

    def __init__(self, dim: int, bottleneck: int, *, up_std: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        for linear, std in ((self.down, INIT_STD), (self.up, up_std)):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.up(F.gelu(self.down(x)))  # type: ignore[no-any-return]


class Adapters(Attachment):
    """The adapters of a model, a dict per layer."""

    place = _PLACE

    def __init__(self, options: AdapterOptions, *, dim: int, num_layers: int) -> None:
        super().__init__()
        self.options, self.enabled = options, True
        self.handles: list[RemovableHandle] = []
        self.layers = nn.ModuleList(
            nn.ModuleDict({place: Adapter(dim, options.bottleneck, up_std=options.up_std) for place in options.places})
            for _ in range(num_layers)
        )


class _Beside:
    """The hook on one part of a layer; an object and no closure, so that a copy of a model has adapters of its own."""

    def __init__(self, adapters: Adapters, layer: int, place: str) -> None:
        self.adapters, self.layer, self.place = adapters, layer, place

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if not self.adapters.enabled:
            return output
        adapter = self.adapters.layers[self.layer].get_submodule(self.place)
        options = self.adapters.options
        if options.kind == "houlsby":
            return output + adapter(output)  # type: ignore[no-any-return]
        return output + options.scale * adapter(inputs[0])  # type: ignore[no-any-return]


def num_adapter_parameters(*, dim: int, bottleneck: int, num_layers: int, per_layer: int = 2) -> int:
    """num_layers · per_layer · (2 d m + d + m).

    Source: Houlsby et al. 2019, §2.1, without norms and head.

    Example (GPT-3 with a bottleneck of 1, the AdapterH of Hu et al. 2021, Table 4: 7.1 million):
        >>> num_adapter_parameters(dim=12_288, bottleneck=1, num_layers=96)
        7078080
    """
    for name, value in (("dim", dim), ("bottleneck", bottleneck), ("num_layers", num_layers), ("per_layer", per_layer)):
        check_int(name, value, 1)
    return num_layers * per_layer * (2 * dim * bottleneck + dim + bottleneck)


def add_adapters(
    model: DecoderLM,
    bottleneck: int = 64,
    *,
    kind: AdapterKind = "houlsby",
    places: Sequence[str] | None = None,
    scale: float | None = None,
    up_std: float = 0.0,
) -> TrainableParameters:
    """Put adapters into every layer of a model and freeze the base.

    Args:
        model: stays as it is, but for whether its parameters are trainable.
        bottleneck: m, below the model's dim.
        kind: "houlsby" or "parallel".
        places: "attention", "mlp" or both; None means both for houlsby, the MLP for parallel.
        scale: of the output of parallel adapters; None means 4 for them.
        up_std: standard deviation that `up` starts with.

    Returns:
        What is trainable now.

    Raises:
        TypeError: if the model is no DecoderLM.
        ValueError: if an option is not one of those allowed, or the model carries another method.
    """
    check_free(model)
    if places is None:
        places = _PLACES if kind == "houlsby" else ("mlp",)
    if scale is None:
        scale = 4.0 if kind == "parallel" else 1.0
    options = AdapterOptions(bottleneck=bottleneck, kind=kind, places=tuple(places), scale=scale, up_std=up_std)
    _check_waist(model, options)
    adapters = Adapters(options, dim=model.config.dim, num_layers=model.config.num_layers)
    _add(model, adapters.to(model.embedding.weight))
    return trainable_parameters(model)


def get_adapters(model: DecoderLM) -> Adapters:
    """The adapters of a model.

    Raises:
        ValueError: if it has none.
    """
    adapters = getattr(model, _PLACE, None)
    if not isinstance(adapters, Adapters):
        raise ValueError("the model has no adapters: add_adapters puts them in")
    return adapters


def enable_adapters(model: DecoderLM, enabled: bool) -> None:
    """Let the adapters act, or not: the model is its base then, bit for bit.

    Raises:
        ValueError: if it has none.
    """
    get_adapters(model).enabled = enabled


def remove_adapters(model: DecoderLM) -> None:
    """Take the adapters out: the base is as it was, bit for bit, and trainable where it was.

    Raises:
        ValueError: if it has none.
    """
    adapters = get_adapters(model)
    for handle in adapters.handles:
        handle.remove()
    detach(model, adapters)


def save_adapters(path: Path | str, model: DecoderLM) -> None:
    """Write the adapters of a model to a safetensors file.

    Raises:
        ValueError: if it has none.
    """
    adapters = get_adapters(model)
    save_attached(path, adapters, method="adapters", options=asdict(adapters.options), model=model)


def load_adapters(path: Path | str, model: DecoderLM) -> TrainableParameters:
    """Put the adapters of a file into a model.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, for another base, or the model carries another method.
    """
    check_free(model)
    stored, tensors = read_attached(path, method="adapters", model=model)
    try:
        options = AdapterOptions(**{**stored, "places": tuple(stored.get("places", ()))})
    except TypeError as error:
        raise ValueError(f"{path} has options that adapters do not have: {error}") from error
    _check_waist(model, options)
    with torch.device("meta"):
        adapters = Adapters(options, dim=model.config.dim, num_layers=model.config.num_layers)
    fill(adapters, tensors, path=path, like=model.embedding.weight)
    _add(model, adapters)
    return trainable_parameters(model)


def _check_waist(model: DecoderLM, options: AdapterOptions) -> None:
    check_int("bottleneck", options.bottleneck, 1, model.config.dim - 1, " (below the model's dim)")


def _add(model: DecoderLM, adapters: Adapters) -> None:
    layers = blocks(model)
    attach(model, adapters)
    for number, layer in enumerate(layers):
        for place in adapters.options.places:
            hook = _Beside(adapters, number, place)
            adapters.handles.append(layer.get_submodule(place).register_forward_hook(hook))
