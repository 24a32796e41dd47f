"""Bytes that kernels over few bits move, counted in the simulator: AdamW fused and unfused, 4-bit products.

Run alone: `python -m tests.benchmarks.traffic`. Nothing is timed, so the figures are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cme295lab import simulator
from cme295lab.precision import adamw_step_fused, adamw_step_unfused
from cme295lab.quantization import four_bit_kernels, nf4

OPTIONS = {"step": 1, "learning_rate": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}


@dataclass(frozen=True, kw_only=True)
class TrafficRow:
    """Bytes of one way to do a thing.

    Args:
        task: what is done, and how.
        num_launches: of kernels.
        requested_bytes: that all programs ask for.
        distinct_bytes: each byte once per launch.
        per_element: distinct bytes per parameter.
    """

    task: str
    num_launches: int
    requested_bytes: int
    distinct_bytes: int
    per_element: float


def _row(task: str, trace: simulator.Trace, num_elements: int) -> TrafficRow:
    return TrafficRow(
        task=task,
        num_launches=len(trace.launches),
        requested_bytes=trace.requested_bytes,
        distinct_bytes=trace.distinct_bytes,
        per_element=trace.distinct_bytes / num_elements,
    )


def adamw_rows(num_parameters: int = 1_000_003) -> list[TrafficRow]:
    """AdamW with bf16 weights and gradients: all operations in one kernel, and a kernel for each.

    Args:
        num_parameters: of the tensor that is updated; the bytes per parameter do not depend on it.
    """
    rows = []
    for name, step in (("fused", adamw_step_fused), ("unfused", adamw_step_unfused)):
        low = [torch.zeros(num_parameters, dtype=torch.bfloat16) for _ in range(2)]
        high = [torch.zeros(num_parameters) for _ in range(3)]
        with simulator.trace(compute=False) as trace:
            step(high[0], low[0], high[1], high[2], low[1], **OPTIONS)
        rows.append(_row(f"AdamW {name}", trace, num_parameters))
    return rows


def four_bit_rows(num_rows: int = 16, features: int = 1024) -> list[TrafficRow]:
    """A bf16 product with a square NF4 weight: fused, and the weight written out first (the product itself left out).

    Args:
        num_rows: of x.
        features: columns of x, rows and columns of the weight.
    """
    weight = nf4.quantize(torch.randn(features, features))
    arguments = (weight.packed, weight.scales(), nf4.CODE)
    x = torch.randn(num_rows, features).bfloat16()
    with simulator.trace() as fused:
        four_bit_kernels.matmul(x, *arguments, features)
    with simulator.trace() as written:
        four_bit_kernels.dequantize(*arguments, weight.shape, torch.bfloat16)
    return [_row(f"{num_rows} rows times a 4-bit weight", fused, features**2),
            _row("that weight written out in bf16", written, features**2)]  # fmt: skip


def print_rows(rows: list[TrafficRow]) -> None:
    """One line each."""
    for row in rows:
        print(
            f"{row.task:<34} {row.num_launches:>3} launches, {row.requested_bytes / 1e6:8.2f} MB requested, "
            f"{row.distinct_bytes / 1e6:8.2f} MB distinct, {row.per_element:7.3f} B per parameter"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    adamw = adamw_rows()
    print_rows([*adamw, *four_bit_rows()])
    print(f"AdamW unfused moves {adamw[1].distinct_bytes / adamw[0].distinct_bytes:.2f} times the bytes of fused")
