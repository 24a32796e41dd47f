"""Which matrices of a model get an adapter: targets are names, or last parts of names.

    ("query", "value")      every linear layer whose name ends in ".query" or ".value", or is just that
    "all-linear"            every linear layer but the output head and the routers of mixtures of experts
    ("all-linear", "head")  and the head

Names are compared from dot to dot: "up" names "layers.0.mlp.up" and not "layers.0.warmup". Routers are left out of
"all-linear" because they choose experts and are tiny; they can be named. The same rules hold for a model that is in
memory and for one that is only a config, so that what is planned is what is made.

Source: Hu et al. 2022, "LoRA", §4.2 (query and value); Dettmers et al. 2023, "QLoRA", §4 (all linear layers).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from cme295lab.memory.formulas.shapes import parameter_shapes
from cme295lab.quantization.linear4bit import Linear4bit
from cme295lab.transformer.config import ModelConfig

Targets = Sequence[str] | Literal["all-linear"]
Kind = Literal["linear", "head", "router", "embedding"]

HEADS = ("head", "lm_head")
"""Last parts of names by which an output head is known."""
ROUTERS = ("router",)
"""Last parts of names by which the router of a mixture of experts is known."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A matrix that can have an adapter.

    Attributes:
        path: name of its module.
        shape: of its weight: (out, in), or (tokens, dim) of an embedding.
        kind: "linear", "head", "router" or "embedding".
    """

    path: str
    shape: tuple[int, int]
    kind: Kind

    def num_parameters(self, rank: int) -> int:
        """r (in + out)."""
        return rank * sum(self.shape)


def targets_of_model(model: nn.Module) -> dict[str, Target]:
    """Path -> target, of all linear layers and embeddings of a model."""
    found = {}
    for path, module in model.named_modules():
        if not path or isinstance(module, NonDynamicallyQuantizableLinear):
            continue  # the model itself has no name; attention of PyTorch reads that weight and never calls the layer
        if isinstance(module, nn.Linear | Linear4bit):
            shape = (module.out_features, module.in_features)
            found[path] = Target(path=path, shape=shape, kind=_kind(path))
        elif isinstance(module, nn.Embedding):
            found[path] = Target(path=path, shape=(module.num_embeddings, module.embedding_dim), kind="embedding")
    return found


def targets_of_config(config: ModelConfig) -> dict[str, Target]:
    """Path -> target, of all linear layers and embeddings of a `DecoderLM` that is not made."""
    found = {}
    for parameter in parameter_shapes(config):
        if len(parameter.shape) == 2:
            path = parameter.name.removesuffix(".weight")
            kind: Kind = "embedding" if parameter.part == "embedding" else _kind(path)
            found[path] = Target(path=path, shape=(parameter.shape[0], parameter.shape[1]), kind=kind)
    if config.tied_head:  # its weight is the embedding's, an adapter is its own
        found["head"] = Target(path="head", shape=(config.vocab_size, config.dim), kind="head")
    return found


def check_rank(target: Target, rank: int) -> None:
    """Refuse a rank that a matrix is too small for.

    Raises:
        ValueError: if it is larger than its shorter side.
    """
    if rank > min(target.shape):
        raise ValueError(
            f"rank must be at most the shorter side of {target.path}, {target.shape}, got {rank}: a higher rank "
            f"adds parameters and nothing that they could express"
        )


def key_of(path: str) -> str:
    """A path as the name of a submodule: "/" for ".", and one more behind a name that PyTorch's containers have."""
    key = path.replace(".", "/")
    return f"{key}/" if hasattr(nn.ModuleDict, key) else key


def choose_targets(known: Mapping[str, Target], targets: Targets) -> list[Target]:
    """Those matrices that are meant, in the model's order.

    Args:
        known: what there is, by path.
        targets: names or last parts of names; "all-linear", alone or among them.

    Raises:
        TypeError: if `targets` is another text than "all-linear", or holds what is no text.
        ValueError: if it is empty, or names no matrix; the message suggests names.
    """
    if isinstance(targets, str) and targets != "all-linear":
        raise TypeError(f"targets must be 'all-linear' or names in a tuple, got {targets!r}: write ({targets!r},)")
    if not targets:
        raise ValueError("targets is empty: give 'all-linear' or names of layers")
    chosen: set[str] = set()
    for name in (targets,) if isinstance(targets, str) else targets:
        if not isinstance(name, str):
            raise TypeError(f"targets must hold names, got {name!r}")
        if name == "all-linear":
            found = {path for path, target in known.items() if target.kind == "linear"}
        else:
            found = set(paths_named(known, name))
        if not found:
            raise ValueError(f"targets names {name!r}, and no layer has that name; {_suggest(known, name)}")
        chosen |= found
    return [target for path, target in known.items() if path in chosen]


def paths_named(paths: Iterable[str], name: str) -> list[str]:
    """Those paths that are `name` or end in it, after a dot."""
    return [path for path in paths if f".{path}".endswith(f".{name}")]


def _suggest(known: Mapping[str, Target], name: str) -> str:
    """What might have been meant, and what there is."""
    last = sorted({path.rpartition(".")[2] for path in known})
    near = difflib.get_close_matches(name.rpartition(".")[2], last, n=3)
    meant = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{meant}there are {', '.join(last) or 'no linear layers'}"


def _kind(path: str) -> Kind:
    last = path.rpartition(".")[2]
    if last in HEADS:
        return "head"
    return "router" if last in ROUTERS else "linear"
