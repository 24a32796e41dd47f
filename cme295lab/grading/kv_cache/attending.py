"""Part 2: causal attention over chunks that a cache joins, against attention over everything at once.

The check hands over its own rotations, so that it sees from which position on keys and queries are rotated. Where the
keys are rotated is free: before they go into the cache, or when they are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known mistake; the defaults make none.

    Args:
        cause: the mistake, in the words of the exercise.
        first: position of a chunk's first token: "held", "zero", or "one more".
        rotate: "once", "never", "queries" or "keys" alone, or "again" (the whole cache at each call).
        keep: "all", "last" (overwritten), or "front" (new ones come first).
        mask: "causal", "none", "upper left" (query i sees keys up to i), or "strict" (not itself).
        scale: whether scores are divided by sqrt(head_dim).
    """

    cause: str = ""
    first: str = "held"
    rotate: str = "once"
    keep: str = "all"
    mask: str = "causal"
    scale: bool = True


MISTAKES = (
    Mistake(cause="positions start at 0 in every call: the first new token has the position that the cache has reached",
            first="zero"),
    Mistake(cause="positions are one too far: the first token of all has position 0", first="one more"),
    Mistake(cause="nothing is rotated: queries and keys need their positions", rotate="never"),
    Mistake(cause="keys are not rotated", rotate="queries"),
    Mistake(cause="queries are not rotated", rotate="keys"),
    Mistake(cause="keys are rotated again in every call: what the cache holds is rotated already", rotate="again"),
    Mistake(cause="the cache is overwritten: join new keys and values to those that it holds", keep="last"),
    Mistake(cause="new keys and values come first: join them behind those that the cache holds", keep="front"),
    Mistake(cause="there is no mask: in a chunk, a token must not see those behind it", mask="none"),
    Mistake(
        cause="the mask starts at the upper left corner: query i of a chunk sees all held keys, and i + 1 new ones",
        mask="upper left",
    ),
    Mistake(cause="a token does not see itself: key j is visible if j <= held + i", mask="strict"),
    Mistake(cause="scores are not divided by sqrt(head_dim)", scale=False),
)  # fmt: skip


