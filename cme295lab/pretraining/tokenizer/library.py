"""Byte-level BPE with the `tokenizers` library: what the course trains its models with.

The same algorithm as `train_bpe`, in Rust: the course corpus takes it a second. Numbers are given in the same order
(special tokens, the 256 bytes, merges), so both encode a text to the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cme295lab.pretraining.tokenizer.requests import END_TOKEN, check_reached, check_request, checked_texts
from cme295lab.transformer.text import TextTokenizer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str] = (END_TOKEN,)
) -> TextTokenizer:
    """Learn a byte-level BPE vocabulary; the first special token ends a text.

    Args:
        texts: what to learn from; read once.
        vocab_size: tokens in all: special ones, the 256 bytes, and merges.
        special_tokens: texts that are one token each.

    Returns:
        A tokenizer with exactly `vocab_size` tokens, the same for the same texts in any order.

    Raises:
        TypeError: if `texts` or `special_tokens` is one string, or holds something else than strings.
        ValueError: if the vocabulary has no room for all bytes, or there is too little text to fill it.

    Example:
        >>> tokenizer = train_tokenizer(["low lower lowest"] * 3, 262)
        >>> [tokenizer.token_text(number) for number in tokenizer.encode("lowest low")]
        ['low', 'e', 'st', ' low']
    """
    size, special = check_request(vocab_size, special_tokens)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(checked_texts(texts), trainer)
    check_reached(size, tokenizer.get_vocab_size())
    return TextTokenizer(tokenizer, end_token=special[0] if special else None)
