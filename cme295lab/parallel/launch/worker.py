"""What runs in the process of a rank: wait for a job, set the stage, call the function, send the result.

A rank has three lines to the process that called ``run_distributed``: a two-way connection (the job comes in, progress
and the outcome go out), a pipe for everything that is printed, by Python or by C++, and a file for its stack.

Nothing may outlive the caller. A thread reads the connection; the caller's end closes when the caller ends, however it
ends, and then the rank kills its whole process group (a rank is a group of its own, so that a data loader's processes
go with it). That thread needs the interpreter's lock; in case native code never gives it back, a timer of
``faulthandler``, which needs no lock, ends the process some time after the limit.

After the function has returned or raised, the rank stays until the caller kills it. If it left at once, the others'
sockets would break while they still work, and their errors would hide its own.
"""

from __future__ import annotations

import ctypes
import datetime
import faulthandler
import importlib
import io
import linecache
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NoReturn

from cme295lab.parallel.launch import sending
from cme295lab.parallel.launch.blame import Frame, Outcome

Backend = Literal["gloo", "nccl"]
PRELOADED = ("torch", "torch.distributed", "torch._dynamo", "numpy", __name__)
"""Modules that every rank needs and that are slow to import."""

_GROUP_PATIENCE_S = 60.0  # a collective gives up this long after the caller's limit, so that the caller speaks first
_PARENT_CHECK_S = 2.0
# Of glibc's mallopt; larger thresholds than these are refused.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST_INT, _LARGEST_MMAP_THRESHOLD = -1, -3, 2**31 - 1, 32 * 2**20
_PROGRESS_PERIOD_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all ranks of a call are told.

    Args:
        world_size: number of ranks.
        backend: of torch.distributed.
        folder: private to this call: the pickled function, the store by which ranks meet, the stacks.
        timeout_s: the caller's limit, in s.
        seed: for torch, numpy and `random`.
        environment: all environment variables.
        working_directory: the caller's.
        module_path: the caller's `sys.path`.
        arguments: the caller's `sys.argv`.
        sources: text of what is no file (cells of a notebook), for tracebacks: name -> lines.
    """

    world_size: int
    backend: Backend
    folder: str
    timeout_s: float
    seed: int
    environment: Mapping[str, str]
    working_directory: str
    module_path: tuple[str, ...]
    arguments: tuple[str, ...]
    sources: Mapping[str, tuple[str, ...]]

    @property
    def function_file(self) -> Path:
        return Path(self.folder) / "function"

    @property
    def store_file(self) -> Path:
        return Path(self.folder) / "store"

    def stack_file(self, rank: int) -> Path:
        return Path(self.folder) / f"stack_{rank}"


class _Line:
    """The rank's connection to its caller; one message at a time, from whatever thread."""

    def __init__(self, rank: int, world_size: int, connection: Connection) -> None:
        self.rank = rank
        self.world_size = world_size
        self._connection = connection
        self._lock = threading.Lock()
        self._last_progress_s = 0.0

    def send(self, kind: str, content: object) -> None:
        with self._lock:
            self._connection.send((kind, content))

    def send_progress(self, done: float, total: float, text: str) -> None:
        now_s = time.monotonic()
        if done < total and now_s - self._last_progress_s < _PROGRESS_PERIOD_S:
            return
        self._last_progress_s = now_s
        self.send("progress", (done, total, text))

    def end_with_the_caller(self, parent_pid: int, folder: str) -> NoReturn:
        """Wait until the caller is gone, and leave nothing behind; a caller that lives kills this process itself."""
        while wait_for_message(self._connection, parent_pid) is not None:
            pass
        shutil.rmtree(folder, ignore_errors=True)
        end_process_group()


_line: _Line | None = None  # what this process is: a rank of a call, or (None) any other process


def current_rank() -> int | None:
    """The rank of this process in the call of `run_distributed` that made it; None in any other process."""
    return None if _line is None else _line.rank


def report_progress(done: float, total: float, text: str = "") -> None:
    """Tell the caller of `run_distributed` how far this rank is; it shows one bar for all ranks.

    Cheap enough for every step of a loop: at most twenty messages a second are sent. In a process that is no rank of
    `run_distributed` (one process, or a launch by torchrun) nobody is there to be told, and nothing happens.

    Args:
        done: steps done, at most `total`.
        total: steps in all.
        text: shown beside the bar, e.g. the loss.
    """
    if not 0 <= done <= total:
        raise ValueError(f"done must be from 0 to total, got done={done}, total={total}")
    if _line is not None:
        _line.send_progress(done, total, text)


def serve(connection: Connection, output: Connection, parent_pid: int) -> NoReturn:
    """Be one rank of one call; the target of the process.

    Args:
        connection: to the caller: gives (rank, job).
        output: where everything that is printed goes.
        parent_pid: process of the caller.
    """
    os.setpgid(0, 0)
    multiprocessing.current_process().daemon = False  # a rank may have children: a data loader's processes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller gets the interrupt and ends its ranks itself
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _redirect_output(output)
    for name in PRELOADED:  # already there where the process was forked from one that has them
        importlib.import_module(name)
    message = wait_for_message(connection, parent_pid)
    if message is None:
        end_process_group()
    rank, job = message
    _become_rank(rank, job, connection, parent_pid)


