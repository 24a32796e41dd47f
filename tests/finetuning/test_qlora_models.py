"""A base in 4 bits with adapters: bytes to the byte before and in training, layers by the formulas, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cme295lab.finetuning.adapters import add_adapters
from cme295lab.finetuning.qlora import PagedAdamW, adapt_in_four_bits, measured_bytes, qlora_memory
from cme295lab.quantization import Linear4bit
from cme295lab.transformer import DecoderLM, ModelConfig

LLAMA = ModelConfig(
    name="llama", vocab_size=50, num_layers=2, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=16
)
GPT = ModelConfig(
    name="gpt", vocab_size=50, num_layers=1, dim=24, num_heads=2, mlp_dim=96, max_seq=16, mlp="gelu", norm="layernorm",
    position="learned", tied_head=True, bias=True,
)  # fmt: skip


class LowRank(nn.Module):
    """base(x) + scale x Aᵀ Bᵀ, written down for these tests."""

    def __init__(self, base: Linear4bit, rank: int, scale: float, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(base.in_features)
        self.base, self.scale = base, scale
        self.a = nn.Parameter((torch.randn(rank, base.in_features, generator=generator) * 0.1).to(dtype))
        self.b = nn.Parameter((torch.randn(base.out_features, rank, generator=generator) * 0.1).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (self.scale * (x.to(self.a.dtype) @ self.a.T @ self.b.T)).to(x.dtype)


def low_rank(rank: int, *, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Callable[[nn.Module], None]:
    def add(model: nn.Module) -> None:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, Linear4bit):
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, LowRank(layer, rank, scale, dtype))

    return add


def model_of(config: ModelConfig) -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(config).to(torch.bfloat16)


def loss_of(model: DecoderLM) -> Tensor:
    tokens = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(5))
    return model.loss(tokens[:, :-1], tokens[:, 1:])


@pytest.mark.parametrize("adapter_format", ["bf16", "fp32"])
@pytest.mark.parametrize("double_quant", [True, False], ids=["double", "plain"])
@pytest.mark.parametrize("config", [LLAMA, GPT], ids=lambda config: config.name)
def test_bytes_are_those_of_the_formula_when_made_and_in_training(
    config: ModelConfig, double_quant: bool, adapter_format: str
) -> None:
    model = model_of(config)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[adapter_format]
    summary = adapt_in_four_bits(model, low_rank(4, dtype=dtype), double_quant=double_quant)
    formula = qlora_memory(config, rank=4, double_quant=double_quant, adapter_format=adapter_format)  # type: ignore[arg-type]
    assert summary.memory.bytes == formula.bytes
    for name in ("num_parameters", "num_quantized", "num_trained"):
        assert getattr(summary.memory, name) == getattr(formula, name), name
    assert (summary.measured.gradients, summary.measured.states) == (0, 0)
    assert (summary.measured.base, summary.measured.adapters) == (formula.bytes.base, formula.bytes.adapters)
    optimizer = PagedAdamW(model.named_parameters(), budget_bytes=4096, state_dtype=torch.float32)
    loss_of(model).backward()
    optimizer.step()
    trained = [model.get_parameter(name) for name in summary.trained]
    assert measured_bytes(model, trained, optimizer) == formula.bytes
    assert optimizer.peak_device_bytes <= 4096 < formula.bytes.states


def largest_error(found: Tensor, expected: Tensor) -> float:
    """Relative to the largest value of the tensor."""
    return float((found.detach().double() - expected).abs().max() / expected.abs().max())


def test_output_and_gradients_of_a_layer_are_those_of_the_formulas_in_float64() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(37, 21))
    adapt_in_four_bits(model, low_rank(5, scale=3.0), compute_dtype=torch.float32)
    layer = model[0]
    assert isinstance(layer, LowRank)
    bias = layer.base.bias
    assert bias is not None
    w, a, b = (t.detach().double() for t in (layer.base.weight.dequantize(torch.float32), layer.a, layer.b))
    x = torch.randn(4, 37, generator=torch.Generator().manual_seed(1)).requires_grad_()
    dy = torch.randn(4, 21, generator=torch.Generator().manual_seed(2))
    y = model(x)
    y.backward(dy)
    wide_x, wide_dy = x.detach().double(), dy.double()
    pairs = (
        (y, wide_x @ w.T + bias.double() + 3 * (wide_x @ a.T) @ b.T),
        (x.grad, wide_dy @ w + 3 * (wide_dy @ b) @ a),
        (layer.a.grad, 3 * (wide_dy @ b).T @ wide_x),
        (layer.b.grad, 3 * wide_dy.T @ (wide_x @ a.T)),
    )
    for found, expected in pairs:
        assert found is not None
        assert largest_error(found, expected) < 1e-6  # sums of at most 37 products, rounded to 2⁻²⁴ each
    assert bias.grad is None


def test_the_table_shows_each_class_by_formula_and_measured() -> None:
    text = str(adapt_in_four_bits(model_of(LLAMA), low_rank(4, dtype=torch.bfloat16)))
    rows = {line.split("  ")[0]: line.split()[-4:] for line in text.splitlines()}
    assert rows["codes, 4 bits"] == ["4.61", "kB", "4.61", "kB"]
    assert rows["their gradients"][2:] == ["0", "B"]
    # 9,216 quantised, 2,400 in embedding and head, 120 in norms, 2 bytes each; 4 × 2 × (2 × 48 + 2 × 36 + 3 × 64)
    assert "before: 23.5 kB; 2880 of 14616 parameters learn" in text


def test_adapters_of_another_kind_learn_over_the_same_base() -> None:
    model = model_of(LLAMA)
    summary = adapt_in_four_bits(model, lambda base: add_adapters(base, 6))  # type: ignore[arg-type]
    # Two per layer, each with 2 d m + d + m numbers.
    assert summary.num_trained == 2 * 2 * (2 * 24 * 6 + 24 + 6)
    loss_of(model).backward()
    assert all(model.get_parameter(name).grad is not None for name in summary.trained)


def test_an_addition_that_adds_nothing_or_wakes_the_base_is_refused() -> None:
    with pytest.raises(ValueError, match="add must add parameters that learn"):
        adapt_in_four_bits(model_of(LLAMA), lambda model: None)
    with pytest.raises(ValueError, match=r"frozen base to learn: norm\.weight"):
        adapt_in_four_bits(model_of(LLAMA), lambda model: model.get_parameter("norm.weight").requires_grad_())


def test_a_model_that_is_in_4_bits_already_is_refused() -> None:
    model = model_of(GPT)
    adapt_in_four_bits(model, low_rank(2))
    with pytest.raises(ValueError, match=r"there is no nn\.Linear to quantise"):
        adapt_in_four_bits(model, low_rank(2))
