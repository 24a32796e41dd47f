"""Four-bit tensors in the files that others read: bitsandbytes' layout of a state dict, both ways.

A quantised weight is a handful of tensors with a common prefix:

    weight                                   packed codes, uint8, (bytes, 1)
    weight.absmax                            scales in fp32, or their codes in uint8
    weight.quant_map                         the 16 levels
    weight.nested_absmax                     scales doubly quantised only: a constant per 256 of them
    weight.nested_quant_map                  and the 256 levels of their codes
    weight.quant_state.bitsandbytes__nf4     what is no tensor (type, block size, shape, dtype, offset): JSON, as bytes

The tables are in the file and yet no choice: every reader, bitsandbytes' kernels too, works with the tables of the
type. A file whose table is another one would be read wrongly by all of them, so it is refused here.

What a file says is not believed: sizes must fit each other, and each complaint names the tensor it is about.

Source: Hugging Face `transformers` and bitsandbytes write this layout; it has no document of its own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cme295lab.quantization.codebooks import QUANT_TYPES, dynamic_code
from cme295lab.quantization.double_quantization import DoubleQuantized
from cme295lab.quantization.four_bit import DTYPES, FourBitTensor

_STATE = "quant_state.bitsandbytes__"
_PLAIN_PARTS = ("absmax", "quant_map")
_NESTED_PARTS = ("nested_absmax", "nested_quant_map")
_FIELDS: dict[str, type | tuple[type, ...]] = {"quant_type": str, "blocksize": int, "dtype": str, "shape": list}
_NESTED_FIELDS: dict[str, type | tuple[type, ...]] = {
    "nested_blocksize": int,
    "nested_dtype": str,
    "nested_offset": (float, int),
}
_TABLE_TOLERANCE = 1e-6
"""Older writers computed the tables with other roundings."""


def to_state_dict(tensor: FourBitTensor, prefix: str = "weight") -> dict[str, Tensor]:
    """The parts of a tensor by the names that bitsandbytes gives them.

    Args:
        tensor: quantised.
        prefix: name of the weight, such as "layers.0.mlp.up.weight".

    Returns:
        Tensors that share memory with `tensor` where they can; tables are new.
    """
    about: dict[str, Any] = {
        "quant_type": tensor.quant_type,
        "blocksize": tensor.block_size,
        "dtype": _name(tensor.dtype),
        "shape": list(tensor.shape),
    }
    parts = {"quant_map": tensor.code}
    if isinstance(tensor.absmax, DoubleQuantized):
        parts["absmax"] = tensor.absmax.codes
        parts["nested_absmax"] = tensor.absmax.nested_absmax
        parts["nested_quant_map"] = tensor.absmax.code
        about["nested_blocksize"] = tensor.absmax.block_size
        about["nested_dtype"] = _name(torch.float32)
        about["nested_offset"] = float(tensor.absmax.offset)
    else:
        parts["absmax"] = tensor.absmax
    parts[_STATE + tensor.quant_type] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    return {prefix: tensor.packed, **{f"{prefix}.{name}": part for name, part in parts.items()}}


def from_state_dict(state_dict: Mapping[str, Tensor], prefix: str = "weight") -> FourBitTensor:
    """Put a tensor together from its parts; other names in the state dict are left alone.

    Args:
        state_dict: holds the parts.
        prefix: name of the weight.

    Raises:
        ValueError: if a part is missing, unknown, or does not fit the others; the message names it.
        TypeError: if a part has a dtype that it cannot have.
    """
    parts = {name[len(prefix) + 1 :]: part for name, part in state_dict.items() if name.startswith(f"{prefix}.")}
    if prefix not in state_dict:
        raise ValueError(f"there is no {prefix!r} among {_some(state_dict)}")
    quant_type, about = _read_state(parts, prefix)
    nested = any(name.startswith("nested_") for name in (*parts, *about))
    _check_names(parts, prefix, (*_PLAIN_PARTS, *(_NESTED_PARTS if nested else ()), _STATE + quant_type))
    _check_fields(about, prefix, _FIELDS | (_NESTED_FIELDS if nested else {}))
    if about["quant_type"] != quant_type:
        raise ValueError(f"{prefix}.{_STATE}{quant_type} says that its quant_type is {about['quant_type']!r}")
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in about["shape"]):
        raise ValueError(f"{prefix}.{_STATE}{quant_type} has the impossible shape {about['shape']}")
    packed = state_dict[prefix].contiguous().view(torch.uint8).view(-1, 1)  # some writers pack into wider numbers
    try:
        tensor = FourBitTensor(
            packed=packed,
            absmax=_nested(parts, about, prefix) if nested else parts["absmax"],
            shape=torch.Size(about["shape"]),
            dtype=_dtype(about["dtype"]),
            block_size=about["blocksize"],
            quant_type=quant_type,
        )
    except (ValueError, TypeError) as error:
        raise type(error)(f"{prefix} in the state dict does not hold together: {error}") from error
    _check_table(parts["quant_map"], tensor.code, f"{prefix}.quant_map", quant_type)
    return tensor


def four_bit_names(state_dict: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights in a state dict that are quantised to 4 bits."""
    return [name.split(f".{_STATE}")[0] for name in state_dict if f".{_STATE}" in name]


