"""LoRA against layers written out, its life on a model, and what it refuses."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cme295lab.finetuning import lora
from cme295lab.finetuning.adapters import add_adapters
from cme295lab.finetuning.prefix import add_prefix
from cme295lab.quantization.linear4bit import Linear4bit
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.decoding.generation import generate
from tests.finetuning.tuned_models import CONFIGS, LEARNED, model_of, tokens_of

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"rank": 3, "alpha": 5.0, "targets": ("query", "down")},
    "rs": {"rank": 4, "targets": "all-linear", "rs_lora": True},
    "patterns": {"rank": 4, "targets": ("query", "up", "head"), "rank_pattern": {"query": 2, "layers.1.mlp.up": 5},
                 "alpha_pattern": {"head": 3.0, "layers.0.attention.query": 7.0}},
    "embedding": {"rank": 3, "targets": ("embedding", "value")},
    "dora": {"rank": 3, "targets": ("query", "mlp.up", "head"), "dora": True},
}  # fmt: skip


def biased_model(config: ModelConfig) -> DecoderLM:
    """`model_of`, with biases that are not zero."""
    model = model_of(config)
    torch.manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.3)
    return model


def randomize(model: nn.Module, adapter: str | None = None, seed: int = 5, std: float = 0.4) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lora.lora_parameters(model, adapter).items():
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
            else:
                parameter.normal_(std=std)


def marks(model: nn.Module) -> dict[str, Any]:
    """State, requires_grad and hooks of a model, to compare."""
    return {
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "requires_grad": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": {name: len(module._forward_hooks) for name, module in model.named_modules()},
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = marks(model)
    assert after["requires_grad"] == before["requires_grad"]
    assert after["hooks"] == before["hooks"]
    assert after["state"].keys() == before["state"].keys()
    assert all(torch.equal(after["state"][name], value) for name, value in before["state"].items())


def put_dense(model: nn.Module, base: nn.Module, options: dict[str, Any], adapter: str = "default") -> None:
    """W of each target of `base` becomes the dense one of `model`'s adapter, a scalar at a time where it matters."""
    parameters = lora.lora_parameters(model, adapter)
    for row in lora.summarize(model, adapter).rows:
        place = f"lora.matrices.{row.path.replace('.', '/')}."
        a, b = (parameters[f"{place}lora_{part}.{adapter}"].detach() for part in "AB")
        alpha = options.get("alpha", 16.0)
        for name, value in sorted(options.get("alpha_pattern", {}).items(), key=lambda item: len(item[0])):
            alpha = value if f".{row.path}".endswith(f".{name}") else alpha
        scale = alpha / (row.rank**0.5 if options.get("rs_lora") else row.rank)
        delta = sum(scale * torch.outer(b[:, i], a[i]) for i in range(row.rank))
        module = base.get_submodule(row.path)
        weight = module.weight.detach() + (delta.T if isinstance(module, nn.Embedding) else delta)
        if options.get("dora"):
            length = weight.square().sum(1).sqrt()
            weight = parameters[f"{place}lora_magnitude.{adapter}"].detach()[:, None] * weight / length[:, None]
        module.weight = nn.Parameter(weight)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_outputs_equal_a_model_with_dense_weights(config: Any, options: dict[str, Any]) -> None:
    model, dense, tokens = biased_model(config), biased_model(config), tokens_of()
    base = model(tokens)
    summary = lora.add_lora(model, **options)
    assert torch.allclose(model(tokens), base, rtol=0, atol=1e-13 if options.get("dora") else 0)
    assert summary.num_trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    randomize(model)
    put_dense(model, dense, options)
    assert torch.allclose(model(tokens), dense(tokens), rtol=0, atol=1e-10)
    assert (dense(tokens) - base).abs().max() > 0.1
    for path, delta in lora.delta_weights(model).items():
        if not options.get("dora"):
            assert torch.allclose(base_weight(model, path) + delta, base_weight(dense, path), rtol=0, atol=1e-12)
    lora.set_adapter(model, None)
    assert torch.equal(model(tokens), base)


def base_weight(model: nn.Module, path: str) -> Tensor:
    return model.get_submodule(path).weight.detach()


@pytest.mark.parametrize("seed", range(8))
def test_any_shape_gives_the_dense_output_and_gradients(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, columns, rank, *batch = torch.randint(1, 9, (6,), generator=generator).tolist()
    rank = min(rank, rows, columns)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(columns, rows, bias=seed % 2 == 0)).double()
    lora.add_lora(model, rank=rank, alpha=3, targets=("0",), rs_lora=seed % 3 == 0)
    randomize(model, std=1.0)
    a, b = (p for p in lora.lora_parameters(model).values())
    shape = batch[: seed % 4]
    x = torch.randn(*shape, columns, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(*shape, rows, dtype=torch.float64)
    ours = torch.autograd.grad((model(x) * weights).sum(), (x, a, b))
    scale = 3 / (rank**0.5 if seed % 3 == 0 else rank)
    dense = x @ (model[0].weight + scale * b @ a).T + (model[0].bias if seed % 2 == 0 else 0)
    assert torch.allclose(model(x), dense, rtol=0, atol=1e-11)
    for mine, expected in zip(ours, torch.autograd.grad((dense * weights).sum(), (x, a, b)), strict=True):
        assert torch.allclose(mine, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "dora"])
