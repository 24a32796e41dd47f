"""Shape operations against torch."""

import pytest
import torch


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.int32, torch.bool], ids=str)
def x(request):
    values = torch.arange(64).reshape(4, 2, 8)
    return values % 3 == 0 if request.param == torch.bool else values.to(request.param)


CASES = {
    "tl.trans(x, 2, 0, 1)": lambda x: x.permute(2, 0, 1),
    "tl.trans(x, (1, 0, 2))": lambda x: x.permute(1, 0, 2),
    "tl.permute(x, 0, -1, 1)": lambda x: x.permute(0, 2, 1),
    "x.permute(2, 1, 0)": lambda x: x.permute(2, 1, 0),
    "tl.trans(x)": lambda x: x.transpose(1, 2),
    "tl.reshape(x, [8, 8])": lambda x: x.reshape(8, 8),
    "tl.reshape(x, 2, 32)": lambda x: x.reshape(2, 32),
    "x.reshape(64)": lambda x: x.reshape(64),
    "tl.reshape(tl.trans(x, 2, 0, 1), [16, 4])": lambda x: x.permute(2, 0, 1).reshape(16, 4),
    "tl.view(x, [64])": lambda x: x.reshape(64),
    "tl.ravel(x)": lambda x: x.reshape(64),
    "tl.expand_dims(x, 1)": lambda x: x.unsqueeze(1),
    "tl.expand_dims(x, [0, -1])": lambda x: x.unsqueeze(0).unsqueeze(-1),
    "x[:, None, :, :]": lambda x: x.unsqueeze(1),
    "x[:, :, :, None]": lambda x: x.unsqueeze(-1),
    "x[None]": lambda x: x.unsqueeze(0),
    "tl.broadcast_to(x[:, None, :, :], [4, 2, 2, 8])": lambda x: x.unsqueeze(1).expand(4, 2, 2, 8),
    "tl.broadcast_to(x[:, :, :, None], 4, 2, 8, 2)": lambda x: x.unsqueeze(-1).expand(4, 2, 8, 2),
    "tl.flip(x)": lambda x: x.flip(2),
    "tl.flip(x, 0)": lambda x: x.flip(0),
    "tl.flip(x, dim=1)": lambda x: x.flip(1),
    "tl.cat(x.ravel(), tl.flip(x.ravel()), can_reorder=True)": lambda x: torch.cat([x.ravel(), x.ravel().flip(0)]),
    "tl.join(x, x)": lambda x: torch.stack([x, x], -1),
    "tl.interleave(x, tl.flip(x))": lambda x: torch.stack([x, x.flip(2)], -1).reshape(4, 2, 16),
    "tl.split(tl.trans(x, 0, 2, 1))[0]": lambda x: x[:, 0],
    "tl.split(tl.trans(x, 0, 2, 1))[1]": lambda x: x[:, 1],
    "tl.split(tl.join(x, tl.flip(x)))[1]": lambda x: x.flip(2),
    "tl.broadcast(x, x)[0]": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("expression", CASES)
def test_shape_operations(evaluate, x, expression):
    got = evaluate(expression, x=x)
    want = CASES[expression](x)
    assert got.dtype == x.dtype
    assert got.shape == want.shape
    assert torch.equal(got, want)


@pytest.mark.parametrize("expression", ["tl.trans(x, 2, 0, 1)", "tl.flip(x, 0)", "tl.reshape(x, [16, 4])"])
def test_every_program_has_its_own_block(evaluate, expression):
    x = torch.randn(12, 2, 8)
    got = evaluate(expression, programs=3, x=x)
    want = torch.cat([CASES.get(expression, lambda b: b.reshape(16, 4))(block) for block in x.chunk(3)])
    assert torch.equal(got, want)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.float16])
def test_gather(evaluate, axis, dtype):
    x = torch.randn(8, 16).mul(10).to(dtype)
    index = torch.randint(0, x.shape[axis], (8, 16), dtype=torch.int32)
    got = evaluate(f"tl.gather(x, index, axis={axis})", programs=1, x=x, index=index)
    assert torch.equal(got, torch.gather(x, axis, index.long()))


def test_pointers_are_shaped_like_numbers(evaluate):
    x = torch.arange(64.0)
    got = evaluate("tl.load(tl.trans(tl.reshape(x_ptr + tl.arange(0, 64), [8, 8])))", x=x)
    assert torch.equal(got, x.reshape(8, 8).T)
    got = evaluate("tl.load(tl.broadcast_to((x_ptr + tl.arange(0, 8))[:, None], [8, 4]))", x=x)
    assert torch.equal(got, x[:8, None].expand(8, 4))


def test_join_promotes(evaluate):
    got = evaluate("tl.join(a, b)", a=torch.arange(4, dtype=torch.int32), b=torch.ones(4))
    assert torch.equal(got, torch.stack([torch.arange(4.0), torch.ones(4)], -1))
    assert evaluate("tl.join(1, 2)").tolist() == [1, 2]
