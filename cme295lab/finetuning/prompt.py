"""Prompt tuning: trained vectors in place of the embeddings of words that nobody has; the model itself stays as it is.

    parameters = l · d        l positions, d the width of the model

Less than a prefix by 2 L, and weaker: only the first layer sees what is trained, all others what the model makes of it.
Lester et al. find that it reaches fine-tuning in full for models of 10 billion parameters, and falls short below.

The prompt is causal and comes first, so it does not depend on the text. It passes the layers once per forward pass, for
all rows together; each layer's keys and values of it then stand in front of the text's, as those of a prefix do. So
caches, left padding and packed rows need to know nothing of it, and tokens keep their positions from 0 on.

Decision on positions: with RoPE the prompt has those before the text, -l to -1, which is what it would have if it were
text, since only differences count. A learned table has no such rows: there the prompt has no position, its vectors can
learn what they need of one.

Vectors start as embeddings of tokens drawn at random (the paper's better start), or as small normal numbers.

Not covered: layers that are recomputed in the backward pass (they would meet another state than in the forward pass,
which PyTorch reports), and keeping the prompt's keys and values from one generated token to the next.

Source: Lester et al. 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning", §2 and §3.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.finetuning.attached import (
    TrainableParameters,
    check_free,
    check_int,
    fill,
    read_attached,
    save_attached,
    trainable_parameters,
)
from cme295lab.finetuning.prepended import PrependedTuning, check_length, find_tuning, unwrap_cores, wrap_cores
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM, Positions

PromptInit = Literal["sample", "normal"]
INIT_STD = 0.02
_PLACE = "prompt_tuning"


class PromptTuning(PrependedTuning):
    """The prompt of a model.

    Args:
        model: its layers are what the prompt passes.
        vectors: the prompt.
    """

    place = _PLACE

    def __init__(self, model: DecoderLM, vectors: Float[Tensor, "length dim"]) -> None:
        super().__init__()
        self.vectors = nn.Parameter(vectors)
        self.enabled = True
        self._model = (model,)  # in a tuple: this hangs on it, and not the other way round
        self._passing = False
        self._fronts: dict[int, tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: all but the keys and values of the last pass, which are part of its graph."""
        return {**self.__dict__, "_fronts": {}}

    def front(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
        """The prompt's keys and values for a layer; while the prompt itself passes, they are k and v, and are kept."""
        if self._passing:
            self._fronts[layer] = (k[0], v[0])
            return None
        if not self.enabled:
            return None
        if layer == 0:
            self._pass()
        return self._fronts[layer]

    def _pass(self) -> None:
        """Send the prompt through the layers."""
        (model,) = self._model
        x = self.vectors.to(model.embedding.weight.dtype).unsqueeze(0)
        shared = _before_the_text(model, len(self.vectors), like=x)
        self._passing, self._fronts = True, {}
        try:
            for number, layer in enumerate(model.layers):
                x = layer(x, shared, number=number)
        finally:
            self._passing = False


def _before_the_text(model: DecoderLM, length: int, *, like: Tensor) -> Positions:
    """Rotations by -l to -1, those by l to 1 the other way round, and a causal mask."""
    index = torch.arange(length, 0, -1, device=like.device)
    turned = model._shared(index, length, None, None, like=like)
    return Positions(turned.cos, None if turned.sin is None else -turned.sin, turned.mask)


def num_prompt_parameters(config: ModelConfig, length: int) -> int:
    """l d.

    Source: Lester et al. 2021, §2.
    """
    check_int("length", length, 1)
    return length * config.dim


def add_prompt(model: DecoderLM, length: int = 20, *, init: PromptInit = "sample") -> TrainableParameters:
    """Put a prompt in front of a model, and freeze the base.

    Args:
        model: stays as it is, but for whether its parameters are trainable.
        length: positions.
        init: "sample" (embeddings of tokens drawn at random) or "normal" (standard deviation 0.02).

    Returns:
        What is trainable now.

    Raises:
        TypeError: if the model is no DecoderLM.
        ValueError: if the length is out of range, `init` unknown, or the model carries another method.
    """
    check_free(model)
    check_length(model, length)
    if init not in get_args(PromptInit):
        raise ValueError(f"init must be 'sample' or 'normal', got {init!r}")
    table = model.embedding.weight.detach()
    if init == "sample":
        vectors = table[torch.randint(len(table), (length,)).to(table.device)].clone()
    else:
        vectors = (INIT_STD * torch.randn(length, table.shape[1])).to(table)
    wrap_cores(model, PromptTuning(model, vectors))
    return trainable_parameters(model)


def get_prompt(model: DecoderLM) -> PromptTuning:
    """The prompt of a model.

    Raises:
        ValueError: if it has none.
    """
    tuning = find_tuning(model, _PLACE)
    if not isinstance(tuning, PromptTuning):
        raise ValueError("the model has no prompt: add_prompt puts one in front")
    return tuning


def enable_prompt(model: DecoderLM, enabled: bool) -> None:
    """Let the prompt act, or not: the model is its base then, bit for bit.

    Raises:
        ValueError: if it has none.
    """
    get_prompt(model).enabled = enabled


def remove_prompt(model: DecoderLM) -> None:
    """Take the prompt off: the base is as it was, bit for bit, and trainable where it was.

    Raises:
        ValueError: if it has none.
    """
    unwrap_cores(model, get_prompt(model))


def save_prompt(path: Path | str, model: DecoderLM) -> None:
    """Write the prompt of a model to a safetensors file.

    Raises:
        ValueError: if it has none.
    """
    prompt = get_prompt(model)
    save_attached(path, prompt, method="prompt", options={"length": len(prompt.vectors)}, model=model)


def load_prompt(path: Path | str, model: DecoderLM) -> TrainableParameters:
    """Put the prompt of a file in front of a model.

    Raises:
        TypeError: if the model is no DecoderLM.
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, for another base, or the model carries another method.
    """
    check_free(model)
    options, tensors = read_attached(path, method="prompt", model=model)
    length = options.get("length")
    check_length(model, length)
    assert isinstance(length, int)
    prompt = PromptTuning(model, torch.empty(length, model.config.dim, device="meta"))
    fill(prompt, tensors, path=path, like=model.embedding.weight)
    wrap_cores(model, prompt)
    return trainable_parameters(model)
