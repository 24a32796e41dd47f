"""cut-cross-entropy: the loss of a linear layer without its logits, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton", reason="cut-cross-entropy imports Triton")
pytest.importorskip("cut_cross_entropy", reason="cut-cross-entropy is not installed")

from cut_cross_entropy.cce import cce_linear_cross_entropy

from tests.packages.harness import Ledger, check, randn

LEDGER = Ledger("cut-cross-entropy", "loss of a linear layer")


@pytest.fixture(autouse=True)
def _without_a_compiler():
    """Helper functions of the package in plain PyTorch are compiled otherwise, for a minute."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_cross_entropy(dtype, softcap, reduction):
    # With a cap, classes must fill the blocks: the kernel caps the minus infinities of its padding, too.
    classes = 300 if softcap is None else 512
    target = torch.randint(classes, (2, 21))
    target[0, ::4] = -100

    def function(e, c):
        return cce_linear_cross_entropy(e, c, target, softcap=softcap, reduction=reduction, filter_eps=None)

    def reference(e, c):
        logits = e @ c.T
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return F.cross_entropy(logits.transpose(1, 2), target, reduction=reduction)

    check(
        LEDGER, function, reference, randn(2, 21, 48, dtype=dtype), randn(classes, 48, dtype=dtype, scale=0.3),
        name="cce_linear_cross_entropy", roundings=32, rounded_to=dtype,
        backward=dtype != torch.float32,  # which the package refuses
    )  # fmt: skip


def test_the_table_in_the_documentation_says_what_ran(table_says_what_ran):
    table_says_what_ran(LEDGER)
