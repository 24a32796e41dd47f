"""Prefix tuning against attention written out over concatenated keys and values, in float64."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cme295lab.finetuning.attached import base_fingerprint
from cme295lab.finetuning.prefix import (
    add_prefix,
    finalize,
    get_prefix,
    load_prefix,
    num_prefix_parameters,
    remove_prefix,
    save_prefix,
    set_prefix,
)
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.decoder import AttentionKind, DecoderLM
from cme295lab.transformer.decoding.generation import generate
from cme295lab.transformer.kv_cache import GrowingCache, StaticCache
from cme295lab.transformer.layers import rotate
from tests.finetuning.tuned_models import CONFIGS, ROPE, model_of, tokens_of


def explicit_logits(model: DecoderLM, tokens: Tensor, front: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The model with loops over rows, heads and queries; `front`: (length, kv_dim) keys and values per layer."""
    config, shared = model.config, model.positions(tokens.shape[1], like=model.embedding.weight)
    x = model.embedding(tokens)
    if model.position_embedding is not None:
        x = x + model.position_embedding.weight[: tokens.shape[1]]
    for layer, (front_k, front_v) in zip(model.layers, front):
        attention, n = layer.attention, layer.attention_norm(x)
        projections = (attention.query, attention.key, attention.value)
        q, k, v = (project(n).unflatten(-1, (-1, config.head_dim)) for project in projections)
        if shared.cos is not None:
            q, k = rotate(q, shared.cos, shared.sin), rotate(k, shared.cos, shared.sin)
        out = torch.zeros_like(q)
        for row in range(len(tokens)):
            for head in range(config.num_heads):
                group = head * config.num_kv_heads // config.num_heads
                part = slice(group * config.head_dim, (group + 1) * config.head_dim)
                for t in range(tokens.shape[1]):
                    keys = torch.cat((front_k[:, part], k[row, : t + 1, group]))
                    values = torch.cat((front_v[:, part], v[row, : t + 1, group]))
                    out[row, t, head] = (keys @ q[row, t, head] / math.sqrt(config.head_dim)).softmax(0) @ values
        x = x + attention.out(out.flatten(2))
        x = x + layer.mlp(layer.mlp_norm(x))
    return model.head(model.norm(x))


def large_prefix(model: DecoderLM, length: int = 5, *, reparametrize: bool = False, name: str = "default") -> None:
    torch.manual_seed(7)
    add_prefix(model, length, reparametrize=reparametrize, name=name)
    with torch.no_grad():
        for parameter in get_prefix(model, name).parameters():
            parameter.normal_(std=0.7)


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_prefix_equals_attention_over_concatenated_keys(config: ModelConfig, attention: AttentionKind) -> None:
    model, tokens = model_of(config, attention=attention), tokens_of()
    base = model(tokens)
    large_prefix(model)
    values = get_prefix(model).keys_values
    expected = explicit_logits(model, tokens, [(k, v) for k, v in values])
    assert torch.allclose(model(tokens), expected, rtol=0, atol=1e-11)
    assert (expected - base).abs().max() > 0.1


@torch.no_grad()
def test_network_is_one_for_all_layers_and_finalize_keeps_what_it_computes() -> None:
    model, tokens = model_of(), tokens_of()
    large_prefix(model, 3, reparametrize=True)
    prefix = get_prefix(model)
    flat = torch.tanh(prefix.embedding @ prefix.inner.weight.T + prefix.inner.bias) @ prefix.outer.weight.T
    flat = flat + prefix.outer.bias  # (length, layers × 2 × kv_dim)
    parts = flat.split(ROPE.kv_dim, dim=1)
    expected = explicit_logits(model, tokens, [(parts[0], parts[1]), (parts[2], parts[3])])
    before = model(tokens)
    assert torch.allclose(before, expected, rtol=0, atol=1e-11)
    finalize(model)
    finalize(model)
    assert torch.allclose(model(tokens), before, rtol=0, atol=1e-12)
    assert sum(p.numel() for p in prefix.parameters()) == num_prefix_parameters(ROPE, 3) == 2 * 2 * 3 * 12


