"""LoRA beside a base in 4 bits: counts and bytes as planned, what learns, what is written and read, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cme295lab.finetuning import lora
from cme295lab.finetuning.qlora import (
    PagedAdamW,
    freeze_in_four_bits,
    measured_bytes,
    qlora_memory,
    qlora_model,
)
from cme295lab.quantization import Linear4bit
from cme295lab.transformer import DecoderLM, ModelConfig

LLAMA = ModelConfig(
    name="llama", vocab_size=50, num_layers=2, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=16
)


def model_of(dtype: torch.dtype = torch.bfloat16) -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(LLAMA).to(dtype)


def tokens() -> Tensor:
    return torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(5))


def train(model: DecoderLM, num_steps: int = 3) -> PagedAdamW:
    optimizer = PagedAdamW(model.named_parameters(), budget_bytes=4096, lr=1e-2, state_dtype=torch.float32)
    for _ in range(num_steps):
        optimizer.zero_grad()
        model.loss(tokens()[:, :-1], tokens()[:, 1:]).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("double_quant", [True, False], ids=["double", "plain"])
@pytest.mark.parametrize("targets", ["all-linear", ("query", "value"), ("mlp.up", "head")], ids=["all", "qv", "head"])
def test_counts_are_loras_and_bytes_the_formulas_in_training(
    targets: str | tuple[str, ...], double_quant: bool
) -> None:
    model = model_of()
    summary = qlora_model(model, rank=4, targets=targets, double_quant=double_quant)  # type: ignore[arg-type]
    formula = qlora_memory(LLAMA, rank=4, targets=targets, double_quant=double_quant)  # type: ignore[arg-type]
    assert summary.memory.bytes == formula.bytes
    assert summary.num_trained == formula.num_trained == lora.summarize(model, "default").num_trainable
    optimizer = train(model, 1)
    assert measured_bytes(model, lora.lora_parameters(model).values(), optimizer) == formula.bytes


def test_adapters_alone_learn_and_the_base_stays_bit_for_bit() -> None:
    model = model_of()
    summary = qlora_model(model, rank=4)
    assert set(summary.trained) == set(lora.lora_parameters(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits = model(tokens())
    lora.set_adapter(model, None)
    assert torch.equal(model(tokens()), logits)  # B is zero: nothing has changed yet
    lora.set_adapter(model, "default")
    train(model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(summary.trained)
    assert not torch.equal(model(tokens()), logits)


def test_gradients_are_those_beside_the_dequantised_base() -> None:
    model, plain = model_of(torch.float32), model_of(torch.float32)
    qlora_model(model, rank=4, compute_dtype=torch.float32)
    lora.add_lora(plain, rank=4, alpha=16, targets="all-linear")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in lora.lora_parameters(model).items():
        values = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.data.copy_(values)
        plain.get_parameter(name).data.copy_(values)
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            plain.get_submodule(name).weight.data = module.weight.dequantize(torch.float32)  # type: ignore[union-attr]
    for each in (model, plain):
        each.loss(tokens()[:, :-1], tokens()[:, 1:]).backward()
    for name in lora.lora_parameters(model):
        found, expected = model.get_parameter(name).grad, plain.get_parameter(name).grad
        assert found is not None
        assert expected is not None
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for n, p in model.named_parameters() if n not in lora.lora_parameters(model))


def test_a_trained_adapter_goes_to_a_file_and_comes_back_beside_the_same_base(tmp_path: Path) -> None:
    model = model_of()
    qlora_model(model, rank=4, alpha=8)
    train(model)
    lora.save_adapter(tmp_path, model)
    again = model_of()
    freeze_in_four_bits(again)
    lora.load_adapter(tmp_path, again)
    assert torch.equal(again(tokens()), model(tokens()))
    other = model_of()
    freeze_in_four_bits(other, block_size=32)
    with pytest.raises(ValueError, match="trained for another base"):
        lora.load_adapter(tmp_path, other)


def test_a_merge_into_four_bits_is_refused() -> None:
    model = model_of()
    qlora_model(model, rank=4)
    with pytest.raises(ValueError, match="4 bits"):
        lora.merge(model)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "rank must be an int of at least 1"),
        ({"rank": 13}, "shorter side"),
        ({"targets": ("qury",)}, "did you mean 'query'"),
        ({"alpha": -1.0}, "alpha must be a positive number"),
        ({"dtype": "int8"}, "dtype must be one of fp32"),
        ({"adapter": "a/b"}, "adapter"),
        ({"block_size": 7}, "block_size must be"),
    ],
    ids=["zero", "rank", "targets", "alpha", "dtype", "name", "block"],
)
def test_bad_options_are_refused_before_a_weight_is_rounded(options: dict[str, object], says: str) -> None:
    model = model_of()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        qlora_model(model, **{"rank": 4, **options})  # type: ignore[arg-type]
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_carries_an_adapter_is_refused() -> None:
    model = model_of()
    lora.add_lora(model, rank=2)
    with pytest.raises(ValueError, match="already has lora"):
        qlora_model(model, rank=4, adapter="second")
