"""Random numbers: Philox 4x32 (and 4x64), the generator behind `tl.rand`, `tl.randn` and `tl.randint`.

Every number is a function of the seed and its own offset, so it does not matter which program asks for it. The bits are
those of a GPU; only the logarithms and cosines of `tl.randn` may differ in the last bit. Slices that fit the
processor's cache go through all rounds at once: ten rounds, an operation at a time over a large block, would take
longer than the rest of a kernel.

Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011); Box and Muller (1958).
"""

from __future__ import annotations

import math
import operator

import numpy as np
import torch

from cme295lab.simulator import arithmetic, casts, dtypes
from cme295lab.simulator.arithmetic import Operand, binary
from cme295lab.simulator.broadcasting import common_shape, lifted, result
from cme295lab.simulator.deferred import is_pending, record, viewed_step
from cme295lab.simulator.errors import KernelTypeError
from cme295lab.simulator.language.registry import native
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.steps import Step, held_as
from cme295lab.simulator.tape import PendingBlock
from cme295lab.simulator.values import Block, scalar

_ROUNDS = 10
_SLICE = 1 << 13
_MULTIPLIERS = {  # of words 0 and 2, by width
    32: (0xD2511F53, 0xCD9E8D57),
    64: (0xD2E7470EE14C6C93, 0xCA5A826395121157),
}
_KEY_STEPS = {32: (0x9E3779B9, 0xBB67AE85), 64: (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)}
_TO_UNIFORM = {32: 4.6566127342e-10, 64: 1.0842020432385337e-19}  # a little less than 2**-31 and 2**-63
_SMALLEST_UNIFORM = 1e-7
_Blocks4 = tuple[Block, Block, Block, Block]


@native("philox_impl")
def philox_rounds(
    m: Machine, c0: Block, c1: Block, c2: Block, c3: Block, k0: Block, k1: Block, n_rounds: int = _ROUNDS
) -> _Blocks4:
    """`n_rounds` rounds of Philox on counters (c0, c1, c2, c3) with key (k0, k1), all uint32 or all uint64."""
    if c0.dtype not in (dtypes.uint32, dtypes.uint64):
        raise KernelTypeError(f"tl.philox_impl needs uint32 or uint64 counters, got {c0.dtype}")
    shape, dtype = common_shape(c0, c1, c2, c3, k0, k1), c0.dtype
    held = held_as(dtype)
    words = [lifted(x.data(m.active), len(shape)) for x in (c0, c1, c2, c3, k0, k1)]
    bits = [torch.from_numpy(np.ascontiguousarray(w)).view(held) for w in words]
    size = tuple(np.broadcast_shapes(*(tuple(b.shape[1:]) for b in bits)))

    def generate(rows: slice | None, out: torch.Tensor | None, *bits: torch.Tensor) -> torch.Tensor:
        out = torch.empty((max(b.shape[0] for b in bits), 4, *size), dtype=held) if out is None else out
        _fill(out.numpy().view(dtype.numpy), [b.numpy().view(dtype.numpy) for b in bits], n_rounds)
        return out

    if m.num_active == 1 or all(b.shape[0] == 1 for b in bits):
        numbers = generate(None, None, *bits).numpy().view(dtype.numpy)
        blocks = [result(m, np.ascontiguousarray(numbers[:, i]), dtype, shape) for i in range(4)]
    else:
        step = m.tape.append(Step(generate, bits, (4, *size), dtype), m.active)
        views = [viewed_step(m, step, operator.itemgetter((slice(None), i)), size) for i in range(4)]
        blocks = [PendingBlock(view, m.tape, shape, m.active) for view in views]
    return blocks[0], blocks[1], blocks[2], blocks[3]


def _fill(out: np.ndarray, words: list[np.ndarray], n_rounds: int) -> None:
    """All rounds for programs in the first axis of `out`; its second is for the four results."""
    rounds = _rounds_32 if out.itemsize == 4 else _rounds_64
    shape = (out.shape[0], *out.shape[2:])
    flat = [w.reshape(-1) if w.size == 1 else np.broadcast_to(w, shape).reshape(-1) for w in words]
    whole = np.empty((4, math.prod(shape)), out.dtype)
    with np.errstate(over="ignore"):
        for start in range(0, whole.shape[1], _SLICE):
            part = slice(start, start + _SLICE)
            rounds(whole[:, part], [_constant(w[part] if w.size > 1 else w) for w in flat], n_rounds)
    out[...] = np.moveaxis(whole.reshape(4, *shape), 0, 1)


