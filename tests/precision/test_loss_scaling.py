"""The loss scale moves as torch's GradScaler moves it, and never halves for ever."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cme295lab.precision.loss_scaling import LossNeverFinite, LossScaler, LossScaling

MOVES = st.tuples(st.sampled_from([1.5, 2.0, 4.0]), st.sampled_from([0.25, 0.5, 0.7]), st.integers(1, 5))


@settings(max_examples=40, deadline=None)
@given(moves=MOVES, infinite=st.lists(st.booleans(), max_size=30), start=st.sampled_from([1.0, 65536.0, 3.0]))
def test_state_is_that_of_torch_after_any_sequence(
    moves: tuple[float, float, int], infinite: list[bool], start: float
) -> None:
    growth, backoff, interval = moves
    theirs = torch.amp.GradScaler(
        "cpu", init_scale=start, growth_factor=growth, backoff_factor=backoff, growth_interval=interval
    )
    ours = LossScaler(
        LossScaling(initial_scale=start, growth_factor=growth, backoff_factor=backoff, growth_interval=interval)
    )
    weight = nn.Parameter(torch.ones(3))
    mine = weight.detach().clone()
    optimizer = torch.optim.SGD([weight], lr=0.125)
    for bad in infinite:
        factor = math.inf if bad else 0.25
        optimizer.zero_grad()
        theirs.scale((weight * factor).sum()).backward()
        gradient = torch.full((3,), factor) * ours.scale
        theirs.step(optimizer)
        theirs.update()
        found_inf = ours.unscale_([gradient])
        if not found_inf:
            mine -= 0.125 * gradient
        ours.update(found_inf)
        assert found_inf == bad
        state = theirs.state_dict()
        assert (ours.scale, ours.clean_steps) == (state["scale"], state["_growth_tracker"])
    assert torch.equal(mine, weight.detach())


def test_defaults_are_those_of_torch() -> None:
    state = torch.amp.GradScaler("cpu").state_dict()
    options = LossScaling()
    assert options.initial_scale == state["scale"] == 65536
    assert options.growth_factor == state["growth_factor"] == 2
    assert options.backoff_factor == state["backoff_factor"] == 0.5
    assert options.growth_interval == state["growth_interval"] == 2000


def test_scale_halves_on_inf_and_doubles_after_the_interval() -> None:
    scaler = LossScaler(LossScaling(initial_scale=8.0, growth_interval=3))
    history = []
    for found_inf in (True, False, False, True, False, False, False, False):
        scaler.update(found_inf)
        history.append((scaler.scale, scaler.clean_steps))
    assert history == [(4, 0), (4, 1), (4, 2), (2, 0), (2, 1), (2, 2), (4, 0), (4, 1)]


def test_static_scale_stays_where_it_is() -> None:
    scaler = LossScaler(LossScaling(initial_scale=128.0, dynamic=False, growth_interval=1))
    for found_inf in (False, True, False, False):
        scaler.update(found_inf)
    assert scaler.scale == 128


def test_small_gradient_survives_the_scale_that_suits_it() -> None:
    """FACTS of fp16: 1e-8 vanishes; 256 times that is kept; with the scale of 2^16 a gradient of 1.5 overflows."""

    def after_fp16(gradient: float, scale: float) -> tuple[float, bool]:
        scaler = LossScaler(LossScaling(initial_scale=scale))
        held = (torch.tensor([gradient]) * scaler.scale).half().float()
        found_inf = scaler.unscale_([held])
        return held.item(), found_inf

    assert after_fp16(1e-8, 1.0) == (0.0, False)
    value, found_inf = after_fp16(1e-8, 256.0)
    assert value == pytest.approx(1e-8, rel=0.02)
    assert not found_inf
    assert after_fp16(1.5, 65536.0)[1]


def test_clipping_sees_the_gradients_as_they_are_only_after_unscaling() -> None:
    model = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[3.0, 0.0, 4.0]])
    scaler = LossScaler(LossScaling(initial_scale=1024.0))
    scaler.scale_loss(model(x).sum()).backward()
    gradient = model.weight.grad
    assert gradient is not None
    assert gradient.norm().item() == 5 * 1024
    scaler.unscale_([gradient])
    assert torch.equal(gradient, x)
    assert nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() == 5.0
    torch.testing.assert_close(gradient, x / 5, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(value: float) -> None:
    gradients = [torch.ones(5), torch.ones(4, 3), torch.zeros(0), None]
    gradients[1][2, 1] = value  # type: ignore[index]
    assert LossScaler().unscale_(gradients)


def test_fp64_and_empty_lists_are_taken() -> None:
    scaler = LossScaler(LossScaling(initial_scale=4.0))
    wide, narrow = torch.tensor([8.0], dtype=torch.float64), torch.tensor([4.0])
    assert not scaler.unscale_([wide, narrow, None])
    assert (wide.item(), narrow.item()) == (2.0, 1.0)
    scaler.update(False)
    assert not scaler.unscale_([])


def test_scaled_loss_is_fp32_when_the_loss_is_half() -> None:
    loss = torch.tensor(2.0, dtype=torch.float16)
    scaled = LossScaler().scale_loss(loss)
    assert (scaled.dtype, scaled.item()) == (torch.float32, 131072.0)


def test_never_finite_gradients_stop_with_a_message() -> None:
    scaler = LossScaler()
    for _ in range(31):
        scaler.update(True)
    assert scaler.scale == 2.0**-15
    with pytest.raises(LossNeverFinite, match=r"32 steps in a row .* scale of 3\.05176e-05.*not the scale"):
        scaler.update(True)


def test_a_clean_step_starts_the_count_again() -> None:
    scaler = LossScaler(LossScaling(max_skips_in_a_row=3))
    for found_inf in (True, True, False, True, True, False):
        scaler.update(found_inf)
    assert scaler.skips_in_a_row == 0
    scaler.update(True)
    scaler.update(True)
    with pytest.raises(LossNeverFinite, match="still above 1"):
        scaler.update(True)


def test_static_scale_that_is_too_high_says_so() -> None:
    scaler = LossScaler(LossScaling(dynamic=False, max_skips_in_a_row=2))
    scaler.update(True)
    with pytest.raises(LossNeverFinite, match=r"static: lower initial_scale"):
        scaler.update(True)


def test_scale_that_leaves_fp32_stops() -> None:
    scaler = LossScaler(LossScaling(backoff_factor=1e-30))
    scaler.update(True)
    with pytest.raises(LossNeverFinite, match="2 steps in a row"):
        scaler.update(True)


def test_scale_stops_growing_before_its_inverse_is_subnormal() -> None:
    scaler = LossScaler(LossScaling(initial_scale=2.0**125, growth_interval=1))
    scales = []
    for _ in range(3):
        scaler.update(False)
        scales.append(scaler.scale)
    assert scales == [2.0**126] * 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_loss_that_is_not_finite_before_scaling_stops(value: float) -> None:
    with pytest.raises(LossNeverFinite, match=f"loss is {value} before it is scaled"):
        LossScaler().scale_loss(torch.tensor(value))


def test_state_dict_round_trip_goes_on_alike() -> None:
    options = LossScaling(initial_scale=64.0, growth_interval=3, max_skips_in_a_row=4)
    first = LossScaler(options)
    for found_inf in (True, False, False):
        first.update(found_inf)
    second = LossScaler(options)
    second.load_state_dict(first.state_dict())
    for found_inf in (False, True, True, False, False, False):
        first.update(found_inf)
        second.update(found_inf)
        assert second.state_dict() == first.state_dict()
    assert first.scale == 32.0


def test_gradients_in_16_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.float32 or torch.float64 to be unscaled, got torch.float16.*copy"):
        LossScaler().unscale_([torch.ones(2, dtype=torch.float16)])


def test_unscaling_twice_is_refused() -> None:
    scaler = LossScaler()
    scaler.unscale_([torch.ones(2)])
    with pytest.raises(RuntimeError, match="call update"):
        scaler.unscale_([torch.ones(2)])


def test_loss_of_several_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one number, got shape \(2,\)"):
        LossScaler().scale_loss(torch.ones(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("initial_scale", 0.0), ("initial_scale", -1.0), ("initial_scale", math.inf), ("initial_scale", math.nan),
        ("initial_scale", 1e300), ("initial_scale", 1e-40), ("growth_factor", 1.0), ("growth_factor", math.inf),
        ("backoff_factor", 0.0), ("backoff_factor", 1.0), ("backoff_factor", math.nan), ("growth_interval", 0),
        ("growth_interval", 2.0), ("growth_interval", True), ("max_skips_in_a_row", 0),
    ],
)  # fmt: skip
def test_bad_options_are_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        LossScaling(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "state must have scale, clean_steps, skips_in_a_row, got none"),
        ({"scale": 0.0, "clean_steps": 0, "skips_in_a_row": 0}, "positive number"),
        ({"scale": 1.0, "clean_steps": -1, "skips_in_a_row": 0}, "clean_steps in state"),
    ],
    ids=["empty", "zero", "negative"],
)
def test_bad_states_are_refused(state: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossScaler().load_state_dict(state)