def rotate(x: Tensor, first: int) -> Tensor:
    """Rotate x (heads, seq, head_dim), whose first row has the position `first`."""
    half = x.shape[-1] // 2
    frequency = 10.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(first, first + x.shape[1], dtype=torch.float64)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Queries, keys and values, and the chunks in which they arrive.

    Args:
        q, k, v: (heads, seq, head_dim), before rotation.
        sizes: tokens of each chunk.
        where: the input in words.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    sizes: Sequence[int]
    where: str

    def chunks(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(q, k, v) of each call."""
        parts = (x.split(list(self.sizes), dim=1) for x in (self.q, self.k, self.v))
        return list(zip(*parts, strict=True))

    def result(self, mistake: Mistake = Mistake()) -> Tensor:
        """The outputs of all calls, joined, in float64."""
        cache: dict[str, Tensor] = {}
        outputs = [
            _attend(*(part.double() for part in chunk), cache=cache, mistake=mistake) for chunk in self.chunks()
        ]
        return torch.cat(outputs, dim=1)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, cache: dict[str, Tensor], mistake: Mistake) -> Tensor:
    held = cache["k"].shape[1] if cache else 0
    first = {"held": held, "zero": 0, "one more": held + 1}[mistake.first]
    if mistake.rotate in ("once", "queries", "again"):
        q = rotate(q, first)
    if mistake.rotate in ("once", "keys", "again"):
        k = rotate(k, first)
    if cache and mistake.keep != "last":
        front = mistake.keep == "front"
        k = torch.cat((k, cache["k"]) if front else (cache["k"], k), dim=1)
        v = torch.cat((v, cache["v"]) if front else (cache["v"], v), dim=1)
        if mistake.rotate == "again":
            k = torch.cat((rotate(k[:, :held], 0), k[:, held:]), dim=1)
    cache.update(k=k, v=v)
    scores = q @ k.transpose(-2, -1) / (math.sqrt(q.shape[-1]) if mistake.scale else 1)
    row, column = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])
    offset = k.shape[1] - q.shape[1]
    sees = {
        "causal": column <= row + offset, "none": column >= 0, "upper left": column <= row,
        "strict": column < row + offset,
    }[mistake.mask]  # fmt: skip
    return scores.masked_fill(~sees, -math.inf).softmax(-1) @ v


def properties(*, seed: int = 0, heads: int = 2, head_dim: int = 6, seq: int = 11) -> list[Property]:
    """What must hold for `cached_attention(q, k, v, cache, rotate) -> output`.

    Args:
        seed: seeds q, k and v.
        heads, head_dim, seq: their shape, with a sequence of at least 8.
    """
    make = partial(_case, seed, heads, head_dim, seq)
    whole, ones = "a whole prompt in one call is causal attention", "one token at a time gives the same"
    return [
        _property(whole, make([seq])),
        _property(ones, make([1] * seq), weight=2),
        _property("a prompt and then one token at a time gives the same", make([seq - 4, 1, 1, 1, 1]), weight=2),
        _property("chunks of several tokens see what is held and each other", make([3, seq - 5, 2]), weight=2,
                  needs=(whole,)),
        _two_caches("two caches do not disturb each other", make([2, seq - 2]), needs=(ones,)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "cached_attention")


def _case(seed: int, heads: int, head_dim: int, seq: int, sizes: Sequence[int]) -> Case:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, heads, seq, head_dim, generator=generator)
    where = f"q, k, v of shape {tuple(q.shape)} in chunks of {', '.join(map(str, sizes))}, seed {seed}"
    return Case(q=2 * q, k=k, v=v, sizes=sizes, where=where)


def _property(name: str, case: Case, *, weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    return Property(
        name=name, observe=partial(_observe, case), judge=partial(_judge, case), where=case.where, weight=weight,
        needs=needs,
    )  # fmt: skip


def _observe(case: Case, student: Callable[..., Any]) -> Observation:
    """The outputs of all calls on one cache; the first call that fails ends it."""
    cache: dict[str, Any] = {}
    outputs = []
    for q, k, v in case.chunks():
        seen = observe_plainly(
            lambda q, k, v: student(q, k, v, cache, rotate), {"q": q, "k": k, "v": v}
        )  # fmt: skip
        if seen.error is not None or seen.changed_inputs:
            return seen
        outputs.append(seen.outputs["result"])
    return Observation(outputs={"result": outputs})


def _judge(case: Case, seen: Observation) -> Outcome:
    outputs = seen.outputs["result"]
    for number, (got, (q, _, _)) in enumerate(zip(outputs, case.chunks(), strict=True)):
        if not isinstance(got, Tensor) or got.shape != q.shape:
            found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            cause = f"return the output of the new tokens, of shape {tuple(q.shape)}; call {number + 1} gave {found}"
            return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    expected = Expected(
        name="the output", value=case.result(), dtype=case.q.dtype,
        allowed=allowed_error(case.q.dtype, float(case.v.abs().max())),
        mistakes=[Hypothesis(mistake.cause, partial(case.result, mistake)) for mistake in MISTAKES],
    )  # fmt: skip
    return judge_tensor(torch.cat(outputs, dim=1), expected)


def _two_caches(name: str, case: Case, needs: tuple[str, ...]) -> Property:
    """Two sequences that take turns: keys and values belong into the cache that was handed over."""
    other = Case(**(vars(case) | {"q": case.q.flip(1), "k": case.k.flip(1), "v": case.v.flip(1)}))

    def observe(student: Callable[..., Any]) -> Observation:
        caches: list[dict[str, Any]] = [{}, {}]
        outputs: list[list[Any]] = [[], []]
        for turn in zip(case.chunks(), other.chunks(), strict=True):
            for number, (q, k, v) in enumerate(turn):
                seen = observe_plainly(
                    lambda q, k, v, number=number: student(q, k, v, caches[number], rotate), {"q": q, "k": k, "v": v}
                )
                if seen.error is not None or seen.changed_inputs:
                    return seen
                outputs[number].append(seen.outputs["result"])
        return Observation(outputs={"result": outputs})

    def judge(seen: Observation) -> Outcome:
        for which, outputs in zip((case, other), seen.outputs["result"], strict=True):
            outcome = _judge(which, Observation(outputs={"result": outputs}))
            if not outcome.passed:
                cause = outcome.cause or "what one sequence left is seen by the other: keep everything in `cache`"
                return Outcome(name="", kind=outcome.kind, difference=outcome.difference, cause=cause)
        return Outcome(name="")

    return Property(name=name, observe=observe, judge=judge, where=f"{case.where}, twice", needs=needs)
