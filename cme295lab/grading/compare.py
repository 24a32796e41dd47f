"""Tolerances by dtype, the largest difference and where it is, and the likely cause of a wrong value.

A cause is found by hypothesis: the check computes what a known mistake would give on the same input, and names the
mistake only if the student's output *is* that. Without a match it says nothing about the cause rather than guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.result import Kind, Outcome

# Allowed error in units of the dtype's spacing at 1 (eps). Half precision: the probabilities and the result are each
# rounded once. Single precision: sums over a few hundred keys, and exp of scores around 10, whose error is 10 eps.
_ALLOWED_EPS = {torch.float64: 256.0, torch.float32: 64.0, torch.float16: 3.0, torch.bfloat16: 3.0}

# A hypothesis matches if this share of the elements does: the few rows that a mistake leaves undefined may differ.
_SHARE_THAT_MATCHES = 0.97

_ALL_NAN = "every value is NaN: exp overflowed, or inf - inf or 0 / 0 happened, or nothing was written"


def allowed_error(dtype: torch.dtype, magnitude: float) -> float:
    """The error that rounding alone explains.

    Args:
        dtype: the dtype of the student's input and output.
        magnitude: the natural size of the result. Attention averages rows of V, so it is the largest absolute value in
            V.

    Returns:
        An absolute error.

    Raises:
        ValueError: if there is no tolerance for the dtype.
    """
    if dtype not in _ALLOWED_EPS:
        raise ValueError(f"dtype: no tolerance for {dtype}; known are {', '.join(map(str, _ALLOWED_EPS))}")
    return _ALLOWED_EPS[dtype] * torch.finfo(dtype).eps * max(magnitude, 1e-30)


@dataclass(frozen=True)
class Difference:
    """The largest difference between two tensors.

    Args:
        name: what the tensors are called on the page.
        index: where the difference is largest.
        expected: the right value there.
        got: the student's value there.
        allowed: the error that rounding explains.
        share: the share of elements that are further off than allowed.
    """

    name: str
    index: tuple[int, ...]
    expected: float
    got: float
    allowed: float
    share: float

    @property
    def exceeds(self) -> bool:
        """Whether the difference is larger than rounding explains."""
        return self.share > 0

    def __str__(self) -> str:
        place = f"{self.name}[{', '.join(map(str, self.index))}]" if self.index else self.name
        error = abs(self.expected - self.got)
        digits = 6 if f"{self.expected:.6g}" != f"{self.got:.6g}" else 15
        return (
            f"expected {self.expected:.{digits}g}, got {self.got:.{digits}g} at {place}: the largest error is "
            f"{error:.3g}, "
            f"rounding explains {self.allowed:.1g}; {self.share:.0%} of the values are off"
        )


def largest_difference(name: str, got: Tensor, expected: Tensor, allowed: float) -> Difference:
    """Compare a student's tensor with the right one; a NaN counts as infinitely wrong.

    Args:
        name: what the tensor is called on the page.
        got: the student's tensor, any floating dtype.
        expected: the right values, of the same shape.
        allowed: the absolute error that rounding explains.
    """
    got64, expected64 = got.detach().double(), expected.detach().double()
    error = (got64 - expected64).abs()
    error = torch.where(got64 == expected64, 0.0, error.nan_to_num(nan=torch.inf, posinf=torch.inf))
    if error.numel() == 0:
        return Difference(name, (), 0.0, 0.0, allowed, 0.0)
    flat = int(error.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), error.shape)) if error.ndim else ()
    share = float((error > allowed).double().mean())
    return Difference(name, index, float(expected64[index]), float(got64[index]), allowed, share)


@dataclass(frozen=True)
class Hypothesis:
    """A known mistake and what it would give on the same input.

    Args:
        cause: the mistake, in the words of the exercise.
        output: computes what the mistake gives; called only when the student's value is wrong.
    """

    cause: str
    output: Callable[[], Tensor]


def diagnose(got: Tensor, expected: Tensor, hypotheses: Iterable[Hypothesis], allowed: float) -> str:
    """Name the mistake whose output is the student's output.

    Args:
        got: the student's wrong tensor.
        expected: the right values.
        hypotheses: known mistakes; the first of the best matches wins.
        allowed: the absolute error that rounding explains.

    Returns:
        The cause, or an empty string if no known mistake gives this output.
    """
    best, cause = 0.0, ""
    got64, expected64 = got.detach().double(), expected.detach().double()
    for hypothesis in [*hypotheses, *_general_mistakes(expected64)]:
        share = _share_explained(got64, expected64, hypothesis.output().double(), allowed)
        if share >= _SHARE_THAT_MATCHES and share > best:
            best, cause = share, hypothesis.cause
    return cause


def _share_explained(got: Tensor, expected: Tensor, mistaken: Tensor, allowed: float) -> float:
    """The share of the student's values that a mistake explains; 0 if the mistake makes no visible difference here."""
    if mistaken.shape != got.shape:
        return 0.0
    visible = ~_agree(mistaken, expected, 8 * allowed)
    if not visible.any():
        return 0.0
    gap = (mistaken - expected).abs()[visible]
    gap = gap[gap.isfinite()]
    # The mistake was computed in float64 and the student's in a coarser type: allow a little of what it changes.
    explained = _agree(got, mistaken, max(4 * allowed, 1e-3 * float(gap.median()) if gap.numel() else 0.0))
    return min(float(explained.double().mean()), float(explained[visible].double().mean()))


