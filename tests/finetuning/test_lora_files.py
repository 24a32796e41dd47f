"""PEFT's files, both ways against `peft` itself, and every way of tampering that we thought of."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cme295lab.finetuning import lora
from cme295lab.finetuning.lora import files
from tests.finetuning.test_lora_adapting import assert_unchanged, biased_model, marks, randomize
from tests.finetuning.tuned_models import LEARNED, ROPE, model_of, tokens_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYERS = {"q": "query", "up": "up", "embedding": "embedding", "head": "head"}
LLAMA_LAYERS = {"q": "q_proj", "up": "up_proj", "embedding": "embed_tokens", "head": "lm_head"}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"where": "q up"},
    "rs-head": {"where": "q head", "rs": True},
    "dora": {"where": "q up", "dora": True},
    "patterns": {"where": "q up", "ranks": {"q": 2}, "alphas": {"up": 3}, "rs": True},
    "embedding": {"where": "q embedding"},
}


def llama(tied: bool) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         intermediate_size=44, vocab_size=67, tie_word_embeddings=tied,
                         initializer_range=0.3)  # fmt: skip
    return LlamaForCausalLM(config).eval()


BASES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: llama(False), "llama-tied": lambda: llama(True),
    "ours": lambda: model_of(ROPE).float(), "ours-biases-tied": lambda: biased_model(LEARNED).float(),
}  # fmt: skip


def names_of(base: str) -> dict[str, str]:
    return LLAMA_LAYERS if base.startswith("llama") else LAYERS


def logits(model: nn.Module) -> Tensor:
    if isinstance(model, peft.PeftModel):
        model = model.base_model.model
    output = model(tokens_of())
    return output if isinstance(output, Tensor) else output.logits


def key_of(name: str) -> str:
    """A parameter's name in `peft` or here -> the name in a file, but for its beginning."""
    parts = name.split(".")
    if parts[0] == "lora":
        return f"{parts[2].replace('/', '.')} {parts[3]}"
    place = name.removeprefix("base_model.model.").split(".lora_")[0]
    return f"{place} lora_{name.split('.lora_')[1].split('.')[0].replace('embedding_', '').replace('_vector', '')}"


def gradients(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    y = logits(model)
    (y * torch.randn_like(y)).sum().backward()
    found = {key_of(n): p.grad for n, p in model.named_parameters() if "lora" in n and p.grad is not None}
    return {name.replace("lora_magnitude.default", "lora_magnitude"): value for name, value in found.items()}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.detach().abs().max()))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("base", BASES)
