"""Operators run in the format that a policy says, forward and backward."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cme295lab.precision.accumulation import matmul_in_16_bits, sum_in_16_bits
from cme295lab.precision.autocast import HIGH_OPERATORS, LOW_OPERATORS, autocast_like
from cme295lab.precision.loss_scaling import LossScaling
from cme295lab.precision.policies import POLICIES, PrecisionPolicy, get_policy
from tests.precision.models import tiny_batches, tiny_model

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32
LOW_SUMS = PrecisionPolicy(compute="fp16", fp32_accumulation=False)
ALL_LOW = PrecisionPolicy(compute="fp16", fp32_accumulation=False, fp32_reductions=False)


def test_policies_of_the_course() -> None:
    """name -> compute, masters, scaled, stochastic: the first five miss one technique each, or none."""
    table = {
        name: (p.compute, p.master_weights, p.loss_scaling is not None, p.stochastic_rounding)
        for name, p in POLICIES.items()
    }
    assert table == {
        "fp32": ("fp32", False, False, False),
        "pure-fp16": ("fp16", False, False, False),
        "fp16-master": ("fp16", True, False, False),
        "fp16-mixed": ("fp16", True, True, False),
        "bf16-mixed": ("bf16", True, False, False),
        "bf16-fp32-states": ("bf16", False, False, False),
        "bf16-stochastic": ("bf16", False, False, True),
    }
    assert get_policy("fp16-mixed").loss_scaling == LossScaling()
    assert get_policy(LOW_SUMS) is LOW_SUMS
    assert [POLICIES[name].dtype for name in ("fp32", "fp16-master", "bf16-fp32-states")] == [SINGLE, HALF, BRAIN]


CASES: dict[str, tuple[Any, torch.dtype | None]] = {  # None: in 16 bits
    "linear": (lambda a, b: F.linear(a, b), None),
    "matmul operator": (lambda a, b: a @ b.t(), None),
    "einsum": (lambda a, b: torch.einsum("ik,jk->ij", a, b), None),
    "attention": (lambda a, b: F.scaled_dot_product_attention(a[None], b[None], b[None]), None),
    "convolution": (lambda a, b: F.conv1d(a[None], b[:, None], groups=4), None),
    "softmax": (lambda a, b: a.softmax(-1), SINGLE),
    "log_softmax": (lambda a, b: F.log_softmax(a, -1), SINGLE),
    "layer_norm": (lambda a, b: F.layer_norm(a, (a.shape[-1],)), SINGLE),
    "rms_norm": (lambda a, b: F.rms_norm(a, (a.shape[-1],)), SINGLE),
    "cross_entropy": (lambda a, b: F.cross_entropy(a, torch.zeros(4, dtype=torch.long)), SINGLE),
    "mse_loss": (lambda a, b: F.mse_loss(a, b), SINGLE),
    "sum": (lambda a, b: a.sum(), SINGLE),
    "mean": (lambda a, b: torch.mean(a, dim=0), SINGLE),
    "exp": (lambda a, b: a.exp(), SINGLE),
    "power": (lambda a, b: a**2, SINGLE),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["fp16-mixed", "bf16-mixed"])
def test_operators_run_where_the_table_says(name: str, case: str) -> None:
    """From fp32 and from 16-bit inputs alike; gradients have the dtype of their inputs; values are close to fp32's."""
    function, wanted = CASES[case]
    low = POLICIES[name].dtype
    for dtype in (SINGLE, low):
        a, b = (torch.randn(4, 4).to(dtype).requires_grad_() for _ in range(2))
        with autocast_like(name):
            result = function(a, b)
        assert result.dtype == (low if wanted is None else wanted)
        torch.testing.assert_close(result.float(), function(a.float(), b.float()), rtol=0.05, atol=0.1)
        result.float().square().sum().backward()
        assert a.grad is not None
        assert a.grad.dtype == dtype
        assert a.grad.isfinite().all()


def test_the_rest_runs_in_the_wider_of_its_inputs() -> None:
    single, half = torch.ones(3), torch.ones(3, dtype=HALF)
    with autocast_like("fp16-mixed"):
        assert (half + half).dtype == half.relu().dtype == F.silu(half).dtype == HALF
        assert (half * single).dtype == torch.cat([half, single]).dtype == SINGLE
        assert F.linear(single.double(), torch.ones(2, 3, dtype=torch.float64)).dtype == torch.float64
        assert (single.double() @ single.double()).dtype == torch.float64
        assert half.sum(dtype=torch.float64).dtype == torch.float64
        assert torch.arange(3).sum().dtype == torch.int64


def test_fp32_changes_nothing() -> None:
    a, b = torch.randn(3, 4), torch.randn(5, 4)
    with autocast_like("fp32"):
        assert torch.equal(F.linear(a, b), a @ b.t())
        assert torch.ones(2, dtype=HALF).sum().dtype == HALF


