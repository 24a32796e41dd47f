"""Part 2: MFU and HFU from tokens per second, with the attention that 6N leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cme295lab.grading.exercise import Property
from cme295lab.grading.formulas import Question, formula_property
from cme295lab.grading.observe import refuse_function
from cme295lab.grading.result import Outcome
from cme295lab.pretraining.flops.published import palm_flops_per_token
from cme295lab.pretraining.flops.utilization import mfu

_PALM = "MFU counts parameters and attention"
_MFU_STAYS = "recomputation leaves MFU as it is"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run; the names are those of the student's arguments."""

    num_parameters: int
    num_layers: int
    attention_dim: int
    seq: int
    tokens_per_s: float
    num_gpus: int
    sheet_tflops: float
    with_sparsity: bool = False
    recompute: Literal["none", "full"] = "none"
    hardware: bool = False

    @property
    def core(self) -> int:
        """FLOP of attention's two products for a token, forward and backward."""
        return 12 * self.num_layers * self.attention_dim * self.seq

    @property
    def peak(self) -> float:
        """Dense FLOP/s of all GPUs together."""
        return self.num_gpus * self.sheet_tflops * 1e12 / (2 if self.with_sparsity else 1)

    @property
    def executes_more(self) -> bool:
        """Whether the answer counts what is computed again."""
        return self.hardware and self.recompute == "full"

    def share(self, flops_per_token: float) -> float:
        """Of the peak, if a token takes so many FLOP."""
        return flops_per_token * self.tokens_per_s / self.peak


def properties(*, gpus: int = 6144, tokens: int = 238_300, seq: int = 2048) -> list[Property]:
    """What must hold for `utilization(num_parameters, ..., hardware)`.

    Args:
        gpus, tokens, seq: GPUs, tokens per second and tokens of a sequence of the first run.
    """
    shape = {"num_parameters": 540_350_000_000, "num_layers": 118, "attention_dim": 48 * 256, "seq": seq}
    palm: dict[str, Any] = {**shape, "tokens_per_s": tokens, "num_gpus": gpus, "sheet_tflops": 275}
    long: dict[str, Any] = {"num_parameters": 8_030_261_248, "num_layers": 32, "attention_dim": 4096, "seq": 64 * seq,
                            "tokens_per_s": gpus * 7, "num_gpus": gpus // 24, "sheet_tflops": 1979}  # fmt: skip
    return [
        _property(_PALM, [Run(**palm)], weight=2),
        _property("a long context is mostly attention", [Run(**long, with_sparsity=True)], needs=(_PALM,)),
        _property("a peak with sparsity is halved, a dense one is not",
                  [Run(**palm, with_sparsity=True), Run(**{**palm, "sheet_tflops": 312})], needs=(_PALM,)),
        _property(_MFU_STAYS, [Run(**palm, recompute="full")], needs=(_PALM,)),
        _property("HFU counts what is computed again", [Run(**palm, recompute="full", hardware=True)], needs=(_PALM,)),
        _property("HFU is MFU where nothing is computed again", [Run(**palm, hardware=True)], needs=(_PALM,)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "utilization")


def _property(name: str, runs: Sequence[Run], *, weight: float = 1, needs: tuple[str, ...] = ()) -> Property:
    return formula_property(name, [question(run) for run in runs], weight=weight, needs=needs)


def question(run: Run) -> Question:
    """The call, its answer by the library, and what mistakes give."""
    flops = palm_flops_per_token(run.num_parameters, num_layers=run.num_layers, num_heads=1,
                                 head_dim=run.attention_dim, seq=run.seq)  # fmt: skip
    want = mfu(flops, tokens_per_s=run.tokens_per_s, peak=run.peak / run.num_gpus, num_gpus=run.num_gpus)
    want *= 4 / 3 if run.executes_more else 1
    arguments: Mapping[str, Any] = vars(run)
    return Question(function="utilization", arguments=arguments, want=want, mistakes=tuple(_mistakes(run, want)),
                    unit="of the peak")  # fmt: skip


def _mistakes(run: Run, want: float) -> Iterator[tuple[str, float]]:
    """What known mistakes give."""
    passes = 4 / 3 if run.executes_more else 1
    n, core = passes * 6 * run.num_parameters, passes * run.core
    for cause, flops in _wrong_counts(run, n, core):
        yield cause, run.share(flops)
    if run.recompute == "full" and not run.hardware:
        yield "recomputation is counted in MFU: it is the GPU's work, and not the model's", want * 4 / 3
    if run.executes_more:
        yield "what is computed again is missing: HFU counts four passes, where MFU counts three", want * 3 / 4
        cause = "attention is computed again, too: all of the forward pass is, so both terms grow by a third"
        yield cause, run.share(n + run.core)
    if run.recompute == "none":
        yield "nothing is computed again here: recompute='none'", want * 4 / 3
    if run.with_sparsity:
        cause = "the data sheet's figure is with sparsity: a dense product reaches half of it at most"
        yield cause, want / 2
    else:
        yield "the peak is halved, and it is a dense one already", want * 2
    yield "the peak is in TFLOP/s: one TFLOP is 10^12 FLOP", want * 1e12
    yield "that is divided by 10^9 FLOP/s for a TFLOP/s: tera is 10^12", want * 1e3
    yield "that is in per cent: return a share", want * 100
    yield "tokens_per_s is of all GPUs together, so the peak must be, too: multiply it by num_gpus", want * run.num_gpus
    cause = (
        "FLOP are divided by FLOP/s, which gives the seconds of a token: multiply by tokens per second first, so that "
        "both are rates"
    )
    yield cause, want / run.tokens_per_s
    yield "that is the achieved rate in FLOP/s: divide by the peak of all GPUs", want * run.peak


def _wrong_counts(run: Run, n: float, core: float) -> Iterator[tuple[str, float]]:
    """Causes, and the FLOP of a token that they give; n and core are the right terms."""
    yield "attention's term is missing: 12 · layers · attention_dim · seq", n
    cause = "attention's term is half as large as it is here: it counts all scores, 12 · layers · attention_dim · seq"
    yield cause, n + core / 2
    yield "attention's term is twice as large as it should be: 12 already counts multiplications and additions", (
        n + 2 * core
    )
    yield "attention's term is that of the forward pass alone, 4: backward is twice that, 12 in all", n + core / 3
    cause = "attention's term is quadratic in the width: it is linear, QKᵀ is seq products of attention_dim numbers"
    yield cause, n + core * run.attention_dim
    cause = "attention's term has seq twice, which is a whole sequence: a token meets seq others once"
    yield cause, n + core * run.seq
    yield "attention's term is that of one layer: multiply by num_layers", n + core / run.num_layers
    yield "the forward pass alone is counted: 2N, where training takes 6N", n / 3 + core / 3
    yield "2N is the forward pass alone: training takes 6N", n / 3 + core
