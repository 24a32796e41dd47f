"""``run_distributed``: a function, run by several real processes at the same time, from a script or a notebook cell.

    results = run_distributed(train, 4, config, timeout_s=120)

The function, with what it refers to, goes to the ranks by value (``sending``). The ranks are processes that already
wait with torch imported (``pool``); they meet through a file in a private directory, so that no port is taken and two
calls at the same time cannot meet each other's ranks. The caller shows what they print (``console``) and listens
(``watch``) until all have returned, or one has failed, or time is up. It then ends all of them, and either returns the
results or says who was to blame (``blame``).

Nothing of one call is left for the next: each finds new processes, and is told the caller's variables, directory and
module path, as they are then, and its own seed.

The same script runs under ``torchrun`` on many machines (``in_place``). Windows has no process groups and signals of
this kind; there the course runs in WSL.
"""

from __future__ import annotations

import linecache
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from cme295lab.parallel.launch import pool, sending
from cme295lab.parallel.launch.blame import Outcome, explain
from cme295lab.parallel.launch.console import Console
from cme295lab.parallel.launch.in_place import is_launched, run_in_place
from cme295lab.parallel.launch.watch import Watch
from cme295lab.parallel.launch.worker import Backend, Job, current_rank

MAX_RANKS = 64
MAX_TIMEOUT_S = 1e6