def _constant(word: np.ndarray) -> np.ndarray:
    """A single number where all are the same, as keys are."""
    return word[:1] if word[0] == word[-1] and (word == word[0]).all() else word


def _rounds_32(out: np.ndarray, words: list[np.ndarray], n_rounds: int) -> None:
    """All rounds on a slice; words are held in 64 bits, so that one product gives both halves."""
    c0, c1, c2, c3 = (np.broadcast_to(w, out.shape[1:]).astype(np.uint64) for w in words[:4])
    k0, k1 = (w.astype(np.uint64) for w in words[4:])
    product_0, product_2 = np.empty_like(c0), np.empty_like(c0)
    multiplier_0, multiplier_2, step_0, step_1 = map(np.uint64, _MULTIPLIERS[32] + _KEY_STEPS[32])
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    for turn in range(n_rounds):
        np.multiply(c0, multiplier_0, out=product_0)
        np.multiply(c2, multiplier_2, out=product_2)
        np.right_shift(product_2, half, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, (k0 + np.uint64(turn) * step_0) & mask, out=c0)
        np.right_shift(product_0, half, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, (k1 + np.uint64(turn) * step_1) & mask, out=c2)
        np.bitwise_and(product_2, mask, out=c1)
        np.bitwise_and(product_0, mask, out=c3)
    out[0], out[1], out[2], out[3] = c0, c1, c2, c3


def _rounds_64(out: np.ndarray, words: list[np.ndarray], n_rounds: int) -> None:
    c0, c1, c2, c3, k0, k1 = words
    for turn in range(n_rounds):
        low_2, high_2 = _product_64(c2, _MULTIPLIERS[64][1])
        low_0, high_0 = _product_64(c0, _MULTIPLIERS[64][0])
        step_0, step_1 = (np.uint64(turn) * np.uint64(step) for step in _KEY_STEPS[64])
        c0, c1, c2, c3 = high_2 ^ c1 ^ (k0 + step_0), low_2, high_0 ^ c3 ^ (k1 + step_1), low_0
    out[0], out[1], out[2], out[3] = c0, c1, c2, c3


