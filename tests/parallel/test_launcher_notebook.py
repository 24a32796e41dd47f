"""`run_distributed` in the cells of a real notebook kernel: functions, classes, output, errors, interrupt, restart."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.manager import KernelManager, start_new_kernel

pytestmark = pytest.mark.notebook

LIMIT_S = 60.0

SETUP = """
import os, time
import torch
import torch.distributed as dist
from cme295lab.parallel import run_distributed, report_progress
import beside_the_notebook

class Answer:
    def __init__(self, rank):
        self.rank = rank

scale = 10
"""
FUNCTION = """
def fn(offset):
    print("hello")
    dist.barrier()
    return Answer(dist.get_rank() * scale + offset + beside_the_notebook.NUMBER)
"""
CALL = """
results = run_distributed(fn, 2, 1)
assert all(type(result) is Answer for result in results)
print([result.rank for result in results])
"""
FAILING = """
def inner(x):
    raise ValueError("wrong shape")

def fn():
    x = torch.ones(2)
    if dist.get_rank() == 1:
        inner(x)
    dist.all_reduce(x)
run_distributed(fn, 2)
"""
PROGRESS = """
def fn():
    for step in range(4):
        report_progress(step + 1, 4)
run_distributed(fn, 2)
"""
HANGING = """
def fn():
    print("pid", os.getpid())
    time.sleep(1000)
run_distributed(fn, 2, timeout_s=500)
"""


class Notebook:
    """A kernel, and the cells that it is given."""

    def __init__(self, folder: Path) -> None:
        self.traceback = ""
        self.manager: KernelManager
        self.manager, self.client = start_new_kernel(
            startup_timeout=LIMIT_S, kernel_name="python3", cwd=str(folder), env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    def start(self, cell: str) -> str:
        return self.client.execute(cell, allow_stdin=False)

    def messages(self, request: str) -> Iterator[dict[str, Any]]:
        """What belongs to a cell, up to its end."""
        while True:
            message = self.client.get_iopub_msg(timeout=LIMIT_S)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return
            yield message

    def run(self, cell: str) -> tuple[str, str, list[str]]:
        """Text, error and the kinds of other output that appear under a cell."""
        text, error, others = "", "", []
        for message in self.messages(self.start(cell)):
            content = message["content"]
            if message["msg_type"] == "stream":
                text += content["text"]
            elif message["msg_type"] == "error":
                error = f"{content['ename']}: {content['evalue']}"
                self.traceback = "\n".join(content["traceback"])
            elif message["msg_type"] == "display_data":
                others += list(content["data"])
        return text, error, others

    def pids(self, request: str, number: int) -> set[int]:
        """The processes that a running cell's ranks print."""
        text = ""
        for message in self.messages(request):
            if message["msg_type"] == "stream":
                text += message["content"]["text"]
            if text.count("pid") == number and text.endswith("\n"):
                return {int(line.split("pid")[1]) for line in text.splitlines()}
        raise AssertionError(f"the cell ended, after {text!r}")


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "beside_the_notebook.py").write_text("NUMBER = 5\n")
    made = Notebook(folder)
    assert made.run(SETUP) == ("", "", [])
    yield made
    made.client.stop_channels()
    made.manager.shutdown_kernel(now=True)


def those_that_remain(pids: set[int], within_s: float = 5.0) -> set[int]:
    """The processes that still run after a while."""
    end_s = time.monotonic() + within_s
    while time.monotonic() < end_s and any(map(psutil.pid_exists, pids)):
        time.sleep(0.02)
    return {pid for pid in pids if psutil.pid_exists(pid)}


def test_functions_and_classes_of_cells_run_on_ranks_and_output_is_under_the_cell(notebook: Notebook) -> None:
    assert notebook.run(FUNCTION) == ("", "", [])
    text, error, _ = notebook.run(CALL)
    assert error == ""
    assert sorted(text.splitlines()[:2]) == ["[rank 0] hello", "[rank 1] hello"]
    assert text.splitlines()[2:] == ["[6, 16]"]
    assert notebook.run("scale = 100\n" + CALL)[0].endswith("[6, 106]\n")


def test_an_error_names_cells_and_their_lines(notebook: Notebook) -> None:
    _, error, _ = notebook.run(FAILING)
    number = notebook.run("print(len(In) - 2)")[0].strip()
    assert error.startswith("DistributedError: rank 1 raised ValueError: wrong shape\n\nTraceback")
    assert f'  Cell In[{number}], line 2, in inner\n    raise ValueError("wrong shape")\n' in error
    assert f"rank 0 waits in all_reduce at line 8 of Cell In[{number}]: dist.all_reduce(x)" in error
    assert notebook.traceback == f"called at line 9 of Cell In[{number}]: run_distributed(fn, 2)\n{error}"


def test_progress_of_ranks_is_one_bar_under_the_cell(notebook: Notebook) -> None:
    text, error, others = notebook.run(PROGRESS)
    assert error == ""
    assert others.count("application/vnd.jupyter.widget-view+json") == 1 or "4/4" in text


def test_an_interrupt_of_the_cell_ends_the_ranks(notebook: Notebook) -> None:
    request = notebook.start(HANGING)
    pids = notebook.pids(request, 2)
    notebook.manager.interrupt_kernel()
    errors = [m["content"]["ename"] for m in notebook.messages(request) if m["msg_type"] == "error"]
    assert errors == ["KeyboardInterrupt"]
    assert those_that_remain(pids) == set()
    assert notebook.run("print(run_distributed(os.getpid, 1) != [os.getpid()])") == ("True\n", "", [])


def test_a_restart_of_the_kernel_leaves_no_process(notebook: Notebook) -> None:
    pids = notebook.pids(notebook.start(HANGING), 2)
    assert notebook.manager.provisioner is not None
    pids |= {child.pid for child in psutil.Process(notebook.manager.provisioner.pid).children(recursive=True)}
    notebook.manager.restart_kernel(now=True)
    assert those_that_remain(pids) == set()
