"""Part 4: the cheapest setting that fits a GPU, held against all others by the course's ledger.

The order of cost: stages 0, 1 and 2 of ZeRO send the same bytes, and stage 3 half as many again, so it is the last
resort. Then less recomputation is better than more, a lower stage than a higher one, and a larger micro-batch than a
smaller one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, TimeLimitReached, quiet, refuse_function, student_error, time_limit
from cme295lab.grading.result import Kind, Outcome
from cme295lab.hardware import get_device
from cme295lab.memory import ParallelConfig, training_memory
from cme295lab.units import format_bytes

KINDS = ("none", "selective", "full")
STAGES = (0, 1, 2, 3)
_TIME_LIMIT_S = 60.0
Plan = tuple[int, str, int]


@dataclass(frozen=True)
class Task:
    """A model that must fit.

    Args:
        model: name of a preset.
        num_gpus: how many there are.
        seq: tokens of a sequence.
        device: the GPU.
    """

    model: str
    num_gpus: int
    seq: int
    device: str

    @property
    def call(self) -> str:
        """The call of the student's function, in words."""
        return f"choose_plan({self.model!r}, num_gpus={self.num_gpus}, seq={self.seq}, device={self.device!r})"


def properties(*, hidden: bool = False) -> list[Property]:
    """What must hold for `choose_plan(model, num_gpus, seq, device) -> (stage, recompute, micro_batch)`.

    Args:
        hidden: other models and GPUs than the visible ones.
    """
    if hidden:
        return [
            _property("Llama-3 8B on A100s with 40 GB gets the right plan", Task("llama-3-8b", 16, 4096, "A100-40GB")),
            _property("Llama-2 13B on many H100s gets the right plan", Task("llama-2-13b", 32, 4096, "H100")),
            _property("Llama-3 8B on two H200s gets the right plan", Task("llama-3-8b", 2, 2048, "H200")),
        ]
    return [
        _property("Llama-3 8B on 8 H100s gets the right plan", Task("llama-3-8b", 8, 8192, "H100")),
        _property("Llama-3 8B on 2 H100s gets the right plan", Task("llama-3-8b", 2, 8192, "H100")),
        _property("a small model on one H100 gets the right plan", Task("gpt-2", 1, 1024, "H100")),
        _property("Llama-2 13B on 16 A100s gets the right plan", Task("llama-2-13b", 16, 4096, "A100")),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "choose_plan")


def _property(name: str, task: Task) -> Property:
    def observe(student: Callable[..., Any]) -> Observation:
        try:
            with quiet(), time_limit(_TIME_LIMIT_S):
                return Observation(outputs={"plan": student(task.model, task.num_gpus, task.seq, task.device)})
        except (Exception, TimeLimitReached) as error:
            return Observation(error=student_error(error, _TIME_LIMIT_S))

    def judge(seen: Observation) -> Outcome:
        return judge_plan(task, seen.outputs["plan"])

    return Property(name=name, observe=observe, judge=judge, where=task.call)


@functools.cache
def needed_bytes(task: Task, plan: Plan) -> int:
    """What a rank needs at the peak, by the ledger."""
    stage, kind, micro_batch = plan
    recompute: Any = kind  # one of KINDS
    parallel = ParallelConfig(data=task.num_gpus, zero_stage=stage)
    return training_memory(
        task.model, parallel=parallel, micro_batch=micro_batch, seq=task.seq, recompute=recompute
    ).total_bytes


def fits(task: Task, plan: Plan) -> bool:
    """Whether a plan fits the GPU."""
    return needed_bytes(task, plan) <= get_device(task.device).memory_bytes


@functools.cache
def best_plan(task: Task) -> Plan:
    """The first plan of those that fit, in the order of cost."""
    order = [(stage, kind) for stages in ((0, 1, 2), (3,)) for kind in KINDS for stage in stages]
    stage, kind = next((stage, kind) for stage, kind in order if fits(task, (stage, kind, 1)))
    return stage, kind, largest_batch(task, stage, kind)


def largest_batch(task: Task, stage: int, kind: str) -> int:
    """The largest micro-batch that fits; 0 if none does."""
    micro_batch = 0
    while fits(task, (stage, kind, micro_batch + 1)):
        micro_batch += 1
    return micro_batch


def judge_plan(task: Task, got: Any) -> Outcome:
    """Judge a plan."""
    if not _is_plan(got):
        kinds = ", ".join(map(repr, KINDS))
        cause = (
            f"return (stage, recompute, micro_batch): a stage from 0 to 3, one of {kinds}, and a number; got {got!r}"
        )
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    plan, best = (int(got[0]), str(got[1]), int(got[2])), best_plan(task)
    if plan == best:
        return Outcome(name="")
    there = get_device(task.device).memory_bytes
    if not fits(task, plan):
        difference = (
            f"the plan {plan} needs {format_bytes(needed_bytes(task, plan))}, the GPU has {format_bytes(there)}"
        )
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=_too_large(task, plan))
    difference = f"the plan {plan} fits, and so does {best}: {format_bytes(needed_bytes(task, best))}"
    kind = Kind.TOO_MUCH_COMMUNICATION if plan[0] == 3 and best[0] < 3 else Kind.WRONG_VALUE
    return Outcome(name="", kind=kind, difference=difference, cause=_too_dear(plan, best))


def _is_plan(got: Any) -> bool:
    if not isinstance(got, tuple | list) or len(got) != 3:
        return False
    stage, kind, micro_batch = got
    numbers = all(isinstance(value, int) and not isinstance(value, bool) for value in (stage, micro_batch))
    return numbers and stage in STAGES and kind in KINDS and micro_batch >= 1


def _too_large(task: Task, plan: Plan) -> str:
    stage, kind, micro_batch = plan
    if micro_batch > 1 and fits(task, (stage, kind, micro_batch - 1)):
        return "one sequence less fits: the last micro-batch that fits is the one before the first that does not"
    there = get_device(task.device).memory_bytes
    if needed_bytes(task, plan) <= there * 2**30 / 1e9:
        return "it would fit if its GB were GiB: compare bytes with bytes"
    if task.num_gpus > 1 and fits(task, (3, kind, micro_batch)):
        return "this stage shards too little: is the number of GPUs handed to ParallelConfig(data=..., zero_stage=...)?"
    return "ask the ledger before you answer: training_memory(...).fits(device)"


def _too_dear(plan: Plan, best: Plan) -> str:
    if plan[0] == 3 and best[0] < 3:
        return f"stage {best[0]} is enough, with recompute={best[1]!r}: stage 3 sends half as much again"
    if KINDS.index(plan[1]) > KINDS.index(best[1]):
        return (
            f"at stage {best[0]} it fits with recompute={best[1]!r}: recomputing less computes less, and stages 0, 1 "
            "and 2 send the same bytes"
        )
    if plan[0] > best[0]:
        return f"stage {best[0]} is enough, with recompute={best[1]!r}: try the stages from 0 up"
    return f"a micro-batch of {best[2]} fits as well: larger matrices keep the GPU busier"
