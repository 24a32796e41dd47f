"""Folders that are damaged, incomplete, dangerous or of another model: what is said about them."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from cme295lab.transformer import save_pretrained
from cme295lab.transformer.pretrained.hub import load_folder
from tests.transformer.pretrained.tiny import CONFIGS, random_model, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    return save_pretrained(tmp_path / "model", random_model(CONFIGS["tied"]), tiny_tokenizer())


@pytest.fixture
def gpt_folder(tmp_path):
    return save_pretrained(tmp_path / "gpt", random_model(CONFIGS["gpt"]), tiny_tokenizer())


def change_config(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_tensors(folder, change):
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
OPTIONS = [
    ({"architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM is not supported: it has biases in the query, key"),
    ({"architectures": ["BertModel"]}, "BertModel is not supported.*Supported: LlamaForCausalLM, Mistral"),
    ({"architectures": None, "model_type": None}, "names no architecture"),
    ({"architectures": ["LlamaForCausalLM", "Other"]}, "names no architecture"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE scaling of kind 'yarn' is not supported"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling of kind 'linear' is not supported"),
    ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "RoPE scaling of kind 'dynamic'"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "RoPE scaling: low_freq_factor must be a positive"),
    ({"rope_scaling": {**LLAMA3, "high_freq_factor": 0.5}}, "high_freq_factor must be above low_freq_factor"),
    ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}}, "has no 'original_max_position_emb"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu', and this library reads models with 'silu' only"),
    ({"attention_bias": True}, "attention_bias and mlp_bias must both"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    ({"pretraining_tp": 2}, "pretraining_tp is 2"),
    ({"hidden_size": None}, "has no 'hidden_size'"),
    ({"hidden_size": "48"}, "hidden_size must be a positive integer, got '48'"),
    ({"num_hidden_layers": 0}, "num_hidden_layers must be a positive integer, got 0"),
    ({"rms_norm_eps": -1}, "rms_norm_eps must be a positive number"),
    ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a positive number"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    ({"num_attention_heads": 5, "head_dim": None}, "describes no possible model: dim must be a multiple"),
    ({"cme295lab": {"vocab_size": 3}}, "cme295lab must have"),
    ({"cme295lab": {"dropout": 2.0}}, "describes no possible model: dropout"),
    ({"vocab_size": 200}, "the tokenizer has tokens up to 299, and the model knows those below 200"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"), OPTIONS, ids=[f"{i} {' '.join(values)}" for i, (values, _) in enumerate(OPTIONS)]
)
def test_config_that_is_not_supported_is_refused_with_the_reason(folder, values, message):
    change_config(folder, **values)
    with pytest.raises(ValueError, match=message):
        load_folder(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sliding_window": 16}, "sliding_window is 16, shorter than the context of 40.*max_position_embeddings to 16"),
        ({"num_key_value_heads": None}, "has no 'num_key_value_heads'"),
        ({"rope_theta": None}, "rope_theta must be a positive number, got None"),
    ],
)
def test_mistral_is_refused_where_it_differs(folder, values, message):
    change_config(folder, architectures=["MistralForCausalLM"], **values)
    with pytest.raises(ValueError, match=message):
        load_folder(folder)


def test_mixtral_that_adds_noise_is_refused(tmp_path):
    folder = save_pretrained(tmp_path, random_model(CONFIGS["experts"]), tiny_tokenizer())
    change_config(folder, router_jitter_noise=0.1)
    with pytest.raises(ValueError, match=r"router_jitter_noise is 0.1"):
        load_folder(folder)
    change_config(folder, router_jitter_noise=0.0, num_local_experts=6)
    with pytest.raises(ValueError, match=r"lacks model.layers.0.block_sparse_moe.experts.5.w1.weight"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "all layers scale their scores alike"),
        ({"add_cross_attention": True}, "there is no encoder"),
        ({"attn_pdrop": 0.0}, "one probability of dropout"),
    ],
)
def test_gpt2_is_refused_where_it_differs(gpt_folder, values, message):
    change_config(gpt_folder, **values)
    with pytest.raises(ValueError, match=message):
        load_folder(gpt_folder)


def test_missing_files_are_named(folder, tmp_path):
    for name, message in (
        ("model.safetensors", "no model.safetensors in .*: is the folder complete"),
        ("tokenizer.json", "no tokenizer.json in .*AutoTokenizer"),
        ("config.json", "no config.json in"),
    ):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=message):
            load_folder(folder)
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        load_folder(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"], ids=["cut", "list", "bytes"])
def test_damaged_json_is_named(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        load_folder(folder)


def test_file_that_is_cut_off_anywhere_is_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model.safetensors is damaged or cut off"):
            load_folder(folder)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=r"damaged or cut off"):
        load_folder(folder)


def test_header_that_was_tampered_with_is_refused(folder):
    """Sizes and places in the header lie about the numbers that follow."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])

    def write(change, header_length=None):
        changed = json.loads(json.dumps(header))
        change(changed["model.norm.weight"])
        text = json.dumps(changed).encode()
        file.write_bytes(struct.pack("<Q", header_length or len(text)) + text + whole[8 + length :])

    lies = (
        lambda entry: entry.update(data_offsets=[0, 10**15]),
        lambda entry: entry.update(data_offsets=[-8, 184]),
        lambda entry: entry.update(shape=[10**9, 10**9]),
        lambda entry: entry.update(shape=[47]),
        lambda entry: entry.update(dtype="F99"),
        lambda entry: entry.clear(),
    )
    for lie in lies:
        write(lie)
        with pytest.raises(ValueError, match=r"damaged or cut off"):
            load_folder(folder)
    write(lambda entry: None, header_length=2**60)
    with pytest.raises(ValueError, match=r"damaged or cut off"):
        load_folder(folder)


