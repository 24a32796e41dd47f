"""Times of collectives: published figures, cases by hand, and schedules timed step by step."""

import dataclasses
import math
from itertools import groupby

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from cme295lab.hardware import get_device
from cme295lab.parallel.communication import schedules
from cme295lab.parallel.communication.cost_model import (
    LINKS,
    Cluster,
    Link,
    bus_bandwidth,
    collective_time_s,
    crossover_bytes,
    get_link,
    nvlink,
    wire_bytes,
)
from cme295lab.parallel.communication.step_time import training_step_time

GRADIENTS = 2 * 6.738e9  # a 7B model's, in bf16
SLOW = Link(name="slow", latency_s=0.5, bandwidth_bytes_per_s=10.0)


def _free(rate):
    return Link(name="no latency", latency_s=0.0, bandwidth_bytes_per_s=rate)


def test_all_reduce_of_a_7b_model_takes_the_published_times():
    assert collective_time_s("all_reduce", GRADIENTS, 8, _free(450e9)) == pytest.approx(0.0524, abs=5e-5)
    assert collective_time_s("all_reduce", GRADIENTS, 1024, _free(50e9)) == pytest.approx(0.539, abs=5e-4)
    assert nvlink("H100").bandwidth_bytes_per_s == 450e9
    assert get_link("InfiniBand NDR").bandwidth_bytes_per_s == 50e9


@pytest.mark.parametrize(
    ("collective", "algorithm", "by_hand"),
    [  # 4 ranks, 100 bytes, alpha 0.5 s, 10 bytes/s
        ("all_reduce", "ring", 6 * 0.5 + 1.5 * 10),
        ("reduce_scatter", "ring", 3 * 0.5 + 0.75 * 10),
        ("all_gather", "ring", 3 * 0.5 + 0.75 * 10),
        ("all_to_all", "ring", 3 * 0.5 + 0.75 * 10),
        ("all_reduce", "tree", 4 * (0.5 + 10)),
        ("all_reduce", "recursive_doubling", 2 * (0.5 + 10)),
        ("broadcast", "tree", 2 * (0.5 + 10)),
        ("reduce_scatter", "tree", 2 * 0.5 + 0.75 * 10),
        ("broadcast", "ring", (math.sqrt(2 * 0.5) + math.sqrt(10)) ** 2),
    ],
)
def test_times_worked_by_hand(collective, algorithm, by_hand):
    assert collective_time_s(collective, 100, 4, SLOW, algorithm) == pytest.approx(by_hand, rel=1e-12)


def test_adding_up_takes_its_time():
    plain, adding = (collective_time_s("all_reduce", 100, 4, SLOW, add_s_per_byte=g) for g in (0.0, 0.02))
    assert adding - plain == pytest.approx(0.75 * 100 * 0.02)
    assert collective_time_s("all_gather", 100, 4, SLOW, add_s_per_byte=1.0) == pytest.approx(9.0)


def _timed(schedule, num_bytes, num_chunks, link):
    """Each step takes a latency and its largest chunk."""
    return sum(link.latency_s + num_bytes / num_chunks / link.bandwidth_bytes_per_s for _ in _steps(schedule))


