"""The decoder-only language model that the course trains, shards and measures.

Read in this order: ``config`` (the shape of a model, its exact number of parameters by formula, and the published
models as presets), ``decoder`` (the same shape as plain PyTorch). A test holds the two together: the parameters of the
built model, on the meta device and without a byte of memory, are as many as the formula says, for every preset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.transformer.config import PRESETS, ModelConfig, ParameterCounts, preset
    from cme295lab.transformer.decoder import Block, DecoderLM

_HOME = {
    "Block": "decoder",
    "DecoderLM": "decoder",
    "ModelConfig": "config",
    "PRESETS": "config",
    "ParameterCounts": "config",
    "preset": "config",
}
_MODULES = ("config", "decoder")

__all__ = ["ModelConfig", "ParameterCounts", "PRESETS", "preset", "DecoderLM", "Block"]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