@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
def test_files_go_both_ways_with_peft(tmp_path: Path, base: str, variant: dict[str, Any]) -> None:
    names, make = names_of(base), BASES[base]
    options = {"r": 4, "lora_alpha": 6, "target_modules": [names[key] for key in variant["where"].split()],
               "rank_pattern": {names[k]: v for k, v in variant.get("ranks", {}).items()},
               "alpha_pattern": {names[k]: v for k, v in variant.get("alphas", {}).items()}}  # fmt: skip
    config = peft.LoraConfig(
        **options, use_rslora=variant.get("rs", False), use_dora=variant.get("dora", False), init_lora_weights=False
    )
    theirs = peft.get_peft_model(make(), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    extra = [key for key in load_file(tmp_path / "theirs" / WEIGHTS) if ".lora_" not in key]
    touches_ends = bool({"head", "embedding"} & set(variant["where"].split()))
    assert bool(extra) == (base.startswith("llama") and touches_ends)  # PEFT adds the base's own weights there
    ours = make()
    before = logits(ours).detach()
    summary = lora.load_adapter(tmp_path / "theirs", ours, trainable=True)
    assert_close(logits(ours), logits(theirs))
    assert (logits(ours) - before).abs().max() > 0.05
    assert summary.num_trainable == sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    mine, expected = gradients(ours), gradients(theirs)
    assert mine.keys() == expected.keys()
    assert len(mine) == len(lora.lora_parameters(ours))
    for name, value in expected.items():
        assert_close(mine[name], value)
    randomize(ours, std=0.2)
    lora.save_adapter(tmp_path / "ours", ours)
    back = peft.PeftModel.from_pretrained(make(), str(tmp_path / "ours")).eval()
    assert_close(logits(ours), logits(back))
    again = make()
    lora.load_adapter(tmp_path / "ours", again)
    assert torch.equal(logits(again), logits(ours))
    assert not any(p.requires_grad for p in again.parameters())
    lora.remove_lora(again)
    assert torch.equal(logits(again), before)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.filterwarnings("ignore::UserWarning:peft", "ignore::FutureWarning")
def test_patterns_mean_the_same_where_several_names_fit(tmp_path: Path, order: int) -> None:
    """PEFT takes the first name that fits, here it is the longest: files are written so that both agree."""
    pattern = dict(list({"attention.query": 2, "layers.0.attention.query": 3}.items())[::order])
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query"], alpha_pattern=pattern,
                             init_lora_weights=False)  # fmt: skip
    peft.get_peft_model(model_of().float(), config).save_pretrained(tmp_path / "theirs")
    theirs = peft.PeftModel.from_pretrained(model_of().float(), str(tmp_path / "theirs")).eval()
    ours = model_of().float()
    lora.load_adapter(tmp_path / "theirs", ours)
    assert_close(logits(ours), logits(theirs))
    made = model_of().float()
    lora.add_lora(made, rank=4, targets=("query",), rank_pattern=pattern, alpha_pattern=pattern)
    randomize(made)
    lora.save_adapter(tmp_path / "ours", made)
    back = peft.PeftModel.from_pretrained(model_of().float(), str(tmp_path / "ours")).eval()
    assert_close(logits(made), logits(back))


def saved(folder: Path, **options: Any) -> nn.Module:
    model = model_of().float()
    lora.add_lora(model, **{"rank": 3, "alpha": 5.0, "targets": ("query", "up")} | options)
    randomize(model)
    lora.save_adapter(folder, model)
    return model


def test_named_adapters_have_subfolders(tmp_path: Path) -> None:
    model = saved(tmp_path)
    lora.add_lora(model, rank=2, targets=("value",), adapter="spam-2")
    randomize(model)
    assert lora.save_adapter(tmp_path, model) == tmp_path / "spam-2"
    other = model_of().float()
    lora.load_adapter(tmp_path, other, "spam-2")
    assert torch.equal(logits(other), logits(model))
    lora.load_adapter(tmp_path, other)
    lora.set_adapter(model, "default")
    assert torch.equal(logits(other), logits(model))
    assert lora.adapter_names(other) == ("spam-2", "default")
    lora.load_adapter(tmp_path / "spam-2", other, "called_here")
    lora.set_adapter(model, "spam-2")
    assert torch.equal(logits(other), logits(model))


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        loaded = load_file(folder / WEIGHTS)
        change(loaded)
        save_file(loaded, folder / WEIGHTS)

    return act


def fields(**changed: Any) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        loaded = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(loaded | changed))

    return act


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def only_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb()))


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-5])


def text(content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / CONFIG).write_text(content) and None


