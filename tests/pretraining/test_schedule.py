"""Learning-rate schedules: ends and middles by hand, torch's cosine, and what is refused."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.pretraining.schedule import Schedule


def test_warm_up_is_even_and_never_zero() -> None:
    found = [Schedule(kind="constant", num_steps=6, warmup_steps=4)(step) for step in range(6)]
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_wsd_by_hand() -> None:
    straight = Schedule(kind="wsd", num_steps=10, warmup_steps=2, decay_steps=4, floor=0.2)
    assert [round(straight(step), 10) for step in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]
    rooted = Schedule(kind="wsd", num_steps=10, decay_steps=4, decay="sqrt")
    assert [rooted(step) for step in (6, 7, 8)] == pytest.approx([1, 1 - 0.5, 1 - math.sqrt(0.5)])


def test_cosine_equals_torchs() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=17, eta_min=0.3)
    ours = Schedule(kind="cosine", num_steps=17, floor=0.1)
    for step in range(17):
        assert 3.0 * ours(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        theirs.step()


@given(st.sampled_from(["constant", "linear", "cosine", "wsd"]), st.integers(1, 60), st.data())
def test_shares_stay_between_floor_and_one_and_fall_after_the_warm_up(kind: str, num_steps: int, data) -> None:
    warmup = data.draw(st.integers(0, num_steps - 1))
    decay = data.draw(st.integers(1, num_steps - warmup)) if kind == "wsd" else 0
    floor = data.draw(st.floats(0, 1))
    schedule = Schedule(kind=kind, num_steps=num_steps, warmup_steps=warmup, floor=floor, decay_steps=decay)
    after = [schedule(step) for step in range(warmup, num_steps)]
    assert all(floor - 1e-12 <= share <= 1 for share in after)
    assert all(a >= b for a, b in itertools.pairwise(after))


@pytest.mark.parametrize(("change", "error", "says"), [
    ({"num_steps": 0}, ValueError, "num_steps must be at least 1"),
    ({"num_steps": 2.5}, TypeError, "num_steps must be an int"),
    ({"warmup_steps": 11}, ValueError, "do not fit into 10"),
    ({"floor": 1.5}, ValueError, "floor must be a share"),
    ({"kind": "step"}, ValueError, "kind must be one of constant, linear"),
    ({"kind": "wsd"}, ValueError, "decay_steps goes with"),
    ({"decay_steps": 3}, ValueError, "decay_steps goes with"),
    ({"decay": "cosine"}, ValueError, "decay must be one of"),
], ids=["none", "float", "long", "floor", "kind", "wsd", "decay", "shape"])  # fmt: skip
def test_bad_schedules_are_refused(change, error, says) -> None:
    with pytest.raises(error, match=says):
        Schedule(**({"num_steps": 10} | change))
    with pytest.raises(ValueError, match="step must be 0 to 9"):
        Schedule(num_steps=10)(10)
