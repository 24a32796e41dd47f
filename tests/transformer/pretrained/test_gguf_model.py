"""Models in GGUF files: the same logits and the same tokens as before they were written, and what is refused."""

import gguf
import numpy as np
import pytest
import torch

from cme295lab.transformer import ModelConfig, load_pretrained
from cme295lab.transformer.pretrained.gguf_model import load_gguf, tokenizer_from_gguf
from tests.transformer.pretrained.tiny import TEXTS, logits_of, random_model, tiny_tokenizer
from tests.transformer.pretrained.tiny_gguf import CONFIG, Kind, llama_cpp_tensors, tiny_merges, write_gguf

SHAPE = {**CONFIG.to_dict(), "norm_eps": 1e-6}
CONFIGS = {
    "tied": ModelConfig(**SHAPE | {"tied_head": True}),
    "untied": ModelConfig(**SHAPE),
    "wide heads": ModelConfig(**SHAPE | {"head_dim": 24}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_fp32_file_gives_the_same_model_bit_for_bit(tmp_path, name):
    """The rows of Q and K were put into llama.cpp's order by the test, and are put back by the library."""
    model = random_model(CONFIGS[name])
    again, tokenizer = load_gguf(write_gguf(tmp_path / "tiny.gguf", model))
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert torch.equal(logits_of(again), logits_of(model))
    assert again.config == model.config
    assert tokenizer.end_token == 0


@pytest.mark.parametrize("kind", [Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_other_types_give_the_model_of_the_rounded_weights(tmp_path, kind):
    model = random_model(CONFIGS["tied"])
    path = write_gguf(tmp_path / "tiny.gguf", model, kind)
    rounded = {
        name: array if array.ndim == 1 else gguf.dequantize(gguf.quantize(array, kind), kind)
        for name, array in llama_cpp_tensors(model).items()
    }
    exact = load_gguf(write_gguf(tmp_path / "exact.gguf", model, tensors=rounded))[0]
    assert torch.equal(logits_of(load_gguf(path)[0]), logits_of(exact))
    assert not torch.equal(logits_of(exact), logits_of(model))
    bf16 = load_gguf(path, dtype=torch.bfloat16)[0]
    assert torch.equal(bf16.layers[1].attention.query.weight, exact.layers[1].attention.query.weight.bfloat16())


def test_tokenizer_is_the_one_that_was_written(tmp_path):
    tokenizer = load_pretrained(write_gguf(tmp_path / "tiny.gguf", random_model(CONFIG))).tokenizer
    texts = [*TEXTS, "Ünïcode 日本 🙂\n\n  12345", "a<|end|>b", ""]
    assert tokenizer.encode_batch(texts) == tiny_tokenizer().encode_batch(texts)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts


def test_smollm_splits_digits_before_merging():
    alphabet = tiny_tokenizer().tokenizer.get_vocab()
    tokens = [*sorted(alphabet, key=alphabet.get), "77"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.merges": [*tiny_merges(), "7 7"],
    }
    pieces = {}
    for split in ("gpt-2", "smollm"):
        tokenizer = tokenizer_from_gguf(values | {"tokenizer.ggml.pre": split}, "file")
        pieces[split] = [tokenizer.token_text(token) for token in tokenizer.encode("77")]
    assert pieces == {"gpt-2": ["77"], "smollm": ["7", "7"]}


def test_name_and_source_are_those_of_the_file(tmp_path):
    loaded = load_pretrained(write_gguf(tmp_path / "tiny.gguf", random_model(CONFIG)))
    assert (loaded.name, loaded.source) == ("tiny", str(tmp_path / "tiny.gguf"))


REFUSED = {
    "architecture": ({"architecture": "gemma"}, "general.architecture is 'gemma'"),
    "experts": ({"values": {"llama.expert_count": 8}}, "llama.expert_count is 8.*take its Hugging Face folder"),
    "scaling": ({"values": {"llama.rope.scaling.type": "yarn"}}, "RoPE scaling is not read from GGUF files"),
    "frequencies": ({"tensors": {"rope_freqs.weight": np.ones(8, np.float32)}}, "scaled RoPE frequencies"),
    "values of another width": ({"values": {"llama.attention.value_length": 8}}, "value_length is 8"),
    "half rotated": ({"values": {"llama.rope.dimension_count": 8}}, "all of a head is rotated"),
    "no layers": ({"without": ("llama.block_count",)}, "has no 'llama.block_count'"),
    "more layers": ({"values": {"llama.block_count": 3}}, "lacks blk.2.attn_k.weight"),
    "no embedding": ({"without": ("token_embd.weight",)}, "does it hold a whole model"),
    "missing tensor": ({"without": ("blk.1.ffn_up.weight",)}, "lacks blk.1.ffn_up.weight"),
    "unexpected tensor": (
        {"tensors": {"blk.0.attn_q.bias": np.ones(64, np.float32)}}, "has blk.0.attn_q.bias, for which"
    ),
    "wrong shape": (
        {"tensors": {"blk.0.ffn_up.weight": np.ones((95, 64), np.float32)}}, r"the shape \(95, 64\), and by its config"
    ),
    "no whole heads": ({"tensors": {"blk.0.attn_q.weight": np.ones((63, 64), np.float32)}}, "no whole heads of 16"),
    "heads": ({"values": {"llama.attention.head_count_kv": 3}}, "describes no possible model: num_heads must be"),
    "no epsilon": ({"without": ("llama.attention.layer_norm_rms_epsilon",)}, "rms_epsilon must be a positive number"),
    "other vocabulary": ({"values": {"tokenizer.ggml.model": "llama"}}, "byte-level BPE is what can be rebuilt"),
    "other splits": ({"values": {"tokenizer.ggml.pre": "llama-bpe"}}, "tokenizer.ggml.pre is 'llama-bpe'"),
    "first token": ({"values": {"tokenizer.ggml.add_bos_token": True}}, "add_bos_token is True"),
    "no tokens": ({"without": ("tokenizer.ggml.tokens",)}, "needs tokens, as many values of token_type"),
    "fewer kinds": ({"values": {"tokenizer.ggml.token_type": [1]}}, "needs tokens, as many values of token_type"),
    "token twice": (
        {"values": {"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}}, "vocabulary twice"
    ),
    "merges": ({"values": {"tokenizer.ggml.merges": ["qqq zzz"]}}, "the merges do not fit the vocabulary"),
    "larger vocabulary": (
        {"tensors": {name: np.ones((200, 64), np.float32) for name in ("token_embd.weight", "output.weight")}},
        "the tokenizer has tokens up to 299, and the model knows those below 200",
    ),
    "end token": ({"values": {"tokenizer.ggml.eos_token_id": 4000}}, "end_token has token 4000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_file_that_is_not_supported_is_refused_with_the_reason(tmp_path, kind):
    changes, message = REFUSED[kind]
    path = write_gguf(tmp_path / "tiny.gguf", random_model(CONFIG), **changes)
    with pytest.raises(ValueError, match=message):
        load_gguf(path)
