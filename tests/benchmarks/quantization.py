"""Four-bit weights against bitsandbytes on a CPU: quantise, dequantise, multiply; seconds and memory, same bytes.

Run alone: `python -m tests.benchmarks.quantization`. One thread; ours and theirs are called in turn, and medians are
compared. Before anything is timed, both results are compared bit by bit. Weights are 4096 × 4096, in blocks of 64.

The layers are timed in train mode. In eval mode bitsandbytes' layer repacks its weight once and calls a kernel that
multiplies in bfloat16, whatever dtype was asked for, where the processor has AVX512-BF16: that is another product, and
its time stands beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import bitsandbytes as bnb
import bitsandbytes.functional as theirs
import torch
from torch import nn

from cme295lab.quantization import Linear4bit, nf4
from cme295lab.units import format_bytes
from tests.benchmarks.timing import medians, one_thread, settled_peak_bytes

SIDE = 4096
NUM_ROWS = 256


@dataclass(frozen=True, kw_only=True)
class FourBitSpeed:
    """One operation in one dtype.

    Args:
        operation: what was done.
        dtype: of the dense weight.
        seconds: ours.
        bitsandbytes_seconds: theirs.
        peak_bytes: how far our process grew during a call.
        bitsandbytes_peak_bytes: the same for theirs.
        goal: the speedup that is asked for.
    """

    operation: str
    dtype: str
    seconds: float
    bitsandbytes_seconds: float
    peak_bytes: int
    bitsandbytes_peak_bytes: int
    goal: float

    @property
    def speedup(self) -> float:
        """Their time over ours."""
        return self.bitsandbytes_seconds / self.seconds


@dataclass(frozen=True, kw_only=True)
class LinearSpeed:
    """A forward pass of 256 rows through a layer.

    Args:
        dtype: of inputs and product.
        double_quant: whether scales are in 8 bits.
        seconds: ours.
        bitsandbytes_seconds: theirs, in train mode.
        bitsandbytes_eval_seconds: theirs in eval mode, multiplied in bfloat16.
        dense_seconds: `nn.Linear` with the dequantised weight.
        peak_bytes: how far our process grew during a call.
        bitsandbytes_peak_bytes: the same for theirs in train mode.
    """

    dtype: str
    double_quant: bool
    seconds: float
    bitsandbytes_seconds: float
    bitsandbytes_eval_seconds: float
    dense_seconds: float
    peak_bytes: int
    bitsandbytes_peak_bytes: int
    goal: float = 1.0

    @property
    def speedup(self) -> float:
        """Their time in train mode over ours."""
        return self.bitsandbytes_seconds / self.seconds


def four_bit_rows(*, repeats: int = 9) -> list[FourBitSpeed]:
    """Rows for quantising, and dequantising into new and into given memory, in fp32 and bf16."""
    with one_thread():
        return [row for dtype in (torch.float32, torch.bfloat16) for row in _four_bit_rows(dtype, repeats)]


def linear_rows(*, repeats: int = 9) -> list[LinearSpeed]:
    """Rows for a layer's forward pass, in fp32 and bf16, scales plain and in 8 bits."""
    with one_thread():
        kinds = [(dtype, double) for dtype in (torch.float32, torch.bfloat16) for double in (False, True)]
        return [_linear_row(dtype, double, repeats) for dtype, double in kinds]


