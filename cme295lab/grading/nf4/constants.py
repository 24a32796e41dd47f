"""Part 4: double quantisation: constants of blocks in 8 bits, their bits counted from what is stored.

How the student stores them is free, as long as it is tensors: their bytes are counted, and what comes back is held
against the constants, with the error that the page's way has. Known mistakes are looked for only where that fails.

Source: T. Dettmers et al., QLoRA, 2023, section 3: 0.5 bits a parameter become 8/64 + 32/(64 * 256) = 0.127.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, diagnose, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.quantizers.rounding import MISTAKES as ROUNDING
from cme295lab.grading.quantizers.rounding import Rounding, codes_of, scale_of, with_overflow
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import refuse_functions

FUNCTIONS = ("compress_constants", "restore_constants", "bits_per_parameter")
_SLACK = 1.02  # of the error: float32 means and scales
_SPARE_BITS = 96  # the mean, and a size or two


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How constants are stored and restored; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        mean: "kept" (subtracted, and added back), "none", "not added" or "subtracted" (on the way back, too).
        groups: "own" scale for each, or "one" for all.
        rounding: of the differences from the mean.
    """

    cause: str = ""
    mean: str = "kept"
    groups: str = "own"
    rounding: Rounding = field(default_factory=Rounding)


RIGHT = Compression()
MISTAKES = (
    Compression(cause="the mean is not subtracted: constants are all positive, and half of the codes stay unused",
                mean="none"),
    Compression(cause="the mean is not added back", mean="not added"),
    Compression(cause="the mean is subtracted on the way back: it is added", mean="subtracted"),
    Compression(cause="there is one scale for all groups: each has its own", groups="one"),
    Compression(cause="there is one scale for all groups, and the mean is not subtracted", groups="one", mean="none"),
    # Half a step more or less, 127.5, stays within the error that is allowed.
    *(Compression(cause=mistake.cause, rounding=mistake)
      for mistake in with_overflow(ROUNDING) if mistake.levels != 127.5),
)  # fmt: skip


def restored(absmax: Tensor, group_size: int, mistake: Compression = RIGHT) -> Tensor:
    """The constants after the way there and back, in float64."""
    x = absmax.double()
    mean = x.mean() if mistake.mean != "none" else torch.zeros((), dtype=torch.float64)
    found = []
    for group in (x - mean).split(len(x) if mistake.groups == "one" else group_size):
        scale = scale_of(group, mistake.rounding)
        found.append(codes_of(group, scale, mistake.rounding) * scale)
    back = torch.cat(found)
    return back + {"not added": 0.0, "subtracted": -float(mean)}.get(mistake.mean, float(mean))


def allowed(absmax: Tensor, group_size: int) -> Tensor:
    """The largest error of each constant that half a step of the page's way explains."""
    x = absmax.double()
    half_steps = [scale_of(group).expand(len(group)) / 2 for group in (x - x.mean()).split(group_size)]
    return _SLACK * torch.cat(half_steps) + 1e-6 * x.max()