def run_distributed(
    fn: Callable[..., Any],
    world_size: int,
    *args: Any,
    backend: Literal["auto", "gloo", "nccl"] = "auto",
    timeout_s: float = 60.0,
    seed: int = 0,
    print_output: bool = True,
    progress: bool | None = None,
    env: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Run a function on `world_size` processes and return what each of them returned.

    In the function the default group of `torch.distributed` stands, RANK, WORLD_SIZE and LOCAL_RANK are set, and each
    rank has one thread. What a rank prints appears with its number in front. If a rank raises, dies or hangs, the
    others are ended; so they are when the caller is interrupted or killed.

    The processes are new in each call, and ready before it: with 4 ranks on two cores the first call takes 2 s, later
    ones 0.1 s (`pool`). In a process that torchrun has started, `fn` runs in place, on every rank; the output and the
    end of hanging ranks are then torchrun's affair.

    Args:
        fn: the function; it may be defined in a notebook cell, and may be a closure.
        world_size: number of ranks.
        args: passed to `fn` on every rank.
        backend: "gloo" (CPU), "nccl" (a GPU per rank), or "auto": nccl if there are enough GPUs, else gloo.
        timeout_s: limit for `fn`, in s, from when all ranks have started.
        seed: of torch, numpy and `random`, the same on every rank, so that all ranks make the same weights.
        print_output: show what the ranks print.
        progress: None shows a bar once a rank calls `report_progress`; False never.
        env: environment variables for the ranks, besides the caller's.
        kwargs: passed to `fn` on every rank.

    Returns:
        The result of each rank, in order.

    Raises:
        DistributedError: a rank raised, died or hung; the text names the culprit, and where the others were.
        ValueError: a world size, backend, time limit or seed that is not possible.
        TypeError: `fn` or an argument cannot be sent to another process; the text names it.
        RuntimeError: called inside a rank.
    """
    _check(fn, world_size, timeout_s, seed, progress)
    variables = _checked_variables(env)
    if current_rank() is not None:
        raise RuntimeError(
            f"run_distributed was called inside rank {current_rank()} of another run_distributed; call it from the "
            "notebook or script itself, and use torch.distributed.new_group for a group within ranks"
        )
    if is_launched():
        return run_in_place(
            fn, world_size, args, kwargs, backend=backend, timeout_s=timeout_s, seed=seed, env=variables
        )
    if why := pool.why_no_processes():
        raise RuntimeError(f"run_distributed cannot start ranks here: {why}")
    chosen = choose_backend(backend, world_size)
    call = sending.dump_call(fn, args, kwargs)
    with tempfile.TemporaryDirectory(prefix="cme295lab-", ignore_cleanup_errors=True) as folder:
        job = _job(folder, world_size, chosen, float(timeout_s), seed, variables)
        job.function_file.write_bytes(call)
        outcomes, limit = _run(job, print_output=print_output, progress=progress)
    pool.refill(world_size)
    if any(outcome.end != "finished" for outcome in outcomes.values()):
        raise explain(outcomes, limit=limit)
    return [sending.loads(outcomes[rank].payload) for rank in range(world_size)]


def _run(job: Job, *, print_output: bool, progress: bool | None) -> tuple[dict[int, Outcome], str]:
    """Get processes, follow them to the end, and end them, whatever happens here."""
    workers = pool.take(job.world_size)
    try:
        console = Console([w.output.fileno() for w in workers], print_output=print_output, progress=progress)
        try:
            watch = Watch(workers, job, console)
            return watch.run(), watch.limit
        finally:
            console.close()
    finally:
        pool.end(workers)


def choose_backend(backend: str, world_size: int) -> Backend:
    """Find the backend of torch.distributed for a number of ranks.

    Args:
        backend: "auto", "gloo" or "nccl".
        world_size: number of ranks.

    Returns:
        "gloo" or "nccl".

    Raises:
        ValueError: it is not known, or not available here.
    """
    import torch
    import torch.distributed as dist

    if backend not in ("auto", "gloo", "nccl"):
        raise ValueError(f"backend must be 'auto', 'gloo' or 'nccl', got {backend!r}")
    num_devices = torch.cuda.device_count()
    has_nccl = dist.is_available() and dist.is_nccl_available()
    if backend == "auto":
        return "nccl" if has_nccl and num_devices >= world_size else "gloo"
    if backend == "nccl":
        if not has_nccl:
            raise ValueError("backend 'nccl' is not in this build of PyTorch; use backend='gloo' or 'auto'")
        if num_devices < world_size:
            raise ValueError(
                f"backend 'nccl' needs a GPU per rank: {world_size} ranks, and PyTorch sees {num_devices} CUDA "
                "devices; use backend='gloo' or 'auto', or fewer ranks"
            )
        return "nccl"
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ValueError("backend 'gloo' is not in this build of PyTorch; install PyTorch from its own wheels")
    return "gloo"


def _check(fn: object, world_size: object, timeout_s: object, seed: object, progress: object) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {type(fn).__name__}")
    if isinstance(world_size, bool) or not isinstance(world_size, int):
        raise ValueError(f"world_size must be a whole number of ranks, got {world_size!r}")
    if not 1 <= world_size <= MAX_RANKS:
        raise ValueError(
            f"world_size must be from 1 to {MAX_RANKS} (each rank is a process of its own on this machine), "
            f"got {world_size}"
        )
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s must be a number of seconds above 0, at most {MAX_TIMEOUT_S:g}, got {timeout_s!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be from 0 to 2**63 - 1, got {seed}")
    if progress not in (None, False):
        raise ValueError(f"progress must be None (a bar once a rank reports) or False (never), got {progress!r}")


def _checked_variables(env: Mapping[str, str] | None) -> dict[str, str]:
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"env must map names to strings, got {name!r}: {value!r}; use {str(name)!r}: {str(value)!r}"
            )
    return dict(env or {})


def _job(folder: str, world_size: int, backend: Backend, timeout_s: float, seed: int, env: Mapping[str, str]) -> Job:
    return Job(
        world_size=world_size,
        backend=backend,
        folder=folder,
        timeout_s=timeout_s,
        seed=seed,
        environment={**os.environ, **pool.ONE_THREAD, **env},
        working_directory=str(Path.cwd()),
        module_path=tuple(sys.path),
        arguments=tuple(sys.argv),
        sources={
            name: tuple(entry[2])
            for name, entry in linecache.cache.copy().items()
            if len(entry) == 4 and not Path(name).exists()
        },
    )
