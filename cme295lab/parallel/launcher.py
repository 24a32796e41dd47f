"""``run_distributed``: a function, run by several real processes at the same time, from a script or a notebook cell."""

from __future__ import annotations

import contextlib
import linecache
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal

from cme295lab.parallel import pool
from cme295lab.parallel.blame import DistributedError, Outcome, describe_exit, explain, read_stack
from cme295lab.parallel.console import Console
from cme295lab.parallel.worker import Backend, Job, current_rank

MAX_RANKS = 64
_START_LIMIT_S = 120.0  # importing torch in a new process may be slow on a busy machine
_GRACE_S = 0.3  # the other ranks' own errors arrive within this
_CULPRIT_GRACE_S = 3.0  # and the cause of an error that only says "somebody is gone" within this
_STACK_PATIENCE_S = 0.5
_EXIT_PATIENCE_S = 2.0


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

    In the function, the default group of `torch.distributed` stands; each rank has one thread.

    Args:
        fn: the function; it may be defined in a notebook cell, and may be a closure.
        world_size: number of ranks.
        args: passed to `fn` on every rank.
        backend: "gloo" (CPU), "nccl" (a GPU per rank), or "auto": nccl if there are enough GPUs, else gloo.
        timeout_s: limit for `fn`, in s.
        seed: of torch, numpy and `random`, the same on every rank.
        print_output: show what the ranks print, each line with its rank.
        progress: None: a bar appears once a rank calls `report_progress`; False: never.
        env: environment variables for the ranks, besides the caller's.
        kwargs: passed to `fn` on every rank.

    Returns:
        The result of each rank, in order.

    Raises:
        DistributedError: a rank raised, died or hung; it names the culprit, and where the others were.
        ValueError: a world size, backend or time limit that is not possible.
        TypeError: `fn` or an argument cannot be sent to another process.
    """
    _check(fn, world_size, timeout_s, seed)
    if current_rank() is not None:
        raise RuntimeError(
            f"run_distributed was called inside rank {current_rank()} of another run_distributed; call it from the "
            "notebook or script itself, and use torch.distributed.new_group for a group within ranks"
        )
    chosen = choose_backend(backend, world_size)
    with tempfile.TemporaryDirectory(prefix="cme295lab-", ignore_cleanup_errors=True) as folder:
        job = _job(folder, world_size, chosen, float(timeout_s), seed, env or {})
        job.function_file.write_bytes(_pickle(fn, args, kwargs))
        workers = pool.take(world_size)
        try:
            console = Console([w.output.fileno() for w in workers], print_output=print_output, progress=progress)
            outcomes = _Watch(workers, job, console).run()
            _release(workers, console)
        finally:
            pool.end(workers)
    if any(outcome.end != "finished" for outcome in outcomes.values()):
        raise explain(outcomes, timeout_s=timeout_s)
    import cloudpickle

    return [cloudpickle.loads(outcomes[rank].payload) for rank in range(world_size)]


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


def _check(fn: object, world_size: object, timeout_s: object, seed: object) -> None:
    if not callable(fn):
        raise TypeError(f"fn must be a function, got {type(fn).__name__}")
    if isinstance(world_size, bool) or not isinstance(world_size, int):
        raise ValueError(f"world_size must be a whole number of ranks, got {world_size!r}")
    if not 1 <= world_size <= MAX_RANKS:
        raise ValueError(
            f"world_size must be from 1 to {MAX_RANKS} (each rank is a process of its own on this machine), "
            f"got {world_size}"
        )
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s must be a positive number of seconds, got {timeout_s!r}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be a whole number, got {seed!r}")


def _pickle(fn: object, args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    import cloudpickle

    try:
        return cloudpickle.dumps((fn, args, kwargs))
    except Exception as error:
        named = {"fn": fn, **{f"argument {i}": arg for i, arg in enumerate(args)}, **kwargs}
        for name, value in named.items():
            try:
                cloudpickle.dumps(value)
            except Exception as cause:
                raise TypeError(
                    f"{name} (of type {type(value).__name__}) cannot be sent to another process: {cause}. Make it, "
                    "or what it refers to, inside the function"
                ) from cause
        raise TypeError(f"the function and its arguments cannot be sent to another process: {error}") from error


def _job(folder: str, world_size: int, backend: Backend, timeout_s: float, seed: int, env: Mapping[str, str]) -> Job:
    return Job(
        world_size=world_size,
        backend=backend,
        folder=folder,
        timeout_s=timeout_s,
        seed=seed,
        environment={**os.environ, "OMP_NUM_THREADS": "1", **env},
        working_directory=str(Path.cwd()),
        module_path=tuple(sys.path),
        arguments=tuple(sys.argv),
        sources={
            name: tuple(entry[2])
            for name, entry in linecache.cache.copy().items()
            if len(entry) == 4 and not Path(name).exists()
        },
    )


class _Watch:
    """Follow the ranks of one call until each of them has an outcome."""

    def __init__(self, workers: Sequence[pool.Worker], job: Job, console: Console) -> None:
        self._workers = workers
        self._job = job
        self._console = console
        self._outcomes: dict[int, Outcome] = {}
        self._num_started = 0
        self._silent: set[int] = set()

    def run(self) -> dict[int, Outcome]:
        for rank, each in enumerate(self._workers):
            each.assign(rank, self._job)
        all_started = lambda: self._num_started == len(self._workers)  # noqa: E731
        self._follow(_START_LIMIT_S, lambda: all_started() or self._someone_failed())
        self._follow(self._job.timeout_s, self._someone_failed)
        if self._someone_failed():
            self._follow(_GRACE_S, lambda: False)
            self._follow(_CULPRIT_GRACE_S, self._culprit_is_known)
        for rank in self._open():
            self._ask_for_stack(rank)
        for rank in self._open():
            self._outcomes[rank] = self._stack_of(rank)
        return dict(sorted(self._outcomes.items()))

    def _open(self) -> list[int]:
        return [rank for rank in range(len(self._workers)) if rank not in self._outcomes]

    def _someone_failed(self) -> bool:
        return any(outcome.end != "finished" for outcome in self._outcomes.values())

    def _culprit_is_known(self) -> bool:
        return any(o.end != "finished" and not o.is_a_consequence for o in self._outcomes.values())

    def _follow(self, limit_s: float, is_enough: Callable[[], bool]) -> None:
        """Listen until all ranks have ended, the limit is over, or it is enough."""
        until_s = time.monotonic() + limit_s
        while self._open() and not is_enough():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            sources: dict[Any, Callable[[], None]] = {}
            for rank, each in enumerate(self._workers):
                if rank not in self._outcomes:
                    sources[each.process.sentinel] = self._noting_end_of(rank)
                    sources[each.connection] = self._hearing(rank)
                if rank not in self._silent:
                    sources[each.output.fileno()] = self._showing(rank)
            ready = wait(list(sources), timeout=left_s)
            for source in sorted(ready, key=list(sources).index, reverse=True):  # messages before ends
                sources[source]()

    def _showing(self, rank: int) -> Callable[[], None]:
        def show() -> None:
            if not self._console.read(rank):
                self._silent.add(rank)

        return show

    def _hearing(self, rank: int) -> Callable[[], None]:
        def hear() -> None:
            if rank in self._outcomes:
                return
            try:
                kind, content = self._workers[rank].connection.recv()
            except (EOFError, OSError):
                self._note_death(rank)
                return
            if kind == "outcome":
                self._outcomes[rank] = content
            elif kind == "progress":
                self._console.report(rank, *content)
            else:
                self._num_started += 1

        return hear

    def _noting_end_of(self, rank: int) -> Callable[[], None]:
        def note() -> None:
            while rank not in self._outcomes and self._workers[rank].connection.poll():
                self._hearing(rank)()
            if rank not in self._outcomes:
                self._note_death(rank)

        return note

    def _note_death(self, rank: int) -> None:
        process = self._workers[rank].process
        process.join(_EXIT_PATIENCE_S)
        frames = read_stack(self._job.stack_file(rank))
        message = describe_exit(process.exitcode)
        self._outcomes[rank] = Outcome(rank=rank, end="died", message=message, frames=frames, time_s=time.time())

    def _ask_for_stack(self, rank: int) -> None:
        pid = self._workers[rank].process.pid
        if pid is not None and self._job.stack_file(rank).exists():  # it has set up its handler
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR1)

    def _stack_of(self, rank: int) -> Outcome:
        until_s = time.monotonic() + _STACK_PATIENCE_S
        frames = read_stack(self._job.stack_file(rank))
        while time.monotonic() < until_s:
            time.sleep(0.01)
            earlier, frames = frames, read_stack(self._job.stack_file(rank))
            if frames and frames == earlier:
                break
        return Outcome(rank=rank, end="waits", frames=frames, time_s=time.time())


def _release(workers: Sequence[pool.Worker], console: Console) -> None:
    """Let the ranks go and show the rest of their output."""
    for each in workers:
        each.release()
    console.close()


__all__ = ["DistributedError", "MAX_RANKS", "choose_backend", "run_distributed"]
