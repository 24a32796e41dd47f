"""AdamW with 16-bit weights: fp32 masters, and a step of one pass or of a dozen.

In mixed precision the model computes with 16-bit weights, but a step is often too small for them: near 1, fp16 knows
nothing between 1 and 1 + 2^-10. So the optimizer keeps an fp32 *master* of every weight, adds the step to that, and
rounds the result into the 16-bit weight. For a gradient g (16 bits, scaled by the loss scale), t = 1, 2, ...:

    g = g / scale                  in fp32
    m = β₁ m + (1 - β₁) g          v = β₂ v + (1 - β₂) g²
    w = w (1 - η λ) - η / (1 - β₁ᵗ) · m / (√v / √(1 - β₂ᵗ) + ε)
    weight = w rounded to 16 bits

The step stands here three times. `adamw_step_reference` is the text to read, in plain PyTorch. `adamw_step_unfused`
runs a Triton kernel for each operation and moves 108 bytes per parameter; `adamw_step_fused` does everything in one
kernel and moves 28, the least that is possible: masters and moments are read and written once, the gradient is read,
the weight is written. There is hardly any arithmetic, so on a GPU the ratio of times should be close to that of bytes.

All three agree bit for bit, because each operation is rounded at the same point. This is a choice. A GPU's compiler
would fuse `x + y * factor` into one operation with one rounding (and PyTorch's `add_(y, alpha=factor)` does so on some
CPUs): hence two operations in the reference, and `enable_fp_fusion=False` at the launch of the kernels, which costs
nothing where memory is the limit. Another AdamW may differ by a unit or two in the last place per step.

None of them looks for infinities: a step whose gradients overflowed must be skipped before (see `loss_scaling`).

Source: Micikevicius et al., Mixed Precision Training (2018), section 3.1; Loshchilov and Hutter, Decoupled Weight Decay
Regularization (2019), Algorithm 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cme295lab.simulator.placement import place_to_run

FUSED_BYTES_PER_PARAMETER = 28  # with a 16-bit gradient: 14 read, 14 written
UNFUSED_BYTES_PER_PARAMETER = 108
WEIGHT_DTYPES = (torch.float16, torch.bfloat16)
GRADIENT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_BLOCK = 1024  # elements per program


@dataclass(frozen=True, kw_only=True)
class AdamWOptions:
    """What an AdamW step needs besides tensors.

    Args:
        learning_rate: η, not negative.
        betas: β₁ and β₂, each at least 0 and below 1.
        eps: ε, not negative.
        weight_decay: λ, decoupled, not negative.

    Raises:
        ValueError: if a value is out of range.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number that is not negative, got {value!r}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {self.betas!r}")


@dataclass(frozen=True, kw_only=True)
class _Scalars:
    """The numbers that are the same for every element, from float64; each is rounded to fp32 where it is used."""

    inverse_scale: float
    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    decay: float
    root_correction: float
    eps: float
    negative_step_size: float

    @staticmethod
    def of(options: AdamWOptions, step: int, inverse_scale: float) -> _Scalars:
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"step must be an int of at least 1, got {step!r}: the first step is step 1")
        if not (math.isfinite(inverse_scale) and inverse_scale > 0):
            raise ValueError(f"inverse_scale must be positive and finite, got {inverse_scale!r}; pass 1 / loss scale")
        beta1, beta2 = options.betas
        return _Scalars(
            inverse_scale=float(inverse_scale),
            beta1=float(beta1),
            one_minus_beta1=1.0 - beta1,
            beta2=float(beta2),
            one_minus_beta2=1.0 - beta2,
            decay=1.0 - options.learning_rate * options.weight_decay,
            root_correction=1.0 / math.sqrt(1.0 - beta2**step),
            eps=float(options.eps),
            negative_step_size=-options.learning_rate / (1.0 - beta1**step),
        )


