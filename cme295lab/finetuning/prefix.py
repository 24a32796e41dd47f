"""Prefix tuning: trained keys and values in front of the sequence in every layer; the model itself stays as it is.

    parameters = 2 · L · l · d        L layers, l positions, d the width of all keys of a token (kv_heads · head_dim)

Trained directly, such a prefix learns badly (Li & Liang, §4.3), so in training it is the output of a small network,
one for all layers, which reads one vector per position:

    [P_k; P_v of all layers] (i) = W2 tanh(W1 e_i + b1) + b2

`finalize` computes it once and throws the network away: what is left is 2 L l d numbers.

Decision on RoPE: prefix keys are not rotated, and tokens keep their positions 0, 1, 2, ... The keys are free, so a
rotation by a fixed angle would only rename them; a query at position t meets them turned by its own t, as it meets
a key at position 0. (Were tokens shifted by l, as in some libraries, all rotations between tokens would be the same.)

Several prefixes can hang on one base, one of them active; `set_prefix(model, None)` is the base alone, bit for bit.

Source: Li and Liang 2021, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", §4.2-4.3.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.finetuning.attached import (
    TrainableParameters,
    check_int,
    fill,
    read_attached,
    save_attached,
    trainable_parameters,
)
from cme295lab.finetuning.prepended import (
    PrependedTuning,
    check_length,
    check_name,
    choose,
    find_tuning,
    unwrap_cores,
    wrap_cores,
)
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM

INIT_STD = 0.02
_PLACE = "prefix_tuning"


class Prefix(nn.Module):
    """Keys and values of `length` positions for every layer: numbers, or a network that makes them.

    Args:
        config: the model.
        length: positions.
        hidden: inner width of the network; None: the keys and values are parameters themselves.
    """

    def __init__(self, config: ModelConfig, *, length: int, hidden: int | None) -> None:
        super().__init__()
        self.length, self.hidden = length, hidden
        self.num_layers, self.head_dim, self.kv_dim = config.num_layers, config.head_dim, config.kv_dim
        self.keys_values: nn.Parameter | None = None
        if hidden is None:
            self.keys_values = nn.Parameter(torch.randn(config.num_layers, 2, length, config.kv_dim) * INIT_STD)
            return
        self.embedding = nn.Parameter(torch.randn(length, config.dim))
        self.inner = nn.Linear(config.dim, hidden)
        self.outer = nn.Linear(hidden, config.num_layers * 2 * config.kv_dim)

    def layer(
        self, number: int
    ) -> tuple[Float[Tensor, "kv_heads length head_dim"], Float[Tensor, "kv_heads length head_dim"]]:
        """Keys and values for a layer."""
        k, v = self._both(number)
        return self._heads(k), self._heads(v)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)

    def _both(self, number: int) -> Tensor:
        """(2, length, kv_dim); of the network only the rows of this layer compute."""
        if self.keys_values is not None:
            return self.keys_values[number]
        weight = self.outer.weight.unflatten(0, (self.num_layers, -1))[number]
        bias = self.outer.bias.unflatten(0, (self.num_layers, -1))[number]
        both = F.linear(torch.tanh(self.inner(self.embedding)), weight, bias)  # (length, 2 kv_dim)
        return both.unflatten(-1, (2, self.kv_dim)).transpose(0, 1)

    @torch.no_grad()
    def finalize(self) -> None:
        """Keep the keys and values, drop the network; twice is once.

        They can be trained further, as 2 L l d numbers.
        """
        if self.keys_values is not None:
            return
        self.keys_values = nn.Parameter(torch.stack([self._both(number) for number in range(self.num_layers)]))
        self.hidden = None
        del self.embedding, self.inner, self.outer


class PrefixTuning(PrependedTuning):
    """The prefixes of a model."""

    place = _PLACE

    def front(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the active prefix for a layer, or None."""
        if self.active is None:
            return None
        prefix = self.named[self.active]
        assert isinstance(prefix, Prefix)
        return prefix.layer(layer)


def num_prefix_parameters(config: ModelConfig, length: int) -> int:
    """2 L l d: what a finished prefix holds.

    Source: Li and Liang 2021; with grouped keys, d is their width and not the model's.
    """
    check_int("length", length, 1)
    return 2 * config.num_layers * length * config.kv_dim


