"""Which runs a sweep consists of, in three stages: each needs the one before.

1. **Trials**: three sizes at four or five learning rates each, with the smallest budget. The bottoms of their parabolas
   give a rule, peak learning rate = coefficient × N^exponent.
2. **Sweep**: four budgets, each about 2.7 times the one before, six or seven sizes at each: 25 runs.
3. **Check**: the fits of stage 2 are asked for the best model at three times the largest budget. Approaches 2 and 3
   need not agree. Both answers are written down, with the losses that approach 3 predicts; then both are trained.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from cme295lab.scaling.fitting.isoflop import fit_isoflop
from cme295lab.scaling.fitting.parametric_fit import ParametricFit, fit_parametric
from cme295lab.scaling.fitting.power_law import fit_power_law
from cme295lab.scaling.records import ExtrapolationWarning, columns
from cme295lab.scaling.sweep.models import (
    SWEEP_MODELS,
    LearningRateRule,
    best_learning_rate,
    model_for_size,
    sweep_model,
)
from cme295lab.scaling.sweep.results import Record, Sweep
from cme295lab.scaling.sweep.training import PlannedRun, steps_for_budget
from cme295lab.transformer.config import ModelConfig

BUDGETS = (1.5e11, 4e11, 1.1e12, 3e12)  # FLOP
CHECK_BUDGET = 9e12
_RUNGS = {  # of the ladder of sizes, by budget
    1.5e11: (0, 1, 2, 3, 4, 5),
    4e11: (0, 1, 2, 3, 4, 5),
    1.1e12: (0, 1, 2, 3, 4, 6, 8),
    3e12: (1, 2, 3, 4, 6, 10),
}
_TRIALS = {
    "40x2": (1e11, (0.0025, 0.005, 0.01, 0.02)),
    "64x3": (2e11, (0.0025, 0.005, 0.01, 0.02)),
    "96x4": (4e11, (0.00125, 0.0025, 0.005, 0.01)),
}
_BOOTSTRAP = 500


def trial_runs() -> list[PlannedRun]:
    """Stage 1."""
    return [
        PlannedRun(
            name=f"trial {name} at {rate:g}",
            config=sweep_model(name),
            num_steps=steps_for_budget(sweep_model(name), budget),
            learning_rate=rate,
            kind="trial",
        )
        for name, (budget, rates) in _TRIALS.items()
        for rate in rates
    ]


def rule_from_trials(records: Sequence[Record]) -> LearningRateRule:
    """The power law through the best learning rate of each size.

    Raises:
        ValueError: if the best of a size is at the edge of those tried.
    """
    sizes, best = [], []
    for name in {record["model"]: None for record in records}:
        of_size = [record for record in records if record["model"] == name]
        sizes.append(float(of_size[0]["num_parameters"]))
        best.append(best_learning_rate([r["learning_rate"] for r in of_size], [r["loss"] for r in of_size]))
    coefficient, exponent = fit_power_law(np.array(sizes), np.array(best))
    return LearningRateRule(coefficient=float(f"{coefficient:.4g}"), exponent=round(exponent, 4))


def sweep_runs(rule: LearningRateRule) -> list[PlannedRun]:
    """Stage 2."""
    return [
        _budget_run(config, budget, rule, "sweep")
        for budget in BUDGETS
        for config in (SWEEP_MODELS[rung] for rung in _RUNGS[budget])
    ]


def _budget_run(config: ModelConfig, flops: float, rule: LearningRateRule, kind: str) -> PlannedRun:
    return PlannedRun(
        name=f"{config.name} at {flops:.3g}",
        config=config,
        num_steps=steps_for_budget(config, flops),
        learning_rate=float(f"{rule(config.num_parameters):.4g}"),
        kind=kind,
    )


def check_runs(rule: LearningRateRule, prediction: Record) -> list[PlannedRun]:
    """Stage 3: the models that the prediction names, at the larger budget."""
    sizes = [model["num_parameters"] for model in prediction["models"]]
    return [_budget_run(model_for_size(size), prediction["flops"], rule, "check") for size in sizes]


def predict(sweep: Sweep, flops: float = CHECK_BUDGET) -> dict[str, Any]:
    """What the fits of the sweep say about a larger budget: plain values, to be written down before it is trained.

    Args:
        sweep: with all runs of stage 2.
        flops: the budget.

    Returns:
        The best size by approach 3 with its interval, the best size by approach 2, and for the model nearest to each
        the loss that approach 3 predicts.
    """
    fit = fit_parametric(*columns(sweep.runs), num_bootstrap=_BOOTSTRAP, name="the course's sweep")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)  # the point of it
        by_parabolas = fit_isoflop(sweep.runs).optimal(flops)
    by_fit = fit.law.allocate(flops)
    return {
        "flops": flops,
        "by_fit": round(by_fit.num_parameters),
        "by_fit_interval": [round(size) for size in fit.interval(lambda law: law.allocate(flops).num_parameters)],
        "by_parabolas": round(by_parabolas.num_parameters),
        "models": [
            _predicted_model(fit, config, flops)
            for config in _models_to_check(by_fit.num_parameters, by_parabolas.num_parameters)
        ],
    }


def _models_to_check(*sizes: float) -> list[ModelConfig]:
    """The models nearest to some sizes; if that is one model, another of about twice its size beside it."""
    models = {config.name: config for config in map(model_for_size, sizes)}
    if len(models) == 1:
        larger = model_for_size(2 * next(iter(models.values())).num_parameters)
        models[larger.name] = larger
    return list(models.values())


def _predicted_model(fit: ParametricFit, config: ModelConfig, flops: float) -> dict[str, Any]:
    size, tokens = float(config.num_parameters), flops / (6 * config.num_parameters)
    low, high = fit.interval(lambda law: float(law.loss(size, tokens)))
    return {
        "model": config.name,
        "num_parameters": config.num_parameters,
        "loss": round(float(fit.loss(size, tokens)), 4),
        "interval": [round(low, 4), round(high, 4)],
    }


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats per token as bits per byte of text, which can be compared between vocabularies."""
    return loss / math.log(2) / bytes_per_token
