"""Serving: the cheapest size over a model's life, against a search without formulas, and what it says of Llama 3."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.scaling import (
    CHINCHILLA,
    CHINCHILLA_ROUNDED,
    EPOCH,
    ParametricLaw,
    cheapest_to_serve,
    lifetime_flops,
    published_model,
    worthwhile_served_tokens,
)


def test_lifetime_by_hand() -> None:
    """7 billion parameters, 2 trillion tokens to train, 1 trillion to serve: 8.4e22 + 1.4e22."""
    assert lifetime_flops(7e9, 2e12, 1e12) == pytest.approx(9.8e22)
    assert lifetime_flops(7e9, 2e12, 1e12, serving_cost_ratio=3) == pytest.approx(12.6e22)
    assert lifetime_flops(7e9, 2e12, 0) == pytest.approx(8.4e22)


@pytest.mark.parametrize(("loss", "served", "ratio"), [(2.0, 1e12, 1.0), (2.0, 1e14, 4.0), (2.6, 1e10, 4.0)])
def test_cheapest_size_is_the_lowest_of_a_fine_grid(loss: float, served: float, ratio: float) -> None:
    plan = cheapest_to_serve(loss, served, EPOCH, serving_cost_ratio=ratio)
    limit = (EPOCH.A / (loss - EPOCH.E)) ** (1 / EPOCH.alpha)  # below this no amount of data suffices
    sizes = np.geomspace(limit * 1.0001, limit * 1e3, 8_001)
    totals = [
        lifetime_flops(n, EPOCH.tokens_for_loss(n, loss), served, serving_cost_ratio=ratio) for n in sizes.tolist()
    ]
    assert plan.total_flops == pytest.approx(min(totals), rel=1e-5)
    assert plan.num_parameters == pytest.approx(sizes[int(np.argmin(totals))], rel=3e-3)
    assert EPOCH.loss(plan.num_parameters, plan.num_tokens) == pytest.approx(loss)
    assert plan.saving == pytest.approx(1 - plan.total_flops / plan.compute_optimal_flops)


@settings(max_examples=10, deadline=None)
@given(st.floats(1.9, 3.0), st.floats(9, 14), st.sampled_from([EPOCH, CHINCHILLA, CHINCHILLA_ROUNDED]))
def test_the_more_is_served_the_smaller_the_model_and_the_longer_its_training(loss, exponent, law) -> None:
    little, much = (cheapest_to_serve(loss, 10**x, law) for x in (exponent, exponent + 0.5))
    assert much.num_parameters < little.num_parameters < little.compute_optimal.num_parameters
    assert much.num_tokens > little.num_tokens > little.compute_optimal.num_tokens
    assert 0 < little.saving < much.saving < 1
    # The way back: how much must it serve for this size to be the cheapest?
    back = worthwhile_served_tokens(much.num_parameters, much.num_tokens, law)
    assert back == pytest.approx(10 ** (exponent + 0.5), rel=1e-2)


def test_without_serving_the_compute_optimal_size_is_the_cheapest() -> None:
    plan = cheapest_to_serve(2.1, 0, EPOCH)
    assert plan.num_parameters == plan.compute_optimal.num_parameters
    assert plan.saving == pytest.approx(0, abs=1e-9)
    best = EPOCH.allocate(1e21)
    assert worthwhile_served_tokens(best.num_parameters, best.num_tokens, EPOCH) == pytest.approx(0, abs=1.0)


def test_llama_3_8b_is_made_to_be_served() -> None:
    """1,875 tokens per parameter pay off after some 1e14 served tokens, by every set of constants; 405B's do not."""
    small, large = published_model("Llama 3 8B"), published_model("Llama 3.1 405B")
    served = [
        worthwhile_served_tokens(small.num_parameters, small.num_tokens, law)
        for law in (EPOCH, CHINCHILLA, CHINCHILLA_ROUNDED)
    ]
    assert served == pytest.approx([1.9e14, 8.67e13, 6.86e13], rel=0.01)
    loss = EPOCH.loss(small.num_parameters, small.num_tokens)
    plan = cheapest_to_serve(loss, served[0], EPOCH)
    assert plan.num_parameters == pytest.approx(8e9, rel=1e-3)
    assert plan.compute_optimal.num_parameters == pytest.approx(33.8e9, rel=0.01)
    assert small.flops / plan.compute_optimal.flops == pytest.approx(5.51, rel=0.01)
    assert worthwhile_served_tokens(large.num_parameters, large.num_tokens, CHINCHILLA) < 0


def test_serving_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match=r"loss must be above E = 1\.817"):
        cheapest_to_serve(1.7, 1e12, EPOCH)
    with pytest.raises(ValueError, match="served_tokens must be a positive"):
        cheapest_to_serve(2.0, -1e12, EPOCH)
    with pytest.raises(ValueError, match="serving_cost_ratio must be a positive"):
        cheapest_to_serve(2.0, 1e12, EPOCH, serving_cost_ratio=0.0)
    with pytest.raises(ValueError, match="num_tokens must be a positive"):
        worthwhile_served_tokens(1e9, math.inf, EPOCH)
    with pytest.raises(TypeError, match="loss must be a number"):
        cheapest_to_serve("2.0", 1e12, EPOCH)


def test_serving_with_equal_terms_by_hand() -> None:
    """α=β, A=B: on the optimum N=D, so r=(D/N)^α; at D=4N and α=1/2, r=2 and T=3 D."""
    law = ParametricLaw(1.0, 10.0, 10.0, 0.5, 0.5)
    assert worthwhile_served_tokens(1e6, 4e6, law) == pytest.approx(1.2e7)
    assert worthwhile_served_tokens(1e6, 4e6, law, serving_cost_ratio=2.0) == pytest.approx(6e6)
