"""Random numbers: the rounds of Philox 4x32, the generator behind `tl.rand`, `tl.randn` and `tl.randint`.

Triton's own source of everything around them runs as it is. The rounds are here because ten of them, an operation at a
time over a large block, would take longer than the rest of a kernel: slices that fit the processor's cache go through
all rounds at once.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).
"""

from __future__ import annotations

import numpy as np

from cme295lab.simulator import dtypes
from cme295lab.simulator.broadcasting import common_shape, lifted, result
from cme295lab.simulator.errors import UnsupportedFeatureError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block

_MULTIPLIER_0, _MULTIPLIER_2 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)
_SLICE = 1 << 14


@native("philox_impl")
def philox_rounds(
    m: Machine, c0: Block, c1: Block, c2: Block, c3: Block, k0: Block, k1: Block, n_rounds: int = 10
) -> tuple[Block, ...]:
    """`n_rounds` rounds of Philox 4x32 on counters (c0, c1, c2, c3) with key (k0, k1), all uint32."""
    if c0.dtype != dtypes.uint32:
        raise UnsupportedFeatureError("64-bit Philox counters", "pass 32-bit offsets to tl.rand")
    shape = common_shape(c0, c1, c2, c3, k0, k1)
    words = [np.asarray(lifted(x.data(m.active), len(shape))) for x in (c0, c1, c2, c3, k0, k1)]
    size = np.broadcast_shapes(*(w.shape for w in words))
    counters = [np.broadcast_to(w, size).reshape(-1) for w in words[:4]]
    keys = [np.broadcast_to(w, size).reshape(-1) if w.size > 1 else w.reshape(-1) for w in words[4:]]
    out = np.empty((4, counters[0].size), np.uint32)
    for start in range(0, out.shape[1], _SLICE):
        part = slice(start, start + _SLICE)
        out[:, part] = _rounds([c[part] for c in counters], [k[part] if k.size > 1 else k for k in keys], n_rounds)
    return tuple(result(m, word.reshape(size), dtypes.uint32, shape) for word in out)


def _rounds(counters: list[np.ndarray], keys: list[np.ndarray], n_rounds: int) -> list[np.ndarray]:
    c0, c1, c2, c3 = counters
    with np.errstate(over="ignore"):
        for turn in range(n_rounds):
            k0, k1 = (k + np.uint32(turn) * step for k, step in zip(keys, _KEY_STEPS, strict=True))
            low_2, high_2 = _product(c2, _MULTIPLIER_2)
            low_0, high_0 = _product(c0, _MULTIPLIER_0)
            c0, c1, c2, c3 = high_2 ^ c1 ^ k0, low_2, high_0 ^ c3 ^ k1, low_0
    return [c0, c1, c2, c3]


def _product(word: np.ndarray, multiplier: np.uint64) -> tuple[np.ndarray, np.ndarray]:
    """Low and high half of a 64-bit product."""
    product = word.astype(np.uint64) * multiplier
    return product.astype(np.uint32), (product >> np.uint64(32)).astype(np.uint32)
