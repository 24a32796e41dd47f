"""Schedules: equal to those of transformers and torch, to values by hand, and refusing what does not fit."""

import math

import pytest
import torch
import transformers

from cme295lab.pretraining.schedule import Schedule


def _lambda_of(make, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    return make(optimizer, **options).lr_lambdas[0]


ORACLES = {
    "constant": (transformers.get_constant_schedule_with_warmup, {}),
    "linear": (transformers.get_linear_schedule_with_warmup, {"num_training_steps": 37}),
    "cosine": (transformers.get_cosine_schedule_with_warmup, {"num_training_steps": 37}),
    "wsd": (
        transformers.get_wsd_schedule,
        {"num_decay_steps": 9, "num_stable_steps": 23, "decay_type": "linear"},
    ),
}


@pytest.mark.parametrize("kind", ORACLES)
def test_schedule_is_that_of_transformers_which_warms_up_a_step_later(kind):
    make, options = ORACLES[kind]
    theirs = _lambda_of(make, num_warmup_steps=5, **options)
    ours = Schedule(kind=kind, num_steps=37, warmup_steps=5, decay_steps=9 if kind == "wsd" else None)
    assert [ours(step) for step in range(5)] == pytest.approx([theirs(step + 1) for step in range(5)], abs=1e-12)
    assert [ours(step) for step in range(5, 37)] == pytest.approx([theirs(step) for step in range(5, 37)], abs=1e-12)


def test_cosine_with_a_floor_is_torchs_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    ours = Schedule(kind="cosine", num_steps=20, floor=0.1)
    for step in range(20):
        assert ours(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_wsd_by_hand_in_both_shapes():
    steep = Schedule(kind="wsd", num_steps=10, warmup_steps=2, decay_steps=4, decay_shape="1-sqrt", floor=0.2)
    decay = [0.2 + 0.8 * (1 - math.sqrt(share)) for share in (0.25, 0.5, 0.75)]
    expected = [0.5, 1, 1, 1, 1, 1, 1, *decay]
    assert [steep(step) for step in range(10)] == pytest.approx(expected)
    assert Schedule(kind="wsd", num_steps=11).num_decay_steps == 2


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
def test_after_the_warm_up_it_never_rises_and_stays_above_the_floor(kind):
    schedule = Schedule(kind=kind, num_steps=53, warmup_steps=7, floor=0.05)
    shares = [schedule(step) for step in range(53)]
    assert shares[:7] == sorted(shares[:7])
    assert shares[6:] == sorted(shares[6:], reverse=True)
    assert min(shares[7:]) > 0.05
    assert max(shares) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "exponential"}, "kind of schedule"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"warmup_steps": 11}, "must fit into num_steps"),
        ({"kind": "wsd", "warmup_steps": 5, "decay_steps": 6}, "must fit into num_steps"),
        ({"decay_steps": 3}, "'wsd' alone"),
        ({"floor": 1.5}, "floor must be"),
        ({"floor": float("nan")}, "floor must be"),
        ({"kind": "wsd", "decay_shape": "cubic"}, "decay_shape must be"),
    ],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Schedule(**{"num_steps": 10, **options})


def test_steps_outside_the_run_and_of_another_type_are_refused():
    schedule = Schedule(num_steps=10)
    for step in (-1, 10):
        with pytest.raises(ValueError, match="step must be 0 to 9"):
            schedule(step)
    with pytest.raises(TypeError, match="num_steps must be an int"):
        Schedule(num_steps=10.0)
