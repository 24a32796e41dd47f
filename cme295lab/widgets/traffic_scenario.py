"""What a given attention call costs on a given GPU: bytes, FLOPs, best possible time, and whether its blocks fit.

One pure function, `traffic_scenario`, and the record it returns. The formulas are those of `cme295lab.attention.io` and
`working_set`; here they are only put together.
"""

from dataclasses import dataclass
from typing import ClassVar

from cme295lab.attention import io
from cme295lab.hardware import Device, get_device
from cme295lab.widgets.working_set import ELEMENT_BYTES, WorkingSet, working_set


@dataclass(frozen=True, kw_only=True)
class AttentionCost:
    """Cost of one implementation for all heads.

    Attributes:
        num_bytes: bytes to and from HBM.
        flops: floating-point operations of the matrix products.
        seconds: the roofline's lower limit, max(flops / peak, bytes / bandwidth).
    """

    num_bytes: float
    flops: float
    seconds: float

    @property
    def intensity(self) -> float:
        """FLOP per byte of HBM traffic."""
        return self.flops / self.num_bytes


@dataclass(frozen=True, kw_only=True)
class TrafficScenario:
    """An attention call, what it costs, and what it needs on chip.

    Attributes:
        seq, head_dim, num_heads, block_m, block_n, sram_bytes, dtype, causal, backward, device: the call, as given.
        element_bytes: bytes of an element in `dtype`.
        standard: scores and probabilities written to HBM and read back, masked or not.
        flash: FlashAttention-2's order of loops with these block sizes, as in the course's kernels. With a causal mask
            the forward pass skips tiles; the backward pass is counted without skipping.
        flash1_bytes: FlashAttention's first algorithm, with the blocks that fill the given SRAM.
        lower_bound_bytes: N² d² / M per head; no exact algorithm can be of a lower order, but the constant is open.
        working_set: what a program of the forward pass holds on chip.
        tile_limit_bytes: shared memory that a block may use, scaled with `sram_bytes`.
        accumulator_limit_bytes: registers of an SM.
    """

    BAR_NAMES: ClassVar[tuple[str, ...]] = ("standard", "flash", "flash, Alg. 1", "N²d²/M")

    seq: int
    head_dim: int
    num_heads: int
    block_m: int
    block_n: int
    sram_bytes: int
    dtype: str
    causal: bool
    backward: bool
    device: Device
    element_bytes: int
    standard: AttentionCost
    flash: AttentionCost
    flash1_bytes: float
    lower_bound_bytes: float
    working_set: WorkingSet
    tile_limit_bytes: float
    accumulator_limit_bytes: int

    @property
    def fits(self) -> bool:
        """Whether tiles fit the shared memory and sums the registers."""
        return (
            self.working_set.tile_bytes <= self.tile_limit_bytes
            and self.working_set.accumulator_bytes <= self.accumulator_limit_bytes
        )

    @property
    def bars(self) -> dict[str, float]:
        """Bytes by `BAR_NAMES`."""
        values = (self.standard.num_bytes, self.flash.num_bytes, self.flash1_bytes, self.lower_bound_bytes)
        return dict(zip(self.BAR_NAMES, values, strict=True))


def traffic_scenario(
    *,
    seq: int,
    head_dim: int,
    num_heads: int = 1,
    block_m: int = 128,
    block_n: int = 64,
    device: str | Device = "A100",
    sram_bytes: int | None = None,
    dtype: str = "fp16",
    causal: bool = False,
    backward: bool = False,
) -> TrafficScenario:
    """Put together what an attention call costs.

    Args:
        seq: sequence length N of queries and keys.
        head_dim: width d of a head.
        num_heads: independent attention problems: heads times batch.
        block_m: rows of Q per program, a power of two from 16.
        block_n: rows of K and V per step, a power of two from 16.
        device: GPU, for peak, bandwidth and memories.
        sram_bytes: SRAM of an SM, in place of the GPU's.
        dtype: "fp16", "bf16" or "fp32".
        causal: query i sees keys up to i only.
        backward: count the backward pass as well as the forward one.

    Returns:
        The record with all numbers.

    Raises:
        ValueError: if a size is not positive or no power of two where one is needed, or the GPU or dtype is unknown.
    """
    device = get_device(device)
    sram_bytes = device.sram_bytes_per_sm if sram_bytes is None else sram_bytes
    _check_positive(seq=seq, head_dim=head_dim, num_heads=num_heads, sram_bytes=sram_bytes)
    on_chip = working_set(block_m=block_m, block_n=block_n, head_dim=head_dim, dtype=dtype)
    element_bytes = ELEMENT_BYTES[dtype]
    moved = _elements(seq, head_dim, sram_bytes // element_bytes, block_m, block_n, causal, backward)
    standard, flash, flash1, lower_bound = (num_heads * element_bytes * elements for elements in moved)
    standard_flops, flash_flops = (
        io.attention_flops(seq, head_dim, num_heads, causal=causal, backward=backward, recompute=recompute)
        for recompute in (False, True)
    )
    return TrafficScenario(
        seq=seq,
        head_dim=head_dim,
        num_heads=num_heads,
        block_m=block_m,
        block_n=block_n,
        sram_bytes=sram_bytes,
        dtype=dtype,
        causal=causal,
        backward=backward,
        device=device,
        element_bytes=element_bytes,
        standard=_cost(standard, standard_flops, device, dtype),
        flash=_cost(flash, flash_flops, device, dtype),
        flash1_bytes=flash1,
        lower_bound_bytes=lower_bound,
        working_set=on_chip,
        tile_limit_bytes=device.max_shared_bytes_per_block * sram_bytes / device.sram_bytes_per_sm,
        accumulator_limit_bytes=device.register_bytes_per_sm,
    )


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _cost(num_bytes: float, flops: float, device: Device, dtype: str) -> AttentionCost:
    seconds = max(flops / device.peak(dtype), num_bytes / device.bandwidth_bytes_per_s)
    return AttentionCost(num_bytes=num_bytes, flops=flops, seconds=seconds)


def _elements(
    seq: int, head_dim: int, sram_elements: int, block_m: int, block_n: int, causal: bool, backward: bool
) -> tuple[float, float, float, float]:
    """Elements per head: standard, flash with these blocks, flash with the first paper's blocks, lower bound."""
    standard = io.standard_forward_elements(seq, head_dim)
    flash = io.flash2_forward_elements(seq, head_dim, block_m, causal=causal, block_n=block_n)
    flash1 = io.flash1_forward_elements(seq, head_dim, sram_elements)
    if backward:
        standard += io.standard_backward_elements(seq, head_dim)
        flash += io.flash2_backward_elements(seq, head_dim, block_m, block_n)
        flash1 += io.flash1_backward_elements(seq, head_dim, sram_elements)
    return standard, flash, flash1, io.lower_bound_elements(seq, head_dim, sram_elements)
