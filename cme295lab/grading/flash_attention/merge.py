"""Part 1: merge the softmax states of two blocks of keys.

The state of a block of scores s with values V is m = max s, l = sum exp(s - m), o = exp(s - m) V: the output is o / l.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, observe_call
from cme295lab.grading.result import Kind, Outcome

State = tuple[Tensor, Tensor, Tensor]
TIME_LIMIT_S = 5.0
NAMES = ("m", "l", "o")


def state_of(scores: Tensor, values: Tensor) -> State:
    """The softmax state (m, l, o) of a block of scores, computed directly."""
    m = scores.amax(-1)
    p = (scores - m[..., None]).exp()
    return m, p.sum(-1), p @ values


def worked_example() -> tuple[State, State, State]:
    """The example of the page: the scores [1, 3 | 2, 5], with values that are easy to follow."""
    scores = torch.tensor([[1.0, 3.0, 2.0, 5.0]], dtype=torch.float64)
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    whole = state_of(scores, values)
    return state_of(scores[:, :2], values[:2]), state_of(scores[:, 2:], values[2:]), whole


def properties(*, seed: int = 0, rows: int = 8, dim: int = 4, dtype: torch.dtype = torch.float64) -> list[Property]:
    """What must hold for `merge_blocks(m_a, l_a, o_a, m_b, l_b, o_b) -> (m, l, o)`.

    Args:
        seed: seeds the random blocks.
        rows: rows of each block of scores.
        dim: columns of the values.
        dtype: dtype of the states.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(rows, 24, generator=generator, dtype=torch.float64)
    values = torch.randn(24, dim, generator=generator, dtype=torch.float64)
    shape = f"m and l of shape ({rows},), o of shape ({rows}, {dim}), {str(dtype).removeprefix('torch.')}"
    random = f"two blocks of 8 and 16 scores a row: {shape}, seed {seed}"
    first = "the example of the page comes out: scores [1, 3 | 2, 5]"
    second = "two random blocks merge into the state of both together"
    a, b, whole = worked_example()
    empty = (torch.full((rows,), -math.inf), torch.zeros(rows), torch.zeros(rows, dim))
    return [
        _merge(first, a, b, whole, torch.float64, "the two states of the example, float64"),
        _merge(second, *_halves(scores, values, 8), dtype, random, weight=2),
        _merge(
            "scores around 1000 do not overflow",
            *_halves(scores + 1000, values, 8),
            dtype,
            f"{random}, all scores raised by 1000",
            needs=(second,),
        ),
        _merge(
            "merging into the empty state (m = -inf, l = 0, o = 0) changes nothing",
            empty,
            state_of(scores, values),
            state_of(scores, values),
            dtype,
            f"an empty state and a block of 24 scores a row: {shape}, seed {seed}",
            needs=(second,),
        ),
        _fold("many blocks merge to the same state in any order", scores, values, dtype, random, (second,)),
    ]


def _halves(scores: Tensor, values: Tensor, cut: int) -> tuple[State, State, State]:
    return (
        state_of(scores[:, :cut], values[:cut]),
        state_of(scores[:, cut:], values[cut:]),
        state_of(scores, values),
    )


def _merge(
    name: str,
    a: State,
    b: State,
    whole: State,
    dtype: torch.dtype,
    where: str,
    *,
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    """The property that merging a and b gives the whole."""
    rounded_a, rounded_b = (tuple(x.to(dtype) for x in state) for state in (a, b))
    inputs = {f"{n}_{block}": x for block, state in (("a", rounded_a), ("b", rounded_b)) for n, x in zip(NAMES, state)}

    def observe(student: Callable[..., Any]) -> Observation:
        return observe_call(student, {key: value.clone() for key, value in inputs.items()}, TIME_LIMIT_S)

    def judge(seen: Observation) -> Outcome:
        return judge_state(seen.outputs["result"], a, b, whole, dtype)

    return Property(name=name, observe=observe, judge=judge, where=where, weight=weight, needs=needs)


def judge_state(got: Any, a: State, b: State, whole: State, dtype: torch.dtype) -> Outcome:
    """Judge a merged state: m, then l, then o."""
    if not isinstance(got, tuple) or len(got) != 3:
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=f"return the three tensors (m, l, o), not {_kind_of(got)}")
    if _is_worked_example(got) and got[0].shape != whole[0].shape:
        cause = "these are the numbers of the worked example, whatever the input: compute them from the arguments"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    if all(isinstance(x, Tensor) and torch.equal(x, y.to(dtype)) for x, y in zip(got, a)):
        difference = judge_tensor(got[1], Expected(name="l", value=whole[1], dtype=dtype, allowed=0.0)).difference
        if difference:
            cause = "the first block is returned unchanged: the second block must be added"
            return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
    for index, name in enumerate(NAMES):
        # exp(m_a - m) is as inexact as m is large.
        magnitude = float(whole[index].abs().max() + whole[0].abs().max())
        mistakes = _mistakes(name, a, b)
        expected = Expected(
            name=name, value=whole[index], dtype=dtype, allowed=allowed_error(dtype, magnitude), mistakes=mistakes
        )
        outcome = judge_tensor(got[index], expected)
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _kind_of(got: Any) -> str:
    return f"{len(got)} values" if isinstance(got, tuple) else type(got).__name__


