"""The report of a trace: text, HTML, dictionary, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from cme295lab.simulator.report.facts import Facts, KernelFacts, Traffic
from cme295lab.simulator.report.html import page
from cme295lab.simulator.report.text import as_text


@dataclass(frozen=True, repr=False)
class Report:
    """What `Trace.report` returns; shows itself in a notebook, prints as text.

    Attributes:
        facts: everything in it, as records.
    """

    facts: Facts

    def __str__(self) -> str:
        return as_text(self.facts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.html()

    def html(self, *, code: bool = False) -> str:
        """The report as a piece of HTML that needs nothing else.

        Args:
            code: with the machine code and PTX of the kernels, folded; large.
        """
        return page(self.facts, code=code)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts, lists and dictionaries; the keys are described in docs/simulator.md."""
        f = self.facts
        return {
            "device": {
                "name": f.device.name,
                "compute_capability": f.device.compute_capability,
                "num_sms": f.device.num_sms,
                "memory_bytes": f.device.memory_bytes,
                "bandwidth_bytes_per_s": f.device.bandwidth_bytes_per_s,
                "l2_bytes": f.device.l2_bytes,
                "l2_bandwidth_bytes_per_s": f.device.l2_bandwidth_bytes_per_s,
                "sram_bytes_per_sm": f.device.sram_bytes_per_sm,
                "register_bytes_per_sm": f.device.register_bytes_per_sm,
            },
            "num_launches": f.num_launches,
            "traffic": _traffic(f.traffic),
            "sram_peak_bytes": f.sram_peak_bytes,
            "roofline": _roofline(f.roofline),
            "kernels": [_kernel(k) for k in f.kernels],
            "problems": None
            if f.problems is None
            else [
                {"kind": p.kind, "kernel": p.kernel, "file": p.file, "line": p.line, "tensor": p.tensor,
                 "index": list(p.index), "programs": [list(x) for x in p.programs], "message": p.message}
                for p in f.problems
            ],
        }  # fmt: skip

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False, allow_nan=False)


def _traffic(traffic: Traffic) -> dict[str, int]:
    sums = {"requested_bytes": traffic.requested_bytes, "l2_bytes": traffic.l2_bytes, "dram_bytes": traffic.dram_bytes}
    return vars(traffic) | sums


def _roofline(roofline: Any) -> dict[str, Any]:
    intensity = roofline.intensity if roofline.dram_bytes else None
    return vars(roofline) | {"intensity": intensity, "ridge_point": roofline.ridge_point, "bound": roofline.bound}


def _kernel(k: KernelFacts) -> dict[str, Any]:
    plain = ("kernel", "file", "num_launches", "constants", "config", "flops", "dot_flops", "other_flops",
             "transcendental_ops", "sram_peak_bytes", "programs_at_a_time", "ctas_per_sm", "compile_note")  # fmt: skip
    return {name: getattr(k, name) for name in plain} | {
        "grid": list(k.grid),
        "traffic": _traffic(k.traffic),
        "tensors": [
            {"name": t.name, "dtype": t.dtype, "shape": list(t.shape), "traffic": _traffic(t.traffic)}
            for t in k.tensors
        ],
        "roofline": _roofline(k.roofline),
        "lines": [
            {"line": x.line, "function": x.function, "text": x.text, "requested_bytes": x.requested_bytes,
             "moved_bytes": x.moved_bytes, "sector_efficiency": x.sector_efficiency, "sram_bytes": x.sram_bytes,
             "compiled": x.compiled}
            for x in k.lines
        ],
        "other_accesses": [
            vars(a) | {"sector_efficiency": a.sector_efficiency} for a in k.other_accesses
        ],
        "compile": k.compiled.to_dict() if k.compiled else None,
    }  # fmt: skip
