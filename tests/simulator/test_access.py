"""Loads and stores: strides, masks, ragged edges, rows along any axis, and what lies outside."""

import itertools

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import KernelTypeError, OutOfBoundsError

DTYPES = [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn, torch.bool,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip


def bits(x):
    return x.contiguous().view(torch.uint8).tolist()


def random_bits(shape, dtype):
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    raw = torch.randint(0, 100, (*shape, dtype.itemsize), dtype=torch.uint8)
    return raw.view(dtype).squeeze(-1)


@triton.jit
def copy_kernel(
    out_ptr, x_ptr, rows, columns, out_0, out_1, x_0, x_1, BLOCK_0: tl.constexpr, BLOCK_1: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * BLOCK_0 + tl.arange(0, BLOCK_0)
    j = tl.program_id(1) * BLOCK_1 + tl.arange(0, BLOCK_1)
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    value = tl.load(x_ptr + i[:, None] * x_0 + j[None, :] * x_1, mask=mask)
    tl.store(out_ptr + i[:, None] * out_0 + j[None, :] * out_1, value, mask=mask)


def copied(x, out, block=(4, 8)):
    rows, columns = x.shape
    grid = (triton.cdiv(rows, block[0]), triton.cdiv(columns, block[1]))
    with simulator.enabled():
        copy_kernel[grid](out, x, rows, columns, *out.stride(), *x.stride(), BLOCK_0=block[0], BLOCK_1=block[1])
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 16), (7, 13), (1, 1), (3, 16)])
def test_copy_of_every_type_and_ragged_shape(dtype, shape):
    x = random_bits(shape, dtype)
    assert bits(copied(x, torch.zeros_like(x))) == bits(x)


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "sliced": lambda x: torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]],
    "every other": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "offset": lambda x: torch.cat([x.flip(0), x])[x.shape[0] :],
    "a row repeated": lambda x: x[:1].expand(x.shape),
    "one number": lambda x: x[:1, :1].expand(x.shape),
    "middle axis of three": lambda x: torch.stack([x, x], 1)[:, 1],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_read(layout, dtype):
    x = LAYOUTS[layout](random_bits((7, 13), dtype))
    assert bits(copied(x, torch.zeros((7, 13), dtype=dtype))) == bits(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int16])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "every other", "sliced", "offset"])