def save_four_bit(tensors: Mapping[str, FourBitTensor], path: Path | str) -> None:
    """Write tensors by name into a safetensors file that bitsandbytes reads.

    Raises:
        ValueError: if there are none.
    """
    from safetensors.torch import save_file

    if not tensors:
        raise ValueError("tensors is empty: there is nothing to save")
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts |= to_state_dict(tensor, name)
    save_file({name: part.contiguous() for name, part in parts.items()}, str(path), metadata={"format": "pt"})


def load_four_bit(path: Path | str) -> dict[str, FourBitTensor]:
    """Read all four-bit tensors of a safetensors file by name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds none, or one of them does not hold together.
    """
    from safetensors.torch import load_file

    state_dict = load_file(str(path))
    names = four_bit_names(state_dict)
    if not names:
        raise ValueError(f"{path} holds no four-bit weights, only {_some(state_dict)}")
    return {name: from_state_dict(state_dict, name) for name in names}


def _read_state(parts: Mapping[str, Tensor], prefix: str) -> tuple[Any, dict[str, Any]]:
    types = [name.removeprefix(_STATE) for name in parts if name.startswith(_STATE)]
    if len(types) != 1 or types[0] not in QUANT_TYPES:
        expected = " or ".join(f"{prefix}.{_STATE}{quant_type}" for quant_type in QUANT_TYPES)
        found = ", ".join(f"{prefix}.{_STATE}{quant_type}" for quant_type in types) or "neither"
        raise ValueError(f"there must be exactly one of {expected}, got {found}: is {prefix} quantised to 4 bits?")
    name = f"{prefix}.{_STATE}{types[0]}"
    packed = parts[_STATE + types[0]]
    if packed.dtype != torch.uint8:
        raise TypeError(f"{name} must be torch.uint8, the bytes of JSON, got {packed.dtype}")
    try:
        about = json.loads(bytes(packed.flatten().tolist()).decode())
    except ValueError as error:
        raise ValueError(f"{name} must be the bytes of JSON, and is not: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"{name} must be a JSON object, got {type(about).__name__}")
    return types[0], about


def _check_names(parts: Mapping[str, Tensor], prefix: str, expected: tuple[str, ...]) -> None:
    missing = [f"{prefix}.{name}" for name in expected if name not in parts]
    if missing:
        raise ValueError(f"{prefix} is incomplete: {', '.join(missing)} is missing; there are {_some(parts)}")
    unknown = [f"{prefix}.{name}" for name in parts if name not in expected]
    if unknown:
        raise ValueError(f"{prefix} has parts that four-bit weights do not have: {', '.join(unknown)}")


def _check_fields(about: Mapping[str, Any], prefix: str, fields: Mapping[str, type | tuple[type, ...]]) -> None:
    for name, kind in fields.items():
        if name not in about:
            raise ValueError(f"the quant_state of {prefix} says nothing about {name!r}; it has {', '.join(about)}")
        if isinstance(about[name], bool) or not isinstance(about[name], kind):
            raise ValueError(f"{name!r} in the quant_state of {prefix} must not be {about[name]!r}")
    unknown = [name for name in about if name not in fields]
    if unknown:
        raise ValueError(f"the quant_state of {prefix} has fields that it should not have: {', '.join(unknown)}")


def _nested(parts: Mapping[str, Tensor], about: Mapping[str, Any], prefix: str) -> DoubleQuantized:
    for name, dtype in (("absmax", torch.uint8), ("nested_absmax", torch.float32)):
        if parts[name].dtype != dtype:
            raise TypeError(f"{name} must be {dtype} where scales are doubly quantised, got {parts[name].dtype}")
    if about["nested_dtype"] != "float32":
        raise ValueError(f"nested_dtype must be 'float32', got {about['nested_dtype']!r}")
    _check_table(parts["nested_quant_map"], dynamic_code(), f"{prefix}.nested_quant_map", "scales in 8 bits")
    if not math.isfinite(about["nested_offset"]):
        raise ValueError(f"nested_offset must be finite, got {about['nested_offset']}")
    return DoubleQuantized(
        codes=parts["absmax"].flatten(),
        nested_absmax=parts["nested_absmax"].flatten(),
        offset=torch.tensor(float(about["nested_offset"]), dtype=torch.float32, device=parts["absmax"].device),
        block_size=about["nested_blocksize"],
    )


def _check_table(table: Tensor, expected: Tensor, name: str, what: str) -> None:
    if table.shape != expected.shape:
        raise ValueError(f"{name} must have {expected.numel()} levels, got shape {tuple(table.shape)}")
    difference = float((table.float().cpu() - expected.cpu()).abs().max())
    if not difference <= _TABLE_TOLERANCE:
        raise ValueError(f"{name} is not the table of {what}: a level differs by {difference:.3g}. Was it changed?")


def _dtype(name: str) -> torch.dtype:
    for dtype in DTYPES:
        if _name(dtype) == name:
            return dtype
    allowed = ", ".join(_name(dtype) for dtype in DTYPES)
    raise ValueError(f"dtype in the quant_state must be one of {allowed}, got {name!r}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(names: Mapping[str, Any]) -> str:
    shown = [repr(name) for name in list(names)[:8]]
    return ", ".join(shown) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if shown else "no names at all"
