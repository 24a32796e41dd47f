"""Scaling laws: how large a model, and how much data, for a budget of compute.

Read in this order: ``records`` (a run, an allocation), ``parametric`` (L(N, D) as a formula, and its optimum),
``kaplan`` and ``published`` (what others found, as tables and formulas), ``allocation`` (all laws asked about one
budget), ``serving`` (when a model also has to answer, smaller is better), ``appendix`` (how Chinchilla counts
parameters and FLOPs), ``fitting`` (the three methods, to run on anybody's runs), ``sweep`` (the course's own runs on a
laptop).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.scaling.allocation import LAW_NAMES, compare_laws, optimal_allocation
    from cme295lab.scaling.fitting.envelope import EnvelopeFit, TrainingCurve, fit_envelope
    from cme295lab.scaling.fitting.isoflop import IsoFlopCurve, IsoFlopFit, fit_isoflop
    from cme295lab.scaling.fitting.parametric_fit import EARLY_STOPPING, FitOptions, ParametricFit, fit_parametric
    from cme295lab.scaling.fitting.power_law import FittedFrontier
    from cme295lab.scaling.parametric import CHINCHILLA, CHINCHILLA_ROUNDED, EPOCH, ParametricLaw
    from cme295lab.scaling.published import (
        FRONTIER_TABLES,
        GOPHER_FLOPS,
        PUBLISHED_EXPONENTS,
        PUBLISHED_MODELS,
        PublishedModel,
        published_model,
        table_frontier,
    )
    from cme295lab.scaling.records import PF_DAY_FLOPS, Allocation, ExtrapolationWarning, Run, columns, training_flops
    from cme295lab.scaling.serving import ServingPlan, cheapest_to_serve, lifetime_flops, worthwhile_served_tokens
    from cme295lab.scaling.sweep.results import Sweep, load_sweep

_HOME = {
    "Allocation": "records",
    "CHINCHILLA": "parametric",
    "CHINCHILLA_ROUNDED": "parametric",
    "EARLY_STOPPING": "fitting.parametric_fit",
    "EPOCH": "parametric",
    "EnvelopeFit": "fitting.envelope",
    "ExtrapolationWarning": "records",
    "FitOptions": "fitting.parametric_fit",
    "FittedFrontier": "fitting.power_law",
    "FRONTIER_TABLES": "published",
    "GOPHER_FLOPS": "published",
    "IsoFlopCurve": "fitting.isoflop",
    "IsoFlopFit": "fitting.isoflop",
    "LAW_NAMES": "allocation",
    "PF_DAY_FLOPS": "records",
    "PUBLISHED_EXPONENTS": "published",
    "PUBLISHED_MODELS": "published",
    "ParametricFit": "fitting.parametric_fit",
    "ParametricLaw": "parametric",
    "PublishedModel": "published",
    "Run": "records",
    "ServingPlan": "serving",
    "Sweep": "sweep.results",
    "TrainingCurve": "fitting.envelope",
    "cheapest_to_serve": "serving",
    "columns": "records",
    "compare_laws": "allocation",
    "fit_envelope": "fitting.envelope",
    "fit_isoflop": "fitting.isoflop",
    "fit_parametric": "fitting.parametric_fit",
    "lifetime_flops": "serving",
    "load_sweep": "sweep.results",
    "optimal_allocation": "allocation",
    "published_model": "published",
    "table_frontier": "published",
    "training_flops": "records",
    "worthwhile_served_tokens": "serving",
}
_MODULES = ("allocation", "appendix", "fitting", "kaplan", "parametric", "published", "records", "serving", "sweep")

__all__ = [
    "Run",
    "Allocation",
    "ExtrapolationWarning",
    "training_flops",
    "columns",
    "PF_DAY_FLOPS",
    "ParametricLaw",
    "CHINCHILLA",
    "CHINCHILLA_ROUNDED",
    "EPOCH",
    "PUBLISHED_MODELS",
    "PublishedModel",
    "published_model",
    "PUBLISHED_EXPONENTS",
    "FRONTIER_TABLES",
    "GOPHER_FLOPS",
    "table_frontier",
    "optimal_allocation",
    "compare_laws",
    "LAW_NAMES",
    "fit_parametric",
    "ParametricFit",
    "FitOptions",
    "EARLY_STOPPING",
    "fit_isoflop",
    "IsoFlopFit",
    "IsoFlopCurve",
    "fit_envelope",
    "EnvelopeFit",
    "TrainingCurve",
    "FittedFrontier",
    "cheapest_to_serve",
    "ServingPlan",
    "lifetime_flops",
    "worthwhile_served_tokens",
    "load_sweep",
    "Sweep",
]

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
