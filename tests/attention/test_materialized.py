"""Standard attention as kernels that write S and P to memory."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.attention import standard_attention_kernels
from tests.attention.oracle import assert_close, exact, make_inputs, run, tolerance

# S, P, dP and dS are rounded to the inputs' dtype on their way through memory: an error of u |s| in a score, |s| up to
# 4 or 5 here, moves its probability by as much. That comes on top of the roundings that flash attention has.
ROUNDED_SCORES = 5


def in_simulator(*args, **options):
    with simulator.enabled():
        return standard_attention_kernels(*args, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_materialized_equals_exact_attention_in_each_dtype(dtype, causal):
    x = make_inputs(batch=2, heads=4, kv_heads=2, len_q=130, len_k=100, dim=64, dtype=dtype)
    tol = tolerance(dtype) * (1 if dtype is torch.float32 else ROUNDED_SCORES)
    assert_close(run(in_simulator, *x, causal=causal), exact(*x, causal=causal), tol)


@pytest.mark.parametrize("additive_mask", [False, True])
@pytest.mark.parametrize(("len_q", "len_k", "dim"), [(1, 1, 16), (1, 70, 40), (70, 1, 96), (33, 90, 128)])
def test_materialized_equals_exact_attention_for_sizes_that_do_not_divide(len_q, len_k, dim, additive_mask):
    x = make_inputs(heads=3, kv_heads=1, len_q=len_q, len_k=len_k, dim=dim)
    got = run(in_simulator, *x, causal=True, additive_mask=additive_mask)
    assert_close(got, exact(*x, causal=True), tolerance(torch.float32))


def test_materialized_additive_mask_of_nothing_changes_nothing():
    q, k, v, _ = make_inputs(len_q=50)
    assert torch.equal(in_simulator(q, k, v), in_simulator(q, k, v, additive_mask=True))


def test_materialized_reads_any_strides():
    x = [t.transpose(2, 3).contiguous().transpose(2, 3) for t in make_inputs(batch=2, len_q=50, len_k=70)]
    assert_close(run(in_simulator, *x), exact(*x), tolerance(torch.float32))


def dropped_probabilities(seed: int, dropout_p: float = 0.25) -> torch.Tensor:
    """P~, which O is when V is the identity."""
    q = torch.zeros(1, 2, 128, 128)
    return in_simulator(q, q, torch.eye(128).expand(1, 2, -1, -1), dropout_p=dropout_p, seed=seed)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    p = dropped_probabilities(seed=1)
    assert p.unique().tolist() == pytest.approx([0.0, 1 / 128 / 0.75])
    # 32,768 draws: the standard deviation of the rate is sqrt(.25 * .75 / 32768) = 0.0024; 4 of them.
    assert (p == 0).double().mean().item() == pytest.approx(0.25, abs=0.0096)
    assert (p[0, 0] == 0).ne(p[0, 1] == 0).double().mean() > 0.3  # heads do not share a mask


def test_dropout_depends_on_its_seed_only():
    assert torch.equal(dropped_probabilities(seed=1), dropped_probabilities(seed=1))
    assert not torch.equal(dropped_probabilities(seed=1), dropped_probabilities(seed=2))


@pytest.mark.parametrize("length", [64, 70])
def test_dropout_backward_uses_the_forward_mask(length):
    q, k, v, do = make_inputs(heads=2, len_q=length, dim=32)
    keep = in_simulator(*make_uniform(length), dropout_p=0.3, seed=7)[..., :length] != 0
    inputs = [t.double().requires_grad_() for t in (q, k, v)]
    p = (inputs[0] @ inputs[1].mT * 32**-0.5).softmax(-1) * keep / 0.7
    o = p @ inputs[2]
    expected = [o, *torch.autograd.grad(o, inputs, do.double())]
    got = run(in_simulator, q, k, v, do, dropout_p=0.3, seed=7)
    assert_close(got, [t.detach() for t in expected], tolerance(torch.float32))


def make_uniform(length: int) -> list[torch.Tensor]:
    """Inputs whose output is P~ / length, by columns: equal scores, and the identity as values."""
    q = torch.zeros(1, 2, length, 128)
    return [q, q, torch.eye(length, 128).expand(1, 2, -1, -1)]


@pytest.mark.parametrize("dropout_p", [-0.1, 1.0, float("nan")])
def test_materialized_refuses_a_dropout_probability_out_of_range(dropout_p):
    q, k, v, _ = make_inputs()
    with pytest.raises(ValueError, match="dropout_p must be at least 0 and below 1"):
        in_simulator(q, k, v, dropout_p=dropout_p)


def test_materialized_refuses_rows_that_do_not_fit_on_chip():
    q = torch.zeros(1, 1, 1, 16)
    k = torch.zeros(1, 1, 1, 16).expand(1, 1, 65537, 16)
    with pytest.raises(ValueError, match="at most 65536 keys, got 65537"):
        in_simulator(q, k, k)