def properties(
    *, seed: int = 0, group_size: int = 64, num_groups: int = 4, block_size: int = 64, formula: int = 256
) -> list[Property]:
    """What must hold for the three functions of the page.

    Args:
        seed: seeds the random constants.
        group_size: constants of a group.
        num_groups: full ones; half a group follows.
        block_size: parameters of a block.
        formula: a group size for the formula.
    """
    random = random_constants(seed, group_size, num_groups)
    constant, few = torch.full((group_size + 3,), 2.5), random[: group_size // 3].clone()
    whole = "constants come back, no further off than half a step"
    where = f"{len(random)} constants, group_size={group_size}, seed {seed}"
    observe = Once(partial(observe_both, random, group_size))
    return [
        Property(name=whole, observe=observe, judge=partial(judge_restored, random, group_size), where=where, weight=3),
        Property(name="what is stored has 8 bits a constant, and a float32 a group", observe=observe, weight=2,
                 judge=partial(judge_bits, len(random), group_size, block_size), where=where, needs=(whole,)),
        _there_and_back("fewer constants than a group come back", few, group_size, f"{len(few)} constants"),
        _there_and_back("constants that are all the same come back", constant, group_size,
                        f"{len(constant)} times 2.5"),
        formula_property("bits of a parameter, constants in float32",
                         [_question(block_size, None), _question(32, None)]),
        formula_property("bits of a parameter, constants in 8 bits",
                         [_question(block_size, formula), _question(32, formula // 2)], weight=2),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def random_constants(seed: int, group_size: int, num_groups: int) -> Tensor:
    """Positive constants, whose spread differs from group to group."""
    generator = torch.Generator().manual_seed(seed)
    size = group_size * num_groups + group_size // 2
    x = torch.randn(size, generator=generator).clamp(-2.5, 2.5)
    for number, group in enumerate(x.split(group_size)):
        group *= (0.05, 0.3, 0.1)[number % 3]
        if number % 3 != 1:  # the farthest from the mean lies below it
            group[len(group) // 4] = -1.3 * group.abs().max()
    return x + 2.6


def observe_both(absmax: Tensor, group_size: int, student: tuple[Callable[..., Any], ...]) -> Observation:
    """What the student stores for these constants, and what comes back."""

    def there_and_back(absmax: Tensor, group_size: int) -> tuple[int | None, Any]:
        stored = student[0](absmax=absmax, group_size=group_size)
        return stored_bits(stored), student[1](stored=stored, group_size=group_size)

    return observe_plainly(there_and_back, {"absmax": absmax, "group_size": group_size})


def stored_bits(stored: Any) -> int | None:
    """Bits of tensors and numbers in tuples, lists and dictionaries; None if there is something else."""
    if isinstance(stored, Tensor):
        return stored.numel() * stored.element_size() * 8
    if isinstance(stored, int | float):
        return 32
    parts = list(stored.values()) if isinstance(stored, Mapping) else stored
    if not isinstance(parts, list | tuple):
        return None
    counts = [stored_bits(part) for part in parts]
    return None if None in counts else sum(count for count in counts if count is not None)


def _there_and_back(name: str, absmax: Tensor, group_size: int, where: str) -> Property:
    return Property(
        name=name, observe=partial(observe_both, absmax, group_size), where=f"{where}, group_size={group_size}",
        judge=partial(judge_restored, absmax, group_size),
    )  # fmt: skip


def judge_restored(absmax: Tensor, group_size: int, seen: Observation) -> Outcome:
    """Judge what came back, constant by constant."""
    _, got = seen.outputs["result"]
    limit = allowed(absmax, group_size)
    outcome = judge_tensor(
        got, Expected(name="the result", value=absmax, dtype=torch.float32, allowed=float(limit.max()))
    )
    if outcome.kind is Kind.WRONG_SHAPE:
        return outcome
    error = (got.double() - absmax).abs().nan_to_num(nan=torch.inf)
    if bool((error <= limit).all()):
        return Outcome(name="")
    worst = int((error / limit).argmax())
    difference = (
        f"expected {float(absmax[worst]):.6g}, got {float(got[worst]):.6g} at the result[{worst}]: "
        f"{float(error[worst] / limit[worst]):.3g} times the error that half a step explains"
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=_cause(absmax, group_size, got))


def _cause(absmax: Tensor, group_size: int, got: Tensor) -> str:
    if not bool(got.isfinite().any()):
        return "every value is NaN: where all constants of a group are the mean, 0 / 0 happened"
    right = restored(absmax, group_size)
    found = [Hypothesis(m.cause, partial(restored, absmax, group_size, m)) for m in MISTAKES]
    named = diagnose(got, right, found, allowed=1e-6 * float(absmax.max()))
    if not named and not bool(got.isfinite().all()):
        return "some values are NaN: where all constants of a group are the mean, 0 / 0 happened"
    return named


def judge_bits(count: int, group_size: int, block_size: int, seen: Observation) -> Outcome:
    """Judge how much is stored, for a parameter."""
    bits, _ = seen.outputs["result"]
    if bits is None:
        cause = "store tensors, in a tuple: their bytes are counted"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    groups, parameters = -(-count // group_size), count * block_size
    limit = 8 * count + 32 * groups + _SPARE_BITS
    if bits <= limit:
        return Outcome(name="")
    plain = 32 * count
    difference = (
        f"{bits / parameters:.4f} bits a parameter are stored, {limit / parameters:.4f} are enough "
        f"(without compressing: {plain / parameters:.4f})"
    )
    cause = next((cause for cause, value in _too_many(count, groups) if abs(bits - value) <= _SPARE_BITS), "")
    return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)


def _too_many(count: int, groups: int) -> Iterator[tuple[str, int]]:
    """Causes, and the bits that they store."""
    yield "the codes are float32: make them int8", 32 * count + 32 * groups
    yield "the constants are stored as they are", 32 * count
    yield "the codes are int64: make them int8", 64 * count + 32 * groups
    yield "the codes have 16 bits: make them int8", 16 * count + 32 * groups
    yield "the constants are stored in 16 bits: 8 are enough, with a scale for each group", 16 * count
    yield "each group has two numbers, such as a mean of its own: one mean for all is enough", 8 * count + 64 * groups
    yield "the scales are float64: make them float32", 8 * count + 64 * groups
    yield "there is a scale for each constant: one is for a whole group", 8 * count + 32 * count


def _question(block_size: int, group_size: int | None) -> Question:
    constants = 32 / block_size if group_size is None else 8 / block_size + 32 / (block_size * group_size)
    return Question(
        function="bits_per_parameter", arguments={"block_size": block_size, "group_size": group_size},
        want=4 + constants, mistakes=tuple(_wrong_bits(block_size, group_size)), unit="bits", position=2,
    )  # fmt: skip


def _wrong_bits(block: int, group: int | None) -> Iterator[tuple[str, float]]:
    """Causes, and the numbers that they give."""
    if group is None:
        yield "the codes are missing: they have 4 bits", 32 / block
        yield "a float32 has 32 bits", 4 + 4 / block
        yield "a float32 has 32 bits, not 16", 4 + 16 / block
        yield "a constant is shared by a whole block", 4 + 32
        yield "that is without constants", 4
        return
    first, second = 8 / block, 32 / (block * group)
    yield "the codes are missing: they have 4 bits", first + second
    yield "the float32 constants are counted besides: they are gone, their codes are kept", 4 + 32 / block + second
    yield "the float32 constants are counted besides: they are gone, their codes are kept", (
        4 + 32 / block + first + second
    )
    yield "the scales of the groups are missing", 4 + first
    yield "the codes of the constants are missing: 8 bits a block", 4 + second
    yield "a scale is shared by a group of blocks, not of parameters", 4 + first + 32 / group
    yield "the constants' codes have 8 bits, shared by a block", 4 + 8 + second
    yield "group_size is not used: that is without double quantisation", 4 + 32 / block
    yield "that is without constants", 4
    yield "scales of groups have 32 bits", 4 + first + 8 / (block * group)
    yield "these are bytes: a byte has 8 bits", (4 + first + second) / 8