CHANGES = {
    "missing": (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "lacks model.layers.1.mlp.up_proj.weight"),
    "unexpected": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(48)}),
        "has model.layers.0.self_attn.q_proj.bias, for which .* has no place",
    ),
    "one layer more": (
        lambda t: t.update({k.replace("layers.0", "layers.2"): v.clone() for k, v in list(t.items())}),
        "and 6 more tensors, for which a model of 2 layers",
    ),
    "wrong shape": (
        lambda t: t.update({"model.norm.weight": torch.ones(47)}),
        r"model.norm.weight \(47,\) gives norm.weight the shape \(47,\), and by its config it must be \(48,\)",
    ),
    "transposed": (
        lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(48, 80)}),
        r"the shape \(48, 80\), and by its config it must be \(80, 48\)",
    ),
    "integers": (
        lambda t: t.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)}),
        "model.norm.weight has dtype I8; dtypes that are read: F64, F32, F16, BF16",
    ),
    "not a number": (
        lambda t: t["model.norm.weight"].__setitem__(3, float("nan")),
        "norm.weight has infinities or NaN in torch.float32; the file has them",
    ),
    "another head": (
        lambda t: t.update({"lm_head.weight": torch.zeros(320, 48)}),
        "lm_head.weight differs from the embedding, although the config says that they are tied",
    ),
    "another head's shape": (
        lambda t: t.update({"lm_head.weight": torch.zeros(32, 48)}),
        "lm_head.weight differs from the embedding",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_tensors_that_do_not_belong_to_the_config_are_refused(folder, kind):
    change, message = CHANGES[kind]
    change_tensors(folder, change)
    with pytest.raises(ValueError, match=message):
        load_folder(folder)


def test_untied_config_needs_a_head(folder):
    change_config(folder, tie_word_embeddings=False)
    with pytest.raises(ValueError, match=r"lacks lm_head.weight"):
        load_folder(folder)


def test_gpt2_tensor_that_three_cannot_share_is_refused(gpt_folder):
    change_tensors(gpt_folder, lambda t: t.update({"transformer.h.0.attn.c_attn.bias": torch.ones(143)}))
    with pytest.raises(ValueError, match=r"c_attn.bias has shape \(143,\), which 3 parameters cannot share"):
        load_folder(gpt_folder)


def test_numbers_too_large_for_fp16_are_refused_and_bf16_is_named(folder):
    change_tensors(folder, lambda t: t["model.norm.weight"].fill_(1e5))
    with pytest.raises(ValueError, match=r"infinities or NaN in torch.float16; .*load in bfloat16 or float32"):
        load_folder(folder, dtype=torch.float16)
    assert load_folder(folder, dtype=torch.bfloat16)[0].norm.weight.dtype == torch.bfloat16


def test_dtype_that_no_model_runs_in_is_refused(folder):
    with pytest.raises(TypeError, match=r"dtype must be one of .* got torch.int32"):
        load_folder(folder, dtype=torch.int32)


def write_index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "..\\a.safetensors", "weights.bin", ".."],
)
def test_index_cannot_lead_out_of_the_folder(folder, name):
    (folder.parent / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    write_index(folder, {"model.norm.weight": name})
    with pytest.raises(ValueError, match=r"only .safetensors files in the same folder are read"):
        load_folder(folder)


def test_index_must_fit_its_files(folder):
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    write_index(folder, {**names, "model.extra": "model.safetensors"})
    with pytest.raises(ValueError, match=r"model.extra is in model.safetensors, and it is in none of them"):
        load_folder(folder)
    write_index(folder, {k: v for k, v in names.items() if k != "model.norm.weight"})
    with pytest.raises(ValueError, match=r"model.norm.weight is in no file, and it is in model.safetensors"):
        load_folder(folder)
    write_index(folder, {**names, "model.norm.weight": "gone.safetensors"})
    with pytest.raises(FileNotFoundError, match=r"no gone.safetensors"):
        load_folder(folder)
    for weight_map in ({}, [], {"model.norm.weight": 3}):
        write_index(folder, weight_map)
        with pytest.raises(ValueError, match=r"weight_map must give a file name for each tensor"):
            load_folder(folder)