@pytest.mark.parametrize("block", [(1, 1), (2, 4), (8, 2), (8, 16)])
def test_any_layout_is_written_and_nothing_else(layout, dtype, block):
    x = random_bits((7, 13), dtype)
    background = random_bits((7, 13), dtype)
    out = LAYOUTS[layout](background.clone())
    whole = torch.as_strided(out, (out.untyped_storage().nbytes() // out.element_size(),), (1,), 0)
    before, index = whole.clone(), torch.arange(whole.numel())
    touched = torch.as_strided(index, out.shape, out.stride(), out.storage_offset()).flatten()
    assert bits(copied(x, out, block)) == bits(x)
    outside = torch.ones(whole.numel(), dtype=torch.bool)
    outside[touched] = False
    assert bits(whole[outside]) == bits(before[outside])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_along_any_axis_of_three(module_from, axis):
    """Contiguous runs are copied whole, whichever block axis they lie along."""
    source = f"""
@triton.jit
def kernel(out_ptr, x_ptr, s0, s1, s2, n, other, MASKED: tl.constexpr):
    i, j, k = tl.arange(0, 4), tl.arange(0, 8), tl.arange(0, 16)
    place = i[:, None, None] * s0 + j[None, :, None] * s1 + k[None, None, :] * s2
    start = tl.program_id(0) * 512
    along = [i[:, None, None], j[None, :, None], k[None, None, :]][{axis}]
    if MASKED == "prefix":
        x = tl.load(x_ptr + start + place, mask=along < n, other=other)
    elif MASKED == "rows":
        some = (i[:, None, None] + j[None, :, None] + k[None, None, :]) % 3 < 2
        x = tl.load(x_ptr + start + place, mask=some, other=other)
    else:
        x = tl.load(x_ptr + start + place)
    tl.store(out_ptr + start + i[:, None, None] * 128 + j[None, :, None] * 16 + k[None, None, :], x)
"""
    order = [axis, *(a for a in range(3) if a != axis)]  # this axis has stride 1
    shape = (4, 8, 16)
    x = torch.randn(3, *shape)
    laid_out = x.permute(0, *(a + 1 for a in reversed(order))).contiguous()
    strides = [laid_out.stride(1 + [*reversed(order)].index(a)) for a in range(3)]
    assert strides[axis] == 1
    index = torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij")
    for masked, n in [("no", 0), ("prefix", 3), ("prefix", 0), ("prefix", 1), ("prefix", 99), ("rows", 0)]:
        out = torch.zeros_like(x)
        with simulator.enabled():
            module_from(source).kernel[(3,)](out, laid_out, *strides, n, -2.5, MASKED=masked)
        keep = {"no": index[0] >= 0, "prefix": index[axis] < n, "rows": sum(index) % 3 < 2}[masked]
        assert torch.equal(out, torch.where(keep, x, -2.5)), (masked, n)


@triton.jit
def mask_kernel(out_ptr, x_ptr, mask_ptr, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    place = pid * BLOCK + lane
    if KIND == "lanes":
        mask = tl.load(mask_ptr + place)
    elif KIND == "program":
        mask = tl.load(mask_ptr + pid)
    elif KIND == "ragged":
        mask = lane < pid
    elif KIND == "never":
        mask = place < 0
    elif KIND == "suffix":
        mask = lane >= n
    else:
        mask = place < n
    x = tl.load(x_ptr + place, mask=mask, other=7)
    tl.store(out_ptr + place, x + 1)
    tl.store(out_ptr + place + 1000, x, mask=mask)


@pytest.mark.parametrize("kind", ["lanes", "program", "ragged", "never", "suffix", "end"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.bfloat16])
def test_masks_of_every_form(kind, dtype):
    x = torch.arange(64).to(dtype)
    mask = torch.rand(64) < 0.5
    out = torch.full((2000,), -1).to(dtype)
    with simulator.enabled():
        mask_kernel[(8,)](out, x, mask, 5, KIND=kind, BLOCK=8)
    place = torch.arange(64)
    pid, lane = place // 8, place % 8
    keep = {"lanes": mask, "program": mask[pid], "ragged": lane < pid, "never": place < 0, "suffix": lane >= 5}.get(
        kind, place < 5
    )
    assert torch.equal(out[:64], torch.where(keep, x, torch.tensor(7).to(dtype)) + 1)
    assert torch.equal(out[1000:1064], torch.where(keep, x, torch.tensor(-1).to(dtype)))
    assert (out[64:1000] == -1).all()


@pytest.mark.parametrize("kind", ["program", "never"])
def test_masked_out_lanes_may_lie_anywhere(kind):
    """No program reads: an empty or small tensor is no error."""
    out = torch.zeros(2000)
    with simulator.enabled():
        mask_kernel[(8,)](out, torch.zeros(3), torch.zeros(8, dtype=torch.bool), 5, KIND=kind, BLOCK=8)
        mask_kernel[(8,)](out, torch.zeros(0), torch.zeros(8, dtype=torch.bool), 5, KIND=kind, BLOCK=8)
    assert (out[:64] == 8).all()


@triton.jit
def other_kernel(out_ptr, x_ptr, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    if KIND == "none":
        x = tl.load(x_ptr + lane, mask=lane < n)
    elif KIND == "number":
        x = tl.load(x_ptr + lane, mask=lane < n, other=-3.0)
    elif KIND == "infinity":
        x = tl.load(x_ptr + lane, mask=lane < n, other=-float("inf"))
    elif KIND == "scalar":
        x = tl.load(x_ptr + lane, mask=lane < n, other=tl.program_id(0))
    elif KIND == "block":
        x = tl.load(x_ptr + lane, mask=lane < n, other=lane * 0.5)
    else:
        x = tl.load(x_ptr + lane, mask=lane % 2 == 0, other=lane * 0.5)
    tl.store(out_ptr + tl.program_id(0) * BLOCK + lane, x)


@pytest.mark.parametrize("n", [0, 3, 8])
@pytest.mark.parametrize("kind", ["none", "number", "infinity", "scalar", "block", "scattered"])
def test_other_fills_masked_lanes(kind, n):
    x, out, lane = torch.randn(8), torch.zeros(3, 8), torch.arange(8)
    with simulator.enabled():
        other_kernel[(3,)](out, x, n, KIND=kind, BLOCK=8)
    fill = {"none": 0.0, "number": -3.0, "infinity": float("-inf"), "scalar": torch.arange(3.0)[:, None]}.get(
        kind, lane * 0.5
    )
    keep = lane % 2 == 0 if kind == "scattered" else lane < n
    assert torch.equal(out, torch.where(keep, x, torch.as_tensor(fill)).expand(3, 8))


@triton.jit
def gather_kernel(out_ptr, x_ptr, index_ptr, BLOCK: tl.constexpr, SCATTER: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + place)
    if SCATTER:
        tl.store(out_ptr + index, tl.load(x_ptr + place))
    else:
        tl.store(out_ptr + place, tl.load(x_ptr + index))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64, torch.int16, torch.uint8])
def test_gather_and_scatter(kind):
    x, index, out = torch.randn(64), torch.randperm(64).to(kind), torch.zeros(64)
    with simulator.enabled():
        gather_kernel[(8,)](out, x, index, BLOCK=8, SCATTER=False)
        assert torch.equal(out, x[index.long()])
        gather_kernel[(8,)](out, x, index, BLOCK=8, SCATTER=True)
    assert torch.equal(out[index.long()], x)


def test_of_two_writers_the_later_program_wins():
    x, index, out = torch.arange(64.0), torch.randint(0, 5, (64,)), torch.zeros(5)
    with simulator.enabled():
        gather_kernel[(8,)](out, x, index, BLOCK=8, SCATTER=True)
    for slot in range(5):
        assert out[slot] == x[index == slot].max()


@triton.jit
def shift_kernel(out_ptr, x_ptr, shift, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + lane)
    tl.store(out_ptr + lane + shift, x)
    y = tl.load(x_ptr + lane)
    tl.store(out_ptr + lane, y + x)


def test_arguments_that_share_memory():
    memory = torch.arange(16.0)
    x, y = memory[:8], memory[4:]
    want = memory.clone()
    with simulator.enabled():
        shift_kernel[(1,)](y, x, -2, BLOCK=8)
    first = want[:8].clone()
    want[2:10] = first
    want[4:12] = want[:8].clone() + first
    assert torch.equal(memory, want)


def test_a_view_may_reach_what_lies_before_it():
    memory = torch.arange(16.0)
    with simulator.enabled():
        shift_kernel[(1,)](memory[8:], memory[4:], -4, BLOCK=8)
    assert memory[4:8].tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("grid", [(0,), (3, 0), (1, 1, 0), 0])
def test_an_empty_grid_does_nothing(grid):
    out = torch.zeros(8)
    with simulator.enabled():
        shift_kernel[grid](out, torch.ones(8), 0, BLOCK=8)
    assert (out == 0).all()


@triton.jit
def scalar_kernel(out_ptr, x_ptr, i):
    pid = tl.program_id(0)
    tl.store(out_ptr + pid, tl.load(x_ptr + i))


@triton.jit
def broadcast_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    tl.store(out_ptr + lane[:, None] * BLOCK + lane[None, :], tl.load(x_ptr + lane)[None, :])
    tl.store(out_ptr + BLOCK * BLOCK + lane, 5)
    tl.store(out_ptr + BLOCK * BLOCK + BLOCK + lane, tl.load(x_ptr))


def test_scalars_and_values_that_broadcast():
    x, out = torch.arange(4.0) + 1, torch.zeros(4)
    with simulator.enabled():
        scalar_kernel[(4,)](out, x, 2)
        assert out.tolist() == [3.0] * 4
        out = torch.zeros(24)
        broadcast_kernel[(1,)](out, x, BLOCK=4)
    assert out.tolist() == [1, 2, 3, 4] * 4 + [5] * 4 + [1] * 4


@triton.jit
def atomic_kernel(out_ptr, x_ptr, i):
    tl.atomic_add(out_ptr + tl.program_id(0) * 3 + i, 1.0)


@pytest.mark.parametrize(
    ("kernel", "element", "program", "kind"),
    [
        (scalar_kernel, 10, (0, 0, 0), "load"), (scalar_kernel, -1, (0, 0, 0), "load"),
        (atomic_kernel, 10, (0, 0, 0), "atomic"), (atomic_kernel, -4, (0, 0, 0), "atomic"),
        (atomic_kernel, 4, (2, 0, 0), "atomic"),
    ],
)  # fmt: skip
def test_out_of_bounds_names_kernel_line_tensor_program_and_element(kernel, element, program, kind):
    with pytest.raises(OutOfBoundsError) as caught, simulator.enabled():
        kernel[(4,)](torch.zeros(10), torch.zeros(10), element)
    error = caught.value
    name = "out" if kind == "atomic" else "x"
    assert error.tensor == name
    assert error.program == program
    assert error.element == (element if kind == "load" else element + 3 * program[0])
    for part in (f"out-of-bounds {kind}", f"element {error.element} of {name!r}", "(10,)", kernel.fn.__name__,
                 "test_access.py", f"line {error.line}"):  # fmt: skip
        assert part in str(error), part
    assert ("tl.load" if kind == "load" else "tl.atomic_add") in str(error)


@triton.jit
def block_kernel(out_ptr, x_ptr, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    pid = tl.program_id(0) + 2 * tl.program_id(1)
    place = pid * BLOCK + tl.arange(0, BLOCK)
    if KIND == "load":
        tl.store(out_ptr + place * 0, tl.load(x_ptr + place))
    elif KIND == "gather":
        tl.store(out_ptr + place * 0, tl.load(x_ptr + place * 2, mask=place * 2 < n))
    elif KIND == "masked rows":
        tl.store(out_ptr + place * 0, tl.load(x_ptr + place, mask=pid < n))
    elif KIND == "store":
        tl.store(x_ptr + place, 1.0)
    else:
        tl.store(x_ptr + place * 2, 1.0, mask=place * 2 < n)


@pytest.mark.parametrize(
    ("kind", "n", "program", "element"),
    [
        ("load", 0, (1, 1, 0), 28), ("store", 0, (1, 1, 0), 28), ("gather", 99, (1, 0, 0), 28),
        ("scatter", 99, (1, 0, 0), 28), ("masked rows", 4, (1, 1, 0), 28),
    ],
)  # fmt: skip
def test_the_first_lane_outside_is_named(kind, n, program, element):
    x = torch.zeros(28)
    with pytest.raises(OutOfBoundsError) as caught, simulator.enabled():
        block_kernel[(2, 2)](torch.zeros(1), x, n, KIND=kind, BLOCK=8)
    assert caught.value.program == program
    assert caught.value.element == element
    assert caught.value.tensor == "x"


def test_nothing_outside_is_touched_by_lanes_that_are_masked_out():
    x = torch.zeros(28)
    with simulator.enabled():
        for kind, n in (("gather", 28), ("scatter", 28), ("masked rows", 3)):
            block_kernel[(2, 2)](torch.zeros(1), x, n, KIND=kind, BLOCK=8)


def test_a_program_that_fails_has_stored_nothing_outside():
    memory = torch.zeros(40)
    with pytest.raises(OutOfBoundsError), simulator.enabled():
        block_kernel[(2, 2)](torch.zeros(1), memory[:28].clone(), 0, KIND="store", BLOCK=8)
    assert (memory == 0).all()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("tl.load(lane)", "tl.load needs a pointer .* got a block of int32"),
        ("tl.load(3)", "tl.load needs a pointer .* got the number 3"),
        ("tl.store(lane, 1)", "tl.store needs a pointer"),
        ("tl.load(x_ptr + lane, mask=lane * 1.0)", "a mask must be boolean, got fp32"),
        ("tl.load(x_ptr + lane[:, None], mask=lane[None, :] < 3)", "the mask has shape"),
        ("tl.load(x_ptr + lane, mask=tl.arange(0, 4) < 3)", "cannot broadcast blocks of shapes"),
        ("tl.store(x_ptr, lane)", "cannot be stored through one scalar pointer"),
        ("tl.store(x_ptr + lane, lane[:, None])", "the value has shape"),
        ("tl.store(x_ptr + lane, x_ptr + lane)", "cannot store pointers"),
        ("x_ptr * 2", "cannot compute pointer"),
        ("x_ptr + 1.5", "offsets are added as integers"),
        ("x_ptr + x_ptr", "cannot compute pointer"),
        ("-x_ptr", "a pointer has no negative"),
        ("(x_ptr + lane).to(tl.int32)", "a 64-bit integer or another pointer"),
    ],
)
def test_operands_of_the_wrong_kind(module_from, statement, message):
    source = f"@triton.jit\ndef kernel(x_ptr):\n    lane = tl.arange(0, 8)\n    y = {statement}\n"
    with pytest.raises(KernelTypeError, match=message), simulator.enabled():
        module_from(source).kernel[(1,)](torch.zeros(8))


@triton.jit
def far_kernel(out_ptr, x_ptr, stride, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if WIDE:
        i = i.to(tl.int64)
    place = i[:, None] * stride + i[None, :]
    tl.store(out_ptr + i, tl.sum(tl.load(x_ptr + place, mask=place < 8, other=0.0), 1))


def test_an_offset_beyond_32_bits_is_an_error():
    out, x = torch.zeros(16), torch.ones(8)
    with pytest.raises(KernelTypeError, match=r"more than int32 holds(.|\n)*tl.int64"), simulator.enabled():
        far_kernel[(1,)](out, x, (2**31 - 1) // 15, WIDE=False, BLOCK=16)
    with simulator.enabled():
        far_kernel[(1,)](out, x, (2**31 - 1) // 15, WIDE=True, BLOCK=16)
    assert out.tolist() == [8.0] + [0.0] * 15


def test_unsigned_offsets_may_wrap_around(evaluate):
    x = torch.arange(16.0)
    i = torch.arange(4, dtype=torch.int32)
    got = evaluate("tl.load(x_ptr + (a[:, None] - b[None, :] + 3))", before="a = i.to(tl.uint32)\nb = a", x=x, i=i)
    assert torch.equal(got, x[(i[:, None] - i + 3).long()])


@triton.jit
def choose_kernel(out_ptr, x_ptr, y_ptr, KIND: tl.constexpr):
    lane = tl.arange(0, 8)
    if KIND == "same":
        p = tl.where(lane % 2 == 0, x_ptr + lane, x_ptr + 7)
    else:
        p = tl.where(lane % 2 == 0, x_ptr + lane, y_ptr + lane)
    tl.store(out_ptr + lane, tl.load(p))


def test_where_on_pointers():
    x, out = torch.randn(8), torch.zeros(8)
    with simulator.enabled():
        choose_kernel[(1,)](out, x, x, KIND="same")
        assert torch.equal(out, torch.where(torch.arange(8) % 2 == 0, x, x[7]))
        y = torch.randn(8)
        choose_kernel[(1,)](out, x, y, KIND="different")
        assert torch.equal(out, torch.where(torch.arange(8) % 2 == 0, x, y))


def test_random_masks_strides_and_offsets(module_from):
    """Brute force against numpy indexing: bases, strides (0 and negative), shifts, and masks of several forms."""
    source = """
@triton.jit
def kernel(out_ptr, x_ptr, base, s0, s1, sp, n, KIND: tl.constexpr, B0: tl.constexpr, B1: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, B0)[:, None]
    j = tl.arange(0, B1)[None, :]
    p = x_ptr + base + pid * sp + i * s0 + j * s1
    if KIND == 0:
        mask = (i * B1 + j) < n
    elif KIND == 1:
        mask = j < n
    elif KIND == 2:
        mask = (i + pid) % 3 != 0
    elif KIND == 3:
        mask = (i < n) & (j < n)
    else:
        mask = (i * 0 + j * 0 + pid) < n
    tl.store(out_ptr + pid * B0 * B1 + i * B1 + j, tl.load(p, mask=mask, other=-1))
"""
    kernel = module_from(source).kernel
    rng = np.random.default_rng(0)
    x = torch.arange(4096, dtype=torch.int32)
    for kind, (b0, b1), _ in itertools.product(range(5), [(4, 8), (8, 1), (16, 16), (1, 4)], range(6)):
        s0, s1, sp = (int(v) for v in rng.choice([0, 1, 1, -1, 2, 16, 33], 3))
        n, grid = int(rng.integers(0, 20)), int(rng.integers(1, 5))
        out = torch.zeros(grid, b0, b1, dtype=torch.int32)
        with simulator.enabled():
            kernel[(grid,)](out, x, 2000, s0, s1, sp, n, KIND=kind, B0=b0, B1=b1)
        pid, i, j = (torch.arange(k).reshape(s) for k, s in zip((grid, b0, b1), ((-1, 1, 1), (-1, 1), (-1,))))
        place = 2000 + pid * sp + i * s0 + j * s1
        mask = [(i * b1 + j) < n, j < n, (i + pid) % 3 != 0, (i < n) & (j < n), pid < n][kind]
        assert torch.equal(out.long(), torch.where(mask, place, -1)), (kind, b0, b1, s0, s1, sp, n)