def _steps(schedule):
    return [list(step) for _, step in groupby(schedule, key=lambda t: t.step)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(num_ranks=st.integers(1, 20), num_bytes=st.floats(0, 1e9), latency_s=st.floats(0, 1e-3))
def test_formulas_equal_schedules_timed_step_by_step(num_ranks, num_bytes, latency_s):
    link = Link(name="x", latency_s=latency_s, bandwidth_bytes_per_s=1e9)

    def formula(collective, algorithm="ring"):
        return collective_time_s(collective, num_bytes, num_ranks, link, algorithm)

    def timed(schedule, num_chunks):
        return pytest.approx(_timed(schedule, num_bytes, num_chunks, link), rel=1e-9, abs=1e-15)

    assert formula("all_reduce") == timed(schedules.ring_schedule(num_ranks), num_ranks)
    assert formula("reduce_scatter") == timed(schedules.ring_reduce_scatter_schedule(num_ranks), num_ranks)
    assert formula("all_to_all") == timed(schedules.all_to_all_schedule(num_ranks), num_ranks)
    assert formula("all_reduce", "recursive_doubling") == timed(schedules.tree_all_reduce_schedule(num_ranks), 1)
    assert formula("broadcast", "tree") == timed(schedules.tree_broadcast_schedule(num_ranks), 1)
    best = min(
        _timed(schedules.ring_broadcast_schedule(num_ranks, chunks), num_bytes, chunks, link) for chunks in range(1, 9)
    )
    assert formula("broadcast") <= best * (1 + 1e-9) + 1e-15, "no number of chunks is better than the best"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(num_ranks=st.integers(1, 200), name=st.sampled_from(sorted(LINKS)))
def test_ring_and_tree_take_the_same_time_at_the_crossover(num_ranks, name):
    size = crossover_bytes(num_ranks, name)
    ring, tree = (collective_time_s("all_reduce", size, num_ranks, name, a) for a in ("ring", "tree"))
    if size:
        assert ring == pytest.approx(tree, rel=1e-9)
        assert collective_time_s("all_reduce", size / 2, num_ranks, name, "tree") < collective_time_s(
            "all_reduce", size / 2, num_ranks, name
        )
    else:
        assert num_ranks <= 3
        assert ring <= tree * (1 + 1e-12)


def test_bus_bandwidth_of_a_perfect_ring_is_the_links():
    for collective in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all"):
        time_s = collective_time_s(collective, 1e9, 6, _free(25e9))
        assert bus_bandwidth(collective, 1e9, 6, time_s) == pytest.approx(25e9)
    assert bus_bandwidth("broadcast", 1e9, 6, 0.5) == 2e9


def test_cluster_goes_in_two_levels():
    cluster = Cluster(inside=_free(100.0), between=_free(10.0), ranks_per_node=4)
    # inside: 2 * 3/4 * 1600 / 100 = 24 s; between: a quarter of the vector, 2 * 1/2 * 400 / 10 = 40 s
    assert collective_time_s("all_reduce", 1600, 8, cluster) == pytest.approx(64.0)
    assert collective_time_s("all_gather", 1600, 8, cluster) == pytest.approx(32.0)
    assert collective_time_s("all_reduce", 1600, 4, cluster) == pytest.approx(24.0), "one node needs no network"
    shared = Cluster(inside=_free(100.0), between=_free(10.0), ranks_per_node=4, adapters_per_node=1)
    assert collective_time_s("all_reduce", 1600, 8, shared) == pytest.approx(24 + 4 * 40)
    flat = collective_time_s("all_reduce", 1600, 8, _free(10.0))
    assert collective_time_s("all_reduce", 1600, 8, cluster) < flat


def test_links_have_the_bandwidths_of_their_standards():
    rates = {name: link.bandwidth_bytes_per_s / 1e9 for name, link in LINKS.items()}
    expected = {
        "InfiniBand HDR": 25, "InfiniBand NDR": 50, "Ethernet 10G": 1.25, "Ethernet 25G": 3.125, "Ethernet 100G": 12.5,
        "PCIe 3.0 x16": 15.754, "PCIe 4.0 x16": 31.508, "PCIe 5.0 x16": 63.015,
    }  # fmt: skip
    assert rates == pytest.approx(expected, rel=1e-4)
    assert all(link.source and link.confidence == "certain" and link.latency_s > 0 for link in LINKS.values())
    assert nvlink("A100").bandwidth_bytes_per_s == get_device("A100").link_bytes_per_s / 2 == 300e9


@pytest.mark.parametrize(("stage", "volume"), [(0, 2), (1, 2), (2, 2), (3, 3)])
def test_step_sends_two_vectors_and_stage_three_a_third(stage, volume):
    step = training_step_time(compute_s=0, gradient_bytes=800, num_ranks=8, link=_free(7.0), stage=stage)
    assert step.sent_bytes == pytest.approx(volume * 700)
    assert step.communication_s == step.exposed_s == step.step_s == pytest.approx(volume * 100)
    assert step.efficiency == 0


@pytest.mark.parametrize(
    ("stage", "overlap", "exposed_s"),
    [  # 100 s for each vector; forward 100 s, backward 200 s
        (0, 0.0, 200), (0, 1.0, 0), (0, 0.5, 100), (1, 1.0, 0), (2, 0.25, 150), (3, 1.0, 0), (3, 0.5, 150),
    ],
)  # fmt: skip
def test_communication_hides_behind_its_pass_as_far_as_it_may(stage, overlap, exposed_s):
    options = dict(gradient_bytes=800, num_ranks=8, link=_free(7.0), stage=stage, overlap=overlap)
    assert training_step_time(compute_s=300, **options).exposed_s == pytest.approx(exposed_s)
    short = training_step_time(compute_s=30, **options)  # passes of 10 and 20 s cannot hide more than that
    assert short.exposed_s >= short.communication_s - 30 - 1e-9


def test_step_pays_a_latency_for_each_message_and_weights_apart_from_gradients():
    few, many = (
        training_step_time(compute_s=0, gradient_bytes=800, num_ranks=2, link=SLOW, num_messages=n) for n in (1, 9)
    )
    assert many.step_s - few.step_s == pytest.approx(8 * 2 * 0.5)
    step = training_step_time(compute_s=0, gradient_bytes=800, weight_bytes=400, num_ranks=2, link=_free(1.0), stage=3)
    assert step.sent_bytes == 400 + 2 * 200


def test_one_rank_sends_nothing():
    step = training_step_time(compute_s=3.0, gradient_bytes=1e9, num_ranks=1, link="Ethernet 10G", stage=3)
    assert (step.step_s, step.sent_bytes, step.efficiency) == (3.0, 0.0, 1.0)
    assert all(collective_time_s("all_reduce", 9, 1, SLOW, a) == 0 for a in ("ring", "tree"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wire_bytes("gossip", 1, 2), "collective must be one of all_reduce, .*got 'gossip'"),
        (lambda: wire_bytes("all_reduce", -1, 2), "payload_bytes must be >= 0, got -1"),
        (lambda: wire_bytes("all_reduce", 1, 0), "num_ranks must be a whole number from 1, got 0"),
        (lambda: collective_time_s("all_reduce", 1, 2, "string"), "link must be a Link or one of InfiniBand HDR"),
        (lambda: collective_time_s("all_to_all", 1, 2, SLOW, "tree"), "algorithm must be 'ring'"),
        (lambda: collective_time_s("all_gather", 1, 2, SLOW, "recursive_doubling"), "algorithm must be 'ring'"),
        (lambda: nvlink(dataclasses.replace(get_device("T4"), link_bytes_per_s=0)), "has no link to other GPUs"),
        (lambda: Link(name="x", latency_s=0, bandwidth_bytes_per_s=0), "bandwidth_bytes_per_s of 'x' must be > 0"),
        (lambda: Link(name="x", latency_s=-1, bandwidth_bytes_per_s=1), "latency_s of 'x' must be >= 0"),
        (lambda: Cluster(inside=SLOW, between=SLOW, ranks_per_node=0), "ranks_per_node must be at least 1"),
        (lambda: Cluster(inside=SLOW, between=SLOW, ranks_per_node=2, adapters_per_node=3), "adapters_per_node must"),
        (lambda: bus_bandwidth("all_reduce", 1, 2, 0), "time_s must be positive"),
        (
            lambda: collective_time_s("all_reduce", 1, 12, Cluster(inside=SLOW, between=SLOW)),
            "whole nodes of 8 ranks are modelled, got all_reduce of 12 ranks",
        ),
        (
            lambda: training_step_time(compute_s=1, gradient_bytes=1, num_ranks=2, link=SLOW, stage=4),
            "stage must be 0 .*got 4",
        ),
        (
            lambda: training_step_time(compute_s=1, gradient_bytes=1, num_ranks=2, link=SLOW, overlap=1.5),
            "overlap must be between 0 and 1, got 1.5",
        ),
        (lambda: training_step_time(compute_s=-1, gradient_bytes=1, num_ranks=2, link=SLOW), "compute_s must be >= 0"),
        (
            lambda: training_step_time(compute_s=1, gradient_bytes=1, num_ranks=2, link=SLOW, num_messages=0),
            "num_messages must be at least 1",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
