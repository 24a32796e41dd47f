"""Hints to the exercises, from a nudge to nearly the answer."""

HINTS: dict[str, tuple[str, ...]] = {
    "flash_attention/1": (
        "Both blocks measured their exponentials from their own maximum. Before you add them, bring them to a "
        "common one.",
        "exp(s - m) = exp(s - m_a) * exp(m_a - m). So everything that was measured from m_a is multiplied by "
        "exp(m_a - m).",
        "m = torch.maximum(m_a, m_b); the weights are exp(m_a - m) and exp(m_b - m); l and o are the two weighted "
        "sums. "
        "o has one more dimension than m: use [:, None].",
    ),
    "flash_attention/2": (
        "Part 1 does the work: keep one state (m, l, o) per query, and merge each block of keys into it.",
        "Start from m = -inf, l = 0, o = 0 in float32. For each block of keys: scores = q @ k_block.mT * scale; "
        "mask; then the "
        "merge. Divide by l once, after the last block.",
        "The last block may be short: k[..., start:start + block_size, :] handles that by itself. For the causal "
        "mask compare "
        "torch.arange over the queries of this tile with torch.arange over its keys: never build the mask for all N "
        "x N.",
    ),
    "flash_attention/3": (
        "It is Part 2 again: load one block of keys and values, score, mask, new maximum, rescale, add.",
        "Columns beyond seq_len need two things: mask= in tl.load, so that nothing outside is read, and -inf as "
        "their score, so "
        "that they weigh nothing.",
        "alpha = tl.exp(m - m_new) rescales both l and acc. tl.dot(p.to(v.dtype), v) feeds the tensor cores in half "
        "precision "
        "and accumulates in float32. Do not forget m = m_new.",
    ),
    "flash_attention/4": (
        "Ask of each tensor: how often does each of its elements cross the line between HBM and the chip?",
        "Standard: three kernels, and each reads its inputs and writes its output once. S is written and read, and "
        "so is P. "
        "Flash: q and o cross once, but every tile of queries reads all of k and v.",
        "Flash has ceil(seq / block_m) tiles of queries. The log-sum-exp is one float32 number per query, whatever "
        "the dtype of "
        "the rest. block_n appears nowhere.",
    ),
}
