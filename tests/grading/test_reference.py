"""The truth that students are judged against, and the model of their mistakes, are held together and to torch."""

import math

import pytest
import torch

from cme295lab.grading.flash_attention.inputs import accumulation_case, random_case
from cme295lab.grading.flash_attention.mistakes import MISTAKES, blockwise_attention, mistaken_lse, mistaken_outputs
from cme295lab.grading.flash_attention.reference import exact_attention


@pytest.mark.parametrize("causal", [False, True])
def test_exact_attention_is_torch_in_float64(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 3, 50, 16, generator=torch.manual_seed(0), dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal)
    torch.testing.assert_close(exact_attention(q, k, v, causal)[0], expected, rtol=0, atol=1e-12)


def test_exact_attention_by_hand() -> None:
    """One query of dim 1 with scores 0 and log 3: weights 1/4 and 3/4."""
    q, k, v = torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[1.0], [2.0]])
    output, lse = exact_attention(q.double(), k.double(), v.double(), False)
    assert output.item() == pytest.approx(1.75, abs=1e-7)
    assert lse.item() == pytest.approx(math.log(4), abs=1e-7)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("blocks", [(16, 16), (32, 20), (8, 64)])
def test_blockwise_attention_without_a_mistake_is_exact(causal: bool, blocks: tuple[int, int]) -> None:
    case = random_case(3, (1, 2, 70, 16), causal=causal, blocks=blocks)
    output, lse = blockwise_attention(case.q, case.k, case.v, causal, blocks)
    expected, expected_lse = exact_attention(case.q, case.k, case.v, causal)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(lse, expected_lse, rtol=0, atol=1e-12)


def test_mistakes_differ_from_the_truth_and_from_each_other() -> None:
    """If two mistakes gave the same output, the check would name one of them at random."""
    case = random_case(0, (1, 2, 75, 16), causal=True)
    truth, _ = exact_attention(case.q, case.k, case.v, True)
    outputs = {m.cause: blockwise_attention(case.q, case.k, case.v, True, case.blocks, m)[0] for m in MISTAKES}
    # On a causal input no query that the mask lets see the padding is left: those two show without a mask.
    padded = {m.cause for m in MISTAKES if m.padding or m.drop_tail}
    for cause, output in outputs.items():
        if cause not in padded:
            assert not torch.allclose(output, truth, atol=1e-3), cause
    names = list(outputs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not torch.allclose(outputs[first], outputs[second], atol=1e-6, equal_nan=True), (first, second)


def test_mistaken_outputs_cover_what_applies() -> None:
    case = random_case(0, (1, 1, 64, 16))
    plain = {h.cause for h in mistaken_outputs(case.q, case.k, case.v, False, (32, 32))}
    causal = {h.cause for h in mistaken_outputs(case.q, case.k, case.v, True, (32, 32))}
    ragged = {h.cause for h in mistaken_outputs(case.q, case.k, case.v, False, (32, 48))}
    assert plain < causal
    assert plain < ragged
    assert len({h.cause for h in mistaken_lse(case.q, case.k, case.v, False, (32, 32))}) > 7


def test_accumulation_case_loses_terms_in_float16_only() -> None:
    """Adding block by block in float16 is wrong by several times what rounding the result explains."""
    case = accumulation_case(384)
    expected, _ = exact_attention(case.q, case.k, case.v, False)
    scores = case.q.float() @ case.k.float().mT / 4
    p = torch.exp(scores - scores.amax(-1, keepdim=True))
    blocks = [(p[..., i : i + 16], case.v.float()[..., i : i + 16, :]) for i in range(0, 384, 16)]
    for dtype, right in ((torch.float32, True), (torch.float16, False)):
        total, output = torch.zeros(1, 2, 384, dtype=dtype), torch.zeros(case.q.shape, dtype=dtype)
        for weights, values in blocks:
            total = (total + weights.sum(-1)).to(dtype)
            output = (output + weights @ values).to(dtype)
        error_of_output = (output.double() / p.double().sum(-1, keepdim=True) - expected).abs()[0, 0].max()
        error_of_sum = ((p.double() @ case.v.double()) / total.double()[..., None] - expected).abs()[0, 1].max()
        for error in (error_of_output, error_of_sum):
            assert bool(error < case.allowed_error() / 4) if right else bool(error > 3 * case.allowed_error())