def _product_64(word: np.ndarray, multiplier: int) -> tuple[np.ndarray, np.ndarray]:
    """Low and high half of a 128-bit product, by halves."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    b = np.uint64(multiplier)
    low_a, high_a, low_b, high_b = word & mask, word >> half, b & mask, b >> half
    middle = high_a * low_b + ((low_a * low_b) >> half)  # at most 2**64 - 2**32
    other = low_a * high_b + (middle & mask)
    return word * b, high_a * high_b + (middle >> half) + (other >> half)


@native("philox")
def philox(
    m: Machine, seed: Operand, c0: Operand, c1: Operand, c2: Operand, c3: Operand, n_rounds: int = _ROUNDS
) -> _Blocks4:
    key = seed if isinstance(seed, Block) else scalar(seed, m.active)
    if key.dtype.is_float:
        raise KernelTypeError(f"the seed of tl.philox must be an integer, got {key.dtype}")
    counters = [c if isinstance(c, Block) else scalar(c, m.active) for c in (c0, c1, c2, c3)]
    width = counters[0].dtype.primitive_bitwidth
    if counters[0].dtype.is_float or width not in (32, 64):
        raise KernelTypeError(f"tl.philox needs 32- or 64-bit counters, got {counters[0].dtype}")
    words = [casts.bitcast(m, c, dtypes.uint32 if width == 32 else dtypes.uint64) for c in counters]
    bits = np.asarray(casts.cast(m, key, dtypes.uint64).data(m.active))
    low = bits.astype(np.uint32) if width == 32 else bits
    high = (bits >> np.uint64(32)).astype(np.uint32) if width == 32 else np.zeros_like(bits)
    k0, k1 = (result(m, word, words[0].dtype, key.shape) for word in (low, high))
    return philox_rounds(m, words[0], words[1], words[2], words[3], k0, k1, n_rounds)


@native("randint4x")
def randint4x(m: Machine, seed: Operand, offset: Operand, n_rounds: int = _ROUNDS) -> _Blocks4:
    """The counters are the low and the high half of the offset, 0 and 0."""
    where = offset if isinstance(offset, Block) else scalar(offset, m.active)
    if where.dtype.is_float:
        raise KernelTypeError(f"the offsets of tl.rand and tl.randint must be integers, got {where.dtype}")
    low, zero = casts.cast(m, where, dtypes.uint32), scalar(0, m.active, dtypes.uint32)
    high = zero
    if where.dtype.primitive_bitwidth > 32:
        upper = np.asarray(where.data(m.active)) >> where.dtype.numpy.type(32)
        high = result(m, upper.astype(np.uint32), dtypes.uint32, where.shape)
    return philox(m, seed, low, high, zero, zero, n_rounds)


@native("randint")
def randint(m: Machine, seed: Operand, offset: Operand, n_rounds: int = _ROUNDS) -> Block:
    return randint4x(m, seed, offset, n_rounds)[0]


@native("uint_to_uniform_float", "uint32_to_uniform_float")
def uniform(m: Machine, x: Block) -> Block:
    """Integers of 32 or 64 bits, spread over [0, 1)."""
    width = x.dtype.primitive_bitwidth
    if x.dtype.is_float or width not in (32, 64):
        raise KernelTypeError(f"tl.uint_to_uniform_float needs 32- or 64-bit integers, got {x.dtype}")
    m.count_float_ops(x.num_elements)

    def spread(rows: slice | None, out: torch.Tensor | None, bits: torch.Tensor) -> torch.Tensor:
        folded = bits ^ (bits >> (width - 1))  # the complement where the sign bit is set
        return (folded.float() if out is None else out.copy_(folded)).mul_(_TO_UNIFORM[width])

    if is_pending(x, m):
        return record(m, spread, [x.step], x.step.size, dtypes.float32, x.shape)
    bits = torch.from_numpy(np.ascontiguousarray(x.data(m.active)).view(f"i{width // 8}"))
    return result(m, spread(None, None, bits), dtypes.float32, x.shape)


@native("rand")
def rand(m: Machine, seed: Operand, offset: Operand, n_rounds: int = _ROUNDS) -> Block:
    return uniform(m, randint(m, seed, offset, n_rounds))


@native("rand4x")
def rand4x(m: Machine, seed: Operand, offsets: Operand, n_rounds: int = _ROUNDS) -> tuple[Block, ...]:
    return tuple(uniform(m, x) for x in randint4x(m, seed, offsets, n_rounds))


@native("pair_uniform_to_normal")
def box_muller(m: Machine, u1: Operand, u2: Operand) -> tuple[Operand, Operand]:
    """sqrt(-2 ln u1) times the cosine and the sine of 2 pi u2."""
    logarithm = arithmetic.unary(m, torch.log, binary(m, "max", _SMALLEST_UNIFORM, u1), "tl.log", transcendental=True)
    squared = binary(m, "*", -2.0, logarithm)
    radius = arithmetic.unary(m, torch.sqrt, squared, "tl.sqrt", transcendental=True)
    angle = binary(m, "*", 2 * math.pi, u2)
    if isinstance(angle, Block):
        angle.temporary = radius.temporary = False  # both are used twice
    cosine, sine = (arithmetic.unary(m, f, angle, "tl.cos", transcendental=True) for f in (torch.cos, torch.sin))
    return binary(m, "*", radius, cosine), binary(m, "*", radius, sine)


@native("randn")
def randn(m: Machine, seed: Operand, offset: Operand, n_rounds: int = _ROUNDS) -> Operand:
    first, second, _, _ = randint4x(m, seed, offset, n_rounds)
    return box_muller(m, uniform(m, first), uniform(m, second))[0]


@native("randn4x")
def randn4x(m: Machine, seed: Operand, offset: Operand, n_rounds: int = _ROUNDS) -> tuple[Operand, ...]:
    u1, u2, u3, u4 = rand4x(m, seed, offset, n_rounds)
    return (*box_muller(m, u1, u2), *box_muller(m, u3, u4))
