"""When programs run on a GPU, as far as the cache model needs it: the order of their accesses.

Programs start in grid order (axis 0 fastest) in `SMs x CTAs per SM` slots. All running programs advance in step: in a
round each does its next access, in grid order. A program that has done its last one leaves its slot to the next
program of the grid, which begins in the round after. A GPU promises no order; this is the plainest one in which
programs that start together stay together.
"""

from __future__ import annotations

import heapq

import numpy as np

from cme295lab.hardware import Device

_MAX_THREADS_PER_SM, _THREADS_PER_CTA = 2048, 128


def ctas_that_fit(device: Device, sram_peak_bytes: int) -> int:
    """CTAs (programs) that an SM is taken to run at a time: as many as its registers and SRAM can hold of the block
    bytes that were counted, at least 1, and at most 16, which is 2048 threads at Triton's default of 4 warps.

    A compile report knows better: it sees pipelining, which needs more, and fusion, which needs less.
    """
    limit = _MAX_THREADS_PER_SM // _THREADS_PER_CTA
    return min(limit, max(1, device.on_chip_bytes_per_sm // max(sram_peak_bytes, 1)))


def first_rounds(num_accesses: np.ndarray, num_slots: int) -> np.ndarray:
    """The round in which each program does its first access, given how many it does."""
    lengths = np.maximum(num_accesses, 1)
    if not len(lengths) or (lengths == lengths[0]).all():
        return np.arange(len(lengths)) // num_slots * (lengths[0] if len(lengths) else 1)
    start = np.zeros(len(lengths), np.int64)
    free = lengths[:num_slots].tolist()
    heapq.heapify(free)
    for program, length in enumerate(lengths[num_slots:].tolist(), num_slots):
        start[program] = free[0]
        heapq.heapreplace(free, free[0] + length)
    return start


def in_order(program: np.ndarray, turn: np.ndarray, num_accesses: np.ndarray, num_slots: int) -> np.ndarray:
    """The order of accesses, given by program and turn: indices into them."""
    rounds = first_rounds(num_accesses, num_slots)[program] + turn
    return np.argsort(rounds * len(num_accesses) + program, kind="stable")
