"""FLOP by formula against FLOP that PyTorch executes, to the last one; and rules that any count obeys."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cme295lab.memory import apply_recompute, recomputed_flops
from cme295lab.pretraining.flops import flops_per_token, matmul_parameters, training_flops
from cme295lab.transformer import DecoderLM, ModelConfig, preset

LLAMA = ModelConfig(name="llama", vocab_size=61, num_layers=3, dim=24, num_heads=4, num_kv_heads=2, head_dim=10,
                    mlp_dim=37, max_seq=64)  # fmt: skip
GPT = ModelConfig(name="gpt", vocab_size=53, num_layers=2, dim=20, num_heads=5, mlp_dim=80, mlp="gelu",
                  norm="layernorm", position="learned", max_seq=32, tied_head=True, bias=True)  # fmt: skip
TIED = ModelConfig.from_dict(LLAMA.to_dict() | {"tied_head": True, "num_kv_heads": 1})
MIXTURE = ModelConfig.from_dict(LLAMA.to_dict() | {"num_experts": 5, "experts_per_token": 2})
DENSE_MIXTURE = ModelConfig.from_dict(GPT.to_dict() | {"num_experts": 3, "experts_per_token": 3, "bias": False})
SHAPES = {"llama": LLAMA, "gpt": GPT, "tied": TIED, "mixture": MIXTURE, "dense mixture": DENSE_MIXTURE}
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def flash_forward(q, k, v, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(q, k, v)


def flash_backward(grad, q, k, v, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


def executed(config: ModelConfig, *, batch: int, seq: int, attention: str = "standard", recompute: str = "none",
             ) -> tuple[int, int]:  # fmt: skip
    """FLOP of a forward and of a backward pass by PyTorch's counter."""
    model = DecoderLM(config, attention=attention)
    apply_recompute(model, recompute)
    tokens = torch.randint(config.vocab_size, (batch, seq))
    # PyTorch has a formula for flash attention on a GPU, and does not apply it to the kernel for CPUs by itself.
    mapping = {FLASH: flash_forward, FLASH_BACKWARD: flash_backward}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        loss = model.loss(tokens, tokens)
        forward = counter.get_total_flops()
        loss.backward()
    return forward, counter.get_total_flops() - forward


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (2, 17), (3, 32)])
def test_forward_and_backward_are_what_pytorch_executes(name, batch, seq):
    config = SHAPES[name]
    found = flops_per_token(config, seq).times(batch * seq)
    assert (found.forward, found.backward) == executed(config, batch=batch, seq=seq)
    assert found.recomputed == 0


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("attention", ["standard", "flash"])
def test_what_is_computed_again_is_what_pytorch_executes_again(name, recompute, attention):
    config, batch, seq = SHAPES[name], 2, 19
    found = flops_per_token(config, seq, recompute=recompute, attention=attention).times(batch * seq)
    forward, backward = executed(config, batch=batch, seq=seq, attention=attention, recompute=recompute)
    assert (found.forward, found.backward + found.recomputed) == (forward, backward)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_recomputation_agrees_with_the_rooms_of_memory(recompute):
    found = flops_per_token(LLAMA, 12, recompute=recompute).times(5 * 12)
    assert found.recomputed == recomputed_flops(LLAMA, recompute, batch=5, seq=12)


@pytest.mark.parametrize("name", ["gpt-2", "gpt-3", "llama-2-70b", "llama-3-8b", "mixtral-8x7b", "megatron-1t"])
def test_matrices_times_six_and_the_core_are_all(name):
    config = preset(name)
    core = 12 * config.num_layers * config.query_dim * 1024
    per_token = flops_per_token(config, 1024)
    assert per_token.total == 6 * matmul_parameters(config) + core


