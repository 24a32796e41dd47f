"""What the ledger says that a model keeps, against what autograd really keeps."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.memory import ParallelConfig, get_policy
from cme295lab.memory.formulas.activations import (
    block_activations,
    kept_activations,
    outer_activations,
    recomputed_bytes,
    total,
)
from cme295lab.memory.formulas.setting import TrainingSetting
from cme295lab.transformer import DecoderLM, ModelConfig, preset

BASE = ModelConfig(vocab_size=101, num_layers=2, dim=32, num_heads=4, mlp_dim=72, max_seq=64)
KINDS = [
    dataclasses.replace(BASE, mlp=mlp, norm=norm, position=position, num_kv_heads=kv_heads, dropout=dropout)
    for mlp, norm, position, kv_heads, dropout in itertools.product(
        ("swiglu", "gelu"), ("rmsnorm", "layernorm"), ("rope", "learned"), (4, 2), (0.0, 0.1)
    )
]
OTHERS = [
    dataclasses.replace(BASE, bias=True, tied_head=True), dataclasses.replace(BASE, num_kv_heads=1, head_dim=10),
]  # fmt: skip


def kept_by_autograd(model, tokens, targets):
    """Bytes of all storages that autograd saves, each once; not those of parameters and inputs."""
    others = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), tokens, targets)}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.loss(tokens, targets)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in others)


def setting_for(config, policy="fp32", **values):
    return TrainingSetting(config=config, policy=get_policy(policy), **{"micro_batch": 3, "seq": 23} | values)


@pytest.mark.parametrize("policy", ["fp32", "bf16-pure"])
@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize(("batch", "seq"), [(3, 23), (1, 64), (5, 2)])
def test_formula_is_what_autograd_keeps_to_the_byte(policy, attention, batch, seq):
    for config in KINDS + OTHERS:
        if config.dropout and attention == "flash":
            continue  # torch has no such kernel on a CPU
        model = DecoderLM(config, attention=attention).to(torch.float32 if policy == "fp32" else torch.bfloat16)
        tokens, targets = (torch.randint(config.vocab_size, (batch, seq)) for _ in range(2))
        setting = setting_for(config, policy, attention=attention, micro_batch=batch, seq=seq)
        rows = [row for row in block_activations(setting) if row.what != "scale"]  # kept, but not shown to hooks
        wanted = config.num_layers * total(rows) + total(outer_activations(setting))
        assert kept_by_autograd(model, tokens, targets) == wanted, config


def test_a_llama_layer_by_hand():
    # 5 tokens, dim 8, 4 query and 2 key/value heads of 2, MLP 20, fp32.
    config = ModelConfig(vocab_size=9, num_layers=1, dim=8, num_heads=4, num_kv_heads=2, mlp_dim=20, max_seq=5)
    setting = setting_for(config, micro_batch=1, seq=5)
    norms = 2 * (4 * 5 * 8 + 4 * 5)  # inputs, and a number per token
    inputs = 2 * 4 * 5 * 8  # of the projections, of the MLP
    core = 4 * 5 * (8 + 2 * 4) + 4 * 5 * 4  # Q, K, V; a number per token and head
    out, mlp = 4 * 5 * 8, 4 * 4 * 5 * 20
    assert total(block_activations(setting)) == norms + inputs + core + out + mlp
    standard = setting.changed(attention="standard")
    core = 3 * 4 * 5 * 8 + 4 * 4 * 5 * 5 + 8  # keys and values once per query head; 4 heads of 5 × 5; the scale
    assert total(block_activations(standard)) == norms + inputs + core + out + mlp


def test_recomputation_keeps_what_its_name_says():
    setting = setting_for(BASE, attention="standard")
    tokens, e = 3 * 23, 4
    full = setting.changed(recompute="full")
    assert total(kept_activations(full)) == e * tokens * 32
    assert total(kept_activations(full)) + recomputed_bytes(full) == total(block_activations(full))
    selective = setting.changed(recompute="selective")
    core = 3 * e * tokens * 32 + e * 4 * tokens * 23 + 8
    assert recomputed_bytes(selective) == core
    assert total(kept_activations(selective)) == total(block_activations(setting)) - core + e * tokens * 3 * 32
    assert recomputed_bytes(setting) == 0


settings = st.fixed_dictionaries({
    "micro_batch": st.integers(1, 8), "seq": st.integers(1, 32).map(lambda n: 8 * n),
    "attention": st.sampled_from(["flash", "standard"]), "recompute": st.sampled_from(["none", "selective", "full"]),
})  # fmt: skip


@given(settings, st.sampled_from(["llama-3-8b", "gpt-2", "course-1m"]))
def test_more_batch_or_sequence_keeps_more_and_splits_keep_less(values, name):
    config = preset(name)
    setting = setting_for(config, "bf16-mixed", **values)
    base = kept(setting)
    assert kept(setting.changed(micro_batch=2 * setting.micro_batch)) == 2 * base
    if 2 * setting.seq <= config.max_seq:
        assert kept(setting.changed(seq=2 * setting.seq)) >= 2 * base
    split = setting.changed(parallel=ParallelConfig(tensor=2))
    both = split.changed(sequence_parallel=True)
    assert base / 2 <= kept(both) <= kept(split) <= base
    assert 2 * kept(both) == base  # nothing is kept twice
    assert 2 * kept(setting.changed(context=2)) == base


def kept(setting):
    """Bytes of a layer but for the scale, a number that does not grow."""
    return total(row for row in kept_activations(setting) if row.what != "scale")


def test_selective_recomputation_keeps_less_only_with_standard_attention():
    standard = setting_for(preset("gpt-2"), "bf16-mixed", seq=1024, attention="standard")
    flash = standard.changed(attention="flash")

    def saved(setting):
        return 1 - total(kept_activations(setting.changed(recompute="selective"))) / total(kept_activations(setting))

    assert saved(standard) > 0.4
    assert 0 < saved(flash) < 0.01  # the log-sum-exp alone
