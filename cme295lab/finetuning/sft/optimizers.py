"""Which optimizer a fine-tuning run has: AdamW, AdamW with paged states, and either with LoRA+'s learning rates.

    optimizer="adamw"          all states beside the parameters
    optimizer="paged-adamw"    at most `budget_bytes` of states on the device, the rest in the CPU's memory
    lora_plus_ratio            B of a LoRA adapter has that many times the learning rate of all else

Parameters are grouped by weight decay, and by LoRA+ within that. A group's learning rate is its peak; the schedule
multiplies them all by the same share, so their ratio is the same in every step. The log has the rate of all but B.

**What a run stores of it** is what changes its numbers, no more. Paging changes none, so a run that did not fit the
memory can be gone on with under a smaller budget, and a run that was begun without pages with them. The ratio of LoRA+
and the states' precision do change numbers: a run is resumed with the same alone.

Source: Dettmers et al. 2023, "QLoRA", §3 "Paged Optimizers"; Hayou et al. 2024, "LoRA+", §4.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from cme295lab.pretraining.optim import AdamW, Optimizer, decay_groups
from cme295lab.pretraining.trainer import TrainConfig

OPTIMIZERS = ("adamw", "paged-adamw")
_OF_PAGES = ("budget_bytes", "order", "state_dtype")
_ORDERS = ("alternating", "forward")
_STATE_DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class OptimizerChoice:
    """An optimizer by name, with its options.

    Attributes:
        name: one of `OPTIMIZERS`.
        budget_bytes: of "paged-adamw", which needs it: states on the device at most.
        order: of "paged-adamw", in which parameters are updated: "alternating" (None, too) or "forward".
        state_dtype: of "paged-adamw": "fp32", "bf16" or "fp16"; None for that of each parameter.
        lora_plus_ratio: learning rate of a LoRA adapter's B over that of all else; None for one rate.

    Raises:
        TypeError: if the budget is no integer.
        ValueError: if the name is unknown, or an option is missing, out of range, or not the optimizer's.
    """

    name: str = "adamw"
    budget_bytes: int | None = None
    order: str | None = None
    state_dtype: str | None = None
    lora_plus_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        given = [option for option in _OF_PAGES if getattr(self, option) is not None]
        if self.name != "paged-adamw" and given:
            raise ValueError(f"{', '.join(given)} is of optimizer 'paged-adamw' alone, the optimizer is {self.name!r}")
        if self.name == "paged-adamw":
            self._check_pages()
        ratio = self.lora_plus_ratio
        if ratio is None:
            return
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not (math.isfinite(ratio) and ratio > 0):
            raise ValueError(f"lora_plus_ratio must be a positive number, or None for one rate, got {ratio!r}")

    def _check_pages(self) -> None:
        budget = self.budget_bytes
        if budget is None:
            raise ValueError("optimizer 'paged-adamw' needs optimizer_options={'budget_bytes': ...}")
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise TypeError(f"budget_bytes must be an int, got {budget!r} of type {type(budget).__name__}")
        if budget < 1:
            raise ValueError(f"budget_bytes must be positive, got {budget}")
        for option, allowed in (("order", _ORDERS), ("state_dtype", _STATE_DTYPES)):
            if (value := getattr(self, option)) not in (None, *allowed):
                raise ValueError(f"{option} must be one of {', '.join(allowed)}, or None, got {value!r}")

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> OptimizerChoice:
        """The choice of a name and options by name.

        Raises:
            TypeError: if there is no such option.
        """
        known = [item.name for item in fields(cls) if item.name != "name"]
        if unknown := sorted(set(options) - set(known)):
            raise TypeError(f"optimizer_options has {', '.join(unknown)}; there are {', '.join(known)}")
        return cls(name=name, **options)

    def stored(self) -> dict[str, Any]:
        """What a run stores: the options that change its numbers, those that are given."""
        facts = {"state_dtype": self.state_dtype, "lora_plus_ratio": self.lora_plus_ratio}
        kept = {name: value for name, value in facts.items() if value is not None}
        return json.loads(json.dumps(kept))  # type: ignore[no-any-return]  # as a checkpoint gives them back

    def make(self, model: nn.Module, config: TrainConfig) -> Optimizer:
        """The optimizer of those parameters of a model that have `requires_grad`.

        Args:
            model: has a LoRA adapter that is active, if the choice is of LoRA+.
            config: learning rate, weight decay, betas and eps.

        Raises:
            ValueError: if LoRA+ is asked for of a model without LoRA, or the states of a parameter exceed the budget.
        """
        groups = decay_groups(model, config.weight_decay)
        if self.lora_plus_ratio is not None:
            groups = _with_lora_plus(groups, model, config.learning_rate, self.lora_plus_ratio)
        options: dict[str, Any] = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
        if self.name == "adamw":
            return AdamW(groups, **options)
        from cme295lab.finetuning.lora.options import DTYPES
        from cme295lab.finetuning.qlora.paged_adamw import PagedAdamW

        assert self.budget_bytes is not None
        if self.order is not None:
            options["order"] = self.order
        dtype = None if self.state_dtype is None else DTYPES[self.state_dtype]
        return PagedAdamW(groups, budget_bytes=self.budget_bytes, state_dtype=dtype, **options)


def _with_lora_plus(
    groups: list[dict[str, Any]], model: nn.Module, learning_rate: float, ratio: float
) -> list[dict[str, Any]]:
    """Each group in two, by the learning rate that LoRA+ has for its parameters."""
    from cme295lab.finetuning.lora import lora_plus_groups

    rates = {
        id(parameter): group["lr"]
        for group in lora_plus_groups(model, learning_rate=learning_rate, ratio=ratio)
        for parameter in group["params"]
    }
    split = []
    for group in groups:
        by_rate: dict[float, list[Any]] = {}
        for name, parameter in group["params"]:
            by_rate.setdefault(rates.get(id(parameter), learning_rate), []).append((name, parameter))
        split += [{**group, "params": pairs, "lr": rate} for rate, pairs in by_rate.items()]
    return split
