"""The low-rank part of one matrix, with as many adapters as there are names, and the hook that adds it.

    linear      y = W₀ x + b          + s · B (A x)             A: (r, in)       B: (out, r)
    embedding   y = E[token]          + s · B A[:, token]       A: (r, tokens)   B: (dim, r)
    DoRA        y = g · (W₀ x + s · B A x) + b,   g = m / ‖W₀ + s · B A‖, a number per row of W

`LoraMatrix.delta_weight` is the plain version, s · B A; it is what is merged. `LoraMatrix.add_to` never makes a matrix
of the weight's size: A takes x to r numbers and B back, 2 r (in + out) FLOPs per token where ΔW x needs 2 · in · out.
Its last product is added into the layer's output in place, which saves a copy of it in memory.

The factor that is zero at the start is B for a linear layer and A for an embedding: the model starts as its base,
exactly. DoRA's norm is a constant for the backward pass, as in its paper (§4.3), and its dropout is on the low-rank
path alone.

The part is added by a forward hook on the base's own module, so modules and weights of the base keep their places and
names, in 4 bits or not.

Source: Hu et al. 2022, "LoRA", equation 3; Liu et al. 2024, "DoRA", equations 5 and 11.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cme295lab.finetuning.lora.options import DTYPES, LoraOptions
from cme295lab.finetuning.lora.targets import Target
from cme295lab.quantization.linear4bit import Linear4bit

BaseLayer = nn.Linear | Linear4bit | nn.Embedding


class LoraMatrix(nn.Module):
    """The adapters of one matrix: name -> A, B, and DoRA's magnitudes.

    Attributes:
        target: which matrix.
        scales: adapter -> s.
        dropouts: adapter -> share of the inputs of A that is dropped in training.
    """

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()
        self.lora_magnitude = nn.ParameterDict()
        self.scales: dict[str, float] = {}
        self.dropouts: dict[str, float] = {}

    @property
    def is_embedding(self) -> bool:
        """Whether the matrix is looked up and not multiplied."""
        return self.target.kind == "embedding"

    def add(self, adapter: str, base: BaseLayer, options: LoraOptions) -> None:
        """A new adapter, whose product is zero."""
        rank, like = options.rank_of(self.target.path), _factor_like(base, options)
        a, b = (torch.empty(shape, dtype=like.dtype, device=like.device) for shape in self.shapes(rank))
        zero, random = (a, b) if self.is_embedding else (b, a)
        nn.init.zeros_(zero)
        if options.init == "gaussian" or self.is_embedding:
            nn.init.normal_(random, std=1.0 if self.is_embedding else 1 / rank)
        else:
            nn.init.kaiming_uniform_(random, a=math.sqrt(5))
        magnitude = _row_norms(_wide(dense_weight(base))).to(like.dtype) if options.dora else None
        self.put(adapter, a, b, scale=options.scale_of(self.target.path), dropout=options.dropout, magnitude=magnitude)

    def put(
        self, adapter: str, a: Tensor, b: Tensor, *, scale: float, dropout: float = 0.0, magnitude: Tensor | None = None
    ) -> None:
        """An adapter with these values."""
        self.lora_A[adapter], self.lora_B[adapter] = nn.Parameter(a), nn.Parameter(b)
        if magnitude is not None:
            self.lora_magnitude[adapter] = nn.Parameter(magnitude)
        self.scales[adapter], self.dropouts[adapter] = scale, dropout

    def delete(self, adapter: str) -> None:
        """Forget an adapter."""
        for parameters in (self.lora_A, self.lora_B, self.lora_magnitude):
            if adapter in parameters:
                del parameters[adapter]
        del self.scales[adapter], self.dropouts[adapter]

    def shapes(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of A and B."""
        rows, columns = self.target.shape
        return ((rank, rows), (columns, rank)) if self.is_embedding else ((rank, columns), (rows, rank))

    def delta_weight(self, adapter: str) -> Float[Tensor, "rows columns"]:
        """s · B A in fp32 (or fp64), in the shape of the base's weight; of DoRA, before lengths are set."""
        product = self.scales[adapter] * (_wide(self.lora_B[adapter]) @ _wide(self.lora_A[adapter]))
        return product.T if self.is_embedding else product

    def merged_weight(self, adapter: str, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """What W₀ becomes, in its dtype: W₀ + s · B A, with DoRA's lengths."""
        merged = _wide(weight) + self.delta_weight(adapter)
        if adapter in self.lora_magnitude:
            merged = merged * (self.lora_magnitude[adapter].to(merged) / _row_norms(merged)).unsqueeze(1)
        return merged.to(weight.dtype)

    def add_to(self, output: Tensor, x: Tensor, adapter: str, base: BaseLayer) -> Tensor:
        """The layer's output with the adapter's part; `output` may be changed in place.

        Args:
            output: what the base gave, (*batch, out).
            x: what it was given, (*batch, in), or token numbers for an embedding.
            adapter: its name.
            base: the layer.
        """
        a, b, scale = self.lora_A[adapter], self.lora_B[adapter], self.scales[adapter]
        if self.is_embedding:
            return output + (scale * (F.embedding(x, a.T) @ b.T)).to(output.dtype)
        x = x.to(a.dtype)
        if self.training and self.dropouts[adapter]:
            x = F.dropout(x, self.dropouts[adapter])
        low = F.linear(x, a)
        if adapter in self.lora_magnitude:
            return self._with_lengths(output, low, adapter, base)
        if output.dtype == b.dtype and output.is_contiguous():
            output.view(-1, output.shape[-1]).addmm_(low.reshape(-1, low.shape[-1]), b.T, alpha=scale)
            return output
        return output + (scale * F.linear(low, b)).to(output.dtype)

    def _with_lengths(self, output: Tensor, low: Tensor, adapter: str, base: BaseLayer) -> Tensor:
        """DoRA: g (W₀ x + s B A x) + b."""
        bias = getattr(base, "bias", None)
        without_bias = output if bias is None else output - bias.to(output.dtype)
        with torch.no_grad():
            norms = _row_norms(_wide(dense_weight(base)) + self.delta_weight(adapter))
        gain = (self.lora_magnitude[adapter] / norms).to(output.dtype)
        product = (self.scales[adapter] * F.linear(low, self.lora_B[adapter])).to(output.dtype)
        y = gain * (without_bias + product)
        return y if bias is None else y + bias.to(output.dtype)


class LoraHook:
    """The hook on one layer; an object and no closure, so that a copy of a model has adapters of its own."""

    def __init__(self, lora: Any, matrix: LoraMatrix) -> None:
        self.lora, self.matrix = lora, matrix

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert isinstance(module, nn.Linear | Linear4bit | nn.Embedding)
        rows = self.lora.rows
        if rows is not None:
            return self._by_row(module, inputs[0], output, rows)
        adapter = self.lora.active
        if adapter is None or adapter not in self.matrix.scales:
            return output
        return self.matrix.add_to(output, inputs[0], adapter, module)

    def _by_row(self, module: BaseLayer, x: Tensor, output: Tensor, rows: tuple[str | None, ...]) -> Tensor:
        """Each row of the batch with its own adapter: rows that share one are computed together."""
        if x.shape[0] != len(rows):
            raise ValueError(
                f"adapters_per_example has {len(rows)} names, and {self.matrix.target.path} got a batch of "
                f"{x.shape[0]} rows: give a name, or None, for each row"
            )
        parts, order = [], []
        for adapter in dict.fromkeys(rows):
            index = torch.tensor([row for row, name in enumerate(rows) if name == adapter], device=output.device)
            part = output.index_select(0, index)
            if adapter is not None and adapter in self.matrix.scales:
                part = self.matrix.add_to(part, x.index_select(0, index), adapter, module)
            parts.append(part)
            order.append(index)
        return torch.cat(parts).index_select(0, torch.cat(order).argsort())


def dense_weight(base: BaseLayer) -> Tensor:
    """The weight of a layer as numbers: dequantised where it is in 4 bits."""
    weight = base.weight
    return weight.detach() if isinstance(weight, Tensor) else weight.dequantize()


def device_of(base: nn.Module) -> torch.device:
    """Where the weight of a layer is."""
    weight = base.weight
    device = weight.device if isinstance(weight, Tensor) else weight.packed.device
    assert isinstance(device, torch.device)
    return device


def _wide(tensor: Tensor) -> Tensor:
    """In fp32, or wider if it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _row_norms(weight: Float[Tensor, "rows columns"]) -> Float[Tensor, " rows"]:
    return torch.linalg.vector_norm(weight, dim=1)


def _factor_like(base: BaseLayer, options: LoraOptions) -> Tensor:
    """An empty tensor of the dtype and device of A and B."""
    dtype = base.compute_dtype if isinstance(base, Linear4bit) else base.weight.dtype
    return torch.empty(0, dtype=DTYPES[options.dtype] if options.dtype else dtype, device=device_of(base))
