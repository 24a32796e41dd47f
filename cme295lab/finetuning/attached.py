"""What prefixes, prompts and adapters have in common: a frozen base, and a small module attached to it.

The module hangs on the model under a name of its own, so `model.parameters()`, optimizers and state dicts find it. All
other parameters are frozen, and remember whether they were trainable: `detach` gives the base back as it was. A model
carries one of these methods at a time, because a second one would freeze the first.

Files are safetensors with the tensors of the module and, in the header, the method, its options and a fingerprint of
the base. A prefix that was trained for other weights says nothing here, so loading compares fingerprints first. Nothing
in a file is trusted: the shapes that its options ask for are compared before any memory is made.

The fingerprint is a SHA-256 of the names, dtypes, shapes and bytes of all tensors of the base, so rounding a base to
bf16 makes it another one. It reads the whole base once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.transformer.decoder import DecoderLM


class Attachment(nn.Module):
    """A module that hangs on a frozen model under `place`; subclasses say what it does."""

    place = ""

    def __init__(self) -> None:
        super().__init__()
        self.trainable_before: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainableParameters:
    """What of a model is trained; `print` shows it as a table.

    Args:
        rows: name and number of values of each trainable parameter.
        num_parameters: of the whole model, frozen ones among them; what is shared counts once.
    """

    rows: tuple[tuple[str, int], ...]
    num_parameters: int

    @property
    def num_trainable(self) -> int:
        """Values that an optimizer changes."""
        return sum(count for _, count in self.rows)

    def __str__(self) -> str:
        share = 100 * self.num_trainable / max(1, self.num_parameters)
        rows = [*self.rows, ("trainable", self.num_trainable), ("all", self.num_parameters)]
        width = max(len(name) for name, _ in rows)
        digits = max(len(f"{count:,}") for _, count in rows)
        lines = [f"{name:<{width}}  {count:>{digits},}" for name, count in rows]
        return "\n".join([*lines, f"{share:.3g} % of the parameters are trained"])


def trainable_parameters(model: nn.Module) -> TrainableParameters:
    """The trainable parameters of a model, in its order."""
    named = list(model.named_parameters())
    return TrainableParameters(
        rows=tuple((name, parameter.numel()) for name, parameter in named if parameter.requires_grad),
        num_parameters=sum(parameter.numel() for _, parameter in named),
    )


def attach(model: nn.Module, module: Attachment) -> None:
    """Hang a module on a model and freeze all else.

    Raises:
        ValueError: if something hangs there already.
    """
    check_unattached(model)
    module.trainable_before = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    model.requires_grad_(False)
    model.add_module(module.place, module)


def check_free(model: DecoderLM) -> None:
    """Refuse what is no model of the course, and a model with something attached.

    Raises:
        TypeError: if it is not a `DecoderLM`.
        ValueError: if something is attached.
    """
    if not isinstance(model, DecoderLM):
        raise TypeError(f"model must be a DecoderLM, got {type(model).__name__}")
    check_unattached(model)


def check_unattached(model: nn.Module) -> None:
    """Refuse a model with something attached.

    Raises:
        ValueError: if something is attached.
    """
    for module in model.children():
        if isinstance(module, Attachment):
            raise ValueError(f"the model already has {module.place}: remove it first, a model carries one method")


def detach(model: nn.Module, module: Attachment) -> None:
    """Take a module off again; parameters that were trainable before are trainable once more."""
    delattr(model, module.place)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in module.trainable_before)


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, dtypes, shapes and bytes of the base, whatever is attached to it."""
    attached = tuple(f"{name}." for name, module in model.named_children() if isinstance(module, Attachment))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.startswith(attached):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_int(name: str, value: object, low: int, high: int | None = None, why: str = "") -> None:
    """Refuse what is not a whole number in a range.

    Raises:
        ValueError: if it is not.
    """
    allowed = f"an int of at least {low}" if high is None else f"an int from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {allowed}{why}, got {value!r}")


def save_attached(
    path: Path | str, module: nn.Module, *, method: str, options: Mapping[str, Any], model: DecoderLM
) -> None:
    """Write a module, what it takes to make it again, and the fingerprint of its base.

    Args:
        path: of the file, `.safetensors`.
        module: its state dict is written.
        method: what it is.
        options: plain values that describe its shape.
        model: whose base it was trained for.
    """
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    facts = {"format": "pt", "method": method, "options": json.dumps(dict(options)), "base": base_fingerprint(model)}
    save_file(tensors, str(path), metadata=facts)


def read_attached(path: Path | str, *, method: str, model: DecoderLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The options and tensors of a file that was written for this base.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another method, or for another base.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            facts = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    if facts.get("method") != method:
        raise ValueError(f"{path} must hold a {method}, it says {facts.get('method')!r}")
    mine = base_fingerprint(model)
    if facts.get("base") != mine:
        raise ValueError(
            f"{path} was trained for another base: it names {str(facts.get('base'))[:12]}, this model is {mine[:12]}; "
            f"load the base, in the dtype, that it was saved with"
        )
    try:
        options = json.loads(facts.get("options", ""))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has options that cannot be read: {error}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must have options by name, got {options!r}")
    return options, tensors


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, path: Path | str, like: Tensor) -> None:
    """Give a module that was made on the meta device its values, in the dtype and on the device of `like`.

    Raises:
        ValueError: if names, shapes or values are not those of such a module.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        raise ValueError(f"{path} must hold {expected} by its options, it holds {found}")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name} must hold finite floating-point values")
    module.load_state_dict({name: tensor.to(like) for name, tensor in tensors.items()}, assign=True)