def test_parameters_that_multiply_by_hand():
    """Two layers of width 3: Q, K, V, out 4·9, MLP 2·3·12, and the head 5·3; norms, biases and positions do not."""
    config = ModelConfig(vocab_size=5, num_layers=2, dim=3, num_heads=1, mlp_dim=12, mlp="gelu", norm="layernorm",
                         position="learned", max_seq=7, tied_head=True, bias=True)  # fmt: skip
    assert matmul_parameters(config) == 2 * (36 + 72) + 15
    assert flops_per_token(config, 7).total == 6 * 231 + 2 * 12 * 3 * 7
    untied = ModelConfig.from_dict(config.to_dict() | {"tied_head": False})
    assert matmul_parameters(untied) == matmul_parameters(config)
    assert untied.num_parameters == config.num_parameters + 15


def test_idle_experts_cost_nothing():
    """Mixtral 8x7B: two of eight experts, so the work of 12.9 billion parameters, of 46.7 billion."""
    config = preset("mixtral-8x7b")
    idle = config.vocab_size * config.dim + config.counts.norms  # an embedding that is no head, and the norms
    assert matmul_parameters(config) == config.num_active_parameters - idle
    more = ModelConfig.from_dict(config.to_dict() | {"num_experts": 16})
    assert matmul_parameters(more) - matmul_parameters(config) == 32 * 8 * config.dim  # the router alone grows
    assert "each token passes 2 of 8 experts" in str(flops_per_token(config, 4096))


def test_causal_halves_the_core_and_nothing_else():
    full, half = (flops_per_token(preset("llama-3-8b"), 8192, causal=causal) for causal in (False, True))
    for a, b in zip(full.rows, half.rows, strict=True):
        assert a.forward == b.forward * (2 if a.operator.startswith(("scores", "prob")) else 1)
    core = 12 * 32 * 4096 * 8192
    assert full.total - half.total == core // 2


def test_embedding_is_free_unless_it_is_counted_as_a_product():
    plain, with_it = (flops_per_token(LLAMA, 9, include_embedding=include) for include in (False, True))
    assert "embedding" not in plain.by_part()
    assert with_it.total - plain.total == 6 * LLAMA.vocab_size * LLAMA.dim == with_it.by_part()["embedding"]


def test_parts_add_up_and_tokens_multiply():
    one = flops_per_token(GPT, 16, recompute="full")
    assert sum(one.by_part().values()) == one.total == one.model_flops == one.forward * 3
    many = one.times(1000)
    assert (many.num_tokens, many.hardware_flops) == (1000, 1000 * one.hardware_flops)
    assert training_flops(GPT, 1000, 16, recompute="full") == many.hardware_flops


def test_full_recomputation_is_a_third_more_but_for_the_head():
    config = preset("gpt-3")
    none, full = (flops_per_token(config, 2048, recompute=kind) for kind in ("none", "full"))
    layers = none.forward - 2 * config.dim * config.vocab_size
    assert full.hardware_flops - none.hardware_flops == layers
    assert full.hardware_flops / none.hardware_flops == pytest.approx(4 / 3, rel=0.005)


def test_table_shows_every_row_and_the_sum():
    found = flops_per_token(preset("gpt-2"), 1024, recompute="selective")
    text, page = str(found), found._repr_html_()
    for row in found.rows:
        assert row.operator in text
        assert row.operator in page
    # 6 · (124,439,808 - 907,776 that multiply nothing) + 12 · 12 · 768 · 1024, and a third of the latter once more
    assert (found.model_flops, found.recomputed) == (741_192_192 + 113_246_208, 37_748_736)
    assert "all: 892 MFLOP" in text
    assert "all: 892 MFLOP" in page
    assert max(len(line) for line in text.splitlines()) < 100


def test_bad_arguments():
    for seq, error in ((0, ValueError), (2.0, TypeError), (True, TypeError), (33, ValueError)):
        with pytest.raises(error, match="seq must be"):
            flops_per_token(GPT, seq)
    flops_per_token(LLAMA, 100_000)  # rotations have no table that ends
    with pytest.raises(ValueError, match="recompute must be one of none, selective, full, got 'some'"):
        flops_per_token(GPT, 8, recompute="some")
    with pytest.raises(ValueError, match="attention must be one of standard, flash, got 'fast'"):
        flops_per_token(GPT, 8, attention="fast")
    with pytest.raises(ValueError, match="num_tokens must be at least 1"):
        training_flops(GPT, 0, 8)
