"""How to spend a budget, by every law; they disagree, and `compare_laws` shows by how much.

    law                    N* at 1e21 FLOP   tokens per parameter   from
    "kaplan"                        4.68 B                    7.6   power laws of 2020
    "chinchilla-1"                  2.86 B                   20.4   envelope of training curves
    "chinchilla-2"                  2.82 B                   21.0   parabolas at equal compute
    "chinchilla-3"                  2.22 B                   33.9   parametric fit, with all digits of its constants
    "chinchilla-3-table"            2.29 B                   31.8   what the paper tabulates for it
    "epoch"                         2.78 B                   21.6   the same runs, fitted again in 2024

At Gopher's budget of 5.76e23 they say 0.4 (Kaplan) to 59 (approach 3) tokens per parameter; all of them extrapolate.

A law answers beyond the runs behind it with an `ExtrapolationWarning`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Literal, Protocol, get_args, runtime_checkable

from cme295lab.scaling import kaplan
from cme295lab.scaling.parametric import CHINCHILLA, CHINCHILLA_FITTED_FLOPS, EPOCH, ParametricLaw
from cme295lab.scaling.published import table_frontier
from cme295lab.scaling.records import Allocation, ExtrapolationWarning, check_positive, warn_beyond

LawName = Literal["kaplan", "chinchilla-1", "chinchilla-2", "chinchilla-3", "chinchilla-3-table", "epoch"]
LAW_NAMES: tuple[LawName, ...] = get_args(LawName)

_ALLOCATE: Mapping[str, Callable[[float], Allocation]] = MappingProxyType(
    {
        "kaplan": kaplan.allocate,
        "chinchilla-1": lambda flops: table_frontier("chinchilla-1").allocate(flops),
        "chinchilla-2": lambda flops: table_frontier("chinchilla-2").allocate(flops),
        "chinchilla-3": CHINCHILLA.allocate,
        "chinchilla-3-table": lambda flops: table_frontier("chinchilla-3-table").allocate(flops),
        "epoch": EPOCH.allocate,
    }
)


@runtime_checkable
class HasLaw(Protocol):
    """A fit that has found a law, such as a `ParametricFit`."""

    @property
    def law(self) -> ParametricLaw:
        """What it has found."""
        ...


def optimal_allocation(flops: float, law: LawName | ParametricLaw | HasLaw = "chinchilla-3") -> Allocation:
    """The size of the model, and its tokens, on which a law would spend a budget.

    Args:
        flops: the budget, FLOP.
        law: one of `LAW_NAMES`, a `ParametricLaw`, or a fit that has one.

    Returns:
        Size, tokens and the loss that the law predicts; approaches 1 and 2 predict none.

    Raises:
        TypeError: if the budget is no number, or the law of a kind that is not known.
        ValueError: if the budget is not positive, or the name unknown.

    Warns:
        ExtrapolationWarning: if the budget lies beyond the runs that the law was fitted to.

        >>> round(optimal_allocation(1e21, "chinchilla-1").num_parameters / 1e9, 2)
        2.86
    """
    check_positive("flops", flops)
    if isinstance(law, str):
        if law not in _ALLOCATE:
            raise ValueError(f"law must be one of {', '.join(LAW_NAMES)}, a ParametricLaw or a fit; got {law!r}")
        fitted = kaplan.KAPLAN_FITTED_FLOPS if law == "kaplan" else CHINCHILLA_FITTED_FLOPS
        warn_beyond(flops, fitted, law)
        return _ALLOCATE[law](flops)
    found = law if isinstance(law, ParametricLaw) else getattr(law, "law", None)
    if not isinstance(found, ParametricLaw):
        raise TypeError(
            f"law must be a name ({', '.join(LAW_NAMES)}), a ParametricLaw or a fit with a .law; got {law!r}"
        )
    if found.fitted_flops is not None:
        warn_beyond(flops, found.fitted_flops, found.name)
    return found.allocate(flops)


def compare_laws(flops: float, laws: Iterable[LawName] = LAW_NAMES) -> dict[LawName, Allocation]:
    """What each law makes of one budget; one warning names all that extrapolate.

    Args:
        flops: the budget, FLOP.
        laws: which ones.

    Raises:
        TypeError, ValueError: as `optimal_allocation`.

    Warns:
        ExtrapolationWarning: once, if any of them is asked beyond its runs.
    """
    found: dict[LawName, Allocation] = {}
    beyond = []
    for law in laws:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ExtrapolationWarning)
            found[law] = optimal_allocation(flops, law)
        if caught:
            beyond.append(law)
    if beyond:
        warnings.warn(
            f"{flops:.3g} FLOP lies beyond the runs that these laws were fitted to: {', '.join(beyond)}",
            ExtrapolationWarning,
            stacklevel=2,
        )
    return found
