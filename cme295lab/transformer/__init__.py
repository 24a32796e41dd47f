"""The decoder-only language model that the course trains, shards and measures.

Read in this order: ``config`` (the shape of a model, its exact number of parameters by formula, and the published
models as presets), ``decoder`` (the same shape as plain PyTorch). A test holds the two together: the parameters of the
built model, on the meta device and without a byte of memory, are as many as the formula says, for every preset. Then
``text`` (text to token numbers and back) and ``pretrained`` (models with trained weights, read and written).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.transformer.config import PRESETS, ModelConfig, ParameterCounts, preset
    from cme295lab.transformer.decoder import Block, DecoderLM
    from cme295lab.transformer.pretrained.hub import save_pretrained
    from cme295lab.transformer.pretrained.load import Pretrained, load_pretrained, pretrained_or_course
    from cme295lab.transformer.text import TextTokenizer

_HOME = {
    "Block": "decoder",
    "DecoderLM": "decoder",
    "ModelConfig": "config",
    "PRESETS": "config",
    "ParameterCounts": "config",
    "preset": "config",
    "TextTokenizer": "text",
    "Pretrained": "pretrained.load",
    "load_pretrained": "pretrained.load",
    "pretrained_or_course": "pretrained.load",
    "save_pretrained": "pretrained.hub",
}
_MODULES = ("config", "decoder", "pretrained", "text")

__all__ = [
    "ModelConfig", "ParameterCounts", "PRESETS", "preset", "DecoderLM", "Block",
    "TextTokenizer", "Pretrained", "load_pretrained", "pretrained_or_course", "save_pretrained",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
