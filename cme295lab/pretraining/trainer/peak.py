"""What MFU is measured against: a GPU's data sheet, or what this machine does at best.

A CPU has no data sheet that says what matters here, so `measure_peak` multiplies large matrices in fp32, with as many
threads as torch uses, and takes the fastest round. It is a peak that can be reached, a few per cent below the real one.
"""

from __future__ import annotations

import time

import torch

from cme295lab.pretraining.flops.quantities import FlopRate


def measure_peak(*, size: int = 1024, rounds: int = 5) -> FlopRate:
    """The fastest product of two fp32 matrices on this machine's CPU, in FLOP/s; takes a tenth of a second or so.

    Args:
        size: rows and columns.
        rounds: of which the fastest counts, after one that does not count.

    Raises:
        ValueError: if one of them is not positive.
    """
    if size < 1 or rounds < 1:
        raise ValueError(f"size and rounds must be positive, got {size} and {rounds}")
    matrix = torch.ones(size, size)
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return FlopRate(2 * size**3 / min(seconds[1:]))
