"""Part 4: LLM.int8(): a matrix product in int8, but for the few columns of outliers.

Only the product is judged. That is enough: what is quantised can be seen in its error, a thousand times what rounding
explains. The largest weight of each output lies outside the outlier rows, so that a scale over all of them and one over
those that are left are the same: both are in use, because weights are often quantised before any x is seen.

Source: T. Dettmers et al., LLM.int8(): 8-bit matrix multiplication for transformers at scale, 2022, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.quantizers.rounding import MISTAKES, Rounding, clear_of_ties, codes_of, scale_of
from cme295lab.grading.result import Outcome
from cme295lab.grading.steps import Step

_EXAMPLE = (
    torch.tensor([[1.1, -2.0, 8.0], [0.5, 0.2, -1.0]]),
    torch.tensor([[1.0, -1.2], [0.4, 2.0], [0.9, -0.5]]),
)


@dataclass(frozen=True, kw_only=True)
class Product:
    """How the product is taken; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        find: how outliers are found: "largest", "strict" (> instead of >=), "signed", "mean", "rows", "values" (single
            numbers instead of columns), "none" or "all".
        outliers: "once", "twice" (they stay in the int8 part) or "dropped".
        x_scales, weight_scales: "right", "one" (of the whole matrix) or "outliers" (x: the outliers are among them).
        rescale: "both", "exchanged", "once" (x's alone), "weights" or "a 127th".
        rounding: of both matrices.
        wraps: whether sums wrap around as int8 does.
        int8_outliers: whether the weights of outliers are int8 as well.
    """

    cause: str = ""
    find: str = "largest"
    outliers: str = "once"
    x_scales: str = "right"
    weight_scales: str = "right"
    rescale: str = "both"
    rounding: Rounding = field(default_factory=Rounding)
    wraps: bool = False
    int8_outliers: bool = False


_WIDE = Rounding(low=-math.inf, high=math.inf)
ALL_MISTAKES = (
    Product(cause="nothing is quantised: that is the exact product", find="all"),
    Product(cause="outliers are quantised with the rest: columns that reach the threshold stay float32", find="none"),
    Product(cause="outliers are counted twice: they are in the int8 part as well", outliers="twice"),
    Product(cause="outliers are counted twice: they are in the int8 part as well", outliers="twice",
            rounding=Rounding(low=-127)),
    Product(cause="outliers are counted twice: they are in the int8 part as well", outliers="twice", rounding=_WIDE),
    Product(cause="outliers are counted twice: they are in the int8 part as well", outliers="twice",
            x_scales="outliers"),
    Product(cause="outliers are missing: add the float32 product of their columns", outliers="dropped"),
    Product(cause="outliers are missing, and the scales are still theirs", outliers="dropped", x_scales="outliers"),
    Product(cause="the scales of x are those of the outliers: take max|x| of the columns that are left",
            x_scales="outliers"),
    Product(cause="the mean of a column is held against the threshold: a single value that reaches it is enough",
            find="mean"),
    Product(cause="negative outliers are not found: it is |x| that counts", find="signed"),
    Product(cause="a value of exactly the threshold is an outlier, too: |x| >= threshold", find="strict"),
    Product(cause="rows are kept in float32: outliers sit in columns, the features", find="rows"),
    Product(cause="single values are kept in float32: the whole column is, so that the rest is a plain product",
            find="values"),
    Product(cause="the scales of rows and columns are exchanged: x has one for each row, the weights one for each "
                  "column", rescale="exchanged"),
    Product(cause="x has one scale for all: each row has its own", x_scales="one"),
    Product(cause="the weights have one scale for all: each column has its own", weight_scales="one"),
    Product(cause="both matrices have one scale for all: rows of x and columns of the weights have their own",
            x_scales="one", weight_scales="one"),
    Product(cause="the scales of the weights are missing: the product is in steps of both", rescale="once"),
    Product(cause="the scales of x are missing: the product is in steps of both", rescale="weights"),
    Product(cause="there is a factor 127 too much: both matrices are divided by 127, the product by 127^2",
            rescale="a 127th"),
    Product(cause="the sums have wrapped around: products of int8 are summed in int32, not in int8", wraps=True),
    Product(cause="the weights of the outliers are int8 as well: this part is all float32", int8_outliers=True),
)  # fmt: skip


def every_mistake() -> Iterator[Product]:
    """All mistakes: those above, and those of rounding."""
    yield from ALL_MISTAKES
    for rounding in MISTAKES:
        for low, high in ((None, 127.0), (-128.0, 127.0), (-127.0, 127.0), (-math.inf, math.inf)):
            yield Product(cause=rounding.cause, rounding=replace(rounding, low=low, high=high))


def outliers_of(x: Tensor, threshold: float, find: str) -> Tensor:
    """Where x is kept in full precision, a mask of its shape."""
    size = x if find == "signed" else x.abs()
    marked = size > threshold if find == "strict" else size >= threshold
    if find == "mean":
        return (x.abs().mean(0) >= threshold).expand_as(x)
    if find == "rows":
        return marked.any(1, keepdim=True).expand_as(x)
    if find == "values":
        return marked
    if find in ("none", "all"):
        return torch.full_like(x, find == "all", dtype=torch.bool)
    return marked.any(0).expand_as(x)


def mixed_product(x: Tensor, weight: Tensor, threshold: float, mistake: Product = Product()) -> Tensor:
    """The product, in float64."""
    x, weight = x.double(), weight.double()
    mask = outliers_of(x, threshold, mistake.find)
    rest = torch.where(mask, 0.0, x)
    x_scale = scale_of(x if mistake.x_scales == "outliers" else rest, mistake.rounding)
    weight_scale = scale_of(weight.T, mistake.rounding).T
    x_scale = x_scale.max().expand_as(x_scale) if mistake.x_scales == "one" else x_scale
    weight_scale = weight_scale.max().expand_as(weight_scale) if mistake.weight_scales == "one" else weight_scale
    weight_codes = codes_of(weight, weight_scale, mistake.rounding)
    product = codes_of(x if mistake.outliers == "twice" else rest, x_scale, mistake.rounding) @ weight_codes
    if mistake.wraps:
        product = (product + 128) % 256 - 128
    if mistake.rescale == "exchanged" and x.shape[0] == weight.shape[1]:
        product = product * x_scale.T * weight_scale.T
    else:
        factors = {
            "once": x_scale, "weights": weight_scale, "a 127th": 127 * x_scale * weight_scale,
        }  # fmt: skip
        product = product * factors.get(mistake.rescale, x_scale * weight_scale)
    if mistake.outliers == "dropped":
        return product
    return product + torch.where(mask, x, 0.0) @ (weight_codes * weight_scale if mistake.int8_outliers else weight)


def properties(
    *, seed: int = 0, tokens: int = 8, features: int = 12, outputs: int = 8, threshold: float = 6.0
) -> list[Property]:
    """What must hold for `mixed_int8_matmul(x, weight, threshold) -> product`.

    Args:
        seed: seeds the random matrices.
        tokens, features, outputs: their shapes, at least 4 each; with as many tokens as outputs, exchanged scales do
            not crash.
        threshold: of outliers, above 4.
    """
    make = partial(matrices, seed, tokens, features, outputs, threshold)
    plain = "without outliers, it is the product of int8 codes, with scales of rows and columns"
    mixed = "columns of outliers are multiplied in float32"
    step = partial(_step, threshold=threshold, seed=seed)
    return [
        step(*make("none")).as_property(plain, weight=2),
        step(*make("some")).as_property(mixed, weight=3),
        step(*make("edge")).as_property("a value of exactly the threshold makes an outlier", needs=(mixed,)),
        step(*make("zero row")).as_property("a token whose other features are 0 does not divide by 0", needs=(mixed,)),
        step(*make("all")).as_property("if every column has outliers, it is the exact product"),
        _step(*_EXAMPLE, threshold=6.0, seed=None).as_property("the example of the page comes out"),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "mixed_int8_matmul")


def matrices(
    seed: int, tokens: int, features: int, outputs: int, threshold: float, outliers: str
) -> tuple[Tensor, Tensor]:
    """x and the weights; `outliers` is "none", "some", "edge" (exactly the threshold), "zero row" or "all"."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, features, generator=generator).clamp(-3, 3)
    weight = torch.randn(features, outputs, generator=generator)
    x[torch.arange(tokens), (5 * torch.arange(tokens) + 4) % features] -= 0.7  # the farthest from 0 is often negative
    columns = torch.tensor([], dtype=torch.long) if outliers == "none" else torch.tensor([1, features - 2])
    if outliers in ("some", "zero row"):  # of one token alone; and of most of them, negative
        x[tokens // 2, 1] = threshold + 5.5
        x[1 : tokens - 1, features - 2] = -1.7 * threshold - 3 * torch.rand(tokens - 2, generator=generator)
    elif outliers == "edge":
        x[0, 1], x[tokens - 1, features - 2] = threshold, -threshold - 2
    elif outliers == "all":
        columns = torch.arange(features)
        x[torch.arange(features) % tokens, torch.arange(features)] = threshold + 1
    left = torch.tensor([number for number in range(features) if number not in columns.tolist()], dtype=torch.long)
    if len(left):
        for output in range(outputs):  # the largest weight is among those that are left; of half the columns, negative
            weight[left[output % len(left)], output] = (-1.2 if output % 2 else 1.2) * weight[:, output].abs().max()
        if outliers == "zero row":
            x[tokens // 3, left] = 0
        x[:, left] = clear_of_ties(x[:, left], scale_of(x[:, left].double()))
        weight = clear_of_ties(weight, scale_of(weight.double().T).T)
    return x, weight


def _step(x: Tensor, weight: Tensor, *, threshold: float, seed: int | None) -> Step:
    product = partial(mixed_product, x, weight, threshold)
    expected = Expected(
        name="the product", value=product(), dtype=torch.float32,
        allowed=allowed_error(torch.float32, float(product().abs().max())) / 4,
        mistakes=[Hypothesis(mistake.cause, partial(product, mistake)) for mistake in every_mistake()],
    )  # fmt: skip
    made = "the page's" if seed is None else f"seed {seed}"
    return Step(
        position=None, inputs={"x": x, "weight": weight, "threshold": threshold},
        judge=lambda got: judge_tensor(got, expected),
        where=f"x of shape {tuple(x.shape)}, weight of shape {tuple(weight.shape)}, threshold={threshold:g}, {made}",
    )  # fmt: skip
