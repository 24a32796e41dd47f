"""The Hugging Face layout: `transformers` on one side, this library on the other, the same logits on both."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from cme295lab.transformer import DecoderLM, load_pretrained, save_pretrained
from cme295lab.transformer.pretrained.hub import load_folder
from tests.transformer.pretrained.tiny import CONFIGS, TOKENS, logits_of, random_model, tiny_tokenizer

# Sums of some hundred fp32 products in another order; the logits are of size 1 to 10.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
LLAMA = {
    "vocab_size": 320, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "bos_token_id": None, "eos_token_id": 0,
    "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {
    "vocab_size": 320, "n_embd": 48, "n_inner": 80, "n_layer": 2, "n_head": 6, "n_positions": 40, "bos_token_id": 0,
    "eos_token_id": 0,
}  # fmt: skip
THEIRS = {
    "Llama": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "Llama, tied": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "Llama, heads of 12": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, head_dim=12)),
    "Llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True)),
    "Llama, theta": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    ),
    "Llama, long": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=LLAMA3)),
    "Mixtral": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=5, num_experts_per_tok=2)),
    "Mixtral, dense": lambda: MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=3, num_experts_per_tok=3)),
    "Mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=None)),
    "Mistral, window": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=40)),
    "GPT-2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "GPT-2, untied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, tie_word_embeddings=False)),
    "GPT-2, 4 dim": lambda: GPT2LMHeadModel(GPT2Config(**GPT2 | {"n_inner": None})),
}


def random_theirs(make):
    """A model of `transformers` whose parameters are all random, biases and norms among them."""
    torch.manual_seed(2)
    theirs = make().eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name or "ln_" in name else 0.0, std=0.2)
    return theirs


def their_logits(theirs):
    with torch.no_grad():
        return theirs(TOKENS).logits


def save_theirs(theirs, folder, **options):
    theirs.save_pretrained(folder, **options)
    tiny_tokenizer().save(folder)
    return folder


@pytest.mark.parametrize("kind", THEIRS)
def test_models_of_transformers_have_the_same_logits_here(tmp_path, kind):
    theirs = random_theirs(THEIRS[kind])
    model, tokenizer = load_folder(save_theirs(theirs, tmp_path))
    torch.testing.assert_close(logits_of(model), their_logits(theirs), **TOLERANCE)
    assert model.config.num_parameters == sum(p.numel() for p in theirs.parameters())
    assert tokenizer == tiny_tokenizer()
    assert not model.training
    assert (model.head.weight is model.embedding.weight) == theirs.config.tie_word_embeddings


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_here_has_the_same_logits_in_transformers(tmp_path, name):
    model = random_model(CONFIGS[name])
    assert save_pretrained(tmp_path / "new" / "folder", model, tiny_tokenizer()) == tmp_path / "new" / "folder"
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "new" / "folder", output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(their_logits(theirs.eval()), logits_of(model), **TOLERANCE)
    assert theirs.config.eos_token_id == tiny_tokenizer().end_token
    assert theirs.config.bos_token_id is None


@pytest.mark.parametrize("name", CONFIGS)
def test_own_weights_come_back_bit_for_bit(tmp_path, name):
    model = random_model(CONFIGS[name])
    save_pretrained(tmp_path, model, tiny_tokenizer())
    again = load_pretrained(tmp_path)
    assert again.model.config == model.config
    assert again.tokenizer == tiny_tokenizer()
    assert again.source == str(tmp_path)
    state = again.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_bf16_in_the_file_is_bf16_in_transformers_and_exact_in_fp32(tmp_path):
    model = random_model(CONFIGS["tied"])
    save_pretrained(tmp_path, model, tiny_tokenizer(), dtype=torch.bfloat16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    wide, narrow = (load_folder(tmp_path, dtype=dtype)[0] for dtype in (torch.float32, torch.bfloat16))
    assert narrow.layers[0].mlp.up.weight.dtype == torch.bfloat16
    assert torch.equal(wide.layers[0].mlp.up.weight, narrow.layers[0].mlp.up.weight.float())
    assert torch.equal(narrow.layers[0].mlp.up.weight, model.layers[0].mlp.up.weight.bfloat16())


def test_capacity_of_experts_comes_back(tmp_path):
    config = replace(CONFIGS["experts"], capacity_factor=1.25)
    save_pretrained(tmp_path, random_model(config), tiny_tokenizer())
    assert load_folder(tmp_path)[0].config == config


def test_sharded_files_are_read(tmp_path):
    theirs = random_theirs(THEIRS["Llama"])
    save_theirs(theirs, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert not (tmp_path / "model.safetensors").exists()
    torch.testing.assert_close(logits_of(load_folder(tmp_path)[0]), their_logits(theirs), **TOLERANCE)


def test_bare_gpt2_with_its_mask_among_the_weights_is_read(tmp_path):
    """As OpenAI's GPT-2 is on the hub: no prefix, and the causal mask of each layer as a tensor."""
    theirs = random_theirs(THEIRS["GPT-2"])
    save_theirs(theirs, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 40, 40).tril() for layer in range(2)}
    save_file(bare, tmp_path / "model.safetensors")
    torch.testing.assert_close(logits_of(load_folder(tmp_path)[0]), their_logits(theirs), **TOLERANCE)


