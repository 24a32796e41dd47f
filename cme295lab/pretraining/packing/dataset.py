"""Tokenised documents, packed into rows, from which any batch of a run can be asked for.

    tokens      the   cat   end  |  2   +   2   end  |  end        (a row of 8)
    targets     cat   end   -    |  +   2   end  -   |  -          (-100: nothing to predict)
    documents    1     1     1   |  2   2   2    2   |  0          (0: padding)
    positions    0     1     2   |  0   1   2    3   |  0

A token attends to its own document only (the mask is block-diagonal), and positions start again at 0, so each document
gets the logits that it would get alone. Hence it does not matter who shares a row with whom: rows are filled once, by
length, and each epoch shuffles rows.

A document longer than a row is cut into pieces. The last token of a piece still has its target, the first token of the
next, so every token but a document's first is predicted exactly once in an epoch.

**Resuming needs no state.** Row i of the training run, counted from its start, is a pure function of the seed and of i:
epoch `i // num_rows`, at that epoch's shuffled place `i % num_rows`. Batch `step` holds rows `step * rows` onwards. A
batch may reach into the next epoch, or, if the data set is small, into several.

What is not covered: data sets larger than memory (4 bytes a token are held) and shuffling across several files.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cme295lab.pretraining.packing.filling import FILLINGS, cut_to_fit

IGNORED_TARGET = -100  # torch's cross-entropy leaves it out
PADDING_DOCUMENT = 0
CUT_TO_FIT = "cut-to-fit"


class Piece(NamedTuple):
    """A run of tokens in one row: where it starts in the stream, its length, and whether its document ends in it."""

    start: int
    length: int
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of packed documents.

    Attributes:
        tokens: what the model reads.
        targets: what it should say next; -100 where there is nothing to say (a document's end, padding).
        documents: 1, 2, ... within a row; 0 is padding.
        positions: of each token in its document or piece.
    """

    tokens: Int[Tensor, "rows seq"]
    targets: Int[Tensor, "rows seq"]
    documents: Int[Tensor, "rows seq"]
    positions: Int[Tensor, "rows seq"]

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted: what a sum of losses must be divided by."""
        return int((self.targets != IGNORED_TARGET).sum())

    def split(self, rows: int) -> list[Batch]:
        """Cut into batches of `rows` rows; the last may have fewer."""
        parts = [getattr(self, field.name).split(positive("rows", rows)) for field in fields(self)]
        return [Batch(tokens=a, targets=b, documents=c, positions=d) for a, b, c, d in zip(*parts)]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class PackedDataset:
    """Tokenised documents, packed into rows, from which any batch of a run can be asked for.

    Args:
        documents: token ids of each document, none empty; the end token is added here.
        seq: tokens in a row.
        seed: decides the order of rows in each epoch.
        end_token: closes each document, and fills what is left of a row.
        filling: how documents are put into rows: "best-fit", "next-fit" or "one-per-row" keep them whole if
            they fit a row at all; "cut-to-fit" wastes nothing, and cuts.

    Raises:
        ValueError: if there are no documents, one is empty or holds a negative id, or `seq` is smaller than 2.

    Example:
        >>> data = PackedDataset([[5, 6], [7, 8, 9]], seq=8, end_token=0)
        >>> data.batch(step=0, rows=1).tokens.tolist()
        [[7, 8, 9, 0, 5, 6, 0, 0]]
        >>> data.batch(step=0, rows=1).targets.tolist()
        [[8, 9, 0, -100, 6, 0, -100, -100]]
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        *,
        seq: int,
        seed: int = 0,
        end_token: int,
        filling: Literal["best-fit", "next-fit", "one-per-row", "cut-to-fit"] = "best-fit",
    ) -> None:
        self.seq, self.seed, self.end_token = operator.index(seq), operator.index(seed), operator.index(end_token)
        if self.seq < 2:
            raise ValueError(f"seq must be at least 2, a token and what follows it, got {seq}")
        if self.seed < 0 or self.end_token < 0:
            raise ValueError(f"seed and end_token must not be negative, got {seed} and {end_token}")
        if filling not in (*FILLINGS, CUT_TO_FIT):
            raise ValueError(f"filling must be one of {', '.join((*FILLINGS, CUT_TO_FIT))}, got {filling!r}")
        self._stream, starts = _stream_of(documents, self.end_token)
        self._rows = _rows(starts, self.seq, filling)
        self.num_documents = len(documents)
        self.num_tokens = sum(piece.length for row in self._rows for piece in row)
        self.num_targets = self.num_tokens - sum(piece.ends for row in self._rows for piece in row)

    @property
    def num_rows(self) -> int:
        """Rows of an epoch."""
        return len(self._rows)

    @property
    def largest_token(self) -> int:
        """The largest token id, end token included: a model must know more tokens than that."""
        return int(self._stream.max())

    @property
    def utilisation(self) -> float:
        """The share of an epoch's positions that hold a document's token; the rest is padding."""
        return self.num_tokens / (self.num_rows * self.seq)

    def batch(self, step: int, rows: int) -> Batch:
        """The rows of one step of a run, on the CPU: a pure function of the seed, the step and the number of rows.

        Args:
            step: from 0.
            rows: in each batch of the run.

        Raises:
            ValueError: if `step` is negative or `rows` is not positive.
        """
        first = not_negative("step", step) * positive("rows", rows)
        return self.rows(range(first, first + rows))

    def rows(self, indices: Sequence[int]) -> Batch:
        """Rows of the run by their number, counted from its start through all epochs."""
        orders = {epoch: self._order(epoch) for epoch in {index // self.num_rows for index in indices}}
        filled = np.zeros((4, len(indices), self.seq), dtype=np.int64)
        for place, index in enumerate(indices):
            epoch, at = divmod(index, self.num_rows)
            self._fill(filled[:, place], self._rows[orders[epoch][at]])
        tokens, targets, documents, positions = torch.from_numpy(filled).unbind()
        return Batch(tokens=tokens, targets=targets, documents=documents, positions=positions)

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)

    def _fill(self, row: np.ndarray, pieces: Sequence[Piece]) -> None:
        """Write the four lines of the picture above."""
        tokens, targets, documents, positions = row
        at = 0
        for number, (start, length, ends) in enumerate(pieces, start=1):
            here = slice(at, at + length)
            tokens[here] = self._stream[start : start + length]
            targets[here][: length - ends] = self._stream[start + 1 : start + 1 + length - ends]
            targets[here][length - ends :] = IGNORED_TARGET
            documents[here] = number
            positions[here] = np.arange(length)
            at += length
        tokens[at:], targets[at:], documents[at:] = self.end_token, IGNORED_TARGET, PADDING_DOCUMENT
        positions[at:] = np.arange(self.seq - at)


def _stream_of(documents: Sequence[Sequence[int]], end_token: int) -> tuple[np.ndarray, list[int]]:
    """All documents in a row, each with its end token, and where each starts (and, last, where all end)."""
    if not len(documents):
        raise ValueError("documents is empty: there is nothing to train on")
    parts, starts = [], [0]
    for number, document in enumerate(documents):
        if not len(document):
            raise ValueError(f"document {number} has no tokens: leave empty documents out before packing")
        part = np.asarray(document)
        if part.ndim != 1 or part.dtype.kind not in "iu":
            raise TypeError(f"document {number} must be a list of token ids, got {part.dtype} of shape {part.shape}")
        if part.min() < 0:
            raise ValueError(f"document {number} holds the token id {part.min()}: ids are not negative")
        parts += [part.astype(np.int32), np.array([end_token], dtype=np.int32)]
        starts.append(starts[-1] + len(part) + 1)
    return np.concatenate(parts), starts


def _rows(starts: Sequence[int], seq: int, filling: str) -> list[list[Piece]]:
    """Put documents, given by where each starts and the last ends, into rows."""
    documents = list(itertools.pairwise(starts))
    if filling == CUT_TO_FIT:
        cut = cut_to_fit([stop - start for start, stop in documents], seq)
        return [[_piece(*documents[number], first, last) for number, first, last in row] for row in cut]
    pieces = [piece for start, stop in documents for piece in _pieces(start, stop, seq)]
    return [[pieces[i] for i in row] for row in FILLINGS[filling]([piece.length for piece in pieces], seq)]


def _pieces(start: int, stop: int, seq: int) -> Iterator[Piece]:
    """Cut a document that is longer than a row.

    An end token alone in the last piece is left out: it has no target, and it is a target in the piece before.
    """
    for first in range(0, stop - start - 1, seq):
        yield _piece(start, stop, first, min(first + seq, stop - start))


def _piece(start: int, stop: int, first: int, last: int) -> Piece:
    return Piece(start=start + first, length=last - first, ends=start + last == stop)


def positive(name: str, value: int) -> int:
    """Return `value`, or complain about it by its name."""
    if (number := operator.index(value)) < 1:
        raise ValueError(f"{name} must be positive, got {value}")
    return number


def not_negative(name: str, value: int) -> int:
    """Return `value`, or complain about it by its name."""
    if (number := operator.index(value)) < 0:
        raise ValueError(f"{name} must not be negative, got {value}")
    return number
