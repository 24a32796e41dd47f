"""LoRA on a model: adapters are added, named, switched, taken off.

One adapter at a time is active, or none; the active one is what is trained, unless it was loaded for use alone.
Everything else of the model is frozen, and remembers whether it was.

Source: Hu et al. 2022, "LoRA".
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cme295lab.finetuning.lora.layers import BaseLayer
from cme295lab.finetuning.lora.options import Init, LoraOptions
from cme295lab.finetuning.lora.state import (
    attach_lora,
    check_can_add,
    check_no_rows,
    check_not_merged,
    chosen_adapter,
    get_lora,
    matrix_for,
    take_off,
    unhook,
)
from cme295lab.finetuning.lora.summary import LoraSummary, summarize
from cme295lab.finetuning.lora.targets import (
    Target,
    Targets,
    check_rank,
    choose_targets,
    key_of,
    paths_named,
    targets_of_model,
)

DEFAULT_ADAPTER = "default"


def add_lora(
    model: nn.Module,
    *,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Targets = ("query", "value"),
    dropout: float = 0.0,
    rs_lora: bool = False,
    dora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    init: Init = "kaiming",
    dtype: str | None = None,
    adapter: str = DEFAULT_ADAPTER,
) -> LoraSummary:
    """Add an adapter to a model in place, make it the active one, and freeze all else.

    Args:
        model: any module with linear layers, `Linear4bit` among them, or embeddings.
        rank, alpha, targets, dropout, rs_lora, dora, rank_pattern, alpha_pattern, init, dtype: see `LoraOptions`.
        adapter: its name, without dots or slashes; a second call with another name adds a second adapter.

    Returns:
        What was added.

    Raises:
        TypeError: if `targets` is another text than "all-linear".
        ValueError: if an option is not one of those allowed, a target or pattern names no layer (names are suggested),
            a rank is larger than a side of its matrix, DoRA is asked for of an embedding, the name is taken, the model
            carries another method, or an adapter is merged. The model is then as it was.
    """
    options = LoraOptions(
        rank=rank, alpha=alpha, targets=targets, dropout=dropout, rs_lora=rs_lora, dora=dora, init=init, dtype=dtype,
        rank_pattern=dict(rank_pattern or {}), alpha_pattern=dict(alpha_pattern or {}),
    )  # fmt: skip
    chosen = check_new_adapter(model, adapter, options)
    layers = {target.path: model.get_submodule(target.path) for target in chosen}
    lora = attach_lora(model)
    for target in chosen:
        matrix_for(model, lora, target).add(adapter, _base(layers[target.path]), options)
    lora.options[adapter] = options
    set_adapter(model, adapter)
    return summarize(model, adapter)


def check_new_adapter(model: nn.Module, adapter: str, options: LoraOptions) -> list[Target]:
    """The matrices that an adapter would get, if it can be added.

    Raises:
        TypeError, ValueError: as `add_lora`.
    """
    check_can_add(model, adapter)
    known = targets_of_model(model)
    chosen = choose_targets(known, options.targets)
    for name in (*options.rank_pattern, *options.alpha_pattern):
        if not paths_named([target.path for target in chosen], name):
            raise ValueError(f"rank_pattern or alpha_pattern names {name!r}, and none of the targets has that name")
    for target in chosen:
        check_rank(target, options.rank_of(target.path))
        if options.dora and target.kind == "embedding":
            raise ValueError(f"dora is for linear layers, {target.path} is an embedding: leave it out of the targets")
    return chosen


def set_adapter(model: nn.Module, adapter: str | None) -> None:
    """Let one adapter act, and learn, or none: the model is its base then, bit for bit.

    Raises:
        ValueError: if there is no such adapter, or one is merged.
    """
    lora = get_lora(model)
    check_not_merged(lora, "switch")
    if adapter is not None:
        lora.check(adapter)
    lora.active = adapter
    lora.requires_grad_(False)
    if adapter is not None and adapter not in lora.usable_only:
        for parameter in lora.parameters_of(adapter).values():
            parameter.requires_grad_(True)


def active_adapter(model: nn.Module) -> str | None:
    """The adapter that acts, or None."""
    return get_lora(model).active


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """All adapters, in the order in which they came."""
    return tuple(get_lora(model).options)


def delete_adapter(model: nn.Module, adapter: str) -> None:
    """Forget an adapter; if it was active, none is afterwards.

    Raises:
        ValueError: if there is no such adapter, or one is merged.
    """
    lora = get_lora(model)
    check_not_merged(lora, "delete an adapter")
    check_no_rows(lora, "delete an adapter")
    lora.check(adapter)
    if lora.active == adapter:
        set_adapter(model, None)
    for path, matrix in lora.of(adapter).items():
        matrix.delete(adapter)
        if not matrix.scales:
            unhook(model.get_submodule(path), matrix)
            del lora.matrices[key_of(path)]
    del lora.options[adapter]
    lora.usable_only.discard(adapter)


def remove_lora(model: nn.Module) -> None:
    """Take all adapters off: the base is as it was, bit for bit, and trainable where it was.

    Raises:
        ValueError: if it has none, or one is merged.
    """
    lora = get_lora(model)
    check_not_merged(lora, "remove them, or merge_and_remove to keep what they learned")
    check_no_rows(lora, "remove adapters")
    take_off(model, lora)


def lora_parameters(model: nn.Module, adapter: str | None = None) -> dict[str, nn.Parameter]:
    """Name -> parameter of one adapter; None means the active one.

    Raises:
        ValueError: if there is no such adapter, or none is active.
    """
    return get_lora(model).parameters_of(chosen_adapter(model, adapter))


def delta_weights(model: nn.Module, adapter: str | None = None) -> dict[str, Tensor]:
    """Path -> what an adapter adds to that weight, s · B A, in fp32 and in the weight's shape.

    Raises:
        ValueError: if there is no such adapter, or none is active.
    """
    name = chosen_adapter(model, adapter)
    return {path: matrix.delta_weight(name).detach() for path, matrix in get_lora(model).of(name).items()}


def _base(module: nn.Module) -> BaseLayer:
    assert isinstance(module, BaseLayer)
    return module
