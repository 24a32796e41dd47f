"""`compile_report`: registers, spills, shared memory, occupancy, instructions and what is wrong with them."""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from typing import Any

from cme295lab.hardware import Device, get_device
from cme295lab.simulator import frontend
from cme295lab.simulator.compiler import mix, sass
from cme295lab.simulator.compiler.advice import warnings_for
from cme295lab.simulator.compiler.build import Build, build
from cme295lab.simulator.compiler.ir import source_facts, tcgen05_shapes
from cme295lab.simulator.compiler.lowered import Lowered, lowered_accesses
from cme295lab.simulator.compiler.main_loop import MainLoop, main_loop
from cme295lab.simulator.compiler.occupancy import occupancy
from cme295lab.simulator.compiler.views import as_html, as_text
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.source import KernelSource, kernel_source

DEFAULT_WARPS = 4
DEFAULT_STAGES = 3
_SHARED = ("LDS", "LDSM", "STS", "STSM", "ATOMS", "LDTM", "STTM")


@dataclass(frozen=True, kw_only=True, repr=False)
class CompileReport:
    """A kernel compiled for one GPU. Prints as text, shows as HTML in a notebook, `to_dict()` for the rest.

    Attributes:
        kernel, device: what, and for which GPU.
        num_warps, num_stages: options; `num_warps` are the warps of one thread block.
        registers: per thread.
        spill_store_bytes, spill_load_bytes: what each thread stores to and loads from local memory, because its values
            do not fit the registers; stack_bytes: all of its local memory.
        shared_bytes: shared memory of one thread block.
        ctas_per_sm: thread blocks that an SM runs at once; 0 if the kernel does not fit at all.
        occupancy: their warps over those that an SM can hold.
        limited_by: the resource that allows no more: "registers", "shared memory", "warps", "blocks",
            "tensor memory"; ctas_by_resource: the thread blocks that each allows.
        tensor_core_instructions: matrix instructions by kind, such as {"HMMA.16816.F32": 64}.
        loads_by_width, stores_by_width: instructions that access global memory, by opcode and bytes per thread: LDG
            (to registers), LDGSTS (cp.async, to shared memory), UTMALDG (TMA; one thread for a whole tile).
        shared_memory_ops: loads from and stores to shared memory, and tensor memory on sm_100, by opcode.
        instruction_mix: all instructions by class; main_loop: the loop that does the work, or None.
        accesses_by_line: accesses of one thread to global memory, by line of the kernel's file, and by kind and bytes:
            {41: {"load 16 B": 4}}.
        warnings: what is wrong, a sentence each.
        asm: the stages of the compilation: "ttir", "ttgir", "llir", "ptx", "sass".
    """

    kernel: str
    device: Device
    num_warps: int
    num_stages: int
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    ctas_per_sm: int
    occupancy: float
    limited_by: str
    ctas_by_resource: dict[str, int]
    tensor_core_instructions: dict[str, int]
    loads_by_width: dict[str, int]
    stores_by_width: dict[str, int]
    shared_memory_ops: dict[str, int]
    instruction_mix: dict[str, int]
    main_loop: MainLoop | None
    accesses_by_line: dict[int, dict[str, int]]
    asm: dict[str, str]
    source: KernelSource
    warnings: list[str] = field(default_factory=list)

    @property
    def spill_bytes(self) -> int:
        """Bytes per thread that do not fit the registers and are stored to local memory."""
        return self.spill_store_bytes

    @property
    def fits(self) -> bool:
        """Whether the device gives one thread block so much shared memory, registers and warps."""
        return self.shared_bytes <= self.device.max_shared_bytes_per_block and self.ctas_per_sm > 0

    @property
    def uses_tensor_cores(self) -> bool:
        """Whether the machine code contains matrix instructions."""
        return bool(self.tensor_core_instructions)

    @property
    def ptx(self) -> str:
        """The code for NVIDIA's virtual machine."""
        return self.asm["ptx"]

    @property
    def sass(self) -> str:
        """The machine code."""
        return self.asm["sass"]

    def line_text(self, place: tuple[str, int]) -> str:
        """A line of the kernel's file; "" if the place is in another file."""
        file, line = place
        index = line - self.source.first_line
        if file != self.source.file:
            return ""
        if 0 <= index < len(self.source.lines):
            return self.source.lines[index].strip()
        return linecache.getline(self.source.function.__code__.co_filename, line).strip()

    def __str__(self) -> str:
        return as_text(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_dict(self, *, code: bool = False) -> dict[str, Any]:
        """Plain numbers, texts, lists and dictionaries, fit for JSON.

        Args:
            code: with PTX and SASS.
        """
        plain = (
            "kernel", "num_warps", "num_stages", "registers", "stack_bytes", "spill_store_bytes", "spill_load_bytes",
            "shared_bytes", "fits", "ctas_per_sm", "occupancy", "limited_by", "ctas_by_resource",
            "uses_tensor_cores", "tensor_core_instructions", "loads_by_width", "stores_by_width", "shared_memory_ops",
            "instruction_mix", "warnings",
        )  # fmt: skip
        loop = self.main_loop
        fields = ("num_instructions", "mix", "tensor_core_flops", "fp32_flops", "source_dot_flops", "iterations",
                  "flops_per_iteration", "loads_by_width", "loaded_bytes")  # fmt: skip
        made: dict[str, Any] = {name: getattr(self, name) for name in plain}
        made |= {
            "device": self.device.name,
            "compute_capability": self.device.compute_capability,
            "shared_bytes_limit": self.device.max_shared_bytes_per_block,
            "main_loop": {f: getattr(loop, f) for f in fields} | {"lines": list(loop.lines)} if loop else None,
            "accesses_by_line": {str(n): counts for n, counts in self.accesses_by_line.items()},
        }
        return made | ({"ptx": self.ptx, "sass": self.sass} if code else {})


def compile_report(
    kernel: Any,
    *args: Any,
    device: str | Device = "H100",
    num_warps: int | None = None,
    num_stages: int | None = None,
    **constants: Any,
) -> CompileReport:
    """Compile a kernel for a GPU without one, and say what came out.

    Args:
        kernel: a jit function, or one inside autotuners and heuristics (the first configuration counts, as in the
            simulator).
        args: example arguments, as in a launch. Tensors may be on any device, the meta device too: only dtype and
            storage offset are used. A number that is 1 or divisible by 16 is known to be so in the code.
        device: a name or `hardware.Device`; its compute capability is the target.
        num_warps, num_stages: options of the launch; by default the autotuner's, or 4 and 3 as in Triton.
        constants: values of the tl.constexpr parameters, and other arguments by name.

    Raises:
        SimulatorError: Triton is missing, the compiler refuses the kernel, or the arguments do not fit it.
        ValueError: an unknown device, or options that are no positive integers.
    """
    frontend.require_triton()
    target = get_device(device)
    names = list(_parameters(kernel))
    jit, options, _ = frontend.unwrap(kernel, dict(zip(names, args, strict=False)), dict(constants))
    source = kernel_source(frontend.kernel_function(jit))
    given = {k: v for k, v in options.items() if k in source.signature.parameters or k in constants}
    try:
        bound = source.signature.bind(*args, **given)
    except TypeError as error:
        raise SimulatorError(f"compiling {source.name}: {error}; its parameters are {', '.join(names)}") from None
    bound.apply_defaults()
    values = {name: frontend.constant_value(value) for name, value in bound.arguments.items()}
    warps = num_warps if num_warps is not None else options.get("num_warps", DEFAULT_WARPS)
    stages = num_stages if num_stages is not None else options.get("num_stages", DEFAULT_STAGES)
    return report_of(jit, values, target, warps, stages)


def _parameters(kernel: Any) -> Any:
    while not frontend.is_kernel(kernel) and hasattr(kernel, "fn"):
        kernel = kernel.fn
    if not frontend.is_kernel(kernel):
        raise SimulatorError(f"kernel must be a function decorated with @triton.jit, got a {type(kernel).__name__}")
    return kernel_source(frontend.kernel_function(kernel)).signature.parameters


def report_of(jit: Any, bound: dict[str, Any], device: Device, num_warps: int, num_stages: int) -> CompileReport:
    """The report for a jit function (no autotuner) whose parameters all have values."""
    for name, value in (("num_warps", num_warps), ("num_stages", num_stages)):
        if not isinstance(value, int) or value < 1 or (name == "num_warps" and value & (value - 1)):
            kind = "a power of two" if name == "num_warps" else "an integer of 1 or more"
            raise ValueError(f"{name} must be {kind}, got {value!r}")
    source = kernel_source(frontend.kernel_function(jit))
    return _report(build(jit, bound, device, num_warps, num_stages), source, device, num_stages)


def _report(made: Build, source: KernelSource, device: Device, num_stages: int) -> CompileReport:
    code, labels = sass.parse(made.sass_with_lines)
    facts = source_facts(made.asm["ttir"])
    fit = occupancy(
        device.compute_capability, registers=made.registers, num_warps=made.num_warps, shared_bytes=made.shared_bytes,
        tensor_memory_columns=made.tensor_memory_columns,
    )  # fmt: skip
    accesses = lowered_accesses(made.asm["llir"])
    report = CompileReport(
        kernel=made.name, device=device, num_warps=made.num_warps, num_stages=num_stages, registers=made.registers,
        stack_bytes=made.stack_bytes, spill_store_bytes=made.spill_store_bytes,
        spill_load_bytes=made.spill_load_bytes, shared_bytes=made.shared_bytes,
        ctas_per_sm=fit.ctas_per_sm, occupancy=fit.fraction, limited_by=fit.limited_by,
        ctas_by_resource=fit.ctas_by_resource,
        tensor_core_instructions=mix.tensor_instructions(code),
        loads_by_width=mix.by_width(code, "LDG", "LD", "LDGSTS", "UTMALDG", "UBLKCP"),
        stores_by_width=mix.by_width(code, "STG", "ST", "UTMASTG", "UTMAREDG"),
        shared_memory_ops={b: n for b in _SHARED if (n := sum(i.base == b for i in code))},
        instruction_mix=mix.mix(code),
        main_loop=main_loop(sass.loops(code, labels), facts, tcgen05_shapes(made.asm["ptx"]), made.num_warps),
        accesses_by_line=_by_line(accesses, source.file),
        asm=made.asm, source=source,
    )  # fmt: skip
    report.warnings.extend(warnings_for(report, facts, accesses))
    return report


def _by_line(accesses: list[Lowered], file: str) -> dict[int, dict[str, int]]:
    counts: dict[int, dict[str, int]] = {}
    for access in accesses:
        if access.place is not None and access.place[0] == file:
            found = counts.setdefault(access.place[1], {})
            key = f"{access.kind} {access.width} B"
            found[key] = found.get(key, 0) + 1
    return dict(sorted(counts.items()))
