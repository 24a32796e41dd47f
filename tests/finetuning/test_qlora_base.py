"""A frozen base in 4 bits: nothing of it learns, and gradients pass as through its dequantised self."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cme295lab.finetuning.qlora import PagedAdamW, freeze_in_four_bits
from cme295lab.quantization import Linear4bit
from cme295lab.transformer import DecoderLM, ModelConfig

TINY = ModelConfig(
    name="tiny", vocab_size=50, num_layers=2, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=16
)


def tiny(dtype: torch.dtype = torch.float32) -> DecoderLM:
    torch.manual_seed(0)
    return DecoderLM(TINY).to(dtype)


def tokens() -> Tensor:
    return torch.randint(TINY.vocab_size, (3, 13), generator=torch.Generator().manual_seed(5))


class Adapted(nn.Module):
    """base(x) + x Aᵀ Bᵀ, written down for these tests."""

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.base, self.a, self.b = base, nn.Parameter(a.clone()), nn.Parameter(b.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


def adapt(model: DecoderLM) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for layer in model.layers:
        for parent, name, sides in ((layer.attention, "query", (24, 24)), (layer.mlp, "down", (40, 24))):
            a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((4, sides[0]), (sides[1], 4)))
            dtype = model.embedding.weight.dtype
            adapted = Adapted(getattr(parent, name), a.to(dtype), b.to(dtype))
            setattr(parent, name, adapted)
            found += [adapted.a, adapted.b]
    return found


def dequantised(model: DecoderLM) -> DecoderLM:
    """The same with ordinary layers that hold the dequantised weights."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
            plain.weight = nn.Parameter(layer.weight.dequantize(layer.compute_dtype), requires_grad=False)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, plain)
    return model


def gradients(model: DecoderLM, adapters: list[nn.Parameter]) -> list[Tensor]:
    """Of the embedded tokens, and of the adapters."""
    embedded: list[Tensor] = []

    def keep(_: nn.Module, __: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    model.embedding.register_forward_hook(keep)
    model.loss(tokens()[:, :-1], tokens()[:, 1:]).backward()
    found = [tensor.grad for tensor in (*embedded, *adapters)]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


# Bit for bit while a weight is one slab; a few roundings of 2⁻²⁴, or one of 2⁻⁸, where a processor sums otherwise.
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)], ids=["fp32", "bf16"])
def test_gradients_of_inputs_and_adapters_are_those_over_a_dequantised_base(
    dtype: torch.dtype, tolerance: float
) -> None:
    model, reference = tiny(dtype), tiny(dtype)
    for each in (model, reference):
        freeze_in_four_bits(each, compute_dtype=dtype)
    dequantised(reference)
    found, expected = (gradients(each, adapt(each)) for each in (model, reference))
    assert len(found) == 1 + 8
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == dtype
        assert float((mine - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def test_adapters_learn_and_the_base_stays_bit_for_bit() -> None:
    model = tiny()
    freeze_in_four_bits(model)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    adapters = adapt(model)
    names = dict(model.named_parameters())
    optimizer = PagedAdamW(names.items(), budget_bytes=2048, lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = model.loss(tokens()[:, :-1], tokens()[:, 1:])
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.05
    after = {name.replace(".base.", "."): value for name, value in model.state_dict().items()}
    assert before.keys() <= after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {id(parameter) for parameter in names.values() if parameter.grad is not None} == set(map(id, adapters))


def test_the_head_stays_unless_skip_says_otherwise() -> None:
    kept, quantised = tiny(), tiny()
    summary = freeze_in_four_bits(kept)
    freeze_in_four_bits(quantised, skip=())
    assert isinstance(kept.head, nn.Linear)
    assert isinstance(quantised.head, Linear4bit)
    assert "head" in str(summary)
    no_head = nn.Sequential(nn.Linear(64, 64))
    assert freeze_in_four_bits(no_head).num_quantized == 1


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"skip": ("q_proj",)}, ValueError, "skip names 'q_proj'"),
        ({"compute_dtype": torch.int8}, TypeError, "compute_dtype must be one of"),
        ({"block_size": 48}, ValueError, "block_size must be one of"),
    ],
    ids=["skip", "compute dtype", "block size"],
)
def test_what_cannot_be_done_is_refused_and_the_model_stays_as_it_was(
    options: dict[str, object], error: type[Exception], says: str
) -> None:
    model = tiny()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=says):
        freeze_in_four_bits(model, **options)  # type: ignore[arg-type]
    assert [type(module) for module in model.modules()] == [type(module) for module in before.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())
