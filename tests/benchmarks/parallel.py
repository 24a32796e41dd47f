"""`python -m tests.benchmarks.parallel`: strategies of data parallelism on real processes, ours and PyTorch's own.

One run, `--ranks` processes over gloo with one thread each; a GPT of 29.4 million parameters, fp32, Adam, so few tokens
per rank that the parameters weigh most. For each strategy:

- **time**: seconds of a step as a ratio to torch's DDP with its defaults. DDP's model lives in the same processes all
  the time and takes its steps in turn with the strategy's, so that both see the same machine; median of the ratios.
- **peak**: bytes of all live tensors of a rank at the worst moment of a step, in units of Ψ, the bytes of the
  parameters in fp32. Exact, from a step of its own that is not timed; DDP's own model is not counted.
- **sent**: bytes that a rank sends in a step by the ring's formulas, in Ψ; of that same step.

Besides: seconds until a function has run on all ranks when the processes are warm. Prints a table, writes
build/benchmarks-parallel.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.memory import MemoryTimeline
from cme295lab.parallel import CommLedger, run_distributed
from cme295lab.transformer import DecoderLM, ModelConfig

ROOT = Path(__file__).resolve().parents[2]
GPT = ModelConfig(
    name="gpt-29m", vocab_size=4096, num_layers=8, dim=512, num_heads=8, mlp_dim=2048, max_seq=64, mlp="gelu",
    norm="layernorm", position="learned", tied_head=False, bias=True,
)  # fmt: skip
SMALL = ModelConfig(
    name="gpt-small", vocab_size=512, num_layers=3, dim=64, num_heads=4, mlp_dim=256, max_seq=32, mlp="gelu",
    norm="layernorm", position="learned", tied_head=False, bias=True,
)  # fmt: skip
BATCH, LEARNING_RATE = 1, 1e-4
REFERENCE = "torch DDP"


@dataclass
class Setting:
    """A model and its optimizer under one strategy.

    Args:
        step: forward, backward and update for tokens and targets.
        model: whose tensors count as weights.
        optimizer: whose tensors count as states.
    """

    step: Callable[[Tensor, Tensor], None]
    model: nn.Module
    optimizer: Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One strategy's figures: bytes in Ψ, time relative to torch's DDP."""

    strategy: str
    time_ratio: float
    time_ms: float
    peak: float
    sent: float


Strategy = Callable[[DecoderLM], Setting]


def _setting(call: Callable[[Tensor], Tensor], model: nn.Module, optimizer: Any) -> Setting:
    def step(tokens: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        logits = call(tokens).flatten(0, 1)
        nn.functional.cross_entropy(logits.float(), targets.flatten()).backward()
        optimizer.step()

    return Setting(step, model, optimizer)


def _torch_ddp(model: DecoderLM, *, zero: bool = False, **options: Any) -> Setting:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(model, **options)
    if zero:
        return _setting(wrapped, model, ZeroRedundancyOptimizer(model.parameters(), torch.optim.Adam, lr=LEARNING_RATE))
    return _setting(wrapped, model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))


def _fsdp2(model: DecoderLM, **options: Any) -> Setting:
    from torch.distributed.fsdp import fully_shard

    for layer in model.layers:
        fully_shard(layer, **options)
    fully_shard(model, **options)
    return _setting(model, model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))


def _data_parallel(model: DecoderLM, **options: Any) -> Setting:
    from cme295lab.parallel import DataParallel

    return _setting(DataParallel(model, **options), model, torch.optim.Adam(model.parameters(), lr=LEARNING_RATE))


def _zero(model: DecoderLM, stage: int, **options: Any) -> Setting:
    from cme295lab.parallel import ZeroOptimizer

    optimizer = ZeroOptimizer(model, torch.optim.Adam, stage=stage, lr=LEARNING_RATE, **options)
    return _setting(model, model, optimizer)


def _zero3(model: DecoderLM, **options: Any) -> Setting:
    from cme295lab.parallel import FullyShardedModel, ZeroOptimizer

    sharded = FullyShardedModel(model, **options)
    return _setting(sharded, sharded, ZeroOptimizer(sharded, torch.optim.Adam, stage=3, lr=LEARNING_RATE))


STRATEGIES: dict[str, Strategy] = {
    REFERENCE: _torch_ddp,
    "torch DDP, gradients as views": lambda model: _torch_ddp(model, gradient_as_bucket_view=True),
    "torch ZeroRedundancyOptimizer": lambda model: _torch_ddp(model, zero=True),
    "torch ZeroRedundancy, views": lambda model: _torch_ddp(model, zero=True, gradient_as_bucket_view=True),
    "torch FSDP2, no resharding": lambda model: _fsdp2(model, reshard_after_forward=False),
    "torch FSDP2": _fsdp2,
    "ours naive": lambda model: _data_parallel(model, strategy="naive"),
    "ours flat": lambda model: _data_parallel(model, strategy="flat"),
    "ours bucketed": lambda model: _data_parallel(model, strategy="bucketed"),
    "ours stage 1": lambda model: _zero(model, 1),
    "ours stage 2": lambda model: _zero(model, 2),
    "ours stage 3": _zero3,
    "ours stage 3, root stays": lambda model: _zero3(model, keep_root=True),
    "ours stage 3, bf16": lambda model: _zero3(model, compute_dtype=torch.bfloat16),
}


