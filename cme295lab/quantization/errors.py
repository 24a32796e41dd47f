"""How far a tensor is from its quantised self.

    mse                 mean of (x - x̂)²
    rmse                its root, in the unit of x
    max_abs             the worst value: max |x - x̂|
    signal_to_noise_db  SQNR: 10 · log10(Σ x² / Σ (x - x̂)²). One bit more is worth about 6 dB
    cosine              of the angle between both, as vectors: what a dot product with them keeps

None of them is the loss of a model: `quality` measures that. They are computed in float64, whatever the inputs are.

Source: Bennett 1948, "Spectra of quantized signals" (6 dB per bit); Lin et al. 2016, "Fixed Point Quantization of Deep
Convolutional Networks" (SQNR as the measure).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cme295lab.quantization.checking import check_finite, check_float


@dataclass(frozen=True, kw_only=True)
class QuantizationError:
    """The distance between a tensor and its quantised self.

    Attributes:
        mse: mean squared error.
        rmse: its root.
        max_abs: the largest error of a value.
        signal_to_noise_db: in decibels; inf where nothing was lost, -inf where there is nothing but error.
        cosine: 1 where the direction is kept. Two tensors of zeros have 1; one of zeros and one that is not, 0.
    """

    mse: float
    rmse: float
    max_abs: float
    signal_to_noise_db: float
    cosine: float

    def __str__(self) -> str:
        sizes = f"rmse {self.rmse:.3g}, worst {self.max_abs:.3g}"
        return f"{sizes}, {self.signal_to_noise_db:.1f} dB, cosine {self.cosine:.6f}"


def quantization_error(x: Float[Tensor, "*shape"], x_hat: Float[Tensor, "*shape"]) -> QuantizationError:
    """Measure what quantising lost.

    Args:
        x: the original.
        x_hat: what came back, of the same shape; its dtype may differ.

    Raises:
        TypeError: if one of them is not a floating-point tensor.
        ValueError: if the shapes differ, there is no value, or a value is NaN or infinite.

    >>> print(quantization_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])))
    rmse 0.354, worst 0.5, 20.0 dB, cosine 0.998460
    """
    for name, tensor in (("x", x), ("x_hat", x_hat)):
        check_float(name, tensor)
    if x.shape != x_hat.shape:
        raise ValueError(f"x and x_hat must have the same shape, got {tuple(x.shape)} and {tuple(x_hat.shape)}")
    if not x.numel():
        raise ValueError(f"an error is a mean over values, and a tensor of shape {tuple(x.shape)} has none")
    for name, tensor in (("x", x), ("x_hat", x_hat)):
        check_finite(name, tensor)
    original, restored = x.detach().double().flatten(), x_hat.detach().double().flatten()
    unit = max(float(original.abs().max()), float(restored.abs().max())) or 1.0
    original, restored = original / unit, restored / unit  # squares neither overflow nor vanish then
    difference = original - restored
    signal, noise = float(original @ original), float(difference @ difference)
    rmse = math.sqrt(noise / x.numel()) * unit
    return QuantizationError(
        mse=rmse * rmse,
        rmse=rmse,
        max_abs=float(difference.abs().max()) * unit,
        signal_to_noise_db=decibels(signal, noise),
        cosine=_cosine(original, restored),
    )


def decibels(signal: float, noise: float) -> float:
    """10 · log10(signal / noise), of sums of squares; inf without noise, -inf where there is nothing but noise."""
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(torch.linalg.vector_norm(a)), float(torch.linalg.vector_norm(b))
    if 0 in lengths:
        return float(lengths[0] == lengths[1])
    return float(a @ b) / (lengths[0] * lengths[1])
