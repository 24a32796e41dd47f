"""Models with weights: published ones, read from files, and the course's own.

Read in this order: ``load`` (the front door: a name, a folder or a GGUF file becomes a model and its tokenizer),
``registry`` (the names, with sizes, licences and checksums), ``hub`` (the Hugging Face layout, read and written), with
``hub_config`` and ``hub_names`` (their words for our shapes and parameters), ``checkpoint`` and ``assemble`` (tensors
from files into a model, one at a time), ``gguf_file`` and ``gguf_model`` (llama.cpp's layout, quantised), ``cache``,
``download`` and ``fetch`` (getting a model, when somebody asks for it, and never otherwise).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.transformer.pretrained.hub import save_pretrained
    from cme295lab.transformer.pretrained.load import Pretrained, load_pretrained, pretrained_or_course

_HOME = {
    "Pretrained": "load",
    "load_pretrained": "load",
    "pretrained_or_course": "load",
    "save_pretrained": "hub",
}
_MODULES = (
    "assemble", "cache", "checkpoint", "config_values", "download", "fetch", "gguf_file", "gguf_model", "hub",
    "hub_config", "hub_names", "load", "registry",
)  # fmt: skip

__all__ = ["Pretrained", "load_pretrained", "pretrained_or_course", "save_pretrained"]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
