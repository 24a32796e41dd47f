"""Shares of the peak, their inverse, and counts that are not rates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.pretraining.flops import FlopCount, FlopRate, flops_per_token, hfu, mfu, tokens_per_s, training_time_s
from cme295lab.transformer import preset

GPT = flops_per_token(preset("gpt-2"), 1024, recompute="full")


def test_mfu_by_hand():
    """1000 tokens of 6 GFLOP a second are 6 TFLOP/s, a twelfth of two GPUs of 36."""
    assert mfu(6e9, tokens_per_s=1000, peak=36e12, num_gpus=2) == pytest.approx(1 / 12)
    assert mfu(6e9, tokens_per_s=1000, peak="V100", dtype="fp16") == pytest.approx(6 / 125)


def test_peak_is_a_name_a_device_or_a_rate():
    shares = [mfu(GPT, tokens_per_s=1e5, peak=peak) for peak in ("A100", 312e12, FlopRate(312e12))]
    assert shares[0] == shares[1] == shares[2]


def test_with_sparsity_halves_mfu():
    """The larger number of the data sheet is not the peak of a dense product."""
    dense = mfu(GPT, tokens_per_s=1e5, peak="H100")
    assert mfu(GPT, tokens_per_s=1e5, peak=1978.9e12) == pytest.approx(dense / 2, rel=1e-4)


def test_hfu_counts_what_is_computed_again_and_mfu_does_not():
    options = {"tokens_per_s": 1e5, "peak": "A100"}
    plain = flops_per_token(preset("gpt-2"), 1024)
    assert mfu(GPT, **options) == mfu(plain, **options) == hfu(plain, **options)
    assert hfu(GPT, **options) / mfu(GPT, **options) == pytest.approx(GPT.hardware_flops / GPT.model_flops)


@settings(max_examples=50, deadline=None)
@given(
    flops=st.floats(1e6, 1e13), share=st.floats(0.01, 0.99), peak=st.floats(1e12, 1e15), gpus=st.integers(1, 100_000)
)
def test_tokens_per_s_and_mfu_are_inverse(flops, share, peak, gpus):
    speed = tokens_per_s(flops, mfu=share, peak=peak, num_gpus=gpus)
    assert mfu(flops, tokens_per_s=speed, peak=peak, num_gpus=gpus) == pytest.approx(share)


def test_time_is_count_over_rate():
    assert training_time_s(1e15, flops_per_s_per_gpu=1e12, num_gpus=4) == 250
    assert FlopCount(1e15).seconds_at(FlopRate(4e12)) == 250
    assert FlopCount(1e15).rate_in(250) == FlopRate(4e12)
    assert FlopRate(4e12).count_in(250) == FlopCount(1e15)


def test_counts_and_rates_say_which_they_are():
    count, rate = FlopCount(3.14e23), FlopRate(312e12)
    assert (repr(count), str(rate), f"{2 * rate}") == ("314 ZFLOP", "312 TFLOP/s", "624 TFLOP/s")
    assert [type(value) for value in (count + 1, count - count, 2 * count, count / 3)] == [FlopCount] * 4
    assert type(rate / 2) is FlopRate
    assert type(rate / rate) is float
    assert sum([rate, rate]) == 2 * rate
    assert rate < 2 * rate
    assert rate >= 1e12


@pytest.mark.parametrize("verb", ["add", "subtract", "divide", "compare", "multiply"])
def test_a_count_and_a_rate_do_not_mix(verb):
    count, rate = FlopCount(1e20), FlopRate(1e12)
    mix = {
        "add": lambda: rate + count, "subtract": lambda: count - rate, "divide": lambda: count / rate,
        "compare": lambda: count > rate, "multiply": lambda: count * rate,
    }[verb]  # fmt: skip
    with pytest.raises(TypeError, match=f"cannot {verb} .*FLOP"):
        mix()


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: mfu(FlopRate(1e12), tokens_per_s=1, peak="A100"), TypeError, "flops_per_token must be a count"),
        (lambda: mfu(1e9, tokens_per_s=1, peak=FlopCount(1e15)), TypeError, "peak must be a rate in FLOP/s"),
        (lambda: mfu(1e9, tokens_per_s=FlopRate(1), peak="A100"), TypeError, "must be tokens per second"),
        (lambda: mfu(1e9, tokens_per_s=0, peak="A100"), ValueError, "tokens_per_s must be a positive"),
        (lambda: mfu(1e9, tokens_per_s=1, peak="A1000"), ValueError, "unknown device"),
        (lambda: mfu(1e9, tokens_per_s=1, peak="V100"), ValueError, "has no peak for dtype 'bf16'"),
        (lambda: mfu(1e9, tokens_per_s=1, peak="A100", num_gpus=0), ValueError, "num_gpus must be at least 1"),
        (lambda: mfu(1e9, tokens_per_s=1e6, peak="A100"), ValueError, "would be 3.205, more than the peak"),
        (lambda: tokens_per_s(1e9, mfu=0, peak="A100"), ValueError, "mfu must be a positive"),
        (lambda: tokens_per_s(1e9, mfu=40, peak="A100"), ValueError, "40 per cent is 0.4"),
        (lambda: training_time_s(FlopRate(1e20), flops_per_s_per_gpu=1, num_gpus=1), TypeError, "must be a count"),
        (lambda: training_time_s(1e20, flops_per_s_per_gpu=-1, num_gpus=1), ValueError, "must be a positive"),
        (lambda: training_time_s(1e20, flops_per_s_per_gpu=True, num_gpus=1), TypeError, "must be a number"),
        (lambda: FlopCount(1).rate_in(FlopRate(1)), TypeError, "seconds must be a time"),
        (lambda: FlopRate(1).count_in(FlopCount(1)), TypeError, "seconds must be a time"),
        (lambda: FlopCount(1).seconds_at(float("inf")), ValueError, "rate must be a positive, finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments(call, error, says):
    with pytest.raises(error, match=says):
        call()