def test_training_leaves_the_base_alone_and_removing_gives_it_back(dora: bool) -> None:
    model, tokens = model_of(LEARNED), tokens_of()
    model.norm.weight.requires_grad_(False)
    before, base = marks(model), model(tokens).detach()
    lora.add_lora(model, rank=3, targets=("all-linear",), dora=dora)
    optimizer = torch.optim.SGD(lora.lora_parameters(model).values(), lr=0.1)
    losses = []
    for _ in range(5):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad.abs().max() > 0 for p in lora.lora_parameters(model).values())
    assert all(p.grad is None for name, p in model.named_parameters() if not name.startswith("lora."))
    lora.remove_lora(model)
    assert torch.equal(model(tokens), base)
    assert_unchanged(model, before)


def test_dropout_acts_in_training_alone_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4)).double().eval()
    lora.add_lora(model, rank=2, targets=("0",), dropout=0.5)
    randomize(model)
    x = torch.randn(1, 6, dtype=torch.float64)
    plain = model(x).detach()
    assert torch.equal(model(x), plain)
    model.train()
    many = model(x.expand(20_000, 6)).detach()
    assert many.std(0).min() > 0.05
    assert torch.allclose(many.mean(0), plain[0], rtol=0, atol=5 * float(many.std(0).max()) / 20_000**0.5)
    assert torch.equal(model.eval()(x), plain)
    model.train()
    lora.add_lora(model, rank=2, targets=("0",), dropout=0.5, adapter="late")
    assert all(module.training for module in model.modules())


def test_a_copy_has_adapters_of_its_own() -> None:
    model, tokens = model_of(), tokens_of()
    base = model(tokens).detach()
    lora.add_lora(model, rank=2)
    randomize(model)
    copied, before = copy.deepcopy(model), model(tokens).detach()
    randomize(model, seed=9)
    assert torch.equal(copied(tokens), before)
    assert not torch.equal(model(tokens), before)
    lora.remove_lora(copied)
    assert torch.equal(copied(tokens), base)
    assert not torch.equal(model(tokens), base)


def test_checkpointed_layers_give_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    lora.add_lora(model, rank=2, targets="all-linear")
    randomize(model)
    x = torch.randn(4, 5, dtype=torch.float64)
    parameters = list(lora.lora_parameters(model).values())
    plain = torch.autograd.grad(model(x).square().sum(), parameters)
    again = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    for mine, expected in zip(torch.autograd.grad(again.square().sum(), parameters), plain, strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dora", [False, True], ids=["plain", "dora"])
def test_a_base_in_four_bits_gives_the_gradients_of_its_dequantised_self(dora: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 12)
    packed = Linear4bit.from_linear(linear, compute_dtype=torch.float32)
    with torch.no_grad():
        linear.weight.copy_(packed.weight.dequantize())
    models = [nn.Sequential(packed), nn.Sequential(linear)]
    x, results = torch.randn(5, 64), []
    for model in models:
        summary = lora.add_lora(model, rank=4, targets=("0",), dora=dora)
        assert summary.num_base == 64 * 12 + 12
        assert summary.num_trainable == lora.num_lora_parameters(model, rank=4, targets=("0",)) + 12 * dora
        randomize(model)
        y = model(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(lora.lora_parameters(model).values()))))
    for mine, expected in zip(*results, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="4 bits"):
        lora.merge(models[0])


def test_generating_with_a_cache_equals_reading_everything_again() -> None:
    model = model_of()
    lora.add_lora(model, rank=4, targets=("all-linear", "embedding"))
    randomize(model)
    row = [1, 2, 3]
    for token in generate(model, [row], max_new_tokens=6).tokens[0]:
        assert int(model(torch.tensor([row]))[0, -1].argmax()) == token
        row.append(token)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "rank-0": ({"rank": 0}, ValueError, "rank must be an int"),
    "rank-bool": ({"rank": True}, ValueError, "rank must be an int"),
    "rank-large": ({"rank": 13}, ValueError, "shorter side of layers.0.attention.value"),
    "alpha-0": ({"alpha": 0}, ValueError, "alpha must be"),
    "alpha-inf": ({"alpha": float("inf")}, ValueError, "alpha must be"),
    "alpha-nan": ({"alpha": float("nan")}, ValueError, "alpha must be"),
    "alpha-huge": ({"alpha": 10**400}, ValueError, "alpha must be"),
    "alpha-bool": ({"alpha": True}, ValueError, "alpha must be"),
    "dropout-1": ({"dropout": 1.0}, ValueError, "dropout must be"),
    "dropout-text": ({"dropout": "0.1"}, ValueError, "dropout must be"),
    "init": ({"init": "pissa"}, ValueError, "init must be"),
    "dtype": ({"dtype": "int8"}, ValueError, "dtype must be"),
    "suggested": ({"targets": ("quary",)}, ValueError, "did you mean 'query'"),
    "part-of-word": ({"targets": ("uery",)}, ValueError, "no layer has that name"),
    "text": ({"targets": "query"}, TypeError, r"\('query',\)"),
    "empty": ({"targets": ()}, ValueError, "targets is empty"),
    "number": ({"targets": (0,)}, TypeError, "targets must hold names"),
    "rank-pattern": ({"rank_pattern": {"up": 2}}, ValueError, "none of the targets"),
    "alpha-pattern": ({"alpha_pattern": {"nothing": 2}}, ValueError, "none of the targets"),
    "rank-in-pattern": ({"rank_pattern": {"query": 0}}, ValueError, "rank_pattern"),
    "alpha-in-pattern": ({"alpha_pattern": {"query": -1.0}}, ValueError, "alpha_pattern"),
    "dora-embedding": ({"targets": ("embedding",), "dora": True}, ValueError, "dora is for linear"),
    **{
        f"name-{name}": ({"adapter": name}, ValueError, "adapter must")
        for name in ("a/b", "..", "a.b", "", "keys", "1a", "training", "_parameters", "_keys", "a b")
    },
}


