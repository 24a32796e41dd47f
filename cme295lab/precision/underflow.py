"""What would become of a model's gradients in a 16-bit or 8-bit format: the report that a loss scale is chosen by.

With a gradient g in fp32 and a loss scale S, the number that has to fit is S g. Rounded to nearest it is

    flushed      zero, though g is not: at or below half of the smallest subnormal number (2^-25 for fp16, whose
                 smallest is 2^-24; the tie goes to zero, which is even)
    subnormal    kept with fewer digits than the format has, the fewer the smaller it is
    overflowed   infinite: half a gap or more above the largest number (65520 for fp16)

and all else is kept with the format's accuracy. A scale that is too small flushes, one that is too large overflows,
and a single overflow costs the whole step. Nothing is rounded here: the limits come from the format's description, and
gradients are compared with them in fp64, so the report is exact for any scale.

bf16 has fp32's exponents. Its rows are the reason why nobody scales losses for it.

Source: Micikevicius et al. 2018, "Mixed Precision Training", section 3.2 and Figure 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.precision.formats import FloatFormat, get_format

NamedGradients = nn.Module | Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class UnderflowRow:
    """The values of one tensor (or of several together) in one format.

    Attributes:
        name: of the tensor.
        format: name of the format.
        num_values: all of them.
        num_zero: already zero, at any scale.
        num_flushed: not zero, but rounded to zero.
        num_subnormal: kept as a subnormal number.
        num_overflowed: finite, but beyond the largest number.
        num_not_finite: already inf or NaN.
    """

    name: str
    format: str
    num_values: int
    num_zero: int
    num_flushed: int
    num_subnormal: int
    num_overflowed: int
    num_not_finite: int

    @property
    def zero(self) -> float:
        """Share of values that are zero already."""
        return self._share(self.num_zero)

    @property
    def flushed(self) -> float:
        """Share of values that are lost to zero."""
        return self._share(self.num_flushed)

    @property
    def subnormal(self) -> float:
        """Share of values that lose digits."""
        return self._share(self.num_subnormal)

    @property
    def overflowed(self) -> float:
        """Share of values that become infinite."""
        return self._share(self.num_overflowed)

    @property
    def not_finite(self) -> float:
        """Share of values that are inf or NaN already."""
        return self._share(self.num_not_finite)

    def _share(self, count: int) -> float:
        return count / self.num_values if self.num_values else 0.0


_COUNTS = tuple(field.name for field in fields(UnderflowRow) if field.name.startswith("num_"))


@dataclass(frozen=True, kw_only=True)
class UnderflowReport:
    """Rows per tensor and format; `print` shows a table.

    Attributes:
        rows: in the order of the tensors, and for each in the order of the formats.
        loss_scale: what gradients were multiplied with.
    """

    rows: tuple[UnderflowRow, ...]
    loss_scale: float

    def totals(self) -> dict[str, UnderflowRow]:
        """All tensors together: format -> row."""
        return {row.format: row for row in _merge(replace(row, name="all") for row in self.rows)}

    def merged(self, depth: int) -> UnderflowReport:
        """The same with tensors taken together whose names share their first parts: "layers.0" at a depth of 2.

        Raises:
            ValueError: if the depth is below 1.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        shorter = (replace(row, name=".".join(row.name.split(".")[:depth])) for row in self.rows)
        return UnderflowReport(rows=_merge(shorter), loss_scale=self.loss_scale)

    def __str__(self) -> str:
        head = ("tensor", "format", "values", "zero", "flushed", "subnormal", "overflow", "not finite")
        lines = [head, *(_cells(row) for row in (*self.rows, *self.totals().values()))]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        texts = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([f"gradients times a loss scale of {self.loss_scale:g}", *texts])


