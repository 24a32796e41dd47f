"""``run_distributed`` in a process that ``torchrun`` has started: there is nothing to launch, so ``fn`` runs in place.

``torchrun --nproc-per-node 2 script.py`` starts the whole script twice, on each of many machines if wanted, and says
through environment variables who is who. The script's call of ``run_distributed`` then joins the group that they
describe, runs the function in this very process, and gathers the results, so that every rank returns all of them.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import pickle
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cme295lab.parallel.launch import sending

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_is_running = False  # a call inside of a call would wait for ranks that do not come


def is_launched() -> bool:
    """Whether torchrun, or something that speaks like it, has started this process as one rank of many."""
    return all(name in os.environ for name in _VARIABLES)


def run_in_place(
    fn: Callable[..., Any],
    world_size: int,
    args: Sequence[object],
    kwargs: Mapping[str, object],
    *,
    backend: str,
    timeout_s: float,
    seed: int,
    env: Mapping[str, str],
) -> list[Any]:
    """Run a function as one rank of a group that torchrun has started.

    Args:
        fn: the function.
        world_size: number of ranks; must be torchrun's.
        args: its positional arguments.
        kwargs: its named arguments.
        backend: "auto", "gloo" or "nccl".
        timeout_s: limit of a collective, in s, where the group is made here.
        seed: of torch, numpy and `random`.
        env: environment variables, set during the call.

    Returns:
        The result of each rank, on every rank.

    Raises:
        ValueError: `world_size` is not the number of processes that torchrun has started.
        RuntimeError: called inside a call.
    """
    global _is_running
    if _is_running:
        raise RuntimeError(
            f"run_distributed was called inside rank {os.environ['RANK']} of another run_distributed; call it from "
            "the script itself, and use torch.distributed.new_group for a group within ranks"
        )
    launched = int(os.environ["WORLD_SIZE"])
    if launched != world_size:
        raise ValueError(
            f"world_size is {world_size}, but torchrun has started {launched} processes (WORLD_SIZE); start "
            f"{world_size} of them, or pass world_size=int(os.environ['WORLD_SIZE'])"
        )
    _is_running = True
    try:
        with _stage(seed, env):
            _join_group(backend, timeout_s)
            return _gather(fn(*args, **kwargs), world_size)
    finally:
        _is_running = False


def _join_group(backend: str, timeout_s: float) -> None:
    import torch
    import torch.distributed as dist

    from cme295lab.parallel.launch.launcher import choose_backend

    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if dist.is_initialized():
        standing = dist.get_backend()
        if backend not in ("auto", standing):
            raise ValueError(f"backend is {backend!r}, but the default group already stands, with {standing!r}")
    else:
        chosen = choose_backend(backend, num_local)
        if chosen == "nccl":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group(chosen, timeout=datetime.timedelta(seconds=timeout_s))
        atexit.register(_leave_group)


def _leave_group() -> None:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _gather(result: object, world_size: int) -> list[Any]:
    import torch.distributed as dist

    gathered: list[Any] = [None] * world_size
    dist.all_gather_object(gathered, _dumps(result))
    return [sending.loads(data) for data in gathered]


def _dumps(result: object) -> bytes:
    """By name where possible: every rank runs the same script, so its classes are the same ones everywhere."""
    try:
        return pickle.dumps(result)
    except (pickle.PicklingError, AttributeError, TypeError):  # a class or function that is made inside a function
        return sending.dumps(result)


@contextlib.contextmanager
def _stage(seed: int, env: Mapping[str, str]) -> Iterator[None]:
    """One thread, the seed, the variables; threads and variables are put back."""
    import numpy as np
    import torch

    before = {name: os.environ.get(name) for name in env}
    num_threads = torch.get_num_threads()
    os.environ.update(env)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
