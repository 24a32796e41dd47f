"""Part 3: several examples in one row, none of which sees another, and each of which begins at position 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

PARTS = ("inputs", "labels", "positions", "mask")
PADDING = 3
Example = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A mask that sees too much or too little; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        blocks: whether documents are kept apart.
        causal: "yes", "no", "strict" (a token does not see itself) or "future".
        shift: how many places too late a document ends.
        inverted: whether True means that a key is hidden.
    """

    cause: str = ""
    blocks: bool = True
    causal: str = "yes"
    shift: int = 0
    inverted: bool = False


RIGHT = Mistake()
MISTAKES = (
    Mistake(cause="the examples see each other: a token may see only those of its own", blocks=False),
    Mistake(cause="the blocks are not causal: a token may see the past of its example, not its future", causal="no"),
    Mistake(cause="everything sees everything: a token may see only the past, and only of its own example",
            blocks=False, causal="no"),
    Mistake(cause="a token does not see itself: the diagonal belongs to the past", causal="strict"),
    Mistake(cause="the mask is transposed: row i is what place i sees, so its past", causal="future"),
    Mistake(cause="the mask is the other way round: True means that a place is seen", inverted=True),
    Mistake(cause="the mask is the other way round, and not causal: True means that a place is seen", inverted=True,
            causal="no"),
    Mistake(cause="the blocks end one place too late: the next example's first token belongs to that one", shift=1),
    Mistake(cause="the blocks end one place too early: an example's last token belongs to it", shift=-1),
)  # fmt: skip


