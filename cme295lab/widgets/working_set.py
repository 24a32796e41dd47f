"""What a program of flash attention holds on chip, from its block sizes: the reason why blocks cannot grow forever."""

from dataclasses import dataclass

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of an element in the number formats that the attention kernels take."""


@dataclass(frozen=True, kw_only=True)
class WorkingSet:
    """On-chip bytes of one program.

    Attributes:
        tile_bytes: tiles of Q, K and V in the inputs' dtype, which wait in shared memory.
        accumulator_bytes: scores, output, running maximum and sum in fp32, which live in registers.
    """

    tile_bytes: int
    accumulator_bytes: int


def working_set(*, block_m: int, block_n: int, head_dim: int, dtype: str = "fp16") -> WorkingSet:
    """Count the on-chip bytes of one program of the forward pass.

    tiles: (block_m + 2 block_n) d element bytes; accumulators: 4 (block_m block_n + block_m d + 2 block_m).

    A compiler can do better (reuse registers) or worse (several tiles in flight), so this is an estimate; what a
    kernel really takes is in its compile report.

    Args:
        block_m: rows of Q per program, a power of two from 16.
        block_n: rows of K and V per step, a power of two from 16.
        head_dim: width d of a head.
        dtype: "fp16", "bf16" or "fp32".

    Returns:
        The bytes, by where they live.

    Raises:
        ValueError: if a size is not as above or the dtype is unknown.
    """
    for name, block in (("block_m", block_m), ("block_n", block_n)):
        if block < 16 or block & (block - 1):
            raise ValueError(f"{name} must be a power of two and at least 16 (what a tensor core takes), got {block}")
    if head_dim < 1:
        raise ValueError(f"head_dim must be at least 1, got {head_dim}")
    if dtype not in ELEMENT_BYTES:
        raise ValueError(f"dtype must be one of {', '.join(ELEMENT_BYTES)}, got {dtype!r}")
    return WorkingSet(
        tile_bytes=(block_m + 2 * block_n) * head_dim * ELEMENT_BYTES[dtype],
        accumulator_bytes=4 * (block_m * block_n + block_m * head_dim + 2 * block_m),
    )
