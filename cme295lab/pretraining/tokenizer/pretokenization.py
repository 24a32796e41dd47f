"""Where a token may begin and end: text is cut into words before anything is merged.

Without that, the most common pair in English would soon be "e" and " ", and tokens would straddle words. The pattern is
GPT-2's: a contraction ('s, 't, ...), or letters, or digits, or other symbols, each with one space before it; else white
space. A space belongs to the word after it, so " the" and "the" are different pieces.

    "The dog's 12 toys!"  ->  "The"  " dog"  "'s"  " 12"  " toys"  "!"

Python's `re` does not know the classes \\p{L} (letters) and \\p{N} (numbers) of Unicode that the pattern needs, and its
\\s is another set than Unicode's White_Space (it holds four control characters more). So the classes are written out
from `unicodedata`. A character that was added to Unicode lately may be a letter for one library and none for another.

Source: Radford et al. 2019 (GPT-2), `encoder.py` of its release.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
import unicodedata
from collections.abc import Iterator

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
WHITE_SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def pieces(text: str) -> Iterator[str]:
    """Cut a text; the pieces put together are the text.

    Example:
        >>> list(pieces("The dog's 12 toys!"))
        ['The', ' dog', "'s", ' 12', ' toys', '!']
    """
    return (match.group() for match in _pattern().finditer(text))


@functools.cache
def _pattern() -> re.Pattern[str]:
    letter, number = _class("L"), _class("N")
    return re.compile(
        f"{'|'.join(CONTRACTIONS)}| ?[{letter}]+| ?[{number}]+| ?[^{WHITE_SPACE}{letter}{number}]+"
        f"|[{WHITE_SPACE}]+(?![^{WHITE_SPACE}])|[{WHITE_SPACE}]+"
    )


def _class(category: str) -> str:
    """All characters of a general category, as ranges between the brackets of a pattern."""
    ranges = []
    for belongs, run in itertools.groupby(
        range(sys.maxunicode + 1), key=lambda code: unicodedata.category(chr(code))[0] == category
    ):
        if belongs:
            codes = list(run)
            ranges.append(f"\\U{codes[0]:08x}-\\U{codes[-1]:08x}")
    return "".join(ranges)
