"""The formulas that papers count with: 6ND, PaLM, Kaplan, Megatron, Korthikanti.

They count the same products and differ in what they leave out:

    formula          parameters N            attention, forward per token   head      recomputation
    6ND              all                     none                           in N      8ND
    PaLM             all                     4 L H Q T (all scores)         in N      none
    Kaplan           without embeddings      2 L T d (half of the scores)   none      none
    Megatron         12 L h²                 4 L h s                        2 h V     all layers: 4 passes, not 3
    Korthikanti      12 L h²                 4 L h s                        2 h v     the core, or none

N in 6ND stands for matrices that multiply each token. A table of embeddings that is not the head is in N and multiplies
nothing; where it is the head ("tied"), it is in N once and multiplies once. So tied embeddings count once, and adding
the head to N counts them twice.

Source: Kaplan et al. 2020, Table 1; Narayanan et al. 2021, §3.2, §5.1 and appendix; Chowdhery et al. 2022, App. B;
Korthikanti et al. 2022, App. A.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from cme295lab.pretraining.flops.quantities import FlopCount, FlopRate, positive, whole

PF_DAY = FlopCount(1e15 * 86_400)
"""A petaflop/s-day: 1e15 FLOP per second for a day, a count in spite of its name."""


def approximate_training_flops(
    num_parameters: float, num_tokens: float, *, recompute: Literal["none", "full"] = "none"
) -> FlopCount:
    """6ND: 2 FLOP per parameter and token forward, 4 backward; 8ND where all layers are computed again.

    Args:
        num_parameters: N; of a mixture of experts, those that a token passes.
        num_tokens: D.
        recompute: "none" or "full". ("selective" computes attention again, which 6ND leaves out.)

    Raises:
        TypeError, ValueError: numbers that are not positive, or another kind of recomputation.

    Example, GPT-3: 3.14e23 FLOP, 3,640 PF-days.
        >>> compute = approximate_training_flops(174.6e9, 300e9)
        >>> compute, round(compute / PF_DAY)
        (314 ZFLOP, 3637)
    """
    if recompute not in ("none", "full"):
        raise ValueError(
            f"recompute must be 'none' (6ND) or 'full' (8ND), got {recompute!r}: 'selective' computes attention again, "
            f"which 6ND leaves out; use training_flops(config, ...)"
        )
    for name, value in (("num_parameters", num_parameters), ("num_tokens", num_tokens)):
        if isinstance(value, FlopCount | FlopRate):
            raise TypeError(f"{name} must be a number of parameters or tokens, got {value!r}")
    factor = 6 if recompute == "none" else 8
    return FlopCount(factor * positive("num_parameters", num_parameters) * positive("num_tokens", num_tokens))


def palm_flops_per_token(
    num_parameters: int, *, num_layers: int, num_heads: int, head_dim: int, seq: int, with_attention: bool = True
) -> FlopCount:
    """6N + 12 L H Q T: training on one token, with all scores, masked ones too.

    Args:
        num_parameters: N.
        num_layers, num_heads, head_dim, seq: L, H, Q, T.
        with_attention: False leaves the second term out.

    Raises:
        TypeError, ValueError: a number that is no positive integer.

    Source: Chowdhery et al. 2022, App. B.
    """
    core = 12 * _product(num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, seq=seq)
    return FlopCount(6 * whole("num_parameters", num_parameters) + (core if with_attention else 0))


def kaplan_flops_per_token(num_parameters: int, *, num_layers: int, attention_dim: int, seq: int) -> FlopCount:
    """3 (2N + 2 n_layer n_ctx d_attn): training on one token; the second term is half of PaLM's.

    Args:
        num_parameters: N without embeddings.
        num_layers, attention_dim, seq: n_layer, d_attn, n_ctx.

    Raises:
        TypeError, ValueError: a number that is no positive integer.

    Source: Kaplan et al. 2020, Table 1.
    """
    core = 2 * _product(num_layers=num_layers, attention_dim=attention_dim, seq=seq)
    return FlopCount(3 * (2 * whole("num_parameters", num_parameters) + core))


def megatron_parameters(num_layers: int, dim: int, *, vocab_size: int = 51_200, seq: int = 2048) -> int:
    """P = 12 l h² (1 + 13 / 12h + (V + s) / 12lh), rounded to a whole parameter (it always is one).

    Args:
        num_layers, dim, vocab_size, seq: l, h, V, s.

    Raises:
        TypeError, ValueError: a number that is no positive integer.

    Source: Narayanan et al. 2021, eq. 2.
    """
    h, vocab, positions = whole("dim", dim), whole("vocab_size", vocab_size), whole("seq", seq)
    layers = whole("num_layers", num_layers)
    factor = 1 + Fraction(13, 12 * h) + Fraction(vocab + positions, 12 * layers * h)
    return int(12 * layers * h**2 * factor)


def megatron_flops(num_layers: int, dim: int, *, batch: int, vocab_size: int = 51_200, seq: int = 2048) -> FlopCount:
    """F = 96 B s l h² (1 + s / 6h + V / 16lh): an iteration with full recomputation, four passes through each layer.

    Args:
        num_layers, dim, batch, vocab_size, seq: l, h, B, V, s.

    Raises:
        TypeError, ValueError: a number that is no positive integer.

    Source: Narayanan et al. 2021, eq. 3.
    """
    tokens = _product(batch=batch, seq=seq)
    layers, h, vocab = whole("num_layers", num_layers), whole("dim", dim), whole("vocab_size", vocab_size)
    factor = 1 + Fraction(seq, 6 * h) + Fraction(vocab, 16 * layers * h)
    return FlopCount(96 * tokens * layers * h**2 * factor)


def korthikanti_flops(
    num_layers: int,
    dim: int,
    *,
    batch: int,
    vocab_size: int = 51_200,
    seq: int = 2048,
    recompute: Literal["none", "selective"] = "none",
) -> FlopCount:
    """72 B L s h² (1 + s / 6h + v / 12hL) of an iteration: model FLOP; with s / 3h, those of selective recomputation.

    The second run of the core is one forward pass, a third of what its forward and backward pass take together. So
    s / 6h + s / 18h = 2s / 9h are executed. The paper has s / 3h, three times as large an addition: its 2.7% for GPT-3
    are 0.9% by PyTorch's counter (`flops_per_token(..., recompute="selective")`). This function is the paper's.

    Args:
        num_layers, dim, batch, vocab_size, seq: L, h, B, v, s.
        recompute: "none" or "selective".

    Raises:
        TypeError, ValueError: a number that is no positive integer, or another kind of recomputation.

    Source: Korthikanti et al. 2022, App. A, eq. 7 and 8.
    """
    if recompute not in ("none", "selective"):
        raise ValueError(f"recompute must be 'none' or 'selective', got {recompute!r}: full is megatron_flops")
    tokens = _product(batch=batch, seq=seq)
    layers, h, vocab = whole("num_layers", num_layers), whole("dim", dim), whole("vocab_size", vocab_size)
    core = Fraction(seq, (6 if recompute == "none" else 3) * h)
    return FlopCount(72 * tokens * layers * h**2 * (1 + core + Fraction(vocab, 12 * layers * h)))


def _product(**counts: int) -> int:
    result = 1
    for name, value in counts.items():
        result *= whole(name, value)
    return result
