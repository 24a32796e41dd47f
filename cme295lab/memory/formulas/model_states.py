"""Bytes of weights, gradients, master weights and optimizer states; whole, and sharded by ZeRO.

What an optimizer keeps for a tensor of n elements, with states of s bytes:

    sgd             nothing
    sgd-momentum    n s                               a running mean of gradients
    adam, adamw     2 n s + 4                         means of gradients and of their squares; torch's step counter
    adam-8bit       2 n + 2 × 4 ceil(n / 256)         one byte each, and an fp32 maximum per block of 256 elements; a
                                                      tensor below 4096 elements keeps fp32 states (bitsandbytes; the
                                                      paper's blocks have 2048)
    adafactor       s (rows + columns) + 4            of a matrix; a vector keeps s n

ZeRO divides these by the number of ranks N: stage 1 the masters and states, stage 2 also the gradients, stage 3 also
the weights. For Ψ parameters in 16-bit precision with Adam (K = 12 bytes of masters and states per parameter):

    stage 0  (2 + 2 + K) Ψ      1  (2 + 2) Ψ + K Ψ / N      2  2 Ψ + (2 + K) Ψ / N      3  (2 + 2 + K) Ψ / N

    >>> [zero_model_state_bytes(7_500_000_000, 64, stage) / 1e9 for stage in (0, 1, 2, 3)]
    [120.0, 31.40625, 16.640625, 1.875]

Source: Rajbhandari et al. 2020, "ZeRO", §3.1, §5 and Fig. 1; Dettmers et al. 2022, "8-bit Optimizers via Block-wise
Quantization"; Shazeer and Stern 2018, "Adafactor".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import get_args

from cme295lab.memory.formulas.precision import PrecisionPolicy, get_policy
from cme295lab.memory.formulas.setting import Optimizer, check_count
from cme295lab.memory.formulas.shapes import ParameterShape

STEP_COUNTER_BYTES = 4  # torch's Adam and Adafactor count steps in an fp32 number per tensor
EIGHT_BIT_BLOCK = 256
EIGHT_BIT_SMALLEST = 4096  # elements; bitsandbytes leaves smaller tensors in fp32
_CONSTANTS_PER_GROUP = 256  # in QLoRA's double quantisation
_STATES_PER_PARAMETER = {"sgd": 0, "sgd-momentum": 1, "adam": 2, "adamw": 2}


@dataclass(frozen=True, kw_only=True)
class ModelStates:
    """Bytes of model states on one rank; `total` is their sum."""

    weights: int
    gradients: int
    masters: int
    states: int
    counters: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, item.name) for item in fields(self))


def bytes_per_parameter(policy: str | PrecisionPolicy = "bf16-mixed", optimizer: Optimizer = "adamw") -> Fraction:
    """Bytes of model states per parameter, without step counters.

    Args:
        policy: number formats, or the name of them.
        optimizer: an optimizer with a fixed number of bytes per parameter: all but Adafactor.

    Raises:
        ValueError: for Adafactor, whose states grow with the sides of a matrix and not with its area.

        >>> bytes_per_parameter("bf16-mixed"), bytes_per_parameter("bf16-fp32-states"), bytes_per_parameter("bf16-pure")
        (Fraction(16, 1), Fraction(12, 1), Fraction(8, 1))
    """
    formats = get_policy(policy)
    return formats.weight_bytes + formats.gradient_bytes + formats.master_bytes + _per_parameter(formats, optimizer)


def blockwise_bits_per_parameter(bits: int = 4, *, block_size: int = 64, double_quantization: bool = True) -> Fraction:
    """Bits per weight of a base quantised in blocks, as QLoRA keeps it: the code, and its share of the constants.

    Each block has an fp32 maximum: 32 / 64 = 0.5 bits per weight. Double quantisation keeps those in 8 bits, in groups
    of 256 with an fp32 constant of their own: 8 / 64 + 32 / (64 × 256) = 0.127.

    Args:
        bits: of a code.
        block_size: weights that share a maximum.
        double_quantization: whether the maxima are quantised, too.

    Raises:
        TypeError, ValueError: a count that is no positive integer.

        >>> round(65e9 * blockwise_bits_per_parameter() / 8 / 1e9, 1)  # a 65B model, in GB
        33.5

    Source: Dettmers et al. 2023, "QLoRA", §3.
    """
    check_count("bits", bits)
    check_count("block_size", block_size)
    constants = Fraction(32, block_size)
    if double_quantization:
        constants = Fraction(8, block_size) + Fraction(32, block_size * _CONSTANTS_PER_GROUP)
    return bits + constants


def _per_parameter(formats: PrecisionPolicy, optimizer: str) -> Fraction:
    _check_optimizer(optimizer)
    if optimizer == "adafactor":
        raise ValueError("adafactor has no fixed bytes per parameter; use optimizer_state_bytes with the shapes")
    if optimizer == "adam-8bit":
        return 2 + Fraction(2 * 4, EIGHT_BIT_BLOCK)
    return Fraction(_STATES_PER_PARAMETER[optimizer] * formats.state_bytes)


def zero_model_state_bytes(
    num_parameters: int,
    num_ranks: int,
    stage: int = 3,
    *,
    policy: str | PrecisionPolicy = "bf16-mixed",
    optimizer: Optimizer = "adamw",
) -> int:
    """Bytes of weights, gradients, masters and optimizer states on each rank, for a stage of ZeRO.

    A shard is a whole number of parameters: where they do not divide by the ranks, all shards are rounded up, as
    padding makes them. So the result is exact on the ranks that hold no padding's end, and the formula of the paper
    where `num_ranks` divides `num_parameters`.

    Args:
        num_parameters: Ψ.
        num_ranks: N, ranks of data parallelism.
        stage: 0 (everything on each rank) to 3.
        policy: number formats; the default are the paper's.
        optimizer: see `bytes_per_parameter`.

    Raises:
        TypeError, ValueError: a count that is no positive integer, or a stage other than 0, 1, 2, 3.

    Source: Rajbhandari et al. 2020, "ZeRO", §5 and Table 1.
    """
    check_count("num_parameters", num_parameters)
    check_count("num_ranks", num_ranks)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"stage must be 0, 1, 2 or 3, got {stage!r}")
    formats = get_policy(policy)
    shard = -(-num_parameters // num_ranks)
    per_optimizer = formats.master_bytes + _per_parameter(formats, optimizer)
    total = formats.weight_bytes * (shard if stage >= 3 else num_parameters)
    total += formats.gradient_bytes * (shard if stage >= 2 else num_parameters)
    return total + _ceil(per_optimizer * (shard if stage >= 1 else num_parameters))


def largest_model_parameters(
    memory_bytes: float,
    num_ranks: int,
    stage: int = 3,
    *,
    policy: str | PrecisionPolicy = "bf16-mixed",
    optimizer: Optimizer = "adamw",
) -> int:
    """Parameters of the largest model whose model states alone fit so many bytes on each rank.

    Raises:
        TypeError, ValueError: as `zero_model_state_bytes`; memory that is not positive.

        >>> [round(largest_model_parameters(32e9, 64, stage) / 1e9, 1) for stage in (0, 1, 2, 3)]
        [2.0, 7.6, 14.4, 128.0]

    Source: Rajbhandari et al. 2020, "ZeRO", Table 2.
    """
    if not memory_bytes > 0:
        raise ValueError(f"memory_bytes must be positive, got {memory_bytes}")
    low, high = 0, 1

    def fits(n: int) -> bool:
        return zero_model_state_bytes(n, num_ranks, stage, policy=policy, optimizer=optimizer) <= memory_bytes

    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def optimizer_state_bytes(
    shapes: Iterable[ParameterShape], policy: str | PrecisionPolicy, optimizer: Optimizer
) -> tuple[int, int]:
    """Bytes of an optimizer's states for such tensors, and bytes of its step counters.

    Raises:
        ValueError: if the optimizer or the policy is unknown.
    """
    _check_optimizer(optimizer)
    size = get_policy(policy).state_bytes
    states = counters = 0
    for shape in shapes:
        states += _tensor_state_bytes(shape, size, optimizer)
        counters += 0 if optimizer.startswith("sgd") or optimizer == "adam-8bit" else STEP_COUNTER_BYTES
    return states, counters


def _tensor_state_bytes(shape: ParameterShape, size: int, optimizer: str) -> int:
    n = shape.num_elements
    if optimizer == "adafactor":
        return size * (sum(shape.shape) if len(shape.shape) == 2 else n)
    if optimizer == "adam-8bit":
        return 2 * 4 * n if n < EIGHT_BIT_SMALLEST else 2 * n + 2 * 4 * -(-n // EIGHT_BIT_BLOCK)
    return _STATES_PER_PARAMETER[optimizer] * size * n


def model_states(
    shapes: Iterable[ParameterShape],
    policy: str | PrecisionPolicy,
    optimizer: Optimizer,
    *,
    zero_stage: int = 0,
    num_shards: int = 1,
) -> ModelStates:
    """Bytes of model states of one rank, from the shapes that it computes with.

    Sharded numbers are divided over the ranks as one flat buffer, rounded up to whole elements. Adafactor's rows and
    columns and the constants of 8-bit Adam are divided likewise, which is the least that a sharded version can take.

    Raises:
        ValueError: if optimizer, policy or stage is unknown.
    """
    tensors, formats = tuple(shapes), get_policy(policy)
    num_parameters = sum(shape.num_elements for shape in tensors)
    shard = -(-num_parameters // num_shards)
    states, counters = optimizer_state_bytes(tensors, formats, optimizer)
    if zero_stage >= 1:
        size = formats.state_bytes
        fixed = _STATES_PER_PARAMETER.get(optimizer)
        states = -(-states // num_shards) if fixed is None else fixed * size * shard
    return ModelStates(
        weights=formats.weight_bytes * (shard if zero_stage >= 3 else num_parameters),
        gradients=formats.gradient_bytes * (shard if zero_stage >= 2 else num_parameters),
        masters=formats.master_bytes * (shard if zero_stage >= 1 else num_parameters),
        states=states,
        counters=counters,
    )


def _ceil(value: Fraction | int) -> int:
    return -(-value.numerator // value.denominator)


def _check_optimizer(optimizer: object) -> None:
    if optimizer not in get_args(Optimizer):
        raise ValueError(f"optimizer must be one of {', '.join(get_args(Optimizer))}, got {optimizer!r}")
