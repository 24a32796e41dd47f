"""Triton's library functions: ours give the bits that Triton's own source gives when it is run."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cme295lab import simulator
from cme295lab.simulator.language import NATIVE

SPECIAL = [float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1.0]


def numbers(dtype, *shape):
    """Random values of a type; floats with NaNs, infinities and zeros of both signs among them."""
    if dtype.is_floating_point:
        x = torch.randn(shape)
        chosen = torch.randint(0, 3 * len(SPECIAL), shape)
        for i, value in enumerate(SPECIAL):
            x[chosen == i] = value
        return x.to(dtype)
    info = torch.iinfo(torch.int32 if dtype.itemsize >= 4 else dtype)
    return torch.randint(info.min, info.max, shape).to(dtype)


def bits(x):
    return x.contiguous().view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


@pytest.fixture
def both(evaluate, monkeypatch):
    """An expression, computed by our functions and by Triton's source."""

    def compute(expression, **given):
        ours = evaluate(expression, **given)
        with monkeypatch.context() as patch:
            for name, builtin in list(NATIVE.items()):
                if builtin.function.__module__.endswith((".random", ".standard")):
                    patch.delitem(NATIVE, name)
            theirs = evaluate(expression, **given)
        assert ours.dtype == theirs.dtype
        assert torch.equal(bits(ours), bits(theirs)), expression
        return ours

    return compute


@pytest.mark.needs_triton
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8]
)
def test_sorting_compares_the_pairs_that_triton_compares(both, dtype):
    x = numbers(dtype, 8, 16)
    for expression in (
        "tl.sort(x)", "tl.sort(x, 1, descending=True)", "tl.sort(x, descending=x.shape[0] == 4)", "tl.topk(x, 4)",
        "tl.topk(x, 16)", "tl.topk(x, 2)", "tl.bitonic_merge(x)", "tl.bitonic_merge(x, 1, True)",
        "tl.sort(tl.reshape(x, [2, 2, 2, 8]))",
    ):  # fmt: skip
        both(expression, x=x, programs=2)


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int16])
def test_sort_sorts(evaluate, dtype, descending):
    x = (torch.randint(-60, 60, (4, 32)) / 4).to(dtype)
    want = x.float().sort(dim=1, descending=descending).values
    assert torch.equal(evaluate(f"tl.sort(x, descending={descending})", x=x, programs=2).float(), want)
    best = evaluate(f"tl.topk(x, 8, descending={descending})", x=x, programs=2)
    assert torch.equal(best.float(), want[:, :8])
    one = evaluate(f"tl.topk(x, 1, descending={descending})", x=x, programs=2)
    assert torch.equal(one.float(), want[:, :1])


def test_a_method_sorts_too(evaluate):
    assert evaluate("x.sort()", x=torch.tensor([3, 1, 2, 0])).tolist() == [0, 1, 2, 3]


@pytest.mark.needs_triton
@pytest.mark.parametrize(("rows", "columns", "group"), [(4, 4, 2), (5, 3, 2), (7, 4, 3), (3, 5, 8)])
def test_tiles_go_where_triton_puts_them(both, rows, columns, group):
    i, j = torch.arange(8, dtype=torch.int32) % rows, torch.arange(8, dtype=torch.int32) % columns
    for part in (0, 1):
        both(f"tl.swizzle2d(i, j, {rows}, {columns}, {group})[{part}]", i=i, j=j)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -3])
