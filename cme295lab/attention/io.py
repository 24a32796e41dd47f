"""How much memory traffic attention causes, on paper: exact counts of the published pseudocode, for any N, d and M.

Counts are in elements, for one head with as many queries as keys, and assume what the pseudocode assumes: a tile is
read from memory (HBM) each time it is loaded, and what is on chip costs nothing. Notation of the papers: N is the
sequence length, d the head dim, M the on-chip memory in *elements*, Bc and Br the keys and queries per tile, Tc and Tr
how many such tiles there are. Sizes need not divide.

    standard              forward  4 N^2 + 4 N d                  backward  7 N^2 + 8 N d
    FlashAttention        forward  2 N d + Tc (3 N d + 4 N)       backward  4 N d + Tc (5 N d + 2 N)
    FlashAttention-2      forward  2 N d + 2 Tr N d + N           backward  9 N d + 3 N + Tc (2 N d + 2 N) + 2 Tr N d
    lower bound           N^2 d^2 / M, up to a constant

FlashAttention's forward pass is 12 N^2 d^2 / M to leading order, so for long sequences it moves less than standard
attention if and only if M > 3 d^2, and M / (3 d^2) times less. Plain Python numbers; nothing here imports torch.

Sources: Dao et al., FlashAttention (2022), Algorithms 0 to 4, Theorem 2 and Proposition 3; Dao, FlashAttention-2
(2023), Algorithms 1, 2.
"""

from __future__ import annotations

from dataclasses import dataclass


def standard_forward_elements(n: int, d: int) -> int:
    """4 N^2 + 4 N d: read Q and K, write S; read S, write P; read P and V, write O (FlashAttention, Algorithm 0)."""
    _check(n=n, d=d)
    return 4 * n * n + 4 * n * d


def standard_backward_elements(n: int, d: int) -> int:
    """7 N^2 + 8 N d: P, dO -> dV; dO, V -> dP; P, dP -> dS; dS, K -> dQ; dS, Q -> dK (FlashAttention, Algorithm 3)."""
    _check(n=n, d=d)
    return 7 * n * n + 8 * n * d


def flash1_block_sizes(d: int, m: int) -> tuple[int, int]:
    """Bc = ceil(M / 4d) keys and Br = min(Bc, d) queries per tile (FlashAttention, Algorithm 1, line 1).

    Args:
        d: head dim.
        m: on-chip memory in elements (bytes divided by the bytes of an element), at least d.

    Returns:
        (Bc, Br).
    """
    _check(d=d, m=m)
    if m < d:
        raise ValueError(
            f"m must be at least d, the on-chip memory must hold one row of a matrix; got m={m} and d={d} elements"
        )
    block_keys = _ceil_div(m, 4 * d)
    return block_keys, min(block_keys, d)


def flash1_forward_elements(n: int, d: int, m: int) -> int:
    """2 N d + Tc (3 N d + 4 N): K, V once; per tile of keys, Q, O, l, m read and O, l, m written (Algorithm 1)."""
    _check(n=n)
    num_key_tiles = _ceil_div(n, flash1_block_sizes(d, m)[0])
    return 2 * n * d + num_key_tiles * (3 * n * d + 4 * n)


def flash1_backward_elements(n: int, d: int, m: int) -> int:
    """4 N d + Tc (5 N d + 2 N): K, V, dK, dV once; per tile of keys, Q, O, dO, dQ, l, m read, dQ written (Alg. 4)."""
    _check(n=n)
    num_key_tiles = _ceil_div(n, flash1_block_sizes(d, m)[0])
    return 4 * n * d + num_key_tiles * (5 * n * d + 2 * n)


