"""Part 4: days, price and energy of a training run: three formulas whose units must cancel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Kind, Outcome
from cme295lab.pretraining.flops.published import approximate_training_flops
from cme295lab.pretraining.flops.utilization import training_time_s

FUNCTIONS = ("training_days", "price_usd", "energy_mwh")
_DAYS = "days, with full recomputation"


def properties(
    *, gpus: int = 1024, billions: int = 175, tokens_billions: int = 300, tflops: int = 140
) -> list[Property]:
    """What must hold for `training_days`, `price_usd` and `energy_mwh`.

    Args:
        gpus, billions, tokens_billions, tflops: of the first run: GPUs, billions of parameters and of tokens, TFLOP/s.
    """
    run: dict[str, Any] = {
        "num_parameters": billions * 10**9, "num_tokens": tokens_billions * 10**9, "num_gpus": gpus,
        "tflops_per_gpu": tflops,
    }  # fmt: skip
    return [
        formula_property(_DAYS, [days_question(**run, recompute="full")]),
        formula_property("days, without recomputation", [days_question(**run, recompute="none")]),
        formula_property("the price of all GPUs", [price_question(days=12.5, num_gpus=gpus, usd_per_gpu_hour=2.5)]),
        formula_property("the energy of the data centre",
                         [energy_question(days=12.5, num_gpus=gpus, watts_per_gpu=700, pue=1.2),
                          energy_question(days=2, num_gpus=3 * gpus, watts_per_gpu=400, pue=1.0)]),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    if not isinstance(student, tuple | list) or len(student) != len(FUNCTIONS):
        cause = f"hand over a tuple of the functions {', '.join(FUNCTIONS)}"
        return Outcome(name="there are three functions", kind=Kind.WRONG_SHAPE, cause=cause)
    refusals = [refuse_function(function, name) for function, name in zip(student, FUNCTIONS)]
    stubs = [found for found in refusals if found is not None]
    # One that is written is judged although another is still a stub: that one says so where it is asked.
    return stubs[0] if len(stubs) == len(FUNCTIONS) or any(s.kind is Kind.WRONG_SHAPE for s in stubs) else None


def days_question(
    *, num_parameters: int, num_tokens: int, num_gpus: int, tflops_per_gpu: float, recompute: Any
) -> Question:
    """Days, by the library, and what mistakes give."""
    arguments: Mapping[str, Any] = dict(locals())
    compute = approximate_training_flops(num_parameters, num_tokens, recompute=recompute)
    seconds = training_time_s(compute, flops_per_s_per_gpu=tflops_per_gpu * 1e12, num_gpus=num_gpus)
    return Question(function="training_days", arguments=arguments, want=seconds / 86_400, unit="days", position=0,
                    mistakes=tuple(_wrong_days(seconds, num_gpus, recompute, tflops_per_gpu)))  # fmt: skip


def _wrong_days(seconds: float, num_gpus: int, recompute: str, tflops: float) -> Iterator[tuple[str, float]]:
    days = seconds / 86_400
    if recompute == "full":
        cause = (
            "6 FLOP per parameter and token are counted: the rate counts what is executed, and with full recomputation "
            "that is 8"
        )
        yield cause, days * 6 / 8
        yield "2 FLOP are the forward pass alone: with full recomputation 8 are executed", days * 2 / 8
    else:
        yield "8 FLOP per parameter and token are counted: without recomputation it is 6", days * 8 / 6
        yield "2 FLOP are the forward pass alone: training takes 6", days * 2 / 6
    yield "that is in seconds: a day has 86,400", seconds
    yield "that is in hours: a day has 24 of them, 86,400 s", seconds / 3600
    yield "that is in minutes: a day has 86,400 s", seconds / 60
    yield "an hour has 3,600 s, so a day has 86,400", seconds / (24 * 60)
    yield "the rate is in TFLOP/s: one TFLOP is 10^12 FLOP", days * 1e12
    yield "tera is 10^12, giga is 10^9", days * 1e3
    yield "these are the days of a single GPU: num_gpus of them work at the same time", days * num_gpus
    cause = "the FLOP are not divided by the rate: a count of operations over operations per second gives seconds"
    yield cause, days * tflops * 1e12
    yield cause, days * tflops * 1e12 * num_gpus


def price_question(*, days: float, num_gpus: int, usd_per_gpu_hour: float) -> Question:
    """US dollars, and what mistakes give."""
    arguments: Mapping[str, Any] = dict(locals())
    want = days * 24 * num_gpus * usd_per_gpu_hour
    mistakes = (
        ("the price is by the hour: a day has 24", want / 24),
        ("that is one GPU's: multiply by num_gpus", want / num_gpus),
        ("the price is by the hour, and a day has 24 of them, not 86,400", want * 3600),
    )
    return Question(function="price_usd", arguments=arguments, want=want, mistakes=mistakes, unit="USD", position=1)


def energy_question(*, days: float, num_gpus: int, watts_per_gpu: float, pue: float) -> Question:
    """Megawatt-hours, and what mistakes give."""
    arguments: Mapping[str, Any] = dict(locals())
    want = days * 24 * num_gpus * watts_per_gpu * pue / 1e6
    mistakes = (
        ("the data centre is missing: it takes PUE times what the GPUs take", want / pue),
        ("that is divided by the PUE: the data centre takes more than the GPUs, not less", want / pue**2),
        ("that is in kWh: one MWh is 1,000 kWh", want * 1e3),
        ("that is in Wh: one MWh is 10^6 Wh", want * 1e6),
        ("that is in GWh: one GWh is 1,000 MWh", want / 1e3),
        ("that is power times days: a watt-hour is a watt for an hour, and a day has 24", want / 24),
        ("that is in joules, watts times seconds: a MWh is 10^6 watts for an hour", want * 3.6e9),
        ("that is 10^6 watts times seconds: a MWh is 10^6 watts for an hour", want * 3600),
        ("that is one GPU's: multiply by num_gpus", want / num_gpus),
    )
    return Question(function="energy_mwh", arguments=arguments, want=want, mistakes=mistakes, unit="MWh", position=2)
