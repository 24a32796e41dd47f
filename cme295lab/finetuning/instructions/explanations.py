"""Explanations: what something is, how it works, an example, the difference between two things.

Answers are put together from the sentences of `knowledge`. What a question asks for stands in the answer: a question
for an example gets one, a comparison names both. A second question asks for what the first answer left out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from cme295lab.finetuning.instructions.drafts import Draft, World, one_of
from cme295lab.finetuning.instructions.knowledge import TOPICS, Topic

Parts = tuple[str, ...]

QUESTIONS: Mapping[World, Mapping[Parts, tuple[str, ...]]] = {
    "usual": {
        ("what",): ("What is {name}?", "What do people mean by {name}?", "Say in one sentence what {name} is."),
        ("what", "how"): (
            "How does {name} work?", "Can you explain {name}?", "Explain {name} to a child.", "Please explain {name}.",
        ),
        ("what", "example"): (
            "What is {name}? Give an example.", "Tell me what {name} is, with an example.",
            "Explain {name} with an example.",
        ),
        ("what", "how", "example"): (
            "Tell me all about {name}.", "I do not understand {name}. Can you help?",
            "Teach me something about {name}.",
            "My class learns about {name}. What should I know?",
        ),
        ("how",): ("What is behind {name}?", "What should one know about {name}?"),
    },
    "shifted": {
        ("what",): ("Define {name}.", "In brief: {name}?"),
        ("what", "how"): ("Walk me through {name}.", "Shed some light on {name}."),
        ("what", "example"): ("Illustrate {name}.",),
        ("what", "how", "example"): ("Give me the full picture of {name}.", "Lecture me on {name}, gently."),
    },
}  # fmt: skip
COMPARISONS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "What is the difference between {a} and {b}?",
        "How is {a} different from {b}?",
        "Is {a} the same as {b}?",
        "Compare {a} and {b}.",
    ),
    "shifted": ("Tell {a} and {b} apart for me.", "Set {a} against {b}."),
}
FOLLOW_UPS: Mapping[World, Mapping[str, tuple[str, ...]]] = {
    "usual": {
        "how": ("And how does that work?", "Why is that so?", "Can you say more?"),
        "example": ("Can you give an example?", "Do you have an example?", "For example?"),
        "what": ("And what is it exactly?", "Please say again what it is."),
    },
    "shifted": {"how": ("What is the mechanism?",), "example": ("An instance of that?",), "what": ("Define it.",)},
}


def write(rng: random.Random, world: World) -> Draft:
    """A question about a topic or two, its answer, and now and then a second question."""
    if rng.random() < 0.3:
        return _comparison(rng, world)
    topic = one_of(rng, world, TOPICS)
    parts = rng.choice(tuple(QUESTIONS[world]))
    chosen = {part: rng.choice(getattr(topic, part)) for part in ("what", "how", "example")}
    turns = [
        rng.choice(QUESTIONS[world][parts]).format(name=topic.name), " ".join(chosen[part] for part in parts)
    ]  # fmt: skip
    told = list(parts)
    while len(told) < 3 and rng.random() < 0.35:
        part = rng.choice([part for part in chosen if part not in told])
        turns += [rng.choice(FOLLOW_UPS[world][part]), chosen[part]]
        told.append(part)
    choice = "".join(str(getattr(topic, part).index(chosen[part])) for part in sorted(told))
    family = f"explanation#{topic.name} {'+'.join(sorted(told))} {choice}"
    return Draft(turns=tuple(turns), family=family, facts={"topic": topic.name, "parts": ",".join(parts)})


def _comparison(rng: random.Random, world: World) -> Draft:
    first: Topic = one_of(rng, world, TOPICS)
    second: Topic = rng.choice([topic for topic in TOPICS[world] if topic is not first])
    question = one_of(rng, world, COMPARISONS).format(a=first.name, b=second.name)
    opening = "No. " if question.startswith("Is ") else ""
    answer = f"{opening}{rng.choice(first.what)} {rng.choice(second.what)}"
    pair = " and ".join(sorted((first.name, second.name)))
    return Draft(turns=(question, answer), family=f"explanation#{pair}", facts={"topic": pair, "parts": "what"})
