"""Views that react, and the static pictures that stand in for them where no kernel runs.

A view holds no algorithm. Read in pairs, the pure part first: `traffic_scenario` (what an attention call costs) and
`traffic_explorer`; `walk_records` (a recorded launch as typed steps) and `tile_walk`; `cache_scenario` (a matrix
product through an L2 cache) and `cache_explorer`. `working_set` says what blocks need on chip, `figures` draws
hardware, traffic, roofline and block-size sweeps, `picture` is how a figure shows itself.
"""

from cme295lab.widgets.budget import Budget
from cme295lab.widgets.budget_explorer import BudgetExplorer
from cme295lab.widgets.cache_explorer import CacheExplorer
from cme295lab.widgets.cache_scenario import CacheScenario, cache_scenario
from cme295lab.widgets.figures import RooflinePoint, block_size_map, memory_hierarchy, roofline, traffic_bars
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.ring_records import RingMoment, ring_records
from cme295lab.widgets.ring_walk import RingWalk
from cme295lab.widgets.shard_map import ShardMap
from cme295lab.widgets.shard_scenario import ShardScenario, shard_scenario
from cme295lab.widgets.tile_walk import TileWalk
from cme295lab.widgets.traffic_explorer import TrafficExplorer
from cme295lab.widgets.traffic_scenario import TrafficScenario, traffic_scenario
from cme295lab.widgets.walk_records import ProgramWalk, WalkStep, WatchedNames, walk_records
from cme295lab.widgets.working_set import WorkingSet, working_set

__all__ = [
    "Budget",
    "BudgetExplorer",
    "CacheExplorer",
    "CacheScenario",
    "Picture",
    "ProgramWalk",
    "RingMoment",
    "RingWalk",
    "RooflinePoint",
    "ShardMap",
    "ShardScenario",
    "TileWalk",
    "TrafficExplorer",
    "TrafficScenario",
    "WalkStep",
    "WatchedNames",
    "WorkingSet",
    "block_size_map",
    "cache_scenario",
    "memory_hierarchy",
    "ring_records",
    "roofline",
    "shard_scenario",
    "traffic_bars",
    "traffic_scenario",
    "walk_records",
    "working_set",
]