def _is_worked_example(got: tuple[Any, ...]) -> bool:
    whole = worked_example()[2]
    return all(
        isinstance(x, Tensor) and x.shape == y.shape and torch.allclose(x.double(), y, atol=1e-3)
        for x, y in zip(got, whole)
    )


def _mistakes(name: str, a: State, b: State) -> Iterator[Hypothesis]:
    """What known mistakes give for m, l or o."""
    (m_a, l_a, o_a), (m_b, l_b, o_b) = a, b
    m = torch.maximum(m_a, m_b)
    w_a, w_b = (m_a - m).exp(), (m_b - m).exp()
    if name == "m":
        yield Hypothesis(
            "the maximum is not updated: m is that of the first block, it must be the larger of the two", lambda: m_a
        )
        yield Hypothesis("m is always that of the second block: it must be the larger of the two", lambda: m_b)
        yield Hypothesis("m is the smaller of the two maxima; it must be the larger", lambda: torch.minimum(m_a, m_b))
        yield Hypothesis("m is the sum of the two maxima; it must be the larger of the two", lambda: m_a + m_b)
        yield Hypothesis(
            "m is log-sum-exp of the two; it must be the larger of the two", lambda: torch.logaddexp(m_a, m_b)
        )
        return
    x_a, x_b, w_a, w_b = (l_a, l_b, w_a, w_b) if name == "l" else (o_a, o_b, w_a[..., None], w_b[..., None])
    what = "l" if name == "l" else "the accumulator o"
    yield Hypothesis(f"{what} is not rescaled: each part must be multiplied by exp(m_part - m)", lambda: x_a + x_b)
    yield Hypothesis(f"{what} of the second block is not rescaled by exp(m_b - m)", lambda: x_a * w_a + x_b)
    yield Hypothesis(f"{what} of the first block is not rescaled by exp(m_a - m)", lambda: x_a + x_b * w_b)
    yield Hypothesis(f"{what} is rescaled upside down: the factor is exp(m_part - m)", lambda: x_a / w_a + x_b / w_b)
    yield Hypothesis(f"{what} is rescaled with the two factors swapped", lambda: x_a * w_b + x_b * w_a)
    yield Hypothesis(f"{what} holds the second block only: the first one must be added", lambda: x_b)
    if name == "o":
        total = l_a * w_a[..., 0] + l_b * w_b[..., 0]
        cause = "o is already divided by l: keep it unnormalised, the division comes once, at the very end"
        yield Hypothesis(cause, lambda: (x_a * w_a + x_b * w_b) / total[..., None])
        cause = (
            "o averages the parts weighted by their l as if they were normalised: here o is the plain sum exp(s - m) V"
        )
        yield Hypothesis(cause, lambda: (x_a * w_a * l_a[..., None] + x_b * w_b * l_b[..., None]) / total[..., None])


def _fold(
    name: str, scores: Tensor, values: Tensor, dtype: torch.dtype, where: str, needs: tuple[str, ...]
) -> Property:
    """The property that six blocks of four scores merge to the same state from either end."""
    states = [state_of(s, v) for s, v in zip(scores.split(4, dim=-1), values.split(4))]
    whole = state_of(scores, values)

    def fold(student: Callable[..., Any], backwards: bool) -> Any:
        order = states[::-1] if backwards else states
        total: Any = tuple(x.to(dtype) for x in order[0])
        for state in order[1:]:
            total = student(*total, *(x.to(dtype) for x in state))
        return total

    def observe(student: Callable[..., Any]) -> Observation:
        return observe_call(lambda: (*fold(student, False), *fold(student, True)), {}, TIME_LIMIT_S)

    def judge(seen: Observation) -> Outcome:
        got = seen.outputs["result"]
        for half in (got[:3], got[3:]):
            outcome = judge_state(half, states[0], states[-1], whole, dtype)
            if not outcome.passed:
                kind = Kind.NOT_EXACT if outcome.kind is Kind.WRONG_VALUE else outcome.kind
                cause = "merging two blocks is right and merging six is not: does the result depend on the order?"
                return Outcome(name="", kind=kind, difference=outcome.difference, cause=cause)
        return Outcome(name="")

    where = where.replace("two blocks of 8 and 16", "six blocks of 4")
    return Property(name=name, observe=observe, judge=judge, where=where, needs=needs)