@dataclass(frozen=True, kw_only=True)
class GradientStatistics:
    """Sizes of one tensor's values.

    Attributes:
        name: of the tensor.
        num_values: all of them.
        num_zero: exactly zero.
        num_not_finite: inf or NaN; what follows is about the others.
        largest, smallest: absolute values, the smallest of those that are not zero; 0 where there are none.
        root_mean_square: of all finite values.
    """

    name: str
    num_values: int
    num_zero: int
    num_not_finite: int
    largest: float
    smallest: float
    root_mean_square: float


@dataclass(frozen=True, kw_only=True)
class Log2Histogram:
    """How many values lie in each binade: from 2^e up to below 2^(e+1).

    Attributes:
        exponents: e, one after the other without a gap; empty if all values are zero.
        counts: values in each.
        num_values, num_zero, num_not_finite: all, and those that have no logarithm.
    """

    exponents: tuple[int, ...]
    counts: tuple[int, ...]
    num_values: int
    num_zero: int
    num_not_finite: int


def named_gradients(gradients: NamedGradients) -> list[tuple[str, Tensor]]:
    """(name, gradient) pairs: of a model after `backward()`, or as they were given.

    Args:
        gradients: a module, a mapping, or pairs.

    Raises:
        ValueError: if a module has no gradients, or there are none at all.
        TypeError: if something is no floating-point tensor.
    """
    if isinstance(gradients, nn.Module):
        pairs = [(name, p.grad) for name, p in gradients.named_parameters() if p.grad is not None]
        if not pairs:
            raise ValueError("the model has no gradients: call backward() on a loss first")
    else:
        pairs = list(gradients.items() if isinstance(gradients, Mapping) else gradients)
        if not pairs:
            raise ValueError("there are no gradients: give a model, a mapping, or (name, tensor) pairs")
    for name, gradient in pairs:
        if not isinstance(gradient, Tensor) or not gradient.is_floating_point():
            kind = gradient.dtype if isinstance(gradient, Tensor) else type(gradient).__name__
            raise TypeError(f"the gradient of {name!r} must be a floating-point tensor, got {kind}")
    return [(name, gradient.detach()) for name, gradient in pairs]


def underflow_report(
    gradients: NamedGradients,
    formats: Sequence[str | FloatFormat] = ("fp16", "bf16", "fp8_e5m2"),
    *,
    loss_scale: float = 1.0,
) -> UnderflowReport:
    """What each format would do to gradients that were multiplied by a loss scale.

    Args:
        gradients: a model with `.grad`, or named tensors. They must not be scaled or rounded yet.
        formats: names or descriptions.
        loss_scale: S.

    Returns:
        A row for each tensor and format.

    Raises:
        ValueError: if there are no gradients, the scale is not positive, or a format has no zero to flush to.
        TypeError: if something is no floating-point tensor.
    """
    if not (math.isfinite(loss_scale) and loss_scale > 0):
        raise ValueError(f"loss_scale must be a positive number, got {loss_scale}")
    limits = [(format.name, _limits(format)) for format in map(get_format, formats)]
    rows = []
    for name, gradient in named_gradients(gradients):
        size = gradient.double().abs_().mul_(loss_scale).flatten()
        num_zero = int((gradient == 0).sum())
        not_finite = ~gradient.isfinite()
        num_not_finite = int(not_finite.sum())
        size = size[~not_finite.flatten()] if num_not_finite else size
        for format, (zero_up_to, normal_from, overflow_from) in limits:
            num_small = int((size <= zero_up_to).sum())
            num_below_normal = int((size < normal_from).sum())
            rows.append(
                UnderflowRow(
                    name=name, format=format, num_values=gradient.numel(), num_zero=num_zero,
                    num_flushed=num_small - num_zero, num_subnormal=num_below_normal - num_small,
                    num_overflowed=int((size >= overflow_from).sum()), num_not_finite=num_not_finite,
                )
            )
    return UnderflowReport(rows=tuple(rows), loss_scale=loss_scale)


