"""`run_distributed` when a rank raises, dies, hangs or waits for nobody: who is named, what is said, how soon."""

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

from cme295lab.parallel import DistributedError, run_distributed
from cme295lab.parallel.launch.blame import Frame, Outcome, collective_of, describe_exit, explain, where

SOON_S = 10.0  # "within seconds", on a machine on which other tests run


def failure_of(
    fn: Callable[[], Any], world_size: int, *, timeout_s: float = 60.0, soon_s: float = SOON_S
) -> DistributedError:
    """The error of a call that must fail soon, and must leave no rank behind."""
    start_s = time.monotonic()
    with pytest.raises(DistributedError) as caught:
        run_distributed(fn, world_size, timeout_s=timeout_s, print_output=False)
    assert time.monotonic() - start_s < soon_s
    return caught.value


def line_of(marker: str) -> str:
    """How the line of this file with that comment appears in a message."""
    lines = Path(__file__).read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return f"line {number} of {__file__}: {lines[number - 1].strip()}"


def test_a_rank_that_raises_is_named_with_its_traceback_and_the_others_with_their_place() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("wrong shape")  # raises

    def fn() -> None:
        x = torch.ones(2)
        if dist.get_rank() == 1:
            inner(x)
        dist.all_reduce(x)  # waits for rank 1

    error = failure_of(fn, 3)
    assert str(error).startswith("rank 1 raised ValueError: wrong shape\n\nTraceback (most recent call last):\n  File")
    assert 'raise ValueError("wrong shape")  # raises' in str(error)
    assert ", in inner\n" in str(error)
    assert "worker.py" not in str(error), "a line of ours in the student's traceback"
    place = f"waits in all_reduce at {line_of('waits for rank 1')}"
    assert f"ranks 0 and 2 {place.replace('waits', 'wait', 1)}" in str(error)
    assert error.failures == {0: place, 1: "raised ValueError: wrong shape", 2: place}
    assert error.culprit == 1


def _segfault() -> None:
    ctypes.string_at(0)


@pytest.mark.parametrize(
    ("die", "said"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "was killed by SIGKILL (out of memory?)"),
        (_segfault, "was killed by SIGSEGV (a crash in native code), at line"),
        (lambda: os._exit(3), "ended its process with exit code 3 (os._exit?), without a result"),
        (lambda: sys.exit(4), "raised SystemExit: sys.exit(4) was called"),
        (lambda: os._exit(0), "ended its process with exit code 0"),
    ],
)
def test_a_rank_that_dies_is_named_and_not_those_who_notice(die: Callable[[], None], said: str) -> None:
    def fn() -> None:
        x = torch.ones(2)
        if dist.get_rank() == 1:
            die()
        dist.all_reduce(x)  # loses its partner

    error = failure_of(fn, 3)
    assert str(error).startswith(f"rank 1 {said}")
    assert error.culprit == 1
    assert line_of("loses its partner") in error.failures[0]
    assert "all_reduce" in error.failures[0]


def test_the_cause_may_be_heard_of_later_than_its_consequence() -> None:
    def fn() -> None:
        if dist.get_rank() == 0:
            raise RuntimeError("Connection closed by peer")
        time.sleep(1.0)
        raise ValueError("the cause")

    error = failure_of(fn, 2)
    assert error.culprit == 1
    assert error.failures[0].startswith("then lost its connection to another rank")


def test_a_deadlock_is_noticed_before_the_time_limit() -> None:
    def fn() -> None:
        if dist.get_rank() != 2:
            work = dist.all_reduce(torch.ones(2), async_op=True)
            work.wait()  # nobody comes

    error = failure_of(fn, 3, timeout_s=60.0, soon_s=30.0)
    assert str(error).startswith("deadlock: rank 2 returned without a collective that the others wait in (no rank has")
    assert f"ranks 0 and 1 wait in wait() at {line_of('nobody comes')}" in str(error)
    assert sorted(error.failures) == [0, 1]
    assert error.culprit is None


def test_ranks_in_different_collectives_are_a_deadlock() -> None:
    def fn() -> None:
        if dist.get_rank() == 0:
            dist.recv(torch.empty(2), src=1)  # order of rank 0
        else:
            dist.broadcast(torch.empty(2), src=0)  # order of rank 1

    error = failure_of(fn, 2, timeout_s=1.5)
    assert str(error).startswith("deadlock: every rank waits for another one (timeout_s = 1.5 s)")
    assert error.failures == {
        0: f"waits in recv at {line_of('order of rank 0')}",
        1: f"waits in broadcast at {line_of('order of rank 1')}",
    }


