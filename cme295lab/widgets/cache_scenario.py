"""What the L2 cache makes of a tiled matrix product: bytes asked for, found in L2, and read from DRAM, tile by tile.

One pure function, `cache_scenario`, and the record it returns. The cache and the order of programs are the simulator's
own (`simulator.cost`); what is left out is the kernel: its accesses are written down tile by tile, so that no kernel
has to run. A test holds the numbers against a launch of the real one.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from cme295lab.hardware import Device, get_device
from cme295lab.simulator.cost.l2 import Atoms, replay
from cme295lab.simulator.cost.schedule import in_order
from cme295lab.simulator.cost.sectors import LINE_BYTES, SECTOR_BYTES
from cme295lab.units import MiB

TILE = 128  # rows and columns of every tile: of A, of B and of C
INNER_TILES = 8  # tiles of the inner dimension: 1,024 columns of A and rows of B
TILE_BYTES = TILE * TILE * 2  # float16
_TILE_LINES = TILE_BYTES // LINE_BYTES
_TILE_SECTORS = int.from_bytes(b"\x0f" * _TILE_LINES, "little")  # all four sectors of every line


@dataclass(frozen=True, kw_only=True)
class CacheScenario:
    """A product C = A B of float16 matrices with 1,024 inner columns, in tiles of 128 × 128, through an L2 cache.

    Attributes:
        tiles: tiles along each side of C.
        group: rows of tiles that programs go down before they turn to the next column; 1 is row by row.
        ctas_per_sm, device: the GPU runs device.num_sms × ctas_per_sm programs at a time.
        l2_bytes: capacity of the cache.
        num_running: programs that run at a time.
        a_reads, b_reads: how often each tile was read from DRAM, (tiles, inner tiles) and (inner tiles, tiles).
        hit_share: share of its bytes of A and B that the program of each tile of C found in L2, (tiles, tiles).
        start: the round in which the program of each tile of C was started: equal for programs that start together.
        written_bytes: written back to DRAM.
    """

    tiles: int
    group: int
    ctas_per_sm: int
    device: str
    l2_bytes: int
    num_running: int
    a_reads: np.ndarray = field(compare=False)
    b_reads: np.ndarray = field(compare=False)
    hit_share: np.ndarray = field(compare=False)
    start: np.ndarray = field(compare=False)
    written_bytes: int

    @property
    def size(self) -> int:
        """Rows of A, and columns of B."""
        return self.tiles * TILE

    @property
    def requested_bytes(self) -> int:
        """Bytes of A and B that all programs ask for."""
        return 2 * self.tiles**2 * INNER_TILES * TILE_BYTES

    @property
    def dram_read_bytes(self) -> int:
        """Bytes of A and B that come from DRAM."""
        return int(self.a_reads.sum() + self.b_reads.sum()) * TILE_BYTES

    @property
    def hit_bytes(self) -> int:
        """Bytes of A and B that L2 held already."""
        return self.requested_bytes - self.dram_read_bytes

    @property
    def distinct_bytes(self) -> int:
        """A and B once: no order of programs can read less."""
        return 2 * self.tiles * INNER_TILES * TILE_BYTES

    @property
    def first_wave(self) -> tuple[int, int]:
        """Rows of tiles of A and columns of tiles of B that the programs of the first wave need."""
        first = self.start == 0
        return int(first.any(1).sum()), int(first.any(0).sum())


def grouped_order(tiles: int, group: int) -> np.ndarray:
    """Row and column of C's tile that each program computes, (tiles², 2).

    Args:
        tiles: tiles along each side.
        group: rows of tiles in a group; the last group may have fewer.
    """
    program = np.arange(tiles * tiles)
    first = program // (group * tiles) * group
    within = program % (group * tiles)
    height = np.minimum(group, tiles - first)
    return np.stack([first + within % height, within // height], axis=1)


@functools.lru_cache(maxsize=512)
def cache_scenario(
    *, tiles: int = 16, group: int = 1, ctas_per_sm: int = 1, l2_bytes: int = 2 * MiB, device: str | Device = "A100"
) -> CacheScenario:
    """Run the accesses of all programs through the cache model.

    Args:
        tiles: tiles of 128 along each side of C.
        group: rows of tiles in a group.
        ctas_per_sm: programs that an SM runs at a time.
        l2_bytes: capacity of the cache.
        device: GPU, for its number of SMs.

    Raises:
        ValueError: if a number is below 1 or the GPU is unknown.
    """
    for name, value in (("tiles", tiles), ("group", group), ("ctas_per_sm", ctas_per_sm), ("l2_bytes", l2_bytes)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    gpu = get_device(device)
    slots = gpu.num_sms * ctas_per_sm
    place = grouped_order(tiles, group)
    num_programs, turns = len(place), 2 * INNER_TILES + 1
    program, turn, atom = _accesses(place, tiles)
    order = in_order(program, turn, np.full(num_programs, turns), slots)
    everything = np.arange(len(program))
    tables = Atoms(everything, np.arange(len(program) + 1), atom, np.full(len(program), _TILE_LINES),
                   [_TILE_SECTORS] * len(program))  # fmt: skip
    # Counted under a number for every access, so that the counts can be added up by tile and by program.
    kinds = ["store" if t == turns - 1 else "load" for t in range(turns)] * num_programs
    found = replay(tables, order, kinds, everything, everything.tolist(), l2_bytes // LINE_BYTES)
    misses = np.array([found[i].read for i in range(len(program))]) * SECTOR_BYTES // TILE_BYTES
    written = sum(sectors.written for sectors in found.values()) * SECTOR_BYTES
    by_program = misses.reshape(num_programs, turns)[:, :-1].sum(1)
    reads = np.bincount(atom, misses)[: 2 * tiles * INNER_TILES].astype(int).reshape(2, -1)
    hit_share, start = np.zeros((tiles, tiles)), np.zeros((tiles, tiles), int)
    hit_share[place[:, 0], place[:, 1]] = 1 - by_program / (2 * INNER_TILES)
    start[place[:, 0], place[:, 1]] = np.arange(num_programs) // slots
    return CacheScenario(
        tiles=tiles, group=group, ctas_per_sm=ctas_per_sm, device=gpu.name, l2_bytes=l2_bytes, num_running=slots,
        a_reads=reads[0].reshape(tiles, INNER_TILES), b_reads=reads[1].reshape(INNER_TILES, tiles),
        hit_share=hit_share, start=start, written_bytes=written,
    )  # fmt: skip


def _accesses(place: np.ndarray, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Program, turn and tile of every access: A and B in turn along the inner dimension, then the store of C."""
    row, col = place[:, :1], place[:, 1:]
    k = np.arange(INNER_TILES)[None, :]
    size = tiles * INNER_TILES
    loads = np.stack([row * INNER_TILES + k, size + k * tiles + col], axis=2).reshape(len(place), -1)
    atom = np.concatenate([loads, 2 * size + row * tiles + col], axis=1)
    program, turn = np.indices(atom.shape)
    return program.reshape(-1), turn.reshape(-1), atom.reshape(-1)
