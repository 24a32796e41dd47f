"""The caller's side of a running call: listen to all ranks until each has an outcome, or time is up.

One loop, in the caller's own thread, waits for whatever comes first: a message of a rank (it has started, it reports
progress, it has an outcome), something that a rank prints, or the end of its process. A failure of one rank ends the
call, but not at once: the failure that is heard of first is often the consequence ("closed by peer") and not the cause.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from typing import Any

import psutil

from cme295lab.parallel.launch.blame import Frame, Outcome, collective_of, describe_exit, read_stack
from cme295lab.parallel.launch.console import Console
from cme295lab.parallel.launch.pool import Worker
from cme295lab.parallel.launch.worker import Job

START_LIMIT_S = 120.0  # importing torch in new processes may be slow on a busy machine
_GRACE_S = 0.3  # the other ranks' own errors arrive within this
_CULPRIT_GRACE_S = 3.0  # and the cause of an error that only says "somebody is gone" within this
_STACK_PATIENCE_S = 0.5
_EXIT_PATIENCE_S = 2.0
_DEADLOCK_CHECK_S = 2.5
_IDLE_CPU_S = 0.02  # CPU time of a rank between two checks, when all that it does is to wait


class Watch:
    """Follow the ranks of one call.

    Args:
        workers: the process of each rank.
        job: what they are to do.
        console: where their output and progress goes.
    """

    def __init__(self, workers: Sequence[Worker], job: Job, console: Console) -> None:
        self._workers = workers
        self._job = job
        self._console = console
        self._outcomes: dict[int, Outcome] = {}
        self._num_started = 0
        self._silent: set[int] = set()
        self.limit = f"{START_LIMIT_S:g} s, in which not every rank has started"

    def run(self) -> dict[int, Outcome]:
        """Give out the job and wait.

        Returns:
            The outcome of each rank. Ranks that still ran when it was over have the outcome `waits`.
        """
        for rank, each in enumerate(self._workers):
            each.assign(rank, self._job)
        self._follow(START_LIMIT_S, lambda: self._all_started() or self._someone_failed())
        if self._all_started():
            self._follow_until_deadlock()
        if self._someone_failed():
            self._follow(_GRACE_S, lambda: False)
            self._follow(_CULPRIT_GRACE_S, self._culprit_is_known)
        for rank, outcome in self._stacks().items():
            self._outcomes.setdefault(rank, outcome)
        return dict(sorted(self._outcomes.items()))

    def _open(self) -> list[int]:
        return [rank for rank in range(len(self._workers)) if rank not in self._outcomes]

    def _all_started(self) -> bool:
        return self._num_started == len(self._workers)

    def _someone_failed(self) -> bool:
        return any(outcome.end != "finished" for outcome in self._outcomes.values())

    def _culprit_is_known(self) -> bool:
        return any(o.end != "finished" and not o.is_a_consequence for o in self._outcomes.values())

    def _follow_until_deadlock(self) -> None:
        """Follow up to the time limit, and stop earlier when no rank can ever go on.

        That is so when each rank that has not finished waits in a collective, at the same place and without using the
        CPU, at two looks in a row. Somebody who sends or adds uses the CPU; somebody who sleeps is in no collective.
        With GPUs that does not follow, since they may work while the CPU waits.
        """
        until_s = time.monotonic() + self._job.timeout_s
        self.limit = f"timeout_s = {self._job.timeout_s:g} s"
        cpu_s = self._cpu_times()
        places: dict[int, tuple[Frame, ...]] | None = None
        while self._open() and not self._someone_failed() and time.monotonic() < until_s:
            self._follow(min(_DEADLOCK_CHECK_S, until_s - time.monotonic()), self._someone_failed)
            before, cpu_s = cpu_s, self._cpu_times()
            is_idle = before.keys() == cpu_s.keys() and all(cpu_s[r] - before[r] < _IDLE_CPU_S for r in cpu_s)
            if not is_idle or self._someone_failed() or self._job.backend != "gloo":
                places = None
                continue
            earlier, places = places, {rank: outcome.frames for rank, outcome in self._stacks().items()}
            if places and places == earlier and all(collective_of(frames) for frames in places.values()):
                self.limit = f"no rank has used the CPU for {_DEADLOCK_CHECK_S:g} s"
                return

    def _cpu_times(self) -> dict[int, float]:
        times: dict[int, float] = {}
        for rank in self._open():
            with contextlib.suppress(psutil.Error):
                used = psutil.Process(self._workers[rank].process.pid).cpu_times()
                times[rank] = used.user + used.system
        return times

    def _follow(self, limit_s: float, is_enough: Callable[[], bool]) -> None:
        """Listen until all ranks have an outcome, the limit is over, or it is enough."""
        until_s = time.monotonic() + limit_s
        while self._open() and not is_enough():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            sources: dict[Any, tuple[Callable[[int], None], int]] = {}
            for rank, each in enumerate(self._workers):
                if rank not in self._silent:
                    sources[each.output.fileno()] = (self._show, rank)
                if rank not in self._outcomes:
                    sources[each.connection] = (self._hear, rank)
                    sources[each.process.sentinel] = (self._note_end, rank)
            ready = wait(list(sources), timeout=left_s)
            for source in filter(set(ready).__contains__, sources):  # output before messages before ends
                listen, rank = sources[source]
                listen(rank)

    def _show(self, rank: int) -> None:
        if self._console.read(rank) == "end":
            self._silent.add(rank)

    def _hear(self, rank: int) -> None:
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

    def _note_end(self, rank: int) -> None:
        while rank not in self._outcomes and self._workers[rank].connection.poll():
            self._hear(rank)
        if rank not in self._outcomes:
            self._note_death(rank)

    def _note_death(self, rank: int) -> None:
        process = self._workers[rank].process
        process.join(_EXIT_PATIENCE_S)
        frames = read_stack(self._job.stack_file(rank))
        message = describe_exit(process.exitcode)
        self._outcomes[rank] = Outcome(rank=rank, end="died", message=message, frames=frames, time_s=time.time())

    def _stacks(self) -> dict[int, Outcome]:
        """Let all ranks that run write down where they are."""
        paths = {rank: self._job.stack_file(rank) for rank in self._open()}
        known = {rank: path.stat().st_size for rank, path in paths.items() if path.exists()}
        for rank in known:  # the file is opened before the handler stands
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._workers[rank].process.pid or 0, signal.SIGUSR1)
        frames = {rank: read_stack(paths[rank], known[rank]) for rank in known}
        until_s = time.monotonic() + _STACK_PATIENCE_S
        while time.monotonic() < until_s:
            time.sleep(0.02)
            earlier, frames = frames, {rank: read_stack(paths[rank], known[rank]) for rank in known}
            if all(frames.values()) and frames == earlier:
                break
        now_s = time.time()
        message = "" if self._all_started() else "had not started"
        return {
            rank: Outcome(rank=rank, end="waits", message=message, frames=frames.get(rank, ()), time_s=now_s)
            for rank in paths
        }
