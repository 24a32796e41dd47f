"""How a model is divided into units: what is gathered together, computed with, and freed together.

A unit is a module, usually one layer of a ``ModuleList``. What lies in no unit (embedding, last norm, head) is the root
unit, which belongs to the model itself. A parameter that several units share goes to the root, too, once; so does one
under several names, such as a tied head, and its gradient is summed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.parallel.sharding.sharded_parameters import ShardedParameters

ROOT = "the root unit"


class ShardedUnit:
    """The parameters that belong to one module, sharded: those that are trained, and those that are frozen.

    Args:
        name: the module's name in the model, or `ROOT`.
        module: whose forward needs them.
        parameters: name in the model -> parameter.
        compute_dtype, reduce_dtype, group, absent: see `ShardedParameters`.

    Attributes:
        trained: those that get gradients, or None.
        parts: `trained` and the frozen ones, as far as there are any.
        last_call: number of its last forward.
        called_after: the unit whose forward came before that.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        parameters: dict[str, nn.Parameter],
        *,
        compute_dtype: torch.dtype | None,
        reduce_dtype: torch.dtype | None,
        group: dist.ProcessGroup,
        absent: Float[Tensor, ""],
    ) -> None:
        self.name = name
        self.module = module
        self.last_call = 0
        self.called_after: ShardedUnit | None = None
        self.trained: ShardedParameters | None = None
        self.parts: list[ShardedParameters] = []
        for is_trained in (True, False):
            chosen = {key: each for key, each in parameters.items() if each.requires_grad is is_trained}
            if not chosen:
                continue
            part = ShardedParameters(
                name, chosen, compute_dtype=compute_dtype, reduce_dtype=reduce_dtype, group=group, absent=absent
            )  # fmt: skip
            self.parts.append(part)
            if is_trained:
                self.trained = part

    @property
    def is_root(self) -> bool:
        return self.name == ROOT

    @property
    def is_gathered(self) -> bool:
        return all(part.is_gathered for part in self.parts)

    def start_gather(self) -> None:
        for part in self.parts:
            part.start_gather()

    def gather(self) -> None:
        self.start_gather()
        for part in self.parts:
            part.gather()

    def free(self) -> None:
        for part in self.parts:
            part.free()

    def keep_changes(self) -> None:
        for part in self.parts:
            part.keep_changes()

    def restore(self) -> None:
        for part in self.parts:
            part.restore()


def find_units(model: nn.Module, units: Sequence[nn.Module | type[nn.Module]] | None) -> dict[str, nn.Module]:
    """The modules of a model that become units, by name, in the order of the model.

    Args:
        model: the whole.
        units: modules of it, or classes of modules; None: the children of every outermost `ModuleList`.

    Raises:
        TypeError: an entry is neither a module nor a class of modules.
        ValueError: a module is not in the model, a class has no instance there, a unit lies within another, or there is
            a unit whose forward is never called (a `ModuleList`).
    """
    named = {name: module for name, module in model.named_modules() if name}
    if units is None:
        return dict(_children_of_lists(model, ""))
    wanted: set[int] = set()
    for entry in units:
        if isinstance(entry, nn.Module):
            found = [module for module in named.values() if module is entry]
        elif isinstance(entry, type) and issubclass(entry, nn.Module):
            found = [module for module in named.values() if isinstance(module, entry)]
        else:
            raise TypeError(f"units must be modules or classes of modules, got {entry!r}")
        if not found:
            what = entry.__name__ if isinstance(entry, type) else type(entry).__name__
            raise ValueError(f"units: there is no such {what} within the model; pass modules of this very model")
        wanted |= {id(module) for module in found}
    chosen = {name: module for name, module in named.items() if id(module) in wanted}
    for name, module in chosen.items():
        outer = next((other for other in chosen if name.startswith(other + ".")), None)
        if outer:
            raise ValueError(f"units: {name} lies within {outer}, which is a unit as well; choose one of the two")
        if isinstance(module, nn.ModuleList | nn.ModuleDict):
            raise ValueError(f"units: {name} is a {type(module).__name__}, which has no forward; pass its children")
    return chosen


def assign_parameters(model: nn.Module, units: dict[str, nn.Module]) -> dict[str, dict[str, nn.Parameter]]:
    """Give each parameter to one unit.

    Args:
        model: the whole.
        units: from `find_units`.

    Returns:
        Unit's name -> name in the model -> parameter; `ROOT` last; each parameter once, under its first name.
    """
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = next((unit for unit in units if name.startswith(unit + ".")), ROOT)
        owners.setdefault(id(parameter), set()).add(owner)
    assigned: dict[str, dict[str, nn.Parameter]] = {unit: {} for unit in [*units, ROOT]}
    for name, parameter in model.named_parameters():
        of_it = owners[id(parameter)]
        assigned[of_it.pop() if len(of_it) == 1 else ROOT][name] = parameter
    return {unit: parameters for unit, parameters in assigned.items() if parameters or unit == ROOT}


def _children_of_lists(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{prefix}{name}.{key}", layer) for key, layer in child.named_children())
        else:
            yield from _children_of_lists(child, f"{prefix}{name}.")
