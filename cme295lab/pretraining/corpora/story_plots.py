"""The plots of the stories: for each, paragraphs; in each paragraph, places for a sentence; for each place, a choice.

In braces stand slots. {they}, {them} and {their} are the hero's pronouns (she, her, her or he, him, his), {friend_they}
and so on the friend's; {a_thing} is the thing with its article. A sentence begins with a small letter if a slot does:
capitals are set when a story is told.
"""

from __future__ import annotations

from dataclasses import dataclass

Sentences = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What happens in a story.

    Attributes:
        name: of the plot.
        paragraphs: for each, for each place in it, the sentences to choose from.
        ending: sentences to choose the last event from.
    """

    name: str
    paragraphs: tuple[tuple[Sentences, ...], ...]
    ending: Sentences


OPENINGS: Sentences = (
    "Once upon a time there was {a_kind} {child} named {hero}.",
    "There once was a little {child} called {hero}. {they} lived near {place}.",
    "{hero} was {a_kind} {child} who lived in a small house with {their} {relative}.",
    "In a village by the sea lived a {child} named {hero}.",
    "{hero} and {friend} were best friends. They lived in the same street.",
    "This is a story about {hero}, {a_kind} {child}.",
    "{hero} was six years old and very {kind}.",
    "Not far from {place} there lived a {child} whose name was {hero}.",
)
ENDINGS: Sentences = (
    "From that day on, {hero} and {friend} met there every week.",
    "That night {hero} slept very well.",
    "{hero} told {their} {relative} everything, and they laughed together.",
    "It had been a wonderful day.",
    "Everyone was {glad}.",
    "{hero} smiled all the way home.",
    '"Can we do this again tomorrow?" asked {hero}. "Of course," said {their} {relative}.',
    "And they were friends ever after.",
    "When {they} went to bed, {hero} was tired but {glad}.",
)
LESSONS: Sentences = (
    "{hero} learned that it is good to ask for help.",
    "{hero} had learned something: if you do not give up, you will find a way.",
    "{they} knew now that sharing makes everything better.",
    "{hero} understood that even a small {child} can do great things.",
    "{they} never forgot how kind {friend} had been.",
    "It is never too late to say sorry, thought {hero}.",
    "After all, two heads are better than one.",
)

LOST = Plot(
    name="lost",
    paragraphs=(
        (
            (
                "{hero} had {a_colour} {thing}, and {they} took it everywhere.",
                "{their} favourite thing in the world was {a_colour} {thing}.",
                "For {their} birthday {they} got {a_colour} {thing} from {their} {relative}.",
            ),
            (
                "{time}, when {they} came home from {place}, the {thing} was gone!",
                "But {time} {hero} could not find the {thing}.",
                "{time} {they} looked into {their} bag. The {thing} was not there.",
            ),
        ),
        (
            (
                "{hero} looked under the bed, but there was only dust.",
                "{they} looked behind the door, and in the kitchen, and under the table.",
                "{they} searched the whole house. It was nowhere.",
            ),
            (
                '"What is wrong?" asked {friend}. "I have lost my {thing}," said {hero}, and {they} began to cry.',
                '{they} ran to {friend}. "Did you see my {thing}?" {they} asked. "No, but I can help."',
                "{hero} was very {sad}. {friend} saw it and came to {them}.",
            ),
            (
                '"Where did you see it last?" asked {friend}.',
                '"Let us think," said {friend}. "Where have you been today?"',
                '"Do not worry," said {friend}. "We will find it together."',
            ),
        ),
        (
            (
                "They walked back to {place}, step by step.",
                "So the two of them went to {place} and looked at every stone.",
                "They went to {place} again, and {weather}.",
            ),
            (
                "There sat {a_animal}, and next to it lay the {thing}!",
                "Suddenly {friend} saw something {colour} in the grass. It was the {thing}!",
                'The {acquaintance} came along and held something up. "Is this {colour} {thing} yours?"',
            ),
        ),
    ),
    ending=(
        '"Thank you!" said {hero}, and {they} hugged {friend}.',
        "{hero} was so {glad} that {they} danced.",
        "{hero} put the {thing} into {their} bag and closed it well.",
    ),
)

BROKEN = Plot(
    name="broken",
    paragraphs=(
        (
            (
                "{time} {hero} played with {their} {colour} {thing}.",
                "{time} {they} borrowed {a_thing} from {friend}. It was {colour} and very pretty.",
            ),
            (
                "{they} was not careful, and the {thing} fell on the floor. It broke.",
                "{they} ran too fast, fell over a stone, and the {thing} broke in two.",
                "Then there was a loud noise. The {thing} was broken.",
            ),
        ),
        (
            (
                "{hero} was {sad}. {they} thought about hiding it, but that did not feel right.",
                "At first {hero} wanted to say that {a_animal} had done it. But that was not true.",
                "{hero} did not know what to do. {they} sat on the stairs for a long time.",
            ),
            (
                '{they} went to {friend} and said, "I am sorry. I broke the {thing}."',
                '"I have to tell you something," said {hero} to {friend}. "The {thing} is broken, and it was me."',
            ),
            (
                '{friend} was quiet for a moment. "Thank you for telling me," {friend_they} said.',
                '"It was an accident," said {friend}. "I am glad that you told the truth."',
                "{friend} looked at the pieces. {friend_they} was not angry.",
            ),
        ),
        (
            (
                "They asked the {acquaintance} for some glue.",
                "{their} {relative} brought glue and a small brush.",
                "They carried all the pieces to the {acquaintance}, who could repair almost anything.",
            ),
            (
                "Piece by piece they put the {thing} together again.",
                "It took the whole afternoon, but they did not stop.",
                "First it did not hold. They tried again, more slowly, and then it did.",
            ),
        ),
    ),
    ending=(
        "The {thing} looked almost like new.",
        "Now the {thing} had a small line in the middle, and {friend} liked it even more.",
        '"It is not perfect," said {friend}, "but we made it together."',
    ),
)

ANIMAL = Plot(
    name="animal",
    paragraphs=(
        (
            (
                "{time} {hero} went to {place}, and {weather}.",
                "{time} {they} walked to {place} with {friend}.",
                "{hero} loved animals. {time} {they} was on the way to {place}.",
            ),
            (
                "Under a bush {they} heard a small sound.",
                "Then {they} saw two little eyes behind a tree.",
                "Something moved in the grass.",
            ),
            (
                "It was {a_animal}, and it could not walk.",
                "It was a very small {animal}. It was cold and hungry.",
                "There was {a_animal} with a hurt leg.",
            ),
        ),
        (
            (
                '"Poor little {animal}," said {hero}. "I will help you."',
                '"Do not be afraid," {they} said to the {animal}.',
                "{hero} sat down and waited until the {animal} was not afraid any more.",
            ),
            (
                "{they} gave it some water and {a_food}.",
                "{they} put it into a box with a warm blanket.",
                "Very slowly {they} picked it up and carried it home.",
            ),
            (
                '{their} {relative} said, "We can keep it until it is strong again."',
                'The doctor for animals said, "It needs rest, and a friend like you."',
                '"You must be gentle," said {their} {relative}, and {hero} nodded.',
            ),
        ),
        (
            (
                "Every day {hero} brought it food and talked to it.",
                "{friend} came, too, and together they looked after the {animal}.",
                "After a week the {animal} could stand, and after two weeks it could run.",
            ),
            (
                "Then the day came to say goodbye.",
                "At last the {animal} was well again.",
                "One morning it looked out of the window and wanted to go.",
            ),
        ),
    ),
    ending=(
        "They took it back to {place}. The {animal} looked at {hero} once more and ran away.",
        "{hero} opened the door. The {animal} went out, but it came back to visit every day.",
        '"Goodbye, little {animal}," said {hero}. {they} was {sad} and {glad} at the same time.',
    ),
)

AFRAID = Plot(
    name="afraid",
    paragraphs=(
        (
            (
                "{hero} was afraid of the dark.",
                "There was one thing that {hero} did not like: the deep water at the lake.",
                "{hero} was afraid of the big dog next door.",
            ),
            (
                "{they} did not tell anyone.",
                "Even {friend} did not know about it.",
                '"I am too small," {they} always said.',
            ),
        ),
        (
            (
                "{time} {hero} and {friend} were at {place}, and {weather}.",
                "{time} all the children went to {place}.",
            ),
            (
                '"Come with us!" called {friend}. But {hero} stood still.',
                "{hero} wanted to go with the others, but {their} legs did not move.",
                '{friend} looked back. "Are you afraid?" {friend_they} asked. {hero} nodded.',
            ),
            (
                '"I was afraid, too," said {friend}. "Take my hand."',
                '"We can go slowly," said {friend}. "One step, and then another."',
                '"Brave people are afraid, too," said the {acquaintance}. "But they try."',
            ),
        ),
        (
            (
                "{hero} took a deep breath and counted to three.",
                "{hero} held the hand of {friend} very tightly.",
                "{hero} closed {their} eyes and took one step. Nothing bad happened.",
            ),
            (
                "Then {they} took another step, and one more.",
                "It was not as bad as {they} had thought.",
                "After a while {they} even began to laugh.",
            ),
        ),
    ),
    ending=(
        '"I did it!" shouted {hero}.',
        "{hero} was not afraid any more, or only a little.",
        '"Look at me!" called {hero}, and {friend} clapped.',
    ),
)

BAKING = Plot(
    name="baking",
    paragraphs=(
        (
            (
                "Soon it was the birthday of {friend}, and {hero} wanted to bake a cake.",
                '{time} {hero} said, "Today I will bake a cake for {friend}!"',
                "{friend} was ill and had to stay in bed. {hero} decided to bake something for {friend_them}.",
            ),
            (
                "{they} took flour, sugar, butter and three eggs.",
                "{they} put on {a_colour} apron and washed {their} hands.",
                "In the kitchen {they} opened the big book of recipes.",
            ),
        ),
        (
            (
                "First {they} mixed everything in a large bowl. Then {they} poured it into a pan.",
                "{they} broke the eggs, one after the other, and stirred and stirred.",
                "There was flour on the table, on the floor, and on {their} nose.",
            ),
            (
                "But {they} forgot the time, and the cake turned black.",
                "Oh no! There was salt in it instead of sugar.",
                "But the dog was hungry, and when {hero} came back, the bowl was empty.",
            ),
            (
                "{hero} was so {sad} that {they} wanted to stop.",
                '"It is all my fault," said {hero}.',
                "{hero} looked at it and sighed.",
            ),
        ),
        (
            (
                '"That happens to everyone," said {their} {relative}. "Let us do it once more."',
                'The {acquaintance} looked through the window. "May I help you?"',
                'Then {their} {relative} came in. "When I was small, my first cake was black, too!"',
            ),
            (
                "This time they worked together, and they did not forget the clock.",
                "This time {hero} tasted everything before it went into the bowl.",
                "They started again, and {hero} watched the oven the whole time.",
            ),
            (
                "Soon the whole house smelled wonderful.",
                "When it was done, they put {colour} sugar on top.",
                "The cake was round and golden.",
            ),
        ),
    ),
    ending=(
        '"This is the best cake I have ever had," said {friend}.',
        "{friend} ate three pieces, and {hero} ate two.",
        "{hero} brought it to {friend}, and they ate it all.",
    ),
)

QUARREL = Plot(
    name="quarrel",
    paragraphs=(
        (
            (
                "{time} {hero} and {friend} both wanted to play with the {colour} {thing}.",
                "{time} they were at {place}, and there was only one {thing}.",
            ),
            (
                '"It is mine!" said {hero}. "No, I had it first!" said {friend}.',
                "{hero} pulled on one side, and {friend} pulled on the other.",
                '"You always take everything," said {friend}, and {hero} got angry.',
            ),
            (
                '"I will never play with you again!" shouted {hero}.',
                "{friend} went home without a word.",
                "Then nobody said anything any more.",
            ),
        ),
        (
            (
                "{hero} sat alone with the {thing}. It was no fun at all.",
                "At home {hero} did not want to eat, not even {a_food}.",
                "The next day {hero} played alone, and the day was very long.",
            ),
            (
                '"Why are you so {sad}?" asked {their} {relative}.',
                '{their} {relative} sat down next to {them}. "Tell me what happened," {their} {relative} said.',
                "{hero} thought about it for a long time.",
            ),
            (
                '"A toy is only a toy," said {their} {relative}. "But a friend is a friend."',
                '"What would you like {friend} to do?" asked {their} {relative}. {hero} knew the answer.',
                '"Maybe {friend} is sitting at home, too," said {their} {relative}.',
            ),
        ),
        (
            (
                "So {hero} took the {thing} and walked to the house of {friend}.",
                "{hero} ran all the way to {friend} and knocked at the door.",
                "On the way to {friend}, {hero} met {friend_them} in the middle of the street.",
            ),
            (
                '"I am sorry," they both said at the same time.',
                '"You can have it today," said {hero}, "and I can have it tomorrow."',
                '"I was wrong," said {hero}. "Please let us be friends again."',
            ),
        ),
    ),
    ending=(
        "They looked at each other and laughed.",
        "They played until the stars came out.",
        "After that they shared the {thing}, and the {food}, and everything else.",
    ),
)

EVERYDAY_PLOTS = (LOST, BROKEN, ANIMAL, AFRAID, BAKING, QUARREL)
