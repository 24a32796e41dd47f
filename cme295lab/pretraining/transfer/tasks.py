"""Labelled texts for two tasks, generated: is a mail spam, does a review like what it is about?

    >>> for example in make_examples("sentiment", 2, seed=3):
    ...     print(example.label, example.text)
    0 The size of the school is strange, the worst so far.
    1 I saw the cake by Wednesday. It keeps its promises and the name is reliable.

The texts are made from patterns and word lists (`sentences`), drawn from a seed: the same call gives the same texts on
every machine. Half of them have each label. Texts for training and for testing come from different seeds and patterns
alike; `make_task` sees to it that no text is in both.

They are no real mails and no real reviews. What a comparison on them shows is how well a few labels carry over to words
that were not among them, and not how good a spam filter is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cme295lab.pretraining.flops.quantities import whole
from cme295lab.pretraining.transfer import sentences

_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text and its label.

    Attributes:
        text: a sentence or a few.
        label: the number of its class, as it is given to whoever learns.
        true_label: the number of its class; another one where noise has changed the label.
    """

    text: str
    label: int
    true_label: int


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A kind of task.

    Attributes:
        name: of the task.
        classes: names of the classes 0 and 1.
        patterns: of each class.
        lists: what fills the slots of each class.
    """

    name: str
    classes: tuple[str, str]
    patterns: tuple[tuple[str, ...], tuple[str, ...]]
    lists: tuple[sentences.Lists, sentences.Lists]


TASKS: Mapping[str, TaskKind] = MappingProxyType(
    {
        "spam": TaskKind(
            name="spam",
            classes=("ham", "spam"),
            patterns=(sentences.MAIL_PATTERNS, sentences.MAIL_PATTERNS),
            lists=({**sentences.SHARED, **sentences.HAM}, {**sentences.SHARED, **sentences.SPAM}),
        ),
        "sentiment": TaskKind(
            name="sentiment",
            classes=("negative", "positive"),
            patterns=(sentences.BAD_PATTERNS, sentences.GOOD_PATTERNS),
            lists=({**sentences.SHARED, **sentences.REVIEWED, **sentences.BAD, **sentences.GOOD},) * 2,
        ),
    }
)
"""The tasks, by name."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Labelled texts to learn from, and others to be tested on.

    Attributes:
        kind: what it is about.
        train: labels may be noisy.
        test: labels are right.
    """

    kind: TaskKind
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def make_task(name: str, *, num_labels: int, num_test: int = 400, seed: int = 0, label_noise: float = 0.0) -> Task:
    """Texts to learn from and texts to be tested on, none of them in both.

    Args:
        name: "spam" or "sentiment".
        num_labels: texts to learn from, half of each class (one more of class 0 if odd).
        num_test: texts to be tested on. They are the same for all sizes and seeds.
        seed: of the texts to learn from.
        label_noise: share of the labels to learn from that are turned round, from 0 to below 0.5.

    Raises:
        TypeError, ValueError: an unknown task, a number that is no positive integer, a share out of range.
    """
    test = make_examples(name, num_test, seed=-1)
    taken = {example.text for example in test}
    train = make_examples(name, num_labels, seed=whole("seed", seed, 0), label_noise=label_noise, without=taken)
    return Task(kind=TASKS[name], train=tuple(train), test=tuple(test))


def make_examples(
    name: str, number: int, *, seed: int, label_noise: float = 0.0, without: set[str] | frozenset[str] = frozenset()
) -> list[Example]:
    """So many different texts with labels, in random order.

    Args:
        name: "spam" or "sentiment".
        number: how many, half of each class.
        seed: of the random numbers.
        label_noise: share of the labels that are turned round.
        without: texts that must not be among them.

    Raises:
        TypeError, ValueError: as `make_task` does.
    """
    if name not in TASKS:
        raise ValueError(f"name must be one of {', '.join(TASKS)}, got {name!r}")
    if not 0 <= label_noise < 0.5:
        raise ValueError(f"label_noise must be from 0 to below 0.5, where labels say nothing, got {label_noise}")
    kind, source = TASKS[name], random.Random(f"{name} {seed}")
    seen, examples = set(without), []
    for index in range(whole("number", number)):
        label = index % 2
        text = _new_text(kind, label, source, seen)
        seen.add(text)
        examples.append(Example(text=text, label=label, true_label=label))
    for index in source.sample(range(number), round(label_noise * number)):
        label = examples[index].true_label
        examples[index] = Example(text=examples[index].text, label=1 - label, true_label=label)
    source.shuffle(examples)
    return examples


def _new_text(kind: TaskKind, label: int, source: random.Random, seen: set[str]) -> str:
    for _ in range(10_000):
        text = _text(kind, label, source)
        if text not in seen:
            return text
    raise ValueError(f"number must be smaller: there are hardly more than {len(seen):,} texts of {kind.name!r}")


def _text(kind: TaskKind, label: int, source: random.Random) -> str:
    text = source.choice(kind.patterns[label])
    while slot := _SLOT.search(text):
        text = text[: slot.start()] + source.choice(kind.lists[label][slot[1]]) + text[slot.end() :]
    parts = (part[:1].upper() + part[1:] for part in re.split(r"(?<=[.?!] )", text))
    return "".join(parts)
