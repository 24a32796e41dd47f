"""Many processes that train one model: launching them, counting what they send, data parallelism and ZeRO.

Read in this order: ``launcher`` (a function, run by several real processes, from a script or a notebook cell; behind it
``pool``, ``worker``, ``blame``, ``console``, ``sending`` and ``in_place``), then the collectives, then what is built of
them. Of collectives, read ``schedules`` and ``collectives`` (rings and trees, written out), ``comm_ledger`` (bytes of
any torch.distributed code, counted; behind it ``calls`` and ``c10d_operators``), ``consistency`` (do all ranks make the
same call?), ``cost_model`` and ``step_time`` (how long it takes over which link), and ``transport`` with ``exchange``:
what the rest of the room calls.

Of training, read ``data_parallel`` (behind it ``buckets``, ``backward_watch``, ``replicas``, and ``weighting`` for
batches of unequal length), then ``partition``, ``flat_weights``, ``sharded_optimizer`` and the stages of ZeRO:
``zero``, ``zero1``, ``zero2``, ``zero3`` (behind it ``sharded_parameters``, ``sharded_unit`` and ``unit_schedule``).
Last, ``checkpoint`` with ``checkpoint_pieces`` and ``checkpoint_files``: what any number of ranks can go on with.

Everything runs on the CPU (gloo) and on GPUs (nccl), and unchanged under ``torchrun`` on many machines.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cme295lab.parallel.blame import DistributedError
    from cme295lab.parallel.calls import ledger_tag
    from cme295lab.parallel.checkpoint import (
        consolidate,
        consolidate_optimizer,
        consolidated_state_dict,
        load_sharded,
        save_sharded,
    )
    from cme295lab.parallel.checkpoint_files import CheckpointError
    from cme295lab.parallel.comm_ledger import CommLedger
    from cme295lab.parallel.consistency import CollectiveMismatch, checked
    from cme295lab.parallel.data_parallel import DataParallel
    from cme295lab.parallel.gradient_health import NonFiniteGradients
    from cme295lab.parallel.launcher import run_distributed
    from cme295lab.parallel.pool import shutdown_pool
    from cme295lab.parallel.weighting import token_scale
    from cme295lab.parallel.worker import report_progress
    from cme295lab.parallel.zero import ZeroOptimizer
    from cme295lab.parallel.zero3 import FullyShardedModel

# Public name -> the module that it lives in; one line a name, here, above and in __all__.
_HOME = {
    "CheckpointError": "checkpoint_files",
    "CollectiveMismatch": "consistency",
    "CommLedger": "comm_ledger",
    "DataParallel": "data_parallel",
    "DistributedError": "blame",
    "FullyShardedModel": "zero3",
    "NonFiniteGradients": "gradient_health",
    "ZeroOptimizer": "zero",
    "checked": "consistency",
    "consolidate": "checkpoint",
    "consolidate_optimizer": "checkpoint",
    "consolidated_state_dict": "checkpoint",
    "ledger_tag": "calls",
    "load_sharded": "checkpoint",
    "report_progress": "worker",
    "run_distributed": "launcher",
    "save_sharded": "checkpoint",
    "shutdown_pool": "pool",
    "token_scale": "weighting",
}

__all__ = [
    "CheckpointError",
    "CollectiveMismatch",
    "CommLedger",
    "DataParallel",
    "DistributedError",
    "FullyShardedModel",
    "NonFiniteGradients",
    "ZeroOptimizer",
    "checked",
    "consolidate",
    "consolidate_optimizer",
    "consolidated_state_dict",
    "ledger_tag",
    "load_sharded",
    "report_progress",
    "run_distributed",
    "save_sharded",
    "shutdown_pool",
    "token_scale",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the formulas of this room cost no import of torch."""
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