def test_counts_of_the_paper() -> None:
    gpt2_medium = ModelConfig(
        vocab_size=50_257, num_layers=24, dim=1024, num_heads=16, mlp_dim=4096, max_seq=1024, position="learned"
    )
    assert num_prefix_parameters(gpt2_medium, 10) == 491_520
    table = add_prefix(model_of(), 4, reparametrize=False)
    assert table.num_trainable == 2 * 2 * 4 * 12
    assert table.rows == (("prefix_tuning.named.default.keys_values", 192),)
    assert "192" in str(table)


def test_what_a_prefix_starts_as() -> None:
    """Numbers are small, as embeddings are; a network is as wide as the model, and its input vectors are of size 1."""
    wide = ModelConfig(vocab_size=8, num_layers=4, dim=64, num_heads=4, num_kv_heads=2, mlp_dim=8, max_seq=64)
    torch.manual_seed(0)
    model = DecoderLM(wide)
    add_prefix(model, 50, reparametrize=False, name="numbers")
    numbers = get_prefix(model, "numbers").keys_values
    assert numbers is not None
    assert numbers.std().item() == pytest.approx(0.02, rel=0.05)
    add_prefix(model, 50, name="network")
    network = get_prefix(model, "network")
    assert network.inner.weight.shape == (64, 64)
    assert network.embedding.std().item() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("kind", ["static", "growing"])
@pytest.mark.parametrize("attention", ["flash", "standard"])
@torch.no_grad()
def test_cache_in_pieces_of_any_size(kind: str, attention: AttentionKind) -> None:
    model, tokens = model_of(attention=attention), tokens_of(seq=9)
    large_prefix(model)
    whole = model(tokens)
    if kind == "static":
        cache = StaticCache(ROPE, batch_size=3, max_seq=9, dtype=torch.float64)
    else:
        cache = GrowingCache(ROPE, batch_size=3, dtype=torch.float64)
    pieces = [model(piece, cache=cache) for piece in tokens.split([1, 4, 1, 3], dim=1)]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-11)
    assert cache.length == 9


def test_generate_with_prompts_of_different_lengths() -> None:
    model = model_of()
    large_prefix(model)
    prompts = [[1, 2, 3, 4, 5], [6, 7]]
    together = generate(model, prompts, max_new_tokens=6).tokens
    for prompt, new in zip(prompts, together):
        row = list(prompt)
        for _ in range(6):
            row.append(int(model(torch.tensor([row]))[0, -1].argmax()))
        assert row[len(prompt) :] == new
    set_prefix(model, None)
    assert generate(model, prompts, max_new_tokens=6).tokens != together