@torch.no_grad()
def adamw_step_reference(
    master: Float32[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    exp_avg: Float32[Tensor, "*shape"],
    exp_avg_sq: Float32[Tensor, "*shape"],
    weight16: Float[Tensor, "*shape"],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    inverse_scale: float = 1.0,
) -> None:
    """Do one AdamW step in place, in plain PyTorch; each line rounds once.

    Args:
        master: the fp32 weights, updated.
        gradient: of the scaled loss, fp16, bf16 or fp32; read only.
        exp_avg: fp32 running mean of the gradient, updated.
        exp_avg_sq: fp32 running mean of its square, updated.
        weight16: the fp16 or bf16 weights, overwritten by the masters, rounded to nearest.
        step: t, 1 for the first step.
        learning_rate: η.
        betas: β₁ and β₂.
        eps: ε.
        weight_decay: λ.
        inverse_scale: 1 / loss scale, by which the gradient is multiplied first.

    Raises:
        TypeError: if an argument is not a tensor, or not of one of these dtypes.
        ValueError: if shapes or devices differ, a tensor is not contiguous, or a number is out of range.

    Source: Loshchilov and Hutter 2019, Algorithm 2, with the order of Micikevicius et al. 2018, Figure 1.
    """
    options = AdamWOptions(learning_rate=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)
    s = _Scalars.of(options, step, inverse_scale)
    _check_tensors(master, gradient, exp_avg, exp_avg_sq, weight16)
    g = gradient.float() * s.inverse_scale
    exp_avg.mul_(s.beta1)
    exp_avg.add_(g * s.one_minus_beta1)
    exp_avg_sq.mul_(s.beta2)
    exp_avg_sq.add_(g * g * s.one_minus_beta2)
    denominator = exp_avg_sq.sqrt()
    denominator.mul_(s.root_correction)
    denominator.add_(s.eps)
    master.mul_(s.decay)
    master.add_(exp_avg * s.negative_step_size / denominator)
    weight16.copy_(master)


@torch.no_grad()
def adamw_step_unfused(
    master: Float32[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    exp_avg: Float32[Tensor, "*shape"],
    exp_avg_sq: Float32[Tensor, "*shape"],
    weight16: Float[Tensor, "*shape"],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    inverse_scale: float = 1.0,
) -> None:
    """The same step by twelve Triton kernels, one for each operator that eager PyTorch would run.

    Per parameter it moves 108 bytes with a 16-bit gradient, and needs two fp32 tensors of working memory. The operators
    of `torch.optim.AdamW(foreach=False)` would move 100: its `lerp_` does the work of `mul_` and `add_` in one pass.

    Args and Raises: as for `adamw_step_reference`. CPU tensors run in the simulator.
    """
    from cme295lab.kernels import adamw as kernels

    options = AdamWOptions(learning_rate=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)
    s = _Scalars.of(options, step, inverse_scale)
    _check_tensors(master, gradient, exp_avg, exp_avg_sq, weight16)
    if not master.numel():
        return
    g, denominator = torch.empty_like(master), torch.empty_like(master)
    with place_to_run(master):
        _launch(kernels.cast_kernel, gradient, g)
        _launch(kernels.multiply_kernel, g, s.inverse_scale)
        _launch(kernels.multiply_kernel, exp_avg, s.beta1)
        _launch(kernels.add_scaled_kernel, exp_avg, g, s.one_minus_beta1)
        _launch(kernels.multiply_kernel, exp_avg_sq, s.beta2)
        _launch(kernels.add_square_kernel, exp_avg_sq, g, s.one_minus_beta2)
        _launch(kernels.square_root_kernel, exp_avg_sq, denominator)
        _launch(kernels.multiply_kernel, denominator, s.root_correction)
        _launch(kernels.add_constant_kernel, denominator, s.eps)
        _launch(kernels.multiply_kernel, master, s.decay)
        _launch(kernels.add_quotient_kernel, master, exp_avg, denominator, s.negative_step_size)
        _launch(kernels.cast_kernel, master, weight16)


@torch.no_grad()
def adamw_step_fused(
    master: Float32[Tensor, "*shape"],
    gradient: Float[Tensor, "*shape"],
    exp_avg: Float32[Tensor, "*shape"],
    exp_avg_sq: Float32[Tensor, "*shape"],
    weight16: Float[Tensor, "*shape"],
    *,
    step: int,
    learning_rate: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    inverse_scale: float = 1.0,
) -> None:
    """The same step by one Triton kernel, 28 bytes per parameter with a 16-bit gradient, and no working memory.

    Args and Raises: as for `adamw_step_reference`. CPU tensors run in the simulator.
    """
    from cme295lab.kernels.adamw import adamw_kernel

    options = AdamWOptions(learning_rate=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay)
    s = _Scalars.of(options, step, inverse_scale)
    _check_tensors(master, gradient, exp_avg, exp_avg_sq, weight16)
    if not master.numel():
        return
    with place_to_run(master):
        adamw_kernel[(-(-master.numel() // _BLOCK),)](
            master, gradient, exp_avg, exp_avg_sq, weight16, master.numel(), s.inverse_scale,
            s.beta1, s.one_minus_beta1, s.beta2, s.one_minus_beta2, s.decay, s.root_correction, s.eps,
            s.negative_step_size, BLOCK=_BLOCK, enable_fp_fusion=False,
        )  # fmt: skip


def _launch(kernel: Any, *arguments: Tensor | float) -> None:
    num_elements = next(a.numel() for a in arguments if isinstance(a, Tensor))
    grid = (-(-num_elements // _BLOCK),)
    kernel[grid](*arguments, num_elements, BLOCK=_BLOCK, enable_fp_fusion=False)


def _check_tensors(master: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, weight16: Tensor) -> None:
    tensors = {
        "master": (master, (torch.float32,)),
        "gradient": (gradient, GRADIENT_DTYPES),
        "exp_avg": (exp_avg, (torch.float32,)),
        "exp_avg_sq": (exp_avg_sq, (torch.float32,)),
        "weight16": (weight16, WEIGHT_DTYPES),
    }
    for name, (tensor, dtypes) in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype not in dtypes:
            allowed = ", ".join(str(dtype) for dtype in dtypes)
            raise TypeError(f"{name} must be one of {allowed}, got {tensor.dtype}; convert it with .to({dtypes[0]})")
        if tensor.shape != master.shape:
            raise ValueError(
                f"{name} must have master's shape {tuple(master.shape)}, got {tuple(tensor.shape)}; "
                f"make the states with torch.zeros_like(master)"
            )
        if tensor.device != master.device:
            raise ValueError(f"{name} must be on master's device {master.device}, got {tensor.device}; move it there")
        if not tensor.is_contiguous():
            raise ValueError(
                f"{name} must be contiguous, got strides {tensor.stride()} for shape {tuple(tensor.shape)}: the "
                f"kernels go through memory from end to end; use .contiguous()"
            )
