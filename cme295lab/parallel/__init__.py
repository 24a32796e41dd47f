"""Many processes that train one model: launching them, counting what they send, data parallelism and ZeRO.

Read in this order: ``launch`` (a function, run by several real processes, from a script or a notebook cell),
``communication`` (collectives written out, counted, checked and timed, and the one seam to torch.distributed),
``replication`` (data parallelism), ``sharding`` (ZeRO 1, 2 and 3) and ``checkpoints`` (what any number of ranks can go
on with). Each folder says in its first lines in which order to read it.

Everything runs on the CPU (gloo) and on GPUs (nccl), and unchanged under ``torchrun`` on many machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cme295lab._lazy import lazy_names

if TYPE_CHECKING:
    from cme295lab.parallel.checkpoints.checkpoint import (
        consolidate,
        consolidate_optimizer,
        consolidated_state_dict,
        load_sharded,
        save_sharded,
    )
    from cme295lab.parallel.checkpoints.checkpoint_files import CheckpointError
    from cme295lab.parallel.communication.calls import ledger_tag
    from cme295lab.parallel.communication.comm_ledger import CommLedger
    from cme295lab.parallel.communication.consistency import CollectiveMismatch, checked
    from cme295lab.parallel.launch.blame import DistributedError
    from cme295lab.parallel.launch.launcher import run_distributed
    from cme295lab.parallel.launch.pool import shutdown_pool
    from cme295lab.parallel.launch.worker import report_progress
    from cme295lab.parallel.replication.data_parallel import DataParallel
    from cme295lab.parallel.replication.weighting import token_scale
    from cme295lab.parallel.sharding.gradient_health import NonFiniteGradients
    from cme295lab.parallel.sharding.zero import ZeroOptimizer
    from cme295lab.parallel.sharding.zero3 import FullyShardedModel

# Public name -> the module that it lives in; one line a name, here, above and in __all__.
_HOME = {
    "CheckpointError": "checkpoints.checkpoint_files",
    "CollectiveMismatch": "communication.consistency",
    "CommLedger": "communication.comm_ledger",
    "DataParallel": "replication.data_parallel",
    "DistributedError": "launch.blame",
    "FullyShardedModel": "sharding.zero3",
    "NonFiniteGradients": "sharding.gradient_health",
    "ZeroOptimizer": "sharding.zero",
    "checked": "communication.consistency",
    "consolidate": "checkpoints.checkpoint",
    "consolidate_optimizer": "checkpoints.checkpoint",
    "consolidated_state_dict": "checkpoints.checkpoint",
    "ledger_tag": "communication.calls",
    "load_sharded": "checkpoints.checkpoint",
    "report_progress": "launch.worker",
    "run_distributed": "launch.launcher",
    "save_sharded": "checkpoints.checkpoint",
    "shutdown_pool": "launch.pool",
    "token_scale": "replication.weighting",
}
_MODULES = ("checkpoints", "communication", "launch", "replication", "sharding")

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

__getattr__, __dir__ = lazy_names(__name__, _HOME, _MODULES)
