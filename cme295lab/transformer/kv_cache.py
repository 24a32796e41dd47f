"""Keys and values of the tokens read so far, so that the next token is computed alone.

Without a cache, writing T tokens computes 1 + 2 + ... + T positions; with it, T. The price is memory, and reading it:
for each token of each sequence 2 × layers × kv_heads × head_dim numbers, read once for every token that is written.

Two caches with the same behaviour:

    StaticCache    room for `max_seq` positions from the start; a token is written in place and nothing is ever copied
    GrowingCache   as large as its content; each token copies all of it once (what `torch.cat` costs)

Both can be cut (`truncate`, when a draft was rejected) and have their rows exchanged (`reorder`, when beams are). Rows
that are shorter than others are padded on the left: `left_padding` says by how many positions, which nobody sees, and
the positions of such a row count from its first real token.

Formula: bytes = 2 · L · kv_heads · head_dim · positions · batch · bytes per number (`inference_cost.kv_bytes`).

Source: Pope et al. 2022, "Efficiently Scaling Transformer Inference", §2; Ainslie et al. 2023, "GQA".
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cme295lab.transformer.config import ModelConfig


class KVCache(ABC):
    """What a `DecoderLM` asks of a cache, and what both kinds share: sizes, padding, the checks.

    Attributes:
        config: the model.
        batch_size: rows.
        dtype: of keys and values.
        left_padding: positions at the start of each row that hold nothing, (batch,); None where there are none.
    """

    def __init__(
        self, config: ModelConfig, batch_size: int, dtype: torch.dtype, left_padding: Int[Tensor, " batch"] | None
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be an int of at least 1, got {batch_size!r}")
        if left_padding is not None:
            if left_padding.shape != (batch_size,):
                shape = tuple(left_padding.shape)
                raise ValueError(f"left_padding must have a number per row, shape ({batch_size},), got {shape}")
            if int(left_padding.min()) < 0:
                raise ValueError(f"left_padding must not be negative, got {left_padding.tolist()}")
        self.config, self.batch_size, self.dtype, self.left_padding = config, batch_size, dtype, left_padding
        self._length = 0

    @property
    def length(self) -> int:
        """Positions held, padding among them."""
        return self._length

    def advance(self, num_positions: int) -> None:
        """Count new positions, once every layer has appended them."""
        self._length += num_positions

    @abstractmethod
    def check_room(self, num_positions: int) -> None:
        """Refuse more positions than there is room for."""

    @abstractmethod
    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch kv_heads new head_dim"],
        v: Float[Tensor, "batch kv_heads new head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_heads seq head_dim"], Float[Tensor, "batch kv_heads seq head_dim"]]:
        """Add keys and values of new positions to a layer; the layer's keys and values from the first position on."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget what follows the first `length` positions."""

    @abstractmethod
    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Let row i go on as row `rows[i]` was; a row may be taken several times."""

    def _check(self, layer: int, k: Tensor) -> None:
        expected = (self.batch_size, self.config.num_kv_heads, k.shape[2], self.config.head_dim)
        if tuple(k.shape) != expected:
            raise ValueError(f"k of layer {layer} must have shape {expected}, got {tuple(k.shape)}: another batch?")
        if k.dtype != self.dtype:
            raise TypeError(f"k of layer {layer} is {k.dtype}, the cache is {self.dtype}: make it with dtype={k.dtype}")

    def _check_length(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"length must be 0 to {self._length}, what the cache holds, got {length}")

    def _check_rows(self, rows: Tensor) -> None:
        if rows.shape != (self.batch_size,):
            raise ValueError(f"rows must name a row for each of {self.batch_size}, got shape {tuple(rows.shape)}")


class StaticCache(KVCache):
    """A cache with all its memory from the start.

    Args:
        config: the model.
        batch_size: rows.
        max_seq: positions, padding among them.
        dtype: of keys and values: the model's.
        device: where.
        left_padding: positions at the start of each row that hold nothing, (batch,).

    Raises:
        ValueError: if a size is not positive, `max_seq` beyond the model's, or the padding does not fit the batch.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        max_seq: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        left_padding: Int[Tensor, " batch"] | None = None,
    ) -> None:
        super().__init__(config, batch_size, dtype, left_padding)
        if isinstance(max_seq, bool) or not isinstance(max_seq, int) or max_seq < 1:
            raise ValueError(f"max_seq must be an int of at least 1, got {max_seq!r}")
        if max_seq > config.max_seq:
            raise ValueError(f"max_seq must be at most the model's {config.max_seq}, got {max_seq}")
        self.max_seq = max_seq
        shape = (config.num_layers, batch_size, config.num_kv_heads, max_seq, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values, filled or not."""
        return self._keys.nbytes + self._values.nbytes

    def check_room(self, num_positions: int) -> None:
        """Refuse more positions than there is room for.

        Raises:
            ValueError: if there is no room.
        """
        if self._length + num_positions > self.max_seq:
            raise ValueError(
                f"{num_positions} more positions do not fit a cache of max_seq {self.max_seq} that holds {self._length}"
            )

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch kv_heads new head_dim"],
        v: Float[Tensor, "batch kv_heads new head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_heads seq head_dim"], Float[Tensor, "batch kv_heads seq head_dim"]]:
        """Write new positions in place; views of all positions of the layer."""
        self._check(layer, k)
        self.check_room(k.shape[2])
        if k.requires_grad:
            raise ValueError(
                "a StaticCache is overwritten in place, which loses gradients: run the model under torch.no_grad(), or "
                "use a GrowingCache"
            )
        end = self._length + k.shape[2]
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, self._length : end] = k
        values[:, :, self._length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def truncate(self, length: int) -> None:
        """Forget what follows the first `length` positions."""
        self._check_length(length)
        self._length = length

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Let row i go on as row `rows[i]` was; a row may be taken several times."""
        self._check_rows(rows)
        held = slice(0, self._length)
        self._keys[:, :, :, held] = self._keys[:, rows, :, held]
        self._values[:, :, :, held] = self._values[:, rows, :, held]
        if self.left_padding is not None:
            self.left_padding = self.left_padding[rows]


class GrowingCache(KVCache):
    """A cache that is as large as its content.

    Args:
        config: the model.
        batch_size: rows.
        dtype: of keys and values: the model's.
        device: where.
        left_padding: positions at the start of each row that hold nothing, (batch,).

    Raises:
        ValueError: if the batch is not positive, or the padding does not fit it.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        batch_size: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        left_padding: Int[Tensor, " batch"] | None = None,
    ) -> None:
        super().__init__(config, batch_size, dtype, left_padding)
        empty = torch.zeros(batch_size, config.num_kv_heads, 0, config.head_dim, dtype=dtype, device=device)
        self._layers = [(empty, empty)] * config.num_layers

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return sum(part.nbytes for pair in self._layers for part in pair)

    def check_room(self, num_positions: int) -> None:
        """Refuse more positions than the model has.

        Raises:
            ValueError: if there are more.
        """
        if self._length + num_positions > self.config.max_seq:
            raise ValueError(
                f"{num_positions} more positions after {self._length} are more than the model's max_seq "
                f"{self.config.max_seq}"
            )

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch kv_heads new head_dim"],
        v: Float[Tensor, "batch kv_heads new head_dim"],
    ) -> tuple[Float[Tensor, "batch kv_heads seq head_dim"], Float[Tensor, "batch kv_heads seq head_dim"]]:
        """Join new positions to those of the layer, in new memory."""
        self._check(layer, k)
        keys, values = self._layers[layer]
        self._layers[layer] = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
        return self._layers[layer]

    def truncate(self, length: int) -> None:
        """Forget what follows the first `length` positions."""
        self._check_length(length)
        self._layers = [(k[:, :, :length].clone(), v[:, :, :length].clone()) for k, v in self._layers]
        self._length = length

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Let row i go on as row `rows[i]` was; a row may be taken several times."""
        self._check_rows(rows)
        self._layers = [(k[rows], v[rows]) for k, v in self._layers]
        if self.left_padding is not None:
            self.left_padding = self.left_padding[rows]
