"""What a model's linear layers hold and see: the statistics that decide how well they can be quantised.

A quantiser is ruined by few values: absmax sets the scale, and everything else has to live with it. So for each
nn.Linear, of its weight and of what it is given (hooks look on while the model runs):

    absmax against the percentiles of |x|   how far the outliers are from the rest
    kurtosis                                weight of the tails: 3 for a normal distribution, 1.8 for a uniform one
    columns with some |x| >= 6              LLM.int8's outlier features, and how many of the values lie in them

Memory does not grow with the number of batches. Moments are merged batch by batch (Pébay's formulas, in float64), and
the percentiles come from a histogram over the first 16 bits of each |x| as a float32: 32,768 bins, each less than 1 %
wide at any size, so a percentile is never too small and at most 1/128 too large (absmax is exact).

Source: Dettmers et al. 2022, "LLM.int8()", §4; Pébay 2008, "Formulas for Robust, One-Pass Parallel Computation of
Covariances and Arbitrary-Order Statistical Moments", equations 3.1 to 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.quantization.checking import check_finite, check_float
from cme295lab.quantization.outliers import OUTLIER_THRESHOLD

PERCENTILES = (50.0, 99.0, 99.9)

_LARGEST = torch.finfo(torch.float32).max
_NUM_BINS = 2**15
_BIN_SHIFT = 16  # of a float32's 31 bits without its sign, 15 number the bin


@dataclass(frozen=True, kw_only=True)
class TensorStatistics:
    """How a tensor's values are distributed.

    Attributes:
        num_values: how many there are, in all batches.
        min, max, absmax, mean: of them.
        std: their standard deviation.
        kurtosis: E[(x - mean)⁴] / std⁴; NaN where all values are the same.
        percentiles: percent -> what that share of |x| does not exceed, up to 1/128 too large.
    """

    num_values: int
    min: float
    max: float
    absmax: float
    mean: float
    std: float
    kurtosis: float
    percentiles: Mapping[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStatistics:
    """An nn.Linear as a quantiser sees it.

    Attributes:
        name: its path in the model.
        in_features, out_features: of its weight.
        weight: the weight's statistics.
        inputs: those of what the layer was given; None where it never ran.
        column_absmax: the largest |x| of each input feature, (in_features,); None where it never ran.
        outlier_columns: the input features with some |x| at or above the threshold.
        outlier_share: of all input values, how many lie in these columns, 0 to 1.
        large_share: of all input values, how many are themselves that large.
    """

    name: str
    in_features: int
    out_features: int
    weight: TensorStatistics
    inputs: TensorStatistics | None
    column_absmax: Float[Tensor, " in_features"] | None
    outlier_columns: tuple[int, ...]
    outlier_share: float
    large_share: float

    @property
    def num_outlier_columns(self) -> int:
        """How many input features are outliers."""
        return len(self.outlier_columns)


def observe(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    threshold: float = OUTLIER_THRESHOLD,
    percentiles: Sequence[float] = PERCENTILES,
    run: Callable[[nn.Module, Any], Any] | None = None,
) -> list[LayerStatistics]:
    """Run a model on some batches and describe each of its nn.Linear layers.

    The model runs in evaluation mode, without gradients. Its modes and hooks are afterwards what they were.

    Args:
        model: any module with nn.Linear layers.
        batches: what it is called with, one by one.
        threshold: what makes a feature of the inputs an outlier.
        percentiles: of |x|, above 0 up to 100.
        run: how to call it, `run(model, batch)`; None calls `model(batch)`.

    Returns:
        A row per layer, in the order of `model.named_modules()`.

    Raises:
        TypeError: if a weight or an input is not a floating-point tensor.
        ValueError: if there is no batch, no nn.Linear, a value is not finite or beyond float32 (the message names the
            layer), or the threshold or a percentile is not possible.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not threshold > 0:
        raise ValueError(f"threshold must be a positive number, got {threshold!r}")
    for percent in percentiles:
        if isinstance(percent, bool) or not isinstance(percent, int | float) or not 0 < percent <= 100:
            raise ValueError(f"percentiles must be above 0 and at most 100, got {percent!r}")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no nn.Linear layer to observe")
    seen = {name: _Inputs(f"the input of {name}", layer.in_features, threshold) for name, layer in layers.items()}
    hooks = [layer.register_forward_pre_hook(seen[name].look, with_kwargs=True) for name, layer in layers.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            num_batches = 0
            for batch in batches:
                run(model, batch) if run else model(batch)
                num_batches += 1
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if not num_batches:
        raise ValueError("batches is empty: a layer's inputs are seen only when the model runs")
    return [_describe(name, layer, seen[name], percentiles) for name, layer in layers.items()]


def tensor_statistics(x: Float[Tensor, "*shape"], *, percentiles: Sequence[float] = PERCENTILES) -> TensorStatistics:
    """Describe one tensor as `observe` describes weights and inputs.

    Raises:
        TypeError: if it is not a floating-point tensor.
        ValueError: if it is empty, or has values that are not finite or beyond float32.
    """
    values = _Values("x")
    values.add(x)
    if not values.num_values:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has no values to describe")
    return values.statistics(percentiles)


class _Values:
    """Running statistics of all values that were added."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.num_values = 0
        self.min, self.max, self.mean = math.inf, -math.inf, 0.0
        self.second = self.third = self.fourth = 0.0  # sums of powers of the distance from the mean
        self.bins = torch.zeros(_NUM_BINS, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        check_float(self.name, x)
        check_finite(self.name, x)
        if not x.numel():
            return
        values = x.detach().flatten()
        if float(values.abs().max()) > _LARGEST:
            raise ValueError(f"{self.name} has values beyond float32's {_LARGEST:.3g}: their fourth powers overflow")
        self.min, self.max = min(self.min, float(values.min())), max(self.max, float(values.max()))
        self.bins += torch.bincount(_bin_numbers(values), minlength=_NUM_BINS).cpu()
        mean = float(values.mean(dtype=torch.float64))
        distance = values.double() - mean
        square = distance * distance
        self._merge(
            len(values), mean, float(square.sum()), float((square * distance).sum()), float((square * square).sum())
        )

    def _merge(self, new: int, new_mean: float, second: float, third: float, fourth: float) -> None:
        old, total = self.num_values, self.num_values + new
        gap = new_mean - self.mean
        self.fourth += (
            fourth
            + gap**4 * old * new * (old * old - old * new + new * new) / total**3
            + 6 * gap**2 * (old * old * second + new * new * self.second) / total**2
            + 4 * gap * (old * third - new * self.third) / total
        )
        self.third += (
            third
            + gap**3 * old * new * (old - new) / total**2
            + 3 * gap * (old * second - new * self.second) / total
        )
        self.second += second + gap**2 * old * new / total
        self.mean += gap * new / total
        self.num_values = total

    def statistics(self, percentiles: Sequence[float]) -> TensorStatistics:
        variance = self.second / self.num_values
        absmax = max(abs(self.min), abs(self.max))
        reached = self.bins.cumsum(0)
        found = {}
        for percent in percentiles:
            rank = max(1, math.ceil(percent / 100 * self.num_values))
            found[float(percent)] = min(absmax, _upper_edge(int(torch.searchsorted(reached, rank))))
        return TensorStatistics(
            num_values=self.num_values,
            min=self.min,
            max=self.max,
            absmax=absmax,
            mean=self.mean,
            std=math.sqrt(variance),
            kurtosis=self.fourth / self.num_values / variance**2 if self.min < self.max and variance**2 else math.nan,
            percentiles=found,
        )


class _Inputs(_Values):
    """What a layer was given, and the largest value of each feature."""

    def __init__(self, name: str, in_features: int, threshold: float) -> None:
        super().__init__(name)
        self.threshold = threshold
        self.column_absmax = torch.zeros(in_features, dtype=torch.float64)
        self.num_large = 0

    def look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        self.add(x)
        if x.numel():
            rows = x.detach().abs().reshape(-1, x.shape[-1])
            self.column_absmax = torch.maximum(self.column_absmax, rows.amax(dim=0).double().cpu())
            self.num_large += int((rows >= self.threshold).sum())


def _describe(name: str, layer: nn.Linear, seen: _Inputs, percentiles: Sequence[float]) -> LayerStatistics:
    weight = _Values(f"the weight of {name}")
    weight.add(layer.weight)
    if not weight.num_values:
        raise ValueError(f"the weight of {name} has no values")
    outliers = (seen.column_absmax >= seen.threshold).nonzero().flatten().tolist()
    ran = seen.num_values > 0
    return LayerStatistics(
        name=name,
        in_features=layer.in_features,
        out_features=layer.out_features,
        weight=weight.statistics(percentiles),
        inputs=seen.statistics(percentiles) if ran else None,
        column_absmax=seen.column_absmax if ran else None,
        outlier_columns=tuple(outliers),
        outlier_share=len(outliers) / layer.in_features,
        large_share=seen.num_large / seen.num_values if ran else 0.0,
    )


def _bin_numbers(values: Tensor) -> Tensor:
    """The first 15 bits of |x| as a float32."""
    return values.abs().float().view(torch.int32) >> _BIN_SHIFT


def _upper_edge(number: int) -> float:
    """The largest float32 of a bin; 0 for the first one, which holds zeros and what is below 1e-40."""
    bits = (number << _BIN_SHIFT) | (2**_BIN_SHIFT - 1)
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32)) if number else 0.0