def flash2_forward_elements(n: int, d: int, block_m: int, *, causal: bool = False, block_n: int = 1) -> int:
    """2 N d + 2 Tr N d + N: Q and O once; per tile of queries, all of K and V; one log-sum-exp per query.

    Args:
        n: sequence length.
        d: head dim.
        block_m: queries per tile, Br.
        causal: a tile of queries reads no further than its last visible key...
        block_n: ... rounded up to whole tiles of keys, Bc. Without a causal mask it makes no difference.
    """
    _check(n=n, d=d, block_m=block_m, block_n=block_n)
    return 2 * n * d + 2 * d * _keys_read(n, block_m, block_n, causal) + n


def flash2_backward_elements(n: int, d: int, block_m: int, block_n: int) -> int:
    """9 N d + 3 N + Tc (2 N d + 2 N) + 2 Tr N d, without a causal mask: what this course's three backward kernels move.

    delta: O, dO -> delta. dK/dV: K, V -> dK, dV once, and per tile of keys all of Q, dO, lse, delta. dQ: Q, dO, lse,
    delta -> dQ once, and per tile of queries all of K and V.

    Args:
        n: sequence length.
        d: head dim.
        block_m: queries per tile of the dQ kernel.
        block_n: keys per tile of the dK/dV kernel.
    """
    _check(n=n, d=d, block_m=block_m, block_n=block_n)
    delta = 2 * n * d + n
    key_value_grads = 4 * n * d + _ceil_div(n, block_n) * (2 * n * d + 2 * n)
    query_grad = 3 * n * d + 2 * n + _ceil_div(n, block_m) * 2 * n * d
    return delta + key_value_grads + query_grad


def lower_bound_elements(n: int, d: int, m: int) -> float:
    """N^2 d^2 / M, without its constant: no exact algorithm is of lower order for all M in [d, N d] (Proposition 3)."""
    _check(n=n, d=d, m=m)
    return n * n * d * d / m


def crossover_sram_elements(d: int) -> int:
    """3 d^2: the M, in elements, above which FlashAttention beats standard attention (forward, long sequences)."""
    _check(d=d)
    return 3 * d * d


def asymptotic_ratio(d: int, m: int) -> float:
    """M / (3 d^2): how many times less traffic FlashAttention's forward pass has than the standard one as N grows."""
    _check(d=d, m=m)
    return m / crossover_sram_elements(d)


def attention_flops(
    n: int, d: int, heads: int = 1, batch: int = 1, causal: bool = False, backward: bool = False, recompute: bool = True
) -> float:
    """FLOPs of the matrix products: 4 N^2 d per head forward, half of it with a causal mask.

    Args:
        n: sequence length of queries and keys.
        d: head dim.
        heads: query heads.
        batch: sequences.
        causal: count half of the scores, the convention of the FlashAttention authors.
        backward: count forward and backward pass together, not the forward pass alone.
        recompute: the backward pass forms S again, which makes it 5 products (2.5 x forward) rather than the 4 (2 x) of
            standard attention.

    Source: Dao et al., FlashAttention (2022), Theorem 1 and Appendix B.
    """
    _check(n=n, d=d, heads=heads, batch=batch)
    forward = 4 * n * n * d * heads * batch / (2 if causal else 1)
    if not backward:
        return forward
    return forward * (3.5 if recompute else 3.0)


@dataclass(frozen=True, kw_only=True)
class TrafficStep:
    """One step of standard attention, and what it reads and writes.

    Attributes:
        name: what is computed.
        direction: "forward" or "backward".
        score_matrices: how many N x N matrices of elements are moved.
        row_matrices: how many N x d matrices are moved.
        byte_masks: how many N x N masks of 1 byte are moved.
    """

    name: str
    direction: str
    score_matrices: int
    row_matrices: int
    byte_masks: int = 0


