"""Conversations in rows of one length, none of which sees another; a target only where the assistant speaks.

    tokens      user Hi  asst Yes end | user Why asst So  end  -      (a row of 11)
    loss mask    .   .    .   on  on  |  .   .    .   on  on   .
    targets      -   -   Yes  end  -  |  -   -   So   end  -   -      (-100: no loss)
    documents    1   1    1    1   1  |  2   2    2    2   2   0      (0: padding)
    positions    0   1    2    3   4  |  0   1    2    3   4   0

Conversations are short, so one to a row wastes most of it. They are packed as documents are in pretraining, and by the
same code: the mask of attention is block-diagonal, positions begin again, and each conversation gets the logits that it
would get alone. Two things differ. A target is a token that the assistant says, so the target of a position is the next
token if *that* carries loss. And a conversation is never cut: one that is longer than a row is refused here, and made
shorter, if at all, by whole turns (`encode_chat`).

**How conversations weigh.** The loss of a batch is the mean over its target tokens, wherever they are
(`DecoderLM.loss`; micro-batches are weighted by their targets in the trainer). So a long answer counts for more than a
short one. With 2 target tokens at a loss of 1 in one row and 6 at 3 in another, it is (2·1 + 6·3) / 8 = 2.5; a mean of
the rows' means would be 2, and would depend on which conversations share a row.

Packed rows hold a share of tokens (`utilisation`) and, of these, a share of targets (`target_share`): the work that is
done, and the part of it that something is learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from cme295lab.finetuning.chat.masking import ChatExample
from cme295lab.pretraining.packing import IGNORED_TARGET, PackedDataset
from cme295lab.pretraining.packing.dataset import Piece

Filling = Literal["best-fit", "next-fit", "one-per-row"]
_FILLINGS: tuple[str, ...] = get_args(Filling)


class PackedChats(PackedDataset):
    """Conversations, packed into rows: a `PackedDataset` whose targets are the assistant's tokens.

    Made by `pack_chats`. It can be trained and evaluated on, and mixed with others, as any packed data set.
    """

    def __init__(
        self, examples: Sequence[ChatExample], *, seq: int, end_token: int, seed: int = 0, filling: Filling = "best-fit"
    ) -> None:
        _check(examples, seq, filling)
        # A data set closes each document with its end token. A conversation closes itself: its last token goes there.
        documents = [example.tokens[:-1] for example in examples]
        super().__init__(documents, seq=seq, seed=seed, end_token=end_token, filling=filling)
        self._stream = np.concatenate([np.asarray(example.tokens, dtype=np.int32) for example in examples])
        self._carries_loss = np.concatenate([np.asarray(example.loss_mask, dtype=bool) for example in examples])
        self.num_targets = int(self._carries_loss.sum())

    @property
    def largest_token(self) -> int:
        """The largest token id, end token included: a model must know more tokens than that."""
        return max(super().largest_token, self.end_token)

    @property
    def target_share(self) -> float:
        """The share of the conversations' tokens that carry loss."""
        return self.num_targets / self.num_tokens

    def _fill(self, row: np.ndarray, pieces: Sequence[Piece]) -> None:
        super()._fill(row, pieces)
        targets, at = row[1], 0
        for start, length, _ in pieces:
            says = self._carries_loss[start + 1 : start + length]  # of the token that comes next
            targets[at : at + length - 1][~says] = IGNORED_TARGET
            at += length


def pack_chats(
    examples: Sequence[ChatExample],
    *,
    seq: int,
    end_token: int,
    seed: int = 0,
    filling: Filling = "best-fit",
) -> PackedChats:
    """Pack conversations into rows.

    Args:
        examples: from `encode_chat`, none longer than a row.
        seq: tokens in a row.
        end_token: fills what is left of a row (it is never a target there, and no conversation sees it).
        seed: decides the order of rows in each epoch.
        filling: "best-fit" wastes least, "next-fit" keeps the order, "one-per-row" is padding without packing.

    Returns:
        A data set with `batch(step, rows)`, `num_rows`, `num_tokens`, `num_targets`, `utilisation`, `target_share`.

    Raises:
        TypeError: if an example is none.
        ValueError: if there is no example, one is longer than a row, or an option is out of range.

    Example:
        >>> data = pack_chats([ChatExample([5, 6, 7], [False, False, True])], seq=4, end_token=0)
        >>> data.batch(step=0, rows=1).targets.tolist()
        [[-100, 7, -100, -100]]
    """
    return PackedChats(examples, seq=seq, end_token=end_token, seed=seed, filling=filling)


def _check(examples: Sequence[ChatExample], seq: int, filling: str) -> None:
    if filling not in _FILLINGS:
        known = ", ".join(_FILLINGS)
        raise ValueError(f"filling must be one of {known} (a conversation is never cut), got {filling!r}")
    if not len(examples):
        raise ValueError("examples is empty: there is nothing to train on")
    for number, example in enumerate(examples):
        if not isinstance(example, ChatExample):
            raise TypeError(f"example {number} must be what encode_chat gives, got {type(example).__name__}")
    longest = max(range(len(examples)), key=lambda number: len(examples[number].tokens))
    if (length := len(examples[longest].tokens)) > seq:
        too_long = sum(len(example.tokens) > seq for example in examples)
        raise ValueError(
            f"{too_long} of {len(examples)} conversations are longer than a row of seq {seq} tokens (number {longest} "
            f"has {length}), and none is ever cut: give max_length={seq} to encode_chats, or longer rows"
        )
