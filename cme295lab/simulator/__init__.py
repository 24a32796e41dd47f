"""Runs Triton kernels on a CPU, all programs of the grid at once, and counts what they do.

Read in this order: `launch` (one launch, from arguments to batches), `interpreter` and `expressions` (a kernel's
syntax tree), `values` (blocks and pointers), `arithmetic`, `access` and `atomics` (what operations do), `divergence`
(programs that take different paths), `language` (the functions of `triton.language`), `trace` (what was counted),
`placement` (GPU or simulator, by tensor). `frontend` is the only module that touches Triton.

    with simulator.trace(device="A100") as t:
        flash_attention(q, k, v, causal=True)
    t.tensors["k"].read_bytes, t.flops, t.table()
"""

from __future__ import annotations

from cme295lab.simulator.compiler import CompileReport, MainLoop, compile_report
from cme295lab.simulator.cost import AccessSummary, CacheReport, Roofline
from cme295lab.simulator.errors import KernelTypeError, OutOfBoundsError, SimulatorError, UnsupportedFeatureError
from cme295lab.simulator.trace import Launch, Problem, Step, TensorTraffic, Trace, Watch, enabled, is_enabled, trace

__all__ = [
    "AccessSummary", "CacheReport", "CompileReport", "KernelTypeError", "Launch", "MainLoop", "OutOfBoundsError",
    "Problem", "Roofline", "SimulatorError", "Step", "TensorTraffic", "Trace", "UnsupportedFeatureError", "Watch",
    "compile_report", "enabled", "is_enabled", "trace",
]  # fmt: skip