STANDARD_STEPS = (
    TrafficStep(name="S = scale Q Kᵀ", direction="forward", score_matrices=1, row_matrices=2),
    TrafficStep(name="S += mask", direction="forward", score_matrices=2, row_matrices=0),
    TrafficStep(name="P = softmax(S)", direction="forward", score_matrices=2, row_matrices=0),
    TrafficStep(name="P~ = dropout(P)", direction="forward", score_matrices=2, row_matrices=0, byte_masks=1),
    TrafficStep(name="O = P~ V", direction="forward", score_matrices=1, row_matrices=2),
    TrafficStep(name="dV = P~ᵀ dO", direction="backward", score_matrices=1, row_matrices=2),
    TrafficStep(name="dP~ = dO Vᵀ", direction="backward", score_matrices=1, row_matrices=2),
    TrafficStep(name="dP = dropout'(dP~)", direction="backward", score_matrices=2, row_matrices=0, byte_masks=1),
    TrafficStep(name="dS = P (dP - rowsum(P dP))", direction="backward", score_matrices=3, row_matrices=0),
    TrafficStep(name="dQ = scale dS K", direction="backward", score_matrices=1, row_matrices=2),
    TrafficStep(name="dK = scale dSᵀ Q", direction="backward", score_matrices=1, row_matrices=2),
)


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Bytes moved by one forward and backward pass.

    Attributes:
        standard_bytes: STANDARD_STEPS; with 2-byte elements 18 NN + 12 ND, NN and ND being the bytes of all N x N and N
            x d matrices.
        flash_bytes: Algorithms 1 and 4 with statistics l and m in fp32.
        flash_initialised_bytes: the same, and the zeros that Algorithm 1 first writes to O, l and m, and Algorithm 4 to
            dQ.
    """

    standard_bytes: int
    flash_bytes: int
    flash_initialised_bytes: int


def paper_table_bytes(
    *,
    batch: int = 64,
    heads: int = 16,
    n: int = 1024,
    d: int = 64,
    element_bytes: int = 2,
    sram_bytes: int = 192 * 1024,
) -> PaperTable:
    """An accounting that reproduces the memory traffic of FlashAttention's Figure 2 (left): 40.3 GB standard, 4.4 GB
    flash.

    The paper does not state its accounting, and this match with 4.4 is not the only one. Standard attention here adds a
    mask and drops out in passes of their own, with a 1-byte mask for dropout; flash is Algorithm 1 and Algorithm 4 with
    blocks for `sram_bytes`.

    Args:
        batch, heads, n, d: the size; by default GPT-2 medium as in the figure.
        element_bytes: bytes per element, 2 for fp16.
        sram_bytes: on-chip memory of one streaming multiprocessor; 192 KiB on an A100.

    Source: Dao et al., FlashAttention (2022), Figure 2 (left).
    """
    _check(batch=batch, heads=heads, n=n, d=d, element_bytes=element_bytes, sram_bytes=sram_bytes)
    scores, rows, num_heads = n * n, n * d, batch * heads
    standard = sum(
        (step.score_matrices * scores + step.row_matrices * rows) * element_bytes + step.byte_masks * scores
        for step in STANDARD_STEPS
    )
    m = sram_bytes // element_bytes
    num_key_tiles = _ceil_div(n, flash1_block_sizes(d, m)[0])
    statistics = 6 * num_key_tiles * n  # of the elements counted below, those that are l or m: 4 bytes each
    elements = flash1_forward_elements(n, d, m) + flash1_backward_elements(n, d, m)
    flash = (elements - statistics) * element_bytes + statistics * 4
    zeros = 2 * rows * element_bytes + 2 * n * 4
    return PaperTable(
        standard_bytes=standard * num_heads,
        flash_bytes=flash * num_heads,
        flash_initialised_bytes=(flash + zeros) * num_heads,
    )


def _keys_read(n: int, block_m: int, block_n: int, causal: bool) -> int:
    """Keys that the tiles of queries read, added up."""
    if not causal:
        return _ceil_div(n, block_m) * n
    return sum(min(n, _ceil_div(min(n, start + block_m), block_n) * block_n) for start in range(0, n, block_m))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _check(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
