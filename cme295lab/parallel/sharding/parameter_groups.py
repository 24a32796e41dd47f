"""Which parameter group of an optimizer each parameter of a model is in, checked before anything is cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn


def number_groups(
    parameters: Mapping[str, nn.Parameter], param_groups: Iterable[Mapping[str, Any]] | None
) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """Each group's parameters by name, and each group's own options.

    Args:
        parameters: name in the model -> parameter; those that are not trained may be in no group.
        param_groups: as for torch's optimizers: dictionaries with "params" and options; None: one group of all.

    Returns:
        For each group the names in it, and its options.

    Raises:
        TypeError: if a group is no dictionary with "params".
        ValueError: if a parameter is in no group or in two, or a group holds a tensor that this model does not train.
    """
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    if not trained:
        raise ValueError("the model has no parameter with requires_grad=True: there is nothing to train")
    if param_groups is None:
        return [list(trained)], [{}]
    names = {id(parameter): name for name, parameter in trained.items()}
    frozen = {id(parameter): name for name, parameter in parameters.items() if not parameter.requires_grad}
    owner: dict[str, int] = {}
    members: list[list[str]] = []
    options: list[dict[str, Any]] = []
    for number, given in enumerate(listed_groups(param_groups)):
        members.append([])
        for member in given["params"]:
            if id(member) in frozen:
                continue  # torch's optimizers pass over it, too: it never has a gradient
            if id(member) not in names:
                raise ValueError(f"param_groups[{number}] holds a tensor that is no parameter of this model")
            name = names[id(member)]
            if name in owner:
                raise ValueError(f"param_groups: {name} is in groups {owner[name]} and {number}; leave it in one")
            owner[name] = number
            members[-1].append(name)
        options.append({key: value for key, value in given.items() if key != "params"})
    missing = trained.keys() - owner.keys()
    if missing:
        raise ValueError(
            f"param_groups: {', '.join(sorted(missing)[:5])} in no group; add a group for it, or freeze what is not "
            "trained with requires_grad_(False)"
        )
    return members, options


def listed_groups(param_groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups that can be read more than once: generators become lists.

    Raises:
        TypeError: if a group is no dictionary with "params".
    """
    listed = []
    for number, given in enumerate(param_groups):
        if not isinstance(given, Mapping) or "params" not in given:
            raise TypeError(f'param_groups[{number}] must be a dictionary with "params", got {type(given).__name__}')
        members = given["params"]
        listed.append({**given, "params": [members] if isinstance(members, Tensor) else list(members)})
    return listed
