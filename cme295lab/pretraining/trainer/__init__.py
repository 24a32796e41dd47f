"""Many training steps in a row: what each of them does, and what stays when the run is killed.

Read ``config`` (the settings of a run), ``gradients`` (one step: micro-batches weighted by their tokens, clipping),
``evaluation`` (losses by domain), ``checkpoint`` and ``log`` (files that are whole at any moment), ``peak`` (what MFU
is measured against), then ``loop``, which ties them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.pretraining.trainer.checkpoint import has_checkpoint
    from cme295lab.pretraining.trainer.config import TrainConfig
    from cme295lab.pretraining.trainer.evaluation import evaluate
    from cme295lab.pretraining.trainer.gradients import accumulate_gradients, clip_gradients
    from cme295lab.pretraining.trainer.loop import Trainer, TrainingDivergedError, TrainingRun
    from cme295lab.pretraining.trainer.peak import measure_peak

_HOME: dict[str, str] = {
    "TrainConfig": "config",
    "Trainer": "loop",
    "TrainingDivergedError": "loop",
    "TrainingRun": "loop",
    "accumulate_gradients": "gradients",
    "clip_gradients": "gradients",
    "evaluate": "evaluation",
    "has_checkpoint": "checkpoint",
    "measure_peak": "peak",
}
_MODULES = ("config", "gradients", "evaluation", "checkpoint", "log", "peak", "loop")

__all__: list[str] = [
    "TrainConfig",
    "Trainer",
    "TrainingRun",
    "TrainingDivergedError",
    "accumulate_gradients",
    "clip_gradients",
    "evaluate",
    "has_checkpoint",
    "measure_peak",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