def gradient_statistics(gradients: NamedGradients) -> list[GradientStatistics]:
    """The sizes of each tensor's values, whatever the format.

    Args and Raises: as for `underflow_report`.
    """
    rows = []
    for name, gradient in named_gradients(gradients):
        size = gradient.double().abs().flatten()
        size = size[size.isfinite()]
        nonzero = size[size > 0]
        rows.append(
            GradientStatistics(
                name=name, num_values=gradient.numel(), num_zero=size.numel() - nonzero.numel(),
                num_not_finite=gradient.numel() - size.numel(),
                largest=nonzero.max().item() if nonzero.numel() else 0.0,
                smallest=nonzero.min().item() if nonzero.numel() else 0.0,
                root_mean_square=size.square().mean().sqrt().item() if size.numel() else 0.0,
            )
        )
    return rows


def log2_histogram(gradients: NamedGradients | Float[Tensor, "*shape"], *, loss_scale: float = 1.0) -> Log2Histogram:
    """How many values lie in each binade, for a picture of gradients over a format's range.

    A loss scale of 2^k moves the picture k binades up and changes nothing else.

        >>> histogram = log2_histogram(torch.tensor([0.0, 1.0, -1.5, 0.25]))
        >>> histogram.exponents, histogram.counts, histogram.num_zero
        ((-2, -1, 0), (1, 0, 2), 1)

    Args:
        gradients: a model with `.grad`, named tensors, or one tensor.
        loss_scale: S.

    Raises:
        ValueError: if there are no gradients, or the scale is not positive.
        TypeError: if something is no floating-point tensor.
    """
    if not (math.isfinite(loss_scale) and loss_scale > 0):
        raise ValueError(f"loss_scale must be a positive number, got {loss_scale}")
    pairs = named_gradients([("values", gradients)] if isinstance(gradients, Tensor) else gradients)
    values = torch.cat([gradient.flatten().double() for _, gradient in pairs]) * loss_scale
    finite = values[values.isfinite()]
    nonzero = finite[finite != 0]
    exponents = torch.frexp(nonzero).exponent.long() - 1  # frexp's mantissa is 0.5 to 1
    first = int(exponents.min()) if exponents.numel() else 0
    counts = torch.bincount(exponents - first).tolist() if exponents.numel() else []
    return Log2Histogram(
        exponents=tuple(range(first, first + len(counts))), counts=tuple(counts), num_values=values.numel(),
        num_zero=finite.numel() - nonzero.numel(), num_not_finite=values.numel() - finite.numel(),
    )  # fmt: skip


def _limits(format: FloatFormat) -> tuple[float, float, float]:
    """Sizes up to the first become zero, from the second on they are normal, from the third on infinite.

    Half-way cases go to the neighbour whose last bit is zero. Below the smallest normal number, whose mantissa is zero,
    the neighbour is odd; above the largest number it depends.
    """
    if not format.signed or format.specials == "scale":
        raise ValueError(f"{format.name} has no zero and no sign: gradients cannot be held in it")
    gap_at_max = 2.0 ** (math.frexp(format.max)[1] - 1 - format.mantissa_bits)
    overflow_from = format.max + gap_at_max / 2
    if format.max_code % 2 == 0:  # the tie stays
        overflow_from = math.nextafter(overflow_from, math.inf)
    return format.min_subnormal / 2, format.min_normal - format.min_subnormal / 2, overflow_from


def _merge(rows: Iterable[UnderflowRow]) -> tuple[UnderflowRow, ...]:
    """Rows of one name and format added up, in the order in which they come first."""
    merged: dict[tuple[str, str], UnderflowRow] = {}
    for row in rows:
        key = (row.name, row.format)
        before = merged.get(key)
        added = {} if before is None else {count: getattr(before, count) + getattr(row, count) for count in _COUNTS}
        merged[key] = replace(row, **added)
    return tuple(merged.values())


def _cells(row: UnderflowRow) -> tuple[str, ...]:
    shares = (row.zero, row.flushed, row.subnormal, row.overflowed, row.not_finite)
    return (row.name, row.format, f"{row.num_values:,}", *(f"{share:.2%}" if share else "-" for share in shares))
