"""conch-triton-kernels: what serving needs (paged caches, quantised products, boxes), against plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="conch imports Triton")
pytest.importorskip("conch", reason="conch-triton-kernels is not installed")

from conch.ops.activation.gelu_tanh_and_mul import gelu_tanh_and_mul
from conch.ops.activation.silu_and_mul import silu_and_mul
from conch.ops.attention.paged_attention import paged_attention
from conch.ops.attention.varlen_attention import varlen_attention
from conch.ops.embedding.rotary_embedding import rotary_embedding
from conch.ops.normalization.gemma_rms_norm import gemma_rms_norm
from conch.ops.normalization.rms_norm import fused_add_rms_norm, rms_norm
from conch.ops.quantization.bitsandbytes.functional import dequantize_4bit, quantize_4bit
from conch.ops.quantization.fp8 import scaled_fp8_quant
from conch.ops.quantization.gemm import mixed_precision_gemm, scaled_gemm
from conch.ops.quantization.int8 import scaled_int8_quant
from conch.ops.vision.bev_pool import bev_pool, bev_pool_backward
from conch.ops.vision.nms import nms
from conch.ops.vision.voxelization import VoxelizationParameter, generate_voxels
from conch.ops.vllm.copy_blocks import copy_blocks
from conch.ops.vllm.reshape_and_cache import reshape_and_cache

from cme295lab import simulator
from tests.packages.harness import FLOAT_TYPES, Ledger, check, randn

LEDGER = Ledger("conch-triton-kernels", "paged attention, quantised products, vision")
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=["fp32", "bf16", "fp16"])


def same(function, reference, *inputs, name="", **options):
    inputs = [x.detach() if isinstance(x, torch.Tensor) else x for x in inputs]
    check(LEDGER, function, reference, *inputs, name=name or function.__name__, backward=False, **options)


def rms(x, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


@each_type
@pytest.mark.parametrize("shape", [(3, 10), (7, 260)])
def test_activations_and_norms(dtype, shape):
    x, r, w = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    same(silu_and_mul, lambda x: F.silu(x.chunk(2, -1)[0]) * x.chunk(2, -1)[1], x)
    if dtype == FP32:  # libdevice has no tanh of 16 bits: Triton refuses the kernel, and so does the simulator
        same(gelu_tanh_and_mul, lambda x: F.gelu(x.chunk(2, -1)[0], approximate="tanh") * x.chunk(2, -1)[1], x)
    same(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: rms(x, 1e-5) * w, x, w, name="rms_norm")
    same(
        lambda x, r, w: fused_add_rms_norm(x, r, w, 1e-5), lambda x, r, w: (rms(x + r, 1e-5) * w, x + r), x, r, w,
        name="fused_add_rms_norm", roundings=16,
    )  # fmt: skip
    same(lambda x, w: gemma_rms_norm(x, w, 1e-5), lambda x, w: rms(x, 1e-5) * (1 + w), x, w, name="gemma_rms_norm")


@each_type
def test_rotary_embedding(dtype):
    positions, heads, size = torch.tensor([4, 0, 9, 2, 2]), 3, 16
    angle = torch.rand(10, size // 2)
    cache = torch.cat([angle.cos(), angle.sin()], -1).to(dtype)

    def reference(q, k, cache):
        cos, sin = cache[positions][:, None].chunk(2, -1)
        out = []
        for x in (q, k):
            a, b = x.unflatten(-1, (-1, size)).chunk(2, -1)
            out.append(torch.cat([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2))
        return out

    same(
        lambda q, k, cache: rotary_embedding(positions, q, k, size, cache), reference,
        randn(5, heads * size, dtype=dtype), randn(5, heads * size, dtype=dtype), cache, name="rotary_embedding",
    )  # fmt: skip


# ---- a cache in pages

PAGE, HEADS, KV_HEADS, SIZE = 16, 4, 2, 32
LENGTHS = [5, 40, 33]
TABLE = torch.tensor([[7, 0, 0], [3, 1, 8], [2, 5, 6]], dtype=torch.int32)


def pages(cache, sequence):
    """The keys or values of a sequence, put together from its pages."""
    return cache[TABLE[sequence].long()].flatten(0, 1)[: LENGTHS[sequence]]


def attend(q, k, v, causal=False):
    """(queries, heads, size) to (keys, kv heads, size)."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1).transpose(0, 1) for x in (k, v))
    scores = q.transpose(0, 1) @ k.mT / math.sqrt(q.shape[-1])
    if causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)  # query i sees keys 0 to i
        scores = scores.masked_fill(later, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1)


