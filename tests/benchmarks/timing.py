"""Timing: medians, peers interleaved so that both see the same machine."""

from __future__ import annotations

import ctypes
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident_bytes() -> int:
    """Memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_growth_bytes(run: Callable[[], object]) -> int:
    """How much memory the process holds at its peak during a call beyond what it held before."""
    done = threading.Event()
    before = peak = resident_bytes()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return max(peak, resident_bytes()) - before


def settled_peak_bytes(run: Callable[[], object]) -> int:
    """`peak_growth_bytes`, the median of three; memory is looked at every 2 ms, which may miss the end of a call.

    What earlier calls have freed is given back to the system first (glibc keeps blocks of up to 32 MB for the next one,
    which would then seem to cost nothing).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    peaks = []
    for _ in range(3):
        if trim is not None:
            trim(0)
        peaks.append(peak_growth_bytes(run))
    return sorted(peaks)[1]


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def medians(*runs: Callable[[], object], repeats: int) -> list[float]:
    """Median seconds of each function, called in turn `repeats` times after one call each to warm up."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for collected, run in zip(times, runs, strict=True):
            collected.append(seconds_of(run))
    return [statistics.median(t) for t in times]