@pytest.mark.parametrize(("options", "error", "text"), BAD.values(), ids=[f"{name!r}" for name in BAD])
def test_bad_input_says_what_is_wrong_and_changes_nothing(options: dict, error: type[Exception], text: str) -> None:
    model = model_of()
    before = marks(model)
    with pytest.raises(error, match=text):
        lora.add_lora(model, **options)
    assert_unchanged(model, before)
    lora.add_lora(model, adapter="first")
    before = marks(model)
    with pytest.raises(error, match=text):
        lora.add_lora(model, **options)
    assert_unchanged(model, before)


def test_one_method_at_a_time() -> None:
    model = model_of()
    lora.add_lora(model, rank=2)
    with pytest.raises(ValueError, match="already"):
        lora.add_lora(model, rank=2)
    for add in (lambda: add_prefix(model, 3), lambda: add_adapters(model, 4)):
        with pytest.raises(ValueError, match="remove it first"):
            add()
    lora.remove_lora(model)
    for attach in (lambda m: add_prefix(m, 3), lambda m: add_adapters(m, 4)):
        other = model_of()
        attach(other)
        with pytest.raises(ValueError, match="remove it first"):
            lora.add_lora(other)


WITHOUT: dict[str, Callable[[nn.Module], object]] = {
    "set": lambda m: lora.set_adapter(m, None), "remove": lora.remove_lora, "merge": lora.merge,
    "unmerge": lora.unmerge, "names": lora.adapter_names, "parameters": lora.lora_parameters,
    "groups": lambda m: lora.lora_plus_groups(m, learning_rate=1e-3),
}  # fmt: skip


@pytest.mark.parametrize("act", WITHOUT.values(), ids=WITHOUT.keys())
def test_a_model_without_adapters_is_told(act: Callable[[nn.Module], object]) -> None:
    with pytest.raises(ValueError, match="no LoRA adapters"):
        act(nn.Sequential(nn.Linear(2, 2)))


def test_layers_whose_hooks_would_not_run_are_no_targets() -> None:
    attention = nn.MultiheadAttention(8, 2)
    with pytest.raises(ValueError, match="no linear layers"):
        lora.add_lora(attention, rank=2, targets="all-linear")
    with pytest.raises(ValueError, match="no linear layers"):
        lora.add_lora(nn.Linear(4, 4), rank=2, targets="all-linear")


def test_lora_plus_gives_b_the_larger_rate() -> None:
    model = model_of()
    lora.add_lora(model, rank=2, targets=("query", "embedding"))
    slow, fast = lora.lora_plus_groups(model, learning_rate=1e-3, ratio=8)
    names = {id(p): name for name, p in lora.lora_parameters(model).items()}
    assert (slow["lr"], fast["lr"]) == (1e-3, 8e-3)
    assert sorted(names[id(p)] for p in fast["params"]) == [
        f"lora.matrices.layers/{i}/attention/query.lora_B.default" for i in range(2)
    ]
    assert {names[id(p)] for p in [*slow["params"], *fast["params"]]} == set(names.values())
    assert len(slow["params"]) == 4
    torch.optim.AdamW([slow, fast])
    for options in ({"learning_rate": 0}, {"learning_rate": 1e-3, "ratio": -1}, {"learning_rate": True}):
        with pytest.raises(ValueError, match="must be a positive number"):
            lora.lora_plus_groups(model, **options)


@pytest.mark.parametrize("name", ["values", "keys", "pop"])
def test_layers_may_be_called_what_containers_have_names_for(name: str) -> None:
    model = nn.Module()
    model.add_module(name, nn.Linear(3, 4))
    summary = lora.add_lora(model, rank=2, targets=(name,))
    assert [row.path for row in summary.rows] == [name]
    assert set(lora.delta_weights(model)) == {name}
    lora.delete_adapter(model, "default")
    assert not model.get_submodule(name)._forward_hooks
