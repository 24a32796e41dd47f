"""Do all ranks make the same call? Asked before each collective, so that a mismatch has a name instead of a hang.

A backend does not check. With gloo, ranks that pass tensors of different lengths get an abort or, worse, wrong numbers;
ranks that call different collectives, or one of which does not call at all, wait until the time-out. In a block of
`checked`, each rank writes down what it is about to call (collective, shapes, dtype, root or reduction, tag, and the
line of the program) in the store through which the processes met, and reads what the others wrote. All the same: the
call goes ahead. Anything else: `CollectiveMismatch` on every rank, with each rank's call and line.

The store is apart from the communicator, so this works on any backend, and the check itself cannot get stuck in the
mismatch that it looks for. A check takes 0.5 to 1 ms (2 ranks on two busy cores), and makes the ranks wait for each
other before each call: right for exercises and tests, not for timing.

Not checked: sends and receives, which only two ranks make. For torch.distributed's own calls the kind of reduction
(sum or max) is not compared, because the operator does not show it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from cme295lab.parallel.communication.c10d_operators import c10d_watch
from cme295lab.parallel.communication.calls import CollectiveCall

_FIRST_PAUSE_S, _LAST_PAUSE_S = 20e-6, 2e-3
_LIBRARY = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]), "<frozen", "<string>")
_blocks = itertools.count()


class CollectiveMismatch(RuntimeError):
    """The ranks of a group did not make the same collective call; the text has each rank's call and line."""


@contextmanager
def checked(enabled: bool = True, *, timeout_s: float | None = None) -> Iterator[None]:
    """Compare every collective call in the block between the ranks before it starts.

    Every rank must enter and leave the block. A rank that leaves while others still call is named at once.

    Args:
        enabled: False makes the block do nothing.
        timeout_s: how long to wait for a rank that does not call; None is half of the group's own time-out.

    Raises:
        CollectiveMismatch: in the block, on every rank that made a call which the others do not match.
        ValueError: if `timeout_s` is not positive.
    """
    if not enabled:
        yield
        return
    checker = Checker(timeout_s=timeout_s)
    try:
        with c10d_watch(checker):
            yield
    finally:
        checker.leave()


class Checker:
    """Compares calls through the store; `checked` and `CommLedger(check=True)` make one for their block."""

    def __init__(self, *, timeout_s: float | None = None) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self._timeout_s = timeout_s
        self._block = f"cme295lab/checked/{next(_blocks)}"
        self._num_calls: Counter[str] = Counter()

    def observe(self, call: CollectiveCall, group: dist.ProcessGroup) -> None:
        """Compare one call with those of the other ranks of its group.

        Raises:
            CollectiveMismatch: if they differ, or a rank makes none.
        """
        if call.collective in ("send", "recv") or group.size() == 1:
            return
        store, ranks, index = (
            _get_default_store(),
            dist.get_process_group_ranks(group),
            self._num_calls[group.group_name],
        )
        self._num_calls[group.group_name] += 1
        mine = dist.get_rank()
        entry = _entry(call)
        store.set(self._key(group, index, mine), json.dumps(entry))
        entries = {rank: entry if rank == mine else self._read(group, index, rank) for rank in ranks}
        if index >= 2:  # that all have written this call means that all have read the one before the last
            store.delete_key(self._key(group, index - 2, mine))
        fault = _fault(entries)
        if fault:
            lines = [f"  rank {rank}: {_describe(entry, fault)}" for rank, entry in entries.items()]
            where = "" if len(ranks) == dist.get_world_size() else f" of the group of ranks {ranks}"
            raise CollectiveMismatch(
                f"the ranks do not make the same call ({fault}), at collective call {index + 1}{where} in this block:\n"
                + "\n".join(lines)
                + "\nAll ranks must make the same calls, in the same order, with the same shapes and dtypes."
            )

    def leave(self) -> None:
        """Tell ranks that still wait that this one makes no more calls."""
        if dist.is_initialized():
            error = sys.exc_info()[0]
            text = f"left the block with {error.__name__}" if error else "left the block"
            calls = sum(self._num_calls.values())
            text += f" after {calls} collective call{'s' if calls != 1 else ''}, without this one"
            _get_default_store().set(f"{self._block}/left/{dist.get_rank()}", text)

    def _key(self, group: dist.ProcessGroup, index: int, rank: int) -> str:
        return f"{self._block}/{group.group_name}/{index}/{rank}"

    def _read(self, group: dist.ProcessGroup, index: int, rank: int) -> dict[str, Any]:
        """What a rank wrote, waiting for it; or that it is missing."""
        store, key, left = _get_default_store(), self._key(group, index, rank), f"{self._block}/left/{rank}"
        limit_s = self._timeout_s or _timeout(group).total_seconds() / 2
        deadline, pause_s = time.monotonic() + limit_s, _FIRST_PAUSE_S
        while not store.check([key]):
            if store.check([left]) and not store.check([key]):
                return {"missing": store.get(left).decode()}
            if time.monotonic() > deadline:
                return {"missing": f"no call within {limit_s:.3g} s; it may be stuck, or on a path without this call"}
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
        return dict(json.loads(store.get(key)))


def _entry(call: CollectiveCall) -> dict[str, Any]:
    return {
        "collective": call.collective,
        "dtype": call.dtype,
        "shapes": [] if call.collective == "all_to_all" else [list(shape) for shape in call.shapes],
        "detail": call.detail,
        "tag": call.tag,
        "splits": call.splits and [list(sizes) for sizes in call.splits],
        "line": user_line(),
    }


def _fault(entries: dict[int, dict[str, Any]]) -> str:
    """What differs, or ""."""
    missing = [rank for rank, entry in entries.items() if "missing" in entry]
    if missing:
        return f"missing: rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    for name in ("collective", "dtype", "shapes", "detail", "tag"):
        if len({json.dumps(entry[name]) for entry in entries.values()}) > 1:
            return {"shapes": "different shapes", "dtype": "different dtypes", "tag": "different tags"}.get(
                name, "different collectives" if name == "collective" else "different roots or reductions"
            )
    splits = [entry["splits"] for entry in entries.values()]
    if splits[0] is not None:
        ranks = range(len(splits))
        if any(splits[i][0][j] != splits[j][1][i] for i in ranks for j in ranks):
            return "what one rank sends is not what the other expects"
    return ""


def _describe(entry: dict[str, Any], fault: str) -> str:
    if "missing" in entry:
        return str(entry["missing"])
    shapes = ", ".join(str(tuple(shape)) for shape in entry["shapes"])
    text = f"{entry['collective']} of {entry['dtype']} {shapes}".replace(" of - ", "")
    if entry["splits"] is not None:
        text = f"{text.rstrip()} sending {entry['splits'][0]}, expecting {entry['splits'][1]} elements"
    text += f", {entry['detail']}" if entry["detail"] else ""
    text += f", tag {entry['tag']!r}" if entry["tag"] else ""
    return f"{text}, at {entry['line']}"


def user_line() -> str:
    """The innermost line of the running program that belongs neither to torch nor to this room."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARY):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def _timeout(group: dist.ProcessGroup) -> timedelta:
    device = torch.device("cuda" if "nccl" in dist.get_backend(group) else "cpu")
    limit: timedelta = group._get_backend(device).options._timeout
    return limit
