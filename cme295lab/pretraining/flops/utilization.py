"""How much of the peak a training run uses: MFU, HFU, and the time that follows from them.

    MFU = tokens/s · model FLOP per token / (number of GPUs · peak)      what the mathematics needs
    HFU = tokens/s · hardware FLOP per token / (number of GPUs · peak)   what is executed, recomputation included

HFU is never below MFU. A run that recomputes more has a higher HFU and is slower: MFU is the one to compare by.

The peak is the dense one of the number format that is multiplied in. Data sheets of newer GPUs print twice that, "with
sparsity", which training does not use: with 1,979 TFLOP/s for an H100, MFU comes out half of what it is.

Source: Chowdhery et al. 2022 (PaLM), App. B; Korthikanti et al. 2022, §6.
"""

from __future__ import annotations

from cme295lab.hardware import Device, get_device
from cme295lab.pretraining.flops.breakdown import FlopBreakdown
from cme295lab.pretraining.flops.quantities import FlopCount, FlopRate, as_count, as_rate, positive, whole

Peak = str | Device | float


def mfu(flops_per_token: FlopBreakdown | float, *, tokens_per_s: float, peak: Peak, num_gpus: int = 1,
        dtype: str = "bf16") -> float:  # fmt: skip
    """Model FLOPs utilization: the share of the peak that goes into forward and backward passes.

    Args:
        flops_per_token: model FLOP of training on a token: a table, or a number such as `palm_flops_per_token` gives.
        tokens_per_s: of all GPUs together.
        peak: a GPU, its name, or the dense peak of one GPU in FLOP/s.
        num_gpus: how many.
        dtype: the number format, where the peak is a GPU's.

    Returns:
        A share between 0 and 1.

    Raises:
        TypeError, ValueError: numbers that are not positive, a count where a rate belongs, an unknown GPU, or a share
            above 1, which cannot be.

    Example, the PaLM paper's own:
        >>> from cme295lab.pretraining.flops import palm_flops_per_token
        >>> flops = palm_flops_per_token(540_350_000_000, num_layers=118, num_heads=48, head_dim=256, seq=2048)
        >>> round(100 * mfu(flops, tokens_per_s=238_300, peak=275e12, num_gpus=6144), 1)
        46.2
    """
    count = flops_per_token.model_flops if isinstance(flops_per_token, FlopBreakdown) else flops_per_token
    return _share("mfu", count, tokens_per_s, _peak(peak, dtype), num_gpus)


def hfu(flops_per_token: FlopBreakdown | float, *, tokens_per_s: float, peak: Peak, num_gpus: int = 1,
        dtype: str = "bf16") -> float:  # fmt: skip
    """Hardware FLOPs utilization: the share of the peak that is executed, recomputation included.

    Args:
        flops_per_token: a table that was made with `recompute=...`, or a number that counts recomputation.
        tokens_per_s, peak, num_gpus, dtype: as in `mfu`.

    Raises:
        TypeError, ValueError: as `mfu` does.
    """
    count = flops_per_token.hardware_flops if isinstance(flops_per_token, FlopBreakdown) else flops_per_token
    return _share("hfu", count, tokens_per_s, _peak(peak, dtype), num_gpus)


def tokens_per_s(flops_per_token: FlopBreakdown | float, *, mfu: float, peak: Peak, num_gpus: int = 1,
                 dtype: str = "bf16") -> float:  # fmt: skip
    """Tokens per second at some MFU: `mfu`, turned round.

    Args:
        flops_per_token: model FLOP of training on a token.
        mfu: a share, above 0 and at most 1.
        peak, num_gpus, dtype: as in `mfu`.

    Raises:
        TypeError, ValueError: as `mfu` does.
    """
    count = flops_per_token.model_flops if isinstance(flops_per_token, FlopBreakdown) else flops_per_token
    rate = whole("num_gpus", num_gpus) * _peak(peak, dtype) * share("mfu", mfu)
    return 1 / as_count("flops_per_token", count).seconds_at(rate)


def training_time_s(num_flops: float, *, flops_per_s_per_gpu: float, num_gpus: int) -> float:
    """Seconds of training, if each GPU does so many FLOP per second.

    Args:
        num_flops: of the whole training run.
        flops_per_s_per_gpu: what is reached, not the peak. Count with it what `num_flops` counts: where recomputation
            is in the rate, it must be in the count.
        num_gpus: how many.

    Raises:
        TypeError, ValueError: as `mfu` does.

    Example, GPT-3 on 1,024 A100s with full recomputation, 8 FLOP per parameter and token:
        >>> round(training_time_s(8 * 175e9 * 300e9, flops_per_s_per_gpu=140e12, num_gpus=1024) / 86_400, 1)
        33.9

    Source: Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", §5.1.
    """
    rate = whole("num_gpus", num_gpus) * as_rate("flops_per_s_per_gpu", flops_per_s_per_gpu)
    return as_count("num_flops", num_flops).seconds_at(rate)


def share(name: str, value: float) -> float:
    """A share above 0 and at most 1.

    Raises:
        TypeError: if it is no number; ValueError if it is not such a share.
    """
    number = positive(name, value)
    if number > 1:
        hint = f": {number:g} per cent is {number / 100:g}" if number <= 100 else ""
        raise ValueError(f"{name} must be a share of the peak, above 0 and at most 1, got {number:g}{hint}")
    return number


def _peak(peak: Peak, dtype: str) -> FlopRate:
    if isinstance(peak, str | Device):
        return FlopRate(get_device(peak).peak(dtype))
    return as_rate("peak", peak)


def _share(name: str, flops_per_token: float, per_second: float, peak: FlopRate, num_gpus: int) -> float:
    if isinstance(per_second, FlopRate | FlopCount):
        raise TypeError(f"tokens_per_s must be tokens per second, got {per_second!r}")
    used = as_count("flops_per_token", flops_per_token) * positive("tokens_per_s", per_second)
    found = float(used) / float(whole("num_gpus", num_gpus) * peak)
    if found > 1:
        raise ValueError(
            f"{name} would be {found:.4g}, more than the peak: {float(per_second):g} tokens/s of "
            f"{as_count('flops_per_token', flops_per_token)} each are {FlopRate(used)}, and {num_gpus:,} GPUs have "
            f"{FlopRate(num_gpus * float(peak))}. Is num_gpus missing, or tokens_per_s not in seconds?"
        )
    return found
