"""Views that react, and the static pictures that stand in for them where no kernel runs.

A view holds no algorithm. Read in pairs, the pure part first:

    traffic_scenario    traffic_explorer     what an attention call costs
    walk_records        tile_walk            a recorded launch, step by step
    cache_scenario      cache_explorer       a matrix product through an L2 cache
    budget              budget_explorer      a training step on a GPU, as a link
    shard_scenario      shard_map            who holds what under ZeRO
    ring_records        ring_walk            an all-reduce, replayed
    trade_off_scenario  trade_off_explorer   memory against time
    mixture_scenario    mixture_explorer     how much of each domain a run sees
    frontier_scenario   frontier_explorer    a budget under every scaling law
    isoflop_scenario    isoflop_explorer     own runs at equal compute, and the next budget
    routing_scenario    routing_explorer     which experts take which tokens
    decoding_scenario   decoding_playground  a next-token distribution, reshaped
    beam_scenario       beam_tree            a beam search, candidate by candidate
    kv_cache_scenario   kv_cache_explorer    what a model keeps and reads while it generates
    loss_scale_scenario loss_scale_explorer  gradients over a format's range
    bit_scenario        bit_explorer         a number bit by bit, in every format
    number_line_scenario  number_line        which values a small format has, and where a number goes
    quantizer_scenario  quantizer_explorer   weights, the levels they are rounded to, and what is lost
    rank_scenario       rank_explorer        what a LoRA rank costs, and what it can hold
    adapter_switchboard_scenario  adapter_switchboard  one text through several adapters on one base
    qlora_scenario      qlora_bars           what three ways of fine-tuning keep, and what fits a GPU
    token_mask_scenario token_mask_view      a conversation's tokens: whose they are, which carry loss, packed

`timeline_explorer` and `cost_calculator` draw records of other rooms as they are. Static pictures: `figures` (hardware,
traffic, roofline, block sizes; `working_set` says what blocks need on chip), `memory_figures` (measured timelines),
`parallel_figures` (backward passes and ranks), `precision_figures` (losses in 16 bits and their scale),
`quantization_figures` (perplexity against bits, NF4's levels), `training_figures` (runs and what they learned),
`routing_figures` (experts over training), `lora_figures` (learning rates, ranks, spectra of changes). `picture` is how
a figure shows itself, `controls` has the sliders, menus and tables of all explorers, `walk_files` what the walks share
in the browser.
"""

from cme295lab.widgets.adapter_switchboard import AdapterSwitchboard
from cme295lab.widgets.adapter_switchboard_scenario import SwitchboardScenario, switchboard_scenario
from cme295lab.widgets.beam_scenario import BeamScenario, beam_scenario
from cme295lab.widgets.beam_tree import BeamTree
from cme295lab.widgets.bit_explorer import BitExplorer
from cme295lab.widgets.bit_scenario import BitScenario, bits_of_code, bits_of_number
from cme295lab.widgets.budget import Budget
from cme295lab.widgets.budget_explorer import BudgetExplorer
from cme295lab.widgets.budget_figure import comparison_bars
from cme295lab.widgets.cache_explorer import CacheExplorer
from cme295lab.widgets.cache_scenario import CacheScenario, cache_scenario
from cme295lab.widgets.cost_calculator import CostCalculator
from cme295lab.widgets.decoding_playground import DecodingPlayground
from cme295lab.widgets.decoding_scenario import DecodingScenario, decoding_scenario
from cme295lab.widgets.figures import RooflinePoint, block_size_map, memory_hierarchy, roofline, traffic_bars
from cme295lab.widgets.frontier_explorer import FrontierExplorer
from cme295lab.widgets.frontier_scenario import FrontierScenario, frontier_scenario
from cme295lab.widgets.isoflop_explorer import IsoFlopExplorer
from cme295lab.widgets.isoflop_scenario import IsoFlopScenario, isoflop_scenario
from cme295lab.widgets.kv_cache_explorer import KvCacheExplorer
from cme295lab.widgets.kv_cache_scenario import KvCacheScenario, kv_cache_scenario
from cme295lab.widgets.lora_figures import learning_rate_figure, spectra_figure, trials_figure
from cme295lab.widgets.loss_scale_explorer import LossScaleExplorer
from cme295lab.widgets.loss_scale_scenario import LossScaleScenario, loss_scale_scenario
from cme295lab.widgets.memory_figures import peak_treemap, timeline_figure
from cme295lab.widgets.mixture_explorer import MixtureExplorer
from cme295lab.widgets.mixture_scenario import MeasuredMixtures, MixtureScenario, mixture_scenario
from cme295lab.widgets.number_line import NumberLine, number_line_figure, spacing_figure
from cme295lab.widgets.number_line_scenario import NumberLineScenario, number_line_scenario
from cme295lab.widgets.picture import Picture
from cme295lab.widgets.precision_figures import policy_losses, scale_trace
from cme295lab.widgets.qlora_bars import QloraBars
from cme295lab.widgets.qlora_scenario import QloraScenario, qlora_scenario
from cme295lab.widgets.quantization_figures import codebook_figure, quality_figure
from cme295lab.widgets.quantizer_explorer import QuantizerExplorer
from cme295lab.widgets.quantizer_scenario import QuantizerScenario, quantizer_scenario
from cme295lab.widgets.rank_explorer import RankExplorer
from cme295lab.widgets.rank_scenario import RankScenario, rank_scenario
from cme295lab.widgets.ring_records import RingMoment, ring_records
from cme295lab.widgets.ring_walk import RingWalk
from cme295lab.widgets.routing_explorer import RoutingExplorer
from cme295lab.widgets.routing_figures import busiest_expert_figure
from cme295lab.widgets.routing_scenario import RoutingScenario, RoutingText, routing_scenario, routing_text
from cme295lab.widgets.shard_map import ShardMap
from cme295lab.widgets.shard_scenario import ShardScenario, shard_scenario
from cme295lab.widgets.tile_walk import TileWalk
from cme295lab.widgets.timeline_explorer import TimelineExplorer
from cme295lab.widgets.token_mask_scenario import PackedRows, TokenMask, packed_rows, token_mask
from cme295lab.widgets.token_mask_view import TokenMaskView
from cme295lab.widgets.trade_off_explorer import TradeOffExplorer
from cme295lab.widgets.trade_off_scenario import TradeOff, trade_off
from cme295lab.widgets.traffic_explorer import TrafficExplorer
from cme295lab.widgets.traffic_scenario import TrafficScenario, traffic_scenario
from cme295lab.widgets.training_figures import few_labels_figure, loss_curves, memorisation_figure
from cme295lab.widgets.walk_records import ProgramWalk, WalkStep, WatchedNames, walk_records
from cme295lab.widgets.working_set import WorkingSet, working_set

