"""Views that react, and the static pictures that stand in for them where no kernel runs.

A view holds no algorithm. Read in pairs, the pure part first: `traffic_scenario` (what an attention call costs) and
`traffic_explorer`; `walk_records` (a recorded launch as typed steps) and `tile_walk`; `cache_scenario` (a matrix
product through an L2 cache) and `cache_explorer`; `budget` (a training step on a GPU, as a link) and `budget_explorer`;
`shard_scenario` (who holds what under ZeRO) and `shard_map`; `ring_records` (an all-reduce, replayed) and `ring_walk`;
`trade_off_scenario` (memory against time) and `trade_off_explorer`; `mixture_scenario` (tokens of each domain) and
`mixture_explorer`. `working_set` says what blocks need on chip, `figures` draws hardware, traffic, roofline and
block-size sweeps, `memory_figures` measured timelines, `parallel_figures` backward passes and ranks, `training_figures`
runs and what they learned. `picture` is how a figure shows itself, `controls` has the sliders, menus and tables of all
explorers, `walk_files` what the walks share in the browser.
"""

from cme295lab.widgets.budget import Budget
from cme295lab.widgets.budget_explorer import BudgetExplorer
from cme295lab.widgets.budget_figure import comparison_bars
from cme295lab.widgets.cache_explorer import CacheExplorer
from cme295lab.widgets.cache_scenario import CacheScenario, cache_scenario
from cme295lab.widgets.cost_calculator import CostCalculator
from cme295lab.widgets.figures import RooflinePoint, block_size_map, memory_hierarchy, roofline, traffic_bars
from cme295lab.widgets.memory_figures import peak_treemap, timeline_figure
from cme295lab.widgets.mixture_explorer import MixtureExplorer
from cme295lab.widgets.mixture_scenario import MeasuredMixtures, MixtureScenario, mixture_scenario
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.ring_records import RingMoment, ring_records
from cme295lab.widgets.ring_walk import RingWalk
from cme295lab.widgets.shard_map import ShardMap
from cme295lab.widgets.shard_scenario import ShardScenario, shard_scenario
from cme295lab.widgets.tile_walk import TileWalk
from cme295lab.widgets.timeline_explorer import TimelineExplorer
from cme295lab.widgets.trade_off_explorer import TradeOffExplorer
from cme295lab.widgets.trade_off_scenario import TradeOff, trade_off
from cme295lab.widgets.traffic_explorer import TrafficExplorer
from cme295lab.widgets.traffic_scenario import TrafficScenario, traffic_scenario
from cme295lab.widgets.training_figures import few_labels_figure, loss_curves, memorisation_figure
from cme295lab.widgets.walk_records import ProgramWalk, WalkStep, WatchedNames, walk_records
from cme295lab.widgets.working_set import WorkingSet, working_set

__all__ = [
    "Budget",
    "BudgetExplorer",
    "CacheExplorer",
    "CacheScenario",
    "CostCalculator",
    "MeasuredMixtures",
    "MixtureExplorer",
    "MixtureScenario",
    "Picture",
    "ProgramWalk",
    "RingMoment",
    "RingWalk",
    "RooflinePoint",
    "ShardMap",
    "ShardScenario",
    "TileWalk",
    "TimelineExplorer",
    "TradeOff",
    "TradeOffExplorer",
    "TrafficExplorer",
    "TrafficScenario",
    "WalkStep",
    "WatchedNames",
    "WorkingSet",
    "block_size_map",
    "cache_scenario",
    "comparison_bars",
    "few_labels_figure",
    "loss_curves",
    "memorisation_figure",
    "memory_hierarchy",
    "mixture_scenario",
    "peak_treemap",
    "ring_records",
    "roofline",
    "shard_scenario",
    "timeline_figure",
    "trade_off",
    "traffic_bars",
    "traffic_scenario",
    "walk_records",
    "working_set",
]
