"""How many thread blocks of a kernel fit on a streaming multiprocessor at once, and which resource ends first."""

from __future__ import annotations

from dataclasses import dataclass

from cme295lab.simulator.errors import SimulatorError
from cme295lab.units import KiB

WARP = 32
_RESERVED_SHARED_BYTES = 1 * KiB  # the driver takes this much of every block, from sm_80 on
_SHARED_GRANULARITY = 128
_REGISTER_GRANULARITY = 256  # registers are given to warps in units of so many
_PARTITIONS = 4  # each has a quarter of the registers, and a warp lives in one


@dataclass(frozen=True)
class Limits:
    """What one SM has to give.

    Source: CUDA C++ Programming Guide, appendix "Compute capabilities", table "Technical specifications per compute
    capability"; the units of allocation are those of the occupancy calculator in NVIDIA's Nsight Compute.
    """

    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    tensor_memory_columns: int = 0


LIMITS = {
    80: Limits(64, 32, 164 * KiB),
    86: Limits(48, 16, 100 * KiB),
    87: Limits(48, 16, 164 * KiB),
    89: Limits(48, 24, 100 * KiB),
    90: Limits(64, 32, 228 * KiB),
    100: Limits(64, 32, 228 * KiB, tensor_memory_columns=512),
    103: Limits(64, 32, 228 * KiB, tensor_memory_columns=512),
    120: Limits(48, 24, 100 * KiB),
    121: Limits(48, 24, 100 * KiB),
}
"""By compute capability (80 for sm_80)."""


@dataclass(frozen=True)
class Occupancy:
    """Attributes:
    ctas_per_sm: thread blocks that an SM runs at once; 0 if not even one fits.
    fraction: their warps over the most that an SM can hold.
    limited_by: the resource that ends first, "registers", "shared memory", "warps", "blocks" or "tensor memory"; two
        that end together are joined by " and ".
    ctas_by_resource: how many thread blocks each resource alone would allow.
    """

    ctas_per_sm: int
    fraction: float
    limited_by: str
    ctas_by_resource: dict[str, int]


def occupancy(
    compute_capability: int, *, registers: int, num_warps: int, shared_bytes: int, tensor_memory_columns: int = 0
) -> Occupancy:
    """The thread blocks of one kernel that an SM can hold.

    Args:
        compute_capability: 80 for sm_80; one of `LIMITS`.
        registers: per thread.
        num_warps: per thread block.
        shared_bytes: per thread block, static and dynamic together.
        tensor_memory_columns: per thread block (sm_100 and later).

    Raises:
        SimulatorError: the limits of this architecture are not known.
    """
    if compute_capability not in LIMITS:
        raise SimulatorError(
            f"the limits of sm_{compute_capability} are not known; known are "
            f"{', '.join(f'sm_{c}' for c in LIMITS)} (cme295lab.simulator.compiler.occupancy.LIMITS)"
        )
    sm = LIMITS[compute_capability]
    per_warp = _round_up(registers * WARP, _REGISTER_GRANULARITY)
    warps_by_registers = sm.registers // _PARTITIONS // per_warp * _PARTITIONS if registers else sm.warps
    per_block = _round_up(shared_bytes + _RESERVED_SHARED_BYTES, _SHARED_GRANULARITY)
    by_resource = {
        "registers": warps_by_registers // num_warps,
        "shared memory": sm.shared_bytes // per_block,
        "warps": sm.warps // num_warps,
        "blocks": sm.blocks,
    }
    if tensor_memory_columns:
        by_resource["tensor memory"] = sm.tensor_memory_columns // tensor_memory_columns
    count = min(by_resource.values())
    return Occupancy(
        ctas_per_sm=count,
        fraction=count * num_warps / sm.warps,
        limited_by=" and ".join(name for name, n in by_resource.items() if n == count),
        ctas_by_resource=by_resource,
    )


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
