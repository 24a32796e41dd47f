"""Bytes by class from storages: each once, whole, and only what is there."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cme295lab.finetuning.qlora import PagedAdamW, measured_bytes, qlora_memory
from cme295lab.pretraining.optim import AdamW
from cme295lab.quantization import quantize_model
from cme295lab.transformer import DecoderLM, ModelConfig

LLAMA = ModelConfig(
    name="llama", vocab_size=50, num_layers=2, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=16
)
GPT = ModelConfig(
    name="gpt", vocab_size=50, num_layers=1, dim=24, num_heads=2, mlp_dim=96, max_seq=16, mlp="gelu", norm="layernorm",
    position="learned", tied_head=True, bias=True,
)  # fmt: skip
MIXTURE = ModelConfig(
    name="mixture", vocab_size=50, num_layers=1, dim=24, num_heads=2, mlp_dim=40, max_seq=16, num_experts=4,
    experts_per_token=2,
)  # fmt: skip


@pytest.mark.parametrize("double_quant", [True, False], ids=["double", "plain"])
@pytest.mark.parametrize("config", [LLAMA, GPT, MIXTURE], ids=lambda config: config.name)
def test_a_quantised_base_has_the_bytes_of_the_formula(config: ModelConfig, double_quant: bool) -> None:
    model = DecoderLM(config).to(torch.bfloat16)
    summary = quantize_model(model, double_quant=double_quant, skip=("head",))
    formula = qlora_memory(config, rank=2, double_quant=double_quant).bytes
    measured = measured_bytes(model, ())
    assert measured.base == measured.total == summary.bytes_after == formula.base
    for name in ("codes", "scales", "embeddings", "norms"):
        assert getattr(measured, name) == getattr(formula, name), name


class Adapted(nn.Module):
    """One frozen vector, and two matrices in one storage that count as adapters."""

    def __init__(self) -> None:
        super().__init__()
        both = torch.zeros(6, 4)
        self.a, self.b = nn.Parameter(both[:2]), nn.Parameter(both[2:])
        self.scale = nn.Parameter(torch.ones(5), requires_grad=False)
        self.register_buffer("positions", torch.arange(3))


@pytest.mark.parametrize("paged", [False, True], ids=["plain", "paged"])
def test_gradients_and_states_count_when_they_are_there(paged: bool) -> None:
    model = Adapted()
    adapters = [model.a, model.b]
    options = {"budget_bytes": 128} if paged else {}
    optimizer = (PagedAdamW if paged else AdamW)(model.named_parameters(), **options)  # type: ignore[operator]
    before = measured_bytes(model, adapters, optimizer)
    assert (before.adapters, before.norms, before.total) == (96, 20 + 24, 140)  # the shared storage counts once
    model.a.grad, model.b.grad = torch.ones(2, 4), torch.ones(4, 4)
    optimizer.step()
    after = measured_bytes(model, adapters, optimizer)
    assert (after.gradients, after.states) == (96, 192)


def test_an_optimizer_of_torch_is_refused() -> None:
    model = Adapted()
    with pytest.raises(TypeError, match=r"one of cme295lab.pretraining.optim or a PagedAdamW, got SGD"):
        measured_bytes(model, (), torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]
