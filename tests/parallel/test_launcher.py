"""`run_distributed` when all goes well: what ranks see, what comes back, what is shown, and what is refused."""

import io
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from cme295lab.parallel import report_progress, run_distributed, shutdown_pool
from cme295lab.parallel.launch import pool
from cme295lab.parallel.launch.launcher import choose_backend


class Point:
    """A class that ranks get by reference, since this module can be imported."""

    def __init__(self, x: int) -> None:
        self.x = x


def facts_of_a_rank(factor: int, *, offset: int) -> dict[str, Any]:
    total = torch.tensor([float(dist.get_rank())])
    dist.all_reduce(total)
    return {
        "product": dist.get_rank() * factor + offset,
        "sum of ranks": total.item(),
        "group": (dist.get_rank(), dist.get_world_size(), dist.get_backend()),
        "environment": [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")],
        "mine": (os.environ["OF_THE_CALLER"], os.environ["OF_THIS_CALL"]),
        "threads": torch.get_num_threads(),
        "random": (torch.rand(1).item(), np.random.rand(), random.random()),
        "directory": str(Path.cwd()),
        "path": list(sys.path),
        "arguments": list(sys.argv),
        "pid": os.getpid(),
        "point": Point(dist.get_rank()),
    }


def test_ranks_see_the_caller_as_it_is_now_and_results_are_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_distributed(do_nothing, 3)  # the processes of the next call are started before what follows is set
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "argv", ["script.py", "--fast"])
    monkeypatch.setenv("OF_THE_CALLER", "a")
    facts = run_distributed(facts_of_a_rank, 3, 10, offset=7, seed=5, env={"OF_THIS_CALL": "b"})
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected_random = (torch.rand(1).item(), np.random.rand(), random.random())
    assert [fact["product"] for fact in facts] == [7, 17, 27]
    for rank, fact in enumerate(facts):
        assert fact["sum of ranks"] == 3.0
        assert fact["group"] == (rank, 3, "gloo")
        assert fact["environment"] == [str(rank), str(rank), "3", "3"]
        assert fact["mine"] == ("a", "b")
        assert fact["threads"] == 1
        assert fact["random"] == expected_random
        assert fact["directory"] == str(tmp_path)
        assert fact["path"] == sys.path
        assert fact["arguments"] == ["script.py", "--fast"]
        assert isinstance(fact["point"], Point)
        assert fact["point"].x == rank
    assert len({fact["pid"] for fact in facts} | {os.getpid()}) == 4
    assert "OF_THIS_CALL" not in os.environ


def test_nothing_of_a_call_is_left_for_the_next() -> None:
    def untidy() -> int:
        os.environ["LEFT_BEHIND"] = "1"
        os.chdir("/")
        torch.set_default_dtype(torch.float64)
        sys.modules["left_behind"] = sys
        return os.getpid()

    def look() -> tuple[int, bool, str, torch.dtype, bool]:
        left = "LEFT_BEHIND" in os.environ
        return os.getpid(), left, str(Path.cwd()), torch.get_default_dtype(), "left_behind" in sys.modules

    first = run_distributed(untidy, 2)
    for pid, *rest in run_distributed(look, 2):
        assert pid not in first
        assert rest == [False, str(Path.cwd()), torch.float32, False]


def test_a_call_sees_functions_and_captured_values_as_they_are_at_the_call() -> None:
    def answer() -> int:
        return value

    value = 1
    first = run_distributed(answer, 1)
    value = 2
    second = run_distributed(answer, 1)
    assert (first, second) == ([1], [2])

    def answer() -> int:  # as when a cell is run again
        return 10 * value

    assert run_distributed(answer, 1) == [20]