@each_type
def test_paged_attention(dtype):
    def reference(q, k, v):
        return torch.cat([attend(q[i : i + 1], pages(k, i), pages(v, i)) for i in range(3)])

    same(
        lambda q, k, v: paged_attention(q, k, v, TABLE, torch.tensor(LENGTHS, dtype=torch.int32)), reference,
        randn(3, HEADS, SIZE, dtype=dtype), *(randn(9, PAGE, KV_HEADS, SIZE, dtype=dtype) for _ in range(2)),
        name="paged_attention", roundings=32, rounded_to=dtype,
    )  # fmt: skip


@each_type
@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_sequences_of_different_lengths(dtype, causal):
    starts = [0, 5, 15, 35]

    def reference(q, k, v):
        parts = [attend(q[starts[i] : starts[i + 1]], pages(k, i), pages(v, i), causal) for i in range(3)]
        return torch.cat(parts)

    def function(q, k, v):
        lengths = torch.tensor(LENGTHS, dtype=torch.int32)
        return varlen_attention(
            q, k, v, torch.tensor(starts, dtype=torch.int32), 20, lengths, 40, TABLE, causal=causal, strict=True
        )

    same(
        function, reference, randn(35, HEADS, SIZE, dtype=dtype),
        *(randn(9, PAGE, KV_HEADS, SIZE, dtype=dtype) for _ in range(2)), name="varlen_attention", roundings=32,
    )  # fmt: skip


@each_type
def test_new_keys_go_to_their_slots(dtype):
    slots = torch.tensor([3, 0, 70, 33, -1])

    def function(k, v, caches):
        reshape_and_cache(k, v, caches[0], caches[1], slots, strict=True)
        return caches

    def reference(k, v, caches):
        for x, cache in zip((k, v), caches, strict=True):
            cache.flatten(0, 1)[slots[:4]] = x[:4]
        return caches

    same(
        function, reference, *(randn(5, KV_HEADS, SIZE, dtype=dtype) for _ in range(2)),
        randn(2, 9, PAGE, KV_HEADS, SIZE, dtype=dtype), name="reshape_and_cache",
    )  # fmt: skip


def test_pages_are_copied_in_all_layers():
    """The kernel takes tensors of addresses: pointers to pointers."""
    mapping = torch.tensor([[0, 4], [1, 2], [1, 3]])

    def function(k, v):
        layers = [x.clone() for x in (*k, *v)]
        copy_blocks(layers[:2], layers[2:], mapping)
        return torch.stack(layers)

    def reference(k, v):
        layers = torch.cat([k, v])
        layers[:, mapping[:, 1]] = layers[:, mapping[:, 0]]
        return layers

    same(function, reference, randn(2, 5, 96), randn(2, 5, 96), name="copy_blocks")


# ---- quantisation


def test_quantisation_to_8_bits():
    x, scale = randn(5, 77, grad=False, scale=3.0), torch.tensor([0.05])
    same(
        lambda x: scaled_int8_quant(x, scale)[0],
        lambda x: (x.float() * scale.reciprocal()).clamp(-128, 127).to(torch.int8), x,  # the package cuts off
        name="scaled_int8_quant",
    )  # fmt: skip
    same(
        lambda x: scaled_fp8_quant(x, scale)[0].float(),
        lambda x: (x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).double(), x, name="scaled_fp8_quant",
    )  # fmt: skip


NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip


@each_type
def test_nf4_there_and_back(dtype):
    """Each number becomes the nearest of sixteen, times the largest number of its block of 64."""

    def function(x):
        return dequantize_4bit(*quantize_4bit(x, blocksize=64, quant_type="nf4"), quant_type="nf4")

    def reference(x):
        blocks = x.reshape(-1, 64)
        largest = blocks.abs().amax(-1, keepdim=True)
        code = torch.tensor(NF4, dtype=x.dtype)
        nearest = ((blocks / largest)[..., None] - code).abs().argmin(-1)
        return (code[nearest] * largest).reshape(x.shape)

    same(function, reference, randn(1280, dtype=dtype), name="quantize_4bit and dequantize_4bit")