def test_a_rank_that_hangs_alone_is_named_at_the_time_limit() -> None:
    def fn() -> None:
        while dist.get_rank() == 0:
            time.sleep(0.01)  # for ever
        dist.barrier()

    error = failure_of(fn, 2, timeout_s=1.0)
    assert str(error).startswith(f"no end after timeout_s = 1 s: rank 0 is busy at {line_of('for ever')}")
    assert error.culprit == 0
    assert error.failures[1].startswith("waits in barrier at line")


def test_slow_ranks_are_no_deadlock() -> None:
    """The others wait longer than a deadlock takes to be noticed, but somebody computes, or sleeps."""

    def fn() -> float:
        end_s = time.monotonic() + 6
        while dist.get_rank() == 0 and time.monotonic() < end_s:
            time.sleep(0.2)
        x = torch.ones(1)
        dist.all_reduce(x)
        return x.item()

    assert run_distributed(fn, 2) == [2.0, 2.0]


def test_a_result_that_cannot_be_sent_names_rank_and_type() -> None:
    error = failure_of(lambda: (i for i in range(3)) if dist.get_rank() == 1 else 0, 2)
    assert str(error).startswith("rank 1 returned a value of type generator that cannot be sent to the caller (TypeErr")
    assert "return tensors, numbers" in str(error)
    assert (error.culprit, list(error.failures)) == (1, [1])


def test_a_call_inside_a_rank_is_refused() -> None:
    error = failure_of(lambda: run_distributed(print, 2), 1)
    assert "RuntimeError: run_distributed was called inside rank 0 of another run_distributed" in str(error)


def test_processes_that_a_rank_started_end_with_it() -> None:
    def fn() -> int:
        return subprocess.Popen(["sleep", "300"]).pid

    (pid,) = run_distributed(fn, 1)
    gone_s = time.monotonic() + SOON_S
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" and time.monotonic() < gone_s:
        time.sleep(0.01)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie"


def test_a_rank_may_have_a_data_loader_with_processes() -> None:
    def fn() -> list[int]:
        return [int(batch) for batch in torch.utils.data.DataLoader(range(3), batch_size=None, num_workers=1)]

    assert run_distributed(fn, 1) == [[0, 1, 2]]


def test_a_call_after_a_failure_works() -> None:
    failure_of(lambda: os._exit(1), 2)
    assert run_distributed(lambda: dist.get_rank(), 2) == [0, 1]


def test_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DistributedError("text", {1: "died"}, 1)))
    assert (str(error), error.failures, error.culprit) == ("text", {1: "died"}, 1)


CONSEQUENCE = Outcome(rank=0, end="raised", message="RuntimeError: Connection closed by peer", time_s=1.0)


def test_order_of_blame() -> None:
    """A death before an own error before an error about others, whichever is heard of first; then by time."""
    own = Outcome(rank=1, end="raised", message="KeyError: 1", traceback="T", time_s=3.0)
    earlier = Outcome(rank=2, end="raised", message="KeyError: 2", traceback="T", time_s=2.0)
    death = Outcome(rank=3, end="died", message="was killed", time_s=4.0)
    unsendable = Outcome(rank=4, end="unsendable", message="returned a generator", time_s=1.5)
    cases = [
        ([CONSEQUENCE, own], 1),
        ([CONSEQUENCE, own, earlier], 2),
        ([CONSEQUENCE, own, earlier, death], 3),
        ([own, unsendable], 4),
        ([CONSEQUENCE], 0),
    ]
    for outcomes, culprit in cases:
        error = explain({outcome.rank: outcome for outcome in outcomes}, limit="1 s")
        assert error.culprit == culprit
        assert str(error).startswith(f"rank {culprit} ")
        assert sorted(error.failures) == [outcome.rank for outcome in outcomes]


def test_place_is_the_users_line_and_the_collective_the_innermost() -> None:
    mine = Frame("/home/me/train.py", 3, "step")
    torchs = Frame(f"{Path(torch.__file__).parent}/distributed/distributed_c10d.py", 9, "all_gather_into_tensor")
    wrapper = Frame(f"{Path(torch.__file__).parent}/distributed/c10d_logger.py", 9, "wrapper")
    assert where((mine, wrapper, torchs)) == "waits in all_gather_into_tensor at line 3 of /home/me/train.py, in step"
    assert where((mine,)) == "is busy at line 3 of /home/me/train.py, in step"
    assert where(()) == "shows no Python stack"
    assert collective_of((Frame("/home/me/train.py", 3, "all_reduce"),)) is None


def test_exit_codes_in_words() -> None:
    assert describe_exit(-6) == "was killed by SIGABRT"
    assert describe_exit(-200) == "was killed by signal 200"
    assert describe_exit(None) == "closed its connection without a message"
