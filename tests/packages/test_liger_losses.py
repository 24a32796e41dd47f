"""liger-kernel: the kernels behind its losses, forwards and backwards, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="liger-kernel imports Triton")
pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")

from liger_kernel.ops.fused_ce_tvd import LigerFusedCETVDFunction
from liger_kernel.ops.grpo_loss import GrpoLossFunction, fused_selective_log_softmax
from liger_kernel.ops.vocab_parallel_cross_entropy import LigerVocabParallelCEFunction
from liger_kernel.transformers import functional as liger

from tests.packages.harness import FLOAT_TYPES, Ledger, check, randn

LEDGER = Ledger("liger-kernel", "losses")

each_type = pytest.mark.parametrize("dtype", FLOAT_TYPES, ids=["fp32", "bf16", "fp16"])


def labels(rows, columns, ignored=-100):
    target = torch.randint(columns, (rows,))
    target[1::3] = ignored
    return target


@each_type
@pytest.mark.parametrize(("rows", "columns"), [(5, 11), (4, 333)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(dtype, rows, columns, reduction):
    x, target = randn(rows, columns, dtype=dtype), labels(rows, columns)
    check(
        LEDGER, lambda x: liger.liger_cross_entropy(x, target, reduction=reduction),
        lambda x: F.cross_entropy(x, target, reduction=reduction), x, name="liger_cross_entropy",
    )  # fmt: skip


def test_cross_entropy_with_everything_switched_on():
    x, target, weight = randn(6, 40), labels(6, 40, ignored=7), torch.rand(40)

    def reference(x):
        y = 5 * torch.tanh(x / 5)
        smooth = F.cross_entropy(y, target, weight.double(), ignore_index=7, label_smoothing=0.1)
        kept = target != 7
        return smooth + 0.01 * y.logsumexp(-1)[kept].square().sum() / kept.sum()

    predicted = torch.where(target == 7, -1, x.detach().argmax(-1))

    def function(x):
        out = liger.liger_cross_entropy(
            x, target, weight=weight, ignore_index=7, label_smoothing=0.1, softcap=5.0, lse_square_scale=0.01,
            return_token_accuracy=True, return_predicted_tokens=True,
        )  # fmt: skip
        assert torch.equal(out.predicted_tokens, predicted)
        return out.loss

    check(LEDGER, function, reference, x, name="liger_cross_entropy", roundings=32)


@each_type
def test_fused_linear_cross_entropy(dtype):
    x, w, b = randn(9, 12, dtype=dtype), randn(37, 12, dtype=dtype), randn(37, dtype=dtype)
    target = labels(9, 37)
    check(
        LEDGER, lambda x, w, b: liger.liger_fused_linear_cross_entropy(x, w, target, b),
        lambda x, w, b: F.cross_entropy(x @ w.T + b, target), x, w, b,
        name="liger_fused_linear_cross_entropy", roundings=32, rounded_to=dtype,  # as the logits are
    )  # fmt: skip


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
@pytest.mark.parametrize("log_target", [True, False])
def test_kl_div(reduction, log_target):
    x, y = randn(5, 130).detach().log_softmax(-1).requires_grad_(), randn(5, 130, grad=False).log_softmax(-1)
    y = y if log_target else y.exp()

    def reference(x, y):
        loss = y.exp() * (y - x) if log_target else y * (y.log() - x)
        return {"batchmean": loss.sum() / 5, "mean": loss.mean(), "sum": loss.sum(), "none": loss}[reduction]

    check(
        LEDGER, lambda x, y: liger.liger_kl_div(x, y, reduction=reduction, log_target=log_target),
        reference, x, y,
        name="liger_kl_div", roundings=64,  # exp of a logarithm: as many roundings as the logarithm is large
    )  # fmt: skip


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ignored", [True, False])
def test_jsd(beta, ignored):
    target = labels(6, 50) if ignored else None
    x, y = randn(6, 50).detach().log_softmax(-1).requires_grad_(), randn(6, 50, grad=False).log_softmax(-1)

    def reference(x, y):
        kept = torch.ones(6, 1) if target is None else (target != -100)[:, None]
        q, p = x.exp(), y.exp()
        m = (beta * p + (1 - beta) * q).log()
        loss = {0.0: p * (y - x), 1.0: q * (x - y)}.get(beta, beta * p * (y - m) + (1 - beta) * q * (x - m))
        return (loss * kept).sum() / kept.sum()

    check(
        LEDGER, lambda x, y: liger.liger_jsd(x, y, target, beta=beta), reference, x, y, name="liger_jsd", roundings=64
    )


@pytest.mark.parametrize("reduction", ["batchmean", "mean", "sum", "none"])
def test_tvd(reduction):
    p, q = randn(5, 130).detach().softmax(-1).requires_grad_(), randn(5, 130, grad=False).softmax(-1)

    def reference(p, q):
        loss = (p - q).abs() / 2
        return {"batchmean": loss.sum() / 5, "mean": loss.mean(), "sum": loss.sum(), "none": loss}[reduction]

    check(LEDGER, lambda p, q: liger.liger_tvd(p, q, reduction=reduction), reference, p, q, name="liger_tvd")


@each_type
def test_fused_ce_and_tvd(dtype):
    x, y, target = randn(6, 70, dtype=dtype), randn(6, 70, dtype=dtype, grad=False), labels(6, 70)

    def reference(x, y):
        tvd = (x.softmax(-1) - y.softmax(-1)).abs().sum(-1) / 2
        return F.cross_entropy(x, target, reduction="none"), tvd * (target != -100)

    check(
        LEDGER, lambda x, y: LigerFusedCETVDFunction.apply(x, y, target), reference, x, y,
        name="LigerFusedCETVDFunction", roundings=32,
    )  # fmt: skip


def test_fused_linear_jsd():
    target = labels(7, 30)

    def reference(x, w, y, v):
        a, b = (x @ w.T / 2).log_softmax(-1), (y @ v.T / 2).log_softmax(-1)
        m = ((a.exp() + b.exp()) / 2).log()
        loss = (b.exp() * (b - m) + a.exp() * (a - m)) / 2 * (target != -100)[:, None]
        return loss.sum() / (target != -100).sum()

    inputs = [randn(7, 12), randn(30, 12), randn(7, 16, grad=False), randn(30, 16, grad=False)]
    check(
        LEDGER, lambda *t: liger.liger_fused_linear_jsd(*t, target, temperature=2.0), reference, *inputs,
        name="liger_fused_linear_jsd", roundings=64,
    )  # fmt: skip


def test_fused_linear_kl_div():
    target = labels(7, 30)

    def reference(x, w, p):
        kept = (target != -100)[:, None]
        return (F.kl_div((x @ w.T / 2).log_softmax(-1), p, reduction="none") * kept).sum() / kept.sum()

    inputs = [randn(7, 12), randn(30, 12), randn(7, 30, grad=False).softmax(-1)]
    check(
        LEDGER, lambda *t: liger.liger_fused_linear_kl_div(*t, target, temperature=2.0), reference, *inputs,
        name="liger_fused_linear_kl_div", roundings=64,
    )  # fmt: skip


@each_type
def test_selective_log_softmax(dtype):
    x, ids = randn(2, 6, 90, dtype=dtype, grad=False), torch.randint(90, (2, 5))

    def reference(x):
        return (x[:, :-1] / 0.9).log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    check(
        LEDGER, lambda x: fused_selective_log_softmax(x, ids), lambda x: reference(x).float(), x,
        name="fused_selective_log_softmax", backward=False,
    )  # fmt: skip


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_grpo_loss(level):
    batch, length, vocabulary = 3, 5, 60
    ids, advantages = torch.randint(vocabulary, (batch, length)), torch.randn(batch)
    old, ref = (torch.randn(batch, length) / 4 - 4 for _ in range(2))
    mask = (torch.rand(batch, length) > 0.3).int()

    def logp(x):
        return (x[:, :-1] / 0.9).log_softmax(-1).gather(-1, ids[..., None])[..., 0]

    def function(x):
        return GrpoLossFunction.apply(
            x, old, ref, ids, advantages, mask, 0.9, 0.04, 0.2, 0.3, False, "grpo", length, True, level
        )[0]  # fmt: skip

    def reference(x):
        new = logp(x)
        ratio = (new - old).exp()
        if level == "sequence":
            ratio = (((new - old) * mask).sum(-1) / mask.sum(-1).clamp_min(1)).exp()[:, None]
        gain = torch.minimum(ratio * advantages[:, None], ratio.clamp(0.8, 1.3) * advantages[:, None])
        kl = (ref - new).exp() - (ref - new) - 1
        loss = (0.04 * kl - gain) * mask
        return (loss.sum(-1) / mask.sum(-1).clamp_min(1)).mean()

    check(LEDGER, function, reference, randn(batch, length + 1, vocabulary), name="GrpoLossFunction", roundings=64)


@each_type
def test_vocab_parallel_cross_entropy(dtype):
    x, target = randn(3, 4, 90, dtype=dtype), labels(12, 90).reshape(3, 4)

    def reference(x):
        return F.cross_entropy(x.flatten(0, 1), target.flatten(), reduction="none").reshape(3, 4)

    def function(x):
        return LigerVocabParallelCEFunction.apply(x, target, None, -100, 0.0, "pytorch", "global")

    check(
        LEDGER, function, reference, x, name="LigerVocabParallelCEFunction",
    )  # fmt: skip


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
