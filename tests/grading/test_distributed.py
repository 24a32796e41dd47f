"""Observing code on several ranks: what is recorded, and how a crash, a deadlock and a mismatch are told apart."""

import sys
import threading
import time
from collections.abc import Iterator

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from cme295lab.grading import distributed
from cme295lab.grading.distributed import (
    collectives_called,
    first_mismatch,
    judge_same_calls,
    observe_ranks,
    on_each,
    rank_property,
    scene,
)
from cme295lab.grading.exercise import judge_all
from cme295lab.grading.observe import Communication, Observation, RankFacts
from cme295lab.grading.result import Kind, Outcome
from tests.grading.students import written_here


@pytest.fixture(scope="module", autouse=True)
def _scenarios_travel_by_value() -> Iterator[None]:
    """Otherwise every rank would import this module, and all that the tests of grading import."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Case:
    num_ranks = 2
    text = "two ranks"


def steps(probe, student, size):
    """A scenario: a warm-up, then the student's function with a tensor, then numbers of all sorts."""
    with probe.phase("warm up"):
        dist.all_reduce(torch.ones(2))
    with probe.phase("step"):
        result = probe.call(student, x=torch.full((size,), float(probe.rank)))
    return {"result": result, "list": [1, 2.5, "x", None, True], "object": dist.ReduceOp.SUM, "nested": {"t": result}}


def alone(probe, student):
    return {"result": student()}


def in_turn(probe, student):
    """Rank 1 waits for rank 0, and rank 0 for somebody who never comes."""
    if probe.rank == 0:
        time.sleep(0.1)
        probe.signal("ready")
        return {"came": probe.wait_for("never", rank=1, limit_s=0.1)}
    return {"came": probe.wait_for("ready", rank=0)}


PASS_ON = """\
def student(x):
    dist.all_reduce(x)
    sending = dist.isend(x, 1 - dist.get_rank())
    y = torch.empty_like(x)
    dist.recv(y, 1 - dist.get_rank())
    sending.wait()
    return y.requires_grad_()
"""


@pytest.fixture(scope="module")
def seen() -> Observation:
    return observe_ranks(steps, written_here(PASS_ON), num_ranks=2, inputs={"size": 3})


def test_facts_have_outputs_as_plain_data(seen: Observation) -> None:
    assert seen.error is None
    for rank, facts in enumerate(seen.ranks):
        assert facts.rank == rank
        assert torch.equal(facts.outputs["result"], torch.ones(3))
        assert not facts.outputs["result"].requires_grad
        assert facts.outputs["list"] == (1, 2.5, "x", None, True)
        assert facts.outputs["object"] == "<RedOpType>"
        assert torch.equal(facts.outputs["nested"]["t"], torch.ones(3))


def test_facts_have_every_call_with_bytes_phase_line_and_peer(seen: Observation) -> None:
    for rank, facts in enumerate(seen.ranks):
        assert [call.collective for call in facts.calls] == ["all_reduce", "all_reduce", "send", "recv"]
        warm_up, reduced, sent, received = facts.calls
        assert facts.calls_in("warm up") == (warm_up,)
        assert reduced.line == "line 2: dist.all_reduce(x)"
        assert (reduced.payload_bytes, reduced.sent_bytes, reduced.peer) == (12, 12.0, None)  # 2 S (N - 1) / N
        assert (sent.sent_bytes, sent.received_bytes, sent.peer) == (12, 0, 1 - rank)
        assert (received.sent_bytes, received.received_bytes, received.peer) == (0, 12, 1 - rank)
        assert sent.line == "line 3: sending = dist.isend(x, 1 - dist.get_rank())"
        assert facts.sent_bytes == 8 + 12 + 12
        assert facts.collectives == (warm_up, reduced)
        assert not any(call.from_library for call in facts.calls)


def test_an_input_that_was_changed_in_place_is_named(seen: Observation) -> None:
    assert seen.changed_inputs == ("x",)


def test_the_library_is_told_from_its_seam() -> None:
    source = """\
def student():
    from cme295lab.parallel.communication import collectives, transport
    transport.all_reduce(torch.ones(4))
    collectives.ring_all_reduce(torch.ones(4))
"""
    seen = observe_ranks(alone, written_here(source), num_ranks=2, inputs={})
    assert seen.error is None
    calls = seen.ranks[0].calls
    assert [call.from_library for call in calls] == [False] + [True] * (len(calls) - 1)
    assert len(calls) > 1
    (sentence,) = collectives_called(seen.ranks[0], ("all_reduce", "send", "recv"), "do it yourself")
    assert sentence == (
        "your code calls the course's library, which does the work: do it yourself "
        "(line 4: collectives.ring_all_reduce(torch.ones(4)))"
    )
    assert "calls all_reduce" in collectives_called(seen.ranks[0], ("send", "recv"), "do it yourself")[0]


def test_one_rank_waits_for_another_but_not_for_ever() -> None:
    seen = observe_ranks(in_turn, None, num_ranks=2, inputs={})
    assert [facts.outputs["came"] for facts in seen.ranks] == [False, True]


