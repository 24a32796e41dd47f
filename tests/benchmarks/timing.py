"""Timing: medians, peers interleaved so that both see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(*runs: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn `repeats` times after one call each to warm up."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for collected, run in zip(times, runs, strict=True):
            collected.append(seconds_of(run))
    return [statistics.median(t) for t in times]
