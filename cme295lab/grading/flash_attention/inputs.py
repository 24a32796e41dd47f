"""The inputs on which attention is judged, what the right answer is, and words for both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, allowed_error, judge_tensor
from cme295lab.grading.flash_attention.mistakes import mistaken_lse, mistaken_outputs
from cme295lab.grading.flash_attention.reference import exact_attention
from cme295lab.grading.result import Kind, Outcome

_COARSE = "the errors are as large as rounding"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One attention input.

    Args:
        q: queries (batch, heads, seq, dim).
        k: keys, of the same shape.
        v: values, of the same shape.
        causal: whether query i sees keys 0 to i only.
        blocks: queries and keys in a tile.
        seed: what it was made from; None for a constructed input.
        note: what is special about it.
        allowed: the absolute error that rounding explains; None for the usual one of the dtype.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    causal: bool
    blocks: tuple[int, int]
    seed: int | None = None
    note: str = ""
    allowed: float | None = None

    @property
    def seq(self) -> int:
        """The number of queries, and of keys."""
        return self.q.shape[-2]

    @property
    def text(self) -> str:
        """The input in words."""
        parts = [
            f"q, k, v of shape {tuple(self.q.shape)}, {str(self.q.dtype).removeprefix('torch.')}",
            f"causal={self.causal}, tiles of {self.blocks[0]} queries x {self.blocks[1]} keys",
            "a constructed input" if self.seed is None else f"seed {self.seed}",
        ]
        return ", ".join([*parts, self.note] if self.note else parts)

    def allowed_error(self) -> float:
        """The absolute error in the output that rounding explains.

        An output is an average of rows of v, so errors are in units of the largest of them. A weight is exp of a
        score: in float32, where the score itself is rounded, a large score s makes it inexact by |s| roundings.
        Half-precision inputs are exact when they are multiplied, and their scores are float32.
        """
        if self.allowed is not None:
            return self.allowed
        usual = allowed_error(self.q.dtype, float(self.v.abs().max()))
        if self.q.dtype != torch.float32:
            return usual
        scores = self.q @ self.k.transpose(-2, -1) / self.q.shape[-1] ** 0.5
        return usual * (1 + float(scores.abs().max()) / 32)

    def judge_output(self, got: Any, kind: Kind = Kind.WRONG_VALUE) -> Outcome:
        """Judge the student's output.

        Args:
            got: what the student's code returned as the output.
            kind: what to call a difference.
        """
        value, _ = exact_attention(self.q, self.k, self.v, self.causal)
        mistakes = mistaken_outputs(self.q, self.k, self.v, self.causal, self.blocks)
        expected = Expected(
            name="o",
            value=value,
            dtype=self.q.dtype,
            allowed=self.allowed_error(),
            mistakes=mistakes,
            explain=self._explain,
            kind=kind,
        )
        outcome = judge_tensor(got, expected)
        looks_rounded = outcome.kind is Kind.WRONG_VALUE and outcome.cause.startswith(_COARSE)
        return replace(outcome, kind=Kind.NOT_EXACT) if looks_rounded else outcome

    def judge_lse(self, got: Tensor) -> Outcome:
        """Judge the student's log-sum-exp (float32)."""
        _, value = exact_attention(self.q, self.k, self.v, self.causal)
        mistakes = mistaken_lse(self.q, self.k, self.v, self.causal, self.blocks)
        # Scores are products of exact inputs summed in float32, whatever the dtype of the inputs.
        allowed = allowed_error(torch.float32, float(value.abs().max()) + 1)
        return judge_tensor(
            got, Expected(name="lse", value=value, dtype=torch.float32, allowed=allowed, mistakes=mistakes)
        )

    def _explain(self, error: Tensor) -> str:
        """A cause read from how large the errors are, or from where they are."""
        for dtype in (torch.float16, torch.bfloat16) if self.q.dtype == torch.float32 else ():
            if bool((error <= allowed_error(dtype, float(self.v.abs().max())) / 2).all()):
                coarse = str(dtype).removeprefix("torch.")
                return (
                    f"{_COARSE} in {coarse}: something between the scores and the output is kept in {coarse}, such as "
                    "an accumulator. Accumulate in float32"
                )
        return self._where_off(error)

    def _where_off(self, error: Tensor) -> str:
        """A cause read from where the values are off, if the place tells something."""
        off = ~(error <= self.allowed_error())
        rows = off.any(-1).flatten(0, 1).any(0)
        heads = off.flatten(2).any(-1).flatten()
        whole = self.seq // self.blocks[0] * self.blocks[0]
        if whole < self.seq and not rows[:whole].any():
            return (
                "only the queries of the last, incomplete tile are wrong: the block size does not divide the "
                "length, so "
                "round the number of tiles up"
            )
        if not error.isfinite().all():
            return ""  # an overflow hits where the scores are large, whatever the tile or the head
        if not rows[: self.blocks[0]].any():
            return "only the first tile of queries is right: do the later ones start from the empty state?"
        if heads.numel() > 1 and not heads[0]:
            return "only the first head is right: where does the memory of the next head begin?"
        return ""


