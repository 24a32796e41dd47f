"""Word problems with their steps written out, and plain sums.

A problem is a formula, some phrasings of a story around it, and a sentence for each step. The numbers stand in every
phrasing in the same order, and so a test can compute the answer again from the question alone. Each step is an equation
that holds. Shifted problems have larger numbers, other things and other phrasings of the same formulas.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cme295lab.finetuning.instructions.drafts import Draft, World, fill, one_of
from cme295lab.pretraining.corpora import worked_sums
from cme295lab.pretraining.corpora.story_words import BOYS, GIRLS

NAMES: Mapping[World, tuple[str, ...]] = {
    "usual": (*GIRLS, *BOYS),
    "shifted": ("Agnes", "Boris", "Chen", "Dilara", "Elif", "Farid", "Greta", "Hiro", "Inga", "Jonas", "Keiko", "Luca"),
}
THINGS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "apples", "pencils", "books", "stamps", "marbles", "buttons", "cookies", "flowers", "shells", "stickers",
        "cards", "balloons", "eggs", "oranges", "pears", "ribbons", "stones", "toy cars",
    ),
    "shifted": ("tickets", "screws", "batteries", "lemons", "postcards", "tiles", "bricks", "candles"),
}  # fmt: skip
EXTRAS: Mapping[World, tuple[str, ...]] = {
    "usual": ("a bag", "a map", "a hat", "a ball", "a cake", "a lamp", "a kite", "a cup"),
    "shifted": ("a ladder", "a toolbox", "a clock", "a rug"),
}
Numbers = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A kind of word problem.

    Attributes:
        name: of the kind.
        questions: phrasings, by world; {a}, {b} and {c} stand in this order.
        numbers: draws them, none smaller than it makes sense; the second argument is how large they may get.
        steps: the lines of the answer before the last one.
        result: the last step's.
        unit: what the answer is counted in.
    """

    name: str
    questions: Mapping[World, tuple[str, ...]]
    numbers: Callable[[random.Random, int], Numbers]
    steps: Callable[..., tuple[str, ...]]
    result: Callable[..., int]
    unit: str