@torch.no_grad()
def test_packed_documents_each_see_the_prefix() -> None:
    model = model_of()
    large_prefix(model)
    one, two = tokens_of(1, 4, seed=2), tokens_of(1, 3, seed=3)
    documents = torch.tensor([[0] * 4 + [1] * 3])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    packed = model(torch.cat((one, two), dim=1), documents=documents, positions=positions)
    assert torch.allclose(packed, torch.cat((model(one), model(two)), dim=1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("reparametrize", [False, True])
def test_training_changes_the_prefix_alone_and_removing_gives_the_base_back(reparametrize: bool) -> None:
    model, tokens = model_of(), tokens_of()
    model.head.weight.requires_grad_(False)
    marks = {name: p.requires_grad for name, p in model.named_parameters()}
    before, base = copy.deepcopy(model.state_dict()), model(tokens).detach()
    table = add_prefix(model, 3, reparametrize=reparametrize)
    assert all(name.startswith("prefix_tuning.") for name, _ in table.rows)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(5):
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in get_prefix(model).parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    set_prefix(model, None)
    assert torch.equal(model(tokens), base)
    remove_prefix(model)
    assert torch.equal(model(tokens), base)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == marks
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@torch.no_grad()
def test_several_prefixes_and_copies_do_not_mix() -> None:
    model, tokens = model_of(), tokens_of()
    large_prefix(model, 2, name="a")
    with_a = model(tokens)
    add_prefix(model, 4, name="b")
    with_b = model(tokens)
    assert not torch.equal(with_b, with_a)  # the new one is active
    copied = copy.deepcopy(model)
    set_prefix(model, "a")
    assert torch.equal(model(tokens), with_a)
    assert torch.equal(copied(tokens), with_b)
    get_prefix(model, "b").embedding.zero_()
    assert torch.equal(copied(tokens), with_b)


@pytest.mark.parametrize("made", ["numbers", "network", "finalized"])
@torch.no_grad()
def test_file_gives_the_same_outputs(tmp_path: Path, made: str) -> None:
    model, tokens = model_of(), tokens_of()
    large_prefix(model, 3, reparametrize=made != "numbers")
    if made == "finalized":
        finalize(model)
    save_prefix(tmp_path / "p.safetensors", model)
    other = model_of()
    load_prefix(tmp_path / "p.safetensors", other, "loaded")
    assert torch.equal(other(tokens), model(tokens))
    assert all(p.requires_grad for p in get_prefix(other, "loaded").parameters())


@torch.no_grad()
def test_a_prefix_in_fp32_under_autocast() -> None:
    """Keys and values of tokens are bf16 there, and the prefix stands in front of them nevertheless."""
    model, tokens = model_of().float(), tokens_of()
    large_prefix(model, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(tokens)
    assert (found - model(tokens)).abs().max() < 0.05 * model(tokens).abs().max()


@pytest.mark.parametrize("name", ["", "a.b", "items"])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    model = model_of()
    with pytest.raises(ValueError, match="name must be a Python name that no method of a ModuleDict has"):
        add_prefix(model, 2, name=name)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_files_for_another_base_or_tampered_are_refused(tmp_path: Path) -> None:
    model = model_of()
    add_prefix(model, 3, reparametrize=False)
    path = tmp_path / "p.safetensors"
    save_prefix(path, model)
    with pytest.raises(ValueError, match="another base"):
        load_prefix(path, model_of(seed=1))
    with pytest.raises(FileNotFoundError):
        load_prefix(tmp_path / "none", model_of())
    facts = {"format": "pt", "method": "prefix", "base": base_fingerprint(model_of())}
    tensors = load_file(path)
    for options, text in (({"length": 10**9, "hidden": None}, "length"), ({"length": 4, "hidden": None}, "must hold")):
        save_file(tensors, path, metadata={**facts, "options": json.dumps(options)})
        with pytest.raises(ValueError, match=text):
            load_prefix(path, model_of())
    save_file({"keys_values": tensors["keys_values"] * torch.nan}, path, metadata={**facts, "options": '{"length": 3}'})
    with pytest.raises(ValueError, match="finite"):
        load_prefix(path, model_of())
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged"):
        load_prefix(path, model_of())


def test_bad_input_says_what_is_wrong_and_changes_nothing() -> None:
    model = model_of()
    for length in (0, -1, 25, True, 2.0):
        with pytest.raises(ValueError, match="length must be an int from 1 to 24"):
            add_prefix(model, length)
    with pytest.raises(ValueError, match="hidden"):
        add_prefix(model, 2, hidden=0)
    with pytest.raises(ValueError, match="needs reparametrize"):
        add_prefix(model, 2, hidden=3, reparametrize=False)
    with pytest.raises(ValueError, match="name must be"):
        add_prefix(model, 2, name="a.b")
    with pytest.raises(ValueError, match="no prefix to remove"):
        remove_prefix(model)
    with pytest.raises(TypeError, match="DecoderLM"):
        add_prefix(torch.nn.Linear(2, 2), 2)
    assert all(p.requires_grad for p in model.parameters())
    add_prefix(model, 2)
    with pytest.raises(ValueError, match="already has 'default'"):
        add_prefix(model, 2)
    with pytest.raises(ValueError, match="no 'x'"):
        set_prefix(model, "x")
