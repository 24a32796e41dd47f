"""The decoder-only language model that the course trains, shards and measures.

Read in this order: ``config`` (the shape of a model, and its exact number of parameters by formula), ``presets``
(published models), ``layers`` and ``decoder`` (the same shape as plain PyTorch). A test holds the two together: the
parameters of the built model, on the meta device and without a byte of memory, are as many as the formula says, for
every preset. Then ``moe`` (several MLPs in place of one), ``kv_cache`` (what is kept of the tokens read so far),
``inference_cost`` (what reading and writing a token takes), ``decoding`` (from logits to text), ``text`` (text to token
numbers and back) and ``pretrained`` (models with trained weights, read and written).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.transformer.config import ModelConfig, ParameterCounts, RopeScaling
    from cme295lab.transformer.decoder import Block, DecoderLM
    from cme295lab.transformer.inference_cost import InferenceCost, decode_cost, kv_bytes, prefill_cost
    from cme295lab.transformer.kv_cache import GrowingCache, StaticCache
    from cme295lab.transformer.moe import (
        Routing,
        auxiliary_loss,
        load_balancing_loss,
        record_routing,
        router_z_loss,
    )
    from cme295lab.transformer.presets import PRESETS, preset
    from cme295lab.transformer.pretrained.hub import save_pretrained
    from cme295lab.transformer.pretrained.load import Pretrained, load_pretrained, pretrained_or_course
    from cme295lab.transformer.text import TextTokenizer

_HOME = {
    "Block": "decoder",
    "DecoderLM": "decoder",
    "ModelConfig": "config",
    "InferenceCost": "inference_cost",
    "decode_cost": "inference_cost",
    "kv_bytes": "inference_cost",
    "prefill_cost": "inference_cost",
    "GrowingCache": "kv_cache",
    "PRESETS": "presets",
    "ParameterCounts": "config",
    "RopeScaling": "config",
    "Routing": "moe",
    "StaticCache": "kv_cache",
    "auxiliary_loss": "moe",
    "load_balancing_loss": "moe",
    "preset": "presets",
    "record_routing": "moe",
    "router_z_loss": "moe",
    "TextTokenizer": "text",
    "Pretrained": "pretrained.load",
    "load_pretrained": "pretrained.load",
    "pretrained_or_course": "pretrained.load",
    "save_pretrained": "pretrained.hub",
}
_MODULES = (
    "config", "decoder", "decoding", "inference_cost", "kv_cache", "layers", "moe", "presets", "pretrained", "text",
)  # fmt: skip

__all__ = [
    "ModelConfig", "ParameterCounts", "RopeScaling", "PRESETS", "preset", "DecoderLM", "Block",
    "StaticCache", "GrowingCache", "Routing", "record_routing", "load_balancing_loss", "router_z_loss",
    "auxiliary_loss", "InferenceCost", "decode_cost", "prefill_cost", "kv_bytes",
    "TextTokenizer", "Pretrained", "load_pretrained", "pretrained_or_course", "save_pretrained",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