def properties(*, seed: int = 0, lengths: Sequence[int] = (4, 2, 5), spare: int = 3) -> list[Property]:
    """What must hold for `pack(examples, length, padding) -> (inputs, labels, positions, mask)`.

    Args:
        seed: of the tokens.
        lengths: of the examples.
        spare: places of the row that stay empty.
    """
    examples = random_examples(seed, lengths)
    total = sum(lengths)
    filled = partial(_Row, examples, total + spare)
    observe = Once(filled().observe)
    where = f"examples of {', '.join(map(str, lengths))} tokens, length={total + spare}"
    words, places = "tokens and labels lie one after the other", "positions begin again in every example"
    mask = "a token sees the past of its own example, and nothing else"
    full = _Row(random_examples(seed + 1, (1, *lengths, 1)), total + 2)
    alone = _Row(random_examples(seed + 2, lengths[:1]), lengths[0] + spare)
    return [
        Property(name=words, observe=observe, judge=filled().judge_tokens, where=where),
        Property(name=places, observe=observe, judge=filled().judge_positions, where=where, weight=2),
        Property(name=mask, observe=observe, judge=filled().judge_mask, where=where, weight=3),
        Property(name="rows of padding see something", observe=observe, judge=filled().judge_padding, where=where,
                 needs=(mask,)),
        Property(name="a row may be full, and an example a single token", observe=full.observe, judge=full.judge,
                 where=f"examples of 1, {', '.join(map(str, lengths))} and 1 tokens, length={total + 2}",
                 needs=(places, mask)),
        Property(name="one example alone is packed, too", observe=alone.observe, judge=alone.judge,
                 where=f"{lengths[0]} tokens, length={lengths[0] + spare}", needs=(places, mask)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "pack")


def random_examples(seed: int, lengths: Sequence[int]) -> tuple[Example, ...]:
    """Inputs and labels, some of which are -100."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for length in lengths:
        inputs, labels = torch.randint(10, 60, (2, length), generator=generator)
        labels[: length // 3] = -100
        found.append((inputs, labels))
    return tuple(found)


def mask_with(mistake: Mistake, lengths: Sequence[int], length: int) -> Tensor:
    """What sees what, place by place; the padding is a document of its own."""
    ends = [sum(lengths[: number + 1]) + mistake.shift for number in range(len(lengths))]
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            past = {"yes": key <= query, "no": True, "strict": key < query, "future": key >= query}[mistake.causal]
            together = sum(end <= query for end in ends) == sum(end <= key for end in ends)
            mask[query, key] = past and (together or not mistake.blocks)
    return ~mask if mistake.inverted else mask


@dataclass(frozen=True)
class _Row:
    """Examples, and the length of the row that they go into."""

    examples: tuple[Example, ...]
    length: int

    @property
    def lengths(self) -> list[int]:
        return [len(inputs) for inputs, _ in self.examples]

    @property
    def used(self) -> int:
        return sum(self.lengths)

    def observe(self, student: Any) -> Observation:
        """Pack copies of the examples."""
        copies = [(inputs.clone(), labels.clone()) for inputs, labels in self.examples]
        return observe_plainly(student, {"examples": copies, "length": self.length, "padding": PADDING})

    def judge(self, seen: Observation) -> Outcome:
        """Judge all four parts."""
        judges = (self.judge_tokens, self.judge_positions, self.judge_mask, self.judge_padding)
        outcomes = (judge(seen) for judge in judges)
        return next((outcome for outcome in outcomes if not outcome.passed), Outcome(name=""))

    def _parts(self, seen: Observation) -> dict[str, Any] | Outcome:
        got = seen.outputs["result"]
        if isinstance(got, tuple | list) and len(got) == len(PARTS):
            return dict(zip(PARTS, got, strict=True))
        cause = f"return ({', '.join(PARTS)}), not {type(got).__name__}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)

    def judge_tokens(self, seen: Observation) -> Outcome:
        """Judge inputs and labels, padding included."""
        parts = self._parts(seen)
        if isinstance(parts, Outcome):
            return parts
        for name, number, fill in (("inputs", 0, PADDING), ("labels", 1, -100)):
            value = torch.cat([example[number] for example in self.examples])
            fills = torch.full((self.length - len(value),), fill)
            mistakes = [Hypothesis(cause, partial(torch.cat, tensors)) for cause, tensors in self._fills(value, name)]
            mistakes.append(Hypothesis("these are the inputs: labels are the second tensor of each example",
                                       lambda: torch.cat([*(inputs for inputs, _ in self.examples), fills])))  # noqa: B023
            mistakes.append(Hypothesis("labels are shifted once more: those of the examples are shifted already",
                                       lambda: torch.cat([value[1:], torch.full((1,), -100), fills])))  # noqa: B023
            outcome = judge_tensor(
                parts[name], Expected(name=name, value=torch.cat((value, fills)), dtype=torch.int64, allowed=0.0,
                                      mistakes=mistakes)
            )  # fmt: skip
            if not outcome.passed:
                return outcome
        return Outcome(name="")

    def _fills(self, value: Tensor, name: str) -> list[tuple[str, tuple[Tensor, Tensor]]]:
        empty = self.length - len(value)
        if name == "inputs":
            return [
                (f"the row is filled with {fill}: fill inputs with `padding`", (value, torch.full((empty,), fill)))
                for fill in (0, -100)
            ]
        return [
            (f"the padding has the label {fill}: it would be learned. Fill labels with -100",
             (value, torch.full((empty,), fill))) for fill in (0, PADDING, -1)
        ] + [("the padding comes first: it follows the examples", (torch.full((empty,), -100), value))]  # fmt: skip

    def judge_positions(self, seen: Observation) -> Outcome:
        """Judge the positions of the examples; those of the padding are free."""
        parts = self._parts(seen)
        if isinstance(parts, Outcome):
            return parts
        got, used = parts["positions"], self.used
        shaped = judge_tensor(
            got, Expected(name="positions", value=torch.zeros(self.length), dtype=torch.int64, allowed=torch.inf)
        )
        if not shaped.passed:
            return shaped
        value = torch.cat([torch.arange(count) for count in self.lengths])
        ends = torch.tensor(self.lengths).cumsum(0)
        mistakes = [
            Hypothesis("positions run on over the examples: each begins at 0 again", lambda: torch.arange(used)),
            Hypothesis("positions run on over the examples, from 1: each begins at 0", lambda: 1 + torch.arange(used)),
            Hypothesis("positions begin at 1: the first is 0", lambda: value + 1),
            Hypothesis("positions run backward", lambda: torch.cat([torch.arange(n).flip(0) for n in self.lengths])),
            Hypothesis("these are the numbers of the examples: positions count tokens",
                       lambda: torch.bucketize(torch.arange(used), ends, right=True)),
            Hypothesis("positions begin again one place too late",
                       lambda: torch.cat((value[:1], 1 + value[:-1]))),
        ]  # fmt: skip
        return judge_tensor(
            got[:used], Expected(name="positions", value=value, dtype=torch.int64, allowed=0.0, mistakes=mistakes)
        )

    def judge_mask(self, seen: Observation) -> Outcome:
        """Judge the rows of the examples."""
        parts = self._parts(seen)
        if isinstance(parts, Outcome):
            return parts
        got, used = parts["mask"], self.used
        right = partial(mask_with, lengths=self.lengths, length=self.length)
        if isinstance(got, Tensor) and got.shape == (self.length, self.length) and got.dtype != torch.bool:
            found = str(got.dtype).removeprefix("torch.")
            cause = f"the mask must be bool, True where a place is seen, yours is {found}"
            return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
        shaped = judge_tensor(
            got, Expected(name="mask", value=right(RIGHT).double(), dtype=torch.bool, allowed=torch.inf)
        )
        if not shaped.passed:
            return shaped
        mistakes = [Hypothesis(m.cause, partial(self._rows, m)) for m in MISTAKES]
        mistakes.append(Hypothesis("the mask hides nothing of the padding: no token may see it", self._with_padding))
        return judge_tensor(
            got[:used], Expected(name="mask", value=right(RIGHT)[:used], dtype=torch.bool, allowed=0.0,
                                 mistakes=mistakes)
        )  # fmt: skip

    def _rows(self, mistake: Mistake) -> Tensor:
        return mask_with(mistake, self.lengths, self.length)[: self.used].double()

    def _with_padding(self) -> Tensor:
        rows = self._rows(RIGHT)
        rows[:, self.used :] = 1.0
        return rows

    def judge_padding(self, seen: Observation) -> Outcome:
        """Judge whether a softmax over each row of padding is one."""
        parts = self._parts(seen)
        if isinstance(parts, Outcome):
            return parts
        if bool(parts["mask"][self.used :].any(dim=1).all()):
            return Outcome(name="")
        cause = "a row of padding sees nothing: its softmax is 0 / 0, and NaN spreads. Let it see itself"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