def test_config_in_the_words_of_transformers_4_is_read(tmp_path):
    theirs = random_theirs(THEIRS["Llama, theta"])
    save_theirs(theirs, tmp_path)
    file = tmp_path / "config.json"
    values = json.loads(file.read_text())
    del values["rope_parameters"], values["head_dim"]
    file.write_text(json.dumps(values | {"rope_theta": 5e5, "rope_scaling": None}))
    torch.testing.assert_close(logits_of(load_folder(tmp_path)[0]), their_logits(theirs), **TOLERANCE)


def test_tied_head_may_be_in_the_file_a_second_time_if_it_is_equal(tmp_path):
    model = random_model(CONFIGS["tied"])
    save_pretrained(tmp_path, model, tiny_tokenizer())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert torch.equal(logits_of(load_folder(tmp_path)[0]), logits_of(model))


def test_end_token_may_be_in_config_json_alone(tmp_path):
    save_pretrained(tmp_path, random_model(CONFIGS["tied"]), tiny_tokenizer())
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_folder(tmp_path)[1].end_token == 0


def test_loaded_parameters_are_copies_that_can_be_trained(tmp_path):
    """Nothing in memory is a view of the file, so training does not need the file, nor change it."""
    save_pretrained(tmp_path, random_model(CONFIGS["tied"]), tiny_tokenizer())
    before = (tmp_path / "model.safetensors").read_bytes()
    model, _ = load_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(bytes(len(before)))
    logits = logits_of(model)
    model.loss(TOKENS[:, :-1], TOKENS[:, 1:]).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
    assert not torch.equal(logits_of(model), logits)
    assert (tmp_path / "model.safetensors").read_bytes() == bytes(len(before))


def test_saving_again_replaces_weights_and_keeps_other_files(tmp_path):
    folder = tmp_path / "model"
    save_pretrained(folder, random_model(CONFIGS["untied"]), tiny_tokenizer())
    (folder / "README.md").write_text("how it was trained")
    (folder / "model-00001-of-00002.safetensors").write_text("stale")
    model = random_model(CONFIGS["tied"])
    save_pretrained(folder, model, tiny_tokenizer())
    assert torch.equal(logits_of(load_folder(folder)[0]), logits_of(model))
    assert (folder / "README.md").read_text() == "how it was trained"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failed_save_leaves_the_old_model_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    model = random_model(CONFIGS["tied"])
    save_pretrained(folder, model, tiny_tokenizer())

    def full_disk(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("cme295lab.transformer.pretrained.hub.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(folder, random_model(CONFIGS["untied"]), tiny_tokenizer())
    assert torch.equal(logits_of(load_folder(folder)[0]), logits_of(model))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_save_refuses_what_no_architecture_has(tmp_path):
    for change, message in (
        ({"norm": "layernorm"}, "no architecture of the Hugging Face layout has these together"),
        ({"mlp": "gelu", "norm": "layernorm", "position": "learned", "bias": False}, "GPT-2 has biases"),
        ({"mlp": "gelu", "norm": "layernorm", "position": "learned", "bias": True}, "2 key/value heads"),
        ({"num_experts": 3, "experts_per_token": 1, "bias": True}, "Mixtral, has rope, rmsnorm, swiglu and no biases"),
    ):
        with pytest.raises(ValueError, match=message):
            save_pretrained(tmp_path / "x", DecoderLM(replace(CONFIGS["untied"], **change)), tiny_tokenizer())
    with pytest.raises(ValueError, match="tokens up to 299, and the model knows those below 200"):
        save_pretrained(tmp_path / "x", DecoderLM(replace(CONFIGS["untied"], vocab_size=200)), tiny_tokenizer())
    with pytest.raises(TypeError, match="dtype must be one of"):
        save_pretrained(tmp_path / "x", random_model(CONFIGS["tied"]), tiny_tokenizer(), dtype=torch.int8)
    assert not list(tmp_path.iterdir())
