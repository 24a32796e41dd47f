"""The papers' formulas, tables and quoted totals."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.pretraining.flops import (
    PF_DAY,
    FlopRate,
    approximate_training_flops,
    flops_per_token,
    hfu,
    kaplan_flops_per_token,
    korthikanti_flops,
    megatron_flops,
    megatron_parameters,
    mfu,
    palm_flops_per_token,
    training_time_s,
)
from cme295lab.transformer import preset

NARAYANAN_TABLE_1 = (  # layers, dim, billions of parameters, TFLOP/s per GPU, per cent of the peak
    (36, 4096, 7.5, 142, 46), (40, 6144, 18.4, 135, 43), (80, 12288, 145.6, 148, 47), (96, 16384, 310.1, 155, 50),
    (128, 25600, 1008.0, 163, 52),
)  # fmt: skip
KORTHIKANTI_TABLE_5 = {  # name: GPUs, batch, seconds per iteration, MFU, HFU
    "megatron-22b": (8, 4, 1.10, 41.5, 43.7), "megatron-175b": (64, 64, 13.75, 51.4, 52.8),
    "megatron-530b": (280, 280, 37.83, 56.0, 57.0), "megatron-1t": (512, 512, 71.49, 56.3, 57.0),
}  # fmt: skip
LLAMA_3_TABLE_4 = (  # tp, cp, pp, dp, seq, batch per dp, TFLOP/s per GPU, per cent
    (8, 1, 16, 64, 8192, 32, 430, 43), (8, 1, 16, 128, 8192, 16, 400, 41), (8, 16, 16, 8, 131_072, 16, 380, 38),
)  # fmt: skip


@pytest.mark.parametrize(("with_attention", "published"), [(True, 46.2), (False, 45.7)])
def test_palm_540b(with_attention, published):
    flops = palm_flops_per_token(540_350_000_000, num_layers=118, num_heads=48, head_dim=256, seq=2048,
                                 with_attention=with_attention)  # fmt: skip
    found = mfu(flops, tokens_per_s=238_300, peak=275e12, num_gpus=6144)
    assert 100 * found == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize(("layers", "dim", "billions", "tflops", "per_cent"), NARAYANAN_TABLE_1)
def test_megatron_parameters_and_share_of_the_peak(layers, dim, billions, tflops, per_cent):
    assert megatron_parameters(layers, dim) / 1e9 == pytest.approx(billions, abs=0.06)
    assert 100 * tflops / 312 == pytest.approx(per_cent, abs=0.7)


def test_megatron_parameters_are_those_of_the_preset():
    """The formula leaves the last norm out: two vectors of the width."""
    for name in ("megatron-7.5b", "megatron-22b", "megatron-1t"):
        config = preset(name)
        assert megatron_parameters(config.num_layers, config.dim) == config.num_parameters - 2 * config.dim


def test_megatron_iteration_is_our_count_with_full_recomputation():
    config = preset("megatron-7.5b")
    ours = flops_per_token(config, 2048, recompute="full").times(3 * 2048)
    assert megatron_flops(config.num_layers, config.dim, batch=3) == ours.hardware_flops


@pytest.mark.parametrize(
    ("parameters", "tokens", "gpus", "tflops", "published"),
    [(175e9, 300e9, 1024, 140, 33.9), (1008e9, 450e9, 3072, 163, 83.9)],
    ids=["gpt-3", "1t"],
)
def test_days_of_training(parameters, tokens, gpus, tflops, published):
    compute = approximate_training_flops(parameters, tokens, recompute="full")
    seconds = training_time_s(compute, flops_per_s_per_gpu=FlopRate(tflops * 1e12), num_gpus=gpus)
    assert seconds / 86_400 == pytest.approx(published, abs=0.05)
    # By hand: 8 T P / (n X), in days.
    assert seconds == pytest.approx(8 * tokens * parameters / (gpus * tflops * 1e12))


def test_aggregate_of_the_largest_run():
    assert 3072 * FlopRate(163e12) == pytest.approx(502e15, rel=0.003)


@pytest.mark.parametrize("name", KORTHIKANTI_TABLE_5)
def test_korthikanti_mfu_and_hfu(name):
    gpus, batch, seconds, published_mfu, published_hfu = KORTHIKANTI_TABLE_5[name]
    config = preset(name)
    found = [
        100 * korthikanti_flops(config.num_layers, config.dim, batch=batch, recompute=kind).rate_in(seconds) / gpus
        / 312e12
        for kind in ("none", "selective")
    ]  # fmt: skip
    assert [float(value) for value in found] == pytest.approx([published_mfu, published_hfu], abs=0.2)
    # The same MFU by our count and tokens per second; our HFU lies between the two (see the next test).
    table = flops_per_token(config, 2048, recompute="selective")
    speed = {"tokens_per_s": batch * 2048 / seconds, "peak": "A100", "num_gpus": gpus}
    assert 100 * mfu(table, **speed) == pytest.approx(float(found[0]))
    assert float(found[0]) < 100 * hfu(table, **speed) < float(found[1])


def test_korthikanti_530b_with_data_parallelism():
    compute = korthikanti_flops(105, 20480, batch=8 * 280)
    assert 100 * float(compute.rate_in(39.15)) / (2240 * 312e12) == pytest.approx(54.2, abs=0.1)


@pytest.mark.parametrize(
    ("name", "published", "executed"), [("megatron-175b", 2.7, 0.90), ("megatron-530b", 1.6, 0.55)]
)
def test_selective_recomputation_costs_a_third_of_what_the_paper_counts(name, published, executed):
    """The paper adds all three passes of the core, where one is run again."""
    config = preset(name)
    model, paper = (
        korthikanti_flops(config.num_layers, config.dim, batch=1, recompute=kind) for kind in ("none", "selective")
    )
    assert 100 * (paper / model - 1) == pytest.approx(published, abs=0.05)
    ours = flops_per_token(config, 2048, recompute="selective").times(2048)
    assert model == ours.model_flops
    assert Fraction(ours.recomputed) * 3 == int(paper) - int(model)
    assert 100 * ours.recomputed / ours.model_flops == pytest.approx(executed, abs=0.005)


@pytest.mark.parametrize(("tp", "cp", "pp", "dp", "seq", "batch", "tflops", "per_cent"), LLAMA_3_TABLE_4)
def test_llama_3_405b(tp, cp, pp, dp, seq, batch, tflops, per_cent):
    gpus = tp * cp * pp * dp
    assert gpus in (8192, 16384)
    assert dp * batch * seq == 16_777_216
    # The paper prints no tokens per second: what its rate makes of our count must come back as its share of the peak.
    config = preset("llama-3-405b")
    flops = flops_per_token(config, seq)
    speed = gpus * tflops * 1e12 / flops.total
    assert 100 * mfu(flops, tokens_per_s=speed, peak="H100", num_gpus=gpus) == pytest.approx(per_cent, abs=0.7)


@pytest.mark.parametrize(
    ("parameters", "tokens", "published", "tolerance"),
    [(174.6e9, 300e9, 3.14e23, 0.002), (70e9, 1.4e12, 5.88e23, 0.001), (405e9, 15.6e12, 3.8e25, 0.003)],
    ids=["gpt-3", "chinchilla", "llama-3-405b"],
)
def test_six_n_d(parameters, tokens, published, tolerance):
    assert approximate_training_flops(parameters, tokens) == pytest.approx(published, rel=tolerance)


def test_gpt_3_in_petaflop_days():
    assert PF_DAY == 8.64e19
    assert approximate_training_flops(preset("gpt-3").num_parameters, 300e9) / PF_DAY == pytest.approx(3640, rel=0.001)


def test_six_n_d_against_the_count():
    """GPT-3: 6N leaves attention's 2.8% out and counts 0.02% that multiplies nothing: positions, norms and biases."""
    config = preset("gpt-3")
    assert flops_per_token(config, 2048).total / (6 * config.num_parameters) == pytest.approx(1.0274, abs=1e-4)
    assert flops_per_token(config, 1).total / (6 * config.num_parameters) == pytest.approx(0.9998, abs=1e-4)
    # At 128K tokens attention is more than half of Llama-3 8B's work, and 6ND is no estimate any more.
    long = flops_per_token(preset("llama-3-8b"), 131_072)
    assert long.total / (6 * preset("llama-3-8b").num_parameters) == pytest.approx(5.21, abs=0.01)


