"""What an adapter is like: rank, scale, where, and which of the variants.

    y = W₀ x + b + s · B A x          A: r × in, random      B: out × r, zero at the start

    s           α / r; with `rs_lora` it is α / √r, which keeps the size of updates when the rank grows
    dropout     on the x that A sees
    dora        the update moves directions, and a learned number per output their lengths

Source: Hu et al. 2022, "LoRA", §4.1; Kalajdzievski 2023, "A Rank Stabilization Scaling Factor", §3 (rsLoRA);
Liu et al. 2024, "DoRA", §4.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from cme295lab.finetuning.attached import check_int
from cme295lab.finetuning.lora.targets import Targets, paths_named

Init = Literal["kaiming", "gaussian"]
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """What an adapter is like.

    Args:
        rank: r, of all matrices that `rank_pattern` does not name.
        alpha: α; 2 r is common, and with a fixed α the best learning rate hardly depends on the rank.
        targets: which matrices: names, last parts of names, "all-linear".
        dropout: share of inputs of A that are dropped in training.
        rs_lora: whether the scale is α / √r.
        dora: whether lengths are learned apart from directions; linear layers only.
        rank_pattern: name or last part of a name -> rank there.
        alpha_pattern: the same for α.
        init: of A: "kaiming" (uniform, as in most libraries) or "gaussian" (standard deviation 1 / r).
        dtype: of A and B, "fp32", "bf16" or "fp16"; None means that of the base's weights, or of computing with them
            where they are in 4 bits.

    Raises:
        TypeError: if `targets` is another text than "all-linear".
        ValueError: if a value is not one of those allowed.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Targets = ("query", "value")
    dropout: float = 0.0
    rs_lora: bool = False
    dora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    init: Init = "kaiming"
    dtype: str | None = None

    def __post_init__(self) -> None:
        check_int("rank", self.rank, 1)
        _check_alpha("alpha", self.alpha)
        for name, rank in self.rank_pattern.items():
            check_int(f"rank_pattern[{name!r}]", rank, 1)
        for name, alpha in self.alpha_pattern.items():
            _check_alpha(f"alpha_pattern[{name!r}]", alpha)
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be a share from 0 to below 1, got {self.dropout!r}")
        if self.init not in get_args(Init):
            raise ValueError(f"init must be 'kaiming' or 'gaussian', got {self.init!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, or None, got {self.dtype!r}")

    def rank_of(self, path: str) -> int:
        """The rank of one matrix."""
        return int(_from_pattern(self.rank_pattern, path, self.rank))

    def alpha_of(self, path: str) -> float:
        """The α of one matrix."""
        return float(_from_pattern(self.alpha_pattern, path, self.alpha))

    def scale_of(self, path: str) -> float:
        """s of one matrix: α / r, or α / √r."""
        rank = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(rank) if self.rs_lora else rank)


def _from_pattern(pattern: Mapping[str, float], path: str, otherwise: float) -> float:
    """The value of the longest name in a pattern that names a path."""
    named = [name for name in pattern if paths_named([path], name)]
    return pattern[max(named, key=len)] if named else otherwise


def _check_alpha(name: str, alpha: object) -> None:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < sys.float_info.max:
        raise ValueError(f"{name} must be a positive number, got {alpha!r}")
