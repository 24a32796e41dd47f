"""Processes for ranks: started, and ended together with everything that they started."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

from cme295lab.parallel import worker

_lock = threading.Lock()


class Worker:
    """A process that waits to become one rank of one call.

    Args:
        context: how processes are made.
    """

    def __init__(self, context: BaseContext) -> None:
        self.connection, theirs = context.Pipe()
        self.output, their_output = context.Pipe(duplex=False)
        with theirs, their_output, _main_module_hidden():
            process = context.Process(  # type: ignore[attr-defined]
                target=worker.serve, args=(theirs, their_output, os.getpid()), daemon=True
            )
            process.start()
        self.process: BaseProcess = process
        os.set_blocking(self.output.fileno(), False)

    def assign(self, rank: int, job: worker.Job) -> None:
        """Make it a rank; a worker that is dead is noticed by its sentinel."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((rank, job))

    def release(self) -> None:
        """Let it go after its outcome was received."""
        with contextlib.suppress(OSError):
            self.connection.send("release")

    def kill(self) -> None:
        """End the process and all that it started, at once."""
        pid = self.process.pid
        if pid is not None and self.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.process.kill()

    def close(self) -> None:
        """Wait for its end and close the lines to it."""
        self.process.join()
        self.process.close()
        self.connection.close()
        self.output.close()


def take(num_workers: int) -> list[Worker]:
    """Get processes that have never run anything.

    Args:
        num_workers: how many.

    Returns:
        The processes; whoever takes them ends them.
    """
    context = _context()
    workers: list[Worker] = []
    try:
        while len(workers) < num_workers:
            workers.append(Worker(context))
    except BaseException:
        end(workers)
        raise
    return workers


def end(workers: list[Worker]) -> None:
    """Kill processes and wait until they are gone."""
    for each in workers:
        each.kill()
    for each in workers:
        each.close()


def shutdown_pool() -> None:
    """End all processes that wait for a next call."""


def start_method() -> str:
    """`forkserver` on Linux, `spawn` elsewhere.

    A plain fork of a process that has used threads of torch may hang; a fork server is a small process that has only
    imported torch, and forks in milliseconds. On macOS even that is not safe with the system's libraries.
    """
    return "forkserver" if sys.platform == "linux" else "spawn"


def _context() -> BaseContext:
    context = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        context.set_forkserver_preload(list(worker.PRELOADED))
    return context


@contextlib.contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep `multiprocessing` from importing the caller's script or notebook anew in each process.

    It looks at `__file__` and `__spec__` of `__main__` when a process is started. The function comes by value, so the
    script is not needed there, and a script without an `if __name__ == "__main__"` would start itself without end.
    """
    main = sys.modules["__main__"]
    with _lock:
        hidden = {name: main.__dict__.pop(name) for name in ("__file__", "__spec__") if name in main.__dict__}
        main.__dict__["__spec__"] = None
        try:
            yield
        finally:
            del main.__dict__["__spec__"]
            main.__dict__.update(hidden)


__all__ = ["Connection", "Worker", "end", "shutdown_pool", "start_method", "take"]