def measure_on_rank(names: Sequence[str], config: ModelConfig, repeats: int) -> list[Row]:
    """What each rank does: every strategy in turn, next to torch's DDP."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    tokens, targets = torch.randint(config.vocab_size, (2, BATCH, config.max_seq), generator=generator)
    psi_bytes = 4 * config.num_parameters
    reference = _new(STRATEGIES[REFERENCE], config)
    rows = []
    for name in names:
        if dist.get_rank() == 0:
            print(f"{name} ...", file=sys.stderr, flush=True)
        setting = _new(STRATEGIES[name], config)
        pairs = []
        for turn in range(repeats + 2):
            pair = [_seconds(s.step, tokens, targets) for s in (reference, setting)]
            if turn >= 2:  # states are made and buckets are rebuilt in the first steps
                pairs.append(pair)
        peak_bytes, sent_bytes = _cost(setting, tokens, targets)
        rows.append(
            Row(
                strategy=name,
                time_ratio=statistics.median(own / peer for peer, own in pairs),
                time_ms=1e3 * statistics.median(own for _, own in pairs),
                peak=peak_bytes / psi_bytes,
                sent=sent_bytes / psi_bytes,
            )
        )
        del setting
        gc.collect()
    return rows


def _new(strategy: Strategy, config: ModelConfig) -> Setting:
    torch.manual_seed(0)
    return strategy(DecoderLM(config))


def _seconds(step: Callable[[Tensor, Tensor], None], tokens: Tensor, targets: Tensor) -> float:
    dist.barrier()
    start = time.perf_counter()
    step(tokens, targets)
    dist.barrier()
    return time.perf_counter() - start


def _cost(setting: Setting, tokens: Tensor, targets: Tensor) -> tuple[int, float]:
    """Peak bytes and bytes sent of one step."""
    with MemoryTimeline(model=setting.model, optimizer=setting.optimizer) as timeline, CommLedger() as ledger:
        setting.step(tokens, targets)
    return timeline.peak_bytes, ledger.sent_bytes


def warm_start_seconds(num_ranks: int, repeats: int) -> float:
    """Median time of a call that does nothing on all ranks, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        run_distributed(_nothing, num_ranks)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _nothing() -> int:
    return dist.get_rank()


def parallel_rows(
    *, num_ranks: int = 4, repeats: int = 9, names: Sequence[str] = tuple(STRATEGIES), config: ModelConfig = GPT
) -> list[Row]:
    """Measure strategies on so many ranks.

    Args:
        num_ranks: processes.
        repeats: timed steps of each strategy.
        names: of `STRATEGIES`.
        config: the model's shape.

    Returns:
        A row per strategy: the time of the slowest rank is nearly that of all, so times are rank 0's; the peak is the
        worst rank's, and so is what is sent.
    """
    per_rank = run_distributed(measure_on_rank, num_ranks, list(names), config, repeats, timeout_s=3600.0)
    return [
        Row(**{**asdict(rows[0]), "peak": max(row.peak for row in rows), "sent": max(row.sent for row in rows)})
        for rows in zip(*per_rank, strict=True)
    ]


def print_table(rows: Sequence[Row], file: Any = None) -> None:
    print(f"{'':<32} {'time / DDP':>10} {'ms':>7} {'peak Ψ':>7} {'sent Ψ':>7}", file=file)
    for row in rows:
        print(
            f"{row.strategy:<32} {row.time_ratio:>10.2f} {row.time_ms:>7.0f} {row.peak:>7.2f} {row.sent:>7.3f}",
            file=file,
        )


def main() -> None:
    """Measure, print, and keep the figures in build/benchmarks-parallel.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "benchmarks-parallel.json")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="STRATEGY")
    parser.add_argument("--small", action="store_true", help="a small model: to see that it runs, not to compare")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start_s = warm_start_seconds(options.ranks, 5)
    rows = parallel_rows(
        num_ranks=options.ranks, repeats=options.repeats, names=options.only, config=SMALL if options.small else GPT
    )
    print_table(rows)
    print(f"warm start of {options.ranks} ranks: {start_s:.2f} s")
    result = {"ranks": options.ranks, "warm start seconds": start_s, "rows": [asdict(row) for row in rows]}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
