"""Adapters against a layer written out, published counts, and a base that stays what it is."""

import copy
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cme295lab.finetuning.adapters import (
    AdapterOptions,
    Adapters,
    add_adapters,
    enable_adapters,
    get_adapters,
    load_adapters,
    num_adapter_parameters,
    remove_adapters,
    save_adapters,
)
from cme295lab.finetuning.attached import save_attached
from cme295lab.finetuning.prefix import add_prefix
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.decoding.generation import generate
from tests.finetuning.tuned_models import CONFIGS, LEARNED, model_of, tokens_of

KINDS = {
    "houlsby": {"kind": "houlsby"},
    "houlsby-mlp": {"kind": "houlsby", "places": ("mlp",)},
    "parallel": {"kind": "parallel"},
    "parallel-both": {"kind": "parallel", "places": ("attention", "mlp"), "scale": 0.5},
}


def through(adapter: nn.Module, x: Tensor) -> Tensor:
    inner = x @ adapter.down.weight.T + adapter.down.bias
    return 0.5 * inner * (1 + torch.erf(inner / 2**0.5)) @ adapter.up.weight.T + adapter.up.bias


def explicit_logits(model: DecoderLM, tokens: Tensor, kind: str, places: tuple[str, ...], scale: float) -> Tensor:
    """A base without hooks, and the adapters of `model` where the paper has them."""
    base, layers = model_of(model.config), get_adapters(model).layers
    shared = base.positions(tokens.shape[1], like=base.embedding.weight)
    x = base.embedding(tokens)
    if base.position_embedding is not None:
        x = x + base.position_embedding.weight[: tokens.shape[1]]
    for layer, adapters in zip(base.layers, layers):
        for place, part, norm in (
            ("attention", lambda n, layer=layer: layer.attention(n, shared), layer.attention_norm),
            ("mlp", layer.mlp, layer.mlp_norm),
        ):
            normed = norm(x)
            y = part(normed)
            if place in places:
                y = y + (through(adapters[place], y) if kind == "houlsby" else scale * through(adapters[place], normed))
            x = x + y
    return base.head(base.norm(x))


def randomize(model: DecoderLM) -> None:
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in get_adapters(model).parameters():
            parameter.normal_(std=0.4)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_adapters_equal_a_layer_written_out(config: ModelConfig, options: dict) -> None:
    model, tokens = model_of(config), tokens_of()
    base = model(tokens)
    add_adapters(model, 5, **options)
    assert torch.equal(model(tokens), base)  # up starts at zero
    randomize(model)
    made = get_adapters(model).options
    expected = explicit_logits(model, tokens, made.kind, made.places, made.scale)
    assert torch.allclose(model(tokens), expected, rtol=0, atol=1e-11)
    assert (expected - base).abs().max() > 0.1
    enable_adapters(model, False)
    assert torch.equal(model(tokens), base)


def test_start_near_the_identity_as_in_the_paper() -> None:
    model, tokens = model_of(), tokens_of()
    base = model(tokens)
    add_adapters(model, 5, up_std=0.01)
    difference = (model(tokens) - base).abs().max().item()
    assert 0 < difference < 1e-2
    adapter = get_adapters(model).layers[0].get_submodule("attention")
    deviations = [linear.weight.std().item() for linear in (adapter.down, adapter.up)]  # of 120 numbers each
    assert deviations == pytest.approx([0.01, 0.01], rel=0.25)


def test_scales_and_places_that_are_not_given() -> None:
    """He et al.: a parallel adapter stands beside the MLP, with scale 4."""
    for kind, expected in (("houlsby", (1.0, ("attention", "mlp"))), ("parallel", (4.0, ("mlp",)))):
        model = model_of()
        add_adapters(model, 5, kind=kind)
        options = get_adapters(model).options
        assert (options.scale, options.places) == expected


def test_published_counts() -> None:
    bert_large = {8: 0.25, 64: 1.89, 256: 7.53}  # per cent of 335,141,888
    for bottleneck, share in bert_large.items():
        count = num_adapter_parameters(dim=1024, bottleneck=bottleneck, num_layers=24)
        assert round(100 * count / 335_141_888, 2) == share
    assert num_adapter_parameters(dim=12_288, bottleneck=1, num_layers=96) == 192 * (2 * 12_288 + 12_288 + 1)
    assert round(num_adapter_parameters(dim=12_288, bottleneck=1, num_layers=96) / 1e6, 1) == 7.1
    assert round(num_adapter_parameters(dim=12_288, bottleneck=8, num_layers=96) / 1e6, 1) == 40.1


