"""The order in which programs run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.hardware import get_device
from cme295lab.simulator.cost.schedule import ctas_that_fit, first_rounds, in_order
from cme295lab.units import KiB
from tests.simulator.cost.reference import Access, in_turn


def test_waves_of_equal_programs():
    assert first_rounds(np.full(7, 3), num_slots=3).tolist() == [0, 0, 0, 3, 3, 3, 6]


def test_a_slot_is_refilled_as_soon_as_its_program_ends():
    assert first_rounds(np.array([5, 1, 2, 4, 1]), num_slots=2).tolist() == [0, 0, 1, 3, 5]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(1, 5))
def test_order_is_that_of_a_plain_simulation(lengths, num_slots):
    plain = [[Access("load", f"{p} {turn}", []) for turn in range(n)] for p, n in enumerate(lengths)]
    program = np.repeat(np.arange(len(lengths)), lengths)
    turn = np.concatenate([np.arange(n) for n in lengths])
    shuffled = np.random.default_rng(len(lengths)).permutation(len(program))
    order = in_order(program[shuffled], turn[shuffled], np.array(lengths), num_slots)
    mine = [f"{program[i]} {turn[i]}" for i in shuffled[order]]
    assert mine == [a.tensor for a in in_turn(plain, num_slots)]


@pytest.mark.parametrize(
    ("device", "held", "ctas"),
    [("A100", 100 * KiB, 4), ("A100", 448 * KiB, 1), ("A100", 449 * KiB, 1), ("A100", 0, 16), ("H100", 100 * KiB, 5)],
)
def test_ctas_that_fit_the_registers_and_the_sram_of_an_sm(device, held, ctas):
    assert ctas_that_fit(get_device(device), held) == ctas
