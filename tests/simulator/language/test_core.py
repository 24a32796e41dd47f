"""Creation, hints, and library functions that Triton writes in its own language."""

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from cme295lab import simulator


@pytest.mark.parametrize(
    "kind", ["int8", "int32", "int64", "uint8", "float16", "bfloat16", "float32", "float64", "int1"]
)
def test_creation(evaluate, kind):
    dtype = getattr(torch, {"int1": "bool"}.get(kind, kind))
    assert evaluate(f"tl.zeros([2, 4], tl.{kind})").tolist() == [[0] * 4] * 2
    got = evaluate(f"tl.full((4,), 1, tl.{kind})")
    assert (got.dtype, got.tolist()) == (dtype, [1] * 4)
    x = torch.ones(4).to(dtype)
    assert torch.equal(evaluate("tl.zeros_like(x)", x=x), torch.zeros_like(x))
    assert torch.equal(evaluate("tl.full([4], x0, x.dtype)", before="x0 = tl.load(x_ptr)", x=x), x)


def test_arange(evaluate):
    got = evaluate("tl.arange(4, 12)")
    assert (got.dtype, got.tolist()) == (torch.int32, list(range(4, 12)))
    assert evaluate("tl.arange(-4, 4)").tolist() == list(range(-4, 4))


def test_hints_and_barriers_change_nothing(evaluate):
    x = torch.arange(8, dtype=torch.int32)
    hints = "x = tl.multiple_of(x, 8)\nx = tl.max_contiguous(x, 8)\nx = tl.max_constancy(x, 1)\ntl.debug_barrier()"
    assert torch.equal(evaluate("x", before=f"{hints}\ntl.assume(tl.num_programs(0) > 0)", x=x), x)


def test_loop_variables_have_the_type_of_the_bounds(evaluate):
    before = "s = tl.zeros([1], {0})\nfor i in range(lo, hi):\n    s = s + i\n    tl.static_assert(i.dtype == {0})"
    for kind, name in ((torch.int32, "tl.int32"), (torch.int64, "tl.int64")):
        bounds = torch.tensor([2, 5], dtype=kind)
        text = "lo = tl.load(b_ptr)\nhi = tl.load(b_ptr + 1)\n" + before.format(name)
        assert evaluate("s", before=text, b=bounds).item() == 9


def test_compile_time_arithmetic(evaluate):
    before = (
        "N: tl.constexpr = 3 * 4 // 5 + 2 ** 3 - 7 % 4\nM: tl.constexpr = N if N > 3 else 0\n"
        "K: tl.constexpr = min(N, 4) + max(1, 2) + len((1, 2)) + int(2.5) + abs(-1)\nx = 0\n"
        "for i in tl.static_range(0, 6, 2):\n    x += i * (N == 7)\n"
        'if N == 7 and not (M < 0 or K is None) and "a" == "a" and N in (7, 8) and N != 3:\n    x += 100'
    )
    assert evaluate("tl.full([1], x + N * 1000 + M * 10000 + K * 100000, tl.int32)", before=before).item() == (
        106 + 7000 + 70000 + 1100000
    )


def test_library_functions_run_from_triton_s_source(evaluate):
    x = torch.randperm(32).float().reshape(2, 16)
    assert torch.equal(evaluate("tl.topk(x, 4)", x=x), x.topk(4).values)
    assert evaluate("tl.squeeze(tl.unsqueeze(x, 1), 1)", x=x).tolist() == x.tolist()
    flags = torch.tensor([[True, False], [False, False]])
    assert evaluate("tl.reduce_or(x, 1)", x=flags.int()).tolist() == [1, 0]


@triton.jit
def swizzle_kernel(out_ptr, M: tl.constexpr, N: tl.constexpr, GROUP: tl.constexpr):
    i, j = tl.swizzle2d(tl.program_id(0), tl.program_id(1), M, N, GROUP)
    tl.store(out_ptr + i * N + j, tl.program_id(0) * N + tl.program_id(1))


def test_swizzle2d():
    out = torch.full((4, 3), -1, dtype=torch.int32)
    with simulator.enabled():
        swizzle_kernel[(4, 3)](out, M=4, N=3, GROUP=2)
    assert out.tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]  # columns of two rows at a time


@triton.jit
def libdevice_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane)
    tl.store(out_ptr + lane, tl.where(libdevice.isnan(x), 9.0, libdevice.tanh(x)))


def test_libdevice():
    x, out = torch.tensor([0.5, -2.0, float("nan"), 0.0]), torch.zeros(4)
    with simulator.enabled():
        libdevice_kernel[(1,)](out, x, BLOCK=4)
    torch.testing.assert_close(out, torch.tensor([0.5, -2.0, 0.0, 0.0]).tanh() + torch.tensor([0, 0, 9.0, 0]))


def test_the_integer_type_of_a_width_is_what_a_sort_written_by_hand_asks_for(evaluate):
    x = torch.tensor([1.5, -2.0])
    bits = evaluate("x.to(tl.core.get_int_dtype(bitwidth=x.dtype.primitive_bitwidth, signed=True), bitcast=True)", x=x)
    assert torch.equal(bits, x.view(torch.int32))
    assert evaluate("x.to(tl.core.get_int_dtype(16, signed=False))", x=torch.arange(2)).dtype == torch.uint16


def test_a_rounding_mode_is_no_error_where_the_type_stays(evaluate):
    x = torch.tensor([1.0, 1 / 3])
    assert torch.equal(evaluate('x.to(x.dtype, fp_downcast_rounding="rtne")', x=x), x)
