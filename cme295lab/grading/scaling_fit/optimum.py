"""Part 2: the best size and tokens for a budget, in closed form, and the loss that is predicted there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.grading.scaling_fit.answers import Numbers, Question, answers_property
from cme295lab.scaling.parametric import CHINCHILLA_ROUNDED, EPOCH, ParametricLaw

_NAMES = ("num_parameters", "num_tokens", "loss")
_PUBLISHED = "published constants give the size, the tokens and the loss at Gopher's budget"


def properties(*, flops: float = 5.76e23, alpha: float = 0.3, beta: float = 0.5) -> list[Property]:
    """What must hold for `allocate(flops, E, A, B, alpha, beta) -> (num_parameters, num_tokens, loss)`.

    Args:
        flops: a budget.
        alpha, beta: exponents of a made-up law, far apart.
    """
    made_up = ParametricLaw(2.0, 120.0, 90.0, alpha, beta)
    return [
        answers_property(_PUBLISHED, [question(flops, EPOCH), question(flops, CHINCHILLA_ROUNDED)]),
        answers_property("so it is for a small budget", [question(flops / 3e5, EPOCH)]),
        answers_property("so it is for a law with very different exponents", [question(1e20, made_up)]),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "allocate")


def constants(law: ParametricLaw) -> Mapping[str, float]:
    """The five constants by name, as the student's functions take them."""
    return {name: getattr(law, name) for name in ("E", "A", "B", "alpha", "beta")}


def question(flops: float, law: ParametricLaw) -> Question:
    """The call, its answer, and what mistakes give."""
    best = law.allocate(flops)
    assert best.loss is not None
    shown = ", ".join(f"{name}={value:g}" for name, value in constants(law).items())
    return Question(
        call=f"allocate({flops:.3g}, {shown})",
        arguments={"flops": flops, **constants(law)},
        names=_NAMES,
        want=(best.num_parameters, best.num_tokens, best.loss),
        mistakes=tuple(_mistakes(flops, law)),
    )


def _mistakes(flops: float, law: ParametricLaw) -> Iterator[tuple[str, Numbers]]:
    """What known mistakes give: with the loss that belongs to the wrong size, and with the right loss."""
    a, b, scale, product = law.a, law.b, law.G, flops / 6
    best = law.allocate(flops)
    assert best.loss is not None
    size, tokens = best.num_parameters, best.num_tokens
    for cause, n, d in (
        ("the 6 is forgotten: C = 6 N D, so N D is C / 6", scale * flops**a, flops**b / scale),
        ("the 6 is forgotten in the tokens: D = C / (6 N)", size, flops / size),
        ("the 6 is forgotten in the size, and the tokens are C / (6 N)", scale * flops**a,
         product / (scale * flops**a)),
        ("alpha and beta are swapped in the exponents: a = beta / (alpha + beta) belongs to the size",
         scale * product**b, product**a / scale),
        ("G is upside down: it multiplies the size and divides the tokens", product**a / scale, scale * product**b),
        ("size and tokens are swapped", tokens, size),
        ("G is missing", product**a, product**b),
        ("G is a power of alpha A / (beta B): the exponent 1 / (alpha + beta) is missing",
         scale ** (law.alpha + law.beta) * product**a, product**b / scale ** (law.alpha + law.beta)),
        ("in G, alpha and beta are swapped", *_swapped_in_scale(law, product)),
        ("that is 20 tokens per parameter, a rule of thumb: use the law", math.sqrt(flops / 120),
         20 * math.sqrt(flops / 120)),
    ):  # fmt: skip
        for loss in (law.loss(n, d), best.loss):
            yield cause, (n, d, loss)
    yield "the loss lacks E, which remains with endless size and data", (size, tokens, best.loss - law.E)
    yield "the loss has alpha and beta swapped", (size, tokens, _swapped_loss(law, size, tokens))


def _swapped_in_scale(law: ParametricLaw, product: float) -> tuple[float, float]:
    scale = (law.beta * law.A / (law.alpha * law.B)) ** (1 / (law.alpha + law.beta))
    return scale * product**law.a, product**law.b / scale


def _swapped_loss(law: ParametricLaw, size: float, tokens: float) -> float:
    return float(law.E + law.A / size**law.beta + law.B / tokens**law.alpha)