def test_large_tensors_go_both_ways() -> None:
    sent = torch.arange(3_000_001, dtype=torch.float32)

    def double(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 2

    for returned in run_distributed(double, 2, sent):
        assert torch.equal(returned, sent * 2)


def test_warm_start_of_four_ranks_takes_less_than_half_a_second() -> None:
    def nothing() -> None:
        return None

    run_distributed(nothing, 4)
    times_s = []
    for _ in range(5):
        start_s = time.perf_counter()
        assert run_distributed(nothing, 4) == [None] * 4
        times_s.append(time.perf_counter() - start_s)
    assert min(times_s) < 0.5, times_s  # the quickest: other tests may run on these cores, too


def test_pool_keeps_processes_for_the_next_call_and_can_be_ended() -> None:
    def pid() -> int:
        return os.getpid()

    run_distributed(pid, 2)
    waiting = {each.process.pid for each in pool._waiting}
    assert len(waiting) >= 2
    assert set(run_distributed(pid, 2)) <= waiting
    shutdown_pool()
    assert pool._waiting == []
    assert run_distributed(pid, 1)[0] not in waiting


def test_a_waiting_process_that_was_killed_is_not_used() -> None:
    run_distributed(os.getpid, 2)
    for each in pool._waiting:
        each.process.kill()
        each.process.join()
    assert len(run_distributed(os.getpid, 2)) == 2


def test_spawned_processes_serve_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS, where there is no fork server."""
    shutdown_pool()
    monkeypatch.setattr(pool, "start_method", lambda: "spawn")
    monkeypatch.setattr(pool, "MAX_WAITING", 0)
    monkeypatch.setenv("OF_THE_CALLER", "a")
    facts = run_distributed(facts_of_a_rank, 2, 1, offset=0, env={"OF_THIS_CALL": "b"})
    assert [fact["sum of ranks"] for fact in facts] == [1.0, 1.0]


def test_calls_at_the_same_time_do_not_meet() -> None:
    def total(number: int) -> float:
        tensor = torch.tensor([float(number)])
        dist.all_reduce(tensor)
        return tensor.item()

    results: dict[int, list[float]] = {}

    def call(number: int) -> None:
        results[number] = run_distributed(total, 2, number)

    threads = [threading.Thread(target=call, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {1: [2.0, 2.0], 2: [4.0, 4.0]}


def test_output_is_shown_line_by_line_with_the_rank_in_front(capsys: pytest.CaptureFixture[str]) -> None:
    def talk() -> None:
        rank = dist.get_rank()
        print(f"hello from {rank}\nand more, größer")
        print("to stderr", file=sys.stderr)
        os.system("echo from C")
        os.write(1, b"not UTF-8 \xff\n")
        print("10 %\r20 %\r30 %")
        print("no line end", end="")

    run_distributed(talk, 2)
    printed = capsys.readouterr().out.splitlines()
    for rank in range(2):
        mine = [line.removeprefix(f"[rank {rank}] ") for line in printed if line.startswith(f"[rank {rank}] ")]
        assert mine == [
            f"hello from {rank}",
            "and more, größer",
            "to stderr",
            "from C",
            "not UTF-8 \N{REPLACEMENT CHARACTER}",
            "30 %",
            "no line end",
        ]
    assert len(printed) == 14, printed
    run_distributed(talk, 1, print_output=False)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_output_arrives_while_the_ranks_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = tmp_path / "answer"

    class Caller(io.StringIO):
        def write(self, text: str) -> int:
            if "[rank 0] are you there?" in text:
                answer.touch()
            return super().write(text)

    def ask() -> bool:
        print("are you there?")
        end_s = time.monotonic() + 20
        while not answer.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        return answer.exists()

    monkeypatch.setattr(sys, "stdout", Caller())
    assert run_distributed(ask, 1) == [True]


class _Bar:
    made: list["_Bar"]
    seen: Path  # exists once a bar was drawn

    def __init__(self, total: float) -> None:
        self.total, self.n, self.text, self.written, self.is_closed = total, 0.0, "", list[str](), False
        self.made.append(self)

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.text = text

    def refresh(self) -> None:
        self.seen.touch()

    def write(self, text: str) -> None:
        self.written.append(text)

    def close(self) -> None:
        self.is_closed = True


def test_one_bar_shows_how_far_the_slowest_rank_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"

    def work() -> None:
        steps = 10 if dist.get_rank() == 0 else 4
        for step in range(steps + 1):
            report_progress(step, 10, text=f"loss {step}")
        report_progress(steps, steps)
        end_s = time.monotonic() + 20
        while not seen.exists() and time.monotonic() < end_s:  # what is printed may overtake what is reported
            time.sleep(0.01)
        print("after")

    _Bar.made, _Bar.seen = [], seen
    monkeypatch.setattr("tqdm.auto.tqdm", _Bar)
    run_distributed(work, 2)
    (bar,) = _Bar.made
    assert (bar.n / bar.total, bar.is_closed) == (1.0, True)
    assert sorted(bar.written) == ["[rank 0] after", "[rank 1] after"]  # printed above the bar
    run_distributed(work, 1, progress=False)
    assert len(_Bar.made) == 1
    assert capsys.readouterr().out == "[rank 0] after\n"


def test_progress_of_no_rank_goes_nowhere_and_nonsense_is_refused() -> None:
    assert report_progress(1, 2) is None
    with pytest.raises(ValueError, match="done must be from 0 to total, got done=3, total=2"):
        report_progress(3, 2)


def do_nothing() -> None:
    return None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"world_size": 0}, "world_size must be from 1 to 64 .* got 0"),
        ({"world_size": -1}, "got -1"),
        ({"world_size": 10**6}, "got 1000000"),
        ({"world_size": 2.0}, "world_size must be a whole number of ranks, got 2.0"),
        ({"world_size": "2"}, "got '2'"),
        ({"world_size": True}, "got True"),
        ({"backend": "mpi"}, "backend must be 'auto', 'gloo' or 'nccl', got 'mpi'"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0, at most 1e.06, got 0"),
        ({"timeout_s": float("nan")}, "got nan"),
        ({"timeout_s": float("inf")}, "got inf"),
        ({"timeout_s": None}, "got None"),
        ({"seed": "x"}, "seed must be a whole number, got 'x'"),
        ({"seed": -1}, "seed must be from 0"),
        ({"progress": "yes"}, "progress must be None .* or False .*, got 'yes'"),
    ],
)
def test_impossible_calls_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_distributed(**{"fn": do_nothing, "world_size": 2, **options})


def test_what_is_no_function_or_no_variable_is_refused() -> None:
    with pytest.raises(TypeError, match="fn must be a function, got int"):
        run_distributed(3, 2)
    with pytest.raises(TypeError, match=r"env must map names to strings, got 'A': 1; use 'A': '1'"):
        run_distributed(do_nothing, 2, env={"A": 1})


@pytest.mark.parametrize(
    ("make_call", "named"),
    [
        (lambda lock: ((lambda: lock), (), {}), r"fn \(of type function\)"),
        (lambda lock: (print, (1, lock), {}), r"argument 1 of fn \(of type lock\)"),
        (lambda lock: (print, (), {"end": lock}), r"argument end of fn \(of type lock\)"),
    ],
)
def test_what_cannot_be_sent_is_named(make_call: Callable[[Any], Any], named: str) -> None:
    fn, args, kwargs = make_call(threading.Lock())
    with pytest.raises(TypeError, match=f"{named} cannot be sent to another process: .*lock"):
        run_distributed(fn, 2, *args, **kwargs)


def test_backend_is_nccl_only_with_a_gpu_for_each_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choose_backend("auto", size) for size in (1, 2, 3)] == ["nccl", "nccl", "gloo"]
    assert choose_backend("nccl", 2) == "nccl"
    with pytest.raises(ValueError, match="needs a GPU per rank: 3 ranks, and PyTorch sees 2 CUDA devices"):
        choose_backend("nccl", 3)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert choose_backend("auto", 2) == "gloo"
    with pytest.raises(ValueError, match="'nccl' is not in this build of PyTorch; use backend='gloo'"):
        choose_backend("nccl", 1)


def test_a_system_without_process_groups_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "platform", "win32")
    with pytest.raises(RuntimeError, match=r"cannot start ranks here: .* use WSL"):
        run_distributed(do_nothing, 2)