def _agree(a: Tensor, b: Tensor, allowed: float) -> Tensor:
    """Where two tensors agree; NaN agrees with NaN, and an infinity with itself."""
    return ((a - b).abs() <= allowed) | (a == b) | (a.isnan() & b.isnan())


def _general_mistakes(expected: Tensor) -> list[Hypothesis]:
    """Mistakes that every exercise shares."""
    nan = torch.full_like(expected, torch.nan)
    return [
        Hypothesis("every value is zero: was the result ever stored?", lambda: torch.zeros_like(expected)),
        Hypothesis(_ALL_NAN, lambda: nan),
    ]


def _overflow(got: Tensor, expected: Tensor) -> str:
    broken = int((~got.isfinite() & expected.isfinite()).sum())
    if not broken:
        return ""
    return (
        f"{broken} of {got.numel()} values are inf or NaN: exp overflows when the running maximum is not subtracted, "
        f"and "
        "a row that sees no key at all gives 0 / 0"
    )


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a tensor of the student's must be.

    Args:
        name: what it is called on the page.
        value: the right values.
        dtype: the dtype it must have.
        allowed: the absolute error that rounding explains.
        mistakes: what known mistakes give.
        explain: reads a cause from the absolute errors, where no known mistake matches; an empty string if it cannot.
        kind: what to call a difference.
    """

    name: str
    value: Tensor
    dtype: torch.dtype
    allowed: float
    mistakes: Iterable[Hypothesis] = ()
    explain: Callable[[Tensor], str] = lambda error: ""
    kind: Kind = Kind.WRONG_VALUE


def judge_tensor(got: Any, expected: Expected) -> Outcome:
    """Judge one tensor: its type, shape and dtype, then its values, then why they are wrong."""
    name, want = expected.name, expected.value
    if not isinstance(got, Tensor):
        return Outcome(name=name, kind=Kind.WRONG_SHAPE, cause=f"{name} must be a tensor, not {type(got).__name__}")
    if got.shape != want.shape:
        cause = f"{name} must have the shape {tuple(want.shape)}, yours has {tuple(got.shape)}"
        return Outcome(name=name, kind=Kind.WRONG_SHAPE, cause=cause)
    if got.dtype != expected.dtype:
        cause = f"{name} must be {_short(expected.dtype)} like the input, yours is {_short(got.dtype)}"
        return Outcome(name=name, kind=Kind.WRONG_SHAPE, cause=cause)
    difference = largest_difference(name, got, want, expected.allowed)
    if not difference.exceeds:
        return Outcome(name=name)
    cause = (
        diagnose(got, want, expected.mistakes, expected.allowed)
        or expected.explain((got.double() - want.double()).abs())
        or _overflow(got, want)
    )
    return Outcome(name=name, kind=expected.kind, difference=str(difference), cause=cause)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