def wait_for_message(connection: Connection, parent_pid: int) -> Any:
    """Wait for a message from the caller.

    Args:
        connection: to the caller.
        parent_pid: process of the caller. Somebody else may hold the caller's end open (a child that it forked), so
            its existence is checked, too.

    Returns:
        The message; None when the caller is gone.
    """
    try:
        while not connection.poll(_PARENT_CHECK_S):
            os.kill(parent_pid, 0)
        return connection.recv()
    except (EOFError, OSError):
        return None


def end_process_group() -> NoReturn:
    """End this process and every process that it started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _become_rank(rank: int, job: Job, connection: Connection, parent_pid: int) -> NoReturn:
    global _line
    _line = line = _Line(rank, job.world_size, connection)
    guard = threading.Thread(
        target=line.end_with_the_caller, args=(parent_pid, job.folder), daemon=True, name="end with the caller"
    )
    guard.start()
    unready = job.stack_file(rank).with_suffix(".unready")
    stack = unready.open("w")
    faulthandler.enable(stack, all_threads=False)
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    faulthandler.dump_traceback_later(job.timeout_s + 4 * _GROUP_PATIENCE_S, exit=True, file=stack)
    unready.rename(job.stack_file(rank))  # now the signal may be sent
    outcome = _run(rank, job, line)
    _flush()
    try:
        line.send("outcome", outcome)
    except OSError:
        end_process_group()
    guard.join()
    end_process_group()


def _run(rank: int, job: Job, line: _Line) -> Outcome:
    """Call the function in a process group of torch.distributed; every way to end becomes an outcome."""
    import torch

    try:
        _set_the_stage(rank, job)
        _join_group(rank, job)
        function, arguments, options = sending.loads(job.function_file.read_bytes())
        torch.manual_seed(job.seed)
        line.send("started", None)
        result = function(*arguments, **options)
    except BaseException as error:
        return _outcome_of(rank, error)
    try:
        payload = sending.dumps(result)
    except Exception as error:
        message = (
            f"returned a value of type {type(result).__qualname__} that cannot be sent to the caller "
            f"({type(error).__name__}: {error}); return tensors, numbers, strings, or lists and dictionaries of them"
        )
        return Outcome(rank=rank, end="unsendable", message=message, time_s=time.time())
    return Outcome(rank=rank, end="finished", payload=payload, time_s=time.time())


def _set_the_stage(rank: int, job: Job) -> None:
    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(job.environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job.world_size))
    os.environ.update(LOCAL_WORLD_SIZE=str(job.world_size))
    if "lo" in (name for _, name in socket.if_nameindex()):  # all ranks are here: no look-up of this machine's name
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.chdir(job.working_directory)
    sys.path[:] = job.module_path
    sys.argv[:] = job.arguments
    for name, lines in job.sources.items():
        linecache.cache[name] = (sum(map(len, lines)), None, list(lines), name)
    torch.set_num_threads(1)
    _keep_freed_memory()
    random.seed(job.seed)
    np.random.seed(job.seed % 2**32)



def _keep_freed_memory() -> None:
    """Let this process keep what tensors give back, for the next ones.

    The C library returns large blocks to the system at once and gets them again as pages of zeros, a fault per 4 KiB.
    A training step frees and makes the same buffers over and over; in a process that serves one call, keeping them
    costs nothing. Where the C library is another one, nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def _join_group(rank: int, job: Job) -> None:
    """Meet the others through a file: no port is taken, no host name is looked up."""
    import torch
    import torch.distributed as dist

    timeout = datetime.timedelta(seconds=job.timeout_s + _GROUP_PATIENCE_S)
    store = dist.FileStore(  # type: ignore[attr-defined]
        str(job.store_file), job.world_size
    )
    store.set_timeout(timeout)
    if job.backend == "nccl":
        torch.cuda.set_device(rank)
    with _gloo_greeting_dropped():
        dist.init_process_group(job.backend, store=store, rank=rank, world_size=job.world_size, timeout=timeout)


class _gloo_greeting_dropped:
    """In some releases of PyTorch gloo greets on standard output: "Rank 0 is connected to 1 peer ranks"."""

    def __enter__(self) -> None:
        _flush()
        self._saved = os.dup(1)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)

    def __exit__(self, *_: object) -> None:
        _flush()
        os.dup2(self._saved, 1)
        os.close(self._saved)


def _outcome_of(rank: int, error: BaseException) -> Outcome:
    """Write an exception down, from the user's first line on, so that the caller need not unpickle it."""
    walk = error.__traceback__
    while walk is not None and walk.tb_frame.f_code.co_filename == __file__ and walk.tb_next is not None:
        walk = walk.tb_next
    error.__traceback__ = walk
    description = traceback.TracebackException.from_exception(error)
    frames = tuple(Frame(f.filename, f.lineno or 0, f.name) for f in description.stack)
    if isinstance(error, SystemExit):
        message = f"SystemExit: sys.exit({error.code!r}) was called"
    else:
        message = "".join(description.format_exception_only()).strip()
    text = "".join(description.format())
    return Outcome(rank=rank, end="raised", message=message, traceback=text, frames=frames, time_s=time.time())


def _redirect_output(output: Connection) -> None:
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", line_buffering=True)


def _flush() -> None:
    """Everything printed so far goes out, also what C libraries still hold."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
