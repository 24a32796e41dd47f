"""Supervised fine-tuning: a model that continues text learns to answer, from examples of answers.

Read in this order: ``config`` (the settings), ``methods`` (which parameters are trained), ``optimizers`` (what updates
them), ``trainer`` (the pretraining loop with three habits more: loss before the first step, the best weights kept,
batches without an answer refused), ``run`` (all of it in one call).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.finetuning.sft.config import SftConfig
    from cme295lab.finetuning.sft.methods import METHODS, choose_parameters
    from cme295lab.finetuning.sft.optimizers import OPTIMIZERS, OptimizerChoice
    from cme295lab.finetuning.sft.run import train_sft
    from cme295lab.finetuning.sft.trainer import SftRun, SftTrainer, load_best

_HOME: dict[str, str] = {
    "METHODS": "methods",
    "OPTIMIZERS": "optimizers",
    "OptimizerChoice": "optimizers",
    "SftConfig": "config",
    "SftRun": "trainer",
    "SftTrainer": "trainer",
    "choose_parameters": "methods",
    "load_best": "trainer",
    "train_sft": "run",
}
_MODULES = ("config", "methods", "optimizers", "run", "trainer")

__all__: list[str] = [
    "train_sft",
    "SftConfig",
    "SftRun",
    "SftTrainer",
    "METHODS",
    "OPTIMIZERS",
    "OptimizerChoice",
    "choose_parameters",
    "load_best",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
