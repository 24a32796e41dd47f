"""Generated stories for children: simple English, whole sentences, a beginning and an end.

Real children's stories are not on every machine, and small models need simple ones to learn grammar from. So the course
makes its own: a story is a plot (`story_plots`, `story_adventures`), told in sentences that are chosen from several and
filled with names, things, places and feelings. Pronouns, articles and tenses agree.

What this is not: natural text. There are fewer than 400 sentences behind all stories, so a model that has read a few
thousand has read each of them many times, and its loss on stories says how well it fills the slots. Stories of one plot
with one hero are one family: in validation, heroes meet plots that they did not meet in training.

Source of the idea: Eldan and Li 2023, "TinyStories"; the stories are ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

from cme295lab.pretraining.corpora.document import Document
from cme295lab.pretraining.corpora.story_adventures import ADVENTURES
from cme295lab.pretraining.corpora.story_plots import ENDINGS, EVERYDAY_PLOTS, LESSONS, OPENINGS, Plot
from cme295lab.pretraining.corpora.story_words import (
    ANIMALS,
    BOYS,
    COLOURS,
    FEELINGS,
    FOODS,
    FRIENDS,
    GIRLS,
    PLACES,
    RELATIVES,
    THINGS,
    TIMES,
    WEATHER,
)

MOST_DOCUMENTS = 50_000
PLOTS = (*EVERYDAY_PLOTS, *ADVENTURES)
# At the start, after a full stop, and after the quotation mark that closes or opens a sentence; but not in
# '"Where is it?" she asked.'
_SENTENCE_START = re.compile(r'(^"?|[.!?] "?|\." )([a-z])')
_PRONOUNS = {
    "girl": {"they": "she", "them": "her", "their": "her"},
    "boy": {"they": "he", "them": "him", "their": "his"},
}


def stories(seed: int = 0, num_documents: int = 4000) -> list[Document]:
    """Generated stories.

    Args:
        seed: another seed, other stories.
        num_documents: one story each, all different.

    Returns:
        Documents of the domain "stories": the same for the same seed, and the first of a longer list.

    Raises:
        ValueError: if `num_documents` is not between 1 and 50,000.
    """
    if not 1 <= num_documents <= MOST_DOCUMENTS:
        raise ValueError(f"num_documents must be between 1 and {MOST_DOCUMENTS:,}, got {num_documents}")
    rng = random.Random(f"stories {seed}")
    told: dict[str, Document] = {}
    while len(told) < num_documents:
        plot = rng.choice(PLOTS)
        slots = _slots(rng)
        text = _tell(rng, plot, slots)
        source = f"stories#{seed}/{len(told)}"
        told.setdefault(text, Document(text, "stories", source, family=f"stories#{plot.name}/{slots['hero']}"))
    return list(told.values())


def _slots(rng: random.Random) -> dict[str, str]:
    """One hero, one friend, and everything else that may be mentioned, once for the whole story."""
    kind, friend_kind = rng.choice(("girl", "boy")), rng.choice(("girl", "boy"))
    names = {"girl": GIRLS, "boy": BOYS}
    hero = rng.choice(names[kind])
    friend = rng.choice([name for name in names[friend_kind] if name != hero])
    slots = {
        "hero": hero,
        "friend": friend,
        "child": kind,
        **_PRONOUNS[kind],
        **{f"friend_{word}": pronoun for word, pronoun in _PRONOUNS[friend_kind].items()},
        "relative": rng.choice(RELATIVES),
        "acquaintance": rng.choice(FRIENDS),
        "animal": rng.choice(ANIMALS),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(THINGS),
        "place": rng.choice(PLACES),
        "weather": rng.choice(WEATHER),
        "time": rng.choice(TIMES),
        "food": rng.choice(FOODS),
        "glad": rng.choice(FEELINGS["glad"]),
        "sad": rng.choice(FEELINGS["sad"]),
        "kind": rng.choice(FEELINGS["kind"]),
    }
    slots |= {f"a_{name}": _article(slots[name]) for name in ("animal", "colour", "thing", "kind", "food")}
    return slots


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _tell(rng: random.Random, plot: Plot, slots: Mapping[str, str]) -> str:
    opening = [_fill(rng.choice(OPENINGS), slots)]
    middle = [[_fill(rng.choice(choices), slots) for choices in part] for part in plot.paragraphs]
    ending = [_fill(rng.choice(plot.ending), slots)]
    if rng.random() < 0.7:
        ending.append(_fill(rng.choice(ENDINGS), slots))
    if rng.random() < 0.4:
        ending.append(_fill(rng.choice(LESSONS), slots))
    paragraphs = [opening + middle[0], *middle[1:], ending]
    return "\n\n".join(" ".join(sentences) for sentences in paragraphs) + "\n"


def _fill(sentence: str, slots: Mapping[str, str]) -> str:
    """Fill the slots; whatever begins a sentence gets a capital letter."""
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), sentence.format_map(slots))