QUERY = "base_model.model.layers.0.attention.query."
A, B = f"{QUERY}lora_A.weight", f"{QUERY}lora_B.weight"
TAMPERED: dict[str, tuple[Callable[[Path], None], str]] = {
    "shape": (tensors(lambda t: t.update({A: torch.zeros(3, 23)})), rf"{WEIGHTS}: {A} must have shape \(3, 24\)"),
    "turned": (tensors(lambda t: t.update({B: t[B].T.contiguous()})), rf"{WEIGHTS}: {B} must have shape"),
    "flat": (tensors(lambda t: t.update({A: torch.zeros(72)})), f"{A} must have shape"),
    "rank": (fields(r=4), f"{WEIGHTS}: .*lora_A.weight must have shape"),
    "no-b": (tensors(lambda t: t.pop(B)), f"{WEIGHTS} must hold A, B of layers.0.attention.query, it holds A"),
    "no-query": (tensors(lambda t: (t.pop(A), t.pop(B))), f"{WEIGHTS} lacks tensors of layers.0.attention.query"),
    "nothing": (tensors(lambda t: t.clear()), f"{WEIGHTS} holds no tensor"),
    "extra": (tensors(lambda t: t.update({f"{QUERY}bias": torch.zeros(24)})), f"{WEIGHTS} holds '{QUERY}bias'"),
    "base-weight": (tensors(lambda t: t.update({f"{QUERY}weight": torch.zeros(24, 24)})), f"holds '{QUERY}weight'"),
    "embedding": (tensors(lambda t: t.update({"base_model.model.embedding.weight": torch.zeros(31, 24)})),
                  f"{WEIGHTS} holds other weights for embedding"),
    "climbing": (tensors(lambda t: t.update({"base_model.model.../x.lora_A.weight": t.pop(A)})), r"no linear .*\.\./x"),
    "slashes": (tensors(lambda t: t.update({"../../x": t.pop(A)})), r"holds '\.\./\.\./x'"),
    "unknown": (tensors(lambda t: t.update({"base_model.model.layers.7.q.lora_A.weight": t.pop(A)})), "'layers.7.q'"),
    "norm": (tensors(lambda t: t.update({"base_model.model.norm.lora_A.weight": t.pop(A)})), "embedding 'norm'"),
    "kind": (tensors(lambda t: t.update({"base_model.model.embedding.lora_A.weight": t.pop(A)})), "kind 'embedding'"),
    "magnitude": (tensors(lambda t: t.update({f"{QUERY}lora_magnitude_vector": torch.ones(24)})), "must hold A, B of"),
    "no-magnitude": (fields(use_dora=True), "must hold A, B, magnitude"),
    "nan": (tensors(lambda t: t[A].view(-1)[5].fill_(float("nan"))), f"{WEIGHTS}: {A} must hold finite"),
    "inf": (tensors(lambda t: t[B].view(-1)[5].fill_(float("inf"))), f"{WEIGHTS}: {B} must hold finite"),
    "integers": (tensors(lambda t: t.update({A: torch.ones(3, 24, dtype=torch.int32)})), f"{A} must hold finite"),
    "eight-bits": (tensors(lambda t: t.update({A: t[A].to(torch.float8_e4m3fn)})), f"{A} must hold finite"),
    "cut": (cut, f"{WEIGHTS} is damaged"),
    "no-tensors": (lambda folder: (folder / WEIGHTS).write_bytes(b"\xff" * 64) and None, f"{WEIGHTS} is damaged"),
    "pickle": (only_pickle, "is a pickle"),
    "no-weights": (lambda folder: (folder / WEIGHTS).unlink(), f"no {WEIGHTS}"),
    "no-config": (lambda folder: (folder / CONFIG).unlink(), f"no {CONFIG}"),
    "no-json": (text("{"), f"{CONFIG} is no JSON"),
    "deep": (text("[" * 100_000), f"{CONFIG} is no JSON"),
    "list": (text("[]"), f"{CONFIG} must hold fields by name"),
    "huge": (text(" " * (1 << 20) + "{}"), f"{CONFIG} must be at most"),
    "no-fields": (text("{}"), f"{CONFIG}: peft_type must be"),
    "ia3": (fields(peft_type="IA3"), f"{CONFIG}: peft_type must be 'LORA', got 'IA3'"),
    "r-text": (fields(r="3"), f"{CONFIG}: rank must be an int"),
    "r-large": (fields(r=10**30), f"{CONFIG}|must have shape"),
    "alpha-text": (fields(lora_alpha=[1]), f"{CONFIG}: alpha must be"),
    "alpha-huge": (fields(lora_alpha=10**400), f"{CONFIG}: alpha must be"),
    "alpha-nan": (fields(lora_alpha=float("nan")), f"{CONFIG}: alpha must be"),
    "dropout": (fields(lora_dropout=None), f"{CONFIG}: dropout must be"),
    "dora-text": (fields(use_dora="no"), f"{CONFIG}: use_dora must be"),
    "targets": (fields(target_modules=[1]), f"{CONFIG}: target_modules must hold names"),
    "more-targets": (fields(target_modules=["query", "up", "down"]), "lacks tensors of layers.0.mlp.down"),
    "pattern-list": (fields(rank_pattern=[1]), f"{CONFIG}: rank_pattern must be numbers by name"),
    "pattern-regular": (fields(alpha_pattern={"layers\\.[01].*": 2}), f"{CONFIG}: alpha_pattern has the regular"),
    "pattern-whole": (fields(alpha_pattern={"^query": 2}), f"{CONFIG}: alpha_pattern has '.query'"),
    "bias": (fields(bias="all"), f"{CONFIG}: bias must be 'none'"),
    **{f"init-{init}": (fields(init_lora_weights=init), f"{CONFIG}: init_lora_weights")
       for init in ("pissa", "olora", "loftq")},
    **{name: (fields(**{name: value}), f"{CONFIG}: {name}=.* is not covered") for name, value in (
        ("modules_to_save", ["norm"]), ("fan_in_fan_out", True), ("lora_bias", True), ("target_parameters", ["x"]),
        ("trainable_token_indices", [1]), ("layer_replication", [[0, 1]]))},
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "message"), TAMPERED.values(), ids=TAMPERED.keys())
def test_what_is_wrong_in_a_file_is_named_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tamper: Callable[[Path], None], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "a")
    tamper(tmp_path / "a")
    model = model_of().float()
    for prepare in (lambda m: None, lambda m: lora.add_lora(m, rank=2, adapter="first")):
        prepare(model)
        before = marks(model)
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            lora.load_adapter(tmp_path / "a", model)
        assert_unchanged(model, before)
    assert not Path("exploded").exists()


