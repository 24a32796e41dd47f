"""Part 1: gigabytes of weights, gradients, masters and optimizer states on each rank, for every stage of ZeRO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.memory.formulas.model_states import zero_model_state_bytes
from cme295lab.units import GB, GiB

Precision = Literal["fp32", "bf16-mixed"]
Optimizer = Literal["sgd", "sgd-momentum", "adam", "adam-8bit"]
Parts = Mapping[str, float]
_FIRST_DIVIDED = {"masters": 1, "states": 1, "gradients": 2, "weights": 3}  # the stage of ZeRO that shards it
_ADAM_WHOLE = "one GPU: 16 bytes per parameter, in fp32 and in mixed precision"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model, and how it is trained.

    Args:
        num_parameters: of the model; the ranks divide it.
        precision: "fp32" or "bf16-mixed".
        optimizer: which one.
        num_ranks: ranks of data parallelism.
        stage: of ZeRO.
    """

    num_parameters: int
    precision: Precision = "bf16-mixed"
    optimizer: Optimizer = "adam"
    num_ranks: int = 1
    stage: int = 0

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the student's function is called with."""
        return vars(self)

    @property
    def parts(self) -> Parts:
        """Bytes per parameter, before anything is divided."""
        is_mixed = self.precision == "bf16-mixed"
        numbers = {"sgd": 0.0, "sgd-momentum": 4.0, "adam": 8.0, "adam-8bit": 2 + 2 * 4 / 256}
        return {
            "weights": 2 if is_mixed else 4,
            "gradients": 2 if is_mixed else 4,
            "masters": 4 if is_mixed else 0,
            "states": numbers[self.optimizer],
        }

    def num_bytes(self, parts: Parts, divided: Sequence[str]) -> float:
        """Bytes on a rank, if these parts are divided by the ranks."""
        per_parameter = sum(size / (self.num_ranks if name in divided else 1) for name, size in parts.items())
        return self.num_parameters * per_parameter


def divided_in(stage: int) -> list[str]:
    """What a stage of ZeRO divides by the ranks."""
    return [name for name, first in _FIRST_DIVIDED.items() if stage >= first]


def properties(*, billions: int = 75, num_ranks: int = 64) -> list[Property]:
    """What must hold for `model_state_gb(num_parameters, precision, optimizer, num_ranks, stage)`.

    Args:
        billions: tenths of a billion parameters.
        num_ranks: ranks, a power of two.
    """
    size = billions * 100_000_000
    whole = [Model(num_parameters=size), Model(num_parameters=size, precision="fp32")]
    others = [
        Model(num_parameters=size, precision="fp32", optimizer="sgd"),
        Model(num_parameters=size, optimizer="sgd-momentum"),
        Model(num_parameters=size, optimizer="adam-8bit"),
    ]
    stages = [[Model(num_parameters=size, num_ranks=num_ranks, stage=stage)] for stage in (1, 2, 3)]
    plain = Model(num_parameters=size, num_ranks=num_ranks)
    mixture = [
        Model(num_parameters=size, precision="fp32", num_ranks=8, stage=2),
        Model(num_parameters=size, optimizer="adam-8bit", num_ranks=8, stage=1),
    ]
    return [
        _property(_ADAM_WHOLE, whole),
        _property("other optimizers are counted right", others, needs=(_ADAM_WHOLE,)),
        *(_property(f"ZeRO stage {i + 1} is counted right", found) for i, found in enumerate(stages)),
        _property("without ZeRO, more ranks change nothing", [plain]),
        _property("stages and optimizers combine", mixture),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "model_state_gb")


def _property(name: str, models: Sequence[Model], needs: tuple[str, ...] = ()) -> Property:
    return formula_property(name, [question(model) for model in models], needs=needs)


def question(model: Model) -> Question:
    """The call, its answer by the course's ledger, and what mistakes give."""
    want = zero_model_state_bytes(
        model.num_parameters, model.num_ranks, model.stage, policy=model.precision, optimizer=model.optimizer
    )
    mistakes = [(cause, num_bytes / GB) for cause, num_bytes in _mistakes(model)]
    mistakes += [
        ("that is in GiB: one GB is 10^9 bytes, one GiB is 2^30", want / GiB),
        ("that is in bytes: one GB is 10^9 bytes", float(want)),
        (f"that is all {model.num_ranks} ranks together: the question is about one", want * model.num_ranks / GB),
    ]
    return Question(
        function="model_state_gb",
        arguments=model.arguments,
        want=want / GB,
        mistakes=tuple(mistakes),
        unit="GB",
    )


