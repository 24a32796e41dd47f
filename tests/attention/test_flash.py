"""The Triton kernels behind flash_attention, forward and backward, against torch's attention in fp64."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from cme295lab import simulator
from cme295lab.attention import flash_attention
from cme295lab.attention.block_sizes import default_configs
from cme295lab.attention.flash import flash_forward
from tests.attention.oracle import assert_close, exact, make_inputs, run, tolerance

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def in_simulator(*args, **options):
    with simulator.enabled():
        return flash_attention(*args, **options)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_flash_equals_exact_attention_in_each_dtype(dtype, causal):
    x = make_inputs(batch=2, heads=2, len_q=256, dim=64, dtype=dtype)
    assert_close(run(in_simulator, *x, causal=causal), exact(*x, causal=causal), tolerance(dtype))


@pytest.mark.parametrize("dim", [16, 17, 32, 40, 64, 80, 96, 128])
def test_flash_equals_exact_attention_for_each_head_dim(dim):
    x = make_inputs(len_q=70, len_k=70, dim=dim)
    assert_close(run(in_simulator, *x, causal=True), exact(*x, causal=True), tolerance(torch.float32))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("len_q", "len_k"), [(1, 1), (1, 200), (200, 1), (70, 200), (200, 70), (128, 130), (97, 97)])
def test_flash_equals_exact_attention_for_lengths_that_do_not_divide(len_q, len_k, causal):
    x = make_inputs(heads=1, len_q=len_q, len_k=len_k)
    assert_close(run(in_simulator, *x, causal=causal), exact(*x, causal=causal), tolerance(torch.float32))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("block_m", "block_n"), [(16, 64), (64, 16), (32, 32), (128, 64)])
def test_flash_is_the_same_for_all_block_sizes(block_m, block_n, causal):
    x = make_inputs(heads=1, len_q=150, len_k=170, dim=16)
    got = run(in_simulator, *x, causal=causal, block_m=block_m, block_n=block_n)
    assert_close(got, exact(*x, causal=causal), tolerance(torch.float32))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_flash_sums_the_gradients_of_a_group_of_query_heads(kv_heads):
    x = make_inputs(batch=2, heads=6, kv_heads=kv_heads, len_q=50, len_k=60)
    assert_close(run(in_simulator, *x, causal=True), exact(*x, causal=True), tolerance(torch.float32))


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
@hypothesis.given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    len_q=st.integers(1, 80),
    len_k=st.integers(1, 80),
    dim=st.integers(16, 48),
    blocks=st.tuples(st.sampled_from([16, 32]), st.sampled_from([16, 32])),
    causal=st.booleans(),
)
def test_flash_equals_exact_attention_for_any_shape(batch, kv_heads, group, len_q, len_k, dim, blocks, causal):
    x = make_inputs(batch=batch, heads=kv_heads * group, kv_heads=kv_heads, len_q=len_q, len_k=len_k, dim=dim)
    got = run(in_simulator, *x, causal=causal, block_m=blocks[0], block_n=blocks[1])
    assert_close(got, exact(*x, causal=causal), tolerance(torch.float32))


def test_flash_uses_the_scale():
    x = make_inputs()
    assert_close(run(in_simulator, *x, scale=0.7), exact(*x, scale=0.7), tolerance(torch.float32))


def test_flash_is_exact_for_scores_far_from_zero():
    q, k, v, do = make_inputs()
    q = q * 30  # scores of some hundreds: without subtracting the maximum, exp overflows
    # The scores' own rounding grows with them: |s| u at most, here with |s| up to 600, before the softmax sees them.
    assert_close(run(in_simulator, q, k, v, do), exact(q, k, v, do), 600 * 2.0**-24 * 10)


def strided(x: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers in another layout."""
    if how == "transposed":  # (batch, sequence, heads, dim) in memory, as a projection leaves it
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if how == "sliced":  # part of a fused qkv tensor, at an offset
        return torch.cat([torch.full_like(x, math.nan), x, torch.full_like(x, math.nan)], dim=-1)[
            ..., x.shape[-1] : 2 * x.shape[-1]
        ]
    if how == "dim first":  # stride of the head dim is not 1
        return x.transpose(2, 3).contiguous().transpose(2, 3)
    assert how == "every other"
    return x.repeat_interleave(2, dim=2)[:, :, ::2]


@pytest.mark.parametrize("how", ["transposed", "sliced", "dim first", "every other"])
def test_flash_reads_any_strides(how):
    x = make_inputs(batch=2, len_q=50, len_k=70)
    assert_close(
        run(in_simulator, *(strided(t, how) for t in x), causal=True), exact(*x, causal=True), tolerance(torch.float32)
    )


