"""The front door: a name, a folder or a file becomes a model and its tokenizer.

    load_pretrained("course-4m")                  the course's own model, part of the package
    load_pretrained("smollm2-135m-instruct")      SmolLM2, once `cme295lab fetch smollm2` has fetched it
    load_pretrained("path/to/folder")             Hugging Face layout: Llama, Mistral, Mixtral, GPT-2
    load_pretrained("path/to/model.gguf")         llama.cpp layout: Llama, in Q4_1, Q8_0, F16, BF16 or F32

Nothing here downloads anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.pretrained.cache import cached_file, is_fetched
from cme295lab.transformer.pretrained.hub import load_folder
from cme295lab.transformer.pretrained.registry import COURSE, PUBLISHED, SMOLLM2, unknown_name
from cme295lab.transformer.text import TextTokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A model with trained weights, and what belongs to it.

    Attributes:
        name: what it is called.
        model: in evaluation mode.
        tokenizer: its vocabulary.
        source: where it came from, in words for people.
    """

    name: str
    model: DecoderLM
    tokenizer: TextTokenizer
    source: str


class NotFetchedError(FileNotFoundError):
    """A published model is not on this machine."""


def load_pretrained(
    name_or_path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Pretrained:
    """Load a model with trained weights.

    Args:
        name_or_path: "course-4m", "course-draft", "smollm2-135m-instruct", a folder or a .gguf file.
        dtype: of the parameters; quantised ones are turned into it.
        device: where they go.

    Raises:
        NotFetchedError: if a published model is not on this machine; the message says which command fetches it.
        FileNotFoundError: if there is no such path, or a file of the model is missing.
        ValueError: if there is no such name, the model is not supported, or a file is damaged.
    """
    if not isinstance(name_or_path, str | Path):
        raise TypeError(f"name_or_path must be a name or a path, got {type(name_or_path).__name__}")
    if name_or_path in COURSE:
        own = COURSE[str(name_or_path)]
        return _load(own.folder, own.name, f"the course's own {own.name}: {own.about}", dtype, device)
    if name_or_path in PUBLISHED or name_or_path == SMOLLM2.short:
        published = PUBLISHED.get(str(name_or_path), SMOLLM2)
        if not is_fetched(published):
            raise NotFetchedError(
                f"{published.name} is not on this machine ({cached_file(published)} is not there, or not complete). "
                f"Run: cme295lab fetch {published.short}   ({published.size_bytes / 1e6:.0f} MB, {published.licence})"
            )
        return _load(cached_file(published), published.name, published.about, dtype, device)
    path = Path(name_or_path).expanduser()
    if not path.exists():
        if isinstance(name_or_path, Path) or len(path.parts) > 1 or path.suffix:
            raise FileNotFoundError(f"there is no folder and no file {name_or_path}")
        raise ValueError(
            f"{unknown_name(str(name_or_path), [*COURSE, *PUBLISHED])}; or give the path of a folder or a GGUF file"
        )
    return _load(path, path.stem if path.is_file() else path.resolve().name, str(path), dtype, device)


def _load(path: Path, name: str, source: str, dtype: torch.dtype, device: torch.device | str) -> Pretrained:
    if path.is_dir() or not path.exists():
        model, tokenizer = load_folder(path, dtype=dtype, device=device)
    elif path.suffix == ".gguf":
        from cme295lab.transformer.pretrained.gguf_model import load_gguf

        model, tokenizer = load_gguf(path, dtype=dtype, device=device)
    else:
        raise ValueError(f"{path} is neither a folder nor a .gguf file: give the folder that holds config.json")
    return Pretrained(name=name, model=model, tokenizer=tokenizer, source=source)


def pretrained_or_course(*, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Pretrained:
    """SmolLM2 if it was fetched, else the course's own small model; `source` says which, and why.

    Nothing is downloaded. Show `source` to whoever reads the numbers: the two models are not alike.
    """
    if is_fetched(SMOLLM2):
        return load_pretrained(SMOLLM2.name, dtype=dtype, device=device)
    own = load_pretrained("course-4m", dtype=dtype, device=device)
    hint = f"{SMOLLM2.name} is not on this machine; `cme295lab fetch {SMOLLM2.short}` fetches it"
    return Pretrained(name=own.name, model=own.model, tokenizer=own.tokenizer, source=f"{own.source} ({hint})")
