"""Two small tasks of classification, generated: is a message spam, and is a remark positive?

A text never says which task is meant, so it is for the adapter to know. Three splits, each balanced: `train` and
`held_out` are of the usual world and share no family (a pattern with its first two words filled in), `shifted` has
other patterns and other words. Both evaluation splits are the same for every seed.

Source of the idea: Hu et al. 2022, "LoRA", §4.2: one base, and for each task an adapter that can be switched.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cme295lab.finetuning.attached import check_int
from cme295lab.finetuning.chat.messages import Message
from cme295lab.finetuning.instructions.drafts import World, fill
from cme295lab.finetuning.instructions.example import conversation, normalised
from cme295lab.finetuning.tasks.messages import OPENINGS, PATTERNS, WORDS

TASKS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"spam": ("spam", "normal"), "sentiment": ("positive", "negative")}
)
LABELS = tuple(label for labels in TASKS.values() for label in labels)
HELD_OUT_SHARE = 0.2  # of the families
_TRIES = 200  # drafts for one new text, before there is said to be no more


@dataclass(frozen=True)
class TaskExample:
    """A text and what it is.

    Attributes:
        text: what the user says.
        label: one word, which the assistant answers.
    """

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """A task's examples.

    Attributes:
        task: "spam" or "sentiment".
        labels: the two answers.
        train: to learn from.
        held_out: same patterns and words, families that training never sees.
        shifted: other patterns and words.
    """

    task: str
    labels: tuple[str, str]
    train: tuple[TaskExample, ...]
    held_out: tuple[TaskExample, ...]
    shifted: tuple[TaskExample, ...]


def task_data(task: str, *, num_examples: int = 1000, num_held_out: int = 100, seed: int = 0) -> TaskData:
    """Generate a task's examples.

    Args:
        task: "spam" or "sentiment".
        num_examples: to train on.
        num_held_out: in each of the two evaluation splits.
        seed: of the training examples; the evaluation does not depend on it.

    Returns:
        Three splits of distinct texts, each half and half (an odd number has one more of the first label).

    Raises:
        ValueError: if the task is unknown, a number is below 2, or so many different texts cannot be found.
    """
    if task not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    check_int("num_examples", num_examples, 2)
    check_int("num_held_out", num_held_out, 2)
    return TaskData(
        task=task,
        labels=TASKS[task],
        train=_draw(task, "usual", False, num_examples, f"{task} train {seed}"),
        held_out=_draw(task, "usual", True, num_held_out, f"{task} held out"),
        shifted=_draw(task, "shifted", None, num_held_out, f"{task} shifted"),
    )


def to_messages(example: TaskExample) -> tuple[Message, ...]:
    """The example as a conversation: the text, with no word on the task, and the label as the answer."""
    return conversation(example.text, example.label)


def _draw(task: str, world: World, held_out: bool | None, number: int, seed: str) -> tuple[TaskExample, ...]:
    """Distinct texts of held-out families, of the others, or of all (None); labels in turn, then mixed."""
    rng = random.Random(seed)
    seen: set[str] = set()
    examples = []
    for place in range(number):
        label = TASKS[task][place % 2]
        for _ in range(_TRIES):
            text, family = _write(rng, world, label)
            fits = held_out is None or _is_held_out(family) == held_out
            if fits and normalised(text) not in seen:
                break
        else:
            raise ValueError(f"cannot find {number} different texts of {task!r}: {place} were found; ask for fewer")
        seen.add(normalised(text))
        examples.append(TaskExample(text, label))
    rng.shuffle(examples)
    return tuple(examples)


def _is_held_out(family: str) -> bool:
    """By a hash of the family's name, and so the same in every process."""
    return int.from_bytes(hashlib.sha256(family.encode()).digest()[:8], "big") / 2**64 < HELD_OUT_SHARE


def _write(rng: random.Random, world: World, label: str) -> tuple[str, str]:
    """A text, and the family that it belongs to; a slot has one word, however often it occurs."""
    pattern = rng.choice(PATTERNS[label][world])
    words = {slot: rng.choice(choices) for slot, choices in WORDS[world].items()}
    slots = [slot for slot in words if f"{{{slot}}}" in pattern]
    slots.sort(key=lambda slot: pattern.index(f"{{{slot}}}"))
    family = "#".join([pattern, *(words[slot] for slot in slots[:2])])
    return rng.choice(OPENINGS[world]) + fill(rng, pattern, words), family
