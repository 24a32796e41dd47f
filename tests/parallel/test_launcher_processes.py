"""`run_distributed` from scripts: interrupts, a killed caller, no orphan, no import guard needed, and torchrun."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

LIMIT_S = 90.0

IDLE_RANKS = """
import os, subprocess, time
import torch.distributed as dist
from cme295lab.parallel import run_distributed
from cme295lab.parallel.launch import pool

def warm_up():
    return os.getpid()

def wait_for_ever():
    child = subprocess.Popen(["sleep", "1000"])
    print("processes", os.getpid(), child.pid)
    if dist.get_rank() == 0:
        time.sleep(1000)
    dist.barrier()

run_distributed(warm_up, 3)  # one process of the pool stays idle in the next call
print("[rank 9] processes", *(each.process.pid for each in pool._waiting), flush=True)
run_distributed(wait_for_ever, 2, timeout_s=500)
"""


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A script in the middle of a call; its group is ended with the test."""
    script = tmp_path / "script.py"
    script.write_text(IDLE_RANKS)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        yield process
        process.kill()


def processes_of(caller: subprocess.Popen[str]) -> set[int]:
    """Read what the script prints until both ranks are in the middle of it; the pids of ranks, children and pool."""
    assert caller.stdout is not None
    pids: set[int] = set()
    for _ in range(3):
        line = caller.stdout.readline()
        assert re.fullmatch(r"\[rank \d\] processes( \d+)+\n", line), line
        pids |= set(map(int, re.findall(r" (\d+)", line.split("processes")[1])))
    descendants = {process.pid for process in psutil.Process(caller.pid).children(recursive=True)}
    assert len(descendants) >= 6, "fork server, two ranks and their children, one that waits"
    return pids | descendants


def those_that_remain(pids: set[int], within_s: float) -> dict[int, list[str]]:
    """Which of the processes still run (a zombie does not) after a while."""
    end_s = time.monotonic() + within_s
    while True:
        remaining = {}
        for pid in pids:
            try:
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    remaining[pid] = process.cmdline()
            except psutil.NoSuchProcess:
                continue
        if not remaining or time.monotonic() > end_s:
            return remaining
        time.sleep(0.02)


def test_an_interrupt_ends_all_ranks_at_once_and_is_raised(caller: subprocess.Popen[str], tmp_path: Path) -> None:
    pids = processes_of(caller)
    start_s = time.monotonic()
    caller.send_signal(signal.SIGINT)
    assert caller.wait(LIMIT_S) != 0
    assert time.monotonic() - start_s < 5
    assert caller.stderr is not None
    assert caller.stderr.read().rstrip().endswith("KeyboardInterrupt")
    assert those_that_remain(pids, within_s=5) == {}
    assert [path.name for path in tmp_path.glob("cme295lab-*")] == []


def test_ranks_end_with_a_caller_that_is_killed(caller: subprocess.Popen[str], tmp_path: Path) -> None:
    """As when a notebook's kernel is restarted: no code of the caller runs any more."""
    pids = processes_of(caller)
    caller.kill()
    caller.wait(LIMIT_S)
    assert those_that_remain(pids, within_s=5) == {}
    assert [path.name for path in tmp_path.glob("cme295lab-*")] == [], "ranks take the call's directory with them"


SCRIPT = """
import sys
from dataclasses import dataclass
import torch
import torch.distributed as dist
from cme295lab.parallel import run_distributed
import beside_the_script

sys.stdout.write("the script runs\\n")  # in one piece: torchrun lets both ranks write to one pipe, unbuffered

@dataclass
class Answer:
    rank: int

def fn(scale):
    dist.barrier()
    return Answer(dist.get_rank() * scale + beside_the_script.NUMBER)

results = run_distributed(fn, 2, 10)
assert all(isinstance(result, Answer) for result in results), results
sys.stdout.write(f"results {[result.rank for result in results]}\\n")
results = run_distributed(lambda: torch.ones(2), 2)
sys.stdout.write(f"again {[result.tolist() for result in results]}\\n")
"""


def run_script(tmp_path: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "beside_the_script.py").write_text("NUMBER = 5\n")
    arguments = [sys.executable, *command, "script.py"]
    variables = {**os.environ, **environment}
    return subprocess.run(
        arguments, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def test_a_script_needs_no_guard_and_its_classes_come_back_as_themselves(tmp_path: Path) -> None:
    result = run_script(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["the script runs", "results [5, 15]", "again [[1.0, 1.0], [1.0, 1.0]]"]
    assert result.stderr == ""


def test_the_same_script_runs_under_torchrun(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
    result = run_script(tmp_path, *torchrun, "2", OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    printed = sorted(line for line in result.stdout.splitlines() if "Gloo" not in line)
    expected = ["the script runs", "results [5, 15]", "again [[1.0, 1.0], [1.0, 1.0]]"]
    assert printed == sorted(2 * expected)  # once on each rank, and nobody launches more


def test_another_number_of_processes_than_torchruns_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cme295lab.parallel import run_distributed

    torchruns = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "here", "MASTER_PORT": "1"}
    for name, value in torchruns.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"world_size is 2, but torchrun has started 4 processes \(WORLD_SIZE\)"):
        run_distributed(print, 2)


def test_a_fork_of_the_caller_is_refused_and_leaves_its_processes_alone() -> None:
    code = """
import os
from cme295lab.parallel import run_distributed
from cme295lab.parallel.launch import pool
def pid(): return os.getpid()
run_distributed(pid, 1)
waiting = {each.process.pid for each in pool._waiting}
child = os.fork()
if child == 0:
    try:
        run_distributed(pid, 1)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
assert set(run_distributed(pid, 1)) == waiting
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert result.returncode == 0, result.stderr
    assert "cannot start ranks here: this process was forked by one that has started ranks before" in result.stdout
