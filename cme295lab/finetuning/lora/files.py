"""Adapters on disk, in the format of the PEFT library: files go both ways.

    adapter_config.json            rank, α, targets, ...
    adapter_model.safetensors      base_model.model.<path>.lora_A.weight           (r, in)
                                   base_model.model.<path>.lora_B.weight           (out, r)
                                   base_model.model.<path>.lora_magnitude_vector   (out,), of DoRA
                                   base_model.model.<path>.lora_embedding_A        (r, tokens), and _B (dim, r)

The adapter "default" is written into the folder itself, others into subfolders of their names. Files written here hold
a fingerprint of the base in the header of their tensors, which PEFT passes over: an adapter that was trained beside
other weights is refused, if it says so.

Nothing in a folder is trusted. Names of tensors are looked up among the model's own matrices, shapes are compared
with those that config and model ask for before a value is read, and nothing is unpickled. PEFT only warns about names
that fit nothing, and then gives the base's outputs; here that is an error.

Source: the PEFT library, version 0.21.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cme295lab.finetuning.attached import base_fingerprint
from cme295lab.finetuning.lora.adapting import DEFAULT_ADAPTER, set_adapter
from cme295lab.finetuning.lora.layers import LoraMatrix, device_of
from cme295lab.finetuning.lora.options import DTYPES, LoraOptions
from cme295lab.finetuning.lora.peft_config import CONFIG_NAME, check_whole_names, config_of, options_of, read_config
from cme295lab.finetuning.lora.state import (
    attach_lora,
    check_can_add,
    check_not_merged,
    chosen_adapter,
    get_lora,
    matrix_for,
)
from cme295lab.finetuning.lora.summary import LoraSummary, summarize
from cme295lab.finetuning.lora.targets import Target, paths_named, targets_of_model
from cme295lab.pretraining.trainer.checkpoint import write_atomically

WEIGHTS_NAME = "adapter_model.safetensors"
_FINGERPRINT = "base_sha256"
_PREFIX = "base_model.model."
_PARTS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
}
_KEY = re.compile(rf"{re.escape(_PREFIX)}(?P<path>.+?)\.(?P<part>{'|'.join(map(re.escape, _PARTS))})")


def save_adapter(
    folder: Path | str, model: nn.Module, adapter: str | None = None, *, overwrite: bool = False
) -> Path:
    """Write an adapter as PEFT does.

    Args:
        folder: made if it does not exist.
        model: has the adapter.
        adapter: None means the active one; one that is not called "default" goes into a subfolder of its name.
        overwrite: whether files that are there may be replaced.

    Returns:
        The folder that holds the two files.

    Raises:
        FileExistsError: if there is an adapter already.
        ValueError: if there is no such adapter, or one is merged.
    """
    lora, name = get_lora(model), chosen_adapter(model, adapter)
    check_not_merged(lora, "save")
    place = Path(folder) if name == DEFAULT_ADAPTER else Path(folder) / name
    if not overwrite and any((place / file).exists() for file in (CONFIG_NAME, WEIGHTS_NAME)):
        raise FileExistsError(f"{place} holds an adapter already: take another folder, or overwrite=True")
    tensors: dict[str, Tensor] = {}
    for path, matrix in lora.of(name).items():
        a, b = ("lora_embedding_A", "lora_embedding_B") if matrix.is_embedding else ("lora_A.weight", "lora_B.weight")
        parts = {a: matrix.lora_A[name], b: matrix.lora_B[name]}
        if name in matrix.lora_magnitude:
            parts["lora_magnitude_vector"] = matrix.lora_magnitude[name]
        tensors |= {f"{_PREFIX}{path}.{part}": value.detach().cpu().contiguous() for part, value in parts.items()}
    facts = {"format": "pt", _FINGERPRINT: base_fingerprint(model)}
    config = config_of(lora.options[name], _target_modules(model, list(lora.of(name))))
    place.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config, indent=2) + "\n"
    _write_together(place, {WEIGHTS_NAME: save(tensors, metadata=facts), CONFIG_NAME: text.encode()})
    return place


def _write_together(place: Path, contents: Mapping[str, bytes]) -> None:
    """Write all files, or leave those that were there: they get their names when the last one is written."""
    new = {name: place / f".{name}.new" for name in contents}
    try:
        for name, content in contents.items():
            write_atomically(new[name], content)
        for name, path in new.items():
            path.replace(place / name)
    finally:
        for path in new.values():
            path.unlink(missing_ok=True)
            path.with_name(f".{path.name}.partial").unlink(missing_ok=True)


def load_adapter(
    folder: Path | str,
    model: nn.Module,
    adapter: str = DEFAULT_ADAPTER,
    *,
    trainable: bool = False,
    any_base: bool = False,
) -> LoraSummary:
    """Put an adapter from PEFT's files beside a model, in place, and make it the active one.

    Args:
        folder: holds the two files, or a subfolder called as the adapter does.
        model: the base, with adapters or without.
        adapter: what it shall be called here.
        trainable: whether it goes on learning.
        any_base: whether an adapter that names another base is taken all the same, such as one that was trained beside
            4 bits and is used beside 16.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged or names another base, a tensor fits no matrix of the model or has another
            shape than the config asks for, something is missing, a value is not finite, or the adapter has something
            that is not covered; or as `add_lora`. The model is then as it was.
    """
    check_can_add(model, adapter)
    place = Path(folder)
    if adapter != DEFAULT_ADAPTER and (place / adapter / CONFIG_NAME).is_file():
        place = place / adapter
    fields = read_config(place / CONFIG_NAME)
    options = options_of(fields, place / CONFIG_NAME)
    parts = _read_parts(place / WEIGHTS_NAME, model, options, any_base=any_base)
    check_whole_names(fields, parts, place / CONFIG_NAME)
    layers = {path: model.get_submodule(path) for path in parts}
    lora = attach_lora(model)
    for path, (target, values) in parts.items():
        device = device_of(layers[path])
        moved = {part: value.to(device) for part, value in values.items()}
        matrix_for(model, lora, target).put(
            adapter, moved["A"], moved["B"], scale=options.scale_of(path), dropout=options.dropout,
            magnitude=moved.get("magnitude"),
        )  # fmt: skip
    lora.options[adapter] = replace(options, targets=tuple(parts))
    if not trainable:
        lora.usable_only.add(adapter)
    set_adapter(model, adapter)
    return summarize(model, adapter)


def _read_parts(
    path: Path, model: nn.Module, options: LoraOptions, *, any_base: bool
) -> dict[str, tuple[Target, dict[str, Tensor]]]:
    """Path -> its matrix and the values of A, B and the magnitude, all checked."""
    if not path.is_file():
        why = "; a .bin is a pickle, which may run code when it is read: save it as safetensors first"
        raise FileNotFoundError(
            f"there is no {path.name} in {path.parent}{why if path.with_suffix('.bin').is_file() else ''}"
        )
    try:
        with safe_open(str(path), framework="pt") as file:
            if not any_base:
                _check_base((file.metadata() or {}).get(_FINGERPRINT), path, model)
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
            keys = _sort_keys(shapes, path, model, options, file.get_tensor)
            return {
                name: (target, {part: _finite(file.get_tensor(key), key, path) for part, key in mine.items()})
                for name, (target, mine) in keys.items()
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _sort_keys(
    shapes: Mapping[str, tuple[int, ...]],
    path: Path,
    model: nn.Module,
    options: LoraOptions,
    read: Callable[[str], Tensor],
) -> dict[str, tuple[Target, dict[str, str]]]:
    """Module path -> its matrix, and part -> key; every key has its place and the shape that it must have."""
    known = targets_of_model(model)
    found: dict[str, tuple[Target, dict[str, str]]] = {}
    for key, shape in shapes.items():
        match = _KEY.fullmatch(key)
        if match is None:
            _check_copy_of_base(key, path, model, known, read)
            continue
        target = known.get(match["path"])
        if target is None:
            raise ValueError(f"{path} holds {key}, and the model has no linear layer or embedding {match['path']!r}")
        part = _PARTS[match["part"]]
        if (target.kind == "embedding") != ("embedding" in match["part"]):
            raise ValueError(f"{path} holds {key}, and {target.path} is of kind {target.kind!r}")
        expected = _shapes(target, options)[part]
        if shape != expected:
            raise ValueError(f"{path}: {key} must have shape {expected} by its config and this model, it has {shape}")
        found.setdefault(target.path, (target, {}))[1][part] = key
    _check_complete(found, path, known, options)
    return found


def _check_complete(
    found: Mapping[str, tuple[Target, Mapping[str, str]]],
    path: Path,
    known: Mapping[str, Target],
    options: LoraOptions,
) -> None:
    """Refuse files with missing tensors: of a matrix, or of a target that the config names."""
    if not found:
        raise ValueError(f"{path} holds no tensor of an adapter")
    needed = {"A", "B"} | ({"magnitude"} if options.dora else set())
    for name, (_, parts) in found.items():
        if set(parts) != needed:
            raise ValueError(f"{path} must hold {', '.join(sorted(needed))} of {name}, it holds {', '.join(parts)}")
    named = {match for name in options.targets for match in paths_named(known, name)}
    if missing := named - set(found):
        raise ValueError(f"{path} lacks tensors of {', '.join(sorted(missing))}, which its config names")


def _check_copy_of_base(
    key: str, path: Path, model: nn.Module, known: Mapping[str, Target], read: Callable[[str], Tensor]
) -> None:
    """PEFT adds the weights of embeddings to files of adapters that touch them; they must be those of the base."""
    name = key.removeprefix(_PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    is_weight = key.startswith(_PREFIX) and key.endswith(".weight")
    if is_weight and name in known and known[name].kind in ("embedding", "head"):
        weight = model.get_submodule(name).weight
        if isinstance(weight, Tensor) and torch.equal(read(key).to(weight), weight.detach()):
            return
        raise ValueError(f"{path} holds other weights for {name} than this model has: it was trained for another base")
    raise ValueError(f"{path} holds {key!r}, which is no tensor of a LoRA adapter in PEFT's format")


def _check_base(stored: str | None, path: Path, model: nn.Module) -> None:
    """Refuse an adapter that says that it was trained beside other weights."""
    if stored is None:  # of PEFT itself: it says nothing
        return
    mine = base_fingerprint(model)
    if stored != mine:
        raise ValueError(
            f"{path} was trained for another base: it names {stored[:12]}, this model is {mine[:12]}; load the base "
            f"that it was saved with, in that dtype, or set any_base=True if you know better"
        )


def _shapes(target: Target, options: LoraOptions) -> dict[str, tuple[int, ...]]:
    """Part -> the shape that it must have."""
    a, b = LoraMatrix(target).shapes(options.rank_of(target.path))
    return {"A": a, "B": b, "magnitude": (target.shape[0],)}


def _finite(tensor: Tensor, key: str, path: Path) -> Tensor:
    if tensor.dtype not in (*DTYPES.values(), torch.float64) or not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{path}: {key} must hold finite floating-point values")
    return tensor


def _target_modules(model: nn.Module, paths: list[str]) -> list[str]:
    """The shortest names that mean these paths and no other module."""
    everything = [name for name, _ in model.named_modules()]
    last = sorted({path.rpartition(".")[2] for path in paths})
    meant = {path for name in last for path in paths_named(everything, name)}
    return last if meant == set(paths) else paths
