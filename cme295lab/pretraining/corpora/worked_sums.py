"""Generated sums with every step written out.

A model that only sees "47 + 38 = 85" has to do all carrying in its head. Here each problem is worked the way it is
taught at school, digit by digit, so that each token follows from a few before it. Problems are drawn with a seed, no
problem comes twice, and a problem and its mirror image (a + b and b + a) are one family: validation asks for sums that
were never shown, in either order.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from cme295lab.pretraining.corpora.document import Document

MOST_DOCUMENTS = 50_000  # beyond that, new problems get rare
PLACES = ("ones", "tens", "hundreds", "thousands")
_QUESTIONS = ("What is {problem}?", "Work out {problem}.", "How much is {problem}?", "Calculate {problem}.")


def arithmetic(seed: int = 0, num_documents: int = 8000) -> list[Document]:
    """Worked problems: addition, subtraction, multiplication, division with remainder.

    Args:
        seed: another seed, other problems.
        num_documents: one problem each, all different.

    Returns:
        Documents of the domain "arithmetic": the same for the same seed, and the first of a longer list.

    Raises:
        ValueError: if `num_documents` is not between 1 and 50,000.
    """
    if not 1 <= num_documents <= MOST_DOCUMENTS:
        raise ValueError(f"num_documents must be between 1 and {MOST_DOCUMENTS:,}, got {num_documents}")
    rng = random.Random(f"arithmetic {seed}")
    documents: dict[str, Document] = {}
    while len(documents) < num_documents:
        operation = rng.choice(sorted(_OPERATIONS))
        a, b = _OPERANDS[operation](rng)
        family = _family(operation, a, b)
        problem = f"{a} {operation} {b}"
        if problem not in documents:
            question = rng.choice(_QUESTIONS).format(problem=problem)
            text = "\n".join([question, *_OPERATIONS[operation](a, b)]) + "\n"
            documents[problem] = Document(text, "arithmetic", f"arithmetic#{problem}", family=family)
    return list(documents.values())


def _family(operation: str, a: int, b: int) -> str:
    low, high = sorted((a, b))
    return f"arithmetic#{low} {operation} {high}" if operation in "+*" else f"arithmetic#{a} {operation} {b}"


def add(a: int, b: int) -> list[str]:
    """The steps of a written addition.

    Example:
        >>> print("\\n".join(add(47, 38)))
        ones: 7 + 8 = 15, write 5, carry 1
        tens: 4 + 3 + 1 = 8, write 8
        47 + 38 = 85
    """
    lines, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = _digit(a, place), _digit(b, place)
        total = x + y + carry
        written = f"{x} + {y}" + (f" + {carry}" if carry else "")
        carry = total // 10
        lines.append(
            f"{PLACES[place]}: {written} = {total}, write {total % 10}" + (f", carry {carry}" if carry else "")
        )
    if carry:
        lines.append(f"{PLACES[place + 1]}: write {carry}")
    return [*lines, f"{a} + {b} = {a + b}"]


def subtract(a: int, b: int) -> list[str]:
    """The steps of a written subtraction of a smaller number.

    Example:
        >>> print("\\n".join(subtract(52, 17)))
        ones: 2 is less than 7, borrow 1, 12 - 7 = 5, write 5
        tens: 5 - 1 - 1 = 3, write 3
        52 - 17 = 35
    """
    lines, borrowed = [], 0
    for place in range(len(str(a))):
        x, y = _digit(a, place), _digit(b, place)
        taken, written = y + borrowed, f"{y}" + (f" - {borrowed}" if borrowed else "")
        short = x < taken
        reason = f"{x} is less than {taken}, borrow 1, " if short else ""
        x += 10 * short
        lines.append(f"{PLACES[place]}: {reason}{x} - {written} = {x - taken}, write {x - taken}")
        borrowed = int(short)
    return [*lines, f"{a} - {b} = {a - b}"]


def multiply(a: int, b: int) -> list[str]:
    """The steps of a multiplication, place by place of the first factor.

    Example:
        >>> print("\\n".join(multiply(34, 6)))
        34 = 30 + 4
        30 * 6 = 180
        4 * 6 = 24
        180 + 24 = 204
        34 * 6 = 204
    """
    parts = [_digit(a, place) * 10**place for place in reversed(range(len(str(a)))) if _digit(a, place)]
    lines = [f"{a} = {' + '.join(map(str, parts))}"] if len(parts) > 1 else []
    lines += [f"{part} * {b} = {part * b}" for part in parts] if len(parts) > 1 else []
    total = parts[0] * b
    for part in parts[1:]:
        lines.append(f"{total} + {part * b} = {total + part * b}")
        total += part * b
    return [*lines, f"{a} * {b} = {a * b}"]


def divide(a: int, b: int) -> list[str]:
    """A division with remainder, and the multiples on both sides.

    Example:
        >>> print("\\n".join(divide(38, 7)))
        5 * 7 = 35 is not more than 38
        6 * 7 = 42 is more than 38
        38 - 35 = 3
        38 / 7 = 5 remainder 3
    """
    quotient, rest = divmod(a, b)
    return [
        f"{quotient} * {b} = {quotient * b} is not more than {a}",
        f"{quotient + 1} * {b} = {(quotient + 1) * b} is more than {a}",
        f"{a} - {quotient * b} = {rest}",
        f"{a} / {b} = {quotient} remainder {rest}",
    ]


def _digit(number: int, place: int) -> int:
    return number // 10**place % 10


def _number(rng: random.Random, most_digits: int) -> int:
    """As many numbers of one digit as of two and of three: small sums are what the large ones are made of."""
    return rng.randrange(10 ** rng.randint(1, most_digits))


def _sums(rng: random.Random) -> tuple[int, int]:
    return _number(rng, 3), _number(rng, 3)


def _differences(rng: random.Random) -> tuple[int, int]:
    low, high = sorted(_sums(rng))
    return high, low


def _products(rng: random.Random) -> tuple[int, int]:
    return rng.randrange(1, 1000), rng.randrange(2, 13)


def _quotients(rng: random.Random) -> tuple[int, int]:
    return rng.randrange(1, 1000), rng.randrange(2, 13)


_OPERATIONS: dict[str, Callable[[int, int], list[str]]] = {"+": add, "-": subtract, "*": multiply, "/": divide}
_OPERANDS: dict[str, Callable[[random.Random], tuple[int, int]]] = {
    "+": _sums, "-": _differences, "*": _products, "/": _quotients
}  # fmt: skip
