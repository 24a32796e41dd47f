"""What a model has read so far, with a key/value cache or without: the one thing that all decoders of this room share.

A decoder hands over the new tokens alone and asks for the logits of the last few positions. With a cache the model
computes those positions and no others. Without one (`cache=None`) the same object remembers the tokens and the model
reads all of them again: quadratic, and right by construction, which is what tests compare with.

    context.read(tokens)       continue by these tokens: logits of the last positions
    context.read_alike(tokens) continue all rows by the same tokens, computed once (beams begin with one prompt)
    context.truncate(length)   forget what follows the first `length` positions (speculative decoding takes back)
    context.reorder(rows)      row i goes on as row rows[i] was (beam search copies and drops)
"""

from __future__ import annotations

from typing import Any, Literal, NoReturn, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.kv_cache import GrowingCache, KVCache, StaticCache

CacheKind = Literal["static", "growing"]


class Context:
    """Tokens that a model has read.

    Args:
        model: it reads them.
        cache: "static" (room for `max_seq` positions from the start), "growing", or None (read everything again).
        batch_size: rows.
        max_seq: most positions that will be read.
        left_padding: columns of padding that each row begins with, (batch,); None for no padding.

    Raises:
        ValueError: if the kind of cache is unknown.
    """

    def __init__(
        self,
        model: DecoderLM,
        cache: CacheKind | None,
        *,
        batch_size: int,
        max_seq: int,
        left_padding: Int[Tensor, " batch"] | None = None,
    ) -> None:
        if cache is not None and cache not in get_args(CacheKind):
            raise ValueError(f"cache must be 'static', 'growing' or None, got {cache!r}")
        weight = model.embedding.weight
        self.model = model
        self.left_padding = left_padding
        self.cache: KVCache | None = None
        options: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device, "left_padding": left_padding}
        if cache == "static":
            self.cache = StaticCache(model.config, batch_size=batch_size, max_seq=max_seq, **options)
        elif cache == "growing":
            self.cache = GrowingCache(model.config, batch_size=batch_size, **options)
        else:
            self._tokens = torch.zeros(batch_size, max_seq, dtype=torch.long, device=weight.device)
            self._length = 0

    @property
    def length(self) -> int:
        """Positions read, padding among them."""
        return self._length if self.cache is None else self.cache.length

    def read(self, tokens: Int[Tensor, "batch seq"], num_logits: int = 1) -> Float[Tensor, "batch num_logits vocab"]:
        """Continue by these tokens; the logits of the last `num_logits` positions."""
        if self.cache is not None:
            return self.model(tokens, cache=self.cache, num_logits=num_logits)
        end = self._length + tokens.shape[1]
        self._tokens[:, self._length : end] = tokens
        self._length = end
        positions = documents = None
        if self.left_padding is not None:
            steps = torch.arange(end, device=tokens.device) - self.left_padding[:, None]
            # The padding is a document of its own, so nobody else looks at it.
            positions, documents = steps.clamp(min=0), (steps >= 0).long()
        return self.model(self._tokens[:, :end], positions=positions, documents=documents, num_logits=num_logits)

    def read_alike(self, tokens: Int[Tensor, " seq"]) -> Float[Tensor, "1 1 vocab"]:
        """Continue every row by these tokens, for rows that are alike so far; the logits of the last position."""
        if self.cache is not None:
            return self.model(tokens[None], cache=_OneForAll(self.cache), num_logits=1)
        end = self._length + len(tokens)
        self._tokens[:, self._length : end] = tokens
        self._length = end
        return self.model(self._tokens[:1, :end], num_logits=1)

    def truncate(self, length: int) -> None:
        """Forget what follows the first `length` positions."""
        if self.cache is not None:
            self.cache.truncate(length)
        else:
            self._length = length

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Let row i go on as row `rows[i]` was."""
        if self.cache is not None:
            self.cache.reorder(rows)
        else:
            self._tokens = self._tokens[rows]


class _OneForAll(KVCache):
    """A cache of one row that writes into all rows of another: what rows have in common is computed once."""

    def __init__(self, rows: KVCache) -> None:
        super().__init__(rows.config, 1, rows.dtype, None)
        self.rows = rows

    @property
    def length(self) -> int:
        return self.rows.length

    def advance(self, num_positions: int) -> None:
        self.rows.advance(num_positions)

    def check_room(self, num_positions: int) -> None:
        self.rows.check_room(num_positions)

    def append(
        self,
        layer: int,
        k: Float[Tensor, "1 kv_heads new head_dim"],
        v: Float[Tensor, "1 kv_heads new head_dim"],
    ) -> tuple[Float[Tensor, "1 kv_heads seq head_dim"], Float[Tensor, "1 kv_heads seq head_dim"]]:
        keys, values = self.rows.append(layer, *(part.expand(self.rows.batch_size, -1, -1, -1) for part in (k, v)))
        return keys[:1], values[:1]

    def truncate(self, length: int) -> NoReturn:
        raise NotImplementedError("one row for all is for reading: truncate the cache that it writes to")

    def reorder(self, rows: Int[Tensor, " batch"]) -> NoReturn:
        raise NotImplementedError("one row for all is for reading: reorder the cache that it writes to")
