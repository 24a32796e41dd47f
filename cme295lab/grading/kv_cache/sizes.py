"""Part 1: the bytes of keys and values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.inference_cost import kv_bytes
from cme295lab.transformer.presets import preset

# Sizes that differ from each other, so that a factor that is missing can be told.
_SMALL = ModelConfig(vocab_size=9, num_layers=5, dim=21, num_heads=3, head_dim=14, mlp_dim=9, max_seq=8192)


def properties(*, grouped: str = "llama-3-8b", seq: int = 4096, batch: int = 4) -> list[Property]:
    """What must hold for `cache_bytes(num_layers, num_heads, num_kv_heads, head_dim, seq, batch, bytes_per_number)`.

    Args:
        grouped: a preset with fewer key/value heads than heads.
        seq, batch: of the larger cases, above 1.
    """
    plain, shared = preset("llama-2-7b"), preset(grouped)
    one = "one token of Llama-2 7B leaves 512 KiB, and other sizes scale"
    return [
        formula_property(one, [_question(plain, 1, 1, 2), _question(_SMALL, 1, 1, 4)]),
        formula_property(
            "with grouped queries, fewer heads have keys and values", [_question(shared, 1, 1, 2)], weight=2
        ),
        formula_property(
            "sequences and batches multiply", needs=(one,),
            questions=[_question(plain, seq, 1, 2), _question(_SMALL, seq - 5, 1, 2), _question(plain, seq, batch, 2)],
        ),
        formula_property("other number formats are counted", [_question(shared, seq, batch, 4)], needs=(one,)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "cache_bytes")


def _question(config: ModelConfig, seq: int, batch: int, bytes_per_number: int) -> Question:
    want = kv_bytes(config, num_positions=seq, batch_size=batch, bytes_per_number=bytes_per_number)
    return Question(
        function="cache_bytes",
        arguments={
            "num_layers": config.num_layers, "num_heads": config.num_heads, "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim, "seq": seq, "batch": batch, "bytes_per_number": bytes_per_number,
        },
        want=want,
        mistakes=tuple(_mistakes(config, seq, batch, bytes_per_number, want)),
        unit="bytes",
    )  # fmt: skip


def _mistakes(
    config: ModelConfig, seq: int, batch: int, bytes_per_number: int, want: float
) -> Iterator[tuple[str, float]]:
    """Causes, and the numbers that they give."""
    group = config.num_heads // config.num_kv_heads
    yield "query heads are counted: only key/value heads leave keys and values", want * group
    yield "only keys are counted, or only values: both are kept", want / 2
    yield "queries are counted as well: a query is used once and forgotten", want * (2 + group) / 2
    yield "that is one layer: each layer has keys and values of its own", want / config.num_layers
    yield "that is one head: all key/value heads keep theirs", want / config.num_kv_heads
    yield "that is a count of numbers: multiply by bytes per number", want / bytes_per_number
    yield "these are bits: a format of 2 bytes is bytes_per_number=2", want * 8
    yield "scores are counted: the cache grows with seq, not with its square", want * seq
    yield "the batch is forgotten: each sequence has its own cache", want / batch
    yield "seq is forgotten: every token leaves its keys and values", want / seq
    yield "both query heads are counted, and only keys or values", want * group / 2