@pytest.mark.parametrize("zero_points", [True, False])
def test_product_with_4_bit_weights(zero_points):
    m, k, n, group = 5, 256, 128, 128
    weight = torch.randint(16, (k, n))
    packed = sum(weight[i::8] << (4 * i) for i in range(8))
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    scale = (torch.rand(k // group, n) / 8).half()
    zeros = torch.randint(16, (k // group, n)).half() if zero_points else None

    def reference(x):
        shift = zeros.double().repeat_interleave(group, 0) if zero_points else 8
        return x @ ((weight - shift) * scale.double().repeat_interleave(group, 0))

    same(
        lambda x: mixed_precision_gemm(x, packed, scale, zeros, 4, 0 if zero_points else 8, group), reference,
        randn(m, k, dtype=FP16), name="mixed_precision_gemm", roundings=32,
    )  # fmt: skip


EMPTY = "loads a number from an empty tensor; a compiler drops that load, as nothing uses the number"
LEDGER.failing["scaled_gemm"] = EMPTY


@pytest.mark.xfail(strict=True, raises=simulator.OutOfBoundsError, reason=EMPTY)
def test_product_of_8_bit_integers():
    a = torch.randint(-128, 128, (37, 64), dtype=torch.int8)
    b = torch.randint(-128, 128, (45, 64), dtype=torch.int8).T
    by_row, by_column = torch.rand(37, 1) / 100, torch.rand(45, 1) / 100
    same(
        lambda s, t: scaled_gemm(a, b, s, t, BF16), lambda s, t: (a.double() @ b.double()) * s * t.T, by_row, by_column,
        name="scaled_gemm",
    )  # fmt: skip


# ---- vision


def test_non_maximum_suppression():
    corner = torch.rand(70, 2) * 10
    boxes, scores = torch.cat([corner, corner + torch.rand(70, 2) * 4 + 0.5], 1), torch.rand(70)

    def reference(boxes):
        waiting, kept = scores.argsort(descending=True).tolist(), []
        while waiting:
            best = waiting.pop(0)
            kept.append(best)
            low, high = torch.max(boxes[best, :2], boxes[waiting, :2]), torch.min(boxes[best, 2:], boxes[waiting, 2:])
            common = (high - low).clamp_min(0).prod(-1)
            area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
            waiting = [w for w, c in zip(waiting, common, strict=True) if c / (area[best] + area[w] - c) <= 0.3]
        return torch.tensor(kept)

    same(lambda boxes: nms(boxes, scores, 0.3), reference, boxes, name="nms")


def test_pooling_of_camera_features_to_a_map():
    cells = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0], [1, 2, 0, 1], [1, 2, 0, 1], [1, 2, 0, 1]])
    cells = cells.int()
    starts, lengths = torch.tensor([0, 2, 3], dtype=torch.int32), torch.tensor([2, 1, 3], dtype=torch.int32)

    def reference(x):
        out = x.new_zeros(2, 1, 3, 4, x.shape[1])
        for row, (i, j, z, b) in zip(x, cells.tolist(), strict=True):
            out[b, z, i, j] += row
        return out

    same(lambda x: bev_pool(x, cells, starts, lengths, 2, 1, 3, 4), reference, randn(6, 37), name="bev_pool")
    same(
        lambda g: bev_pool_backward(g, cells, starts, lengths),
        lambda g: torch.stack([g[b, z, i, j] for i, j, z, b in cells.tolist()]), randn(2, 1, 3, 4, 37),
        name="bev_pool_backward",
    )  # fmt: skip


def test_points_fall_into_voxels():
    points = torch.rand(300, 4) * 4.4 - 0.2
    setting = VoxelizationParameter((0.0, 0.0, 0.0), (4.0, 4.0, 4.0), (2.0, 2.0, 2.0), 100)

    def function(points):
        filled, features, index, count = generate_voxels(points, setting)
        n = int(filled)
        order = (index[:n, 0] + 2 * index[:n, 1] + 4 * index[:n, 2]).argsort()
        return torch.tensor(n), index[:n][order, :3], count[:n][order], features[:n][order].sum(1)

    def reference(points):
        inside = points[((points[:, :3] >= 0) & (points[:, :3] < 4)).all(1)]
        cell = (inside[:, :3] // 2).long()
        number = cell[:, 0] + 2 * cell[:, 1] + 4 * cell[:, 2]
        sums = torch.stack([inside[number == c].sum(0) for c in range(8)])
        index = torch.tensor([[c % 2, c // 2 % 2, c // 4] for c in range(8)])
        return torch.tensor(8), index, number.bincount(minlength=8), sums

    same(function, reference, points, name="generate_voxels")


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