def test_an_adapter_of_another_base_is_refused_unless_asked_for(tmp_path: Path) -> None:
    model = saved(tmp_path)
    other = model_of(seed=1).float()
    before = marks(other)
    with pytest.raises(ValueError, match=rf"{WEIGHTS} was trained for another base"):
        lora.load_adapter(tmp_path, other)
    assert_unchanged(other, before)
    with pytest.raises(ValueError, match="another base"):
        lora.load_adapter(tmp_path, model_of())  # the same in float64
    lora.load_adapter(tmp_path, other, any_base=True)
    for path, delta in lora.delta_weights(model).items():
        assert torch.equal(lora.delta_weights(other)[path], delta)


@pytest.mark.parametrize("at", [1, 2])
def test_a_failed_save_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    model, calls = saved(tmp_path), []
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match="overwrite=True"):
        lora.save_adapter(tmp_path, model)
    randomize(model, seed=8)
    real = files.write_atomically

    def failing(path: Path, content: bytes) -> None:
        calls.append(path)
        if len(calls) == at:
            path.with_name(f".{path.name}.partial").write_bytes(content[:7])
            raise OSError("disk full")
        real(path, content)

    monkeypatch.setattr(files, "write_atomically", failing)
    with pytest.raises(OSError, match="disk full"):
        lora.save_adapter(tmp_path, model, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    lora.save_adapter(tmp_path, model, overwrite=True)
    other = model_of().float()
    lora.load_adapter(tmp_path, other)
    assert torch.equal(logits(other), logits(model))


def test_a_loaded_adapter_goes_on_learning_only_if_asked_to(tmp_path: Path) -> None:
    model = saved(tmp_path)
    trained = copy.deepcopy(model)
    other = model_of().float()
    lora.load_adapter(tmp_path, other, trainable=True)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == set(lora.lora_parameters(trained))
    lora.load_adapter(tmp_path, other, "fixed")
    assert not any(p.requires_grad for p in other.parameters())
    lora.set_adapter(other, "default")
    assert all(p.requires_grad for p in lora.lora_parameters(other).values())
