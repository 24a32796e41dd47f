"""A model's gradients over a format's range, at a loss scale: what is flushed, what overflows, and the best scale.

One pure function, `loss_scale_scenario`, and the record it returns. The counts are those of `cme295lab.precision`:
`log2_histogram` for the picture, `underflow_report` for the shares.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from cme295lab.precision import (
    FloatFormat,
    Log2Histogram,
    UnderflowRow,
    get_format,
    gradient_statistics,
    log2_histogram,
    underflow_report,
)

FORMATS = ("fp16", "bf16", "fp8_e5m2", "fp8_e4m3fn")
ALL_TENSORS = "all tensors"


@dataclass(frozen=True, kw_only=True)
class LossScaleScenario:
    """Gradients times a loss scale, held against a format.

    Attributes:
        format: the format.
        loss_scale: S.
        histogram: of log2 |S g|, a bar for each binade.
        row: how many values are flushed to zero, subnormal, or infinite.
        unscaled: the same counts for S = 1.
        largest_power: the largest k for which no value of S = 2^k overflows; None if all gradients are zero.
    """

    format: FloatFormat
    loss_scale: float
    histogram: Log2Histogram
    row: UnderflowRow
    unscaled: UnderflowRow
    largest_power: int | None

    @property
    def step_is_skipped(self) -> bool:
        """Whether a single value is infinite: then dynamic loss scaling skips the step and halves S."""
        return self.row.num_overflowed + self.row.num_not_finite > 0

    @property
    def flush_exponent(self) -> int:
        """Below 2 to this, everything is zero: half of the smallest subnormal number."""
        return math.frexp(self.format.min_subnormal)[1] - 2

    @property
    def normal_exponent(self) -> int:
        """From 2 to this on, values keep all their digits."""
        return math.frexp(self.format.min_normal)[1] - 1

    @property
    def overflow_exponent(self) -> int:
        """From 2 to this on, nothing is held; the largest number lies just below."""
        return math.frexp(self.format.max)[1]


def tensors_of(gradients: Mapping[str, Tensor], tensor: str) -> dict[str, Tensor]:
    """The gradients of one tensor, or of all.

    Raises:
        ValueError: if there is no such tensor.
    """
    if tensor == ALL_TENSORS:
        return dict(gradients)
    if tensor not in gradients:
        raise ValueError(f"tensor must be {ALL_TENSORS!r} or one of {', '.join(gradients)}; got {tensor!r}")
    return {tensor: gradients[tensor]}


def loss_scale_scenario(
    *, gradients: Mapping[str, Tensor], format: str = "fp16", power: int = 0, tensor: str = ALL_TENSORS
) -> LossScaleScenario:
    """What becomes of gradients at a loss scale of 2^power.

    Args:
        gradients: name -> gradient, in fp32, not scaled.
        format: name of the format that holds them in the backward pass.
        power: k of S = 2^k.
        tensor: a name, or "all tensors".

    Raises:
        ValueError: if there is no such format or tensor, or there are no gradients.
    """
    chosen = tensors_of(gradients, tensor)
    held = get_format(format)
    loss_scale = 2.0**power
    largest = max(statistics.largest for statistics in gradient_statistics(chosen))
    return LossScaleScenario(
        format=held,
        loss_scale=loss_scale,
        histogram=log2_histogram(chosen, loss_scale=loss_scale),
        row=underflow_report(chosen, (held,), loss_scale=loss_scale).totals()[held.name],
        unscaled=underflow_report(chosen, (held,)).totals()[held.name],
        largest_power=math.floor(math.log2(held.max / largest)) if largest else None,
    )
