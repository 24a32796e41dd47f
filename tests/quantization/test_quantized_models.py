"""Whole models in 4 bits: the course's own, what is kept and why, ties, memory, and what is refused."""

import weakref

import pytest
import torch
from torch import nn

from cme295lab.quantization import Linear4bit, nf4, quantize_model, quantized_models
from cme295lab.quantization.quantized_models import model_bytes
from cme295lab.transformer import DecoderLM, ModelConfig
from cme295lab.transformer.layers import ResidualLinear


def decoder(tied_head: bool = False) -> DecoderLM:
    config = ModelConfig(
        name="test", num_layers=2, dim=64, mlp_dim=96, vocab_size=100, num_heads=4, num_kv_heads=2,
        max_seq=32, tied_head=tied_head,
    )
    return DecoderLM(config)


def test_model_of_the_course_is_quantised_but_for_its_head() -> None:
    model = decoder()
    tokens = torch.randint(100, (2, 16))
    before = model(tokens)
    weights = {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    summary = quantize_model(model, "nf4", skip=["head"], compute_dtype=torch.float32)
    assert summary.num_quantized == len(weights) - 1 == 14
    assert [layer.name for layer in summary.layers if layer.kept] == ["head"]
    for name, weight in weights.items():
        if name != "head":
            expected = nf4.quantize(weight, double_quant=True).dequantize()
            assert torch.equal(model.get_submodule(name).weight.dequantize(), expected), name
    after = model(tokens)
    cosine = torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0)
    assert 0.95 < float(cosine.detach()) < 0.9999999
    assert not any(type(module) is ResidualLinear for module in model.modules())  # it only starts differently
    assert sum(parameter.numel() for parameter in model.parameters()) < sum(w.numel() for w in weights.values())


def test_bytes_are_those_of_the_storages() -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 128, bias=False), nn.LayerNorm(128))
    dense = (256 * 256 + 256 + 256 * 128 + 2 * 128) * 4
    assert model_bytes(model) == dense
    summary = quantize_model(model, "nf4")
    four_bit = sum(n // 2 + n // 64 + 4 * -(-n // 64 // 256) + 4 for n in (256 * 256, 256 * 128))
    assert (summary.bytes_before, summary.bytes_after) == (dense, four_bit + (256 + 2 * 128) * 4)
    assert summary.bytes_after == model_bytes(model)
    assert summary.bits_per_weight == pytest.approx(4.127, abs=0.001)
    plain = nn.Sequential(nn.Linear(256, 256))
    assert quantize_model(plain, "fp4", double_quant=False).bits_per_weight == 4.5


def test_summary_prints_as_a_table() -> None:
    text = str(quantize_model(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8)), skip=("1",)))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "weight", "before", "after"]
    assert lines[1].split() == ["0", "64", "x", "64", "16.4", "kB", "2.12", "kB"]
    assert lines[2].endswith("kept: named in skip")
    assert lines[3].startswith("whole model")
    assert lines[4].startswith("1 of 2 linear layers in nf4, blocks of 64, scales in 8 bits: 4.")


def test_head_tied_to_the_embedding_stays_tied() -> None:
    model = decoder(tied_head=True)
    summary = quantize_model(model)
    (head,) = (layer for layer in summary.layers if layer.kept)
    assert (head.name, head.kept) == ("head", "its weight is tied to embedding.weight")
    assert model.head.weight is model.embedding.weight


def test_layers_that_share_a_weight_share_it_in_4_bits() -> None:
    a, b = nn.Linear(64, 64), nn.Linear(64, 64)
    b.weight = a.weight
    model = nn.ModuleDict({"a": a, "b": b, "a_again": a})
    summary = quantize_model(model)
    assert model["a"].weight.packed.data_ptr() == model["b"].weight.packed.data_ptr()
    assert model["a"] is model["a_again"]
    assert model["a"].bias is a.bias
    assert model["b"].bias is b.bias
    assert summary.bytes_after == model["a"].weight.num_bytes + 2 * 64 * 4
    assert [layer.bytes_after > 0 for layer in summary.layers] == [True, False, False]


def test_layer_inside_a_block_that_is_used_twice_is_one_layer() -> None:
    block = nn.Sequential(nn.Linear(64, 64))
    model = nn.ModuleList([block, block])
    quantize_model(model)
    assert isinstance(model[0][0], Linear4bit)
    assert model[0][0] is model[1][0]


def test_weight_shared_with_a_skipped_layer_or_a_part_of_other_memory_is_kept() -> None:
    a, b, c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
    b.weight = a.weight
    summary = quantize_model(nn.ModuleDict({"a": a, "b": b, "c": c}), skip=["a"])
    assert [layer.kept for layer in summary.layers] == ["named in skip", "its weight is tied to a.weight", None]
    fused = torch.randn(128, 64)
    a.weight, b.weight = nn.Parameter(fused[:64]), nn.Parameter(fused[64:])
    summary = quantize_model(nn.ModuleDict({"a": a, "b": b, "c": nn.Linear(64, 64)}))
    assert [layer.kept for layer in summary.layers] == [
        "its weight is tied to b.weight",
        "its weight is tied to a.weight",
        None,
    ]


