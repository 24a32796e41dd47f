"""Python functions to order, each with asserts that hold.

A function over a list of numbers is put together from three parts: which numbers (the even ones), what becomes of
them (their squares), and what of all that is returned (the sum). A function over a text is taken from a table. So there
are hundreds of different functions, and what an assert expects is computed from the parts, not by running the answer:
tests run the answer and its asserts. A second question asks for another test, or for the same with a loop.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cme295lab.finetuning.instructions.drafts import Draft, World, one_of


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of a function, in English, in Python and as a function.

    Attributes:
        english: as a request says it.
        name: what it adds to the function's name; may be empty.
        python: an expression in n, k or {items}.
        apply: what it does.
    """

    english: str
    name: str
    python: str
    apply: Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function to ask for.

    Attributes:
        english: what it returns.
        name: of the function.
        argument: its argument's name.
        body: lines after `def`.
        loop: the same with a loop; empty if there is none.
        apply: what it does.
        inputs: draws an argument.
    """

    english: str
    name: str
    argument: str
    body: str
    loop: str
    apply: Callable[[Any], Any]
    inputs: Callable[[random.Random], Any]


def _larger(k: int) -> Part:
    return Part(english=f"numbers larger than {k}", name=f"above_{k}", python=f"n > {k}", apply=lambda n: n > k)


def _smaller(k: int) -> Part:
    return Part(english=f"numbers smaller than {k}", name=f"below_{k}", python=f"n < {k}", apply=lambda n: n < k)


def _multiples(k: int) -> Part:
    return Part(
        english=f"multiples of {k}", name=f"multiples_of_{k}", python=f"n % {k} == 0", apply=lambda n: n % k == 0
    )


WHICH: Mapping[World, tuple[Part, ...]] = {
    "usual": (
        Part(english="numbers", name="", python="", apply=lambda n: True),
        Part(english="even numbers", name="even", python="n % 2 == 0", apply=lambda n: n % 2 == 0),
        Part(english="odd numbers", name="odd", python="n % 2 == 1", apply=lambda n: n % 2 == 1),
        Part(english="positive numbers", name="positive", python="n > 0", apply=lambda n: n > 0),
        Part(english="negative numbers", name="negative", python="n < 0", apply=lambda n: n < 0),
        *map(_larger, (2, 3, 4, 5, 6, 8, 10)),
        *map(_smaller, (2, 3, 4, 5, 7, 9, 10)),
        *map(_multiples, (3, 4, 5, 7)),
    ),
    "shifted": (*map(_larger, (25, 40, 50)), *map(_smaller, (30, 60)), *map(_multiples, (6, 9, 11))),
}
EACH: Mapping[World, tuple[Part, ...]] = {
    "usual": (
        Part(english="", name="", python="n", apply=lambda n: n),
        Part(english="squares of the ", name="squares", python="n * n", apply=lambda n: n * n),
        Part(english="doubles of the ", name="doubles", python="2 * n", apply=lambda n: 2 * n),
        Part(english="absolute values of the ", name="sizes", python="abs(n)", apply=abs),
        Part(english="opposites of the ", name="opposites", python="-n", apply=lambda n: -n),
        Part(english="last digits of the ", name="last_digits", python="abs(n) % 10", apply=lambda n: abs(n) % 10),
    ),
    "shifted": (
        Part(english="cubes of the ", name="cubes", python="n * n * n", apply=lambda n: n**3),
        Part(english="halves, rounded down, of the ", name="halves", python="n // 2", apply=lambda n: n // 2),
    ),
}
RESULT: Mapping[World, tuple[Part, ...]] = {
    "usual": (
        Part(english="the sum of the", name="sum_of", python="sum({items})", apply=sum),
        Part(english="a list of the", name="list_of", python="[{items}]", apply=list),
        Part(english="a sorted list of the", name="sorted_list_of", python="sorted({items})", apply=sorted),
        Part(english="the largest of the", name="largest_of", python="max([{items}], default=0)",
             apply=lambda items: max(items, default=0)),
        Part(english="the smallest of the", name="smallest_of", python="min([{items}], default=0)",
             apply=lambda items: min(items, default=0)),
    ),
    "shifted": (
        Part(english="a set of the", name="set_of", python="{{items}}", apply=set),
        Part(english="a tuple of the", name="tuple_of", python="tuple({items})", apply=tuple),
    ),
}  # fmt: skip
LOOPS = {
    "sum_of": ("result = 0", "result += {value}"),
    "list_of": ("result = []", "result.append({value})"),
    "set_of": ("result = set()", "result.add({value})"),
}


def _numbers(rng: random.Random) -> list[int]:
    return [rng.randrange(-12, 13) for _ in range(rng.randint(3, 5))]


def _large_numbers(rng: random.Random) -> list[int]:
    return [rng.randrange(-99, 100) for _ in range(rng.randint(3, 5))]


def _text(rng: random.Random) -> str:
    words = ("red", "apple", "tree", "a", "cold", "river", "on", "blue", "stone", "egg", "we", "sing", "level", "noon")
    return " ".join(rng.choice(words) for _ in range(rng.randint(1, 3)))


def _simple(
    english: str, name: str, argument: str, expression: str, apply: Callable[[Any], Any], inputs: Any = _text
) -> Function:
    return Function(
        english=english, name=name, argument=argument, body=f"return {expression}", loop="", apply=apply, inputs=inputs
    )


def _with_letter(letter: str) -> Function:
    return _simple(
        f'how often the letter "{letter}" is in a text', f"count_{letter}", "text", f'text.count("{letter}")',
        lambda text: sum(character == letter for character in text),
    )  # fmt: skip


def _long_words(k: int) -> Function:
    return _simple(
        f"a list of the words with more than {k} letters in a text", f"words_longer_than_{k}", "text",
        f"[word for word in text.split() if len(word) > {k}]",
        lambda text: list(filter(lambda word: len(word) > k, text.split(" "))),
    )  # fmt: skip


def _repeated(k: int) -> Function:
    return _simple(f"a text {k} times in a row", f"repeat_{k}_times", "text", f"text * {k}",
                   lambda text: "".join(text for _ in range(k)))  # fmt: skip


OTHERS: Mapping[World, tuple[Function, ...]] = {
    "usual": (
        _simple("a text backwards", "reverse_text", "text", "text[::-1]", lambda text: "".join(reversed(text))),
        _simple("a text in capital letters", "shout", "text", "text.upper()", str.upper),
        _simple("the number of words in a text", "count_words", "text", "len(text.split())",
                lambda text: text.count(" ") + 1),
        _simple("the first letter of a text", "first_letter", "text", "text[0]", lambda text: next(iter(text))),
        _simple("the longest word of a text", "longest_word", "text", "max(text.split(), key=len)",
                lambda text: sorted(text.split(), key=lambda word: -len(word))[0]),
        _simple("the number of vowels in a text", "count_vowels", "text",
                'sum(letter in "aeiou" for letter in text)', lambda text: sum(map(text.count, "aeiou"))),
        _simple("whether a text is the same backwards", "is_palindrome", "text", "text == text[::-1]",
                lambda text: all(text[i] == text[-1 - i] for i in range(len(text)))),
        *map(_with_letter, "abdelnrst"),
        *map(_long_words, (2, 3, 4)),
        *map(_repeated, (2, 3, 4)),
    ),
    "shifted": (
        _simple("a text without its spaces", "squeeze", "text", 'text.replace(" ", "")',
                lambda text: "".join(text.split(" "))),
        _simple("the last word of a text", "last_word", "text", "text.split()[-1]",
                lambda text: text.rpartition(" ")[2]),
        _simple("a text with each word capitalised", "title_case", "text", "text.title()", str.title),
        *map(_with_letter, "iow"),
    ),
}  # fmt: skip
REQUESTS: Mapping[World, tuple[str, ...]] = {
    "usual": (
        "Write a Python function that returns {english}.",
        "Write a function `{name}` in Python. It should return {english}.",
        "How do I write a Python function for {english}?",
        "I need Python code: `{name}({argument})` must return {english}.",
        "Can you write `{name}` for me? It returns {english}.",
        "Please give me a Python function, with a test, that returns {english}.",
    ),
    "shifted": (
        "Implement `{name}({argument})`, which computes {english}.",
        "Python task. Output: {english}. Call it `{name}`.",
        "A colleague needs {english}; show the Python for it.",
    ),
}
FOLLOW_UPS: Mapping[World, Mapping[str, tuple[str, ...]]] = {
    "usual": {
        "test": ("Can you add another test?", "Please write one more assert.", "Show me another example."),
        "loop": ("Can you write it with a loop?", "Please use a for loop instead.", "And with a loop?"),
    },
    "shifted": {"test": ("One further check, please.",), "loop": ("Rewrite this step by step, looping.",)},
}


def write(rng: random.Random, world: World) -> Draft:
    """A request for a function, the function with two asserts, and now and then a second question."""
    function = rng.choice(OTHERS[world]) if rng.random() < 0.2 else _over_numbers(rng, world)
    asserts = _asserts(rng, function)
    definition = f"def {function.name}({function.argument}):"
    code = [definition, _indented(function.body), "", *asserts[:2]]
    request = one_of(rng, world, REQUESTS).format(
        english=function.english, name=function.name, argument=function.argument
    )
    turns = [request, _fenced(code)]
    if rng.random() < 0.3:
        topic = "loop" if function.loop and rng.random() < 0.6 else "test"
        turns.append(rng.choice(FOLLOW_UPS[world][topic]))
        code = [definition, _indented(function.loop), "", *asserts[:1]] if topic == "loop" else list(asserts[2:])
        turns.append(_fenced(code))
    return Draft(turns=tuple(turns), family=f"code#{function.name}", facts={"name": function.name})


def _over_numbers(rng: random.Random, world: World) -> Function:
    which, each, result = (one_of(rng, world, parts) for parts in (WHICH, EACH, RESULT))
    items = f"{each.python} for n in values" + (f" if {which.python}" if which.python else "")
    another = "another" if "list" in result.english else "a"
    loop = ""
    if result.name in LOOPS:
        start, step = LOOPS[result.name]
        step = step.format(value=each.python)
        inner = f"    if {which.python}:\n        {step}" if which.python else f"    {step}"
        loop = f"{start}\nfor n in values:\n{inner}\nreturn result"
    return Function(
        english=f"{result.english} {each.english}{which.english} in {another} list",
        name="_".join(part for part in (result.name, which.name, each.name) if part) or "numbers",
        argument="values",
        body=f"return {result.python.replace('{items}', items)}",
        loop=loop,
        apply=lambda values: result.apply([each.apply(n) for n in values if which.apply(n)]),
        inputs=_numbers if world == "usual" else _large_numbers,
    )


def _asserts(rng: random.Random, function: Function) -> list[str]:
    """Three asserts with different arguments."""
    arguments: list[Any] = []
    while len(arguments) < 3:
        argument = function.inputs(rng)
        if argument not in arguments:
            arguments.append(argument)
    return [_assertion(function.name, argument, function.apply(argument)) for argument in arguments]


def _assertion(name: str, argument: Any, value: Any) -> str:
    if isinstance(value, bool):
        return f"assert {'' if value else 'not '}{name}({_quoted(argument)})"
    return f"assert {name}({_quoted(argument)}) == {_quoted(value)}"


def _quoted(value: Any) -> str:
    """Python for a value, with double quotes, and the members of a set in order."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, set):
        return f"{{{', '.join(map(_quoted, sorted(value)))}}}" if value else "set()"
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    return repr(value)


def _indented(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines())


def _fenced(lines: Sequence[str]) -> str:
    return "\n".join(("```python", *lines, "```"))