def random_case(
    seed: int,
    shape: tuple[int, int, int, int],
    *,
    causal: bool = False,
    blocks: tuple[int, int] = (32, 32),
    dtype: torch.dtype = torch.float32,
    score_spread: float = 2.0,
    note: str = "",
) -> Case:
    """Random normal queries, keys and values.

    Args:
        seed: of the random numbers.
        shape: (batch, heads, seq, dim).
        causal: whether query i sees keys 0 to i only.
        blocks: queries and keys in a tile.
        dtype: of all three.
        score_spread: the standard deviation of the scaled scores; at 2 the running maximum moves often.
        note: what is special about it.
    """
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    q, k, v = (q * score_spread).to(dtype), k.to(dtype), v.to(dtype)
    return Case(q=q, k=k, v=v, causal=causal, blocks=blocks, seed=seed, note=note)


def accumulation_case(seq: int, dim: int = 16, block: int = 16) -> Case:
    """A float16 input whose right answer needs float32 accumulators.

    In head 0 all scores are 0 and the first value is 2048, the others 0.05: next to 2048, float16 has steps of 2, so a
    block of 16 values (0.8) is lost when it is added in float16. In head 1 all values are 1; the first quarter of the
    scores is 0 and the rest is so low that a block of them is lost when it is added to l in float16.
    """
    q, k, v = (torch.zeros(1, 2, seq, dim) for _ in range(3))
    v[0, 0], v[0, 0, 0], v[0, 1] = 0.05, 2048.0, 1.0
    quarter = seq // 4
    step = torch.finfo(torch.float16).eps * quarter / 2  # half the spacing of float16 just below `quarter`
    q[0, 1, :, 0] = dim**0.5
    k[0, 1, quarter:, 0] = torch.tensor(0.45 * step / block).log()
    q, k, v = q.half(), k.half(), v.half()
    smallest = float(exact_attention(q, k, v, False)[0].abs().min())
    note = "one large value (or score) and many small ones"
    allowed = torch.finfo(torch.float16).eps * max(smallest, 1.0)
    return Case(q=q, k=k, v=v, causal=False, blocks=(block, block), note=note, allowed=allowed)


def judge_accumulation(case: Case, got: Any) -> Outcome:
    """Judge an output of `accumulation_case`: if it is wrong, an accumulator was in half precision, and which one
    shows."""
    outcome = case.judge_output(got, Kind.NOT_EXACT)
    if outcome.kind is not Kind.NOT_EXACT:
        return outcome
    value, _ = exact_attention(case.q, case.k, case.v, case.causal)
    off = ~((got.double() - value).abs() <= case.allowed_error())
    which = "the accumulator of the output" if bool(off[0, 0].any()) else "the running sum l"
    cause = (
        f"{which} is kept in float16, which loses small terms (2048 + 0.8 is 2048 in float16): keep m, l and the "
        "accumulator in float32, and convert only the result"
    )
    return replace(outcome, cause=cause)
