"""Short stories to order: who is in it, what, and where are the user's to say.

A request names some of hero, animal, thing and place; the story has all of these, so a test can hold it against its
request. It is shorter than the stories of the corpus (`pretraining.corpora.stories`), five to seven sentences, and uses
their words and endings. A second question, now and then, is about the story: its title, its hero, what happened in a
sentence. Stories of one plot with one hero, one animal and one thing are a family.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from cme295lab.finetuning.instructions.drafts import Draft, World, fill, one_of, sentences, with_article
from cme295lab.pretraining.corpora import story_words as words
from cme295lab.pretraining.corpora.story_plots import ENDINGS, LESSONS

Places = tuple[tuple[str, ...], ...]

OPENINGS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Once upon a time there was {a_kind} {child} named {hero}, who lived near {place}.",
        "{hero} was {a_kind} {child} who often went to {place}.",
        "{time} {hero}, {a_kind} {child}, was on the way to {place}.",
        "Not far from {place} there lived {a_kind} {child} called {hero}.",
        "{hero} loved {place} more than any other place.",
        "{time} {hero} and {friend} went to {place}.",
    ),
    "shifted": (
        "Everybody at {place} knew {hero}, {a_kind} {child}.",
        "At {place} it was late, but {hero}, {a_kind} {child}, was still awake.",
    ),
}
PLOTS: Mapping[World, Mapping[str, Places]] = {
    "usual": {
        "lost": (
            (
                "But the {colour} {thing} of {hero} was gone!",
                "There {hero} lost {their} {colour} {thing}, and nobody had seen it.",
                "The {colour} {thing} that {hero} loved was not in the bag.",
            ),
            (
                '"I will help you to look," said {friend}.',
                "{hero} looked under every bush and behind every stone.",
                "{hero} was very {sad}, and {friend} came to help.",
            ),
            (
                "Then {a_animal} came along, and it carried the {thing}!",
                "In the end {a_animal} showed them the way: the {thing} lay in the grass.",
                "There sat {a_animal}, and next to it was the {thing}.",
            ),
        ),
        "rescue": (
            (
                "There {hero} heard a small cry: {a_animal} was in a hole and could not get out.",
                "{a_animal} sat on a rock in the water and was very {sad}.",
                "High in a tree {hero} saw {a_animal} that did not dare to climb down.",
            ),
            (
                '"Wait," said {hero}, "I know what to do."',
                "{hero} called {friend}, and together they made a plan.",
                "{hero} thought for a long time.",
            ),
            (
                "With {a_colour} {thing} and a long rope they reached the {animal}.",
                "{hero} held out {their} {colour} {thing}, and the {animal} jumped into it.",
                "{hero} put {their} {thing} on the ground, and at last the {animal} came to {them}.",
            ),
        ),
        "present": (
            (
                "It was the birthday of {friend}, and {hero} wanted to give {friend_them} {a_colour} {thing}.",
                "{hero} had made {a_colour} {thing} for {friend}.",
            ),
            (
                "But {a_animal} ran off with it!",
                "On the way {a_animal} jumped up, and it fell into the mud.",
                "But {a_animal} liked it, too, and would not let go.",
            ),
            (
                "{hero} gave the {animal} {a_food}, and so {they} got the {thing} back.",
                '{friend} laughed. "The {thing} is lovely," {friend_they} said, "and so is the {animal}."',
                "{hero} washed the {thing}, and it was as {colour} as before.",
            ),
        ),
        "sharing": (
            (
                "{hero} had {a_thing}, and {friend} wanted to play with it.",
                "{friend} asked for {their} {thing}, but {hero} said no.",
            ),
            (
                "Then {hero} saw {a_animal} that gave half of its food to a smaller one.",
                "Then {hero} met {a_animal}, and it looked lonely, just like {friend}.",
            ),
            (
                '"We can take turns," said {hero}, and {they} gave {friend} the {thing}.',
                '{hero} went back. "The {thing} is for both of us," {they} said.',
            ),
        ),
        "secret": (
            (
                "{hero} followed {a_animal} through the bushes.",
                "{a_animal} ran before {hero}, as if it wanted to show {them} something.",
            ),
            (
                "They came to a little door that {hero} had never seen.",
                "It stopped at an old wall and looked at {them}.",
            ),
            (
                "Behind it lay {a_colour} {thing}, with a letter: this is for the one who finds it.",
                "There was {a_colour} {thing}. It had been there for a hundred years.",
            ),
        ),
    },
    "shifted": {
        "repair": (
            ("The old {thing} made no sound any more.", "With a loud bang the {colour} {thing} stopped."),
            ("Only {a_animal} knew the reason, and it pulled at {their} sleeve.", "Just then {a_animal} looked in."),
            (
                "A feather was stuck inside. {hero} took it out, and the {thing} worked again.",
                "{friend} turned one screw, the {animal} pushed, and the {thing} began to hum.",
            ),
        ),
        "journey": (
            ("A letter came: bring the {thing} to the {animal} on the other side of the water.",),
            ("{hero} and {friend} rowed all night.", "The waves were high, yet {hero} did not turn back."),
            (
                "The {animal} was waiting on the sand, and it took the {colour} {thing} with a bow.",
                '"At last!" the {animal} seemed to say when it saw the {thing}.',
            ),
        ),
    },
}
WORDS: Mapping[World, Mapping[str, tuple[str, ...]]] = {
    "usual": {
        "girl": words.GIRLS, "boy": words.BOYS, "animal": words.ANIMALS, "place": words.PLACES,
        "thing": tuple(thing for thing in words.THINGS if thing != "teddy bear"),  # the probe's alone
    },
    "shifted": {
        "girl": ("Agnes", "Dilara", "Greta", "Inga", "Keiko", "Zora"),
        "boy": ("Boris", "Chen", "Farid", "Hiro", "Jonas", "Luca"),
        "animal": ("penguin", "camel", "parrot", "whale", "bee", "wolf", "raven", "lizard"),
        "place": ("the lighthouse", "the space station", "the airport", "the museum", "the island", "the theatre"),
        "thing": ("telescope", "engine", "compass", "radio", "clock", "lantern", "violin"),
    },
}  # fmt: skip
REQUESTS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Tell me a story about {hero} and {a_animal}.",
        "Write a short story about {a_animal} and {a_thing}.",
        "Can you write a story for my {relative}? It should be about {a_thing}.",
        "Write a story in which {hero} goes to {place}.",
        "Please tell me a bedtime story with {a_animal} in it.",
        "I would like a story about {place}.",
        "Make up a story: {hero}, {a_thing}, {place}.",
        "Write a story for a child. There must be {a_animal} and {a_colour} {thing} in it.",
        "Tell me what happened to {hero} at {place}.",
        "Do you know a story about {a_thing}?",
    ),
    "shifted": (
        "Invent a tale for us where {a_animal} meets {hero}.",
        "We need a little tale set at {place}, featuring {a_thing}.",
        "Entertain me with {hero}, {a_animal} and {a_thing}.",
        "Compose a few lines of fiction on {a_animal} at {place}.",
    ),
}
FOLLOW_UPS: Mapping[World, Mapping[str, tuple[str, ...]]] = {
    "usual": {
        "title": ("Give the story a title.", "What could the title be?", "Does it have a title?"),
        "hero": ("Who was the story about?", "Who is the hero?"),
        "short": ("Can you say that in one sentence?", "Please make it shorter.", "Tell it in one sentence."),
    },
    "shifted": {
        "title": ("Name this tale.",),
        "hero": ("Remind me of the main figure.",),
        "short": ("Boil it down to a line.",),
    },
}
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "title": (
        "{hero} and the {colour} {thing}", "The {animal} of {hero}", "{hero} and the {animal}",
        "The {animal} and the {thing}",
    ),
    "hero": (
        "It was about {hero}, {a_kind} {child}.", "The hero is {hero}.",
        "It was about {hero} and {friend}, and {a_animal}.",
    ),
    "short": (
        "{hero} went to {place}, met {a_animal}, and everything went well with the {thing}.",
        "At {place}, {a_animal}, {a_colour} {thing} and {hero} became part of one story.",
    ),
}  # fmt: skip
PRONOUNS = {
    "girl": {"they": "she", "them": "her", "their": "her"},
    "boy": {"they": "he", "them": "him", "their": "his"},
}


def write(rng: random.Random, world: World) -> Draft:
    """A request and its story, and now and then a question about the story."""
    slots = draw_slots(rng, world)
    plot = rng.choice(tuple(PLOTS[world]))
    parts = [one_of(rng, world, OPENINGS), *(rng.choice(choices) for choices in PLOTS[world][plot])]
    if rng.random() < 0.8:
        parts.append(rng.choice(ENDINGS))
    if rng.random() < 0.3:
        parts.append(rng.choice(LESSONS))
    request = one_of(rng, world, REQUESTS)
    turns = [fill(rng, request, slots), sentences(fill(rng, " ".join(parts), slots))]
    if rng.random() < 0.25:
        topic = rng.choice(tuple(ANSWERS))
        turns.append(rng.choice(FOLLOW_UPS[world][topic]))
        turns.append(sentences(fill(rng, rng.choice(ANSWERS[topic]), slots)))
    family = f"story#{plot} {slots['hero']} {slots['animal']} {slots['thing']}"
    wanted = [slots[name] for name in ("hero", "animal", "thing", "place") if f"{name}}}" in request]
    return Draft(turns=tuple(turns), family=family, facts={"wanted": ",".join(wanted)})


def draw_slots(rng: random.Random, world: World) -> dict[str, str]:
    """Who and what a story may mention, once for all of it."""
    child, other = rng.choice(("girl", "boy")), rng.choice(("girl", "boy"))
    lists = WORDS[world]
    hero = rng.choice(lists[child])
    slots = {
        "hero": hero,
        "child": child,
        "friend": rng.choice([name for name in lists[other] if name != hero]),
        **PRONOUNS[child],
        **{f"friend_{word}": pronoun for word, pronoun in PRONOUNS[other].items()},
        **{name: rng.choice(lists[name]) for name in ("animal", "place", "thing")},
        "colour": rng.choice(words.COLOURS),
        "food": rng.choice(words.FOODS),
        "time": rng.choice(words.TIMES),
        "relative": rng.choice(words.RELATIVES),
        "acquaintance": rng.choice(words.FRIENDS),
        **{name: rng.choice(feelings) for name, feelings in words.FEELINGS.items()},
    }
    return slots | {f"a_{name}": with_article(slots[name]) for name in ("animal", "colour", "thing", "kind", "food")}