FAILURES = {
    "a crash": (
        "    x = torch.ones(2)\n    if dist.get_rank() == 1:\n        x = x / y\n    dist.all_reduce(x)\n",
        Kind.CRASHED,
        ("on rank 1: NameError: name 'y' is not defined", "at line 4: x = x / y"),
    ),
    "an exit": ("    import sys\n    sys.exit(3)\n", Kind.CRASHED, ("SystemExit", "line 3")),
    "not attempted": ("    raise NotImplementedError()\n", Kind.NOT_ATTEMPTED, ("Replace the line",)),
    "a death": ("    import os\n    os._exit(3)\n", Kind.CRASHED, ("exit code 3",)),
    "a time-out": ("    while True:\n        pass\n", Kind.TIMED_OUT, ("rank 0 is busy", "does every loop")),
    "a deadlock": (
        "    if dist.get_rank() == 0:\n        dist.all_reduce(torch.ones(2))\n",
        Kind.DEADLOCK,
        ("rank 0 waits in all_reduce at line 3", "never called the one in which the others wait"),
    ),
    "receiving first": (
        "    dist.recv(torch.ones(2), 1 - dist.get_rank())\n",
        Kind.DEADLOCK,
        ("rank 0 waits in recv", "nobody has sent yet"),
    ),
    "two different collectives": (
        "    x = torch.ones(2 + 2 * dist.get_rank())\n    dist.all_reduce(x)\n    dist.all_reduce(x)\n    return x\n",
        Kind.RANKS_DISAGREE,
        ("call number 1 is all_reduce of 8 bytes on rank 0, and all_reduce of 16 bytes on rank 1", "in the same order"),
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_stopped_the_ranks_is_told(name: str, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    body, kind, says = FAILURES[name]
    if kind is Kind.TIMED_OUT:
        monkeypatch.setattr(distributed, "TIME_LIMIT_S", 1.0)
    seen = observe_ranks(alone, written_here(f"def student():\n{body}"), num_ranks=2, inputs={})
    assert seen.error is not None
    assert seen.error.kind is kind, seen.error
    for words in says:
        assert words in f"{seen.error.text} {seen.error.cause}"
    assert capfd.readouterr().err == ""  # graders take any stderr of a cell for a failure


def test_a_scenario_may_know_better_why_it_deadlocks() -> None:
    student = written_here("def student():\n    dist.recv(torch.ones(2), 1 - dist.get_rank())\n")
    seen = observe_ranks(alone, student, num_ranks=2, inputs={}, deadlock="because")
    assert seen.error is not None
    assert seen.error.cause == "because"


def test_what_the_student_prints_goes_to_the_cell_with_its_rank(capfd) -> None:
    source = "def student():\n    import sys\n    print('here')\n    print('there', file=sys.stderr)\n"
    observe_ranks(alone, written_here(source), num_ranks=2, inputs={})
    captured = capfd.readouterr()
    assert captured.err == ""
    for rank in (0, 1):
        assert f"[rank {rank}] here" in captured.out
        assert f"[rank {rank}] there" in captured.out


def test_what_cannot_be_sent_is_a_crash_with_a_reason() -> None:
    lock = threading.Lock()
    seen = observe_ranks(alone, lambda: lock, num_ranks=2, inputs={})
    assert seen.error is not None
    assert seen.error.kind is Kind.CRASHED
    assert "your code is sent to other processes" in seen.error.cause


def test_several_properties_judge_one_run() -> None:
    student = written_here("def student(case):\n    return 7\n")
    case = Case()
    runs: list[int] = []

    def judge(case, facts: RankFacts, wanted: int) -> Outcome:
        runs.append(facts.rank)
        kind = Kind.PASSED if facts.outputs["result"] == wanted else Kind.WRONG_VALUE
        return Outcome(name="", kind=kind, difference="" if kind is Kind.PASSED else "not the number")

    once = scene(with_case, case)
    properties = [rank_property(str(n), case, once, on_each(judge, case, n)) for n in (7, 8)]
    first, second = judge_all(properties, student)
    assert first.passed
    assert second.kind is Kind.WRONG_VALUE
    assert second.difference == "on rank 0: not the number"
    assert second.where == "two ranks"
    assert runs == [0, 1, 0]
    assert once(student) is once(student)


def with_case(probe, student, case):
    return {"result": student(case)}


def test_after_a_deadlock_the_rest_is_not_run() -> None:
    case = Case()
    deadlocks = written_here("def student(case):\n    dist.recv(torch.ones(2), 1 - dist.get_rank())\n")
    properties = [rank_property(name, case, scene(with_case, case), on_each(None, case)) for name in ("a", "b")]
    first, second = judge_all(properties, deadlocks)
    assert first.kind is Kind.DEADLOCK
    assert second.kind is Kind.NOT_JUDGED
    assert "deadlock" in second.cause


def test_first_mismatch_of_lists() -> None:
    assert first_mismatch({}) == ""
    assert first_mismatch({0: ["a", "b"], 1: ["a"]}) == ""
    assert first_mismatch({0: ["a", "b"], 1: ["a", "b"], 2: ["a", "c"]}) == (
        "call number 2 is b on rank 0, and c on rank 2"
    )


def test_same_calls_leave_messages_alone() -> None:
    def facts(rank: int, *calls: str) -> RankFacts:
        made = tuple(Communication(collective=name, payload_bytes=8, sent_bytes=8.0) for name in calls)
        return RankFacts(rank=rank, outputs={}, calls=made)

    assert judge_same_calls([facts(0, "send", "all_reduce"), facts(1, "all_reduce", "recv")]).passed
    failed = judge_same_calls([facts(0, "all_reduce"), facts(1, "all_gather")])
    assert failed.kind is Kind.RANKS_DISAGREE
    assert "all_reduce of 8 bytes on rank 0, and all_gather of 8 bytes on rank 1" in failed.difference
