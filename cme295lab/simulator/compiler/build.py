"""Compile a kernel for a GPU that need not be there: from a jit function to machine code and what ptxas says of it.

Triton carries the assembler (ptxas) and disassembler (nvdisasm) of CUDA, so no driver is needed. Results are kept for
the life of the process.
"""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cme295lab.hardware import Device
from cme295lab.simulator import frontend
from cme295lab.simulator.compiler.failures import refusal
from cme295lab.simulator.compiler.signature import Signature, signature_of
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.source import KernelSource, kernel_source

OLDEST = 80  # compute capability that Triton supports
_KEPT = 256
_built: dict[tuple[Any, ...], Build] = {}


@dataclass(frozen=True)
class Build:
    """A compiled kernel, as text and numbers.

    Attributes:
        name: the kernel's.
        asm: "ttir", "ttgir", "llir", "ptx", and "sass" (without source lines).
        sass_with_lines: the disassembly with the source line above the instructions that it led to.
        registers: per thread.
        stack_bytes, spill_store_bytes, spill_load_bytes: local memory per thread, as ptxas -v reports it.
        shared_bytes: of one thread block, static and dynamic.
        num_warps: of one thread block, with those that warp specialisation adds.
        tensor_memory_columns: of one thread block (sm_100).
    """

    name: str
    asm: dict[str, str]
    sass_with_lines: str
    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    num_warps: int
    tensor_memory_columns: int


def build(kernel: Any, bound: dict[str, Any], device: Device, num_warps: int, num_stages: int) -> Build:
    """Compile, or take what was compiled before.

    Args:
        kernel: a jit function (no autotuner).
        bound: value of every parameter, by name.
        device: its compute capability is the target.
        num_warps, num_stages: options of the launch.

    Raises:
        SimulatorError: Triton is missing, or refuses the kernel.
    """
    frontend.require_triton()
    source = kernel_source(frontend.kernel_function(kernel))
    jit = _jit_function(kernel, source)
    if device.compute_capability < OLDEST:
        raise SimulatorError(
            f"Triton compiles for sm_{OLDEST} and later; {device.name} is sm_{device.compute_capability}"
        )
    signature = signature_of(jit, source.function, bound)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    key = (jit.cache_key, signature.key(), device.compute_capability, num_warps, num_stages)
    if key not in _built:
        if len(_built) >= _KEPT:
            _built.pop(next(iter(_built)))
        _built[key] = _compile(jit, source, signature, device, options)
    return _built[key]


def _jit_function(kernel: Any, source: KernelSource) -> Any:
    """Under TRITON_INTERPRET=1 the decorator gives something else, which the compiler does not take."""
    if hasattr(kernel, "cache_key"):
        return kernel
    raise SimulatorError(
        f"Triton cannot compile {source.name}: it was decorated while TRITON_INTERPRET=1 was set; "
        "unset it and start Python again"
    )


def _compile(jit: Any, source: KernelSource, signature: Signature, device: Device, options: dict[str, int]) -> Build:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    printed = io.StringIO()  # Triton prints the whole PTX when the assembler fails
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.filterwarnings("ignore", message="TRITON_DEFAULT_FP_FUSION")  # news of a coming default
            binary = triton_compile(
                ASTSource(jit, signature.types, constexprs=signature.constants, attrs=signature.attributes),
                target=GPUTarget("cuda", device.compute_capability, 32),
                options=options,
            )
    except Exception as error:  # Triton's and MLIR's own kinds; all mean that this kernel cannot be compiled
        raise refusal(source, device, error) from error
    asm = {k: v for k, v in binary.asm.items() if isinstance(v, str)}
    tools = _Tools(device.compute_capability)
    usage = tools.resources(asm["ptx"])
    sass = tools.disassemble(binary.asm["cubin"])
    asm["sass"] = re.sub(r"^\s*//## File .*\n", "", sass, flags=re.MULTILINE)
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", asm["ptx"])
    return Build(
        name=source.name,
        asm=asm,
        sass_with_lines=sass,
        registers=usage["registers"],
        stack_bytes=usage["stack"],
        spill_store_bytes=usage["spill_stores"],
        spill_load_bytes=usage["spill_loads"],
        shared_bytes=int(binary.metadata.shared) + usage["static_shared"],
        num_warps=int(threads[1]) // 32 if threads else int(binary.metadata.num_warps),
        tensor_memory_columns=int(getattr(binary.metadata, "tmem_size", 0) or 0),
    )


class _Tools:
    """The programs of CUDA that Triton carries."""

    def __init__(self, compute_capability: int) -> None:
        import triton
        from triton.backends.nvidia.compiler import get_ptxas

        self.folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        self.ptxas = str(get_ptxas(compute_capability).path)
        version = tuple(int(n) for n in triton.__version__.split(".")[:2])
        # As in Triton's own call, or other registers would be counted than those of its machine code.
        self.flags = ["-lineinfo", *(["--regAllocOptLevel=2"] if version >= (3, 7) else [])]

    def resources(self, ptx: str) -> dict[str, int]:
        """Registers, stack, spills and static shared memory, from the words of `ptxas -v`."""
        target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
        assert target is not None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.ptx"
            file.write_text(ptx)
            words = _run(
                [self.ptxas, "-v", *self.flags, f"--gpu-name={target[1]}", str(file), "-o", f"{folder}/kernel.cubin"]
            )
        found = {
            "registers": r"Used (\d+) registers",
            "stack": r"(\d+) bytes stack frame",
            "spill_stores": r"(\d+) bytes spill stores",
            "spill_loads": r"(\d+) bytes spill loads",
            "static_shared": r"(\d+) bytes smem",
        }
        return {name: sum(map(int, re.findall(pattern, words)[:1])) for name, pattern in found.items()}

    def disassemble(self, cubin: bytes) -> str:
        """SASS with source lines."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "kernel.cubin"
            file.write_bytes(cubin)
            return _run([str(self.folder / "nvdisasm"), "-c", "-g", str(file)])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SimulatorError(f"{Path(command[0]).name} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout + done.stderr
