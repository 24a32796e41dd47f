"""Part 1: a column sum whose loads and stores use whole sectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.kernel_clinic import launches
from cme295lab.grading.kernel_clinic.launches import Student
from cme295lab.grading.observe import MemoryAccess, Observation
from cme295lab.grading.result import Kind, Outcome
from cme295lab.units import format_bytes

SECTOR_BYTES = 32
MIN_EFFICIENCY = 0.9
_TRAFFIC_SLACK = 1.02
_LARGE, _SMALL = 30_000.0, 0.3125  # float16 has steps of 16 next to the first; float32 adds both exactly
_VALUES = "db is the sum of dy over the tokens"
_LOADS = "the loads of dy use whole sectors"
_ONCE = "dy is read once"
_PARAMETERS = ("dy_ptr", "db_ptr", "num_tokens", "num_features")

refuse = partial(launches.refuse, parameters=_PARAMETERS)


@dataclass(frozen=True)
class Case:
    """One gradient.

    Args:
        dy: (tokens, features), float16 or float32.
        text: the input in words.
        dtype: the one whose rounding is forgiven.
    """

    dy: Tensor
    text: str
    dtype: torch.dtype

    @property
    def expected(self) -> Tensor:
        """The sum over the tokens, float64."""
        return self.dy.double().sum(0)


def properties(*, seed: int = 0, tokens: int = 512, features: int = 512) -> list[Property]:
    """What must hold for `(bias_grad_kernel, bias_grad_grid)`.

    Args:
        seed: seeds the random inputs.
        tokens: rows of dy.
        features: columns of dy, a multiple of 16, so that every row begins with a sector.
    """
    case = random_case(seed, tokens, features, torch.float16)
    ragged = random_case(seed, tokens - 27, features // 2 + 13, torch.float32)
    return [
        # The sick kernel has it too: it is a condition of all others and earns nothing by itself.
        _property(_VALUES, case, judge_values, weight=0.0),
        _property(_LOADS, case, judge_loads, weight=2.0, needs=(_VALUES,)),
        _property("the stores of db use whole sectors", case, judge_stores, needs=(_VALUES,)),
        _property(_ONCE, case, judge_traffic, weight=2.0, needs=(_VALUES, _LOADS)),
        _property("sums are made in float32", accumulation_case(tokens), judge_exact, needs=(_LOADS, _ONCE)),
        _property("sizes that the blocks do not divide work", ragged, judge_values, needs=(_LOADS, _ONCE)),
    ]


def random_case(seed: int, tokens: int, features: int, dtype: torch.dtype) -> Case:
    """Random normal gradients."""
    dy = torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return Case(dy, f"dy of shape {(tokens, features)}, {str(dtype).removeprefix('torch.')}, seed {seed}", dtype)


def accumulation_case(tokens: int) -> Case:
    """A float16 input whose sum needs float32: one large value, and many that are lost next to it."""
    dy = torch.full((tokens, 64), _SMALL)
    dy[0] = _LARGE
    text = f"dy of shape {(tokens, 64)}, float16, one value of {_LARGE:.0f} and many of {_SMALL}"
    return Case(dy.half(), text, torch.float32)


def _property(
    name: str,
    case: Case,
    judge: Callable[[Case, Observation], Outcome],
    *,
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    def observe(student: Student) -> Observation:
        tensors = {"dy": case.dy, "db": torch.zeros(case.dy.shape[1])}
        return launches.observe_launch(student, tensors, tuple(case.dy.shape), output="db")

    return Property(name=name, observe=observe, judge=partial(judge, case), where=case.text, weight=weight, needs=needs)


def judge_values(case: Case, seen: Observation) -> Outcome:
    """Judge the sums."""
    if seen.launch is not None and all(access.kind == "load" for access in _accesses(seen, "db")):
        cause = "nothing was written to db: the kernel must store its sums with tl.store"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    tokens = case.dy.shape[0]
    expected = Expected(
        name="db",
        value=case.expected,
        dtype=torch.float32,
        allowed=allowed_error(case.dtype, max(tokens**0.5, float(case.expected.abs().max()))),
        mistakes=_mistakes(case.dy.double()),
        explain=_where_off,
    )
    return judge_tensor(seen.outputs["db"], expected)


def _mistakes(dy: Tensor) -> list[Hypothesis]:
    """What known mistakes give."""
    tokens = dy.shape[0]
    total = dy.sum(0)
    known = [
        Hypothesis("this is the mean over the tokens, not the sum", lambda: total / tokens),
        Hypothesis("every token is counted twice", lambda: 2 * total),
        Hypothesis("only the first token is counted: does the loop walk over all of them?", lambda: dy[0]),
        Hypothesis("only the last token is counted: add to the accumulator, do not replace it", lambda: dy[-1]),
    ]
    for block in (16, 32, 64, 128, 256, 512, 1024):
        first, whole, last = min(block, tokens), tokens // block * block, (tokens - 1) // block * block
        for cause, counted in (
            ("only the first block of tokens is counted: loop over all", dy[:first]),
            ("the last, incomplete block of tokens is left out", dy[:whole]),
            ("only the last block of tokens is counted: add to the accumulator, do not replace it", dy[last:]),
        ):
            if 0 < len(counted) < tokens:
                known.append(Hypothesis(cause, partial(torch.sum, counted, 0)))
    return known


def _where_off(error: Tensor) -> str:
    """A cause read from which features are wrong."""
    off = (~(error <= 1e-3 * float(error.nan_to_num().max()))).nonzero().flatten().tolist()
    size = error.numel()
    if off and off == list(range(off[0], size)):
        if off[0] > size // 2:
            return (
                "only the last features are wrong: the blocks do not divide their number, so round the number of "
                "programs up"
            )
        if off[0] > 0:
            return f"only the first {off[0]} features are right: does every program begin with its own?"
    return ""


def judge_loads(case: Case, seen: Observation) -> Outcome:
    """Judge the share of the sectors that loads of dy make use of."""
    return _judge_sectors(case, seen, "dy", [a for a in _accesses(seen, "dy") if a.kind == "load"])


def judge_stores(case: Case, seen: Observation) -> Outcome:
    """Judge the share of the sectors that stores (or atomics) to db make use of."""
    return _judge_sectors(case, seen, "db", [a for a in _accesses(seen, "db") if a.kind != "load"])


def _accesses(seen: Observation, tensor: str) -> list[MemoryAccess]:
    return [access for access in seen.launch.accesses if access.tensor == tensor] if seen.launch is not None else []


def _judge_sectors(case: Case, seen: Observation, tensor: str, accesses: list[MemoryAccess]) -> Outcome:
    requested, moved = sum(a.requested_bytes for a in accesses), sum(a.moved_bytes for a in accesses)
    if not moved or requested >= MIN_EFFICIENCY * moved:
        return Outcome(name="")
    worst = min(accesses, key=lambda a: a.efficiency)
    element_bytes = case.dy.element_size() if tensor == "dy" else 4
    used = worst.efficiency * SECTOR_BYTES / element_bytes
    difference = (
        f"{format_bytes(requested)} of {tensor} were asked for, {format_bytes(moved)} moved: "
        f"{requested / moved:.0%} is used\nat {worst.line}"
    )
    if used < 1.5:
        cause = (
            f"each lane sits in a sector of its own, of which it uses {element_bytes} of {SECTOR_BYTES} bytes: "
            "neighbouring lanes must touch neighbouring elements, so let them run along the features"
        )
        if tensor == "db":
            cause = f"a program writes one number, {element_bytes} of {SECTOR_BYTES} bytes: give it a block of features"
    else:
        cause = (
            f"of each sector of {SECTOR_BYTES} bytes about {used:.0f} elements of {element_bytes} bytes are used: a "
            f"block must cover at least {SECTOR_BYTES // element_bytes} neighbouring features, without gaps"
        )
    return Outcome(name="", kind=Kind.TOO_MUCH_TRAFFIC, difference=difference, cause=cause)


def judge_traffic(case: Case, seen: Observation) -> Outcome:
    """Judge how often dy is read."""
    requested = sum(access.requested_bytes for access in _accesses(seen, "dy"))
    needed = case.dy.numel() * case.dy.element_size()
    if requested <= _TRAFFIC_SLACK * needed:
        return Outcome(name="")
    times = requested / needed
    difference = f"{format_bytes(requested)} of dy were asked for, {format_bytes(needed)} suffice ({times:.3g} times)"
    programs = seen.launch.num_programs if seen.launch is not None else 0
    cause = "elements of dy are loaded more often than once"
    if programs == case.dy.shape[1]:
        cause = "the grid still has a program per feature, and each of them reads a whole block of features"
    elif abs(times - programs) < 0.05 * programs:
        cause = "every program reads all of dy: each should read its own part"
    return Outcome(name="", kind=Kind.TOO_MUCH_TRAFFIC, difference=difference, cause=cause)


def judge_exact(case: Case, seen: Observation) -> Outcome:
    """Judge a sum that float16 cannot hold."""
    outcome = judge_values(case, seen)
    if outcome.kind is not Kind.WRONG_VALUE:
        return outcome
    cause = (
        f"something is summed in float16, where {_LARGE:.0f} + {_SMALL} is {_LARGE:.0f}: convert with "
        "dy.to(tl.float32) before tl.sum, and keep the accumulator in float32"
    )
    return replace(outcome, kind=Kind.NOT_EXACT, cause=cause)