def test_axes_of_length_one_come_and_go(evaluate, dim):
    x = torch.randn(4, 8)
    assert torch.equal(evaluate(f"tl.unsqueeze(x, {dim})", x=x), x.unsqueeze(dim))
    assert torch.equal(evaluate(f"tl.squeeze(tl.unsqueeze(x, {dim}), {dim})", x=x), x)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("tl.sort(x, 0)", "only the last axis"),
        ("tl.topk(x, 3)", "power of two and at most 8, got 3"),
        ("tl.topk(x, 16)", "power of two and at most 8, got 16"),
        ("tl.squeeze(x, 0)", "does not have length 1"),
        ("tl.unsqueeze(x, 3)", "between -3 and 2, got 3"),
        ("tl.rand(1.5, tl.arange(0, 8))", "seed of tl.philox must be an integer"),
        ("tl.rand(1, x)", "must be integers, got fp32"),
        ("tl.reduce_or(x, 0)", "needs integers, got fp32"),
    ],
)
def test_wrong_arguments_are_named(evaluate, expression, message):
    with pytest.raises(simulator.KernelTypeError, match=message):
        evaluate(expression, x=torch.randn(4, 8))


def test_reduce_or(evaluate):
    x = torch.randint(0, 1 << 20, (4, 8), dtype=torch.int32)
    assert np.array_equal(evaluate("tl.reduce_or(x, 1)", x=x).numpy(), np.bitwise_or.reduce(x.numpy(), axis=1))


RANDOM = ["tl.randint(s, o)", "tl.rand(s, o)", "tl.randn(s, o)", "tl.rand(s, o, 7)",
          *(f"tl.{name}(s, o)[{i}]" for name in ("randint4x", "rand4x", "randn4x") for i in range(4))]  # fmt: skip


@pytest.mark.needs_triton
@pytest.mark.parametrize("expression", RANDOM)
@pytest.mark.parametrize("seed", [0, 12345, 2**31 + 7, 2**40 + 3])
def test_random_numbers_are_those_of_triton_s_source(both, expression, seed):
    both(expression, o=torch.arange(256, dtype=torch.int32), s=seed, programs=2)
    both(expression, o=torch.arange(64) * 2**33 + 5, s=seed)


@pytest.mark.needs_triton
def test_64_bit_counters_are_those_of_triton_s_source(both):
    c = torch.tensor([0, -1, 2**62 + 3, 12345])
    for i in range(4):
        both(f"tl.philox(7, c, c + 1, c, c)[{i}]", c=c)
    both("tl.uint_to_uniform_float(tl.philox(7, c, c, c, c)[0])", c=c)


def test_64_bit_philox_of_the_paper_s_known_answers(evaluate):
    """From the known-answer vectors of Random123: all counters and keys zero, ten rounds."""
    zero = torch.zeros(1, dtype=torch.int64)
    want = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    got = [evaluate(f"tl.philox(0, c, c, c, c)[{i}]", c=zero).numpy().view(np.uint64)[0] for i in range(4)]
    assert [int(word) for word in got] == want


INTERPRETED = """
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def kernel(i_ptr, u_ptr, n_ptr, seed, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(i_ptr + o, tl.randint(seed, o))
    tl.store(u_ptr + o, tl.rand(seed, o))
    tl.store(n_ptr + o, tl.randn(seed, o))


if __name__ == "__main__":
    outputs = torch.empty(4096, dtype=torch.int32), torch.empty(4096), torch.empty(4096)
    kernel[(4,)](*outputs, 2**33 + 17, BLOCK=1024)
    torch.save(outputs, sys.argv[1])
"""


@pytest.mark.needs_triton
def test_random_numbers_are_those_of_triton_s_interpreter(tmp_path, module_from, monkeypatch):
    """In a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
    script = tmp_path / "random_numbers.py"
    script.write_text(INTERPRETED)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, script, tmp_path / "theirs.pt"], check=True, env=environment)
    theirs = torch.load(Path(tmp_path / "theirs.pt"))
    ours = torch.empty(4096, dtype=torch.int32), torch.empty(4096), torch.empty(4096)
    with simulator.enabled():
        module_from(INTERPRETED).kernel[(4,)](*ours, 2**33 + 17, BLOCK=1024)
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])
    # logarithm, root and cosine are right to a unit in the last place each, in numpy (theirs) and torch (ours)
    assert torch.allclose(ours[2], theirs[2], rtol=4 * torch.finfo(torch.float32).eps, atol=1e-6)
