"""The course's instruction data: six kinds in chosen shares, three splits that share nothing, no download.

    train             the usual world
    in_distribution   the usual world, families that training never sees: other sums, other functions, other heroes
    shifted           the shifted world: other phrasings, other words and topics, larger numbers

Both evaluation splits are the same for every seed and every size of the training split, so results can be compared. A
family falls to training or to evaluation by a hash of its name (`corpora.split`), never by luck. The splits are
filtered and free of near copies, and a training example that shares its question with an evaluation item or a probe, or
is nearly the same, is left out (`cleaning`).

Random numbers come from `random.Random` with a text as its seed, and nothing depends on `hash()` or on the order of a
set: the same call gives the same data in every process. `InstructionData.fingerprint` says whether it did.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from cme295lab.finetuning.instructions import arithmetic, code, explanations, poems, safety, stories
from cme295lab.finetuning.instructions.cleaning import CleaningReport, clean
from cme295lab.finetuning.instructions.drafts import SYSTEM, World, Writer, one_of, polite
from cme295lab.finetuning.instructions.example import Example, conversation, normalised
from cme295lab.finetuning.instructions.probes import PROBES
from cme295lab.pretraining.corpora.mixing import mixture_weights
from cme295lab.pretraining.corpora.splitting import split

WRITERS: Mapping[str, Writer] = MappingProxyType(
    {
        "story": stories.write,
        "poem": poems.write,
        "arithmetic": arithmetic.write,
        "code": code.write,
        "explanation": explanations.write,
        "safety": safety.write,
    }
)
KINDS = tuple(WRITERS)
MIXTURE: Mapping[str, float] = MappingProxyType(
    {"story": 0.2, "poem": 0.15, "arithmetic": 0.2, "code": 0.15, "explanation": 0.15, "safety": 0.15}
)
HELD_OUT_SHARE = 0.1  # of the families of the usual world
SYSTEM_SHARE = 0.1  # of the conversations that begin with a system message
MOST_ROUNDS = 5  # of drafting for a kind, each with twice as many drafts, before there is said to be no more


@dataclass(frozen=True, kw_only=True)
class InstructionData:
    """Conversations to train on and two sets to evaluate on.

    Attributes:
        train: in random order, the kinds mixed.
        in_distribution: of the same phrasings and words, other families.
        shifted: other phrasings, words and topics, larger numbers.
        reports: what was left out of the training examples, by kind.
    """

    train: tuple[Example, ...]
    in_distribution: tuple[Example, ...]
    shifted: tuple[Example, ...]
    reports: Mapping[str, CleaningReport]

    @property
    def fingerprint(self) -> str:
        """A number for all splits, in their order: equal if and only if the data is."""
        digest = hashlib.sha256()
        for examples in (self.train, self.in_distribution, self.shifted):
            digest.update(f"[{len(examples)}]".encode())
            for example in examples:
                parts = [example.kind, *(f"{message.role}\n{message.content}" for message in example.messages)]
                digest.update(hashlib.sha256("\0".join(parts).encode()).digest())
        return digest.hexdigest()[:16]

    def __str__(self) -> str:
        counts = [Counter(e.kind for e in part) for part in (self.train, self.in_distribution, self.shifted)]
        lines = [f"{'kind':<12} {'train':>7} {'in distribution':>16} {'shifted':>8}"]
        lines += [f"{kind:<12} {counts[0][kind]:>7,} {counts[1][kind]:>16,} {counts[2][kind]:>8,}" for kind in KINDS]
        return "\n".join([*lines, f"fingerprint {self.fingerprint}"])


def instruction_data(
    *, num_examples: int = 4000, num_held_out: int = 300, seed: int = 0, mixture: Mapping[str, float] = MIXTURE
) -> InstructionData:
    """Generate instruction data.

    Args:
        num_examples: to train on.
        num_held_out: in each of the two evaluation splits; they have the kinds of the default mixture.
        seed: of the training examples; another seed, other examples, the same evaluation.
        mixture: kind -> weight of the training examples; a kind with weight 0, or none, is left out.

    Returns:
        The three splits: the same for the same arguments.

    Raises:
        ValueError: if a number is out of range, a kind is unknown, or so many different examples of a kind cannot be
            found.
    """
    _check(num_examples, num_held_out, mixture)
    held_out = shares_of(num_held_out, MIXTURE)
    in_distribution, shifted = [], []
    train: list[Example] = []
    reports: dict[str, CleaningReport] = {}
    for kind, number in shares_of(num_examples, mixture).items():
        shifted_items = _shifted(kind, held_out[kind])
        usual_items = _in_distribution(kind, held_out[kind], shifted_items)
        in_distribution += usual_items
        shifted += shifted_items
        if number:
            evaluation = [*PROBES, *shifted_items, *usual_items]
            examples, reports[kind] = _enough(kind, "usual", f"train {seed}", number, evaluation, "train")
            train += examples
    random.Random(f"order {seed}").shuffle(train)
    return InstructionData(
        train=tuple(train), in_distribution=tuple(in_distribution), shifted=tuple(shifted), reports=reports
    )


def shares_of(number: int, mixture: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of each kind with the given sum, as near to the mixture as can be.

    Args:
        number: of examples.
        mixture: kind -> weight; kinds that are missing have weight 0.

    Returns:
        A number for each kind, in the order of `KINDS`.
    """
    weights = mixture_weights(mixture)
    exact = {kind: number * weights.get(kind, 0.0) for kind in KINDS}
    counts = {kind: int(value) for kind, value in exact.items()}
    largest_rest_first = sorted(KINDS, key=lambda kind: (counts[kind] - exact[kind], KINDS.index(kind)))
    for kind in largest_rest_first[: number - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _check(num_examples: int, num_held_out: int, mixture: Mapping[str, float]) -> None:
    for name, value, least in (("num_examples", num_examples, 1), ("num_held_out", num_held_out, len(KINDS))):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if unknown := sorted(set(mixture) - set(KINDS)):
        raise ValueError(f"mixture has unknown kinds {', '.join(unknown)}; there are {', '.join(KINDS)}")


def _shifted(kind: str, number: int) -> list[Example]:
    return _enough(kind, "shifted", "evaluation", number, PROBES, "both")[0]


def _in_distribution(kind: str, number: int, shifted: Sequence[Example]) -> list[Example]:
    return _enough(kind, "usual", "evaluation", number, [*PROBES, *shifted], "evaluation")[0]


def _enough(
    kind: str, world: World, seed: str, number: int, evaluation: Sequence[Example], side: str
) -> tuple[list[Example], CleaningReport]:
    """Draft, leave out what `clean` leaves out, and draft more until there are enough."""
    drafts = _drafts(kind, world, seed, side)
    candidates: list[Example] = []
    num_candidates = number + number // 2 + 20
    for _ in range(MOST_ROUNDS):
        candidates += itertools.islice(drafts, num_candidates - len(candidates))
        kept, report = clean(candidates, evaluation=evaluation)
        if len(kept) >= number:
            return kept[:number], report
        if len(candidates) < num_candidates:
            break  # there is nothing new to draft
        num_candidates *= 2
    raise ValueError(
        f"so many examples of kind {kind!r} cannot be found: of {len(candidates):,} drafts, {len(kept):,} are left and "
        f"{number:,} are needed. Ask for fewer examples, or give the kind less weight"
    )


def _drafts(kind: str, world: World, seed: str, side: str) -> Iterator[Example]:
    """Different examples of the side, until a thousand drafts in a row bring nothing new."""
    rng = random.Random(f"{kind} {world} {seed}")
    seen: set[str] = set()
    in_vain = 0
    while in_vain < 1000:
        example = _drafted(rng, kind, world)
        text = normalised(example.text)
        in_vain += 1
        if text not in seen and side in ("both", side_of(example)):
            seen.add(text)
            in_vain = 0
            yield example


def side_of(example: Example) -> str:
    """ "train" or "evaluation", whichever side of the split the example's family falls on."""
    train, _ = split([example.as_document("")], validation_share=HELD_OUT_SHARE)
    return "train" if train else "evaluation"


def _drafted(rng: random.Random, kind: str, world: World) -> Example:
    draft = WRITERS[kind](rng, world)
    system = one_of(rng, world, SYSTEM) if rng.random() < SYSTEM_SHARE else ""
    question, *rest = draft.turns
    messages = conversation(polite(rng, world, question), *rest, system=system)
    return Example(messages=messages, kind=kind, family=draft.family)
