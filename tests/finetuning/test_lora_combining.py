"""Several adapters on one base, and adapters in its weights: sums, rows of a batch, merging and its way back."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cme295lab.finetuning import lora
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoding.generation import generate
from tests.finetuning.test_lora_adapting import VARIANTS, assert_unchanged, marks, randomize
from tests.finetuning.tuned_models import LEARNED, ROPE, model_of, tokens_of

MOE = ModelConfig(vocab_size=31, num_layers=2, dim=24, mlp_dim=20, max_seq=24, num_heads=4,
                  num_experts=3, experts_per_token=2)  # fmt: skip


def two_adapters(config: ModelConfig = ROPE) -> nn.Module:
    """"a" on query and up, rank 3; "b" on value and up, rank 2, rsLoRA; "b" is active."""
    model = model_of(config)
    lora.add_lora(model, rank=3, alpha=5, targets=("query", "up"), adapter="a")
    randomize(model, seed=1)
    lora.add_lora(model, rank=2, targets=("value", "up"), rs_lora=True, adapter="b")
    randomize(model, seed=2)
    return model


def outputs(model: nn.Module, tokens: Tensor) -> dict[str | None, Tensor]:
    found = {}
    for name in (None, *lora.adapter_names(model)):
        lora.set_adapter(model, name)
        found[name] = model(tokens).detach()
    return found


def test_switching() -> None:
    model, tokens = two_adapters(), tokens_of()
    assert (lora.active_adapter(model), lora.adapter_names(model)) == ("b", ("a", "b"))
    found = outputs(model, tokens)
    assert torch.equal(found[None], model_of()(tokens))
    assert not torch.allclose(found["a"], found["b"])
    lora.set_adapter(model, "a")
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == set(lora.lora_parameters(model, "a"))
    assert not learning & set(lora.lora_parameters(model, "b"))
    lora.delete_adapter(model, "a")
    assert lora.active_adapter(model) is None
    assert torch.equal(model(tokens), found[None])
    lora.set_adapter(model, "b")
    assert torch.equal(model(tokens), found["b"])
    assert len(model.layers[0].attention.query._forward_hooks) == 0
    for act in (lora.set_adapter, lora.delete_adapter, lora.merge, lora.lora_parameters):
        with pytest.raises(ValueError, match="no adapter 'a'; there are b"):
            act(model, "a")


@torch.no_grad()
def test_a_weighted_sum_is_the_sum_of_the_updates() -> None:
    model, tokens = two_adapters(), tokens_of()
    deltas = {name: lora.delta_weights(model, name) for name in "ab"}
    summary = lora.add_weighted_adapter(model, "sum", {"a": 0.7, "b": -1.5})
    assert lora.active_adapter(model) == "b"
    assert {row.path.rpartition(".")[2]: row.rank for row in summary.rows} == {"query": 3, "up": 5, "value": 2}
    dense = model_of()
    for path, delta in lora.delta_weights(model, "sum").items():
        expected = sum(w * deltas[name][path] for name, w in (("a", 0.7), ("b", -1.5)) if path in deltas[name])
        assert torch.allclose(delta, expected, rtol=0, atol=1e-13)
        dense.get_submodule(path).weight += expected
    lora.set_adapter(model, "sum")
    assert torch.allclose(model(tokens), dense(tokens), rtol=0, atol=1e-11)
    before = model(tokens)
    lora.set_adapter(model, "a")
    randomize(model, seed=7)  # the sum holds copies
    lora.set_adapter(model, "sum")
    assert torch.equal(model(tokens), before)


def test_bad_sums_are_refused() -> None:
    model = two_adapters()
    lora.add_lora(model, rank=2, dora=True, adapter="d")
    before = marks(model)
    for weights, text in (({}, "empty"), ({"x": 1.0}, "no adapter 'x'"), ({"a": float("nan")}, "finite"),
                          ({"a": True}, "finite"), ({"a": 1.0, "d": 1.0}, "is DoRA")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            lora.add_weighted_adapter(model, "sum", weights)
    with pytest.raises(ValueError, match="already"):
        lora.add_weighted_adapter(model, "a", {"b": 1.0})
    assert_unchanged(model, before)


@pytest.mark.parametrize("rows", [("a", "b", None), ("b", "b", "a"), (None, None, None), ("b", "a", None, "b", "a")])
def test_each_row_is_as_if_alone(rows: tuple[str | None, ...]) -> None:
    model, tokens = two_adapters(), tokens_of(rows=len(rows))
    lora.add_lora(model, rank=2, targets=("embedding",), adapter="e")
    randomize(model, seed=3)
    rows = tuple("e" if name == "b" and i == 1 else name for i, name in enumerate(rows))
    alone = outputs(model, tokens)
    lora.set_adapter(model, "a")
    with lora.adapters_per_example(model, rows):
        together = model(tokens)
        for i, name in enumerate(rows):
            assert torch.allclose(together[i], alone[name][i], rtol=0, atol=1e-12)
    assert torch.equal(model(tokens), alone["a"])
    if "a" in rows:
        together.sum().backward()
        assert all(p.grad is not None for p in lora.lora_parameters(model, "a").values())
        assert all(p.grad is None for name in "be" for p in lora.lora_parameters(model, name).values())


def test_rows_keep_their_adapters_in_generation() -> None:
    model, prompts, rows = two_adapters(), [[1, 2, 3], [4, 5, 6], [1, 2, 3]], ("a", None, "b")
    with lora.adapters_per_example(model, rows):
        together = generate(model, prompts, max_new_tokens=6).tokens
    for name, prompt, expected in zip(rows, prompts, together):
        lora.set_adapter(model, name)
        assert generate(model, [prompt], max_new_tokens=6).tokens[0] == expected


def test_bad_rows_are_refused() -> None:
    model, tokens = two_adapters(), tokens_of()
    with pytest.raises(ValueError, match="no adapter 'x'"), lora.adapters_per_example(model, ["a", "x", None]):
        pass
    wrong = pytest.raises(ValueError, match=r"has 2 names, and .* a batch of 3 rows")
    with wrong, lora.adapters_per_example(model, ["a", "b"]):
        model(tokens)
    expected = outputs(model, tokens)["b"]
    assert torch.equal(model(tokens), expected)  # what was raised has not left rows behind
    acts = (lora.remove_lora, lora.merge, lambda m: lora.delete_adapter(m, "a"))
    with lora.adapters_per_example(model, ["a", "b", None]):
        for act in acts:
            with pytest.raises(ValueError, match="adapters_per_example is on"):
                act(model)
    experts = model_of(MOE)
    lora.add_lora(experts, rank=2, targets="all-linear")
    with pytest.raises(ValueError, match="an expert gets tokens"), lora.adapters_per_example(experts, ["default"]):
        pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["plain", "rs", "embedding", "dora"])
@torch.no_grad()
def test_merging_and_back(name: str, dtype: torch.dtype) -> None:
    model, tokens = model_of().to(dtype), tokens_of()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lora.add_lora(model, **VARIANTS[name])
    randomize(model, std=0.2)
    beside = model(tokens)
    expected = {p: before[f"{p}.weight"] + d for p, d in lora.delta_weights(model).items()}
    lora.merge(model)
    assert lora.is_merged(model)
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 0.15}[dtype]
    assert (model(tokens) - beside).abs().max() <= tolerance * beside.abs().max()
    if name != "dora":
        for path, weight in expected.items():
            assert torch.equal(model.get_submodule(path).weight, weight.to(dtype))
    lora.unmerge(model)
    assert not lora.is_merged(model)
    assert torch.equal(model(tokens), beside)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    lora.remove_lora(model)
    assert model.state_dict().keys() == before.keys()


WHILE_MERGED: dict[str, Callable[[nn.Module], object]] = {
    "switch": lambda m: lora.set_adapter(m, None), "add": lambda m: lora.add_lora(m, adapter="c"),
    "delete": lambda m: lora.delete_adapter(m, "b"), "save": lambda m: lora.save_adapter("nowhere", m),
    "remove": lora.remove_lora, "merge": lora.merge, "load": lambda m: lora.load_adapter("nowhere", m, "c"),
    "rows": lambda m: lora.adapters_per_example(m, ["a"]).__enter__(),
    "sum": lambda m: lora.add_weighted_adapter(m, "c", {"a": 1.0}),
    "other": lambda m: lora.merge_and_remove(m, "b"),
}  # fmt: skip


def test_while_merged_nothing_else_is_done() -> None:
    model = two_adapters()
    lora.set_adapter(model, "a")
    lora.merge(model)
    before = marks(model)
    for act in WHILE_MERGED.values():
        with pytest.raises(ValueError, match="adapter 'a' is merged into the weights"):
            act(model)
        assert_unchanged(model, before)
    lora.unmerge(model)
    with pytest.raises(ValueError, match="nothing is merged"):
        lora.unmerge(model)


def test_merged_for_good_is_a_plain_model() -> None:
    model, tokens = two_adapters(), tokens_of()
    expected = outputs(model, tokens)["a"]
    copied = copy.deepcopy(model)
    lora.merge_and_remove(model, "a")
    lora.merge(copied, "a")
    lora.merge_and_remove(copied)
    for plain in (model, copied):
        assert torch.allclose(plain(tokens), expected, rtol=0, atol=1e-11)
        assert plain.state_dict().keys() == model_of().state_dict().keys()
        assert not any(module._forward_hooks for module in plain.modules())
        assert all(p.requires_grad for p in plain.parameters())


def test_a_copy_of_a_merged_model_finds_its_own_way_back() -> None:
    model, tokens = two_adapters(), tokens_of()
    beside = model(tokens)
    lora.merge(model)
    copied = copy.deepcopy(model)
    lora.unmerge(copied)
    assert lora.is_merged(model)
    assert torch.equal(copied(tokens), beside)
    lora.unmerge(model)
    assert torch.equal(model(tokens), beside)


@pytest.mark.parametrize("target", ["head", "embedding"])
def test_shared_weights_and_infinite_sums_are_refused(target: str) -> None:
    model = model_of(LEARNED)
    lora.add_lora(model, rank=2, targets=(target, "query"))
    randomize(model)
    before = marks(model)
    with pytest.raises(ValueError, match=f"{target} shares its weight with"):
        lora.merge(model)
    assert_unchanged(model, before)
    model = model_of()
    lora.add_lora(model, rank=2, targets=("query", "up"))
    with torch.no_grad():
        lora.lora_parameters(model)["lora.matrices.layers/1/mlp/up.lora_B.default"].fill_(float("inf"))
    before = marks(model)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up gives NaN or infinity"):
        lora.merge(model)
    assert_unchanged(model, before)
    assert not lora.is_merged(model)
