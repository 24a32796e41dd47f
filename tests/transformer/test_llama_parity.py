"""The decoder is transformers' Llama and Mixtral: the same weights, the same logits. (One file: the import is slow.)"""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from cme295lab.transformer import DecoderLM, GrowingCache, ModelConfig, RopeScaling, record_routing
from cme295lab.transformer.decoder import rope_frequencies

CONFIG = ModelConfig(
    vocab_size=53, num_layers=3, dim=32, num_heads=4, num_kv_heads=2, mlp_dim=48, max_seq=64, rope_theta=5000.0
)
LLAMAS = {
    "gqa": CONFIG,
    "mha": dataclasses.replace(CONFIG, num_kv_heads=4),
    "one kv head": dataclasses.replace(CONFIG, num_kv_heads=1),
    "tied": dataclasses.replace(CONFIG, tied_head=True),
    "wide heads": dataclasses.replace(CONFIG, head_dim=12),
    "stretched": dataclasses.replace(CONFIG, rope_scaling=RopeScaling(factor=4.0, original_max_seq=40)),
}


def shared_options(config):
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope |= {
            "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
            "high_freq_factor": s.high_freq_factor, "original_max_position_embeddings": s.original_max_seq,
        }  # fmt: skip
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.dim, "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim,
        "max_position_embeddings": config.max_seq, "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head, "rope_parameters": rope,
    }  # fmt: skip


def renamed(model):
    """Our parameters under transformers' names."""
    parts = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
    parts |= {f"attention.{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "out")}
    parts |= {f"mlp.{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")} | {"mlp.router": "mlp.gate"}
    parts |= {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    state = {}
    for name, value in model.state_dict().items():
        path = name.removesuffix(".weight")
        if path.startswith("layers."):
            _, number, rest = path.split(".", 2)
            if rest.startswith("mlp.experts"):
                continue
            state[f"model.layers.{number}.{parts[rest]}.weight"] = value
        else:
            state[f"{parts[path]}.weight"] = value
    for number, layer in enumerate(model.layers):
        if model.config.num_experts:
            experts = layer.mlp.experts
            up = torch.stack([torch.cat((expert.gate.weight, expert.up.weight)) for expert in experts])
            state[f"model.layers.{number}.mlp.experts.gate_up_proj"] = up
            down = torch.stack([expert.down.weight for expert in experts])
            state[f"model.layers.{number}.mlp.experts.down_proj"] = down
    return state


def make_pair(config):
    torch.manual_seed(0)
    ours = DecoderLM(config)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    if config.num_experts:
        options = {"num_local_experts": config.num_experts, "num_experts_per_tok": config.experts_per_token}
        theirs = MixtralForCausalLM(MixtralConfig(**shared_options(config), **options, sliding_window=None))
    else:
        theirs = LlamaForCausalLM(LlamaConfig(**shared_options(config)))
    theirs.load_state_dict(renamed(ours))
    return ours, theirs.eval()


@pytest.mark.parametrize("name", LLAMAS)
@torch.no_grad()
def test_logits_are_those_of_transformers_llama(name):
    ours, theirs = make_pair(LLAMAS[name])
    tokens = torch.randint(CONFIG.vocab_size, (2, 50))
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_gradients_are_those_of_transformers_llama():
    ours, theirs = make_pair(LLAMAS["tied"])
    tokens = torch.randint(CONFIG.vocab_size, (2, 20))
    loss = ours.loss(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    expected = theirs(tokens, labels=tokens).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = dict(theirs.named_parameters())
    gradient = ours.layers[1].attention.key.weight.grad
    expected = gradients["model.layers.1.self_attn.k_proj.weight"].grad
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    gradient, expected = ours.embedding.weight.grad, gradients["model.embed_tokens.weight"].grad
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_stretched_frequencies_are_those_of_llama_3():
    llama = dataclasses.replace(CONFIG, head_dim=128, rope_theta=500_000.0, max_seq=131_072)
    config = dataclasses.replace(llama, rope_scaling=RopeScaling())
    theirs = LlamaForCausalLM(LlamaConfig(**shared_options(dataclasses.replace(config, num_layers=1))))
    torch.testing.assert_close(rope_frequencies(config), theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    ratio = rope_frequencies(llama) / rope_frequencies(config)
    assert ratio[0].item() == pytest.approx(1.0)  # a turn every 6 tokens
    assert ratio[-1].item() == pytest.approx(8.0)
    assert ratio.diff().min() > -1e-5  # the slower, the more


@pytest.mark.parametrize(("experts", "k"), [(4, 2), (5, 1), (3, 3)])
@torch.no_grad()
def test_logits_are_those_of_transformers_mixtral(experts, k):
    ours, theirs = make_pair(dataclasses.replace(CONFIG, num_experts=experts, experts_per_token=k))
    tokens = torch.randint(CONFIG.vocab_size, (2, 20))
    with record_routing(ours) as routings:
        logits = ours(tokens)
    expected = theirs(tokens, output_router_logits=True)
    torch.testing.assert_close(
        logits, expected.logits, rtol=1e-5, atol=2e-5 * expected.logits.abs().max().item()
    )
    for routing, router_logits in zip(routings, expected.router_logits, strict=True):
        torch.testing.assert_close(routing.logits, router_logits, rtol=1e-4, atol=1e-4)
    x = torch.randn(2, 7, CONFIG.dim)
    block = theirs.model.layers[1].mlp(x)
    block = block[0] if isinstance(block, tuple) else block
    torch.testing.assert_close(ours.layers[1].mlp(x), block, rtol=1e-5, atol=1e-5 * block.abs().max().item())


@torch.no_grad()
def test_caches_hold_what_transformers_holds():
    """Also in which order: rotated keys, before they are repeated for the query heads."""
    ours, theirs = make_pair(LLAMAS["gqa"])
    tokens = torch.randint(CONFIG.vocab_size, (2, 9))
    cache = GrowingCache(CONFIG, batch_size=2)
    ours(tokens[:, :6], cache=cache)
    ours(tokens[:, 6:], cache=cache)
    held = theirs(tokens, use_cache=True).past_key_values
    for number in range(CONFIG.num_layers):
        keys, values = cache._layers[number]
        torch.testing.assert_close(keys, held.layers[number].keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(values, held.layers[number].values, rtol=1e-4, atol=1e-4)
