"""Bin packing: which pieces of text share a row.

`next_fit` is what reading from a stream gives: in order, a new row when the next piece does not fit. `best_fit` takes
the longest first and puts each into the fullest row that still has space for it. Neither is optimal (bin packing is
NP-hard), but best fit comes close to the bound, total length over row length, as soon as there are enough short
pieces. `one_per_row` is what padding without packing does, for comparison.

Whole documents do not always fit: if all are a little longer than half a row, each needs its own. `cut_to_fit` fills
every row to its end and goes on with the rest of the document in the next, where it cannot see its beginning. No space
is lost, but context is.

Source: Ding et al. 2024, "Fewer Truncations Improve Language Modeling", which packs documents by best fit.
"""

from __future__ import annotations

from collections.abc import Sequence


def next_fit(lengths: Sequence[int], seq: int) -> list[list[int]]:
    """Fill rows in the order of the pieces; open a row when the next piece does not fit.

    Args:
        lengths: of each piece, at most `seq`.
        seq: tokens in a row.

    Returns:
        For each row, the pieces in it.
    """
    rows: list[list[int]] = []
    space = 0
    for piece, length in enumerate(lengths):
        if length > space:
            rows.append([])
            space = seq
        rows[-1].append(piece)
        space -= length
    return rows


def best_fit(lengths: Sequence[int], seq: int) -> list[list[int]]:
    """Fill rows with the longest pieces first, each into the fullest row where it fits.

    Bit s of an integer says whether there is a row with exactly s tokens of space; the lowest bit at or above a
    piece's length is the fullest row where it fits. So a piece takes the same time however many rows there are.

    Args:
        lengths: of each piece, at most `seq`.
        seq: tokens in a row.

    Returns:
        For each row, the pieces in it.
    """
    rows: list[list[int]] = []
    rows_with_space: list[list[int]] = [[] for _ in range(seq + 1)]
    spaces = 0
    for piece in sorted(range(len(lengths)), key=lambda piece: -lengths[piece]):
        length = lengths[piece]
        fitting = spaces >> length
        if fitting:
            space = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_space[space].pop()
            if not rows_with_space[space]:
                spaces ^= 1 << space
        else:
            space, row = seq, len(rows)
            rows.append([])
        rows[row].append(piece)
        rows_with_space[space - length].append(row)
        spaces |= 1 << (space - length)
    return rows


def one_per_row(lengths: Sequence[int], seq: int) -> list[list[int]]:
    """Give each piece a row of its own."""
    return [[piece] for piece in range(len(lengths))]


def cut_to_fit(lengths: Sequence[int], seq: int) -> list[list[tuple[int, int, int]]]:
    """Fill each row to its end, cutting documents wherever it is full.

    A document's last token, if it would stand alone in the next row, is left out: it has nothing to predict, and the
    piece before has it as its last target.

    Args:
        lengths: of each document, with its end token.
        seq: tokens in a row.

    Returns:
        For each row, the pieces in it: (document, first token, one after its last token).

    Example:
        >>> cut_to_fit([3, 6, 2], seq=4)
        [[(0, 0, 3), (1, 0, 1)], [(1, 1, 5)], [(2, 0, 2)]]
    """
    rows: list[list[tuple[int, int, int]]] = []
    space = 0
    for document, length in enumerate(lengths):
        start = 0
        while start < length and not (start and start == length - 1):
            if not space:
                rows.append([])
                space = seq
            stop = min(length, start + space)
            rows[-1].append((document, start, stop))
            space -= stop - start
            start = stop
    return rows


FILLINGS = {"best-fit": best_fit, "next-fit": next_fit, "one-per-row": one_per_row}