__all__ = [
    "AdapterSwitchboard",
    "BeamScenario",
    "BeamTree",
    "BitExplorer",
    "BitScenario",
    "Budget",
    "BudgetExplorer",
    "CacheExplorer",
    "CacheScenario",
    "CostCalculator",
    "DecodingPlayground",
    "DecodingScenario",
    "FrontierExplorer",
    "FrontierScenario",
    "IsoFlopExplorer",
    "IsoFlopScenario",
    "KvCacheExplorer",
    "KvCacheScenario",
    "LossScaleExplorer",
    "LossScaleScenario",
    "MeasuredMixtures",
    "MixtureExplorer",
    "MixtureScenario",
    "NumberLine",
    "NumberLineScenario",
    "PackedRows",
    "Picture",
    "ProgramWalk",
    "QloraBars",
    "QloraScenario",
    "QuantizerExplorer",
    "QuantizerScenario",
    "RankExplorer",
    "RankScenario",
    "RingMoment",
    "RingWalk",
    "RooflinePoint",
    "RoutingExplorer",
    "RoutingScenario",
    "RoutingText",
    "ShardMap",
    "ShardScenario",
    "SwitchboardScenario",
    "TileWalk",
    "TimelineExplorer",
    "TokenMask",
    "TokenMaskView",
    "TradeOff",
    "TradeOffExplorer",
    "TrafficExplorer",
    "TrafficScenario",
    "WalkStep",
    "WatchedNames",
    "WorkingSet",
    "beam_scenario",
    "bits_of_code",
    "bits_of_number",
    "block_size_map",
    "busiest_expert_figure",
    "cache_scenario",
    "codebook_figure",
    "comparison_bars",
    "decoding_scenario",
    "few_labels_figure",
    "frontier_scenario",
    "isoflop_scenario",
    "kv_cache_scenario",
    "learning_rate_figure",
    "loss_curves",
    "loss_scale_scenario",
    "memorisation_figure",
    "memory_hierarchy",
    "mixture_scenario",
    "number_line_figure",
    "number_line_scenario",
    "packed_rows",
    "peak_treemap",
    "policy_losses",
    "qlora_scenario",
    "quality_figure",
    "quantizer_scenario",
    "rank_scenario",
    "ring_records",
    "roofline",
    "routing_scenario",
    "routing_text",
    "scale_trace",
    "shard_scenario",
    "spacing_figure",
    "spectra_figure",
    "switchboard_scenario",
    "timeline_figure",
    "token_mask",
    "trade_off",
    "traffic_bars",
    "traffic_scenario",
    "trials_figure",
    "walk_records",
    "working_set",
]
