"""flash-linear-attention (fla-core): chunked and recurrent linear attention, forwards and backwards."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="fla-core imports Triton")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that there is no GPU
    pytest.importorskip("fla", reason="fla-core is not installed")
    from fla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    from fla.ops.generalized_delta_rule import (
        chunk_dplr_delta_rule,
        chunk_iplr_delta_rule,
        fused_recurrent_dplr_delta_rule,
        fused_recurrent_iplr_delta_rule,
    )
    from fla.ops.gla import chunk_gla, fused_recurrent_gla
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn
    from fla.ops.kda import chunk_kda, fused_recurrent_kda
    from fla.ops.lightning_attn import chunk_lightning_attn, fused_recurrent_lightning_attn
    from fla.ops.linear_attn import chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn
    from fla.ops.retention import chunk_retention, fused_chunk_retention, fused_recurrent_retention, parallel_retention
    from fla.ops.rwkv6 import chunk_rwkv6, fused_recurrent_rwkv6
    from fla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7
    from fla.ops.simple_gla import (
        chunk_simple_gla,
        fused_chunk_simple_gla,
        fused_recurrent_simple_gla,
        parallel_simple_gla,
    )

import itertools

from tests.packages.harness import Ledger, check, randn
from tests.packages.recurrences import delta_rule, recurrence

LEDGER = Ledger("fla-core", "linear attention, delta rules")
BATCH, LENGTH, HEADS, WIDTH, VALUE = 1, 67, 2, 24, 40
SCALE = WIDTH**-0.5
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Chunks are multiplied and inverted, then passed on: many roundings lie between input and output.
ROUNDINGS = {FP32: 400.0, BF16: 24.0, FP16: 24.0}


def forms(*chunked, recurrent=None):
    """Chunked forms in two types; the recurrent one, which takes a position at a time, in one."""
    cases = [pytest.param(f, t, id=f"{f.__name__}-{t}") for f in chunked for t in (FP32, BF16)]
    cases += [pytest.param(recurrent, FP32, id=recurrent.__name__)] if recurrent else []
    return pytest.mark.parametrize(("function", "dtype"), cases)


def qkv(dtype):
    q, k = (randn(BATCH, LENGTH, HEADS, WIDTH, dtype=dtype) for _ in range(2))
    return q, k, randn(BATCH, LENGTH, HEADS, VALUE, dtype=dtype)


def decays(*shape, dtype=FP32):
    """Logarithms of factors between 0.5 and 1."""
    return (-0.7 * torch.rand(BATCH, LENGTH, HEADS, *shape)).to(dtype).requires_grad_()


def same(function, reference, *inputs, roundings=None, **options):
    dtype = inputs[0].dtype
    check(
        LEDGER, lambda *x: function(*x, **options), reference, *inputs, name=function.__name__,
        roundings=roundings or ROUNDINGS[dtype], rounded_to=dtype,
    )  # fmt: skip


# ---- a decaying sum of outer products


@forms(chunk_linear_attn, fused_chunk_linear_attn, recurrent=fused_recurrent_linear_attn)
def test_linear_attention(function, dtype):
    same(
        function, lambda q, k, v: recurrence(q, k, v, scale=SCALE)[0:1], *qkv(dtype), normalize=False,
    )  # fmt: skip


@pytest.mark.parametrize("function", [chunk_linear_attn, fused_chunk_linear_attn, fused_recurrent_linear_attn])
def test_linear_attention_from_a_state_to_a_state(function):
    def from_state(q, k, v, state):
        return function(q, k, v, initial_state=state, output_final_state=True, normalize=False)

    from_state.__name__ = function.__name__
    same(
        from_state, lambda q, k, v, state: recurrence(q, k, v, scale=SCALE, state=state), *qkv(FP32),
        randn(BATCH, HEADS, WIDTH, VALUE),
    )  # fmt: skip


RETENTION = (1 - 2.0 ** (-5.0 - torch.arange(HEADS))).log().expand(BATCH, LENGTH, HEADS)


@forms(chunk_retention, fused_chunk_retention, parallel_retention, recurrent=fused_recurrent_retention)
def test_retention(function, dtype):
    same(function, lambda q, k, v: recurrence(q, k, v, scale=SCALE, decay=RETENTION)[0], *qkv(dtype))


@forms(chunk_lightning_attn, recurrent=fused_recurrent_lightning_attn)
def test_lightning_attention(function, dtype):
    decay = (-(8 / HEADS * (1 - 1 / 4)) * torch.arange(HEADS)).expand(BATCH, LENGTH, HEADS)
    same(
        function, lambda q, k, v: recurrence(q, k, v, scale=SCALE, decay=decay)[0], *qkv(dtype), layer_idx=1,
        num_layers=4,
    )  # fmt: skip


@forms(chunk_simple_gla, fused_chunk_simple_gla, parallel_simple_gla, recurrent=fused_recurrent_simple_gla)
def test_simple_gla(function, dtype):
    same(function, lambda q, k, v, g: recurrence(q, k, v, scale=SCALE, decay=g)[0], *qkv(dtype), decays())


@forms(chunk_gla, recurrent=fused_recurrent_gla)
def test_gla(function, dtype):
    same(
        function, lambda q, k, v, g: recurrence(q, k, v, scale=SCALE, decay=g), *qkv(dtype), decays(WIDTH),
        output_final_state=True,
    )  # fmt: skip


@pytest.mark.usefixtures("last_configuration")
def test_gla_with_another_configuration():
    same(chunk_gla, lambda q, k, v, g: recurrence(q, k, v, scale=SCALE, decay=g)[0], *qkv(FP32), decays(WIDTH))


def test_gla_of_sequences_of_different_lengths_one_after_another():
    bounds = [0, 2, 66, 67]

    def reference(q, k, v, g):
        parts = [tuple(x[:, a:b] for x in (q, k, v, g)) for a, b in itertools.pairwise(bounds)]
        return torch.cat([recurrence(*part[:3], scale=SCALE, decay=part[3])[0] for part in parts], 1)

    same(chunk_gla, reference, *qkv(FP32), decays(WIDTH), cu_seqlens=torch.tensor(bounds))


@forms(chunk_rwkv6, recurrent=fused_recurrent_rwkv6)
def test_rwkv6(function, dtype):
    def reference(r, k, v, w, u):
        """The state decays after it is read; the newest pair counts u times."""
        before, _ = recurrence(r, k.roll(1, 1) * _after_first(k), v.roll(1, 1), scale=SCALE, decay=w.roll(1, 1))
        return before + SCALE * (r * u * k).sum(-1, keepdim=True) * v

    same(function, reference, *qkv(dtype), decays(WIDTH), randn(HEADS, WIDTH))


def _after_first(x):
    """One everywhere but at position 0."""
    return (torch.arange(x.shape[1]) > 0).to(x.dtype)[:, None, None]


@forms(chunk_hgrn, recurrent=fused_recurrent_hgrn)
def test_hgrn(function, dtype):
    def reference(x, g):
        states, h = [], torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = g[:, t].exp() * h + x[:, t]
            states.append(h)
        return torch.stack(states, 1)

    x, g = randn(2, LENGTH, 37, dtype=dtype), (-torch.rand(2, LENGTH, 37)).to(dtype).requires_grad_()
    same(function, reference, x, g, roundings=ROUNDINGS[dtype] * 2)


# ---- rules that overwrite


def normal_keys(dtype):
    q, k, v = qkv(dtype)
    k = F.normalize(k.detach().float(), dim=-1).to(dtype).requires_grad_()
    return q, k, v


def strengths(*shape, dtype=FP32):
    return torch.rand(BATCH, LENGTH, HEADS, *shape).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("function", "dtype"),
    [(chunk_delta_rule, FP16), (chunk_delta_rule, BF16), (fused_recurrent_delta_rule, FP32)],  # no fp32 in chunks
)
def test_delta_rule(function, dtype):
    same(
        function, lambda q, k, v, beta: delta_rule(q, k, v, beta, scale=SCALE), *normal_keys(dtype),
        strengths(dtype=dtype), output_final_state=True,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_chunked_gated_delta_rule(dtype):
    same(
        chunk_gated_delta_rule, lambda q, k, v, g, beta: delta_rule(q, k, v, beta, scale=SCALE, decay=g),
        *normal_keys(dtype), decays(), strengths(dtype=dtype), output_final_state=True,
    )  # fmt: skip


def test_recurrent_gated_delta_rule():
    """It has no backward pass."""
    q, k, v, g, beta = (x.detach() for x in (*normal_keys(FP32), decays(), strengths()))

    def function(q, k, v, g, beta):
        return fused_recurrent_gated_delta_rule(q, k, v, g=g, beta=beta)

    function.__name__ = fused_recurrent_gated_delta_rule.__name__
    same(
        function,
        lambda q, k, v, g, beta: delta_rule(q, k, v, beta, scale=SCALE, decay=g)[0], q, k, v, g, beta,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [FP32, BF16])
def test_chunked_kda(dtype):
    same(
        chunk_kda, lambda q, k, v, g, beta: delta_rule(q, k, v, beta, scale=SCALE, decay=g), *normal_keys(dtype),
        decays(WIDTH), strengths(dtype=dtype), output_final_state=True,
    )  # fmt: skip


def test_recurrent_kda():
    q, k, v, g, beta = (x.detach() for x in (*normal_keys(FP32), decays(WIDTH), strengths()))
    same(
        fused_recurrent_kda, lambda q, k, v, g, beta: delta_rule(q, k, v, beta, scale=SCALE, decay=g)[0], q, k, v, g,
        beta,
    )  # fmt: skip


def low_rank(dtype):
    a = F.normalize(torch.randn(BATCH, LENGTH, HEADS, WIDTH), dim=-1)
    b = -a * torch.rand(BATCH, LENGTH, HEADS, 1)
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [FP16, BF16])  # the package refuses fp32 here
@pytest.mark.parametrize("function", [chunk_dplr_delta_rule, chunk_rwkv7])
def test_diagonal_plus_low_rank(function, dtype):
    q, k, v = qkv(dtype)
    a, b = low_rank(dtype)
    if function is chunk_rwkv7:

        def reference(r, w, k, v, a, b):
            return recurrence(r, k, v, scale=1.0, decay=w, a=a, b=b)[0]

        same(function, reference, q, decays(WIDTH, dtype=dtype), k, v, a, b, roundings=2 * ROUNDINGS[dtype])
    else:

        def reference(q, k, v, a, b, g):
            return recurrence(q, k, v, scale=SCALE, decay=g, a=a, b=b)[0]

        same(function, reference, q, k, v, a, b, decays(WIDTH, dtype=dtype), roundings=2 * ROUNDINGS[dtype])


def test_recurrent_diagonal_plus_low_rank():
    q, k, v, a, b, g = (x.detach() for x in (*qkv(FP32), *low_rank(FP32), decays(WIDTH)))
    same(
        fused_recurrent_dplr_delta_rule,
        lambda q, k, v, a, b, g: recurrence(q, k, v, scale=SCALE, decay=g, a=a, b=b)[0], q, k, v, a, b, g,
    )  # fmt: skip
    same(
        fused_recurrent_rwkv7, lambda r, w, k, v, a, b: recurrence(r, k, v, scale=1.0, decay=w, a=a, b=b)[0],
        q, g, k, v, a, b, scale=1.0, output_final_state=False,
    )  # fmt: skip


@forms(chunk_iplr_delta_rule, recurrent=fused_recurrent_iplr_delta_rule)
def test_identity_plus_low_rank(function, dtype):
    q, k, v = qkv(dtype)
    a, b = low_rank(dtype)
    inputs = (q, k, v, a, b) if function is fused_recurrent_iplr_delta_rule else [x.detach() for x in (q, k, v, a, b)]
    same(function, lambda q, k, v, a, b: recurrence(q, k, v, scale=SCALE, a=a, b=b)[0], *inputs)


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
