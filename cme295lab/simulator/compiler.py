"""What Triton's compiler makes of a kernel for a GPU that need not be there: registers, spills, shared memory,
assembly.

Triton carries the assembler and disassembler of CUDA; a compilation for sm_80, sm_90 or sm_100 needs no driver.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cme295lab.hardware import Device, get_device
from cme295lab.simulator import frontend
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.source import kernel_source
from cme295lab.units import format_bytes

_POINTER_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.uint16: "u16",
    torch.uint32: "u32",
    torch.uint64: "u64",
    torch.float8_e5m2: "fp8e5",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.bool: "i1",
}
_ALIGNMENT = 16


@dataclass(frozen=True, kw_only=True, repr=False)
class Compiled:
    """A kernel compiled for one GPU.

    Attributes:
        kernel, device: what, and for which GPU.
        registers: registers per thread.
        spill_bytes: local memory per thread that the assembler stores registers in.
        shared_bytes: shared memory of one thread block.
        num_warps: warps of one thread block.
        fits: whether the device gives one block so much shared memory.
        asm: the stages of the compilation by name: "ttir", "ttgir", "llir", "ptx", "sass".
    """

    kernel: str
    device: Device
    registers: int
    spill_bytes: int
    shared_bytes: int
    num_warps: int
    asm: dict[str, str] = field(repr=False)

    @property
    def fits(self) -> bool:
        return self.shared_bytes <= self.device.max_shared_bytes_per_block

    def __str__(self) -> str:
        shared, limit = (
            format_bytes(n, binary=True) for n in (self.shared_bytes, self.device.max_shared_bytes_per_block)
        )
        verdict = "fits" if self.fits else "does not fit"
        cores = "tensor cores" if self.uses_tensor_cores else "no tensor cores"
        return (
            f"{self.kernel} on {self.device.name}: {self.registers} registers a thread, {self.spill_bytes} B spilled, "
            f"{shared} of {limit} shared memory ({verdict}), {self.num_warps} warps, {cores}"
        )

    __repr__ = __str__

    @property
    def uses_tensor_cores(self) -> bool:
        """Whether the machine code contains matrix instructions."""
        return bool(re.search(r"\b(HMMA|IMMA|QMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA)", self.asm["sass"]))


def compile_kernel(
    kernel: Any, *args: Any, device: str | Device = "H100", num_warps: int = 4, num_stages: int = 3, **constants: Any
) -> Compiled:
    """Compile a kernel for a GPU without one.

    Args:
        kernel: a jit function.
        args: example arguments, as in a launch (tensors may be on the CPU or the meta device; only their types are
            used).
        device: a name or `hardware.Device`; its compute capability is the target.
        num_warps, num_stages: options of the launch.
        constants: values of the tl.constexpr parameters, and other arguments by name.

    Raises:
        SimulatorError: Triton is missing, or the compiler refuses the kernel.
    """
    frontend.require_triton()
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    target = get_device(device)
    source = kernel_source(frontend.kernel_function(kernel))
    try:
        bound = source.signature.bind(*args, **constants)
    except TypeError as error:
        parameters = ", ".join(source.signature.parameters)
        raise SimulatorError(f"compiling {source.name}: {error}; its parameters are {parameters}") from None
    bound.apply_defaults()
    signature, fixed, attributes = _signature(source.function, dict(bound.arguments))
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # news of a coming default
            binary = triton_compile(
                ASTSource(kernel, signature, constexprs=fixed, attrs=attributes),
                target=GPUTarget("cuda", target.compute_capability, 32),
                options={"num_warps": num_warps, "num_stages": num_stages},
            )
    except Exception as error:  # Triton's and MLIR's own kinds; all mean that this kernel cannot be compiled
        raise SimulatorError(
            f"Triton cannot compile {source.name} for {target.name} (sm_{target.compute_capability}): {error}"
        ) from error
    usage, sass = _inspect(binary.asm["cubin"])
    asm = {k: v for k, v in binary.asm.items() if isinstance(v, str)} | {"sass": sass}
    return Compiled(
        kernel=source.name,
        device=target,
        registers=usage.get("REG", 0),
        spill_bytes=usage.get("LOCAL", 0) or usage.get("STACK", 0),
        shared_bytes=int(binary.metadata.shared),
        num_warps=int(binary.metadata.num_warps),
        asm=asm,
    )


def _signature(
    function: Any, bound: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int, ...], list[list[Any]]]]:
    """Types, constants and alignment hints, as a launch would derive them from the arguments."""
    constant_names = frontend.constexpr_names(function)
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for position, (name, value) in enumerate(bound.items()):
        if (
            name in constant_names
            or value is None
            or (isinstance(value, int) and not isinstance(value, bool) and value == 1)
        ):
            signature[name], fixed[name] = "constexpr", value
        elif isinstance(value, torch.Tensor) and value.dtype not in _POINTER_TYPES:
            raise SimulatorError(f"compile_kernel: argument {name!r} of dtype {value.dtype} has no type in a kernel")
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{_POINTER_TYPES[value.dtype]}"
            attributes[(position,)] = [["tt.divisibility", _ALIGNMENT]]
        elif isinstance(value, bool):
            signature[name] = "i1"
        elif isinstance(value, int):
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % _ALIGNMENT == 0:
                attributes[(position,)] = [["tt.divisibility", _ALIGNMENT]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            raise SimulatorError(
                f"compile_kernel: argument {name!r} of type {type(value).__name__} has no type in a kernel"
            )
    return signature, fixed, attributes


def _inspect(cubin: bytes) -> tuple[dict[str, int], str]:
    """Resource usage and disassembly of machine code."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run([str(tools / "cuobjdump"), "-res-usage", str(path)])
        sass = _run([str(tools / "nvdisasm"), "-c", str(path)])
    return {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage)}, sass


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr
