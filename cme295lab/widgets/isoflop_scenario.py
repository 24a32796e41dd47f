"""Own training runs at equal compute: parabolas through some of the budgets, asked about a larger one.

One pure function, `isoflop_scenario`, and the record it returns. Parabolas and power law are those of
`cme295lab.scaling`; here the larger budgets are held back, to see how far the smaller ones reach.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from cme295lab.scaling import Allocation, ExtrapolationWarning, Run
from cme295lab.scaling.fitting.isoflop import IsoFlopCurve, IsoFlopFit, fit_isoflop, fit_parabola, group_by_budget

MIN_BUDGETS = 2  # through one point there is no line
MIN_RUNS = 3  # nor a parabola through two


@dataclass(frozen=True, kw_only=True)
class IsoFlopScenario:
    """A fit to the smaller budgets, and what it says of another.

    Attributes:
        fit: to the budgets that were used.
        held_back: curves of the larger budgets, which the fit has not seen.
        prediction: the best size for the budget asked about.
    """

    fit: IsoFlopFit
    held_back: tuple[IsoFlopCurve, ...]
    prediction: Allocation

    @property
    def reach(self) -> float:
        """The budget asked about, in multiples of the largest that was used."""
        return self.prediction.flops / self.fit.curves[-1].flops


def budgets_of(runs: Sequence[Run]) -> list[tuple[Run, ...]]:
    """The runs by budget, those budgets left out that have too few runs for a parabola."""
    return [group for group in group_by_budget(runs) if len(group) >= MIN_RUNS]


def isoflop_scenario(*, runs: Sequence[Run], num_budgets: int, flops: float) -> IsoFlopScenario:
    """Fit the smaller budgets, and ask about one.

    Args:
        runs: of several sizes at each of several budgets.
        num_budgets: how many are used, the smallest first; at least 2.
        flops: the budget asked about, FLOP.

    Raises:
        ValueError: if there are not so many budgets, or the budget is not positive.
    """
    groups = budgets_of(runs)
    if not MIN_BUDGETS <= num_budgets <= len(groups):
        raise ValueError(f"num_budgets must be {MIN_BUDGETS} to {len(groups)}, got {num_budgets}")
    fit = fit_isoflop([run for group in groups[:num_budgets] for run in group])
    with warnings.catch_warnings():  # the view says how far it reaches
        warnings.simplefilter("ignore", ExtrapolationWarning)
        prediction = fit.optimal(flops)
    held_back = tuple(fit_parabola(group) for group in groups[num_budgets:])
    return IsoFlopScenario(fit=fit, held_back=held_back, prediction=prediction)
