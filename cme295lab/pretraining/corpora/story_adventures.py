"""More plots: seeds and snow, a race, a raft and a noise in the night. Slots are those of `story_plots`."""

from __future__ import annotations

from cme295lab.pretraining.corpora.story_plots import Plot

SEEDS = Plot(
    name="seeds",
    paragraphs=(
        (
            (
                "{time} the {acquaintance} gave {hero} a bag of seeds.",
                "{hero} found five seeds in an old box. They were brown and very small.",
                "{hero} bought some seeds at the market with {their} own money.",
            ),
            (
                '"What will grow from them?" asked {hero}. "Wait and see," was the answer.',
                '"They look like nothing at all," said {friend}.',
                "{they} did not know what they were, but {they} wanted to find out.",
            ),
        ),
        (
            (
                "{hero} dug little holes in the garden and put a seed into each.",
                "{they} filled {a_colour} pot with earth and put the seeds into it.",
                "Together with {friend}, {they} chose a place in the sun and put the seeds into the ground.",
            ),
            (
                "Every morning {they} gave them water. One day passed, and another, and nothing happened.",
                "{they} looked at the ground every day after breakfast. There was only earth.",
                "A week went by. Nothing could be seen.",
            ),
            (
                '"Maybe they are asleep," said {friend}.',
                '"I think that they are dead," said {hero}. {they} was {sad}.',
                '"Be patient," said {their} {relative}. "Good things take time."',
            ),
        ),
        (
            (
                "Then it rained for two days, and {hero} had to stay in the house.",
                "{hero} went on and gave them water, day after day.",
                "In the third week the sun was warm and the birds came back.",
            ),
            (
                "When {they} went out again, there was something green!",
                "And one morning a tiny leaf looked out of the earth.",
                '"Come quickly!" called {friend}. "Look at this!"',
            ),
            (
                "The plants grew taller and taller, until they were taller than {hero}.",
                "Soon there were many leaves, and then the first {colour} flower.",
                "By the end of the summer the garden was full of {colour} flowers.",
            ),
        ),
    ),
    ending=(
        "{hero} gave the most beautiful flower to {their} {relative}.",
        "{hero} kept some new seeds in a box, for the next year.",
        "Even the {acquaintance} came to look, and said that no garden was more beautiful.",
    ),
)

RACE = Plot(
    name="race",
    paragraphs=(
        (
            (
                "Every year there was a big race at {place}.",
                "{time} all the children of the village met for a race.",
                "The school had a race to {place} and back, and {weather}.",
            ),
            (
                "{hero} wanted to win more than anything else.",
                "{hero} was not very fast, but {they} had practised every day.",
                "{friend} was the fastest of all, and everyone knew it.",
            ),
        ),
        (
            (
                '"One, two, three, go!" called the {acquaintance}.',
                "The bell rang, and they all began to run.",
                "The {acquaintance} waved {a_colour} flag, and off they went.",
            ),
            (
                "{hero} ran as fast as {they} could. Soon only {friend} was in front of {them}.",
                "At the first tree {hero} was the last, at the second tree {they} was in the middle.",
                "{hero} ran and ran, and {their} heart beat like a drum.",
            ),
            (
                "Then {friend} fell over a root and cried out.",
                "Suddenly {friend} stopped and held {friend_their} foot.",
                "Just before the end, {friend} slipped on the wet grass.",
            ),
        ),
        (
            (
                "{hero} could have won now. But {they} stopped.",
                "The others ran past. {hero} looked at them, and then {they} turned around.",
                '"Run!" said {friend}. "You can win!" But {hero} shook {their} head.',
            ),
            (
                '"Can you stand up?" asked {hero}, and gave {friend_them} a hand.',
                '"Put your arm around me," said {hero}.',
                "{hero} helped {friend_them} up, and they walked on together.",
            ),
            (
                "They were the last to arrive, but everybody clapped.",
                "When they came to the end, arm in arm, all the people cheered.",
                "Step by step they reached the end of the race.",
            ),
        ),
    ),
    ending=(
        "The prize was {a_food}, and the winner gave half of it to {hero}.",
        '"You are the real winner," said the {acquaintance}.',
        '"Next year I will help you," said {friend}.',
    ),
)

