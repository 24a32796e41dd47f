"""`adapter_config.json`, as PEFT writes and reads it, and what of it an adapter here can have.

A config is only read: the base that it names is not looked for, nothing is fetched. Fields that change what an adapter
computes and that are not covered here are refused by name, since leaving them out would give other outputs without a
word. Fields that are unknown and empty do nothing.

Source: the PEFT library, version 0.21 (`peft.LoraConfig`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cme295lab.finetuning.lora.options import LoraOptions
from cme295lab.finetuning.lora.targets import paths_named

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20

NOT_COVERED = (
    "alora_invocation_tokens",
    "arrow_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Fields that are refused unless they are empty."""
INITS_OF_B_ZERO = (True, False, "gaussian", "orthogonal", "eva")
"""Ways to start that leave the base's weights alone. Others (PiSSA, OLoRA, LoftQ, ...) change them."""


def config_of(options: LoraOptions, target_modules: list[str]) -> dict[str, Any]:
    """The fields of an adapter, those that `peft` needs and those in which it differs from the defaults."""
    return {
        "alpha_pattern": _longest_first(options.alpha_pattern),
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True if options.init == "kaiming" else options.init,
        "lora_alpha": options.alpha,
        "lora_dropout": options.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": options.rank,
        "rank_pattern": _longest_first(options.rank_pattern),
        "target_modules": target_modules,
        "task_type": None,
        "use_dora": options.dora,
        "use_rslora": options.rs_lora,
    }


def _longest_first(pattern: Mapping[str, Any]) -> dict[str, Any]:
    """In PEFT the first name that fits decides, here the longest."""
    return {name: pattern[name] for name in sorted(pattern, key=len, reverse=True)}


def read_config(path: Path) -> dict[str, Any]:
    """The fields of a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no JSON object, or larger than 1 MiB.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path.name} in {path.parent}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"{path} must be at most {MAX_CONFIG_BYTES} bytes, it has {path.stat().st_size}")
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of JSON, and of UTF-8
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"{path} must hold fields by name, it holds a {type(fields).__name__}")
    return fields


def options_of(fields: Mapping[str, Any], path: Path) -> LoraOptions:
    """What a config says of an adapter; `targets` is empty where the config says it by a pattern.

    Args:
        fields: of the config.
        path: for messages.

    Raises:
        ValueError: if it is no LoRA, has something that is not covered, or a field has no possible value.
    """
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type must be 'LORA', got {fields.get('peft_type')!r}")
    for name in NOT_COVERED:
        if fields.get(name):
            raise ValueError(f"{path}: {name}={fields[name]!r} is not covered, and the adapter needs it")
    if fields.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias must be 'none', got {fields['bias']!r}: biases of the base would be replaced")
    init = fields.get("init_lora_weights", True)
    if init not in INITS_OF_B_ZERO:
        raise ValueError(f"{path}: init_lora_weights={init!r} changes the base's weights, which are not in the file")
    try:
        return LoraOptions(
            rank=fields.get("r", 8),
            alpha=fields.get("lora_alpha", 8),
            targets=_targets(fields),
            dropout=fields.get("lora_dropout", 0.0),
            rs_lora=_flag(fields, "use_rslora"),
            dora=_flag(fields, "use_dora"),
            rank_pattern=_pattern(fields, "rank_pattern"),
            alpha_pattern=_pattern(fields, "alpha_pattern"),
            init="gaussian" if init == "gaussian" else "kaiming",
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def check_whole_names(fields: Mapping[str, Any], paths: Iterable[str], path: Path) -> None:
    """Refuse a pattern `^name` that is the last part of other names, too: PEFT means the whole name by it.

    Raises:
        ValueError: if there is one.
    """
    for pattern in ("rank_pattern", "alpha_pattern"):
        for key in fields.get(pattern) or {}:
            name = key.removeprefix("^").replace("\\.", ".")
            if key.startswith("^") and any(other != name for other in paths_named(paths, name)):
                raise ValueError(f"{path}: {pattern} has {key!r}, which means a whole name, and names end in it, too")


def _targets(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in target_modules, if they alone decide."""
    names = fields.get("target_modules")
    narrowed = any(fields.get(name) for name in ("exclude_modules", "layers_to_transform", "layers_pattern"))
    if not isinstance(names, list) or narrowed:
        return ()
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"target_modules must hold names, got {names!r}")
    return tuple(names)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name) or False
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")
    return value


def _pattern(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Name -> number. PEFT allows regular expressions here; `^` in front and `\\.` are as far as we follow."""
    pattern = fields.get(name) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{name} must be numbers by name, got {pattern!r}")
    plain: dict[str, Any] = {}
    for written, value in pattern.items():
        key = written.removeprefix("^").replace("\\.", ".")
        if not any(paths_named([key], earlier) for earlier in plain):  # else PEFT never comes to it
            plain[key] = value
        if not all(character.isalnum() or character in "._-" for character in key):
            raise ValueError(f"{name} has the regular expression {key!r}: names and last parts of names are covered")
    return plain