def test_flash_reads_expanded_tensors_and_gradients():
    q, k, v, _ = make_inputs(batch=1, heads=1, len_q=40)
    q, k, v = (t.expand(2, 3, -1, -1) for t in (q, k, v))
    do = torch.ones(()).expand(q.shape)
    assert_close(run(in_simulator, q, k, v, do), exact(q, k, v, do), tolerance(torch.float32))


def test_flash_output_keeps_the_layout_of_q():
    q, k, v, _ = make_inputs(batch=2, len_q=50)
    assert in_simulator(strided(q, "transposed"), k, v).transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("causal", [False, True])
def test_flash_log_sum_exp_is_natural(causal):
    q, k, v, _ = make_inputs(len_q=50, len_k=70)
    with simulator.enabled():
        _, lse = flash_forward(q, k, v, causal=causal, scale=0.5, config=default_configs(32, 4, 50, 70).forward)
    s = 0.5 * q.double() @ k.double().mT
    if causal:
        s = s.masked_fill(torch.ones(50, 70).triu(1).bool(), -math.inf)
    torch.testing.assert_close(lse.double(), s.logsumexp(-1), rtol=4 * 2.0**-23, atol=1e-6)


@pytest.mark.parametrize(
    "needed", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
def test_flash_differentiates_only_what_is_asked_for(needed):
    *x, do = make_inputs(len_q=40)
    _, *expected = exact(*x, do, causal=True)
    for tensor, need in zip(x, needed, strict=True):
        tensor.requires_grad_(need)
    with simulator.trace() as t:
        flash_attention(*x, causal=True).backward(do)
    for tensor, need, gradient in zip(x, needed, expected, strict=True):
        assert (tensor.grad is not None) == need
        if need:
            assert_close([tensor.grad], [gradient], tolerance(torch.float32))
    kernels = [launch.kernel for launch in t.launches]
    assert ("query_grad_kernel" in kernels) == needed[0]
    assert ("key_value_grads_kernel" in kernels) == (needed[1] or needed[2])


def test_flash_without_gradients_needs_none():
    q, k, v, do = make_inputs()
    expected = exact(q, k, v, do)[:1]
    assert not in_simulator(q, k, v).requires_grad
    with torch.no_grad():
        o = in_simulator(q.requires_grad_(), k, v)
    assert not o.requires_grad
    assert_close([o], expected, tolerance(torch.float32))


def test_flash_backward_runs_after_the_simulator_block_has_ended():
    q, k, v, do = make_inputs(len_q=40)
    expected = exact(q, k, v, do)
    q.requires_grad_()
    with simulator.enabled():
        o = flash_attention(q, k, v)
    assert not simulator.is_enabled()
    o.backward(do)
    assert not simulator.is_enabled()
    assert_close([q.grad], expected[1:2], tolerance(torch.float32))


def test_flash_backends_agree():
    x = make_inputs(len_q=50, len_k=70)
    expected = exact(*x, causal=True)
    for backend in ("tiled", "standard", "triton", "auto"):
        assert_close(run(in_simulator, *x, causal=True, backend=backend), expected, tolerance(torch.float32))


def test_flash_is_deterministic():
    x = make_inputs(heads=4, kv_heads=1, len_q=70, dtype=torch.float16)
    first, second = (run(in_simulator, *x, causal=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("batch", "heads", "len_q"), [(3, 1, 16), (1, 3, 16), (1, 1, 33)])
def test_flash_reaches_beyond_two_to_the_31_elements(batch, heads, len_q):
    q, k, v, do = make_inputs(batch=batch, heads=heads, len_q=len_q, dim=16, dtype=torch.float16)
    # Strides that 32 bits hold, offsets that they do not; gigabytes of address space, of which a few pages are touched.
    far = 2**31 // (len_q - 1 if len_q > 16 else 2) + 1
    strides = {"batch": (far, 256, 16, 1), "heads": (256, far, 16, 1), "queries": (16, 16, far, 1)}
    stride = strides["batch" if batch > 1 else "heads" if heads > 1 else "queries"]
    wide = torch.as_strided(torch.empty(2**31 + 2**12, dtype=torch.float16), q.shape, stride)
    wide.copy_(q)
    got = run(in_simulator, wide, k, v, do, block_m=16)
    assert_close(got, exact(q, k, v, do), tolerance(torch.float16))