RAFT = Plot(
    name="raft",
    paragraphs=(
        (
            (
                "{time} {hero} and {friend} had an idea: they would build a raft.",
                '"If we had a boat, we could go to the island," said {hero}.',
                "On the other side of the water there was a small island. {hero} wanted to see it.",
            ),
            (
                "They looked for wood, and {weather}.",
                "They brought six boards, a rope and {a_thing}.",
                "{hero} made a plan and drew it on a piece of paper.",
            ),
        ),
        (
            (
                "{friend} held the boards, and {hero} tied them together.",
                "They worked from morning until noon, and then they ate {a_food}.",
                "It was hard work, and the rope was too short.",
            ),
            (
                "When they put the raft on the water, it sank at once.",
                "The first raft turned over, and both of them got wet.",
                "The raft was not strong enough. One board swam away.",
            ),
            (
                '"It does not work," said {friend}. {friend_they} was {sad}.',
                '"We have to think again," said {hero}.',
                "They sat on the bank and looked at what was left.",
            ),
        ),
        (
            (
                'Then the {acquaintance} came by. "Wood alone is heavy," was the advice. "Take empty barrels."',
                '{hero} saw {a_animal} on a piece of bark. It did not sink! "So it must be light," {they} said.',
                "{their} {relative} showed them a better knot.",
            ),
            (
                "They built it once more, wider than before.",
                "They changed the plan and began again.",
                "Now {friend} tied the knots, and {hero} pulled as hard as {they} could.",
            ),
            (
                "They gave it {a_colour} flag. This time it did not sink!",
                "Slowly they put it on the water. It swam!",
                "They stepped on it, first one and then the other, and it carried them both.",
            ),
        ),
    ),
    ending=(
        "On the island they found {a_animal} and the best blackberries in the world.",
        '"Captain {hero}," said {friend}, "where shall we go?"',
        "They waved to everyone on the bank and felt like real sailors.",
    ),
)

NIGHT = Plot(
    name="night",
    paragraphs=(
        (
            (
                "One night {hero} woke up. There was a strange noise.",
                "{hero} was already in bed when something knocked at the window.",
                "In the middle of the night {hero} heard steps above {their} head.",
            ),
            (
                "Tap, tap, tap, it went. Then it was quiet, and then it began again.",
                "It was dark, and the wind was blowing around the house.",
                "{they} pulled the blanket over {their} head and listened.",
            ),
        ),
        (
            (
                '"Is there anybody?" whispered {hero}. There was no answer.',
                "{hero} thought of giants and ghosts.",
                "{friend}, who was staying for the night, was awake, too.",
            ),
            (
                '"We have to look," said {friend}, "or we will never sleep."',
                "At last {hero} took the lamp and got up.",
                "Very slowly {they} put one foot on the cold floor, and then the other.",
            ),
            (
                "Step by step they went up to the attic.",
                "They opened the door, and it creaked.",
                "The noise came from behind the {colour} curtain.",
            ),
        ),
        (
            (
                "And there, in the light of the lamp, sat {a_animal}!",
                "It was {a_animal}, and it was more afraid than they were.",
                "Behind it they found {a_animal} that looked for a warm place.",
            ),
            (
                '"So you are our ghost!" said {hero}, and they had to laugh.',
                '"Hello, you," said {hero} quietly. "Are you cold?"',
                '"Sh," said {friend}. "Look how small it is."',
            ),
            (
                "They gave it {a_food} and an old blanket.",
                "They made a bed for it in {a_thing}.",
                "{hero} opened the window, and it climbed down the tree and was gone.",
            ),
        ),
    ),
    ending=(
        "After that {hero} was never afraid of noises again.",
        "In the morning nobody wanted to believe them.",
        '"What did you do last night?" asked {their} {relative} at breakfast. {hero} and {friend} only smiled.',
    ),
)

ADVENTURES = (SEEDS, RACE, RAFT, NIGHT)
