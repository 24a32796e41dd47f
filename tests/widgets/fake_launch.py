"""A handmade launch: the trace that flash attention leaves, computed with numpy, for tests of the pure records."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

LINES = {"q": 10, "row_max": 11, "row_sum": 12, "k": 20, "v": 21, "rescale": 30, "o": 40, "lse": 41}


@dataclass
class FakeStep:
    kind: str
    name: str
    line: int
    source: str
    first_element: int | None
    shape: tuple[int, ...]
    num_bytes: int
    value: Any = None


@dataclass
class FakeTensor:
    shape: tuple[int, ...]
    element_bytes: int

    def index_of(self, element_offset: int) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(element_offset, self.shape))


@dataclass
class FakeLaunch:
    """Causal or full attention of one or more heads; every step as the kernel of this course does it."""

    seq: int
    head_dim: int
    block: int
    causal: bool
    heads: int = 1
    kernel: str = "forward_kernel"
    sram_peak_bytes: int = 12_345
    tensors: dict[str, FakeTensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        shape = (1, self.heads, self.seq, self.head_dim)
        self.q, self.k = generator.standard_normal((2, *shape))
        self.tensors = {name: FakeTensor(shape, 2) for name in "qkvo"} | {"lse": FakeTensor(shape[:3], 4)}
        self.constants = {
            "BLOCK_M": self.block,
            "BLOCK_N": self.block,
            "HEAD_DIM": self.head_dim,
            "CAUSAL": self.causal,
        }
        self.grid = (math.ceil(self.seq / self.block), self.heads, 1)
        self.num_programs = self.grid[0] * self.heads

    def scores(self, head: int) -> np.ndarray:
        """Scaled, masked scores of one head, (seq, seq)."""
        scores = self.q[0, head] @ self.k[0, head].T / math.sqrt(self.head_dim)
        return np.where(np.tri(self.seq, dtype=bool), scores, -np.inf) if self.causal else scores

    def _move(self, kind: str, name: str, head: int, row: int) -> FakeStep:
        tensor = self.tensors[name]
        num_rows = min(self.block, self.seq - row)
        first = (head * self.seq + row) * (self.head_dim if name != "lse" else 1)
        shape = (self.block, self.head_dim) if name != "lse" else (self.block,)
        width = self.head_dim if name != "lse" else 1
        source = f"    tl.{kind}({name}_ptrs)"
        return FakeStep(kind, name, LINES[name], source, first, shape, num_rows * width * tensor.element_bytes)

    def _assign(self, name: str, value: np.ndarray) -> FakeStep:
        return FakeStep("assign", name, LINES[name], f"    {name} = ...", None, value.shape, 0, value)

    def walk(self, program: tuple[int, int, int]) -> list[FakeStep]:
        block_index, head, _ = program
        start = block_index * self.block
        row_max, row_sum = np.full(self.block, -np.inf), np.zeros(self.block)
        steps = [
            self._move("load", "q", head, start),
            self._assign("row_max", row_max),
            self._assign("row_sum", row_sum),
        ]
        rows = np.full((self.block, self.seq), 0.0)
        rows[: self.seq - start] = self.scores(head)[start : start + self.block]
        end = min(start + self.block, self.seq) if self.causal else self.seq
        for first, last in pairwise([*range(0, end, self.block), end]):
            steps += [self._move("load", "k", head, first), self._move("load", "v", head, first)]
            tile = rows[:, first:last] * math.log2(math.e)
            new_max = np.maximum(row_max, tile.max(1))
            rescale = np.exp2(row_max - new_max)
            row_sum = row_sum * rescale + np.exp2(tile - new_max[:, None]).sum(1)
            row_max = new_max
            steps += [
                self._assign("rescale", rescale),
                self._assign("row_sum", row_sum),
                self._assign("row_max", row_max),
            ]
        return [*steps, self._move("store", "o", head, start), self._move("store", "lse", head, start)]