def test_layers_that_are_more_than_linear_are_kept_and_said() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    hooked = nn.Linear(64, 64)
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
    attention = nn.MultiheadAttention(64, 4)
    model = nn.ModuleDict({"scaled": Scaled(64, 64), "hooked": hooked, "normed": normed, "attention": attention})
    model["plain"] = ResidualLinear(64, 64)
    x = torch.randn(3, 1, 64)
    before = [model["scaled"](x), model["hooked"](x), model["normed"](x), attention(x, x, x)[0]]
    summary = quantize_model(model)
    assert {layer.name: layer.kept for layer in summary.layers} == {
        "scaled": "Scaled has a forward of its own",
        "hooked": "it has hooks, which would be lost",
        "normed": "its weight is computed from other parameters",
        "attention.out_proj": "others read its weight directly",
        "plain": None,
    }
    after = [model["scaled"](x), model["hooked"](x), model["normed"](x), attention(x, x, x)[0]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_skip_takes_full_names_and_last_parts() -> None:
    model = decoder()
    summary = quantize_model(model, skip=("mlp.down", "layers.1.mlp.up", "head"))
    kept = [layer.name for layer in summary.layers if layer.kept]
    assert kept == ["layers.0.mlp.down", "layers.1.mlp.up", "layers.1.mlp.down", "head"]


def test_one_layer_at_a_time_is_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a layer is quantised, the weights of those before it are gone."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive = []
    quantize = quantized_models.quantize_four_bit

    def watched(*args, **options):
        alive.append(sum(weight() is not None for weight in weights))
        return quantize(*args, **options)

    monkeypatch.setattr(quantized_models, "quantize_four_bit", watched)
    quantize_model(model)
    assert alive == [5, 4, 3, 2, 1]
    assert all(weight() is None for weight in weights)


def test_quantised_model_trains_what_is_left_and_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    model[0].bias.requires_grad_(False)
    quantize_model(model, compute_dtype=torch.float32)
    assert not any(module.training for module in model.modules())
    model(torch.randn(8, 64)).square().sum().backward()
    assert model[2].bias.grad is not None
    assert model[0].bias.grad is None


def test_state_dict_of_a_quantised_model_round_trips() -> None:
    model = decoder()
    quantize_model(model, skip=["head"])
    twin = decoder()
    quantize_model(twin, skip=["head"])
    twin.load_state_dict(model.state_dict())
    tokens = torch.randint(100, (1, 9))
    assert torch.equal(twin(tokens), model(tokens))


def test_unknown_names_in_skip_come_with_suggestions() -> None:
    model = decoder()
    with pytest.raises(ValueError, match=r"skip names 'lm_head', and no nn.Linear has that name; did you mean head"):
        quantize_model(model, skip=["lm_head"])
    with pytest.raises(ValueError, match=r"did you mean .*mlp.down"):
        quantize_model(model, skip=["mlp.dwon"])
    with pytest.raises(ValueError, match=r"skip names 'zzz', .* did you mean .*up"):
        quantize_model(model, skip=["zzz"])
    with pytest.raises(TypeError, match=r"skip must be names in a tuple or list, got the text 'head'"):
        quantize_model(model, skip="head")


def test_what_cannot_be_quantised_leaves_the_model_as_it_was() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))

    broken = model()
    with torch.no_grad():
        broken[1].weight[3, 5] = torch.nan
    wide = model()
    wide[1].double()
    empty = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64, device="meta"))
    for net, kind, message in (
        (broken, ValueError, r"1.weight has 1 of 4096 values .* nan at \(3, 5\)"),
        (wide, TypeError, r"1.weight must be one of .* got torch.float64"),
        (empty, ValueError, "1.weight is on the meta device"),
    ):
        with pytest.raises(kind, match=message):
            quantize_model(net)
        assert all(type(layer) is nn.Linear for layer in net)
    good = model()
    for options, kind, message in (
        ({"quant_type": "int8"}, ValueError, "quant_type must be one of"),
        ({"block_size": 48}, ValueError, "block_size must be one of"),
        ({"compute_dtype": torch.int8}, TypeError, "compute_dtype must be one of"),
        ({"skip": ["0", "1"]}, ValueError, r"all 2 are kept:\n    0: named in skip"),
    ):
        with pytest.raises(kind, match=message):
            quantize_model(good, **options)
    with pytest.raises(ValueError, match=r"no nn.Linear to quantise in Sequential: it has none"):
        quantize_model(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match=r"use Linear4bit.from_linear"):
        quantize_model(nn.Linear(64, 64))
