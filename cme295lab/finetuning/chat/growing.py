"""A model for more tokens: rows for its embedding and its head, such that it stays what it was.

`add_chat_tokens` gives a vocabulary "<|im_start|>" and "<|im_end|>"; their numbers are beyond the model's rows.

    embedding, head   (vocab, dim) ──► (vocab + k, dim)     old rows bit for bit, new rows near the mean of the old ones

**Why the mean.** A new row takes part in every softmax. As random as the others at the start of pretraining it is out
of place: trained hidden states are far from random, and where they give a random row a large logit the new token takes
probability from all others. The mean row's logit is the mean of all logits z, and exp(mean z) <= mean exp(z), so it
gets no more than an average token does. With k new rows the loss on old tokens therefore rises by at most

    log(1 + k / vocab)        2 tokens on 4,096: 0.0005 nats

whatever the model has learned, and by far less where it is sure of itself: with 256 rows more course-4m loses 0.005
nats on a sentence, 0.16 if the rows are random. A little noise, `noise` times the spread of each column, tells the new
tokens apart; with it the bound holds nearly.

Old tokens as input give the same hidden states, so their logits are the same, up to how a matrix multiplication of
another width rounds.

Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models".
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.finetuning.attached import check_free, check_int
from cme295lab.transformer.decoder import DecoderLM

NewRows = Literal["mean", "normal"]


@torch.no_grad()
def grow_vocabulary(
    model: DecoderLM, new_vocab_size: int, *, init: NewRows = "mean", noise: float = 0.01, seed: int = 0
) -> int:
    """Give a model's embedding and head rows for more tokens, in place.

    Parameters that grow are new objects: make optimizers afterwards. A head that is tied to the embedding stays so.

    Args:
        model: without LoRA, a prefix or an adapter: it grows first, and is adapted then.
        new_vocab_size: the vocabulary's, such as `add_chat_tokens(...).vocab_size`.
        init: of new rows: "mean" of the old ones with a little noise, or "normal", as spread as all old values are.
        noise: of "mean", in multiples of the standard deviation of each column.
        seed: of new rows; the caller's random numbers stay as they are.

    Returns:
        How many rows came; 0 if the model has as many as asked for.

    Raises:
        TypeError: if the model is no `DecoderLM`, or its embedding or head is no plain layer (one in 4 bits).
        ValueError: if the model would shrink, something is attached to it, or a value is out of range.
    """
    check_free(model)
    check_int("new_vocab_size", new_vocab_size, 1)
    check_int("seed", seed, 0)
    if init not in get_args(NewRows):
        raise ValueError(f"init must be one of {', '.join(map(repr, get_args(NewRows)))}, got {init!r}")
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be a number that is not negative, got {noise}")
    config, embedding, head = model.config, model.embedding, model.head
    num_new = new_vocab_size - config.vocab_size
    if num_new < 0:
        raise ValueError(
            f"new_vocab_size must be at least the model's {config.vocab_size}, got {new_vocab_size}: no vocabulary "
            f"shrinks here. A model may have more rows than its vocabulary has tokens; then there is nothing to grow"
        )
    for name, layer, kind in (("embedding", embedding, nn.Embedding), ("head", head, nn.Linear)):
        if type(layer) is not kind:
            raise TypeError(f"the model's {name} must be an nn.{kind.__name__} to grow, got {type(layer).__name__}")
    if not num_new:
        return 0
    tied = head.weight is embedding.weight
    generator = torch.Generator().manual_seed(seed)
    embedding.weight = _grown(embedding.weight, num_new, init, noise, generator)
    head.weight = embedding.weight if tied else _grown(head.weight, num_new, init, noise, generator)
    embedding.num_embeddings = head.out_features = new_vocab_size
    grown = replace(config, vocab_size=new_vocab_size)
    for module in model.modules():  # mixtures of experts hold the config, too
        if getattr(module, "config", None) is config:
            setattr(module, "config", grown)  # noqa: B010 (to a type checker, attributes of modules are tensors)
    return num_new


def _grown(weight: Tensor, num_new: int, init: NewRows, noise: float, generator: torch.Generator) -> nn.Parameter:
    rows = _new_rows(weight.detach(), num_new, init, noise, generator)
    return nn.Parameter(torch.cat([weight.detach(), rows]), requires_grad=weight.requires_grad)


def _new_rows(
    old: Float[Tensor, "vocab dim"], num_new: int, init: NewRows, noise: float, generator: torch.Generator
) -> Float[Tensor, "new dim"]:
    """In the dtype and on the device of the old ones; drawn on the CPU, the same wherever the model is."""
    wide = old.to("cpu", torch.promote_types(old.dtype, torch.float32))
    random = torch.randn(num_new, old.shape[1], generator=generator, dtype=wide.dtype)
    if init == "normal":
        return (random * wide.std(correction=0)).to(old)
    return (wide.mean(0) + noise * wide.std(0, correction=0) * random).to(old)
