"""Part 2: bytes that one layer keeps for the backward pass, by a published table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.memory.formulas import korthikanti
from cme295lab.transformer.config import ModelConfig

_TABLE = "standard attention: as the published table has it"


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer of GPT, and its input.

    Args:
        seq, batch, dim, num_heads: its sizes.
        attention: "standard" or "flash".
        recompute: "none", "selective" or "full".
    """

    seq: int
    batch: int
    dim: int
    num_heads: int
    attention: Literal["standard", "flash"] = "standard"
    recompute: Literal["none", "selective", "full"] = "none"

    @property
    def arguments(self) -> Mapping[str, Any]:
        """What the student's function is called with."""
        return vars(self)

    @property
    def residual(self) -> int:
        """Elements of the layer's input: sbh."""
        return self.seq * self.batch * self.dim

    @property
    def scores(self) -> int:
        """Elements of all score matrices: as²b."""
        return self.num_heads * self.seq**2 * self.batch

    @property
    def rows(self) -> int:
        """Rows of all score matrices: asb."""
        return self.num_heads * self.seq * self.batch


def properties(*, seq: int = 2048, batch: int = 1, heads: int = 96, long: int = 8192) -> list[Property]:
    """What must hold for `layer_activation_bytes(seq, batch, dim, num_heads, attention, recompute)`.

    Args:
        seq: tokens.
        batch: sequences.
        heads: heads of 128.
        long: tokens of a long sequence.
    """
    gpt: dict[str, Any] = {"seq": seq, "batch": batch, "dim": 128 * heads, "num_heads": heads}
    small: dict[str, Any] = {"seq": long, "batch": 2 * batch, "dim": 32 * heads, "num_heads": heads // 2}
    return [
        _property(_TABLE, [Layer(**gpt)], weight=2),
        _property("so it is for other sizes", [Layer(**small)], needs=(_TABLE,)),
        _property(
            "flash attention is counted right", [Layer(**gpt, attention="flash"), Layer(**small, attention="flash")]
        ),
        _property("selective recomputation is counted right", [Layer(**gpt, recompute="selective")]),
        _property(
            "full recomputation is counted right",
            [Layer(**gpt, recompute="full"), Layer(**small, attention="flash", recompute="full")],
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "layer_activation_bytes")


def _property(name: str, layers: Sequence[Layer], weight: float = 1.0, needs: tuple[str, ...] = ()) -> Property:
    return formula_property(name, [question(layer) for layer in layers], weight=weight, needs=needs)


def question(layer: Layer) -> Question:
    """The call, its answer, and what mistakes give."""
    want = right_bytes(layer)
    mistakes = [
        *_mistakes(layer),
        ("that is in MiB: the answer is in bytes", want / 2**20),
        ("that is in GB: the answer is in bytes", want / 1e9),
        ("that is the number of elements of 2 bytes: the answer is in bytes", want / 2),
    ]
    return Question(
        function="layer_activation_bytes",
        arguments=layer.arguments,
        want=want,
        mistakes=tuple(mistakes),
        unit="bytes",
    )


def right_bytes(layer: Layer) -> int:
    """By the published table; flash attention keeps a log-sum-exp per row of scores instead of the scores."""
    if layer.attention == "flash" and layer.recompute != "full":
        return 34 * layer.residual + 4 * layer.rows
    config = ModelConfig(
        name="layer", num_layers=1, dim=layer.dim, num_heads=layer.num_heads, mlp_dim=4 * layer.dim, mlp="gelu",
        norm="layernorm", position="learned", max_seq=layer.seq, vocab_size=2, dropout=0.1,
    )  # fmt: skip
    return int(korthikanti.layer_bytes(config, micro_batch=layer.batch, seq=layer.seq, recompute=layer.recompute))


def _mistakes(layer: Layer) -> Iterator[tuple[str, float]]:
    """What known mistakes give."""
    sbh, scores, rows = layer.residual, layer.scores, layer.rows
    if layer.recompute == "full":
        yield "nothing at all is kept: the layer's input is needed to start again from", 0
        yield "the input has 2 bytes per element", sbh
        yield "full recomputation keeps the layer's input alone, 2sbh", 34 * sbh
        yield "full recomputation keeps the layer's input alone, 2sbh", 34 * sbh + 5 * scores
        yield "full recomputation keeps the layer's input alone, 2sbh", 34 * sbh + 4 * rows
        yield "the layer has one input: it is kept once", 4 * sbh
        return
    extra = 0 if layer.recompute == "selective" else 5 * scores if layer.attention == "standard" else 4 * rows
    yield from ((cause, count * sbh + extra) for cause, count in _wrong_counts())
    if layer.recompute == "selective":
        yield "selective recomputation drops the score matrices: 5as²b is not kept", 34 * sbh + 5 * scores
        yield "Q, K and V are kept: the core of attention is recomputed from them", 28 * sbh
        yield "selective recomputation drops the core of attention alone; the rest is kept", 2 * sbh
        return
    if layer.attention == "flash":
        cause = "the score matrices are still in it, 5as²b: flash attention never has them"
        yield cause, 34 * sbh + 5 * scores
        yield cause, 34 * sbh + 5 * scores + 4 * rows
        yield "the log-sum-exp is missing: a number for each row of scores", 34 * sbh
        yield "the log-sum-exp is in fp32: 4 bytes", 34 * sbh + 2 * rows
        yield "there is a log-sum-exp for each head", 34 * sbh + 4 * rows / layer.num_heads
        yield "two numbers per row, m and l, are one when they are merged: the log-sum-exp", 34 * sbh + 8 * rows
        return
    yield "the score matrices are missing: softmax, dropout's mask and its output are kept", 34 * sbh
    one_head = scores / layer.num_heads
    yield "dropout keeps its mask and its output, besides the output of softmax: 2 + 1 + 2", 34 * sbh + 2 * scores
    yield "the output of dropout is an input of the product with V: 2 more bytes", 34 * sbh + 3 * scores
    yield "dropout keeps a mask of 1 byte per element", 34 * sbh + 4 * scores
    yield "dropout's mask has 1 byte per element, not 2", 34 * sbh + 6 * scores
    yield "softmax needs its output in the backward pass, not its input: the scores are not kept", 34 * sbh + 7 * scores
    yield "every head has its own score matrix", 34 * sbh + 5 * one_head
    yield "the score matrix has seq × seq elements", 34 * sbh + 5 * rows


def _wrong_counts() -> Iterator[tuple[str, int]]:
    """Causes, and how many times sbh they give instead of 34."""
    yield "the two norms are missing: each keeps its input", 30
    yield "there are two norms, and each keeps its input", 32
    yield "only attention is counted: the MLP and the two norms are missing", 11
    yield "the MLP is missing: 19sbh", 15
    yield "attention without its scores is missing: 11sbh", 23
    yield "the masks of the two dropouts are missing: 1 byte per element each", 32
    yield "the inner width of the MLP is 4 times dim: its two tensors have 8sbh bytes each", 22
    yield "GELU keeps its input, and the product after it keeps GELU's output: 8sbh each", 26
    yield "dropout's masks have 1 byte per element, not 2", 36
    yield "Q, K and V are kept, 2sbh each", 28
    yield "Q, K and V come from the same input, which is kept once", 38
    yield "the input of attention's last product is kept, too", 32
