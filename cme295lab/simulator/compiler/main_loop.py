"""The loop that does the work: found in the machine code, and weighed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cme295lab.simulator.compiler import mix
from cme295lab.simulator.compiler.ir import SourceFacts
from cme295lab.simulator.compiler.sass import Instruction, Loop

_LOADS = ("LDG", "LDGSTS")
_WARP = 32
Shapes = dict[int | None, list[tuple[int, int, int]]]


@dataclass(frozen=True, kw_only=True)
class MainLoop:
    """One pass through the loop, by all warps of a thread block.

    Attributes:
        num_instructions: of one warp.
        mix: instructions by class (`mix.CLASSES`).
        tensor_core_flops: FLOPs of its matrix instructions; None if their shape is not known.
        fp32_flops: FLOPs of its fp32 instructions, if all threads execute each.
        source_dot_flops: FLOPs of the tl.dot in one iteration of the source's loop; 0 without one.
        iterations: how many times the products of one iteration of the source's loop one pass does: more than 1 if
            the loop is unrolled, or if the tile is so small that warps do the same work twice. None if there are none,
            or if it does not come out as a whole number.
        loads_by_width: loads from global memory, as in `CompileReport`.
        loaded_bytes: bytes that these load, if no lane is masked; without TMA, whose boxes the code does not show.
        lines: source lines that it comes from, sorted.
    """

    num_instructions: int
    mix: dict[str, int]
    tensor_core_flops: int | None
    fp32_flops: int
    source_dot_flops: int
    iterations: int | None
    loads_by_width: dict[str, int]
    loaded_bytes: int
    lines: tuple[int, ...]
    instructions: tuple[Instruction, ...] = field(repr=False)

    @property
    def flops_per_iteration(self) -> int | None:
        """FLOPs of matrix products in one iteration of the source's loop, counted in the machine code: from the shapes
        of the matrix instructions, or without these, from all fp32 instructions of a loop with a tl.dot."""
        flops = self.tensor_core_flops or (self.fp32_flops if self.source_dot_flops else None)
        return flops // self.iterations if flops and self.iterations else flops


def main_loop(loops: Sequence[Loop], facts: SourceFacts, shapes: Shapes, num_warps: int) -> MainLoop | None:
    """The smallest loop with at least a quarter of the matrix instructions in loops; without such instructions, the
    one with most floating-point work and accesses to global memory.

    Args:
        loops: all loops of the kernel.
        facts: what the intermediate code says of the source.
        shapes: of matrix instructions that keep theirs in a register, by source line.
        num_warps: of a thread block.
    """
    chosen = _choose(loops)
    if chosen is None:
        return None
    code = chosen.instructions
    tensor = _tensor_flops(code, shapes, num_warps)
    floats = mix.float_flops(code, num_warps)
    done = tensor if any(map(mix.is_tensor, code)) else None
    dot, iterations = _iterations(done, floats, facts)
    widths = mix.by_width(code, *_LOADS, "UTMALDG")
    return MainLoop(
        num_instructions=len(code),
        mix=mix.mix(code),
        tensor_core_flops=tensor,
        fp32_flops=floats,
        source_dot_flops=dot,
        iterations=iterations,
        loads_by_width=widths,
        loaded_bytes=sum(mix.width_of_key(k) * n for k, n in widths.items()) * _WARP * num_warps,
        lines=tuple(sorted({i.line for i in code if i.line is not None})),
        instructions=code,
    )


def _choose(loops: Sequence[Loop]) -> Loop | None:
    def products(loop: Loop) -> int:
        return sum(map(mix.is_tensor, loop.instructions))

    most = max(map(products, loops), default=0)
    if most:
        total = len({i.address for x in loops for i in x.instructions if mix.is_tensor(i)})
        enough = [x for x in loops if products(x) >= max(1, total / 4)] or [x for x in loops if products(x) == most]
        return min(enough, key=len)
    return max(loops, key=lambda x: (_work(x), -len(x)), default=None) if any(map(_work, loops)) else None


def _work(loop: Loop) -> int:
    kinds = {"global loads", "async copies", "TMA", "global stores", "atomics", "fp32", "fp16", "fp64",
             "special functions"}  # fmt: skip
    return sum(mix.class_of(i) in kinds for i in loop.instructions)


def _tensor_flops(code: Sequence[Instruction], shapes: Shapes, num_warps: int) -> int | None:
    """Sum over the matrix instructions. Those whose shape is in a register take the shapes of their source line, in
    turn."""
    total = 0
    used: dict[int | None, int] = defaultdict(int)
    everything = [s for found in shapes.values() for s in found]
    for instruction in filter(mix.is_tensor, code):
        known = shapes.get(instruction.line) or (everything if len(set(everything)) == 1 else [])
        shape = known[used[instruction.line] % len(known)] if known else None
        used[instruction.line] += 1
        flops = mix.tensor_flops(instruction, num_warps, shape)
        if flops is None:
            return None
        total += flops
    return total


def _iterations(tensor: int | None, floats: int, facts: SourceFacts) -> tuple[int, int | None]:
    """FLOPs of tl.dot per iteration of the source's loop, and how many iterations one pass does."""
    loops = [(sum(d.flops * d.parts for d in dots), sum(d.flops for d in dots)) for dots in facts.loop_dots]
    if not loops:
        return 0, None
    executed, counted = max(loops)
    for candidate, flops in loops:
        if candidate == tensor:
            executed, counted = candidate, flops
    if tensor:
        return counted, tensor // executed if tensor % executed == 0 else None
    return counted, floats // counted or None  # a loop has other fp32 work too
