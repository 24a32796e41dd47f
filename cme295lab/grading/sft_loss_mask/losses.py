"""Part 2: the loss of a batch is the mean over its labelled tokens, also where it is taken in micro-batches.

A model that counts its passes is given to the student: its backward pass is seen as well as its forward pass, so that
keeping every graph until the end, which costs the memory that micro-batches are there to save, is found.

Source: the mean of means was the default of several trainers until October 2024 (transformers issue 34198).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step, judge_number, refuse_functions

FUNCTIONS = ("sft_loss", "accumulate_gradients")
Batch = tuple[Tensor, Tensor]
_ALLOWED = 2e-5
_NO_GRADIENT = "no gradient comes back from the loss: float(), item(), detach() or no_grad() cut it off"


class CountedModel(nn.Module):
    """A row of logits for each token, which notes when it runs and when its gradient is taken."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.open = self.most_open = self.num_passes = 0

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of each token's successor."""
        logits = self.table[inputs]
        self.num_passes += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        if logits.requires_grad:
            logits.register_hook(self._closed)
        else:
            self.open -= 1
        return logits

    def _closed(self, gradient: Tensor) -> None:
        self.open -= 1


def properties(*, seed: int = 0, vocabulary: int = 11, length: int = 7) -> list[Property]:
    """What must hold for the two functions of the page.

    Args:
        seed: of logits and labels.
        vocabulary: number of tokens.
        length: of the rows.
    """
    logits, labels = random_batch(seed, (4, length), vocabulary)
    packed = random_batch(seed + 1, (1, 4 * length), vocabulary)
    table = 2 * torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
    micro = random_micro_batches(seed, length, vocabulary)
    nothing = (micro[0], (micro[1][0], torch.full_like(micro[1][1], -100)), micro[2])
    mean, given = "the loss is the mean over the labelled tokens of a batch", "a given number of tokens divides the sum"
    whole = "micro-batches give the loss of the whole batch"
    return [
        _loss(mean, logits, labels, None, f"4 rows of {length}, unevenly padded, seed {seed}", weight=2),
        _loss("a packed row has the same loss as its tokens", *packed, None, f"one row of {4 * length}", needs=(mean,)),
        _gradient("its gradient is the mean's", logits, labels, needs=(mean,)),
        _loss(given, logits, labels, 50, "num_tokens=50"),
        *_accumulated("the page's example: 2 tokens at 1.0 and 6 at 3.0", example_table(), example(), loss_weight=1),
        *_accumulated(whole, table, micro, loss_weight=2, where=f"seed {seed}"),
        *_accumulated("a micro-batch may have no labels", table, nothing, loss_weight=1, needs=(whole,)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def example_table() -> Tensor:
    """Logits of two tokens with which label 0 costs exactly 1.0 after token 0, and 3.0 after token 1."""
    return torch.tensor([[-cost, math.log(1 - math.exp(-cost))] for cost in (1.0, 3.0)])


def example() -> tuple[Batch, ...]:
    """2 tokens at 1.0, and 6 at 3.0."""
    first = torch.tensor([[0, -100, 0, -100]])
    second = torch.tensor([[0, 0, 0, -100], [0, 0, -100, 0]])
    return (torch.zeros_like(first), first), (torch.ones_like(second), second)


def random_batch(seed: int, shape: tuple[int, int], vocabulary: int) -> Batch:
    """Logits and labels; the rows have different numbers of labels, and none of them is full."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(vocabulary, shape, generator=generator)
    labels[:, : shape[1] // 4] = -100
    for number, row in enumerate(labels):
        row[shape[1] - 1 - number :] = -100
    return 2 * torch.randn(*shape, vocabulary, generator=generator), labels


def random_micro_batches(seed: int, length: int, vocabulary: int) -> tuple[Batch, ...]:
    """Inputs and labels of three micro-batches, with 1, 3 and 2 rows."""
    found = []
    for number, rows in enumerate((1, 3, 2)):
        _, labels = random_batch(seed + 10 * number, (rows, length + 2 * number), vocabulary)
        generator = torch.Generator().manual_seed(seed + 100 + number)
        found.append((torch.randint(vocabulary, labels.shape, generator=generator), labels))
    return tuple(found)


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """The loss of each place in float64, 0 where there is no label."""
    chosen = logits.double().gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (logits.double().logsumexp(-1) - chosen) * (labels != -100)


def _wrong_losses(logits: Tensor, labels: Tensor, num_tokens: int | None) -> Iterator[tuple[str, Tensor]]:
    """Causes, and the loss that each gives."""
    each, counts = losses_of(logits, labels), (labels != -100).sum(-1)
    total, count = each.sum(), counts.sum()
    if num_tokens is not None:
        yield "num_tokens is not used: where it is given, divide the sum by it", total / count
        yield "the mean is divided by num_tokens once more: divide the sum by it", total / count / num_tokens
        yield "the mean is multiplied by num_tokens: divide the sum by it", total / count * num_tokens
    yield "the sum is divided by all places, padding and prompt included", total / labels.numel()
    yield "that is a mean of the rows' means: a token of a short row would weigh more", (each.sum(-1) / counts).mean()
    yield "that is the sum: divide by the number of labels", total
    yield "the sum is divided by the number of rows: divide by the number of labels", total / len(labels)
    yield "token 0 is not counted: only -100 stands for nothing", total / (labels > 0).sum()
    padded = losses_of(logits, labels.clamp(min=0))
    yield "places with -100 count as token 0: leave them out", padded.mean()
    yield "places with -100 count as token 0 in the sum: leave them out", padded.sum() / count
    shifted = losses_of(logits[:, :-1], labels[:, 1:])
    shifted_count = (labels[:, 1:] != -100).sum()
    yield "labels are shifted once more: those of the page are shifted already", shifted.sum() / shifted_count
    yield "the sign is wrong: the loss is minus the log-probability", -total / count
    softmax = logits.double().softmax(-1)
    yield "the softmax is taken twice: cross_entropy wants logits", losses_of(softmax, labels).sum() / count


def _loss(
    name: str, logits: Tensor, labels: Tensor, num_tokens: int | None, where: str, *, weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:  # fmt: skip
    value = losses_of(logits, labels).sum() / (num_tokens or (labels != -100).sum())
    mistakes = [
        Hypothesis(cause, lambda loss=loss: loss)  # type: ignore[misc]
        for cause, loss in _wrong_losses(logits, labels, num_tokens)
    ]
    expected = Expected(name="the loss", value=value, dtype=torch.float64, allowed=_ALLOWED, mistakes=mistakes)
    inputs = {"logits": logits, "labels": labels} | ({} if num_tokens is None else {"num_tokens": num_tokens})
    return Step(position=0, inputs=inputs, judge=lambda got: judge_number(got, expected), where=where).as_property(
        name, weight=weight, needs=needs
    )


def _gradient(name: str, logits: Tensor, labels: Tensor, *, needs: tuple[str, ...]) -> Property:
    """The property that the loss can be trained with."""

    def observe(student: Any) -> Observation:
        def run() -> Any:
            leaf = logits.clone().requires_grad_()
            loss = student[0](logits=leaf, labels=labels.clone())
            if not isinstance(loss, Tensor) or not loss.requires_grad:
                return None
            loss.sum().backward()
            return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)

        return observe_plainly(run, {})

    def judge(seen: Observation) -> Outcome:
        got = seen.outputs["result"]
        if got is None:
            return Outcome(name="", kind=Kind.WRONG_VALUE, cause=_NO_GRADIENT)
        leaf = logits.double().requires_grad_()
        (value,) = torch.autograd.grad(losses_of(leaf, labels).sum() / (labels != -100).sum(), leaf)
        expected = Expected(name="the gradient", value=value, dtype=torch.float32, allowed=_ALLOWED)
        return judge_tensor(got, expected)

    return Property(name=name, observe=observe, judge=judge, where=f"logits of shape {tuple(logits.shape)}",
                    needs=needs)  # fmt: skip


# How a micro-batch's sum of losses is weighed; of each: labels, rows, places, and the lists of them all.
Weigher = Callable[[int, Sequence[int], Sequence[int], Sequence[int]], float]
_PER = "a token of a small micro-batch would weigh more"
WEIGHINGS: tuple[tuple[str, Weigher], ...] = (
    (f"that is a mean of means: {_PER}. Divide each sum by the number of all labels",
     lambda i, n, rows, places: 1 / (max(n[i], 1) * len(n))),
    (f"that is a mean of means, weighed by rows: {_PER}, wherever rows have different numbers of labels",
     lambda i, n, rows, places: rows[i] / (max(n[i], 1) * sum(rows))),
    ("means are added up: divide each sum by the number of all labels",
     lambda i, n, rows, places: 1 / max(n[i], 1)),
    ("sums are added up and never divided: divide by the number of all labels", lambda i, n, rows, places: 1.0),
    ("it is divided by the number of micro-batches as well: the number of all labels is enough",
     lambda i, n, rows, places: 1 / (sum(n) * len(n))),
    ("the number of all places divides, padding and prompt included: count labels",
     lambda i, n, rows, places: 1 / sum(places)),
    ("the number of labels seen so far divides: count all labels before the first micro-batch",
     lambda i, n, rows, places: 1 / max(sum(n[: i + 1]), 1)),
    ("only the last micro-batch is in it", lambda i, n, rows, places: (i == len(n) - 1) / max(n[i], 1)),
    ("only the last micro-batch is in it: add the others up", lambda i, n, rows, places: (i == len(n) - 1) / sum(n)),
    ("only the first micro-batch is in it", lambda i, n, rows, places: (i == 0) / max(n[i], 1)),
    ("labels of a micro-batch are counted by its last place: count those that are not -100",
     lambda i, n, rows, places: 1 / (places[i] * len(n))),
)  # fmt: skip


def total_with(weigh: Weigher, table: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """The weighed loss and its gradient, in float64."""
    leaf = table.double().requires_grad_()
    sums = [losses_of(leaf[inputs], labels).sum() for inputs, labels in batches]
    labelled = [int((labels != -100).sum()) for _, labels in batches]
    rows, places = [len(labels) for _, labels in batches], [labels.numel() for _, labels in batches]
    total = torch.stack([weigh(i, labelled, rows, places) * one for i, one in enumerate(sums)]).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), gradient


def right_weight(i: int, n: Sequence[int], rows: Sequence[int], places: Sequence[int]) -> float:
    """What every label weighs."""
    return 1 / sum(n)


def _accumulated(
    name: str, table: Tensor, batches: tuple[Batch, ...], *, loss_weight: float, where: str = "",
    needs: tuple[str, ...] = (),
) -> list[Property]:  # fmt: skip
    """The properties of one accumulation: its loss, its gradient, and for the long one the order of its passes."""

    def observe(student: Any) -> Observation:
        def run() -> tuple[Any, CountedModel]:
            model = CountedModel(table)
            copies = [(inputs.clone(), labels.clone()) for inputs, labels in batches]
            return student[1](model=model, micro_batches=copies), model

        return observe_plainly(run, {})

    once = Once(observe)
    shapes = ", ".join(f"{(labels != -100).sum()} labels in {tuple(labels.shape)}" for _, labels in batches)
    where = f"micro-batches with {shapes}" + (f", {where}" if where else "")
    found = [
        Property(name=name, observe=once, judge=partial(_judge_total, table, batches), where=where, needs=needs,
                 weight=loss_weight),
        Property(name=f"{name}: the gradient", observe=once, judge=partial(_judge_gradient, table, batches),
                 where=where, needs=needs, weight=loss_weight),
    ]  # fmt: skip
    if loss_weight > 1:
        found.append(
            Property(name="one micro-batch at a time is held", observe=once, judge=partial(_judge_passes, len(batches)),
                     where=where, needs=(found[1].name,))
        )  # fmt: skip
    return found


def _judge_total(table: Tensor, batches: tuple[Batch, ...], seen: Observation) -> Outcome:
    got, _ = seen.outputs["result"]
    mistakes = [Hypothesis(cause, lambda w=w: total_with(w, table, batches)[0]) for cause, w in WEIGHINGS]  # type: ignore[misc]
    value, _ = total_with(right_weight, table, batches)
    expected = Expected(name="the loss", value=value, dtype=torch.float64, allowed=_ALLOWED, mistakes=mistakes)
    outcome = judge_number(got, expected)
    if not outcome.passed and outcome.kind is Kind.WRONG_VALUE and not math.isfinite(float(got)):
        cause = "a micro-batch without labels gave 0 / 0: take sums, and divide by the number of all labels"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=outcome.difference, cause=cause)
    return outcome


def _judge_gradient(table: Tensor, batches: tuple[Batch, ...], seen: Observation) -> Outcome:
    _, model = seen.outputs["result"]
    got = model.table.grad
    if got is None:
        cause = "the model has no gradient: call backward() on each micro-batch's loss"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    if not bool(got.isfinite().all()):
        cause = "a micro-batch without labels gave 0 / 0: take sums, and divide by the number of all labels"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference="the gradient holds NaN", cause=cause)
    value = total_with(right_weight, table, batches)[1]
    mistakes = [
        *(Hypothesis(cause, lambda w=w: total_with(w, table, batches)[1]) for cause, w in WEIGHINGS),  # type: ignore[misc]
        Hypothesis("each gradient is added twice: call backward() once for each micro-batch", lambda: 2 * value),
    ]
    expected = Expected(name="the gradient", value=value, dtype=torch.float32, allowed=_ALLOWED, mistakes=mistakes)
    return judge_tensor(got, expected)


def _judge_passes(count: int, seen: Observation) -> Outcome:
    _, model = seen.outputs["result"]
    if model.num_passes != count:
        difference = f"{count} micro-batches, {model.num_passes} forward passes"
        cause = "run the model once for each micro-batch"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)
    if model.most_open > 1:
        difference = f"{model.most_open} forward passes wait for their backward pass at once"
        cause = "the graphs of all micro-batches are kept: call backward() in each, before the next forward pass"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)
    return Outcome(name="")
