"""flash-linear-attention (fla-core): layers, losses and utilities, forwards and backwards."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="fla-core imports Triton")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that there is no GPU
    pytest.importorskip("fla", reason="fla-core is not installed")
    from fla.modules import token_shift
    from fla.modules.activations import ops as activations
    from fla.modules.causal_conv1d import ops as convolution
    from fla.modules.fused_bitlinear import rms_norm_linear_quant
    from fla.modules.fused_cross_entropy.ops import cross_entropy_loss
    from fla.modules.fused_kl_div.ops import fused_kl_div_loss
    from fla.modules.fused_linear_cross_entropy.ops import fused_linear_cross_entropy_loss
    from fla.modules.grpo.ops import fused_grpo_loss
    from fla.modules.norm import fused_norm_gate, l2norm, layernorm, layernorm_gated
    from fla.modules.rotary.ops import rotary_embedding
    from fla.ops import utils

import itertools

from tests.packages.harness import FLOAT_TYPES, Ledger, check, randn

LEDGER = Ledger("fla-core", "layers, losses, utilities")
FP32 = torch.float32

each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=["fp32", "bf16", "fp16"])


def same(function, reference, *inputs, name="", **options):
    name = name or getattr(function, "__name__", "")
    check(LEDGER, function, reference, *inputs, name=name, **options)


def rms(x, eps=1e-5):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


# ---- activations


@each_type
def test_activations(dtype):
    x, y = randn(5, 77, dtype=dtype), randn(5, 77, dtype=dtype)
    same(activations.swish, F.silu, x, name="swish")
    same(activations.sigmoid, torch.sigmoid, x, name="sigmoid")
    same(lambda x: activations.logsigmoid(x, 2.0), lambda x: F.logsigmoid(x) / 2, x, name="logsigmoid")
    same(activations.SwiGLUFunction.apply, lambda x, y: F.silu(x) * y, x, y, name="swiglu")
    same(activations.SigmoidGLUFunction.apply, lambda x, y: x.sigmoid() * y, x, y, name="sigmoidglu")


@each_type
def test_gated_linear_layers(dtype):
    x, y, w, b = (randn(*size, dtype=dtype) for size in [(5, 77), (5, 77), (20, 77), (20,)])
    for function, gate in [
        (activations.swiglu_linear, F.silu),
        (activations.SigmoidGLULinearFunction.apply, torch.sigmoid),
    ]:
        same(
            function, lambda x, y, w, b, gate=gate: F.linear(gate(x) * y, w, b), x, y, w, b,
            name=getattr(function, "__name__", "sigmoidglu_linear"), roundings=32,
        )  # fmt: skip


@each_type
def test_power_gated_unit(dtype):
    def reference(x, y):
        """sigmoid(x) x^(power / (sqrt(x) + 1)) for positive x, the usual x sigmoid(x) below."""
        exponent = 3.0 / (x.clamp_min(1e-30).sqrt() + 1)
        return torch.where(x > 0, x.clamp_min(1e-30) ** exponent * x.sigmoid(), x * x.sigmoid()) * y

    same(activations.powglu, reference, randn(5, 77, dtype=dtype), randn(5, 77, dtype=dtype), roundings=64)


# ---- normalisation


@each_type
@pytest.mark.parametrize("columns", [5, 77, 260])
def test_norms(dtype, columns):
    x, r, w, b = (randn(*size, dtype=dtype) for size in [(6, columns), (6, columns), (columns,), (columns,)])
    same(layernorm.layer_norm, lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b), x, w, b)
    same(
        lambda x, w, b, r: layernorm.layer_norm(x, w, b, r, prenorm=True),
        lambda x, w, b, r: (F.layer_norm(x + r, x.shape[-1:], w, b), x + r), x, w, b, r, name="layer_norm",
    )  # fmt: skip
    same(lambda x, w: layernorm.rms_norm(x, w, None), lambda x, w: rms(x) * w, x, w, name="rms_norm")
    same(l2norm.l2norm, lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6), x)


@each_type
def test_group_norm_and_linear(dtype):
    x, w, b = randn(6, 70, dtype=dtype), randn(70, dtype=dtype), randn(70, dtype=dtype)
    same(
        lambda x, w, b: layernorm.group_norm(x, w, b, num_groups=5), lambda x, w, b: F.group_norm(x, 5, w, b), x, w, b,
        name="group_norm",
    )  # fmt: skip
    same(
        layernorm.layer_norm_linear, lambda x, nw, nb, w, b: F.linear(F.layer_norm(x, (70,), nw, nb), w, b), x, w, b,
        randn(20, 70, dtype=dtype), randn(20, dtype=dtype), roundings=32, rounded_to=dtype,
    )  # fmt: skip


@each_type
def test_gated_norms(dtype):
    x, g, w, b = (randn(*size, dtype=dtype) for size in [(6, 70), (6, 70), (70,), (70,)])
    same(
        lambda x, g, w, b: fused_norm_gate.layer_norm_gated(x, g, w, b, eps=1e-5),
        lambda x, g, w, b: F.layer_norm(x, (70,), w, b) * F.silu(g), x, g, w, b, name="layer_norm_gated",
    )  # fmt: skip
    same(
        lambda x, g, nw, w: fused_norm_gate.rms_norm_swish_gate_linear(x, g, nw, None, w, None, eps=1e-5),
        lambda x, g, nw, w: F.linear(rms(x) * nw * F.silu(g), w), x, g, w, randn(20, 70, dtype=dtype),
        name="rms_norm_swish_gate_linear", roundings=32, rounded_to=dtype,
    )  # fmt: skip
    for before in (True, False):

        def reference(x, w, b, z, before=before):
            x = x if before else x * F.silu(z)
            y = rms(x.unflatten(-1, (2, 35)), 1e-6).flatten(-2) * w + b
            return y * F.silu(z) if before else y

        same(
            lambda x, w, b, z, before=before: layernorm_gated.rmsnorm_fn(x, w, b, z, 1e-6, 35, before), reference, x, w,
            b, g, name="rmsnorm_fn",
        )  # fmt: skip


def test_norm_and_quantised_linear():
    def reference(x, nw, w):
        y = rms(x) * nw
        scale = 127 / y.abs().amax(-1, keepdim=True).clamp_min(1e-5)
        quantised = (y * scale).round().clamp(-128, 127) / scale
        weight_scale = 1 / w.abs().mean().clamp_min(1e-5)
        return quantised @ ((w * weight_scale).round().clamp(-1, 1) / weight_scale).T

    inputs = [randn(6, 70, grad=False), randn(70, grad=False), randn(20, 70, grad=False)]
    same(
        lambda x, nw, w: rms_norm_linear_quant(x, nw, None, w, None, eps=1e-5), reference, *inputs,
        name="rms_norm_linear_quant",
    )  # fmt: skip


# ---- rotary embedding, convolution, shift


@each_type
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary_embedding(dtype, interleaved):
    angle = torch.rand(61, 8, dtype=torch.float64)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def reference(x, cos, sin):
        turned, rest = x[..., :16], x[..., 16:]
        a, b = (turned[..., ::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        pair = (a * c - b * s, a * s + b * c)
        return torch.cat([torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1), rest], -1)

    same(
        lambda x, cos, sin: rotary_embedding(x, cos, sin, interleaved), reference,
        randn(2, 61, 3, 24, dtype=dtype), cos, sin, name="rotary_embedding",
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("activation", [None, "silu"])
def test_causal_convolution(dtype, activation):
    def reference(x, w, b):
        y = F.conv1d(F.pad(x.mT, (3, 0)), w[:, None], b, groups=x.shape[-1]).mT
        return F.silu(y) if activation else y

    same(
        lambda x, w, b: convolution.causal_conv1d(x, w, b, activation=activation)[0], reference,
        randn(2, 70, 37, dtype=dtype), randn(37, 4, dtype=dtype), randn(37, dtype=dtype), name="causal_conv1d",
        roundings=32,
    )  # fmt: skip


def test_causal_convolution_one_step():
    def reference(x, cache, w, b):
        cache = torch.cat([cache[..., 1:], x[..., None]], -1)
        return (cache * w).sum(-1) + b, cache

    same(
        lambda x, cache, w, b: convolution.causal_conv1d_update(x, cache, None, w, b), reference,
        randn(2, 37, grad=False), randn(2, 37, 4, grad=False),
        randn(37, 4, grad=False), randn(37, grad=False), name="causal_conv1d_update",
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("bounds", [None, [0, 13, 40, 61]])
def test_token_shift(dtype, bounds):
    def reference(x):
        before = F.pad(x, (0, 0, 1, 0))[:, :-1].clone()
        if bounds:
            before[:, bounds[:-1]] = 0
        return before - x

    ends = torch.tensor(bounds) if bounds else None
    same(
        lambda x: token_shift.token_shift(x, ends), reference, randn(1 if bounds else 2, 61, 37, dtype=dtype),
        name="token_shift",
    )  # fmt: skip


# ---- losses


@each_type
def test_cross_entropy(dtype):
    target = torch.randint(70, (6,))
    target[::4] = -100
    same(
        lambda x: cross_entropy_loss(x, target, label_smoothing=0.1)[0],
        lambda x: F.cross_entropy(x, target, label_smoothing=0.1, reduction="none"), randn(6, 70, dtype=dtype),
        name="cross_entropy_loss",
    )  # fmt: skip
    same(
        lambda x, w, b: fused_linear_cross_entropy_loss(x, target, w, b, num_chunks=2),
        lambda x, w, b: F.cross_entropy(F.linear(x, w, b), target), randn(6, 24, dtype=dtype),
        randn(70, 24, dtype=dtype), randn(70, dtype=dtype), name="fused_linear_cross_entropy_loss", roundings=32,
        rounded_to=dtype,
    )  # fmt: skip


def test_fused_kl_div():
    same(
        fused_kl_div_loss,
        lambda x, y, w, v: F.kl_div((x @ w.T).log_softmax(-1), (y @ v.T).softmax(-1), reduction="batchmean"),
        randn(8, 24, scale=0.3), randn(8, 24, grad=False, scale=0.3), randn(70, 24), randn(70, 24, grad=False),
        roundings=128,
    )  # fmt: skip


def test_grpo_loss():
    ids, mask = torch.randint(70, (2, 5)), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.int32)
    ref, advantages = torch.randn(2, 5) / 4 - 4, torch.randn(2)

    def reference(x):
        new = x[:, :-1].log_softmax(-1).gather(-1, ids[..., None])[..., 0]
        kl = (ref - new).exp() - (ref - new) - 1
        return (0.1 * kl - (new - new.detach()).exp() * advantages[:, None]) * mask

    same(
        lambda x: fused_grpo_loss(x, ref, ids, advantages, 0.1, mask), reference, randn(2, 6, 70),
        name="fused_grpo_loss", roundings=64,
    )  # fmt: skip


# ---- utilities


def test_products_and_softmax():
    same(utils.matmul, torch.matmul, randn(37, 45, grad=False), randn(45, 29, grad=False), name="matmul", roundings=64)
    same(utils.addmm, torch.addmm, randn(37, 29, grad=False), randn(37, 45, grad=False), randn(45, 29, grad=False),
         name="addmm", roundings=64)  # fmt: skip
    x = randn(3, 5, 77, grad=False)
    same(utils.softmax_fwd, lambda x: x.softmax(-1), x)
    same(utils.logsumexp_fwd, lambda x: x.logsumexp(-1), x)


@pytest.mark.parametrize("shape", [(2, 100, 3), (2, 100, 3, 37)])
@pytest.mark.parametrize("reverse", [True, False])
def test_cumulative_sums(shape, reverse):
    def cumsum(x):
        return x.flip(1).cumsum(1).flip(1) if reverse else x.cumsum(1)

    x = randn(*shape, grad=False)
    same(lambda x: utils.chunk_global_cumsum(x, reverse=reverse), cumsum, x, name="chunk_global_cumsum", roundings=64)
    same(
        lambda x: utils.chunk_local_cumsum(x, 32, reverse=reverse),
        lambda x: torch.cat([cumsum(part) for part in x.split(32, 1)], 1), x, name="chunk_local_cumsum", roundings=64,
    )  # fmt: skip


@pytest.mark.parametrize("size", [16, 32, 64])
def test_solve_tril(size):
    """(I + A)^-1 of the strictly lower triangular matrices along the sequence."""

    def reference(a):
        blocks = torch.zeros(1, 2, math.ceil(100 / size) * size, size, dtype=a.dtype)
        blocks[:, :, :100] = a.transpose(1, 2)
        blocks = blocks.unflatten(2, (-1, size))
        return torch.linalg.inv(blocks + torch.eye(size, dtype=a.dtype)).flatten(2, 3)[:, :, :100].transpose(1, 2)

    a = torch.randn(1, 100, 2, size) * 0.3
    a = a * (torch.arange(size) < (torch.arange(100) % size)[:, None])[:, None]
    last = torch.arange(size) < 100 % size  # the last block ends with the sequence
    a[:, 100 - 100 % size :] *= last
    same(utils.solve_tril, reference, a, name="solve_tril", roundings=1000)


@pytest.mark.parametrize("bounds", [None, [0, 13, 81, 100]])
def test_mean_pooling(bounds):
    def reference(x):
        parts = [x[:, a:b] for a, b in itertools.pairwise(bounds)] if bounds else [x]
        return torch.stack([c.mean(1) for part in parts for c in part.split(32, 1)], 1)

    ends = torch.tensor(bounds) if bounds else None
    same(lambda x: utils.mean_pooling(x, 32, ends), reference, randn(1, 100, 2, 37), name="mean_pooling")


def test_packing_sequences():
    bounds = [0, 13, 81, 100]

    def unpacked(x):
        return torch.stack([F.pad(x[a:b], (0, 0, 68 - (b - a), 0)) for a, b in itertools.pairwise(bounds)])

    def packed(x):
        return torch.cat([part[68 - (b - a) :] for part, a, b in zip(x, bounds[:-1], bounds[1:], strict=True)])

    same(lambda x: utils.unpack_sequence(x, torch.tensor(bounds)), unpacked, randn(100, 37), name="unpack_sequence")
    same(lambda x: utils.pack_sequence(x, torch.tensor(bounds)), packed, randn(3, 68, 37), name="pack_sequence")


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