@settings(max_examples=30, deadline=None)
@given(layers=st.integers(1, 50), heads=st.integers(1, 16), seq=st.integers(1, 4096))
def test_kaplan_counts_half_of_palms_core(layers, heads, seq):
    palm = palm_flops_per_token(10**9, num_layers=layers, num_heads=heads, head_dim=64, seq=seq)
    kaplan = kaplan_flops_per_token(10**9, num_layers=layers, attention_dim=64 * heads, seq=seq)
    assert palm - 6e9 == 2 * (kaplan - 6e9)


def test_kaplan_is_our_causal_count_without_the_head():
    config = preset("gpt-2-xl")
    ours = flops_per_token(config, 1024, causal=True)
    without_head = ours.total - 6 * config.dim * config.vocab_size
    parameters = 12 * config.num_layers * config.dim**2
    kaplan = kaplan_flops_per_token(parameters, num_layers=config.num_layers, attention_dim=config.dim, seq=1024)
    assert kaplan == without_head


def test_palm_is_our_count_where_n_holds_no_idle_parameter():
    config = preset("llama-2-7b")
    palm = palm_flops_per_token(config.num_parameters, num_layers=32, num_heads=32, head_dim=128, seq=4096)
    idle = config.vocab_size * config.dim + config.counts.norms  # an embedding of its own, and the norms
    assert palm - 6 * idle == flops_per_token(config, 4096).total


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"recompute must be 'none' .* got 'selective'"):
        approximate_training_flops(1e9, 1e9, recompute="selective")
    with pytest.raises(ValueError, match="num_tokens must be a positive"):
        approximate_training_flops(1e9, 0)
    with pytest.raises(TypeError, match="num_tokens must be a number of parameters or tokens, got 1 TFLOP/s"):
        approximate_training_flops(1e9, FlopRate(1e12))
    with pytest.raises(TypeError, match="num_heads must be an int"):
        palm_flops_per_token(1, num_layers=1, num_heads=1.5, head_dim=2, seq=3)
    with pytest.raises(ValueError, match="dim must be at least 1"):
        megatron_parameters(2, 0)
    with pytest.raises(ValueError, match="full is megatron_flops"):
        korthikanti_flops(2, 8, batch=1, recompute="full")
    with pytest.raises(ValueError, match="batch must be at least 1"):
        megatron_flops(2, 8, batch=0)
    with pytest.raises(ValueError, match="seq must be at least 1"):
        kaplan_flops_per_token(1, num_layers=1, attention_dim=1, seq=0)
