"""A prompt against a model whose vocabulary has its vectors as words, and a base that stays what it is."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cme295lab.finetuning.adapters import add_adapters
from cme295lab.finetuning.prompt import (
    add_prompt,
    enable_prompt,
    get_prompt,
    load_prompt,
    num_prompt_parameters,
    remove_prompt,
    save_prompt,
)
from cme295lab.transformer.decoder import AttentionKind, DecoderLM
from cme295lab.transformer.decoding.generation import generate
from tests.finetuning.tuned_models import CONFIGS, LEARNED, ROPE, model_of, tokens_of

LENGTH = 5


def prompted(config=ROPE, *, attention: AttentionKind = "flash", init: str = "normal") -> DecoderLM:
    model = model_of(config, attention=attention)
    torch.manual_seed(3)
    add_prompt(model, LENGTH, init=init)
    with torch.no_grad():
        get_prompt(model).vectors.normal_()
    return model


def as_words(model: DecoderLM, tokens: Tensor) -> Tensor:
    """Logits of the text behind the prompt, the prompt's vectors put in by hand as one causal text from 0 on."""
    base, vectors = model_of(model.config), get_prompt(model).vectors
    x = base.embedding(tokens)
    if base.position_embedding is not None:
        x = x + base.position_embedding.weight[: tokens.shape[1]]
    x = torch.cat((vectors.expand(len(tokens), -1, -1), x), dim=1)
    shared = base.positions(x.shape[1], like=x)
    for layer in base.layers:
        x = layer(x, shared)
    return base.head(base.norm(x))[:, len(vectors) :]


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_prompt_is_words_in_front(config, attention: AttentionKind) -> None:
    model, tokens = prompted(config, attention=attention), tokens_of()
    found, expected = model(tokens), as_words(model, tokens)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    assert (found - model_of(config)(tokens)).abs().max() > 0.1
    vectors = get_prompt(model).vectors
    gradients = [torch.autograd.grad(logits.square().sum(), vectors)[0] for logits in (found, expected)]
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-10)
    assert gradients[0].abs().min() > 0
    with torch.no_grad():
        vectors.mul_(2)  # as after an update: the next pass sees it
        assert torch.allclose(model(tokens), as_words(model, tokens), rtol=0, atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_generation_with_a_cache_writes_what_it_writes_without(config) -> None:
    model, prompts = prompted(config), [[3, 1, 4], [1, 5, 9, 2, 6]]
    for row, written in zip(prompts, generate(model, prompts, max_new_tokens=6).tokens, strict=True):
        text = list(row)
        for _ in range(6):
            text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
        assert text[len(row) :] == list(written)


def test_every_document_of_a_row_sees_the_prompt_and_no_other() -> None:
    model, tokens = prompted(), tokens_of(rows=1, seq=9)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = model(tokens, documents=documents, positions=positions)
    alone = torch.cat((model(tokens[:, :4]), model(tokens[:, 4:])), dim=1)
    assert torch.allclose(packed, alone, rtol=0, atol=1e-10)


def test_the_start_is_the_embeddings_of_tokens_or_small_numbers() -> None:
    model = model_of()
    torch.manual_seed(0)
    made = add_prompt(model, LENGTH)
    table, vectors = model.embedding.weight, get_prompt(model).vectors
    assert all((table == vector).all(dim=1).any() for vector in vectors)
    assert len(vectors.unique(dim=0)) > 1
    assert made.rows == (("prompt_tuning.vectors", LENGTH * 24),)
    assert made.num_trainable == num_prompt_parameters(ROPE, LENGTH) == 120
    remove_prompt(model)
    add_prompt(model, 24, init="normal")
    assert 0.015 < get_prompt(model).vectors.std().item() < 0.025


def test_the_base_is_frozen_and_comes_back() -> None:
    model, tokens = model_of(), tokens_of()
    model.head.weight.requires_grad_(False)
    before, base = {name: value.clone() for name, value in model.state_dict().items()}, model(tokens)
    add_prompt(model, LENGTH)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == ["prompt_tuning.vectors"]
    assert not torch.equal(model(tokens), base)
    enable_prompt(model, False)
    assert torch.equal(model(tokens), base)
    remove_prompt(model)
    assert torch.equal(model(tokens), base)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == {"head.weight"}
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_copy_has_a_prompt_of_its_own() -> None:
    model, tokens = prompted(), tokens_of()
    expected, other = model(tokens), copy.deepcopy(model)
    with torch.no_grad():
        get_prompt(other).vectors.zero_()
        for parameter in other.embedding.parameters():
            parameter.add_(1)
    assert torch.equal(model(tokens), expected)
    assert not torch.equal(other(tokens), expected)


def test_to_a_file_and_back(tmp_path: Path) -> None:
    model, tokens, path = prompted(), tokens_of(), tmp_path / "prompt.safetensors"
    save_prompt(path, model)
    fresh = model_of()
    assert load_prompt(path, fresh).num_trainable == 120
    assert torch.equal(fresh(tokens), model(tokens))
    for other, says in ((model_of(seed=1), "another base"), (model_of(LEARNED), "another base")):
        with pytest.raises(ValueError, match=says):
            load_prompt(path, other)
        assert not hasattr(other, "prompt_tuning")


@pytest.mark.parametrize(
    ("options", "says"),
    [({"length": 0}, "length must be an int from 1 to 24"), ({"length": 25}, "got 25"), ({"length": True}, "got True"),
     ({"length": 2.0}, "got 2.0"), ({"init": "zeros"}, "init must be 'sample' or 'normal', got 'zeros'")],
    ids=["none", "long", "bool", "float", "init"],
)  # fmt: skip
def test_what_cannot_be_is_refused(options, says: str) -> None:
    model = model_of()
    with pytest.raises(ValueError, match=says):
        add_prompt(model, **options)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_one_method_at_a_time() -> None:
    model = model_of()
    add_adapters(model, 3)
    with pytest.raises(ValueError, match="already has bottleneck_adapters"):
        add_prompt(model)
    with pytest.raises(TypeError, match="must be a DecoderLM"):
        add_prompt(torch.nn.Linear(2, 2))
    for function in (get_prompt, remove_prompt):
        with pytest.raises(ValueError, match="no prompt"):
            function(model)
