"""Activation memory of a transformer layer as a published table counts it.

The table is about Megatron's GPT: multi-head attention with its matrices in memory, a GELU MLP of 4h, LayerNorm,
dropout in three places, 16-bit activations, masks of one byte, statistics of the norms neglected. With s tokens, b
sequences, h the width, a heads and t ranks of tensor parallelism, bytes of one layer on one rank:

    no parallelism                                  sbh (34 + 5 a s / h)
    tensor                                          sbh (10 + 24/t + 5 a s / (h t))
    tensor + sequence                               sbh/t (34 + 5 a s / h)
    tensor + selective recomputation                sbh (10 + 24/t)
    tensor + sequence + selective recomputation     34 sbh/t
    full recomputation                              2 sbh

34 = 11 (attention) + 19 (MLP) + 4 (two norms); 5 = 2 (softmax) + 1 (dropout's mask) + 2 (its output).

How that differs from what the course's model keeps (`activations`): the table keeps each product's input sharded under
sequence parallelism, and so do we; it knows no SwiGLU, no grouped keys and no flash attention; its "selective" keeps
Q, K, V and drops the rest of the core, as ours does. For its own shape both come to the same number but for the
statistics.

Source: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", §4 and Table 2.
"""

from __future__ import annotations

from fractions import Fraction

from cme295lab.memory.formulas.setting import ParallelConfig, Recompute, check_count
from cme295lab.transformer.config import ModelConfig


def layer_bytes(
    config: ModelConfig,
    *,
    micro_batch: int,
    seq: int,
    tensor: int = 1,
    sequence_parallel: bool = False,
    recompute: Recompute = "none",
) -> Fraction:
    """Bytes that one layer keeps on one rank, by Table 2.

    Full recomputation keeps the layer's input whole, 2sbh, as the table has it; with sequence parallelism it could be
    divided by t.

    Args:
        config: for its dim and num_heads alone.
        micro_batch: b.
        seq: s.
        tensor: t.
        sequence_parallel: whether norms, dropout and residuals are split over the same ranks.
        recompute: "none", "selective" or "full".

    Raises:
        TypeError, ValueError: a count that is no positive integer, or an unknown kind of recomputation.
    """
    for name, value in (("micro_batch", micro_batch), ("seq", seq), ("tensor", tensor)):
        check_count(name, value)
    if recompute not in ("none", "selective", "full"):
        raise ValueError(f"recompute must be 'none', 'selective' or 'full', got {recompute!r}")
    sbh = seq * micro_batch * config.dim
    if recompute == "full":
        return Fraction(2 * sbh)
    whole = Fraction(10, tensor if sequence_parallel else 1)
    core = scores_term(config, seq=seq) / tensor if recompute == "none" else 0
    return sbh * (whole + Fraction(24, tensor) + core)


def scores_term(config: ModelConfig, *, seq: int) -> Fraction:
    """5 a s / h: what the N × N matrices add to the 34.

    >>> from cme295lab.transformer import preset
    >>> scores_term(preset("megatron-175b"), seq=2048)
    Fraction(80, 1)
    """
    return Fraction(5 * config.num_heads * seq, config.dim)


def selective_share(config: ModelConfig, *, seq: int) -> float:
    """Share of a layer's activations that selective recomputation saves.

    >>> from cme295lab.transformer import preset
    >>> round(selective_share(preset("megatron-175b"), seq=2048), 3)
    0.702

    Source: Korthikanti et al. 2022, §5: 70% for GPT-3, 65% for MT-NLG.
    """
    core = scores_term(config, seq=seq)
    return float(core / (34 + core))


def layers_in_flight(config: ModelConfig, parallel: ParallelConfig) -> Fraction:
    """Layers whose activations of one micro-batch a pipeline stage holds at a time, at most.

    In the 1F1B schedule, stage i of p starts p - i micro-batches before its first backward pass, of L / p layers
    each: L layers' worth on the first stage, whatever p. Interleaved, with m chunks of L / (pm) layers, it starts
    2 (p - i - 1) + (m - 1) p + 1 of them: L (1 + (p - 1) / (pm)) on the first stage. Fewer micro-batches than that hold
    it down.

    Args:
        config: for its num_layers.
        parallel: pipeline degree, rank, chunks and number of micro-batches.

    Source: Korthikanti et al. 2022, §4.2.3; Narayanan et al. 2021, "Efficient Large-Scale Language Model Training",
    §2.2.
    """
    stages, chunks = parallel.pipeline, parallel.interleave_chunks
    behind = stages - parallel.pipeline_rank - 1
    in_flight = behind + 1 if chunks == 1 else 2 * behind + (chunks - 1) * stages + 1
    if parallel.num_micro_batches is not None:
        in_flight = min(in_flight, parallel.num_micro_batches * chunks)
    return in_flight * Fraction(config.num_layers, stages * chunks)
