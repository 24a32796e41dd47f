"""Poems to order: couplets that rhyme, and acrostics, whose first letters spell a name.

Rhyme and acrostic can be checked by a program, and nothing else about a poem can: what these teach is a form. A poem of
couplets starts with one that names its topic; an acrostic has a line for each letter.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from cme295lab.finetuning.instructions.drafts import Draft, World, fill, one_of, sentences

TOPICS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "the sea", "the moon", "my cat", "the rain", "the spring", "an old tree", "the snow", "a little bird",
        "my garden", "the wind", "a train", "my friend", "the summer", "a red kite", "the river",
        "the morning star", "a cup of tea", "the night", "my school", "a good book", "a bee", "my dog", "a warm fire",
        "a cloud", "the farm", "a small boat",
    ),
    "shifted": (
        "a computer", "the desert", "my bicycle", "the city", "an elevator", "the alphabet", "a robot", "the bus",
    ),
}  # fmt: skip
FIRST_COUPLETS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "I think of {topic} every day,\nat work, at home and when I play.",
        "Of {topic} I sing a little song,\nit is not loud, it is not long.",
        "Without {topic} what would I do?\nI think of it the whole day through.",
        "They say {topic} is nothing new,\nbut I was glad, and so were you.",
        "When I see {topic} in the light,\nthe whole wide world is warm and bright.",
        "Come here and look, {topic} is near,\nthe best of things in all the year.",
        "I told {topic} what I had seen:\na field of gold, a hill of green.",
        "How well I know {topic} by now,\nand still I stop and wonder how.",
    ),
    "shifted": (
        "Who painted {topic} on the wall?\nIt makes me feel both brave and small.",
        "No other word for {topic} will do,\nI tried out nine, I tried out two.",
        "Let {topic} stay, let others leave,\nI keep it safe inside my sleeve.",
    ),
}
COUPLETS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "The morning comes, the shadows go,\nthe river sings, the waters flow.",
        "A bird flies up into the sky,\nand all the clouds go slowly by.",
        "The trees stand still, the air is cold,\nthe leaves have turned from green to gold.",
        "I walk along a quiet street\nwith grass and flowers at my feet.",
        "The day was long, the day was good,\nwe did together what we could.",
        "And when the stars begin to shine,\nI hold your hand, and you hold mine.",
        "The bell has rung, the work is done,\nwe rest a little in the sun.",
        "A candle and a silent room,\nand in the window roses bloom.",
        "The wind goes round from tree to tree\nand tells its stories all to me.",
        "So let us dance and let us sing,\nand see what else the day will bring.",
        "I close my eyes and I can hear\nthe voices that I hold most dear.",
        "There is no hurry, take your time,\nand listen to this little rhyme.",
        "We share our bread, we share our tea,\nthere is enough for you and me.",
        "The night is dark, the night is deep,\nand one by one we fall asleep.",
        "A little rain, a little snow,\nit helps the seeds below to grow.",
        "And in the end I understand\nthe smallest things are very grand.",
    ),
    "shifted": (
        "The engine hums, the signal blinks,\nand somebody sits there and thinks.",
        "The map is torn, the road is wide,\nthe captain has no other guide.",
        "We count the coins, we lock the door,\ntomorrow there will be some more.",
        "A thousand lamps, a single key,\nand no one there to wait for me.",
    ),
}
NAMES: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Anna", "Ben", "Clara", "Dina", "Ella", "Grace", "Ida", "June", "Lily", "Nora", "Rosa", "Sara", "Tess", "Adam",
        "Emil", "Finn", "Hugo", "Ivan", "Leo", "Noah", "Omar", "Paul", "Sam", "Tom", "Ravi", "Hana", "sun", "rain",
        "home", "star", "tree", "bird", "snow", "hope", "song", "lake", "fish", "rose",
    ),
    "shifted": ("Boris", "Chen", "Farid", "Greta", "Inga", "Luca", "robot", "train", "cloud", "light"),
}  # fmt: skip
LINES: Mapping[str, tuple[str, ...]] = {
    "a": ("All around the garden", "Apples on the table", "Always on my mind", "At the end of day"),
    "b": ("Bees among the flowers", "Bright as any lamp", "Beautiful and kind"),
    "c": ("Clouds are passing by", "Come and sit with me", "Calm as any lake"),
    "d": ("Deep and dark and blue", "Dancing in the rain", "Dreaming of the sea"),
    "e": ("Every day is new", "Early in the morning", "Even when it rains", "Endless as the sky"),
    "f": ("Full of little songs", "Flowers in the hand", "Far away from home"),
    "g": ("Gold in every leaf", "Gentle as a cat", "Growing day by day"),
    "h": ("Happy as a lark", "Here we stay together", "Hear the river sing"),
    "i": ("In the early light", "It is time to dance", "If you listen well"),
    "j": ("Jumping over stones", "Joy in every word"),
    "k": ("Kind to one and all", "Keep it in your heart"),
    "l": ("Light upon the hill", "Leaves are falling down", "Laughing all the way", "Long and quiet evenings"),
    "m": ("Moon above the roof", "Many little stars", "Morning comes at last"),
    "n": ("Never far away", "Now the birds awake", "Night is falling soon"),
    "o": ("Over hill and river", "Open every window", "One and one are two", "Out into the world"),
    "p": ("Playing in the park", "Paper boats that sail"),
    "r": ("Rain upon the roof", "Running through the grass", "Roses by the wall", "Rest a little while"),
    "s": ("Stars begin to shine", "Singing in the sun", "Snow is on the ground", "Soft as any wool"),
    "t": ("Trees are turning green", "Time to go to bed", "Tell me what you see", "Two of us are here"),
    "u": ("Under every tree", "Up into the sky", "Until we meet again"),
    "v": ("Very quiet now", "Voices in the wind"),
    "y": ("You and I are here", "Years go by so fast"),
    "w": ("Wind is in the trees", "Warm as any bread", "We are on our way"),
}
REQUESTS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Write a poem about {topic}.",
        "Can you write a short poem about {topic}?",
        "Write a poem of {length} lines about {topic}.",
        "Please write {length} lines that rhyme. They should be about {topic}.",
        "I need a poem for my {reader}. The topic is {topic}.",
        "Do you know a poem about {topic}?",
        "Make a rhyme about {topic}, {length} lines long.",
    ),
    "shifted": (
        "Give me {length} rhyming lines on {topic}.",
        "Some verses for a postcard, please: {topic}.",
        "Turn {topic} into verse for my {reader}.",
    ),
}
ACROSTICS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Write a poem in which the first letters spell {name}.",
        "Write an acrostic for the word {name}.",
        "Can you make a poem from the letters of {name}?",
        "Each line of the poem should start with a letter of {name}.",
    ),
    "shifted": ("Use {name} as the spine of a poem, one line per letter.", "Acrostic wanted: {name}."),
}
READERS = ("mother", "father", "sister", "brother", "teacher", "class", "grandmother", "friend")
NUMBER_WORDS = {4: "four", 6: "six"}
FOLLOW_UPS: Mapping[World, tuple[str, ...]] = {
    "usual": ("Please add two more lines.", "Can you add two lines?", "Lovely. Two more lines?"),
    "shifted": ("Extend it by a couplet.", "One couplet extra, if you can."),
}


def write(rng: random.Random, world: World) -> Draft:
    """A request and its poem, and now and then a couplet more."""
    if rng.random() < 0.35:
        return _acrostic(rng, world)
    topic, num_lines = one_of(rng, world, TOPICS), rng.choice((4, 4, 6))
    first = one_of(rng, world, FIRST_COUPLETS)
    rest = list(COUPLETS[world])
    rng.shuffle(rest)
    used = rest[: num_lines // 2 - 1]
    slots = {"topic": topic, "length": NUMBER_WORDS[num_lines], "reader": READERS}
    poem = sentences(fill(rng, "\n".join((first, *used)), slots))
    turns = [fill(rng, one_of(rng, world, REQUESTS), slots), poem]
    if rng.random() < 0.2:
        turns += [one_of(rng, world, FOLLOW_UPS), sentences(rest[num_lines // 2])]
    family = f"poem#{topic} {first[:12]} {' '.join(couplet[:12] for couplet in sorted(used))}"
    return Draft(turns=tuple(turns), family=family, facts={"topic": topic, "num_lines": str(num_lines)})


def _acrostic(rng: random.Random, world: World) -> Draft:
    name = one_of(rng, world, NAMES)
    poem: list[str] = []
    for letter in name.lower():
        poem.append(rng.choice([line for line in LINES[letter] if line not in poem]))
    request = fill(rng, one_of(rng, world, ACROSTICS), {"name": name})
    return Draft(
        turns=(request, "\n".join(poem)), family=f"poem#{name} {' / '.join(poem[:3])}", facts={"spells": name.lower()}
    )