def _mistakes(model: Model) -> Iterator[tuple[str, float]]:
    """What known mistakes give, in bytes."""
    parts, divided = model.parts, divided_in(model.stage)
    for cause, change in _wrong_parts(model):
        yield cause, model.num_bytes({**parts, **change}, divided)
    for name, what in (("states", "the optimizer's states"), ("masters", "the master weights")):
        if name in divided and model.num_ranks > 1:
            cause = f"{what} are not divided by the ranks: every stage of ZeRO shards what only the update needs"
            yield cause, model.num_bytes(parts, [other for other in divided if other != name])
    for stage in range(4):
        if stage != model.stage:
            cause = f"that is stage {stage}, and stage {model.stage} is asked for: {_IN_WORDS[model.stage]}"
            yield cause, model.num_bytes(parts, divided_in(stage))
    if model.stage:
        neither = [name for name in divided if name not in ("states", "masters")]
        cause = "the optimizer's states and the masters are not divided by the ranks: stage 1 begins with them"
        yield cause, model.num_bytes(parts, neither)


_IN_WORDS = {
    0: "without ZeRO, every rank holds everything",
    1: "it divides the masters and the states",
    2: "it divides the gradients too, and every rank keeps all weights",
    3: "it divides the weights, too",
}


def _wrong_parts(model: Model) -> Iterator[tuple[str, Parts]]:
    """Causes, and the bytes per parameter that they give."""
    yield from _wrong_states(model.optimizer)
    if model.precision == "bf16-mixed":
        cause = "the master weights are forgotten: mixed precision updates an fp32 copy, 4 bytes per parameter"
        yield cause, {"masters": 0}
        if model.stage < 2:
            cause = "weights or gradients have 4 bytes here: in mixed precision both are in bf16, 2 bytes"
            yield cause, {"gradients": 4}
        yield "gradients have 4 bytes here: in mixed precision they are in bf16, like the weights", {"gradients": 4}
        yield "weights have 4 bytes here: the model computes with bf16 weights, 2 bytes", {"weights": 4}
        cause = "weights and gradients have 4 bytes here: in mixed precision both are in bf16"
        yield cause, {"weights": 4, "gradients": 4}
        yield "the masters have 2 bytes here: they are the fp32 copy", {"masters": 2}
    else:
        yield "there are masters besides the weights: in fp32 the weights are their own masters", {"masters": 4}
        yield "weights and gradients have 4 bytes each in fp32", {"weights": 2, "gradients": 2}
    yield "the gradients are missing", {"gradients": 0}


def _wrong_states(optimizer: Optimizer) -> Iterator[tuple[str, Parts]]:
    """Causes, and the bytes of the optimizer's states that they give."""
    if optimizer == "adam":
        yield "Adam keeps two numbers per parameter: the mean of gradients, and of their squares", {"states": 4}
        yield "the optimizer's states are missing", {"states": 0}
    elif optimizer == "adam-8bit":
        cause = "each block of 256 numbers also keeps an fp32 maximum, for each of the two states"
        yield cause, {"states": 2}
        yield cause, {"states": 2 + 4 / 256}
        yield "8-bit Adam keeps its two numbers in one byte each", {"states": 8}
        yield "8-bit Adam keeps two numbers, of one byte each", {"states": 1 + 4 / 256}
        yield "8-bit Adam keeps two numbers, of one byte each", {"states": 1}
    elif optimizer == "sgd-momentum":
        yield "momentum is one number per parameter, in fp32", {"states": 0}
        yield "momentum is one number per parameter: Adam has two", {"states": 8}
        yield "momentum is kept in fp32, 4 bytes", {"states": 2}
    else:
        yield "plain SGD keeps nothing", {"states": 4}
        yield "plain SGD keeps nothing", {"states": 8}