def _draw(rng: random.Random, most: int) -> int:
    return rng.randrange(2 + most // 10, most + 1)


def _three(rng: random.Random, most: int) -> Numbers:
    return _draw(rng, most), _draw(rng, most), _draw(rng, most)


def _two(rng: random.Random, most: int) -> Numbers:
    return _draw(rng, most), _draw(rng, most)


def _some_left(rng: random.Random, most: int) -> Numbers:
    a, b = _two(rng, 3 * most)
    return a, b, rng.randrange(1, a + b)


def _some_taken(rng: random.Random, most: int) -> Numbers:
    a, b = _two(rng, most)
    return a, b, rng.randrange(1, a * b)


def _divides(rng: random.Random, most: int) -> Numbers:
    each, b = _two(rng, most)
    return each * b, b


def _boxes(rng: random.Random, most: int) -> Numbers:
    c = rng.choice((2, 3, 4, 5, 6))
    return c * rng.randrange(1, max(2, most // 3)), _draw(rng, most), c


def _change(rng: random.Random, most: int) -> Numbers:
    b, c = _two(rng, most)
    return b + c + rng.randrange(1, 2 * most), b, c


PROBLEMS = (
    Problem(
        name="buying",
        questions={
            "usual": (
                "{name} buys {a} {things} for {b} coins each and {extra} for {c} coins. How much does {name} pay?",
                "A shop sells {things}. {name} takes {a} of them at {b} coins each, and {extra} for {c} coins. "
                "What does all of it cost?",
                "How many coins do {a} {things} at {b} coins each and {extra} at {c} coins cost together?",
            ),
            "shifted": (
                "On the bill of {name} there are {a} {things}, {b} coins apiece, plus {extra}, {c} coins. "
                "Give me the total.",
                "Add up: {a} {things} with a price of {b} coins per piece, then {extra} worth {c} coins.",
            ),
        },
        numbers=_three,
        steps=lambda a, b, c: (f"The {{things}} cost {a} * {b} = {a * b} coins.", f"{a * b} + {c} = {a * b + c}."),
        result=lambda a, b, c: a * b + c,
        unit="coins",
    ),
    Problem(
        name="giving",
        questions={
            "usual": (
                "{name} has {a} {things}, finds {b} more and gives away {c}. How many are left?",
                "There were {a} {things} in a box. {name} put in {b} and took out {c}. How many are there now?",
                "{name} had {a} {things}. Then came {b} more, and then {c} got lost. How many does {name} have now?",
            ),
            "shifted": (
                "A shed holds {a} {things}. A van brings {b}, a customer leaves with {c}. What remains?",
                "Starting from {a} {things}, {name} collects {b} and sells {c}. Tell me the final number.",
            ),
        },
        numbers=_some_left,
        steps=lambda a, b, c: (f"First there are {a} + {b} = {a + b} {{things}}.", f"{a + b} - {c} = {a + b - c}."),
        result=lambda a, b, c: a + b - c,
        unit="{things}",
    ),
    Problem(
        name="sharing",
        questions={
            "usual": (
                "{a} {things} are shared equally by {b} children. How many does each child get?",
                "{name} has {a} {things} and puts the same number into each of {b} bags. How many are in a bag?",
            ),
            "shifted": (
                "Split {a} {things} evenly over {b} shelves. What does one shelf hold?",
                "With {a} {things} for {b} workers, what is a fair share?",
            ),
        },
        numbers=_divides,
        steps=lambda a, b: (f"We divide: {a} / {b} = {a // b}.", f"To check: {a // b} * {b} = {a}."),
        result=lambda a, b: a // b,
        unit="{things}",
    ),
    Problem(
        name="seats",
        questions={
            "usual": (
                "A hall has {a} rows of {b} chairs. {c} chairs are taken. How many are free?",
                "In a room there are {a} rows with {b} chairs in each, and people sit on {c} of them. "
                "How many chairs are empty?",
            ),
            "shifted": (
                "A theatre offers {a} rows, {b} seats per row, and sold {c} seats. How many can still be sold?",
                "Of {a} times {b} seats on a ferry, {c} are occupied. What is left over?",
            ),
        },
        numbers=_some_taken,
        steps=lambda a, b, c: (f"All in all there are {a} * {b} = {a * b}.", f"{a * b} - {c} = {a * b - c}."),
        result=lambda a, b, c: a * b - c,
        unit="seats",
    ),
    Problem(
        name="walking",
        questions={
            "usual": (
                "{name} walks {a} miles every day. How far does {name} walk in {b} days?",
                "Every week {name} reads {a} pages. How many pages is that in {b} weeks?",
                "{name} plants {a} trees in an hour. How many trees are planted after {b} hours?",
            ),
            "shifted": (
                "A pump moves {a} litres per minute. Give the amount after {b} minutes.",
                "At {a} parcels per trip, what do {b} trips deliver?",
            ),
        },
        numbers=_two,
        steps=lambda a, b: (f"It is {a} each time, {b} times: {a} * {b} = {a * b}.",),
        result=lambda a, b: a * b,
        unit="",
    ),
    Problem(
        name="comparing",
        questions={
            "usual": (
                "{name} has {a} {things}. {friend} has {b} more than that. How many do they have together?",
                "{name} found {a} {things}, and {friend} found {b} more than {name}. How many did both find?",
            ),
            "shifted": (
                "{name} owns {a} {things}; {friend} owns {b} beyond that number. State the sum for the pair.",
                "If {name} counts {a} {things} and {friend} counts {b} extra, what is the joint total?",
            ),
        },
        numbers=lambda rng, most: _two(rng, 2 * most),
        steps=lambda a, b: (f"{{friend}} has {a} + {b} = {a + b}.", f"Together: {a} + {a + b} = {2 * a + b}."),
        result=lambda a, b: 2 * a + b,
        unit="{things}",
    ),
    Problem(
        name="boxes",
        questions={
            "usual": (
                "{a} boxes with {b} {things} in each are divided equally among {c} children. "
                "How many does each child get?",
                "{name} opens {a} boxes of {b} {things} and makes {c} equal heaps. How many are in a heap?",
            ),
            "shifted": (
                "Take {a} crates, {b} {things} per crate, and distribute everything over {c} lorries. "
                "What does a lorry carry?",
            ),
        },
        numbers=_boxes,
        steps=lambda a, b, c: (f"There are {a} * {b} = {a * b} {{things}}.", f"{a * b} / {c} = {a * b // c}."),
        result=lambda a, b, c: a * b // c,
        unit="{things}",
    ),
    Problem(
        name="change",
        questions={
            "usual": (
                "{name} has {a} coins and spends {b} on {things} and {c} on {extra}. How many coins are left?",
                "With {a} coins, {name} pays {b} for some {things} and {c} for {extra}. How much money is left?",
            ),
            "shifted": (
                "From {a} coins in the purse of {name} go {b} for {things} and {c} for {extra}. What stays in it?",
            ),
        },
        numbers=_change,
        steps=lambda a, b, c: (f"{{name}} pays {b} + {c} = {b + c} coins.", f"{a} - {b + c} = {a - b - c}."),
        result=lambda a, b, c: a - b - c,
        unit="coins",
    ),
)
PLAIN: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "What is {sum}?", "Work out {sum}.", "Can you calculate {sum} for me?", "How much is {sum}? Show every step.",
        "Please solve {sum} step by step.",
    ),
    "shifted": ("Find the value of {sum}.", "I need {sum}, with the steps.", "{sum} = ?"),
}  # fmt: skip
WORKED: Mapping[str, Callable[[int, int], list[str]]] = {
    "+": worked_sums.add, "-": worked_sums.subtract, "*": worked_sums.multiply
}  # fmt: skip
FOLLOW_UPS: Mapping[World, tuple[str, ...]] = {
    "usual": ("And if there were {more} more?", "What do you get if you add {more} to that?", "Now add {more}."),
    "shifted": ("Raise the result by {more}.", "Put {more} on top. What now?"),
}
LARGEST: Mapping[World, int] = {"usual": 20, "shifted": 80}


def write(rng: random.Random, world: World) -> Draft:
    """A word problem or a plain sum, and now and then a second question about its result."""
    draft = _sum(rng, world) if rng.random() < 0.3 else _word_problem(rng, world)
    if rng.random() > 0.25:
        return draft
    more, result = rng.randrange(1, LARGEST[world]), int(draft.facts["result"])
    question = one_of(rng, world, FOLLOW_UPS).format(more=more)
    answer = f"{result} + {more} = {result + more}. The answer is {result + more}."
    return Draft(turns=(*draft.turns, question, answer), family=draft.family, facts=draft.facts)


def _word_problem(rng: random.Random, world: World) -> Draft:
    problem = rng.choice(PROBLEMS)
    numbers = problem.numbers(rng, LARGEST[world])
    name = one_of(rng, world, NAMES)
    words = {
        "name": name,
        "friend": rng.choice([other for other in NAMES[world] if other != name]),
        "things": one_of(rng, world, THINGS),
        "extra": one_of(rng, world, EXTRAS),
        **dict(zip("abc", map(str, numbers))),
    }
    result = problem.result(*numbers)
    last = f"The answer is {result}{' ' + problem.unit if problem.unit else ''}."
    answer = fill(rng, "\n".join((*problem.steps(*numbers), last)), words)
    family = f"arithmetic#{problem.name} {' '.join(map(str, numbers))}"
    question = fill(rng, one_of(rng, world, problem.questions), words)
    return Draft(turns=(question, answer), family=family, facts={"result": str(result), "problem": problem.name})


def _sum(rng: random.Random, world: World) -> Draft:
    sign = rng.choice(tuple(WORKED))
    most = (10 if sign == "*" else 50) * LARGEST[world] // 20
    a, b = rng.randrange(1, 10 * most), rng.randrange(1, most if sign == "*" else 10 * most)
    if sign == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[sign]
    answer = "\n".join([*WORKED[sign](a, b), f"The answer is {result}."])
    low, high = (a, b) if sign == "-" else (min(a, b), max(a, b))
    question = one_of(rng, world, PLAIN).format(sum=f"{a} {sign} {b}")
    return Draft(
        turns=(question, answer), family=f"arithmetic#{low} {sign} {high}", facts={"result": str(result), "problem": ""}
    )