def add_prefix(
    model: DecoderLM, length: int = 10, *, reparametrize: bool = True, hidden: int | None = None, name: str = "default"
) -> TrainableParameters:
    """Put a new prefix in front of a model, make it the active one, and freeze the base.

    Args:
        model: stays as it is, but for whether its parameters are trainable.
        length: positions.
        reparametrize: whether a network makes it until `finalize`.
        hidden: inner width of the network; None means the model's dim.
        name: of the prefix.

    Returns:
        What is trainable now: all prefixes of the model.

    Raises:
        TypeError: if the model is no DecoderLM.
        ValueError: if a number is out of range, the name is taken, or the model carries another method.
    """
    tuning = find_tuning(model, _PLACE)
    check_name(model, tuning, name)
    check_length(model, length)
    if hidden is not None and not reparametrize:
        raise ValueError(f"hidden={hidden} is the width of the network: it needs reparametrize=True")
    width = model.config.dim if hidden is None else hidden
    check_int("hidden", width, 1)
    prefix = Prefix(model.config, length=length, hidden=width if reparametrize else None)
    _add(model, tuning, name, prefix.to(model.embedding.weight))
    return trainable_parameters(model)


def set_prefix(model: DecoderLM, name: str | None) -> None:
    """Make a prefix the active one; None: the model is its base.

    Raises:
        ValueError: if the model has no such prefix.
    """
    choose(find_tuning(model, _PLACE), _PLACE, name)


def finalize(model: DecoderLM, name: str = "default") -> None:
    """Drop the network of a prefix, keep what it computes.

    Make optimizers anew afterwards: the parameters are others.

    Raises:
        ValueError: if the model has no such prefix.
    """
    get_prefix(model, name).finalize()


def get_prefix(model: DecoderLM, name: str = "default") -> Prefix:
    """A prefix of a model.

    Raises:
        ValueError: if the model has no such prefix.
    """
    tuning = find_tuning(model, _PLACE)
    if tuning is None or name not in tuning.named:
        raise ValueError(f"the model has no prefix {name!r}; it has {[] if tuning is None else list(tuning.named)}")
    prefix = tuning.named[name]
    assert isinstance(prefix, Prefix)
    return prefix


def remove_prefix(model: DecoderLM) -> None:
    """Take all prefixes off: the base is as it was, bit for bit, and trainable where it was.

    Raises:
        ValueError: if there are none.
    """
    tuning = find_tuning(model, _PLACE)
    if tuning is None:
        raise ValueError("the model has no prefix to remove")
    unwrap_cores(model, tuning)


def save_prefix(path: Path | str, model: DecoderLM, name: str = "default") -> None:
    """Write a prefix to a safetensors file, finished or with its network.

    Raises:
        ValueError: if the model has no such prefix.
    """
    prefix = get_prefix(model, name)
    options = {"length": prefix.length, "hidden": prefix.hidden}
    save_attached(path, prefix, method="prefix", options=options, model=model)


def load_prefix(path: Path | str, model: DecoderLM, name: str = "default") -> TrainableParameters:
    """Add the prefix of a file under a name, and make it the active one.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, for another base, or the name is taken.
    """
    tuning = find_tuning(model, _PLACE)
    check_name(model, tuning, name)
    options, tensors = read_attached(path, method="prefix", model=model)
    length, hidden = options.get("length"), options.get("hidden")
    check_length(model, length)
    if hidden is not None:
        check_int("hidden", hidden, 1)
    assert isinstance(length, int)
    with torch.device("meta"):
        prefix = Prefix(model.config, length=length, hidden=hidden)
    fill(prefix, tensors, path=path, like=model.embedding.weight)
    _add(model, tuning, name, prefix)
    return trainable_parameters(model)


def _add(model: DecoderLM, tuning: PrependedTuning | None, name: str, prefix: Prefix) -> None:
    if tuning is None:
        tuning = PrefixTuning()
        wrap_cores(model, tuning)
    tuning.named[name] = prefix
    tuning.active = name
