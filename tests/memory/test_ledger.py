"""The ledger as a whole: worked cases, published sizes, properties, storing and rendering, bad input."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from cme295lab.memory import (
    MemoryLedger,
    ParallelConfig,
    TrainingSetting,
    get_policy,
    inference_memory,
    kv_cache_bytes,
    training_memory,
    zero_model_state_bytes,
)
from cme295lab.transformer import ModelConfig, preset
from cme295lab.units import GiB, KiB

TINY = ModelConfig(vocab_size=100, num_layers=2, dim=8, num_heads=2, mlp_dim=16, max_seq=16, name="tiny")


def test_kv_cache_sizes_of_published_models():
    per_token = {"llama-2-7b": 524_288, "llama-2-13b": 819_200, "llama-2-70b": 327_680, "llama-3-8b": 131_072,
                 "llama-3-70b": 327_680}  # fmt: skip
    assert {name: kv_cache_bytes(name, seq=1) for name in per_token} == per_token
    assert kv_cache_bytes("llama-2-7b", seq=4096) == 2 * GiB
    assert kv_cache_bytes("llama-2-13b", seq=4096) == 3.125 * GiB
    assert kv_cache_bytes("llama-2-70b", seq=4096) == 1.25 * GiB
    many_heads = dataclasses.replace(preset("llama-2-70b"), num_kv_heads=64)
    assert kv_cache_bytes(many_heads, seq=1) == 2560 * KiB
    assert kv_cache_bytes("llama-3-8b", seq=131_072) == 16 * GiB
    assert kv_cache_bytes("llama-3-8b", seq=8192, batch=4, dtype="fp32", tensor=8) == GiB
    assert kv_cache_bytes("llama-3-8b", seq=1, tensor=16) == 131_072 // 8  # a head each, and no half heads


def test_inference_holds_weights_and_cache():
    ledger = inference_memory("llama-2-7b", seq=4096, batch=2)
    assert ledger.by_class() == {
        "weight": 2 * 6_738_415_616, "KV cache": 4 * GiB, "temporary": 4 * 2 * 32_000
    }  # fmt: skip
    assert ledger.fits("RTX-4090")
    with pytest.raises(ValueError, match="this ledger is of generation with llama-2-7b"):
        ledger.to_json()


def test_mixture_of_experts_holds_all_experts_and_its_training_is_refused():
    assert inference_memory("mixtral-8x7b", seq=1).by_class()["weight"] == 2 * 46_702_792_704
    with pytest.raises(ValueError, match=r"'mixtral-8x7b' is a mixture of 8 experts.*use a dense config"):
        training_memory("mixtral-8x7b", seq=1024)


def test_llama_3_8b_does_not_fit_80_gb_and_why():
    ledger = training_memory("llama-3-8b", seq=8192)
    size = preset("llama-3-8b").num_parameters
    classes = ledger.by_class()
    assert (classes["weight"], classes["gradient"], classes["master weight"]) == (2 * size, 2 * size, 4 * size)
    assert classes["optimizer state"] == 8 * size + 4 * 291  # a step counter per tensor
    tokens, dim, layers = 8192, 4096, 32
    # Per token and layer, in bf16: inputs of norms and products, 4 dim; Q and output, 2 dim; K and V, 2 × 1024; MLP,
    # 4 × 14336. In fp32: two norms' and 32 heads' numbers. Once: rotations, the last norm, head, log-probabilities.
    layer = tokens * (2 * (6 * dim + 2 * 1024 + 4 * 14_336) + 4 * 2 + 4 * 32)
    once = 2 * 2 * tokens * 128 + tokens * (2 * 2 * dim + 4) + 4 * (tokens * 128_256 + 1)
    assert classes["activation"] == layers * layer + once == 48_400_203_780
    assert classes["temporary"] == 2 * 4 * tokens * 128_256
    verdict = ledger.fits("H100")
    assert not verdict
    assert verdict.margin_bytes == 80 * GiB - ledger.total_bytes
    assert str(verdict) == "does not fit H100-SXM5: 185 GB of 85.9 GB, 99.4 GB too much"
    sharded = training_memory("llama-3-8b", seq=8192, parallel=ParallelConfig(data=8, zero_stage=3))
    assert sharded.fits("H100")


def test_a_tiny_step_by_hand():
    ledger = training_memory(TINY, policy="fp32", micro_batch=2, seq=4, optimizer="sgd-momentum")
    parameters = 2 * 100 * 8 + 2 * (4 * 64 + 3 * 128 + 2 * 8) + 8
    assert ledger.class_bytes("weight") == ledger.class_bytes("gradient") == 4 * parameters
    assert ledger.class_bytes("optimizer state") == 4 * parameters
    assert ledger.class_bytes("master weight") == 0
    layer = 4 * 8 * (8 * 8 + 4 * 16) + 2 * 4 * 8 + 4 * 8 * 2  # inputs, Q, K, V, output; MLP; norms; log-sum-exp
    once = 2 * 4 * 4 * 4 + 2 * 4 * 64 + 4 * 8 + 4 * (8 * 100 + 1)
    assert ledger.saved_activation_bytes == 2 * layer + once
    # The loss: 2 × 8 × 100 numbers. The head: 8 × 100, its own gradient of 800, that of its input, 64.
    assert ledger.moment == "loss"
    assert ledger.class_bytes("temporary") == 4 * 1600
    assert ledger.at("head").class_bytes("temporary") == 4 * (800 + 800 + 64)
    assert ledger.at("optimizer").class_bytes("activation") == 0


def test_rows_add_up_to_the_largest_moment():
    ledger = training_memory("gpt-2", seq=512, micro_batch=4, attention="standard", step="loop", policy="fp32")
    totals = {moment.name: ledger.at(moment.name).total_bytes for moment in ledger.moments}
    in_order = ["loss", "head", "last norm", "last layer", "last attention", "first layer", "first attention",
                "positions", "embedding", "optimizer"]  # fmt: skip
    assert list(totals) == in_order
    assert ledger.total_bytes == max(totals.values()) == totals[ledger.moment] == sum(r.num_bytes for r in ledger.rows)
    with pytest.raises(ValueError, match=r"no moment 'lunch' .* loss, head"):
        ledger.at("lunch")


def test_gradients_that_are_freed_are_not_there_with_the_activations():
    kept = training_memory("gpt-2", seq=1024, micro_batch=4)
    freed = training_memory("gpt-2", seq=1024, micro_batch=4, gradients="freed")
    assert freed.moment == kept.moment == "loss"
    assert kept.total_bytes - freed.total_bytes == 2 * preset("gpt-2").num_parameters
    # With one token, the peak is the optimizer's step, where all gradients exist.
    kept, freed = (training_memory("gpt-2", seq=1, gradients=g, step="foreach") for g in ("kept", "freed"))
    assert freed.total_bytes == kept.total_bytes
    assert freed.moment == "optimizer"


def test_logits_in_fp32_cost_what_they_should():
    wide, narrow = (training_memory("llama-3-8b", seq=8192, fp32_logits=wide) for wide in (True, False))
    # 4 or 2 bytes for log-probabilities, as much again twice on the way back.
    assert wide.total_bytes - narrow.total_bytes == 3 * 2 * (8192 * 128_256) + 2


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_stages_shard_what_they_say(stage):
    split = ParallelConfig(data=64, zero_stage=stage)
    ledger = training_memory("megatron-7.5b", seq=2048, parallel=split)
    states = sum(ledger.class_bytes(name) for name in ("weight", "gradient", "master weight", "optimizer state"))
    counters = next(row.num_bytes for row in ledger.rows if row.name == "step counters")
    assert states - counters == zero_model_state_bytes(preset("megatron-7.5b").num_parameters, 64, stage)
    gathered = [row.num_bytes for row in ledger.rows if row.name == "gathered weights"]
    assert gathered == ([2 * 2 * preset("megatron-7.5b").parameters_per_layer] if stage == 3 else [])


def test_first_pipeline_stage_holds_as_many_activations_as_no_pipeline():
    whole = training_memory("llama-3-8b", seq=8192).at("last layer")
    first = training_memory("llama-3-8b", seq=8192, parallel=ParallelConfig(pipeline=4)).at("last layer")
    last = training_memory("llama-3-8b", seq=8192, parallel=ParallelConfig(pipeline=4, pipeline_rank=3)).at(
        "last layer"
    )
    rotations = 2 * 2 * 8192 * 128
    assert first.class_bytes("activation") == whole.class_bytes("activation")
    assert 4 * (last.class_bytes("activation") - rotations) == whole.class_bytes("activation") - rotations
    assert first.class_bytes("weight") < whole.class_bytes("weight") / 3


def test_fragmentation_and_offload_are_stated():
    plain = training_memory("llama-3-8b", seq=8192)
    assert training_memory("llama-3-8b", seq=8192, fragmentation=0.1).total_bytes == pytest.approx(
        1.1 * plain.total_bytes, abs=1
    )
    offloaded = training_memory("llama-3-8b", seq=8192, offload_states=True)
    moved = plain.class_bytes("master weight") + plain.class_bytes("optimizer state")
    assert plain.total_bytes - offloaded.total_bytes == moved


choices = st.fixed_dictionaries({
    "policy": st.sampled_from(["fp32", "bf16-mixed", "bf16-pure"]), "micro_batch": st.integers(1, 9),
    "seq": st.integers(1, 16).map(lambda n: 8 * n), "recompute": st.sampled_from(["none", "selective", "full"]),
    "attention": st.sampled_from(["flash", "standard"]), "step": st.sampled_from(["loop", "foreach", "fused"]),
    "optimizer": st.sampled_from(["sgd", "sgd-momentum", "adam", "adamw", "adam-8bit", "adafactor"]),
    "gradients": st.sampled_from(["kept", "freed"]), "fragmentation": st.sampled_from([0.0, 0.05]),
    "parallel": st.builds(
        ParallelConfig, data=st.sampled_from([1, 3]), zero_stage=st.integers(0, 3), tensor=st.sampled_from([1, 2]),
        pipeline=st.sampled_from([1, 2]), context=st.sampled_from([1, 2]),
    ),
})  # fmt: skip


@given(choices, st.sampled_from(["gpt-2", "course-4m"]))
@hypothesis_settings(max_examples=25, deadline=None)
def test_a_ledger_is_monotone_and_comes_back_from_json(values, name):
    ledger = training_memory(name, **values)
    assert ledger.total_bytes == sum(ledger.by_class().values()) > 0
    again = MemoryLedger.from_json(ledger.to_json())
    assert again == ledger
    assert json.loads(ledger.to_json())["config"]["name"] == name
    for change in ({"micro_batch": values["micro_batch"] + 1}, {"seq": values["seq"] + 8}):
        assert training_memory(name, **(values | change)).total_bytes >= ledger.total_bytes
    for change in ({"recompute": "none"}, {"step": "foreach"}, {"gradients": "kept"}):
        if change != {"recompute": "none"} or values["attention"] == "flash":
            assert training_memory(name, **(values | change)).total_bytes >= ledger.total_bytes


def test_a_setting_can_be_written_by_hand():
    text = '{"config": "gpt-2", "policy": "bf16-mixed", "seq": 128, "parallel": {"data": 2, "zero_stage": 1}}'
    ledger = MemoryLedger.from_json(text)
    assert ledger == training_memory("gpt-2", seq=128, parallel=ParallelConfig(data=2, zero_stage=1))


def test_text_and_html_name_every_row_and_the_total():
    ledger = training_memory(dataclasses.replace(TINY, name="<tiny>"), seq=16)
    text, page = str(ledger), ledger._repr_html_()
    for row in ledger.rows:
        assert row.name in text
        assert row.formula in text
    assert "peak (at: loss)" in text
    assert page.count("<tr") == len(ledger.rows) + 1
    assert "&lt;tiny&gt;" in page
    assert "<tiny>" not in page
    assert "NaN" not in page


@pytest.mark.parametrize(("values", "error", "message"), [
    ({"micro_batch": 0}, ValueError, "micro_batch must be at least 1"),
    ({"micro_batch": 1.5}, TypeError, "micro_batch must be an int"),
    ({"seq": 2048}, ValueError, "seq=2048 is longer than the 1024 learned positions"),
    ({"recompute": "half"}, ValueError, "recompute must be one of none, selective, full"),
    ({"attention": "linear"}, ValueError, "attention must be one of"),
    ({"optimizer": "lion"}, ValueError, "optimizer must be one of"),
    ({"gradients": "lost"}, ValueError, "gradients must be one of"),
    ({"step": "jit"}, ValueError, "step must be one of"),
    ({"fragmentation": 1.0}, ValueError, "fragmentation is a share"),
    ({"policy": "fp12"}, ValueError, "unknown precision policy"),
    ({"parallel": ParallelConfig(tensor=5)}, ValueError, "tensor=5 does not divide num_heads=12"),
    ({"parallel": ParallelConfig(context=3)}, ValueError, "seq=1024 does not divide over context=3"),
    ({"parallel": ParallelConfig(pipeline=13)}, ValueError, "more than the 12 layers"),
    ({"depth": 3}, TypeError, "depth"),
])  # fmt: skip
def test_bad_setting_is_refused_by_name(values, error, message):
    with pytest.raises(error, match=message):
        training_memory("gpt-2", **values)


@pytest.mark.parametrize(("values", "error", "message"), [
    ({"data": 0}, ValueError, "data must be at least 1"),
    ({"tensor": 2.0}, TypeError, "tensor must be an int"),
    ({"zero_stage": 4}, ValueError, "zero_stage must be 0, 1, 2 or 3, got 4"),
    ({"pipeline": 2, "pipeline_rank": 2}, ValueError, "pipeline_rank must be 0 to pipeline - 1 = 1"),
    ({"sequence_parallel": True}, ValueError, "it needs tensor > 1"),
    ({"interleave_chunks": 2}, ValueError, "needs pipeline > 1"),
    ({"num_micro_batches": 0}, ValueError, "num_micro_batches must be at least 1"),
])  # fmt: skip
def test_bad_split_is_refused_by_name(values, error, message):
    with pytest.raises(error, match=message):
        ParallelConfig(**values)


def test_bad_json_is_refused():
    with pytest.raises(ValueError, match="a setting has no batch; it has config"):
        MemoryLedger.from_json('{"config": "gpt-2", "policy": "fp32", "seq": 8, "batch": 2}')
    with pytest.raises(ValueError, match="parallel has no rings"):
        MemoryLedger.from_json('{"config": "gpt-2", "policy": "fp32", "seq": 8, "parallel": {"rings": 2}}')
    with pytest.raises(ValueError, match="a setting is a JSON object, got list"):
        MemoryLedger.from_json("[]")
    with pytest.raises(ValueError, match="Expecting value"):
        MemoryLedger.from_json("")
    with pytest.raises(TypeError, match="policy must be a name"):
        MemoryLedger.from_json('{"config": "gpt-2", "seq": 8}')


def test_a_setting_is_plain_values():
    setting = TrainingSetting(config=TINY, policy=get_policy("fp32"), seq=4)
    assert TrainingSetting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting
    assert setting.changed(tensor=2, seq=8).parallel == ParallelConfig(tensor=2)


def test_formulas_import_no_torch():
    code = (
        "import sys; from cme295lab import memory; memory.training_memory('gpt-2').cheapest_fix('T4'); "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
