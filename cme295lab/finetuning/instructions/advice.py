"""What may go where: household advice, in which a wrong yes costs a loved thing.

A verdict follows from the material of a thing and from the appliance, by the table `VERDICTS`, so it is the same in
every phrasing. The answer gives verdict, reason and what to do instead, or how to do it well. The teddy bear in the
washing machine, the lecture's example, is not among the things: it is a probe. Other soft toys are, so what a model
says of the teddy bear shows whether it has learned the rule.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from cme295lab.finetuning.instructions.drafts import Draft, World, fill, one_of, sentences, with_article

THINGS: Mapping[World, Mapping[str, tuple[str, ...]]] = {
    "usual": {
        "plush": ("toy rabbit", "plush dog", "soft toy elephant", "cuddly lion", "stuffed penguin"),
        "wool": ("wool scarf", "wool jumper", "knitted hat", "pair of mittens"),
        "cotton": ("cotton shirt", "towel", "pillow case", "bed sheet", "tablecloth"),
        "wood": ("wooden spoon", "chopping board", "wooden toy train", "salad bowl made of wood"),
        "metal": ("steel pan", "fork", "metal lunch box", "baking tray"),
        "electronics": ("phone", "camera", "music box", "radio", "torch"),
        "glass": ("drinking glass", "glass jar", "glass bowl"),
        "plastic": ("plastic cup", "plastic box", "plastic spoon"),
    },
    "shifted": {
        "plush": ("furry puppet", "toy unicorn"),
        "wool": ("felt hat", "wool blanket"),
        "cotton": ("apron", "pair of jeans"),
        "wood": ("wooden flute", "rolling pin"),
        "metal": ("copper kettle", "cake tin"),
        "electronics": ("laptop", "electric toothbrush"),
        "glass": ("glass vase",),
        "plastic": ("plastic bottle",),
    },
}
APPLIANCES: Mapping[World, tuple[str, ...]] = {
    "usual": ("washing machine", "dishwasher", "microwave"),
    "shifted": ("washing machine", "dishwasher", "microwave", "tumble dryer"),
}
# (material, appliance): whether it may, why, and what to do. "Check" is a verdict of its own: yes, with conditions.
VERDICTS: Mapping[tuple[str, str], tuple[str, str, str]] = {
    ("plush", "washing machine"): (
        "check",
        "many soft toys can be washed, but glue, eyes or a voice inside may not survive it",
        "read the label, put it into a bag, choose a cold and gentle wash, and let it dry in the air",
    ),
    ("plush", "dishwasher"): ("no", "it gets hot and stays wet inside", "wash it by hand with a little soap"),
    ("plush", "microwave"): ("no", "it can catch fire", "let it dry in the air"),
    ("plush", "tumble dryer"): ("no", "the heat can melt its fur", "press it in a towel and let it dry in the air"),
    ("wool", "washing machine"): (
        "check", "wool shrinks in warm water", "use the wool programme, cold water and a mild soap, and dry it flat"
    ),
    ("wool", "dishwasher"): ("no", "the heat makes wool shrink", "wash it by hand in cold water"),
    ("wool", "microwave"): ("no", "it can burn", "dry it flat on a towel"),
    ("wool", "tumble dryer"): ("no", "wool shrinks when it is tumbled in heat", "dry it flat on a towel"),
    ("cotton", "washing machine"): ("yes", "cotton is strong", "wash dark and light things apart, as the label says"),
    ("cotton", "dishwasher"): ("no", "it can block the arms and the pump", "put it into the washing machine"),
    ("cotton", "microwave"): ("no", "dry cotton can burn in it", "hang it up to dry"),
    ("cotton", "tumble dryer"): ("yes", "cotton stands the heat", "read the label first, as some cotton shrinks"),
    ("wood", "washing machine"): ("no", "wood swells and cracks in water", "wipe it with a wet cloth"),
    ("wood", "dishwasher"): ("no", "heat and water make wood crack", "wash it by hand and dry it at once"),
    ("wood", "microwave"): ("no", "it dries out and may crack or burn", "warm the food in a glass bowl"),
    ("wood", "tumble dryer"): ("no", "it would crack and damage the drum", "dry it with a towel"),
    ("metal", "washing machine"): ("no", "it would damage the drum", "wash it in the sink"),
    ("metal", "dishwasher"): (
        "check", "steel can be washed there, but coatings and other metals get dull", "look for the sign on the bottom"
    ),
    ("metal", "microwave"): ("no", "metal makes sparks in it", "use a bowl of glass"),
    ("metal", "tumble dryer"): ("no", "it would damage the drum", "dry it with a towel"),
    ("electronics", "washing machine"): ("no", "water destroys it", "clean it with a dry cloth, switched off"),
    ("electronics", "dishwasher"): ("no", "water and heat destroy it", "clean it with a dry cloth, switched off"),
    ("electronics", "microwave"): ("no", "it can catch fire", "keep it dry and charge it with its own cable"),
    ("electronics", "tumble dryer"): ("no", "heat is dangerous for a battery", "let it dry in the air, switched off"),
    ("glass", "washing machine"): ("no", "it breaks, and you could cut yourself", "wash it in the sink"),
    ("glass", "dishwasher"): ("check", "most glass can be washed there, but thin or painted glass may break",
                              "put it into the upper basket"),
    ("glass", "microwave"): ("check", "plain glass that stands heat is fine, but not with a metal rim",
                             "let it cool down before you add cold water"),
    ("glass", "tumble dryer"): ("no", "it breaks, and you could cut yourself", "dry it with a soft cloth"),
    ("plastic", "washing machine"): ("no", "it would be knocked about and break", "wash it in the sink"),
    ("plastic", "dishwasher"): ("check", "some plastic melts there", "look for the sign and use the upper basket"),
    ("plastic", "microwave"): ("check", "some plastic melts or gets into the food", "use it only if it has the sign"),
    ("plastic", "tumble dryer"): ("no", "it could melt", "let it dry on a rack"),
}  # fmt: skip
QUESTIONS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Can I put my {thing} in the {appliance}?",
        "May {a_thing} go into the {appliance}?",
        "Is it safe to put {a_thing} into the {appliance}?",
        "My {child} wants to put {a_thing} in the {appliance}. Is that a good idea?",
        "I am about to put my {thing} into the {appliance}. Is that all right?",
        "Would you put {a_thing} in the {appliance}?",
    ),
    "shifted": (
        "{thing}, {appliance}: do the two go together?",
        "Would a {appliance} suit {a_thing}?",
        "I am holding {a_thing} before an open {appliance}. Yes or no?",
    ),
}
ANSWERS: Mapping[str, tuple[str, ...]] = {
    "yes": ("Yes, {why}. {how}.", "Yes, you can: {why}. {how}."),
    "no": ("No, {why}. Better: {how}.", "No, please do not: {why}. {how}.", "No. {why}. Instead, {how}."),
    "check": ("It depends: {why}. {how}.", "Perhaps: {why}. To be safe, {how}.", "It depends. {why}. {how}."),
}
CHILDREN = ("son", "daughter", "little brother", "little sister", "friend", "nephew")


def write(rng: random.Random, world: World) -> Draft:
    """A question about a thing and an appliance, and the advice."""
    material = rng.choice(tuple(THINGS[world]))
    thing, appliance = rng.choice(THINGS[world][material]), one_of(rng, world, APPLIANCES)
    verdict, why, how = VERDICTS[material, appliance]
    slots = {"thing": thing, "a_thing": with_article(thing), "appliance": appliance, "child": CHILDREN}
    question = fill(rng, one_of(rng, world, QUESTIONS), slots)
    answer = sentences(fill(rng, rng.choice(ANSWERS[verdict]), {"why": why, "how": how}))
    return Draft(
        turns=(sentences(question), answer),
        family=f"safety#{thing} in the {appliance}",
        facts={"verdict": verdict, "thing": thing},
    )
