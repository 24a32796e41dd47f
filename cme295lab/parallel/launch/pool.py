"""Processes for ranks, kept warm: each waits with torch imported, serves one call, and ends.

Starting a process is cheap and importing torch is slow (two seconds and more), so the import is done ahead of the call:
on Linux once, in a small fork server that then copies itself in milliseconds; elsewhere by new processes. After a call
as many fresh processes as it had ranks are started and wait for the next one.

A process serves one call only. Ranks that are used again save little more, and keep what the last call left behind:
variables, caches, a changed directory, threads, a half-broken process group. Here a call finds pristine processes
whatever happened in the last one.

Measured on two cores, 4 ranks that return at once, from call to result: 2.2 s the first time, then 0.09 s (two cores
with four other busy processes: 0.18 s). The processes that wait make no difference to that on a quiet Linux machine; on
a busy one, and where processes are spawned, they do.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from cme295lab.parallel.launch import worker

MAX_WAITING = 8
"""So many processes wait at most; each holds about 4 MB of its own on Linux, and 135 MB elsewhere."""

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

_lock = threading.RLock()
_waiting: list[Worker] = []
_owner_pid = 0  # a child that the caller forks has a copy of the list, but the processes are not its children


class Worker:
    """A process that waits to become one rank of one call.

    Args:
        context: how processes are made.
    """

    def __init__(self, context: BaseContext) -> None:
        self.connection, theirs = context.Pipe()
        self.output, their_output = context.Pipe(duplex=False)
        with theirs, their_output, _start_conditions():
            arguments = (theirs, their_output, os.getpid())
            process = context.Process(target=worker.serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
            process.start()
        self.process: BaseProcess = process
        os.set_blocking(self.output.fileno(), False)

    def assign(self, rank: int, job: worker.Job) -> None:
        """Make it a rank; if it is dead, whoever listens to it will notice."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((rank, job))

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # it may not have become a group of its own yet

    def close(self) -> None:
        """Wait for its end and close the lines to it."""
        self.process.join()
        self.process.close()
        self.connection.close()
        self.output.close()


def take(num_workers: int) -> list[Worker]:
    """Get processes that have never run anything; those that wait first.

    Args:
        num_workers: how many.

    Returns:
        The processes; whoever takes them ends them.
    """
    workers: list[Worker] = []
    try:
        with _lock:
            while _waiting and len(workers) < num_workers:
                candidate = _waiting.pop()
                if candidate.process.is_alive():
                    workers.append(candidate)
                else:
                    candidate.close()
        while len(workers) < num_workers:
            workers.append(Worker(_context()))
    except BaseException:
        end(workers)
        raise
    return workers


def refill(num_workers: int) -> None:
    """Start processes that wait for a next call.

    Args:
        num_workers: so many shall wait (`MAX_WAITING` at most).
    """
    with _lock:
        while len(_waiting) < min(num_workers, MAX_WAITING):
            _waiting.append(Worker(_context()))


def end(workers: list[Worker]) -> None:
    """Kill processes and wait until they are gone.

    Args:
        workers: the processes.
    """
    for each in workers:
        each.kill()
    for each in workers:
        each.close()


def shutdown_pool() -> None:
    """End all processes that wait for a next call; it then starts as slowly as the first."""
    with _lock:
        waiting, _waiting[:] = _waiting[:], []
        if not _is_a_fork():
            end(waiting)


def start_method() -> str:
    """`forkserver` on Linux, `spawn` elsewhere.

    A fork of the caller may hang, because torch has used threads there; the fork server has only imported torch. On
    macOS the system's own libraries do not survive a fork.
    """
    return "forkserver" if sys.platform == "linux" else "spawn"


def why_no_processes() -> str:
    """Say why ranks cannot be started on this machine.

    Returns:
        The reason and what to do; empty where they can.
    """
    if sys.platform == "win32":
        return "ranks need process groups and signals, which Windows does not have; use WSL"
    if _is_a_fork():
        return "this process was forked by one that has started ranks before; call it there, or in a new process"
    if multiprocessing.current_process().daemon:
        return "this is a worker of a multiprocessing pool, which may not have children; call it outside of the pool"
    if not os.access(tempfile.gettempdir(), os.W_OK):
        return f"the directory {tempfile.gettempdir()} cannot be written; set TMPDIR to one that can"
    return ""


def _context() -> BaseContext:
    global _owner_pid
    if not _owner_pid:
        _owner_pid = os.getpid()
        atexit.register(shutdown_pool)
    context = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        context.set_forkserver_preload(list(worker.PRELOADED))
    return context


def _is_a_fork() -> bool:
    """Whether this process was forked by the one that the fork server and the waiting processes belong to."""
    return _owner_pid not in (0, os.getpid())


@contextlib.contextmanager
def _start_conditions() -> Iterator[None]:
    """Hide the main module from `multiprocessing`, and let libraries start without threads, while a process starts.

    `multiprocessing` would import the caller's script anew in each process, which it finds by `__file__` and `__spec__`
    of `__main__`. The function comes by value, so that is not needed, and a script without an
    `if __name__ == "__main__"` would start itself without end. How many threads a library has is settled when it is
    loaded: with none, the fork server is safe to fork, and a rank has one thread.
    """
    main = sys.modules["__main__"].__dict__
    with _lock:
        hidden: dict[str, object] = {name: main.pop(name) for name in ("__file__", "__spec__") if name in main}
        main["__spec__"] = None
        variables = {name: os.environ.get(name) for name in ONE_THREAD}
        os.environ.update(ONE_THREAD)
        try:
            yield
        finally:
            for name, value in variables.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            del main["__spec__"]
            main.update(hidden)
