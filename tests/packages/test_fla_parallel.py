"""flash-linear-attention (fla-core): attention over all pairs, and the newer chunked rules, forwards and backwards.

The package keeps a plain PyTorch version of most of them; where it launches kernels itself, or disagrees with the
kernel, the formula stands here.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="fla-core imports Triton")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that there is no GPU
    pytest.importorskip("fla", reason="fla-core is not installed")
    from fla.ops.abc import chunk_abc
    from fla.ops.abc.naive import naive_cumsum_abc
    from fla.ops.attn import parallel_attn
    from fla.ops.based import fused_chunk_based, parallel_based
    from fla.ops.comba import chunk_comba, fused_recurrent_comba
    from fla.ops.forgetting_attn import parallel_forgetting_attn
    from fla.ops.gated_delta_product import chunk_gated_delta_product
    from fla.ops.gated_delta_product.naive import naive_recurrent_gated_delta_product
    from fla.ops.gated_oja_rule import chunk_gated_oja_rule, fused_recurrent_gated_oja_rule
    from fla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
    from fla.ops.gdn2.naive import naive_recurrent_gdn2
    from fla.ops.gsa import chunk_gsa, fused_recurrent_gsa
    from fla.ops.gsa.naive import naive_recurrent_gsa
    from fla.ops.lightnet import chunk_lightnet, fused_recurrent_lightnet
    from fla.ops.log_linear_attn import chunk_log_linear_attn
    from fla.ops.log_linear_attn.naive import naive_log_linear_attn
    from fla.ops.mesa_net import chunk_mesa_net, naive_mesa_net_exact
    from fla.ops.nsa import parallel_nsa
    from fla.ops.parallax import naive_parallax, parallel_parallax
    from fla.ops.path_attn import naive_path_attn, parallel_path_attn
    from fla.ops.rebased import parallel_rebased
    from fla.ops.rwkv4 import fused_recurrent_rwkv4
    from fla.ops.stickbreaking_attn import naive_stickbreaking_attn, parallel_stickbreaking_attn
    from fla.ops.ttt import chunk_ttt_linear, fused_chunk_ttt_linear
    from fla.ops.ttt.naive import chunk_ttt_linear_ref
    from fla.ops.wall_attn import parallel_wall_attn

from tests.packages.harness import Ledger, check, randn
from tests.packages.recurrences import recurrence

LEDGER = Ledger("fla-core", "attention over pairs, newer rules")
LENGTH, HEADS, WIDTH = 67, 2, 32
SCALE = WIDTH**-0.5
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ROUNDINGS = {FP32: 256.0, BF16: 32.0, FP16: 32.0}

each_type = pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])


def same(function, reference, *inputs, name="", roundings=None, **options):
    dtype = inputs[0].dtype
    check(
        LEDGER, function, reference, *inputs, name=name or function.__name__,
        roundings=roundings or ROUNDINGS[dtype], rounded_to=dtype, **options,
    )  # fmt: skip


def heads(*widths, length=LENGTH, dtype=FP32, count=HEADS, grad=True):
    return [randn(1, length, count, width, dtype=dtype, grad=grad) for width in widths]


def unit(width=WIDTH, length=LENGTH, dtype=FP32):
    return F.normalize(torch.randn(1, length, HEADS, width), dim=-1).to(dtype).requires_grad_()


def logs(*shape, length=LENGTH):
    """Logarithms of factors between 0.5 and 1."""
    return (-0.7 * torch.rand(1, length, HEADS, *shape)).requires_grad_()


def fractions(*shape, length=LENGTH, dtype=FP32):
    return torch.rand(1, length, HEADS, *shape).to(dtype).requires_grad_()


def attention(q, k, v, *, extra=None, window=None, of_scores=None):
    """Causal attention on (batch, length, heads, width), with something added to the scores before their softmax."""
    groups = q.shape[2] // k.shape[2]
    q, k, v = q.transpose(1, 2), *(x.transpose(1, 2).repeat_interleave(groups, 1) for x in (k, v))
    scores = q @ k.mT * SCALE
    later = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    if window is not None:
        later = later | torch.ones_like(later).tril(-window)
    if of_scores is not None:
        weights = of_scores(scores).masked_fill(later, 0)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    else:
        weights = (scores if extra is None else scores + extra).masked_fill(later, -torch.inf).softmax(-1)
    return (weights @ v).transpose(1, 2)


# ---- all pairs


@each_type
@pytest.mark.parametrize("window", [None, 17])
def test_grouped_attention(dtype, window):
    q = randn(1, LENGTH, 4, WIDTH, dtype=dtype)
    same(
        lambda q, k, v: parallel_attn(q, k, v, window_size=window), lambda *x: attention(*x, window=window), q,
        *heads(WIDTH, 40, dtype=dtype), name="parallel_attn",
    )  # fmt: skip


@each_type
def test_forgetting_attention(dtype):
    def reference(q, k, v, g):
        total = g.cumsum(1).transpose(1, 2)
        return attention(q, k, v, extra=total[..., :, None] - total[..., None, :])

    same(parallel_forgetting_attn, reference, *heads(WIDTH, WIDTH, 40, dtype=dtype), logs())


@each_type
@pytest.mark.parametrize("function", [parallel_based, fused_chunk_based])
def test_based_attention(function, dtype):
    """The second-order Taylor series of the exponential instead of it."""

    def reference(q, k, v):
        return attention(q * (WIDTH / 16) ** 0.5, k, v, of_scores=lambda s: 1 + s + s**2 / 2)

    same(function, reference, *heads(16, 16, 40, dtype=dtype))


@each_type
def test_rebased_attention(dtype):
    def reference(q, k, v):
        return attention(q * (WIDTH / 16) ** 0.5, k, v, of_scores=torch.square)

    same(lambda q, k, v: parallel_rebased(q, k, v, eps=1e-6), reference, *heads(16, 16, 40, dtype=dtype),
         name="parallel_rebased")  # fmt: skip


@each_type
def test_stickbreaking_attention(dtype):
    same(parallel_stickbreaking_attn, naive_stickbreaking_attn, *heads(WIDTH, WIDTH, 40, dtype=dtype))


@each_type
def test_wall_attention(dtype):
    """Every key dimension decays on its own."""

    def reference(q, k, v, g):
        total = g.cumsum(1)
        gap = total[:, :, None] - total[:, None]
        later = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)[None, :, :, None, None]
        scores = (q[:, :, None] * k[:, None] * gap.masked_fill(later, 0).exp()).sum(-1) * SCALE
        weights = scores.masked_fill(later[..., 0], -torch.inf).softmax(2)
        return torch.einsum("bijh,bjhv->bihv", weights, v)

    same(parallel_wall_attn, reference, *heads(WIDTH, WIDTH, 40, dtype=dtype), logs(WIDTH))


@pytest.mark.parametrize("dtype", [BF16, FP16])  # the package refuses fp32
def test_parallax_attention(dtype):
    same(parallel_parallax, naive_parallax, *heads(WIDTH, WIDTH, WIDTH, WIDTH, dtype=dtype))


def test_path_attention():
    length = 128
    inputs = [*heads(WIDTH, WIDTH, WIDTH, length=length), unit(length=length), fractions(length=length)]
    same(
        lambda *x: parallel_path_attn(*x)[0], lambda *x: naive_path_attn(*x, scale=SCALE), *inputs,
        logs(length=length), name="parallel_path_attn", roundings=1000,
    )  # fmt: skip


def test_native_sparse_attention_of_chosen_blocks():
    block, chosen = 16, 2
    rows = [sorted({t // block, (t // block) * 3 % (t // block + 1)}) for t in range(LENGTH)]
    index = torch.tensor([[*row, *[-1] * (chosen - len(row))] for row in rows])[None, :, None]

    def reference(q, k, v, gate):
        visible = torch.zeros(LENGTH, LENGTH, dtype=torch.bool)
        for t, row in enumerate(rows):
            for b in row:
                visible[t, b * block : (b + 1) * block] = True
        return attention(q, k, v, extra=torch.where(visible, 0.0, -torch.inf)) * gate[..., None]

    q, (k, v) = randn(1, LENGTH, 16, WIDTH), heads(WIDTH, 40, count=1)
    same(
        lambda q, k, v, gate: parallel_nsa(
            q, k, v, g_slc=gate, block_indices=index, block_size=block, block_counts=chosen
        ),
        reference, q, k, v, torch.rand(1, LENGTH, 16).requires_grad_(), name="parallel_nsa",
    )  # fmt: skip


def test_native_sparse_attention_chooses_the_blocks_itself():
    """With as many blocks as there are, the choice is all of them: plain attention."""

    def reference(q, k, v, gate):
        return attention(q, k, v) * gate[..., None]

    q, (k, v) = randn(1, LENGTH, 16, WIDTH), heads(WIDTH, 40, count=1)
    zero = torch.zeros(1, LENGTH, 16)
    same(
        lambda q, k, v, gate: parallel_nsa(q, k, v, g_cmp=zero, g_slc=gate, block_size=16, block_counts=8), reference,
        q, k, v, torch.rand(1, LENGTH, 16).requires_grad_(), name="parallel_nsa",
    )  # fmt: skip


# ---- slots, levels, inner learners


@each_type
def test_gated_slot_attention(dtype):
    inputs = [*heads(WIDTH, WIDTH, 40, 16, dtype=dtype), logs(16)]
    inputs[3] = inputs[3].detach().sigmoid().requires_grad_()
    for function in (chunk_gsa, fused_recurrent_gsa) if dtype == FP32 else (chunk_gsa,):
        same(
            lambda *x, function=function: function(*x)[0], lambda *x: naive_recurrent_gsa(*x)[0], *inputs,
            name=function.__name__,
        )  # fmt: skip


def test_attention_with_bounded_memory():
    def reference(*inputs):
        return naive_cumsum_abc(*(x.transpose(1, 2) for x in inputs))[0].transpose(1, 2)

    same(lambda *x: chunk_abc(*x)[0], reference, *heads(WIDTH, WIDTH, 40, 16), name="chunk_abc", roundings=2000)


@pytest.mark.filterwarnings("ignore:Triton>3.2.0 detected")
def test_log_linear_attention():
    length, width = 128, 64
    q, k = (randn(1, length, 1, width) for _ in range(2))
    same(
        lambda *x: chunk_log_linear_attn(*x)[0], naive_log_linear_attn, q, k, randn(1, length, HEADS, width),
        logs(length=length), fractions(8, length=length), name="chunk_log_linear_attn",
    )  # fmt: skip


def test_test_time_training():
    length = 96
    inputs = [*heads(WIDTH, WIDTH, WIDTH, length=length), randn(HEADS, WIDTH), randn(HEADS, WIDTH)]
    rates = (torch.rand(1, length, HEADS, 1) * 0.01).requires_grad_()
    for function in (chunk_ttt_linear, fused_chunk_ttt_linear):
        same(
            lambda *x, function=function: function(*x)[0], lambda *x: chunk_ttt_linear_ref(*x)[0], *inputs, rates,
            name=function.__name__,
        )  # fmt: skip


def test_mesa_net():
    """Thirty steps of conjugate gradients against an exact solution; keys and queries are kept in fp16."""
    lamb = (torch.rand(HEADS, WIDTH) + 2).requires_grad_()

    def reference(q, k, v, g, beta, lamb):
        return naive_mesa_net_exact(q, k, v, g, lamb, beta)[0]

    check(
        LEDGER, lambda *x: chunk_mesa_net(*x)[0], reference, unit(), unit(), *heads(WIDTH), logs(), fractions(), lamb,
        name="chunk_mesa_net", rounded_to=FP16, roundings=16,
    )  # fmt: skip


# ---- more rules that overwrite


def comba(q, k, v, p, g, beta):
    """What p leads to, before the decay, is taken from v."""
    state, outputs = k.new_zeros(1, HEADS, WIDTH, v.shape[-1]), []
    for t in range(k.shape[1]):
        new = (v[:, t] - (p[:, t, ..., None] * state).sum(-2)) * beta[:, t, :, None]
        state = state * g[:, t, :, None, None].exp() + k[:, t, ..., None] * new[..., None, :]
        outputs.append((q[:, t, ..., None] * SCALE * state).sum(-2))
    return torch.stack(outputs, 1)


@each_type
def test_comba(dtype):
    inputs = [unit(dtype=dtype), unit(dtype=dtype), *heads(40, dtype=dtype), unit(dtype=dtype), logs()]
    inputs += [fractions(dtype=dtype)]
    same(lambda *x: chunk_comba(*x)[0], comba, *inputs, name="chunk_comba", roundings=2 * ROUNDINGS[dtype])


def test_recurrent_comba():
    inputs = [x.detach() for x in (unit(), unit(), *heads(40), unit(), logs(), fractions())]
    same(
        lambda q, k, v, p, g, b: fused_recurrent_comba(q, k, p, v, g, b)[0], comba, *inputs,
        name="fused_recurrent_comba",
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [BF16, FP16])  # the package refuses fp32
def test_gated_delta_product(dtype):
    """Two steps of the delta rule at each position."""
    length = 2 * LENGTH

    def reference(q, k, v, g, beta):
        return naive_recurrent_gated_delta_product(q, k, v, g, beta, SCALE, num_householder=2)[0]

    inputs = [*heads(WIDTH, dtype=dtype), unit(length=length, dtype=dtype), *heads(40, length=length, dtype=dtype)]
    same(
        lambda *x: chunk_gated_delta_product(*x, num_householder=2)[0], reference, *inputs, logs(),
        fractions(length=length, dtype=dtype), name="chunk_gated_delta_product",
    )  # fmt: skip


def oja(q, k, v, g, beta):
    """The delta rule with keys and values exchanged: what v leads to is taken from k."""
    state, outputs = k.new_zeros(1, HEADS, WIDTH, v.shape[-1]), []
    for t in range(k.shape[1]):
        state = state * g[:, t, :, None].exp()
        new = (k[:, t] - (v[:, t, :, None] * state).sum(-1)) * beta[:, t, :, None]
        state = state + new[..., None] * v[:, t, :, None]
        outputs.append((q[:, t, ..., None] * SCALE * state).sum(-2))
    return torch.stack(outputs, 1)


@each_type
def test_gated_oja_rule(dtype):
    inputs = [*heads(WIDTH, WIDTH, dtype=dtype), unit(40, dtype=dtype), logs(40), fractions(dtype=dtype)]
    same(
        lambda *x: chunk_gated_oja_rule(*x)[0], oja, *inputs, name="chunk_gated_oja_rule",
        roundings=2 * ROUNDINGS[dtype],
    )  # fmt: skip


def test_recurrent_gated_oja_rule():
    inputs = [x.detach() for x in (*heads(WIDTH, WIDTH), unit(40), logs(40), fractions())]
    same(
        lambda q, k, v, g, b: fused_recurrent_gated_oja_rule(q, k, v, g, b)[0], oja, *inputs,
        name="fused_recurrent_gated_oja_rule",
    )  # fmt: skip


def test_gated_delta_rule_with_two_gates():
    inputs = [unit(), unit(), *heads(40), logs(WIDTH), fractions(WIDTH), fractions(40)]
    same(lambda *x: chunk_gdn2(*x)[0], lambda *x: naive_recurrent_gdn2(*x)[0], *inputs, name="chunk_gdn2",
         roundings=1000)  # fmt: skip
    same(
        lambda *x: fused_recurrent_gdn2(*x)[0], lambda *x: naive_recurrent_gdn2(*x)[0], *[x.detach() for x in inputs],
        name="fused_recurrent_gdn2",
    )  # fmt: skip


@pytest.mark.parametrize("function", [chunk_lightnet, fused_recurrent_lightnet])
def test_lightnet(function):
    """Keys are normalised by the sum of all exponentials so far."""

    def reference(q, k, v):
        total = k.logcumsumexp(1)
        decay = torch.cat([torch.zeros_like(k[:, :1]), total[:, :-1] - total[:, 1:]], 1)
        return recurrence(q, (k - total).exp(), v, scale=SCALE, decay=decay)[0]

    same(lambda *x: function(*x)[0], reference, *heads(WIDTH, WIDTH, 40), name=function.__name__)


def test_rwkv4():
    def reference(w, u, k, v):
        """An average of the values so far with exponential weights; the newest has the weight exp(u + k)."""
        decay, outputs = -w.exp(), []
        for t in range(k.shape[1]):
            age = torch.arange(t - 1, -1, -1, dtype=w.dtype)[:, None]
            weights = torch.cat([(k[:, :t] + age * decay).exp(), (k[:, t : t + 1] + u).exp()], 1)
            outputs.append((weights * v[:, : t + 1]).sum(1) / weights.sum(1))
        return torch.stack(outputs, 1)

    state = torch.tensor([0.0, 0.0, -1e30])[None, :, None, None].repeat(2, 1, 1, 37)
    same(
        lambda w, u, k, v: fused_recurrent_rwkv4(w, u, k, v, state)[0], reference, randn(37), randn(37),
        randn(2, 21, 37), randn(2, 21, 37), name="fused_recurrent_rwkv4",
    )  # fmt: skip


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