def _four_bit_rows(dtype: torch.dtype, repeats: int) -> Iterator[FourBitSpeed]:
    w = _weight(dtype)
    ours = nf4.quantize(w)
    packed, state = theirs.quantize_4bit(w, quant_type="nf4")
    assert torch.equal(ours.packed, packed), "bytes differ"
    assert torch.equal(ours.absmax, state.absmax), "scales differ"
    assert torch.equal(ours.dequantize(), theirs.dequantize_4bit(packed, state)), "values differ"
    memory = ours.dequantize()

    def row(operation: str, goal: float, run: Callable[[], object], peer: Callable[[], object]) -> FourBitSpeed:
        seconds, peer_seconds = medians(run, peer, repeats=repeats)
        return FourBitSpeed(
            operation=operation,
            dtype=str(dtype).removeprefix("torch."),
            seconds=seconds,
            bitsandbytes_seconds=peer_seconds,
            peak_bytes=settled_peak_bytes(run),
            bitsandbytes_peak_bytes=settled_peak_bytes(peer),
            goal=goal,
        )

    yield row("quantise", 2.5, lambda: nf4.quantize(w), lambda: theirs.quantize_4bit(w, quant_type="nf4"))
    again = theirs.dequantize_4bit
    yield row("dequantise, new memory", 0.9, ours.dequantize, lambda: again(packed, state))
    yield row("dequantise, memory given", 2.5, lambda: ours.dequantize(out=memory), lambda: again(packed, state))


def _linear_row(dtype: torch.dtype, double_quant: bool, repeats: int) -> LinearSpeed:
    w = _weight(dtype)
    layer = Linear4bit.from_weight(nf4.quantize(w, double_quant=double_quant), compute_dtype=dtype)
    train, evaluate = (_their_layer(w, double_quant) for _ in range(2))
    evaluate.eval()
    dense = nn.Linear(SIDE, SIDE, bias=False, dtype=dtype)
    dense.weight = nn.Parameter(layer.weight.dequantize(dtype))
    x = torch.randn(NUM_ROWS, SIDE).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), train(x), rtol=2**-7, atol=2**-7)
        runs: list[Callable[[], object]] = [lambda: layer(x), lambda: train(x), lambda: evaluate(x), lambda: dense(x)]
        seconds = medians(*runs, repeats=repeats)
        return LinearSpeed(
            dtype=str(dtype).removeprefix("torch."),
            double_quant=double_quant,
            seconds=seconds[0],
            bitsandbytes_seconds=seconds[1],
            bitsandbytes_eval_seconds=seconds[2],
            dense_seconds=seconds[3],
            peak_bytes=settled_peak_bytes(runs[0]),
            bitsandbytes_peak_bytes=settled_peak_bytes(runs[1]),
        )


def _their_layer(w: torch.Tensor, double_quant: bool) -> bnb.nn.Linear4bit:
    options = {"quant_type": "nf4", "compress_statistics": double_quant}
    layer = bnb.nn.Linear4bit(SIDE, SIDE, bias=False, compute_dtype=w.dtype, **options)
    layer.weight = bnb.nn.Params4bit(w.clone(), requires_grad=False, **options).to("cpu")
    return layer.train()


def _weight(dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


def print_rows(storage: list[FourBitSpeed], linear: list[LinearSpeed]) -> None:
    """One line each."""
    for row in storage:
        print(
            f"{row.operation:25} {row.dtype:9} {row.seconds * 1e3:7.1f} ms, bitsandbytes "
            f"{row.bitsandbytes_seconds * 1e3:7.1f} ms: {row.speedup:5.2f}x (goal {row.goal}x); peak "
            f"{format_bytes(row.peak_bytes)} against {format_bytes(row.bitsandbytes_peak_bytes)}"
        )
    for line in linear:
        print(
            f"linear, {'double' if line.double_quant else 'plain':6} {line.dtype:9} {line.seconds * 1e3:7.1f} ms, "
            f"bitsandbytes {line.bitsandbytes_seconds * 1e3:7.1f} ms: {line.speedup:5.2f}x (goal {line.goal}x), in "
            f"eval mode {line.bitsandbytes_eval_seconds * 1e3:.1f} ms, dense {line.dense_seconds * 1e3:.1f} ms; peak "
            f"{format_bytes(line.peak_bytes)} against {format_bytes(line.bitsandbytes_peak_bytes)}"
        )


if __name__ == "__main__":
    print_rows(four_bit_rows(), linear_rows())
