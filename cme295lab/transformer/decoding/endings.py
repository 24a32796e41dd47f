"""When an answer is over: the end token, or a stop sequence of any number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoding.prompts import check_tokens

Finished = Literal["stop", "end", "length"]


class Endings:
    """Follows the new tokens of every row and says which rows are over.

    Args:
        num_rows: rows.
        stop: stop sequences; a row is over once its new tokens end with one.
        end_token: a row is over once this token comes.
        config: of the model, whose tokens they are.

    Raises:
        TypeError: if stop is no list of lists of token numbers.
        ValueError: if a stop sequence is empty, or a token is unknown to the model.
    """

    def __init__(
        self, num_rows: int, stop: Sequence[Sequence[int]], end_token: int | None, config: ModelConfig
    ) -> None:
        for index, sequence in enumerate(stop):
            if not isinstance(sequence, Sequence) or not all(isinstance(token, int) for token in sequence):
                raise TypeError(f"stop must be a list of lists of token numbers, got {sequence!r}: encode it first")
            if not sequence:
                raise ValueError(f"stop[{index}] is empty: every answer ends with it")
            check_tokens(sequence, config, f"stop[{index}]")
        if end_token is not None:
            check_tokens([end_token], config, "end_token")
        # Longest first: if two end an answer at once, the longer one is what finished it.
        self.stop = sorted((list(sequence) for sequence in stop), key=len, reverse=True)
        self.end_token = end_token
        self.tokens: list[list[int]] = [[] for _ in range(num_rows)]
        self.finished: list[Finished] = ["length"] * num_rows
        self.lengths: list[int | None] = [None] * num_rows  # of rows that are over
        self.num_ending_tokens = [0] * num_rows

    @property
    def matter(self) -> bool:
        """Whether anything but the number of tokens can end a row."""
        return bool(self.stop) or self.end_token is not None

    def add(self, chosen: Sequence[int], on_token: Callable[[int, int], None] | None = None) -> bool:
        """Take in one more token a row, and tell `on_token` of those that count; whether all rows are over."""
        for row, token in enumerate(chosen):
            if self.lengths[row] is not None:
                continue
            self.tokens[row].append(token)
            if on_token is not None:
                on_token(row, token)
            self._look_at(row)
        return all(length is not None for length in self.lengths)

    def _look_at(self, row: int) -> None:
        tokens = self.tokens[row]
        if tokens[-1] == self.end_token:
            self._finish(row, "end", 1)
            return
        for sequence in self.stop:
            if tokens[-len(sequence) :] == sequence:
                self._finish(row, "stop", len(sequence))
                return

    def _finish(self, row: int, how: Finished, num_ending_tokens: int) -> None:
        self.finished[row] = how
        self.lengths[row] = len(self.tokens[row])
        self.num_ending_tokens[row] = num_ending_tokens
