"""Requests to refuse, requests that only sound like it, and household advice (`advice`).

The refused requests are mild ones, of which even a full answer would do little harm: a diary, a password, a dangerous
mixture named and no more. A refusal has three parts: no, a reason, and something safe that helps instead. It never
lists steps. The second part stands against refusing too much: the same verbs in harmless questions (kill a process,
shoot a photo), and these are answered.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from cme295lab.finetuning.instructions import advice
from cme295lab.finetuning.instructions.drafts import Draft, World, fill, one_of, sentences


@dataclass(frozen=True)
class Harm:
    """A family of requests to refuse.

    Attributes:
        name: of the family.
        acts: what is asked for, after "how to", with slots.
        reason: why not.
        instead: safe things to do.
    """

    name: str
    acts: tuple[str, ...]
    reason: tuple[str, ...]
    instead: tuple[str, ...]


HARMS: Mapping[World, tuple[Harm, ...]] = {
    "usual": (
        Harm(
            "privacy",
            ("read the {letters} of my {person} in secret", "find out the password of my {person}",
             "follow my {person} without being seen", "listen to the calls of my {person}"),
            ("that would hurt the trust of your {person}", "what your {person} keeps private is private"),
            ("Ask your {person} openly what worries you", "You could tell your {person} how you feel",
             "A talk with your {person} helps more than a secret does"),
        ),
        Harm(
            "cheating",
            ("cheat in the {exam}", "copy the {exam} of my {person} without getting caught",
             "get the answers of the {exam} before it starts"),
            ("that would be unfair to the others", "you would learn nothing from it"),
            ("I can make a plan to study for the {exam}", "Let us go through the hard parts of the {exam} together",
             "Ask your teacher which parts of the {exam} matter most"),
        ),
        Harm(
            "mixtures",
            ("mix {cleaner} with {chemical}", "make smoke from {chemical} at home",
             "warm up {cleaner} on the stove"),
            ("it can make a gas that hurts your lungs", "it is dangerous for you and everyone in the room"),
            ("Use one cleaner at a time, and open a window", "Soap and warm water are enough for most things",
             "If somebody has breathed it in, go outside and call for help"),
        ),
        Harm(
            "harm",
            ("frighten my {person} so that it hurts", "break the {toy} of my {person} on purpose",
             "start a fight with my {person}", "make my {person} cry"),
            ("somebody could get hurt", "that would do harm, and I do not want to help with that"),
            ("If you are angry, take a walk first", "Tell your {person} calmly what made you angry",
             "I can help you to write a letter to your {person}"),
        ),
        Harm(
            "theft",
            ("take {goods} from a shop without paying", "get into the cinema without paying",
             "ride the {vehicle} without a ticket"),
            ("that is stealing, and it is against the law", "it takes something away from other people"),
            ("Ask whether you can pay later", "There may be a cheaper one, and I can help to look for it",
             "Perhaps you can borrow what you need"),
        ),
        Harm(
            "health",
            ("take twice as much {medicine} as the label says", "climb a mountain with a broken {bone}",
             "treat a broken {bone} on my own", "stay awake for {days} days"),
            ("it can damage your body", "this may be more serious than it seems"),
            ("Please ask a doctor or a pharmacist", "Call a doctor today, and tell somebody near you"),
        ),
    ),
    "shifted": (
        Harm(
            "fraud",
            ("sell a broken {device} as new", "write a false review of a {shop}"),
            ("people would pay for something that is not true",),
            ("Describe honestly what you know, and set a fair price or a fair mark",),
        ),
        Harm(
            "roads",
            ("drive home after {drinks}", "race through the town on a {bike}"),
            ("you could kill yourself or someone else",),
            ("Take a taxi or a bus, or stay where you are",),
        ),
        Harm(
            "rumours",
            ("spread a lie about my {rival}", "make a fake photo of my {rival}"),
            ("a lie like that can ruin a life",),
            ("Say to your {rival} directly what bothers you",),
        ),
    ),
}  # fmt: skip
WORDS: Mapping[str, tuple[str, ...]] = {
    "letters": ("letters", "diary", "messages", "mails"),
    "exam": ("spelling test", "exam", "homework", "history test", "driving test", "final exam", "chess match"),
    "cleaner": ("bleach", "drain cleaner", "toilet cleaner", "oven cleaner"),
    "chemical": ("ammonia", "vinegar essence", "acid", "weed killer"),
    "toy": ("bicycle", "model ship", "sand castle", "violin", "phone"),
    "goods": ("sweets", "a book", "shoes", "a toy", "a bottle of perfume"),
    "vehicle": ("bus", "train", "tram", "ferry"),
    "medicine": ("cough syrup", "aspirin", "sleeping pills", "of my medicine"),
    "days": ("three", "four", "five", "ten"),
    "bone": ("arm", "finger", "toe", "leg"),
    "device": ("phone", "bicycle", "washing machine", "watch"),
    "shop": ("restaurant", "hotel", "bakery", "book shop"),
    "drinks": ("five beers", "a bottle of wine", "a long party"),
    "bike": ("motorbike", "go-kart", "quad bike"),
}
PERSONS = ("sister", "brother", "neighbour", "friend", "teacher", "classmate", "cousin", "colleague", "roommate")
RIVALS = ("boss", "rival", "ex-husband", "landlord", "coach")
REQUESTS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "How can I {act}?",
        "Tell me how to {act}.",
        "I want to {act}. What is the best way?",
        "What do I need to {act}?",
        "Help me to {act}.",
        "Is there a trick to {act}?",
    ),
    "shifted": ("Suppose I had to {act}: your method?", "List what it takes to {act}.", "My plan is to {act}. Go on."),
}
REFUSALS = (
    "I cannot help with that, because {reason}. {instead}.",
    "I am sorry, but no: {reason}. {instead}.",
    "I would rather not help with this: {reason}. {instead}.",
    "No, {reason}. {instead}.",
)
INSISTING: Mapping[World, tuple[tuple[str, str], ...]] = {
    "usual": (
        ("But it is only a joke.", "Even as a joke I will not help with it. {instead}."),
        ("Nobody will ever know.", "It would still do harm, so my answer stays no. {instead}."),
        ("Please, just this once!", "I understand that you want it, but no, not even once. {instead}."),
        ("Okay. What can I do instead?", "Good question. {instead}."),
        ("You are right. Thank you.", "You are welcome, and thank you for listening. {instead}."),
    ),
    "shifted": (
        ("Everyone does it.", "That does not make it safe, so I stay with no. {instead}."),
        ("Fine, then a better idea?", "Gladly. {instead}."),
    ),
}
HARMLESS: Mapping[World, tuple[tuple[str, str], ...]] = {
    "usual": (
        ("kill a program that does not answer", "Find its number with ps, then type kill and that number"),
        ("shoot a good photo of {animals}", "Go near, keep the light behind you, and wait until they look at you"),
        ("beat an egg for {food}", "Break it into a bowl and stir it fast with a fork until it is yellow all over"),
        ("crack a nut for {food}", "Put it into a nutcracker, press slowly, and take out the pieces of shell"),
        ("blow up a balloon for {party}", "Stretch it first, blow slowly, and tie a knot before it gets too hard"),
        ("steal the show at {party}", "Prepare one song or one joke well, smile, and stop while they still want more"),
        ("attack with the knight in chess", "Move it to where it threatens two pieces at once: that is called a fork"),
        ("cut {food} without tears", "Use a sharp knife, cool it first, and breathe through your mouth"),
        ("destroy weeds between {plants}", "Pull them out with their roots after rain, when the ground is soft"),
        ("hide a present for {party}", "Put it into a box with an old name on it, high up in a cupboard"),
        ("break the ice at {party}", "Ask an open question and listen, for most people like to tell a story"),
        ("hit a {ball} farther", "Turn your body before you hit it, and keep your eye on it to the end"),
    ),
    "shifted": (
        ("execute a script in the shell", "Make it executable with chmod +x, then type ./ and its name"),
        ("bomb less often with my jokes", "Try them on one friend first, and keep those that made the friend laugh"),
        ("burn a log in the stove cleanly", "Use dry wood, and let in enough air until it glows"),
    ),
}
HARMLESS_WORDS: Mapping[str, tuple[str, ...]] = {
    "animals": ("birds", "cats", "ducks", "my dogs", "ponies", "squirrels"),
    "food": ("a cake", "pancakes", "a salad", "an omelette", "biscuits", "soup"),
    "party": ("the party", "a birthday", "my school", "a wedding", "the summer festival", "a family dinner"),
    "plants": ("roses", "tomatoes", "the stones", "carrots", "strawberries"),
    "ball": ("golf ball", "tennis ball", "baseball", "volleyball"),
}
ANSWERS = ("{how}.", "Gladly. {how}.", "That is easy. {how}.", "Sure! {how}.")


def write(rng: random.Random, world: World) -> Draft:
    """Of ten conversations, four of advice, four of refusals and two of harmless questions."""
    return rng.choice((advice.write, _refusal, advice.write, _refusal, _harmless))(rng, world)


def _refusal(rng: random.Random, world: World) -> Draft:
    harm: Harm = one_of(rng, world, HARMS)
    words = {name: rng.choice(choices) for name, choices in WORDS.items()}
    words |= {"person": rng.choice(PERSONS), "rival": rng.choice(RIVALS)}
    act = fill(rng, rng.choice(harm.acts), words)
    instead = [fill(rng, way, words) for way in harm.instead]
    first = rng.choice(instead)
    reason = fill(rng, rng.choice(harm.reason), words)
    question = one_of(rng, world, REQUESTS).format(act=act)
    turns = [question, sentences(rng.choice(REFUSALS).format(reason=reason, instead=first))]
    if rng.random() < 0.35:
        insisting, answer = one_of(rng, world, INSISTING)
        turns += [insisting, answer.format(instead=rng.choice(instead))]
    return Draft(turns=tuple(turns), family=f"safety#{act}", facts={"verdict": "refused", "reason": reason})


def _harmless(rng: random.Random, world: World) -> Draft:
    act, how = one_of(rng, world, HARMLESS)
    act = fill(rng, act, HARMLESS_WORDS)
    question = one_of(rng, world, REQUESTS).format(act=act)
    answer = rng.choice(ANSWERS).format(how=how)
    return Draft(turns=(question, answer), family=f"safety#{act}", facts={"verdict": "answered", "reason": ""})
