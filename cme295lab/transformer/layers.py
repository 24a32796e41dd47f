"""The parts of a layer besides attention: MLPs, norms, dropout, rotations.

`RMSNorm` has its backward pass written out, because autograd of the formula keeps three tensors where one suffices;
where no gradient is asked for it goes around autograd.

Source: Shazeer 2020, "GLU Variants Improve Transformer"; Zhang and Sennrich 2019; Su et al. 2021.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cme295lab.transformer.config import ModelConfig


class ResidualLinear(nn.Linear):
    """A linear layer whose output is added to the residual stream: it starts smaller, as there are 2 per layer."""


class SwiGluMlp(nn.Module):
    """down(silu(gate x) × up x)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.mlp_dim, bias=config.bias)
        self.up = nn.Linear(config.dim, config.mlp_dim, bias=config.bias)
        self.down = ResidualLinear(config.mlp_dim, config.dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GeluMlp(nn.Module):
    """down(gelu(up x)), with the tanh form of GELU that GPT-2 has."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.mlp_dim, bias=config.bias)
        self.down = ResidualLinear(config.mlp_dim, config.dim, bias=config.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) × weight, computed in fp32 at least.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        if not torch.is_grad_enabled():
            return _rms_norm(x, self.weight, self.eps)[0]
        return _RmsNorm.apply(x, self.weight, self.eps)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm, and 1 / sqrt(mean(x²) + eps); fewer operators than torch's own has on a CPU."""
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return (wide * inverse).mul_(weight).to(x.dtype), inverse


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and one number per token. With n = x r and r = 1 / sqrt(mean(x²) + eps):

    dx = r (g - n mean(g n)) where g = dy × weight, and dweight = sum over tokens of dy × n.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, inverse = _rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x.to(inverse.dtype) * inverse
        dy = gradients[0].to(inverse.dtype)
        dweight = (dy * normed).flatten(0, -2).sum(0).to(weight.dtype)
        g = dy * weight
        dx = g.sub_(normed.mul_((g * normed).mean(-1, keepdim=True))).mul_(inverse)  # in place: no more temporaries
        return dx.to(x.dtype), dweight, None


class Dropout(nn.Module):
    """Zero with some probability, and scale the rest; keeps one byte per element, on a CPU, too.

    (torch's own keeps the mask in the dtype of its input on a CPU, in one byte on a GPU.)
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.probability:
            return x
        return torch.native_dropout(x, self.probability, True)[0]


def rotate(
    x: Float[Tensor, "batch seq heads head_dim"],
    cos: Float[Tensor, "*batch seq head_dim"],
    sin: Float[Tensor, "*batch seq head_dim"],
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Rotate the pairs (i, i + head_dim / 2) of every head by the angles of its position, the same in all rows or not.

    Source: Su et al. 2021, "RoFormer", eq. 34, with the two halves of a head as the pairs, as in Llama checkpoints.
    """
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return x * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)


def make_norm(config: ModelConfig) -> nn.Module:
    """The kind of norm that a config has."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.dim, eps=config.norm_eps)
    return RMSNorm(config.dim, config.norm_eps)


def make_mlp(config: ModelConfig) -> nn.Module:
    """The kind of MLP that a config has: of a block, or one expert."""
    return SwiGluMlp(config) if config.mlp == "swiglu" else GeluMlp(config)
