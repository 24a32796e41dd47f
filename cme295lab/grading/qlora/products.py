"""The layer of part 1 in float64, with its gradients: right by default, and with known mistakes.

The weight in 4 bits is a stand-in that looks like the library's: it has `dequantize(dtype)` and a shape. It notes in
which dtypes it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cme295lab.grading.nf4.packing import packed_with
from cme295lab.grading.nf4.table import levels


class FrozenWeight:
    """A matrix in 4 bits, with one constant, which notes in which dtypes it is asked for.

    Args:
        codes: uint8 (out, in), below 16.
        absmax: its constant.
    """

    def __init__(self, codes: Tensor, absmax: float) -> None:
        self.codes, self._absmax = codes, absmax
        self.shape = codes.shape
        self.dtypes: list[torch.dtype] = []

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The matrix, (out, in), in a dtype; float32 if none is asked for."""
        found = self.values().to(dtype or torch.float32)
        self.dtypes.append(found.dtype)
        return found

    def values(self) -> Tensor:
        """The matrix in float32; asking is not noted."""
        return levels().float()[self.codes.long()] * self._absmax


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How the output and its gradients come about; the defaults make no mistake.

    Args:
        cause: the mistake, in the words of the exercise.
        base: factor of the base's output, or "scale".
        adapter: power of the scale in the adapter's output; None if it is missing.
        divided: whether the scale is divided by the rank once more.
        four_bits: whether the adapter's matrices are rounded to 4 bits.
        base_back, adapter_back: the same two for the gradient of x.
        power_a, power_b: of the scale in the gradients of A and B.
    """

    cause: str = ""
    base: float | str = 1.0
    adapter: int | None = 1
    divided: bool = False
    four_bits: bool = False
    base_back: float | str = 1.0
    adapter_back: int | None = 1
    power_a: int = 1
    power_b: int = 1


RIGHT = Layer()
FORWARD = (
    Layer(cause="the scale is forgotten: the adapter's output is multiplied by it", adapter=0),
    Layer(cause="the scale multiplies the base as well: only the adapter's output has it", base="scale"),
    Layer(cause="the adapter is missing: add scale * (x A^T) B^T", adapter=None),
    Layer(cause="the base is missing: add x W^T", base=0.0),
    Layer(cause="the scale is used twice", adapter=2),
    Layer(cause="the output is divided by the scale: it is multiplied", adapter=-1),
    Layer(cause="the scale is divided by the rank: it is alpha / r already", divided=True),
    Layer(cause="A and B are rounded to 4 bits: only the base is; adapters are trained, and stay in float32",
          four_bits=True),
)  # fmt: skip
OF_X = (
    Layer(cause="the gradient of x lacks the adapter's part, scale * (g B) A", adapter_back=None),
    Layer(cause="the gradient of x lacks the base's part, g W: the layer before needs it although W is frozen",
          base_back=0.0),
    Layer(cause="the scale is forgotten in the gradient of x: its adapter's part has it", adapter_back=0),
    Layer(cause="the scale is used twice in the gradient of x", adapter_back=2),
    Layer(cause="the scale multiplies the base's part of the gradient of x as well", base_back="scale"),
)  # fmt: skip
OF_A = (
    Layer(cause="the scale is forgotten in the gradient of A", power_a=0),
    Layer(cause="the scale is used twice in the gradient of A", power_a=2),
)
OF_B = (
    Layer(cause="the scale is forgotten in the gradient of B", power_b=0),
    Layer(cause="the scale is used twice in the gradient of B", power_b=2),
)


def in_four_bits(x: Tensor) -> Tensor:
    """A matrix after NF4 with blocks of 64, and back."""
    code = levels()
    packed, absmax = packed_with(x.float(), code.float(), 64)
    codes = torch.stack((packed.long() // 16, packed.long() % 16), dim=1).flatten()[: x.numel()]
    return (code[codes] * absmax.double().repeat_interleave(64)[: x.numel()]).view(x.shape)


def output(x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, layer: Layer = RIGHT) -> Tensor:
    """The layer's output in float64."""
    x, weight, a, b = (tensor.detach().double() for tensor in (x, weight, a, b))
    if layer.four_bits:
        a, b = in_four_bits(a), in_four_bits(b)
    base = x @ weight.T * (scale if layer.base == "scale" else float(layer.base))
    if layer.adapter is None:
        return base
    factor = scale**layer.adapter / (len(a) if layer.divided else 1)
    return base + factor * (x @ a.T @ b.T)


def gradients(
    x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float, upstream: Tensor, layer: Layer = RIGHT
) -> Mapping[str, Tensor]:
    """The gradients of x, A and B in float64."""
    x, weight, a, b, g = (tensor.detach().double() for tensor in (x, weight, a, b, upstream))
    of_x = g @ weight * (scale if layer.base_back == "scale" else float(layer.base_back))
    if layer.adapter_back is not None:
        of_x = of_x + scale**layer.adapter_back * (g @ b @ a)
    rows, g_rows = x.flatten(0, -2), g.flatten(0, -2)
    return {
        "x": of_x,
        "A": scale**layer.power_a * (b.T @ g_rows.T @ rows),
        "B": scale**layer.power_b * (g_rows.T @ (rows @ a.T)),
    }
