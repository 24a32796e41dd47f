"""What quantising costs a language model: perplexity against bits per weight.

The error of a weight says little about the error of a model. So every weight of a model's nn.Linear layers is replaced
by what a scheme would read back, the model reads a text, and its perplexity is compared:

    perplexity = exp(mean over tokens of -log p(token | the tokens before it))

"Fake quantisation": the arithmetic stays in the model's dtype, and so do speed and memory. Only the numbers are those
of a quantised model, which is all that quality depends on, for weight-only schemes.

Weights are exchanged, not overwritten: while a scheme is in force, a parameter's `.data` is another tensor. Afterwards,
also after an error, it is the same one as before, in the same memory. A parameter that two modules share (a head tied
to the embedding) is quantised for both; name such a head in `skip` to leave it alone, as most libraries do.

Source: Dettmers et al. 2023, "QLoRA", §4 (data types compared by perplexity); Dettmers and Zettlemoyer 2023, "The case
for 4-bit precision".
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from cme295lab.quantization.checking import check_finite, check_int
from cme295lab.quantization.errors import decibels
from cme295lab.quantization.schemes import SCHEMES, Scheme


@dataclass(frozen=True, kw_only=True)
class QualityRow:
    """A scheme and what it did.

    Attributes:
        scheme: its name.
        bits_per_weight: mean over all replaced weights, constants among them.
        loss: nats per token.
        perplexity: exp(loss).
        signal_to_noise_db: of all replaced weights together; inf where they are unchanged.
    """

    scheme: str
    bits_per_weight: float
    loss: float
    perplexity: float
    signal_to_noise_db: float


@dataclass(frozen=True, kw_only=True)
class WeightChange:
    """What a scheme did to the weights it replaced.

    Attributes:
        num_weights: how many numbers were replaced.
        bits_per_weight: mean over them.
        signal_to_noise_db: their squares over those of the errors, in decibels; inf where nothing changed.
    """

    num_weights: int
    bits_per_weight: float
    signal_to_noise_db: float


def mean_loss(
    model: nn.Module,
    tokens: Int[Tensor, " tokens"] | Int[Tensor, "rows tokens"],
    *,
    context: int | None = None,
    batch_size: int = 8,
) -> float:
    """Measure the mean of -log p(token | tokens before it), in nats.

    Args:
        model: maps tokens (batch, seq) to logits (batch, seq, vocab), or to something whose `.logits` they are.
        tokens: one long text, (tokens,), or texts side by side, (rows, tokens).
        context: cuts one long text into pieces of so many tokens, whose first token sees nothing before it; every token
            but the text's first is predicted once, the last piece may be shorter. None: one piece.
        batch_size: pieces or rows at a time.

    Raises:
        TypeError: if `tokens` does not hold integers.
        ValueError: if there are fewer than two tokens in a row, `context` is given for rows, the logits have another
            shape, or the loss is NaN.
    """
    check_int("batch_size", batch_size, 1)
    total, count = 0.0, 0
    with _evaluating(model), torch.no_grad():
        for inputs, targets in _pieces(tokens, context, batch_size):
            output = model(inputs)
            logits = output if isinstance(output, Tensor) else output.logits
            if logits.shape[:-1] != inputs.shape:
                raise ValueError(f"logits must be {tuple(inputs.shape)} and vocab, got shape {tuple(logits.shape)}")
            losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten().long(), reduction="none")
            total += float(losses.sum(dtype=torch.float64))
            count += targets.numel()
    if math.isnan(total):
        raise ValueError("the loss is NaN: some logits are NaN or infinite; look at the weights and the model's dtype")
    return total / count


def perplexity(
    model: nn.Module,
    tokens: Int[Tensor, " tokens"] | Int[Tensor, "rows tokens"],
    *,
    context: int | None = None,
    batch_size: int = 8,
) -> float:
    """Measure a model's perplexity, exp(`mean_loss`); inf beyond what a float holds.

    Args:
        model, tokens, context, batch_size: as for `mean_loss`, with the same errors.
    """
    return _exp(mean_loss(model, tokens, context=context, batch_size=batch_size))


@contextmanager
def quantized_weights(model: nn.Module, scheme: Scheme, *, skip: Collection[str] = ()) -> Iterator[WeightChange]:
    """Let the weights of a model's nn.Linear layers be what a scheme reads back, as long as the context lasts.

    Args:
        model: any module with nn.Linear layers.
        scheme: w -> (ŵ, bits per weight).
        skip: layers that are left alone, by path ("layers.0.mlp.up") or last name ("head").

    Raises:
        ValueError: if nothing is left to quantise, `skip` names no layer, or ŵ has another shape or dtype, a value that
            is not finite, or no bits.
    """
    parameters = _parameters(model, skip)
    kept = [parameter.data for parameter in parameters.values()]
    signal = noise = bits = 0.0
    try:
        for name, parameter in parameters.items():
            w = parameter.data
            w_hat, bits_per_weight = scheme(w.clone())  # a copy: what a scheme may write into cannot be restored
            _check_result(name, w, w_hat, bits_per_weight)
            signal += float(w.double().square().sum())
            noise += float((w.double() - w_hat.double()).square().sum())
            bits += bits_per_weight * w.numel()
            parameter.data = w_hat
        num_weights = sum(w.numel() for w in kept)
        yield WeightChange(
            num_weights=num_weights,
            bits_per_weight=bits / num_weights,
            signal_to_noise_db=decibels(signal, noise),
        )
    finally:
        for parameter, w in zip(parameters.values(), kept, strict=True):
            parameter.data = w


def quality_against_bits(
    model: nn.Module,
    tokens: Int[Tensor, " tokens"] | Int[Tensor, "rows tokens"],
    schemes: Mapping[str, Scheme] = SCHEMES,
    *,
    skip: Collection[str] = (),
    context: int | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> list[QualityRow]:
    """Measure the perplexity of a model whose weights are stored in different ways.

    Args:
        model: maps tokens to logits; afterwards its weights are what they were, in the same memory.
        tokens: the text, as for `mean_loss`.
        schemes: name -> (w -> (ŵ, bits per weight)).
        skip: layers that are left alone, by path or last name.
        context: pieces that one long text is cut into.
        batch_size: pieces or rows at a time.
        progress: whether to show a bar, one step per scheme.

    Returns:
        A row per scheme, in their order.

    Raises:
        TypeError, ValueError: as `mean_loss` and `quantized_weights` do, or if there is no scheme.
    """
    from tqdm.auto import tqdm

    if not schemes:
        raise ValueError("schemes is empty: give a mapping of name -> function, such as SCHEMES")
    rows = []
    for name, scheme in tqdm(schemes.items(), disable=not progress, desc="schemes"):
        with quantized_weights(model, scheme, skip=skip) as change:
            loss = mean_loss(model, tokens, context=context, batch_size=batch_size)
        rows.append(
            QualityRow(
                scheme=name,
                bits_per_weight=change.bits_per_weight,
                loss=loss,
                perplexity=_exp(loss),
                signal_to_noise_db=change.signal_to_noise_db,
            )
        )
    return rows


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _pieces(tokens: Tensor, context: int | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and the tokens that follow them, a batch at a time."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"tokens must hold integers, got {tokens.dtype}")
    if tokens.ndim not in (1, 2) or tokens.shape[-1] < 2 or not tokens.numel():
        raise ValueError(f"tokens must be (tokens,) or (rows, tokens), two tokens or more, got {tuple(tokens.shape)}")
    if tokens.ndim == 2 and context is not None:
        raise ValueError("context cuts one long text, (tokens,); rows are pieces already")
    if tokens.ndim == 2:
        pairs = [(tokens[:, :-1], tokens[:, 1:])]
    else:
        size = len(tokens) - 1 if context is None else context
        check_int("context", size, 1)
        whole = (len(tokens) - 1) // size * size
        pairs = [(tokens[:whole].reshape(-1, size), tokens[1 : whole + 1].reshape(-1, size))]
        pairs.append((tokens[whole:-1][None], tokens[whole + 1 :][None]))
    for inputs, targets in pairs:
        if inputs.numel():
            yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)


def _parameters(model: nn.Module, skip: Collection[str]) -> dict[str, nn.Parameter]:
    """The weights to replace, each once, however many layers share it."""
    if isinstance(skip, str):
        raise ValueError(f'skip must be a collection of names, such as ("{skip}",), got the string {skip!r}')
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    known = {*layers, *(name.rpartition(".")[2] for name in layers)}
    if unknown := sorted(set(skip) - known):
        raise ValueError(f"skip names {unknown}, but the nn.Linear layers are {sorted(layers)}")
    skipped = {name for name in layers if name in skip or name.rpartition(".")[2] in skip}
    alone = {id(layers[name].weight) for name in skipped}
    chosen = {id(layer.weight): (name, layer.weight) for name, layer in layers.items() if id(layer.weight) not in alone}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no nn.Linear layer to quantise that is not skipped")
    return dict(chosen.values())


def _check_result(name: str, w: Tensor, w_hat: Tensor, bits: float) -> None:
    if w_hat.shape != w.shape or w_hat.dtype != w.dtype:
        raise ValueError(
            f"the scheme made {w_hat.dtype} of shape {tuple(w_hat.shape)} of the weight of {name}, which is {w.dtype} "
            f"of shape {tuple(w.shape)}: it must return the numbers as they are read back"
        )
    check_finite(f"what the scheme made of the weight of {name}", w_hat)
    if not (isinstance(bits, int | float) and 0 < bits < math.inf):
        raise ValueError(f"bits per weight of {name} must be a positive number, got {bits!r}")


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < math.log(torch.finfo(torch.float64).max) else math.inf
