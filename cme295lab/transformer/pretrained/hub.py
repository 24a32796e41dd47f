"""Models in the Hugging Face layout: read a folder, write one.

    config.json              the shape
    model.safetensors        the weights
    tokenizer.json           the vocabulary; tokenizer_config.json says which token ends a text

What `save_pretrained` writes, `transformers` loads (`AutoModelForCausalLM`, `AutoTokenizer`), with the same logits.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.pretrained.assemble import DTYPES, assemble
from cme295lab.transformer.pretrained.checkpoint import WEIGHTS, SafetensorsFolder, read_json
from cme295lab.transformer.pretrained.hub_config import GPT2, architecture_of, config_from_hub, config_to_hub
from cme295lab.transformer.pretrained.hub_names import parts_of
from cme295lab.transformer.text import TextTokenizer

CONFIG = "config.json"
_HEAD = "lm_head.weight"
_WRITTEN = ("*.safetensors", "*.safetensors.index.json", CONFIG, "tokenizer.json", "tokenizer_config.json")


def load_folder(
    folder: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> tuple[DecoderLM, TextTokenizer]:
    """Read a model and its tokenizer from a folder in the Hugging Face layout.

    Args:
        folder: with config.json, the weights (in one file or several) and tokenizer.json.
        dtype: of the parameters, whatever the file's is.
        device: where they go.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the model is not supported, a file is damaged, or they do not belong together.
    """
    file = folder / CONFIG
    values = read_json(file)
    config = config_from_hub(values, name=folder.resolve().name, where=str(file))
    tokenizer = _load_tokenizer(folder, values.get("eos_token_id"))
    check_vocabulary(tokenizer, config, str(folder))
    checkpoint = _WithPrefix(SafetensorsFolder(folder), architecture_of(values))
    parts = parts_of(config, architecture_of(values))
    return assemble(config, checkpoint, parts, tied_copy=_HEAD, dtype=dtype, device=device), tokenizer


class _WithPrefix:
    """A checkpoint as the causal model has it: that of a bare GPT-2 lacks "transformer." in its names."""

    def __init__(self, folder: SafetensorsFolder, architecture: str) -> None:
        bare = architecture == GPT2 and "wte.weight" in folder.shapes
        self._folder, self._prefix, self.where = folder, "transformer." if bare else "", folder.where
        self.shapes = {
            name if name == _HEAD else self._prefix + name: shape for name, shape in folder.shapes.items()
        }  # fmt: skip

    def read(self, name: str) -> torch.Tensor:
        return self._folder.read(name.removeprefix(self._prefix))


def _load_tokenizer(folder: Path, end: object) -> TextTokenizer:
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(
            f"there is no tokenizer.json in {folder}, and other kinds of vocabulary files are not read: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...) of `transformers` writes one"
        )
    tokenizer = TextTokenizer.load(folder)
    if tokenizer.end_token is None and isinstance(end, int) and not isinstance(end, bool):
        tokenizer = TextTokenizer(tokenizer.tokenizer, end_token=end)
    return tokenizer


def check_vocabulary(tokenizer: TextTokenizer, config: ModelConfig, where: str) -> None:
    """Raise a ValueError if the tokenizer makes tokens that the model does not know.

    The model may know more of them: embeddings are often padded to a round number.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{where}: the tokenizer has tokens up to {tokenizer.vocab_size - 1}, and the model knows those below "
            f"{config.vocab_size}: they do not belong together"
        )


def save_pretrained(
    folder: str | Path, model: DecoderLM, tokenizer: TextTokenizer, *, dtype: torch.dtype | None = None
) -> Path:
    """Write a model and its tokenizer in the Hugging Face layout.

    Everything is written into a new folder, which then takes the place of the old one in two renames: there is never a
    mixture of an old model and a new one. Files of other kinds in the old folder are kept.

    Args:
        folder: where to; made if it does not exist.
        model: Llama-like (rope, rmsnorm, swiglu, with or without experts) or GPT-2-like (learned, layernorm, gelu).
        tokenizer: it has no tokens that the model does not know.
        dtype: of the numbers in the file; None for the model's own.

    Returns:
        The folder.

    Raises:
        ValueError: if no published architecture has such layers, or the tokenizer does not belong to the model.
    """
    folder, dtype = Path(folder), dtype or model.embedding.weight.dtype
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
    values = config_to_hub(model.config)
    check_vocabulary(tokenizer, model.config, "save_pretrained")
    values |= {"torch_dtype": str(dtype).removeprefix("torch."), "bos_token_id": None}
    values |= {"eos_token_id": tokenizer.end_token}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh = Path(scratch) / folder.name
        fresh.mkdir()
        (fresh / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        tokenizer.save(fresh)
        save_file(_tensors(model, values["architectures"][0], dtype), fresh / WEIGHTS, metadata={"format": "pt"})
        _take_the_place_of(folder, fresh, Path(scratch) / "old")
    return folder


def _tensors(model: DecoderLM, architecture: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    state, tensors = model.state_dict(), {}
    for part in parts_of(model.config, architecture):
        ours = [state[name].detach().to("cpu", dtype) for name in part.ours]
        for name, tensor in zip(part.theirs, part.write(ours), strict=True):
            tensors[name] = tensor.contiguous()
    return tensors


def _take_the_place_of(folder: Path, fresh: Path, old: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    else:
        for entry in old.iterdir():
            if not any(entry.match(pattern) for pattern in _WRITTEN):
                shutil.move(entry, folder / entry.name)
