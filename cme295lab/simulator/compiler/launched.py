"""What a record keeps of a launch, so that what was launched can be compiled later."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cme295lab.hardware import Device, get_device
from cme295lab.simulator import frontend
from cme295lab.simulator.compiler.report import DEFAULT_STAGES, DEFAULT_WARPS, CompileReport, report_of
from cme295lab.simulator.compiler.signature import without_data


@dataclass(frozen=True)
class Launched:
    """A jit function and its arguments, whose tensors have no data; options that the launch, or its autotuner, gave."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]

    @classmethod
    def of(cls, kernel: Any, bound: dict[str, Any], options: dict[str, Any]) -> Launched:
        """Keep a launch, without keeping its tensors alive.

        Args:
            kernel: the jit function that was launched.
            bound: value of every parameter.
            options: keyword arguments of the launch, those of the autotuner's configuration among them.
        """
        kept: dict[str, int] = {name: options[name] for name in ("num_warps", "num_stages") if name in options}
        return cls(kernel, {name: without_data(value) for name, value in bound.items()}, kept)

    def compile_report(
        self, device: str | Device, num_warps: int | None = None, num_stages: int | None = None
    ) -> CompileReport:
        """What the compiler makes of it; see `CompileReport`."""
        frontend.require_triton()
        options = {"num_warps": DEFAULT_WARPS, "num_stages": DEFAULT_STAGES} | self.options
        warps = options["num_warps"] if num_warps is None else num_warps
        stages = options["num_stages"] if num_stages is None else num_stages
        return report_of(self.kernel, self.arguments, get_device(device), warps, stages)
