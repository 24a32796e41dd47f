"""The entrance to the exercises' checks: run one by its id, or ask for a hint.

from cme295lab.grading import checks
checks.run("flash_attention/1", merge_blocks)
checks.hint("flash_attention/1")
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from html import escape
from importlib import import_module
from typing import Any

from cme295lab.grading.result import CheckResult

# Each topic is a package here that has a dictionary EXERCISES; it is imported when one of its exercises is asked for.
_TOPICS = (
    "flash_attention",
    "kernel_clinic",
    "ring_all_reduce",
    "ddp_overlap",
    "training_memory",
    "zero_sharding",
    "decoding",
    "flops_accounting",
    "scaling_fit",
    "moe_routing",
    "kv_cache",
    "float_formats",
    "loss_scaling",
    "quantizers",
    "nf4",
    "qlora",
    "prefix_tuning",
    "sft_loss_mask",
    "lora",
)


def exercises() -> list[str]:
    """The ids of all exercises."""
    return [id for topic in _TOPICS for id in _topic(topic)]


def run(exercise: str, student: Any, **inputs: Any) -> CheckResult:
    """Check a student's code.

    Args:
        exercise: the id, such as "flash_attention/1".
        student: what the student wrote: a function, a kernel, or a tuple of functions (the exercise says which).
        **inputs: choose other inputs than the visible ones: `seed`, and what the exercise's `properties` takes.

    Returns:
        The verdict; it draws itself in a notebook, and `.award(points)` turns it into points.

    Raises:
        ValueError: if there is no such exercise.
    """
    from cme295lab.grading.exercise import judge_all

    found = _find(exercise)
    refusal = found.refuse(student)
    outcomes = (refusal,) if refusal is not None else judge_all(found.check(**inputs), student)
    return CheckResult(found.id, found.title, outcomes)


@dataclass(frozen=True)
class Hint:
    """One hint to an exercise, which draws itself."""

    exercise: str
    level: int
    num_levels: int
    text: str

    def __str__(self) -> str:
        return f"{self.exercise}, hint {self.level} of {self.num_levels}: {self.text}{self._more()}"

    def _more(self) -> str:
        if self.level == self.num_levels:
            return ""
        return f'\nMore: checks.hint("{self.exercise}", {self.level + 1})'

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        head, _, more = str(self).partition("\nMore: ")
        tail = f"<br>More: <code>{escape(more)}</code>" if more else ""
        return f'<div style="border-left:4px solid #E69F00;padding:4px 12px">{escape(head)}{tail}</div>'


def hint(exercise: str, level: int = 1) -> Hint:
    """A hint to an exercise.

    Args:
        exercise: the id, such as "flash_attention/1".
        level: 1 is a nudge; each further level says more.

    Raises:
        ValueError: if there is no such exercise or level.
    """
    found = _find(exercise)
    if not 1 <= level <= len(found.hints):
        raise ValueError(f"level: {exercise} has hints 1 to {len(found.hints)}, got {level}")
    return Hint(found.id, level, len(found.hints), found.hints[level - 1])


def _topic(topic: str) -> dict[str, Any]:
    exercises: dict[str, Any] = import_module(f"cme295lab.grading.{topic}").EXERCISES
    return exercises


def _find(exercise: str) -> Any:
    topic = exercise.partition("/")[0]
    known = _topic(topic) if topic in _TOPICS else {}
    if exercise in known:
        return known[exercise]
    close = difflib.get_close_matches(exercise, exercises(), n=1, cutoff=0.3)
    nearest = f'; did you mean "{close[0]}"?' if close else ""
    raise ValueError(f"exercise: there is no {exercise!r}{nearest} Known: {', '.join(exercises())}")
