"""Encoding float32 in narrow formats, against NumPy's and ml_dtypes' casts: the same codes, then the time.

Run alone: `python -m tests.benchmarks.precision`. One thread, 4 million normal values, in turn; the ratio is the
median of the ratios of neighbours, which saw the same machine. Ours answers in int32, theirs in one or two bytes.
PyTorch's own cast stands beside where it has the dtype: it is compiled for these four formats and no others.
"""

from __future__ import annotations

import statistics

import ml_dtypes
import numpy as np
import torch

from cme295lab.precision import encode
from tests.benchmarks.timing import seconds_of

NUM_VALUES = 1 << 22
PEERS = {
    "bf16": (ml_dtypes.bfloat16, torch.bfloat16),
    "fp16": (np.float16, torch.float16),
    "fp8_e4m3fn": (ml_dtypes.float8_e4m3fn, torch.float8_e4m3fn),
    "fp8_e5m2": (ml_dtypes.float8_e5m2, torch.float8_e5m2),
    "fp6_e3m2": (ml_dtypes.float6_e3m2fn, None),
    "fp6_e2m3": (ml_dtypes.float6_e2m3fn, None),
    "fp4_e2m1": (ml_dtypes.float4_e2m1fn, None),
}


def encode_rows(*, repeats: int = 7) -> list[dict[str, float | str]]:
    """Per format: milliseconds of ours, NumPy's or ml_dtypes' and PyTorch's; their time over ours.

    Raises:
        RuntimeError: if the codes differ.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        values = torch.randn(NUM_VALUES, generator=torch.Generator().manual_seed(0))
        return [_row(name, values, repeats) for name in PEERS]
    finally:
        torch.set_num_threads(threads)


def _row(name: str, values: torch.Tensor, repeats: int) -> dict[str, float | str]:
    peer, torch_dtype = PEERS[name]
    array = values.numpy()
    narrow = array.astype(peer)
    if not np.array_equal(encode(values, name).numpy(), narrow.view(f"u{narrow.itemsize}").astype(np.int32)):
        raise RuntimeError(f"codes of {name} differ from {peer.__name__}'s: there is nothing to compare the time of")
    ours, theirs, torchs = [], [], []
    for _ in range(repeats):
        ours.append(seconds_of(lambda: encode(values, name)))
        theirs.append(seconds_of(lambda: array.astype(peer)))
        if torch_dtype is not None:
            torchs.append(seconds_of(lambda: values.to(torch_dtype)))
    return {
        "format": name,
        "ours ms": statistics.median(ours) * 1e3,
        "peer": "numpy" if peer is np.float16 else "ml_dtypes",
        "peer ms": statistics.median(theirs) * 1e3,
        "speed-up": statistics.median(t / o for t, o in zip(theirs, ours, strict=True)),
        "torch ms": statistics.median(torchs) * 1e3 if torchs else float("nan"),
    }


def print_rows(rows: list[dict[str, float | str]]) -> None:
    """A line each."""
    for row in rows:
        print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))


if __name__ == "__main__":
    print_rows(encode_rows())
