"""What fits, what is the largest that does, which change is the cheapest."""

import dataclasses

import pytest

from cme295lab.hardware import get_device
from cme295lab.memory import MemoryLedger, ParallelConfig, cheapest_fix, largest_fitting, training_memory
from cme295lab.transformer import PRESETS, preset


@pytest.mark.parametrize(("model", "device", "values"), [
    ("gpt-2", "T4", {"seq": 1024}),
    ("llama-3-8b", "H100", {"seq": 8192, "parallel": ParallelConfig(data=8, zero_stage=3), "recompute": "full"}),
    ("llama-3-8b", "H100", {"seq": 8192, "parallel": ParallelConfig(tensor=8, sequence_parallel=True)}),
])  # fmt: skip
def test_the_largest_fits_and_one_more_does_not(model, device, values):
    ledger, seen = training_memory(model, **values), {}
    for what, step in (("micro_batch", 1), ("seq", values["parallel"].tensor if "parallel" in values else 1)):
        largest = seen[what] = ledger.largest_fitting(what, device=device)
        if what == "seq" and largest == 1024 == preset(model).max_seq:
            continue  # the table of positions ends
        assert ledger.setting is not None
        for size, fits in ((largest, True), (largest + step, False)):
            assert bool(training_memory(model, **(values | {what: size})).fits(device)) is fits, (what, size)
    assert all(size > 1 for size in seen.values())


def test_largest_number_of_layers():
    config = preset("gpt-2")
    ledger = training_memory(config, seq=1024)
    largest = ledger.largest_fitting("num_layers", device="T4")
    for layers, fits in ((largest, True), (largest + 1, False)):
        assert bool(training_memory(dataclasses.replace(config, num_layers=layers), seq=1024).fits("T4")) is fits


def test_largest_published_model():
    ledger = training_memory("gpt-2", seq=1024, recompute="full")
    largest = ledger.largest_fitting("model", device="A100")
    counted = {name: c for name, c in PRESETS.items() if c.max_seq >= 1024 and not c.num_experts}
    ledgers = {name: training_memory(c, seq=1024, recompute="full") for name, c in counted.items()}
    fitting = [name for name, ledger in ledgers.items() if ledger.fits("A100")]
    assert largest == max(fitting, key=lambda name: PRESETS[name].num_parameters) == "gpt-2-xl"


def test_nothing_fits_is_none():
    assert training_memory("llama-3-405b", seq=128).largest_fitting("micro_batch", device="T4") is None
    tiny = dataclasses.replace(get_device("T4"), memory_bytes=1000)
    assert training_memory("gpt-2", seq=128).largest_fitting("model", device=tiny) is None


def test_learned_positions_bound_the_sequence():
    assert training_memory("gpt-2", seq=64).largest_fitting("seq", device="H100") == 1024


def names(fix):
    return [change.name for change in fix.changes]


def test_what_fits_needs_no_change():
    fix = training_memory("gpt-2", seq=1024).cheapest_fix("A100")
    assert fix
    assert fix.changes == ()
    assert str(fix).startswith("fits A100-80GB-SXM")


@pytest.mark.parametrize(("values", "device", "wanted"), [
    # 12 heads × 1024² probabilities in 12 layers are what is too much: flash attention is free.
    ({"config": "gpt-2", "seq": 1024, "micro_batch": 16, "attention": "standard"}, "T4", ["flash attention"]),
    ({"config": "gpt-2-xl", "seq": 1024, "micro_batch": 24}, "A100", ["micro-batch 19"]),
    ({"config": "llama-3-8b", "seq": 8192, "parallel": ParallelConfig(tensor=2)}, "A100", ["full recomputation"]),
    ({"config": "llama-3-8b", "seq": 24_576, "parallel": ParallelConfig(tensor=4)}, "A100", ["sequence parallelism"]),
    ({"config": "llama-3-8b", "seq": 8192}, "H100", ["ZeRO-3 over 8 GPUs"]),
    ({"config": "llama-3-8b", "seq": 4096, "parallel": ParallelConfig(data=8)}, "H100", ["ZeRO-1"]),
    ({"config": "llama-3-8b", "seq": 6144, "parallel": ParallelConfig(data=8)}, "H100", ["ZeRO-2"]),
    ({"config": "llama-2-7b", "seq": 4096, "parallel": ParallelConfig(tensor=4)}, "A100", []),
    ({"config": "gpt-2-xl", "seq": 64, "step": "foreach"}, "V100-32GB-SXM2", ["fused optimizer"]),
])  # fmt: skip
def test_the_cheapest_single_change(values, device, wanted):
    ledger = training_memory(**values)
    fix = ledger.cheapest_fix(device)
    assert fix
    assert names(fix) == wanted
    assert fix.ledger.fits(device)


def test_two_changes_where_one_does_not_do():
    ledger = training_memory("llama-3-8b", seq=8192)
    fix = ledger.cheapest_fix("H100", more_gpus=False)
    assert names(fix) == ["full recomputation", "optimizer states in the CPU's memory"]
    assert fix
    setting = ledger.setting
    assert setting is not None
    for change in ({"recompute": "full"}, {"offload_states": True}):  # neither suffices alone
        assert not MemoryLedger.from_json(setting.changed(**change).to_json()).fits("H100")
    assert "costs a third more compute" in str(fix)


def test_changes_that_turn_out_not_to_be_needed_are_taken_away():
    fix = training_memory("llama-3-405b", seq=8192).cheapest_fix("H100")
    assert fix
    # On the way ZeRO-1 and ZeRO-2, tensor parallelism over 2 and over 4 GPUs were tried.
    assert names(fix) == ["full recomputation", "ZeRO-3 over 8 GPUs", "tensor parallelism over 8 GPUs",
                          "optimizer states in the CPU's memory"]  # fmt: skip
    assert fix.ledger.setting.parallel == ParallelConfig(data=8, zero_stage=3, tensor=8)


def test_what_nothing_helps_says_so():
    fix = training_memory("llama-3-405b", seq=8192).cheapest_fix("T4")
    assert not fix
    assert "nothing that is known here makes it fit" in str(fix)
    assert not fix.ledger.fits("T4")


def test_bad_arguments():
    setting = training_memory("gpt-2", seq=8).setting
    with pytest.raises(ValueError, match="what must be one of micro_batch, seq, num_layers, model, got 'heads'"):
        largest_fitting(setting, "heads", device="T4")
    with pytest.raises(ValueError, match="unknown device"):
        cheapest_fix(setting, "T5000")