def test_tables_do_not_overlap_and_name_functions_of_torch() -> None:
    assert not LOW_OPERATORS & HIGH_OPERATORS
    for name in LOW_OPERATORS | HIGH_OPERATORS:
        assert any(hasattr(home, name) for home in (torch, F, Tensor, torch.linalg)), name


def test_high_operators_save_what_half_would_lose() -> None:
    x = torch.tensor([12.0, 12.0], dtype=HALF)
    with autocast_like("fp16-mixed"):
        assert x.exp().isfinite().all()
    with autocast_like(PrecisionPolicy(compute="fp16", fp32_reductions=False)):
        assert x.exp().tolist() == [math.inf, math.inf]
        assert x.float().softmax(0).dtype == HALF
        wide = torch.tensor([1 + 2.0**-20])
        assert wide.sum(dtype=torch.float64).item() == 1 + 2.0**-20  # what is asked for is not rounded first
        assert wide.sum().item() == 1.0


@pytest.mark.parametrize("shape", [(4, 8, 3), (1, 1, 1), (7, 13, 5)], ids=str)
def test_emulated_product_is_the_rounded_exact_one(shape: tuple[int, int, int]) -> None:
    """Against numpy's fp64 product of the rounded inputs, rounded once: half a unit in the last place, and fp32's own
    error, which may turn a tie. So are the gradients, of rounded gradients."""
    rows, inner, columns = shape
    x, w = torch.randn(rows, inner, requires_grad=True), torch.randn(columns, inner, requires_grad=True)
    with autocast_like("fp16-mixed"):
        y = F.linear(x, w)
    exact = x.detach().half().double() @ w.detach().half().double().t()
    torch.testing.assert_close(y.double(), exact, rtol=2**-11 + 2**-18, atol=1e-7)
    gradient = torch.randn(rows, columns)
    y.backward(gradient.half())
    for got, wanted in (
        (x.grad, gradient.half().double() @ w.detach().half().double()),
        (w.grad, gradient.half().double().t() @ x.detach().half().double()),
    ):
        assert got is not None
        assert torch.equal(got.half().float(), got)  # went through fp16
        torch.testing.assert_close(got.double(), wanted, rtol=2**-11 + 2**-17, atol=1e-6)


def test_product_overflows_to_infinity_and_its_gradient_underflows_to_zero() -> None:
    x = torch.full((1, 4), 200.0, requires_grad=True)
    with autocast_like("fp16-mixed"):
        assert F.linear(x, torch.full((1, 4), 100.0)).item() == math.inf
        y = F.linear(x, torch.full((1, 4), 2.0**-13))
    y.backward(torch.tensor([[2.0**-13]]).half())
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(1, 4))


def test_forward_in_bf16_is_that_of_torch_autocast() -> None:
    """A model in fp32 under both: the same casts, so the same losses and gradients but for the order of sums."""
    model, (batch,) = tiny_model(), tiny_batches(1)
    results = []
    for context in (autocast_like("bf16-mixed"), torch.autocast("cpu", torch.bfloat16)):
        model.zero_grad()
        with context:
            loss = model.loss(*batch)
        loss.backward()
        results.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (ours, our_gradients), (theirs, their_gradients) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0.0)
    for mine, other in zip(our_gradients, their_gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.02 * other.abs().max().item())


def test_sum_of_ones_stops_at_2048_in_fp16_and_at_256_in_bf16() -> None:
    ones = torch.ones(1, 4096)
    assert matmul_in_16_bits(ones, ones.t(), dtype=HALF).item() == 2048
    assert matmul_in_16_bits(ones, ones.t(), dtype=BRAIN).item() == 256
    assert matmul_in_16_bits(ones, ones.t(), dtype=HALF, chunk=2).item() == 4096  # 2048 + 2 is a number of fp16
    with autocast_like("fp16-mixed"):
        assert F.linear(ones, ones).item() == 4096
    with autocast_like(LOW_SUMS):
        assert F.linear(ones, ones).item() == (ones[0] @ ones[0]).item() == 2048
        assert ones.sum().item() == 4096
    with autocast_like(ALL_LOW):
        assert ones.sum().item() == 2048
        assert ones.mean().item() == 0.5
        assert torch.mean(ones.view(-1, 4), 1, keepdim=True).unique().tolist() == [1.0]
    assert sum_in_16_bits(ones.half(), dtype=HALF, chunk=4096).item() == 4096


def by_numpy(a: Tensor, b: Tensor) -> Tensor:
    """One product after the other, each sum a numpy half; products of halves are exact in fp32."""
    total = a.new_zeros(a.shape[0], b.shape[1]).half().numpy()
    for k in range(a.shape[1]):
        product = a[:, k : k + 1].half().float().numpy() * b[k : k + 1].half().float().numpy()
        total = (total.astype("float32") + product).astype("float16")
    return torch.from_numpy(total)


