"""Small tasks for many adapters on one base: spam or not, positive or not.

``generate`` makes the examples, from the words in ``messages``; ``answers`` asks a model for its label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.tasks.answers import Answer, accuracy, answers_of, classify, label_log_probabilities
    from cme295lab.finetuning.tasks.generate import LABELS, TASKS, TaskData, TaskExample, task_data, to_messages

_HOME: dict[str, str] = {
    "Answer": "answers",
    "LABELS": "generate",
    "TASKS": "generate",
    "TaskData": "generate",
    "TaskExample": "generate",
    "accuracy": "answers",
    "answers_of": "answers",
    "classify": "answers",
    "label_log_probabilities": "answers",
    "task_data": "generate",
    "to_messages": "generate",
}
_MODULES = ("answers", "generate", "messages")

__all__: list[str] = [
    "task_data",
    "TaskData",
    "TaskExample",
    "TASKS",
    "LABELS",
    "to_messages",
    "accuracy",
    "classify",
    "Answer",
    "label_log_probabilities",
    "answers_of",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
