import numpy as np
import pytest
import torch

from cme295lab import simulator
from cme295lab.simulator.errors import KernelTypeError, SimulatorError

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_gather_along_any_axis(evaluate, dtype, axis):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(4, 8, 2, generator=generator) * 10).to(dtype)
    size = [2, 8, 2]  # each of two programs has half of x
    size[axis] = 4
    index = torch.randint(0, (2, 8, 2)[axis], (2, *size), generator=generator)
    found = evaluate(f"tl.gather(x, i, {axis})", x=x, i=index.reshape(-1, *size[1:]).int(), programs=2)
    parts = [torch.gather(x[2 * p : 2 * p + 2], axis, index[p]) for p in range(2)]
    assert torch.equal(found, torch.cat(parts))


def test_gather_from_what_all_programs_share(evaluate):
    x = torch.arange(16.0).reshape(2, 8)
    before = "source = tl.arange(0, 8) * 3\nplaces = (tl.arange(0, 8) + tl.program_id(0)) % 8"
    found = evaluate("source.gather(places, axis=0) + 0 * x.to(tl.int32)", x=x, before=before, programs=2)
    assert found.tolist() == [[3 * ((i + p) % 8) for i in range(8)] for p in range(2)]


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint32])
def test_histogram_counts_each_program_s_values(evaluate, dtype):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 8, 64)).to(dtype)
    want = [np.bincount(part, minlength=8) for part in x.numpy().reshape(4, 16)]
    assert evaluate("tl.histogram(x, 8)", x=x, programs=4).reshape(4, 8).tolist() == np.stack(want).tolist()
    masked = evaluate("x.histogram(4, mask=x < 4)", x=x, programs=4).reshape(4, 4)
    assert masked.tolist() == [w[:4].tolist() for w in want]
    assert evaluate("tl.histogram(tl.zeros((4,), tl.int32), 2, False) + tl.sum(x.to(tl.int32)) * 0", x=x).tolist() == [
        0,
        0,
    ]


SCALAR = """
@triton.jit
def collatz(n, limit):
    steps = 0
    while n != 1 and steps < limit:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
    return steps

@triton.jit
def both(x, y):
    if x > y:
        return x, y
    return y, x

@triton.jit
def swapped(a, b):
    return b, a

@triton.jit
def kernel(x_ptr, out_ptr, other_ptr, pairs_ptr):
    i = tl.program_id(0) * 8 + tl.arange(0, 8)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, tl.map_elementwise(collatz, x, 100))
    high, low = tl.map_elementwise(both, x.to(tl.float32), 10.0)
    tl.store(other_ptr + i, high * 100 + low)
    tl.store(pairs_ptr + i, tl.map_elementwise(swapped, x, pack=2))
"""


def test_map_elementwise_lets_single_elements_branch(module_from):
    x = torch.tensor([1, 2, 3, 27, 7, 9, 12, 97, 6, 11, 40, 5, 1, 1, 18, 31]).int()
    out, other, pairs = torch.zeros(16).int(), torch.zeros(16), torch.zeros(16).int()
    with simulator.trace():
        module_from(SCALAR).kernel[(2,)](x, out, other, pairs)

    def collatz(n):
        steps = 0
        while n != 1 and steps < 100:
            n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
        return steps

    assert out.tolist() == [collatz(n) for n in x.tolist()]
    assert other.tolist() == [max(n, 10) * 100 + min(n, 10) for n in x.tolist()]
    assert torch.equal(pairs, x.reshape(-1, 2).flip(1).reshape(-1))


def test_the_only_element_of_a_block(evaluate):
    x = torch.tensor([3.0, 5.0])
    assert evaluate("x.item() + 1", x=x, programs=2).tolist() == [4.0, 6.0]


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        ("tl.gather(x, x, 0)", KernelTypeError, "block of integers of rank 1"),
        ("tl.gather(x, i, 1)", KernelTypeError, "axis 1 does not exist"),
        ("tl.gather(x[None, :], i[:, None], 0)", KernelTypeError, "may differ along axis 0 only"),
        ("tl.gather(x, i + 1, 0)", SimulatorError, "the index 8 is outside of axis 0"),
        ("tl.gather(x, i - 1, 0)", SimulatorError, "the index -1 is outside"),
        ("tl.histogram(x, 8)", KernelTypeError, "32-bit integers"),
        ("tl.histogram(i, 7)", KernelTypeError, "powers of two"),
        ("tl.histogram(i, 4)", SimulatorError, "the value 4 has none of 4 bins"),
        ("tl.histogram(i, 8, i)", KernelTypeError, "the mask must be boolean"),
        ("x.item()", KernelTypeError, "one element"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(evaluate, expression, error, message):
    with pytest.raises(error, match=message):
        evaluate(expression, x=torch.zeros(8), i=torch.arange(8).int())
