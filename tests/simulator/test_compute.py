"""trace(compute=False): the same counts without a number, and a refusal where a count depends on one."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.attention.flash import flash_attention
from cme295lab.attention.materialized import standard_attention_kernels
from cme295lab.kernels.matmul import matmul_kernel
from cme295lab.kernels.softmax import online_softmax_kernel, softmax_kernel

COUNTS = ("flops", "dot_flops", "requested_bytes", "distinct_bytes", "sram_peak_bytes")


def attention(function, causal, length, **options):
    def run():
        q, k, v = (torch.ones(1, 4, length, 32).half().requires_grad_() for _ in range(3))
        function(q, k, v, causal=causal, **options).sum().backward()

    return run


def softmax(kernel, block):
    x, y = torch.randn(20, 100), torch.full((20, 100), 7.0)
    return lambda: kernel[(20,)](x, y, 100, *x.stride(), *y.stride(), BLOCK_N=block)


def matmul():
    a, b, c = torch.randn(70, 50), torch.randn(50, 90), torch.zeros(70, 90)
    sizes = {"BLOCK_M": 32, "BLOCK_N": 32, "BLOCK_K": 16, "GROUP_M": 2, "PRECISION": "ieee"}
    matmul_kernel[(9,)](a, b, c, 70, 90, 50, *a.stride(), *b.stride(), *c.stride(), **sizes)


@triton.jit
def gather_kernel(x_ptr, index_ptr, o_ptr, BLOCK: tl.constexpr):
    """Rows of a table: addresses depend on memory, but on integers that were there before."""
    lanes = tl.arange(0, BLOCK)
    row = tl.load(index_ptr + tl.program_id(0))
    if row >= 0:
        tl.store(o_ptr + tl.program_id(0) * BLOCK + lanes, tl.load(x_ptr + row * BLOCK + lanes))


def gather():
    index = torch.tensor([3, -1, 0, 3, 1], dtype=torch.int32)
    gather_kernel[(5,)](torch.randn(4, 16), index, torch.zeros(5, 16), BLOCK=16)


RUNS = {
    "flash": attention(flash_attention, False, 64),
    "flash causal": attention(flash_attention, True, 64),
    "flash causal, ragged": attention(flash_attention, True, 75),
    "standard causal, ragged": attention(standard_attention_kernels, True, 75),
    "standard with dropout": attention(standard_attention_kernels, False, 64, additive_mask=True, dropout_p=0.1),
    "softmax": softmax(softmax_kernel, 128),
    "online softmax": softmax(online_softmax_kernel, 32),
    "matmul": matmul,
    "gather": gather,
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_counts_do_not_depend_on_computing(run):
    with simulator.trace() as computed:
        run()
    with simulator.trace(compute=False) as counted:
        run()
    for name in COUNTS:
        assert getattr(counted, name) == getattr(computed, name), name
    assert counted.dram_bytes == computed.dram_bytes
    for name, traffic in computed.tensors.items():
        assert counted.tensors[name].read_bytes == traffic.read_bytes
        assert counted.tensors[name].written_bytes == traffic.written_bytes


def test_outputs_keep_what_they_held():
    x, y = torch.randn(20, 100), torch.full((20, 100), 7.0)
    with simulator.trace(compute=False):
        softmax_kernel[(20,)](x, y, 100, *x.stride(), *y.stride(), BLOCK_N=128)
    assert torch.equal(y, torch.full((20, 100), 7.0))


def test_whoever_wants_numbers_gets_them():
    x, y = torch.randn(20, 100), torch.zeros(20, 100)
    with simulator.trace() as outer, simulator.trace(compute=False) as inner:
        softmax_kernel[(20,)](x, y, 100, *x.stride(), *y.stride(), BLOCK_N=128)
    assert torch.allclose(y, x.softmax(-1), atol=1e-6)
    assert outer.requested_bytes == inner.requested_bytes > 0


@triton.jit
def dependent_kernel(x_ptr, o_ptr, KIND: tl.constexpr):
    lanes = tl.arange(0, 16)
    x = tl.load(x_ptr + tl.program_id(0) * 16 + lanes)
    if KIND == "condition":
        if tl.sum(x, 0) > 0:
            tl.store(o_ptr + lanes, x)
    elif KIND == "mask":
        tl.store(o_ptr + lanes, x, mask=x > 0)
    elif KIND == "address":
        tl.store(o_ptr + x.to(tl.int32), x)
    elif KIND == "atomic":
        tl.atomic_add(o_ptr + lanes, x)
    elif KIND == "argmax":
        tl.store(o_ptr + tl.argmax(x, 0), 1.0)
    elif KIND == "loop":
        for _ in range(0, tl.max(x, 0).to(tl.int32)):
            tl.store(o_ptr + lanes, x)


@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("kind", ["condition", "mask", "address", "atomic", "argmax", "loop"])
def test_what_depends_on_a_number_is_refused(kind, programs):
    x, o = torch.rand(64), torch.zeros(64)
    with (
        pytest.raises(simulator.SimulatorError, match="leave compute=False out") as error,
        simulator.trace(compute=False),
    ):
        dependent_kernel[(programs,)](x, o, KIND=kind)
    assert "dependent_kernel" in str(error.value)


@triton.jit
def two_steps_kernel(x_ptr, scratch_ptr, o_ptr, FIRST: tl.constexpr):
    lanes = tl.arange(0, 16)
    if FIRST:
        keep = tl.load(x_ptr + tl.program_id(0) * 16 + lanes) > 0.5
        tl.store(scratch_ptr + tl.program_id(0) * 16 + lanes, keep.to(tl.int32))
    else:
        tl.store(o_ptr + tl.load(scratch_ptr + tl.program_id(0) * 16 + lanes), 1.0)


@triton.jit
def count_up_kernel(counter_ptr, o_ptr):
    place = tl.atomic_add(counter_ptr + tl.program_id(0), 1)
    tl.store(o_ptr + place, 1.0)


def test_an_atomic_that_meets_what_was_not_computed_is_refused():
    x, scratch, o = torch.rand(64), torch.zeros(64, dtype=torch.int32), torch.zeros(64)
    with simulator.trace(compute=False):
        count_up_kernel[(4,)](scratch, o)
        two_steps_kernel[(4,)](x, scratch, o, FIRST=True)
        with pytest.raises(simulator.SimulatorError, match="an atomic operation meets memory"):
            count_up_kernel[(4,)](scratch, o)


def test_integers_that_were_not_computed_are_refused_in_later_launches_too():
    x, scratch, o = torch.rand(64), torch.zeros(64, dtype=torch.int32), torch.zeros(64)
    with simulator.trace(compute=False):
        two_steps_kernel[(4,)](x, scratch, o, FIRST=True)
        with pytest.raises(simulator.SimulatorError, match="leave compute=False out"):
            two_steps_kernel[(4,)](x, scratch, o, FIRST=False)
    with simulator.trace(compute=False):  # what the launch finds there now was there before
        two_steps_kernel[(4,)](x, scratch, o, FIRST=False)


@pytest.mark.parametrize("programs", [1, 9])
def test_bounds_are_checked_all_the_same(programs):
    x, y = torch.randn(4, 100), torch.zeros(4, 100)
    with pytest.raises(simulator.OutOfBoundsError, match="touches element"), simulator.trace(compute=False):
        softmax_kernel[(programs,)](x, y[:, :10].contiguous(), 100, *x.stride(), 400, 1, BLOCK_N=128)


def test_values_that_are_not_there_cannot_be_watched():
    for options in ({"check": True}, {"record": True, "watch": ("x",)}):
        with (
            pytest.raises(ValueError, match="compute=False leaves no values"),
            simulator.trace(compute=False, **options),
        ):
            pass
    with simulator.trace(compute=False) as t, pytest.raises(ValueError, match="compute=False leaves no values"):
        t.watch(program=(0,))
