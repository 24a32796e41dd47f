"""What it costs to watch: a training step under a `MemoryTimeline`, under an empty dispatch mode, and by itself.

Run alone: `python -m tests.benchmarks.memory`. One thread; the three are called in turn, and medians are compared. Most
of the cost is per operator, so a model of tiny operators pays the most.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cme295lab.memory import MemoryTimeline
from cme295lab.transformer import DecoderLM, ModelConfig
from tests.benchmarks.timing import medians

GPT: dict[str, Any] = {
    "mlp": "gelu", "norm": "layernorm", "position": "learned", "tied_head": True, "bias": True,
}  # fmt: skip
SMALL = ModelConfig(
    name="0.2 M parameters, 64 tokens",
    vocab_size=512,
    num_layers=3,
    dim=64,
    num_heads=4,
    mlp_dim=256,
    max_seq=32,
    **GPT,
)
LARGE = ModelConfig(
    name="29 M parameters, 512 tokens", vocab_size=8192, num_layers=8, dim=512, num_heads=8, mlp_dim=2048, max_seq=256,
    **GPT,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Seconds of a training step.

    Args:
        model: which model, and how many tokens.
        plain_s: by itself.
        empty_mode_s: under a dispatch mode that only calls the operator.
        timeline_s: under a timeline.
        num_operators: that the step runs.
    """

    model: str
    plain_s: float
    empty_mode_s: float
    timeline_s: float
    num_operators: int

    @property
    def ratio(self) -> float:
        """Time under the timeline over time without."""
        return self.timeline_s / self.plain_s

    @property
    def us_per_operator(self) -> float:
        """Microseconds that the timeline adds to an operator."""
        return (self.timeline_s - self.plain_s) / self.num_operators * 1e6


class _Empty(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def timeline_overhead(config: ModelConfig, *, repeats: int) -> Overhead:
    """Time a step of AdamW, tensor by tensor, for a model."""
    torch.manual_seed(0)
    model = DecoderLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=False)
    tokens = torch.randint(config.vocab_size, (2, config.max_seq))

    def step() -> None:
        model.loss(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    def under(mode: Callable[[], TorchDispatchMode]) -> TorchDispatchMode:
        with mode() as entered:
            step()
        return entered

    plain, empty, watched = medians(
        step, lambda: under(_Empty), lambda: under(lambda: MemoryTimeline(model=model, optimizer=optimizer)),
        repeats=repeats,
    )  # fmt: skip
    calls = under(_Empty).calls  # type: ignore[attr-defined]
    return Overhead(model=config.name, plain_s=plain, empty_mode_s=empty, timeline_s=watched, num_operators=calls)


def timeline_rows(*, repeats: int = 15) -> list[Overhead]:
    """The rows of the benchmark: a small model, where it shows, and a larger one, where it does not."""
    return [timeline_overhead(SMALL, repeats=repeats), timeline_overhead(LARGE, repeats=max(3, repeats // 3))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in timeline_rows():
        print(
            f"{row.model:<30} plain {row.plain_s * 1e3:7.1f} ms, empty mode {row.empty_mode_s / row.plain_s:5.2f}x, "
            f"timeline {row.ratio:5.2f}x, {row.us_per_operator:5.1f} us per operator ({row.num_operators})"
        )
