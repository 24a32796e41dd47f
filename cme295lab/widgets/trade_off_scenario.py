"""What each ZeRO stage saves and what it costs: bytes per GPU against the time of a step, for a link of any speed.

One pure function, `trade_off`, and the records it returns. The formulas are those of `cme295lab.memory` (bytes of
weights, gradients and optimizer state in mixed precision) and `step_time` in `cme295lab.parallel.communication` (what
communication does not hide behind computing); here they are only put together. A step computes 6 FLOP per parameter
and token.
"""

from dataclasses import dataclass

from cme295lab.hardware import Device, get_device
from cme295lab.memory import zero_model_state_bytes
from cme295lab.parallel.communication.cost_model import Link
from cme295lab.parallel.communication.step_time import StepTime, training_step_time

STAGES = (0, 1, 2, 3)
_BYTES_ON_THE_WIRE = 2  # gradients and weights travel in 16 bits
_NUM_MESSAGES = 32  # buckets, or layers, in which they are sent
_LATENCY_S = 5e-6


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One stage.

    Attributes:
        stage: 0 is plain data parallelism.
        state_bytes: weights, gradients and optimizer state on each GPU.
        time: of a step, and where it goes.
    """

    stage: int
    state_bytes: float
    time: StepTime


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """All stages side by side.

    Attributes:
        num_parameters, num_ranks, tokens_per_gpu, link_bytes_per_s, utilisation, overlap, device: as given.
        stages: one cost per stage.
    """

    num_parameters: float
    num_ranks: int
    tokens_per_gpu: int
    link_bytes_per_s: float
    utilisation: float
    overlap: float
    device: Device
    stages: tuple[StageCost, ...]

    @property
    def cheapest_that_fits(self) -> StageCost | None:
        """The fastest stage whose states fit the GPU, the lowest one if several are equally fast; None if none fits."""
        fitting = [cost for cost in self.stages if cost.state_bytes <= self.device.memory_bytes]
        return min(fitting, key=lambda cost: (cost.time.step_s, cost.stage), default=None)


def trade_off(
    *,
    num_parameters: float,
    num_ranks: int,
    tokens_per_gpu: int = 8192,
    link_bytes_per_s: float = 50e9,
    utilisation: float = 0.4,
    overlap: float = 0.9,
    device: str | Device = "A100",
) -> TradeOff:
    """Put together what each stage takes and costs.

    Args:
        num_parameters: parameters of the model.
        num_ranks: GPUs.
        tokens_per_gpu: tokens that each GPU processes in a step.
        link_bytes_per_s: bandwidth of each GPU's link, in one direction.
        utilisation: share of the GPU's bf16 peak that is reached while it computes.
        overlap: share of the communication that may run beside the computation.
        device: the GPU, for its peak and its memory.

    Returns:
        The record with all numbers.

    Raises:
        ValueError: if a value is out of range.
    """
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation must be above 0 and at most 1, got {utilisation}")
    if tokens_per_gpu < 1 or num_parameters < 1:
        raise ValueError(f"tokens_per_gpu and num_parameters must be positive, got {tokens_per_gpu}, {num_parameters}")
    gpu = get_device(device)
    link = Link(name="link", latency_s=_LATENCY_S, bandwidth_bytes_per_s=link_bytes_per_s)
    compute_s = 6 * num_parameters * tokens_per_gpu / (gpu.peak("bf16") * utilisation)
    stages = tuple(
        StageCost(
            stage=stage,
            state_bytes=float(zero_model_state_bytes(int(num_parameters), num_ranks, stage=stage)),
            time=training_step_time(
                compute_s=compute_s, gradient_bytes=_BYTES_ON_THE_WIRE * num_parameters, num_ranks=num_ranks, link=link,
                stage=stage, overlap=overlap, num_messages=_NUM_MESSAGES,
            ),
        )
        for stage in STAGES
    )  # fmt: skip
    return TradeOff(
        num_parameters=num_parameters, num_ranks=num_ranks, tokens_per_gpu=tokens_per_gpu,
        link_bytes_per_s=link_bytes_per_s, utilisation=utilisation, overlap=overlap, device=gpu, stages=stages,
    )  # fmt: skip
