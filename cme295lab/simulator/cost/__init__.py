"""What a launch costs on a GPU: from the addresses of its loads and stores to main-memory bytes and time.

Read in this order: `log` (keeps the addresses of a launch in little memory), `sectors` (coalescing: from lanes to
32-byte sectors), `schedule` (which programs run together), `l2` (the cache), `report` (what comes out), `roofline`
(the time). The models are stated at the top of these modules. Everything after the log is worked out when it is asked
for.
"""

from __future__ import annotations

from cme295lab.simulator.cost.log import AddressLog
from cme295lab.simulator.cost.report import AccessSummary, CacheReport, CacheTraffic, HasCacheTraffic, LaunchCost
from cme295lab.simulator.cost.roofline import Roofline, one_after_another, roofline

__all__ = [
    "AccessSummary", "AddressLog", "CacheReport", "CacheTraffic", "HasCacheTraffic", "LaunchCost", "Roofline",
    "one_after_another", "roofline",
]  # fmt: skip
