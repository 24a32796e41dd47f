"""config.json of the Hugging Face layout as a `ModelConfig`, and back.

Four architectures have the shapes that a `ModelConfig` describes: Llama, Mistral (a Llama with a sliding window, which
must be off), Mixtral (a Mistral with experts) and GPT-2. A config.json has dozens of keys; those that change what the
model computes are read or, where this library cannot do as they say, refused with the reason. The rest, such as
`initializer_range` or `use_cache`, changes nothing here.

What only this library knows of (a name, dropout everywhere, the capacity of experts) is kept under the key "cme295lab",
which `transformers` leaves alone.

    transformers 4:  "rope_theta": 10000.0, "rope_scaling": null
    transformers 5:  "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}

Both are read; the first is written, because both versions read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cme295lab.transformer.config import ModelConfig, RopeScaling
from cme295lab.transformer.pretrained.config_values import ConfigValues

LLAMA, MISTRAL, MIXTRAL, GPT2 = "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "GPT2LMHeadModel"
ARCHITECTURES = (LLAMA, MISTRAL, MIXTRAL, GPT2)
_BY_MODEL_TYPE = {"llama": LLAMA, "mistral": MISTRAL, "mixtral": MIXTRAL, "gpt2": GPT2}
_EXTRA = "cme295lab"
_WHY_REFUSED = {
    "Qwen2ForCausalLM": "it has biases in the query, key and value projections only",
    "Qwen3ForCausalLM": "it normalises queries and keys",
    "Gemma2ForCausalLM": "it has norms after the sublayers, too, and caps its logits",
    "PhiForCausalLM": "its attention and MLP read the same norm, side by side",
    "GPTNeoXForCausalLM": "its attention and MLP read the residual stream side by side",
}


def architecture_of(values: Mapping[str, Any], where: str = "config.json") -> str:
    """Which of the four architectures a config.json is of.

    Raises:
        ValueError: if it is another one, or the weights are quantised; the message says why that is refused.
    """
    named = values.get("architectures") or [_BY_MODEL_TYPE.get(values.get("model_type", ""), values.get("model_type"))]
    if not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ValueError(f"{where} names no architecture: architectures is {values.get('architectures')!r}")
    if named[0] not in ARCHITECTURES:
        why = _WHY_REFUSED.get(named[0], "its layers are others than those a ModelConfig describes")
        raise ValueError(f"{where}: {named[0]} is not supported: {why}. Supported: {', '.join(ARCHITECTURES)}")
    if values.get("quantization_config") is not None:
        raise ValueError(
            f"{where} has a quantization_config: its weights are not plain numbers. Load the model's original weights"
        )
    return named[0]


def config_from_hub(values: Mapping[str, Any], *, name: str, where: str = "config.json") -> ModelConfig:
    """The config of a model in the Hugging Face layout.

    Args:
        values: the parsed config.json.
        name: what to call the model, unless the file says it.
        where: the file, for messages.

    Raises:
        ValueError: if the architecture or an option is not supported, a value is missing or makes no sense.
    """
    architecture = architecture_of(values, where)
    read = ConfigValues(values, where)
    extra = read.get(_EXTRA, {})
    if not isinstance(extra, dict) or not set(extra) <= {"name", "dropout", "capacity_factor"}:
        raise ValueError(f"{where}: {_EXTRA} must have name, dropout and capacity_factor, got {extra!r}")
    fields = _gpt2_fields(read) if architecture == GPT2 else _llama_fields(read, architecture)
    try:
        return ModelConfig(**{"name": name, "vocab_size": read.count("vocab_size"), **fields, **extra})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} describes no possible model: {error}") from error


def _llama_fields(read: ConfigValues, architecture: str) -> dict[str, Any]:
    read.require("hidden_act", ("silu",), "its MLP is SwiGLU", "silu")
    read.require("pretraining_tp", (1,), "the matrices must be whole", 1)
    read.require("attention_dropout", (0,), "dropout of the attention probabilities alone is not supported", 0)
    heads, bias = read.count("num_attention_heads"), False
    if architecture == LLAMA:
        bias = read.switch("attention_bias", False)
        if bias != read.switch("mlp_bias", False):
            raise ValueError(f"{read.where}: attention_bias and mlp_bias must both be true or both be false")
    max_seq = read.count("max_position_embeddings")
    if architecture != LLAMA:
        window = read.get("sliding_window")
        if window is not None and window < max_seq:
            raise ValueError(
                f"{read.where}: sliding_window is {window}, shorter than the context of {max_seq}: attention here sees "
                f"the whole context. Up to {window} tokens the two agree: set max_position_embeddings to {window}"
            )
    experts = {}
    if architecture == MIXTRAL:
        read.require("router_jitter_noise", (0,), "the router adds no noise", 0)
        experts = {
            "num_experts": read.count("num_local_experts"),
            "experts_per_token": read.count("num_experts_per_tok"),
        }
    default_kv = heads if architecture == LLAMA else None
    return {
        "num_layers": read.count("num_hidden_layers"),
        "dim": read.count("hidden_size"),
        "num_heads": heads,
        "num_kv_heads": read.count("num_key_value_heads", default_kv),
        **({"head_dim": read.count("head_dim")} if read.get("head_dim") is not None else {}),
        "mlp_dim": read.count("intermediate_size"),
        "max_seq": max_seq,
        "tied_head": read.switch("tie_word_embeddings", False),
        "bias": bias,
        "norm_eps": read.number("rms_norm_eps"),
        **experts,
        **_rope_fields(read, default_theta=10_000.0 if architecture == LLAMA else None),
    }


def _rope_fields(read: ConfigValues, default_theta: float | None) -> dict[str, Any]:
    rope = dict(read.get("rope_parameters", read.get("rope_scaling", {})))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    theta = ConfigValues(rope | {"rope_theta": rope.get("rope_theta") or read.get("rope_theta")}, read.where)
    if kind not in ("default", "llama3"):
        raise ValueError(f"{read.where}: RoPE scaling of kind {kind!r} is not supported; 'default' and 'llama3' are")
    read.require("partial_rotary_factor", (1,), "all of a head is rotated", 1)
    fields: dict[str, Any] = {"rope_theta": theta.number("rope_theta", default_theta)}
    if kind == "llama3":
        scaling = ConfigValues(rope, f"{read.where}, RoPE scaling")
        try:
            fields["rope_scaling"] = RopeScaling(
                factor=scaling.number("factor"),
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
                original_max_seq=scaling.count("original_max_position_embeddings"),
            )
        except ValueError as error:
            raise ValueError(f"{read.where}: {error}") from error
    return fields


def _gpt2_fields(read: ConfigValues) -> dict[str, Any]:
    read.require("activation_function", ("gelu_new", "gelu_pytorch_tanh"), "GELU is its tanh form", "gelu_new")
    read.require("scale_attn_weights", (True,), "scores are divided by sqrt(head_dim)", True)
    read.require("scale_attn_by_inverse_layer_idx", (False,), "all layers scale their scores alike", False)
    read.require("add_cross_attention", (False,), "there is no encoder", False)
    dropouts = {key: float(read.get(key, 0.1)) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    if len(set(dropouts.values())) > 1:
        raise ValueError(f"{read.where}: one probability of dropout is supported for all places, got {dropouts}")
    dim = read.count("n_embd")
    return {
        "num_layers": read.count("n_layer"),
        "dim": dim,
        "num_heads": read.count("n_head"),
        "mlp_dim": read.count("n_inner", 4 * dim),
        "max_seq": read.count("n_positions"),
        "mlp": "gelu",
        "norm": "layernorm",
        "position": "learned",
        "tied_head": read.switch("tie_word_embeddings", True),
        "bias": True,
        "dropout": dropouts["resid_pdrop"],
        "norm_eps": read.number("layer_norm_epsilon", 1e-5),
    }


def config_to_hub(config: ModelConfig) -> dict[str, Any]:
    """config.json of a model, as `transformers` reads it.

    Raises:
        ValueError: if none of the architectures has such layers.
    """
    parts = (config.position, config.norm, config.mlp)
    if config.num_experts and (parts != ("rope", "rmsnorm", "swiglu") or config.bias):
        raise ValueError(
            f"model {config.name!r} has experts with mlp={config.mlp!r}, bias={config.bias}: the one architecture with "
            f"experts that is written, Mixtral, has rope, rmsnorm, swiglu and no biases"
        )
    if parts == ("rope", "rmsnorm", "swiglu"):
        values = _llama_values(config)
    elif parts == ("learned", "layernorm", "gelu"):
        values = _gpt2_values(config)
    else:
        raise ValueError(
            f"model {config.name!r} has position={config.position!r}, norm={config.norm!r}, mlp={config.mlp!r}: no "
            f"architecture of the Hugging Face layout has these together. It knows rope, rmsnorm, swiglu (Llama) and "
            f"learned, layernorm, gelu (GPT-2)"
        )
    extra: dict[str, Any] = {"name": config.name, "dropout": config.dropout}
    if config.capacity_factor is not None:  # `transformers` drops no tokens; this library goes on doing so
        extra["capacity_factor"] = config.capacity_factor
    return values | {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied_head, _EXTRA: extra}


def _llama_values(config: ModelConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "architectures": [LLAMA],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_seq,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
    }
    if config.rope_scaling is not None:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_seq,
        }
    if not config.num_experts:
        return values | {"attention_bias": config.bias, "mlp_bias": config.bias}
    return values | {
        "architectures": [MIXTRAL],
        "model_type": "mixtral",
        "num_local_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "sliding_window": None,
        "router_jitter_noise": 0.0,
    }


def _gpt2_values(config: ModelConfig) -> dict[str, Any]:
    if not config.bias or config.num_kv_heads != config.num_heads or config.query_dim != config.dim:
        raise ValueError(
            f"model {config.name!r}: GPT-2 has biases, a key/value head per query head, and heads that together are as "
            f"wide as the model; got bias={config.bias}, {config.num_heads} heads of {config.head_dim}, "
            f"{config.num_kv_heads} key/value heads, dim {config.dim}"
        )
    return {
        "architectures": [GPT2],
        "model_type": "gpt2",
        "n_embd": config.dim,
        "n_inner": config.mlp_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_seq,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }
