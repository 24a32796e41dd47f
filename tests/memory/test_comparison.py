"""The ledger against measured steps: states and saved activations to the byte, the peak within 2 %."""

import dataclasses
import itertools

import jaxtyping
import pytest
import torch

from cme295lab.memory import ParallelConfig, compare
from cme295lab.memory.measurement.real_step import MasterWeights
from cme295lab.transformer import ModelConfig

LLAMA = ModelConfig(name="llama", vocab_size=384, num_layers=2, dim=64, num_heads=4, num_kv_heads=2, mlp_dim=176,
                    max_seq=256)  # fmt: skip
GPT = dataclasses.replace(
    LLAMA, name="gpt", num_kv_heads=4, mlp="gelu", norm="layernorm", position="learned", tied_head=True, bias=True,
    mlp_dim=256,
)  # fmt: skip
OTHER = dataclasses.replace(LLAMA, name="other", vocab_size=61, mlp="gelu", position="learned", tied_head=True)
SHAPES = [(1, 8), (3, 50), (2, 192)]


@pytest.fixture(autouse=True)
def _types_are_not_checked():
    """A timeline is called at each operator; checking its types there, as other tests do, takes ten times as long."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def check(comparison):
    """States to the byte, what autograd keeps to the byte, the peak within 2 %."""
    what = comparison.ledger.setting
    for name, formula, measured in comparison.state_rows():
        assert formula == measured, (name, what)
    assert comparison.ledger.saved_activation_bytes == comparison.measured_saved_bytes, what
    assert abs(comparison.error) < 0.02, (comparison.ledger.moment, what, str(comparison))


@pytest.mark.parametrize("config", [LLAMA, GPT, OTHER], ids=lambda config: config.name)
@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_formula_is_the_measurement(config, attention, recompute):
    """All shapes and policies; gradients kept in half of the cases, freed in the other half."""
    cases = itertools.product(SHAPES, ("fp32", "bf16-pure", "bf16-mixed"))
    for number, ((batch, seq), policy) in enumerate(cases):
        gradients = ("kept", "freed")[number % 2]
        check(compare(config, micro_batch=batch, seq=seq, attention=attention, policy=policy, gradients=gradients,
                      recompute=recompute))  # fmt: skip


@pytest.mark.parametrize("optimizer", ["sgd", "sgd-momentum", "adam", "adamw", "adafactor"])
def test_every_optimizer(optimizer):
    for config, policy in itertools.product((LLAMA, GPT), ("fp32", "bf16-pure", "bf16-mixed")):
        check(compare(config, micro_batch=1, seq=4, optimizer=optimizer, policy=policy))
    check(compare(GPT, micro_batch=2, seq=96, optimizer=optimizer))


def test_adam_in_a_loop_holds_the_quotient_of_the_tensor_before():
    comparison = compare(GPT, micro_batch=1, seq=8, policy="fp32", gradients="freed")
    assert comparison.ledger.moment == "optimizer"
    assert abs(comparison.error) < 1e-5  # the scalar loss


def test_dropout_with_standard_attention():
    for config, policy, recompute in itertools.product((OTHER, GPT), ("fp32", "bf16-mixed"), ("none", "full")):
        dropping = dataclasses.replace(config, dropout=0.1)
        check(compare(dropping, micro_batch=2, seq=128, attention="standard", policy=policy, recompute=recompute))


@pytest.mark.parametrize("name", ["course-1m", "course-4m"])
def test_course_models(name):
    comparison = compare(name, micro_batch=2, seq=128, policy="bf16-mixed")
    check(comparison)
    classes = {row[0] for row in comparison.rows()}
    assert classes == {"weight", "gradient", "master weight", "optimizer state", "activation", "temporary"}
    assert f"{name}, 2 × 128 tokens, bf16-mixed" in str(comparison)
    assert "the formula's peak is" in str(comparison)


def test_master_weights_are_the_optimizer_on_wider_copies():
    weight = torch.randn(5, 3).bfloat16().requires_grad_()
    copy = weight.detach().float().requires_grad_()
    ours = MasterWeights([weight], lambda tensors: torch.optim.AdamW(tensors, lr=1e-3), torch.float32)
    plain = torch.optim.AdamW([copy], lr=1e-3)
    for _ in range(20):
        weight.grad = torch.randn(5, 3).bfloat16()
        copy.grad = weight.grad.float()
        ours.step()
        plain.step()
        assert ours.masters[0].equal(copy)
        assert weight.equal(copy.bfloat16())
    before = weight.clone()
    weight.grad = None
    ours.step()  # no gradient, no change
    assert weight.equal(before)


@pytest.mark.parametrize(("values", "message"), [
    ({"parallel": ParallelConfig(data=2)}, "parallel="),
    ({"optimizer": "adam-8bit"}, "optimizer='adam-8bit'"),
    ({"step": "foreach"}, "step='foreach'"),
    ({"policy": "bf16-mixed-fp32-gradients"}, "policy="),
    ({"policy": "bf16-fp32-states"}, "policy="),
    ({"fp32_logits": False}, "fp32_logits=False"),
    ({"offload_states": True, "fragmentation": 0.1}, "offload_states=True, fragmentation=0.1"),
])  # fmt: skip
def test_what_one_process_cannot_run_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        compare(LLAMA, seq=8, **values)