@pytest.mark.parametrize(("kind", "per_layer"), [("houlsby", 2), ("parallel", 1)])
def test_counts_of_a_model(kind: str, per_layer: int) -> None:
    table = add_adapters(model_of(), 5, kind=kind)
    assert table.num_trainable == num_adapter_parameters(dim=24, bottleneck=5, num_layers=2, per_layer=per_layer)
    assert table.num_trainable == 2 * per_layer * (2 * 24 * 5 + 24 + 5)
    assert all(name.startswith("bottleneck_adapters.") for name, _ in table.rows)


@pytest.mark.parametrize("kind", ["houlsby", "parallel"])
def test_training_changes_adapters_alone_and_removing_gives_the_base_back(kind: str) -> None:
    model, tokens = model_of(LEARNED), tokens_of()
    model.norm.weight.requires_grad_(False)
    marks = {name: p.requires_grad for name, p in model.named_parameters()}
    before, base = copy.deepcopy(model.state_dict()), model(tokens).detach()
    add_adapters(model, 3, kind=kind)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2)
    losses = []
    for _ in range(6):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad.abs().max() > 0 for p in get_adapters(model).parameters())
    assert (model(tokens) - base).abs().max() > 1e-3
    remove_adapters(model)
    assert torch.equal(model(tokens), base)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == marks
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_generate_equals_reading_everything_again() -> None:
    model = model_of()
    add_adapters(model, 4)
    randomize(model)
    row = [1, 2, 3]
    new = generate(model, [row], max_new_tokens=6).tokens[0]
    for token in new:
        assert int(model(torch.tensor([row]))[0, -1].argmax()) == token
        row.append(token)


@torch.no_grad()
def test_a_copy_has_adapters_of_its_own() -> None:
    model, tokens = model_of(), tokens_of()
    base = model(tokens)
    add_adapters(model, 4)
    randomize(model)
    copied, before = copy.deepcopy(model), model(tokens)
    for parameter in get_adapters(model).parameters():
        parameter.zero_()
    assert torch.equal(model(tokens), base)
    assert torch.equal(copied(tokens), before)
    remove_adapters(copied)
    assert torch.equal(copied(tokens), base)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS.keys())
@torch.no_grad()
def test_file_gives_the_same_outputs(tmp_path: Path, options: dict) -> None:
    model, tokens, other = model_of(), tokens_of(), model_of()
    add_adapters(model, 4, **options)
    randomize(model)
    save_adapters(tmp_path / "a.safetensors", model)
    table = load_adapters(tmp_path / "a.safetensors", other)
    assert torch.equal(other(tokens), model(tokens))
    assert table.num_trainable == sum(p.numel() for p in get_adapters(model).parameters())


def test_file_with_a_waist_that_is_none_is_refused(tmp_path: Path) -> None:
    """A consistent file of adapters as wide as the model, which `add_adapters` would not make."""
    model = model_of()
    adapters = Adapters(AdapterOptions(bottleneck=24, kind="parallel", places=("mlp",)), dim=24, num_layers=2)
    save_attached(tmp_path / "a", adapters, method="adapters", options=asdict(adapters.options), model=model)
    with pytest.raises(ValueError, match=r"bottleneck must be an int from 1 to 23 \(below the model's dim\), got 24"):
        load_adapters(tmp_path / "a", model)


def test_file_for_another_base_or_method_is_refused(tmp_path: Path) -> None:
    model = model_of()
    add_adapters(model, 4)
    save_adapters(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match="another base"):
        load_adapters(tmp_path / "a.safetensors", model_of(seed=1))
    with pytest.raises(ValueError, match="remove it first"):
        load_adapters(tmp_path / "a.safetensors", model)
    with pytest.raises(ValueError, match="remove it first"):
        add_prefix(model, 3)


def test_bad_input_says_what_is_wrong_and_changes_nothing() -> None:
    model = model_of()
    for bottleneck in (0, -3, 24, 1000, True, 1.5):
        with pytest.raises(ValueError, match="bottleneck must be an int"):
            add_adapters(model, bottleneck)
    for options, text in (
        ({"kind": "serial"}, "kind must be"),
        ({"places": ("norm",)}, "places must be"),
        ({"places": ()}, "places must be"),
        ({"scale": 2.0}, "scale is of parallel"),
        ({"kind": "parallel", "scale": 0.0}, "scale must be"),
        ({"up_std": -1.0}, "up_std must be"),
    ):
        with pytest.raises(ValueError, match=text):
            add_adapters(model, 4, **options)
    with pytest.raises(ValueError, match="no adapters"):
        remove_adapters(model)
    with pytest.raises(ValueError, match="bottleneck"):
        num_adapter_parameters(dim=4, bottleneck=0, num_layers=1)
    assert all(p.requires_grad for p in model.parameters())
    assert not hasattr(model, "bottleneck_adapters")
