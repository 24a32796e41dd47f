"""liger-kernel: the kernels behind its layers, forwards and backwards, against plain PyTorch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="liger-kernel imports Triton")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")

from liger_kernel.ops import LigerFusedMoEFunction, mlp
from liger_kernel.ops.experimental.embedding import LigerEmbeddingFunction
from liger_kernel.ops.experimental.mm_int8int2 import matmul, pack_weights
from liger_kernel.transformers import functional as liger
from liger_kernel.transformers.llama4_rope import liger_llama4_text_rotary_pos_emb

from tests.packages.harness import FLOAT_TYPES, Ledger, check, randn

LEDGER = Ledger("liger-kernel", "layers, mixture of experts")
FP32 = torch.float32
ROWS_AND_COLUMNS = [(3, 5), (7, 130), (2, 1025)]

each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=["fp32", "bf16", "fp16"])


def rms(x, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


# ---- normalisation


@each_type
@pytest.mark.parametrize("shape", ROWS_AND_COLUMNS)
@pytest.mark.parametrize("casting_mode", ["llama", "gemma", "none"])
def test_rms_norm(dtype, shape, casting_mode):
    def function(x, w):
        return liger.liger_rms_norm(x, w, 1e-5, offset=1.0, casting_mode=casting_mode)

    x, w = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    # mode none computes in the type itself: a sum over the row is rounded with every addition
    roundings = 4 * math.log2(shape[-1]) + 16 if casting_mode == "none" else None
    check(LEDGER, function, lambda x, w: rms(x, 1e-5) * (w + 1), x, w, name="liger_rms_norm", roundings=roundings)


@each_type
def test_rms_norm_of_few_and_of_many_rows(dtype):
    for rows in (1, 300):
        check(
            LEDGER, lambda x, w: liger.liger_rms_norm(x, w, 1e-6), lambda x, w: rms(x, 1e-6) * w,
            randn(rows, 33, dtype=dtype), randn(33, dtype=dtype), name="liger_rms_norm",
        )  # fmt: skip


@each_type
@pytest.mark.parametrize("shape", ROWS_AND_COLUMNS)
def test_fused_add_rms_norm(dtype, shape):
    check(
        LEDGER, lambda x, r, w: liger.liger_fused_add_rms_norm(x, r, w, 1e-5),
        lambda x, r, w: (rms(x + r, 1e-5) * w, x + r),
        randn(*shape, dtype=dtype), randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype),
        name="liger_fused_add_rms_norm",
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("shift", [True, False])
def test_modulated_rms_norm(dtype, shift):
    def reference(x, w, scale, *shift):
        y = rms(x, 1e-6) * w * (1 + scale[:, None])
        return y + shift[0][:, None] if shift else y

    inputs = [randn(2, 5, 70, dtype=dtype), randn(70, dtype=dtype), randn(2, 70, dtype=dtype)]
    inputs += [randn(2, 70, dtype=dtype)] * shift
    check(LEDGER, liger.liger_modulated_rms_norm, reference, *inputs, name="liger_modulated_rms_norm")


@each_type
@pytest.mark.parametrize("shape", ROWS_AND_COLUMNS)
def test_layer_norm(dtype, shape):
    check(
        LEDGER, lambda x, w, b: liger.liger_layer_norm(x, w, b, 1e-5),
        lambda x, w, b: F.layer_norm(x, x.shape[-1:], w, b, 1e-5),
        randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype), randn(shape[-1], dtype=dtype),
        name="liger_layer_norm",
    )  # fmt: skip


@each_type
@pytest.mark.parametrize(("channels", "groups", "hidden"), [(6, 3, 35), (4, 1, 600), (5, 5, 9)])
def test_group_norm(dtype, channels, groups, hidden):
    check(
        LEDGER, lambda x, w, b: liger.liger_group_norm(x, w, b, channels, groups, 1e-5),
        lambda x, w, b: F.group_norm(x, groups, w, b, 1e-5),
        randn(2, channels, hidden, dtype=dtype), randn(channels, dtype=dtype), randn(channels, dtype=dtype),
        name="liger_group_norm",
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("shape", [(3, 5), (7, 130)])
def test_poly_norm(dtype, shape):
    def reference(x, w, b):
        return w[0] * rms(x**3, 1e-6) + w[1] * rms(x**2, 1e-6) + w[2] * rms(x, 1e-6) + b

    check(
        LEDGER, liger.liger_poly_norm, reference, randn(*shape, dtype=dtype), randn(3, dtype=dtype),
        randn(dtype=dtype), name="liger_poly_norm", roundings=32,  # the powers are taken in the type itself
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("shape", [(3, 5), (7, 1030)])
@pytest.mark.parametrize("beta", [True, False])
def test_dyt(dtype, shape, beta, monkeypatch):
    # The number of programs of its backward pass comes from the device: three multiprocessors.
    monkeypatch.setattr("liger_kernel.ops.dyt.infer_device", lambda: "cuda")
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: SimpleNamespace(multi_processor_count=3))
    inputs = [randn(*shape, dtype=dtype), randn(1, dtype=dtype), randn(shape[-1], dtype=dtype)]
    inputs += [randn(shape[-1], dtype=dtype)] if beta else [None]
    check(
        LEDGER, liger.liger_dyt,
        lambda x, alpha, gamma, beta: torch.tanh(alpha * x) * gamma + (0 if beta is None else beta),
        *inputs, name="liger_dyt",
    )  # fmt: skip


# ---- activations


@each_type
@pytest.mark.parametrize("shape", ROWS_AND_COLUMNS)
def test_swiglu_geglu_and_relu_squared(dtype, shape):
    a, b = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    check(LEDGER, liger.liger_swiglu, lambda a, b: F.silu(a) * b, a, b, name="liger_swiglu")
    check(LEDGER, liger.liger_geglu, lambda a, b: F.gelu(a, approximate="tanh") * b, a, b, name="liger_geglu")
    check(LEDGER, liger.liger_relu_squared, lambda a: F.relu(a).square(), a, name="liger_relu_squared")


@each_type
@pytest.mark.parametrize("shape", ROWS_AND_COLUMNS)
def test_softmax(dtype, shape):
    check(LEDGER, liger.liger_softmax, lambda x: x.softmax(-1), randn(*shape, dtype=dtype), name="liger_softmax")


def sparsemax(x, dim=-1):
    """Projection onto the simplex: sort, find the support, subtract the threshold."""
    z = x.transpose(dim, -1).sort(-1, descending=True).values
    k = torch.arange(1, z.shape[-1] + 1, dtype=x.dtype)
    support = (1 + k * z > z.cumsum(-1)).sum(-1, keepdim=True)
    tau = (z.cumsum(-1).gather(-1, support - 1) - 1) / support
    return (x.transpose(dim, -1) - tau).clamp_min(0).transpose(dim, -1)


@pytest.mark.parametrize(("shape", "dim"), [((3, 5), -1), ((2, 6, 70), -1), ((2, 9, 5), 1)])
def test_sparsemax(shape, dim):
    check(
        LEDGER, lambda x: liger.liger_sparsemax(x, dim), lambda x: sparsemax(x, dim), randn(*shape),
        name="liger_sparsemax",
    )  # fmt: skip


# ---- rotary embeddings


def rotate_half(x):
    a, b = x.chunk(2, -1)
    return torch.cat([-b, a], -1)


def angles(length, dim, dtype, batch=1):
    angle = torch.arange(length)[:, None] / 100 ** (torch.arange(dim // 2) / (dim // 2))
    angle = torch.cat([angle, angle], -1)[None].expand(batch, -1, -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


@each_type
@pytest.mark.parametrize("heads", [(4, 4), (6, 3)])
def test_rope(dtype, heads):
    def reference(q, k, cos, sin):
        return tuple(x * cos[:, None] + rotate_half(x) * sin[:, None] for x in (q, k))

    cos, sin = angles(7, 24, dtype)
    q, k = (randn(2, h, 7, 24, dtype=dtype) for h in heads)
    check(LEDGER, liger.liger_rope, reference, q, k, cos, sin, name="liger_rope")


@each_type
def test_qwen2vl_mrope(dtype):
    sections = [4, 4, 4]

    def reference(q, k, cos, sin):
        def chosen(x):
            return torch.cat([part[i % 3] for i, part in enumerate(x.split(sections * 2, -1))], -1)[:, None]

        return tuple(x * chosen(cos) + rotate_half(x) * chosen(sin) for x in (q, k))

    cos, sin = (torch.stack([torch.roll(x, i, 1) for i in range(3)]) for x in angles(5, 24, dtype, batch=2))
    q, k = randn(2, 4, 5, 24, dtype=dtype), randn(2, 2, 5, 24, dtype=dtype)
    check(
        LEDGER, lambda *x: liger.liger_qwen2vl_mrope(*x, sections), reference, q, k, cos, sin,
        name="liger_qwen2vl_mrope",
    )  # fmt: skip


def test_llama4_rope():
    def reference(q, k, freqs):
        freqs = freqs.to(torch.complex128)[None, :, None]
        return tuple(
            torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * freqs).flatten(-2) for x in (q, k)
        )

    cos, sin = angles(6, 20, FP32)
    freqs = torch.complex(cos[0, :, :10], sin[0, :, :10])
    q, k = randn(2, 6, 4, 20), randn(2, 6, 2, 20)
    check(LEDGER, liger_llama4_text_rotary_pos_emb, reference, q, k, freqs, name="liger_llama4_text_rotary_pos_emb")


# ---- attention and others


@each_type
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (5, 2)])
def test_fused_neighborhood_attention(dtype, kernel_size, dilation):
    def reference(q, k, v):
        distance = torch.arange(37)[None] - torch.arange(37)[:, None]
        near = (distance.abs() <= kernel_size // 2 * dilation) & (distance % dilation == 0)
        scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~near, -torch.inf)
        return scores.softmax(-1) @ v

    q, k, v = (randn(2, 2, 37, 20, dtype=dtype) for _ in range(3))
    check(
        LEDGER, lambda *x: liger.liger_fused_neighborhood_attention(*x, kernel_size, dilation), reference, q, k, v,
        name="liger_fused_neighborhood_attention", roundings=64,  # scores and their gradients go through memory
    )  # fmt: skip


@pytest.mark.parametrize("sparse", [True, False])
def test_multi_token_attention(sparse):
    def reference(scores, weight, bias):
        later = torch.ones(9, 9, dtype=torch.bool).triu(1)
        probabilities = (sparsemax if sparse else torch.softmax)(scores.masked_fill(later, -1e9), -1)
        return F.conv2d(probabilities, weight, bias, padding=1).masked_fill(later, 0)

    check(
        LEDGER, lambda s, w, b: liger.liger_multi_token_attention(s, w, b, padding=1, sparse=sparse), reference,
        randn(2, 3, 9, 9), randn(4, 3, 3, 3), randn(4), name="liger_multi_token_attention", roundings=64,
    )  # fmt: skip


@each_type
def test_attn_res(dtype):
    def reference(v, query, norm):
        scores = (rms(v, 1e-6) * norm) @ query
        return (scores.softmax(0)[..., None] * v).sum(0)

    check(
        LEDGER, liger.liger_attn_res, reference, randn(5, 2, 3, 37, dtype=dtype), randn(37, dtype=dtype, scale=0.1),
        randn(37, dtype=dtype), name="liger_attn_res", roundings=32,
    )  # fmt: skip


@each_type
def test_embedding(dtype):
    ids = torch.randint(11, (3, 7))
    check(
        LEDGER, lambda w: LigerEmbeddingFunction.apply(w, ids), lambda w: w[ids], randn(11, 37, dtype=dtype),
        name="LigerEmbeddingFunction",
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("configuration", ["first", "last"])
def test_fused_moe(dtype, configuration, request):
    if configuration == "last":
        request.getfixturevalue("last_configuration")
    tokens, experts, top, hidden, inner = 13, 4, 2, 32, 48
    index = torch.stack([torch.randperm(experts)[:top] for _ in range(tokens)]).int()

    def reference(x, up, down, weights):
        out = []
        for t in range(tokens):
            total = 0
            for j in range(top):
                gate, value = (up[index[t, j]] @ x[t]).chunk(2)
                total = total + weights[t, j] * (down[index[t, j]] @ (F.silu(gate) * value))
            out.append(total)
        return torch.stack(out)

    check(
        LEDGER, lambda x, up, down, w: LigerFusedMoEFunction.apply(x, up, down, index, w), reference,
        randn(tokens, hidden, dtype=dtype), randn(experts, 2 * inner, hidden, dtype=dtype, scale=0.2),
        randn(experts, hidden, inner, dtype=dtype, scale=0.2),
        randn(tokens, top).detach().softmax(-1).to(dtype).requires_grad_(),
        name="LigerFusedMoEFunction", roundings=32,
    )  # fmt: skip


def test_mhc_coefficients():
    streams, width, iterations = 4, 24, 5

    def reference(x, phi, b, alpha_pre, alpha_post, alpha_res):
        flat = x.flatten(-2)
        mix = (flat @ phi) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6)
        pre, post, res = mix.split([streams, streams, streams**2], -1)
        b_pre, b_post, b_res = b.split([streams, streams, streams**2])
        matrix = (res * alpha_res + b_res).unflatten(-1, (streams, streams)).softmax(-1) + 1e-6
        matrix = matrix / (matrix.sum(-2, keepdim=True) + 1e-6)
        for _ in range(iterations - 1):
            matrix = matrix / (matrix.sum(-1, keepdim=True) + 1e-6)
            matrix = matrix / (matrix.sum(-2, keepdim=True) + 1e-6)
        return (pre * alpha_pre + b_pre).sigmoid(), 2 * (post * alpha_post + b_post).sigmoid(), matrix

    size = 2 * streams + streams**2
    check(
        LEDGER, lambda *t: liger.liger_mhc_coeffs(*t, allow_fp32=True, tmax=iterations), reference,
        randn(3, 5, streams, width), randn(streams * width, size, scale=0.1), randn(size), randn(), randn(), randn(),
        name="liger_mhc_coeffs", roundings=256,  # ten normalisations in a row
    )  # fmt: skip


@each_type
def test_mhc_streams(dtype):
    x, mixed = randn(2, 5, 4, 70, dtype=dtype), randn(2, 5, 70, dtype=dtype)
    pre, post, res = randn(2, 5, 4), randn(2, 5, 4), randn(2, 5, 4, 4)
    check(
        LEDGER, liger.liger_mhc_pre, lambda x, h: (x * h[..., None]).sum(-2), x, pre, name="liger_mhc_pre",
        rounded_to=dtype,
    )  # fmt: skip
    check(
        LEDGER, liger.liger_mhc_post_res, lambda x, f, post, res: res @ x + post[..., None] * f[..., None, :],
        x, mixed, post, res, name="liger_mhc_post_res", rounded_to=dtype,
    )  # fmt: skip


def test_int8_by_packed_2_bit_product():
    a, b = torch.randint(-128, 128, (37, 1024), dtype=torch.int8), torch.randint(-1, 2, (1024, 45))
    packed = pack_weights(b.clone())
    check(
        LEDGER, lambda a: matmul(a, packed), lambda a: a.int() @ b.int(), a, name="mm_int8int2.matmul", backward=False
    )


@each_type
def test_mlp_with_tensor_descriptors(dtype):
    """The parts of LigerMLP: its autograd function asserts that tensors are on a GPU."""
    x, gate, up = randn(2, 37, 48, dtype=dtype), randn(72, 48, dtype=dtype), randn(72, 48, dtype=dtype)
    down, gradient = randn(48, 72, dtype=dtype), randn(2, 37, 48, dtype=dtype)

    def function(x, gate, up, down, gradient):
        stored, config = mlp.gemm_swiglu(x, gate, up, 1.0)
        inference, _ = mlp.gemm_swiglu(x, gate, up, 1.0, store_preact=False)
        out = stored[..., :72].clone()
        mlp.swiglu_backward_dGU(gradient, down, stored, config, 1.0, 1.0)
        return out, inference, mlp.swiglu_backward_dI(gate, up, stored)

    def reference(x, gate, up, down, gradient):
        out = F.silu(x @ gate.T) * (x @ up.T)
        (dx,) = torch.autograd.grad(out @ down.T, x, gradient)
        return out, out, dx

    check(
        LEDGER, function, reference, x, gate, up, down, gradient, name="mlp.gemm_swiglu", backward=False, roundings=32
    )


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