@pytest.mark.parametrize("seed", range(4))
def test_low_accumulation_rounds_after_each_product(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(5, 37, generator=generator), torch.randn(37, 3, generator=generator)
    assert torch.equal(matmul_in_16_bits(a, b, dtype=HALF), by_numpy(a, b))
    whole = matmul_in_16_bits(a, b, dtype=HALF, chunk=64)
    torch.testing.assert_close(whole.double(), a.half().double() @ b.half().double(), rtol=2**-10, atol=1e-4)


@pytest.mark.parametrize(
    ("left", "right"), [((2, 3, 5, 7), (2, 3, 7, 4)), ((3, 5, 7), (7, 4)), ((2, 1, 5, 7), (3, 7, 4)), ((5, 7), (7, 1))],
    ids=str,
)  # fmt: skip
def test_low_accumulation_broadcasts_and_has_the_gradients_of_matmul(
    left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    a, b = torch.randn(left, requires_grad=True), torch.randn(right, requires_grad=True)
    exact_a, exact_b = (x.detach().half().double().requires_grad_() for x in (a, b))
    result, exact = matmul_in_16_bits(a, b, dtype=HALF), exact_a @ exact_b
    torch.testing.assert_close(result.double(), exact, rtol=0.0, atol=0.02)
    gradient = torch.randn(exact.shape)
    result.backward(gradient.half())
    exact.backward(gradient.half().double())
    torch.testing.assert_close(a.grad, exact_a.grad.float(), rtol=0.0, atol=0.03)  # type: ignore[union-attr]
    torch.testing.assert_close(b.grad, exact_b.grad.float(), rtol=0.0, atol=0.05)  # type: ignore[union-attr]


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_low_sums_have_the_shape_and_nearly_the_value_of_sums(dim: Any, keepdim: bool) -> None:
    x = torch.randn(3, 4, 5)
    got = sum_in_16_bits(x, dim, dtype=HALF, keepdim=keepdim)
    wanted = x.half().double().sum(dim, keepdim=keepdim) if dim is not None else x.double().sum().reshape(got.shape)
    assert keepdim or dim is not None or got.shape == ()
    torch.testing.assert_close(got.double(), wanted, rtol=0.0, atol=0.05)


def test_products_of_vectors_and_biases_accumulate_too() -> None:
    a, b, matrix, bias = torch.randn(7), torch.randn(7), torch.randn(7, 3), torch.randn(3)
    with autocast_like(LOW_SUMS):
        results = [a @ b, torch.matmul(a, matrix), matrix.t() @ b, F.linear(a, matrix.t(), bias)]
        results.append(torch.mm(matrix.t(), matrix))
    wanted = [a @ b, a @ matrix, matrix.t() @ b, a @ matrix + bias, matrix.t() @ matrix]
    for got, exact in zip(results, wanted, strict=True):
        assert (got.dtype, got.shape) == (HALF, exact.shape)
        torch.testing.assert_close(got.float(), exact, rtol=0.01, atol=0.02)


def test_models_run_with_everything_in_16_bits() -> None:
    model, (batch,) = tiny_model(attention="standard"), tiny_batches(1)
    exact = model.loss(*batch).item()
    with autocast_like(ALL_LOW):
        loss = model.loss(*batch)
    loss.backward()
    assert loss.dtype == HALF
    assert loss.item() == pytest.approx(exact, rel=0.02)
    assert loss.item() != exact


def test_what_cannot_accumulate_in_16_bits_says_so() -> None:
    with autocast_like(LOW_SUMS), pytest.raises(ValueError, match=r"conv1d cannot accumulate in 16 bits.*there are "):
        F.conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute": "fp8"}, "compute must be 'fp32', 'fp16' or 'bf16'"),
        ({"compute": "fp32", "master_weights": True}, "master_weights must be False"),
        ({"compute": "fp32", "fp32_accumulation": False}, "fp32_accumulation must be True"),
        ({"compute": "fp32", "fp32_reductions": False}, "fp32_reductions must be True"),
        ({"compute": "fp32", "stochastic_rounding": True}, "for 16-bit weights without masters"),
        ({"compute": "bf16", "stochastic_rounding": True, "master_weights": True}, "16-bit weights without"),
        ({"compute": "fp16", "accumulation_chunk": 0}, "accumulation_chunk must be an int of at least 1"),
    ],
    ids=["format", "masters", "sums", "reductions", "fp32", "both", "chunk"],
)
def test_bad_policies_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrecisionPolicy(**options)


def test_other_bad_input_is_refused() -> None:
    ones = torch.ones(2, 2)
    with pytest.raises(ValueError, match="no policy is called 'fp16'; there are fp32, pure-fp16"):
        autocast_like("fp16")
    with pytest.raises(ValueError, match=r"torch.float16 or torch.bfloat16, got torch.float32"):
        matmul_in_16_bits(ones, ones, dtype=SINGLE)
    with pytest.raises(ValueError, match="chunk must be an int of at least 1, got 0"):
        sum_in_16_bits(ones, dtype=HALF, chunk=0)
    with pytest.raises(ValueError, match=r"inner sizes agree, got shapes \(2, 2\) and \(3, 2\)"):
        matmul_in_16_bits(ones, torch.ones(3, 2), dtype=HALF)
