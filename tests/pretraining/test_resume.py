"""A run that is killed at any moment, and resumed, is the run that was never killed: bit for bit."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from cme295lab.pretraining.packing import PackedDataset
from cme295lab.pretraining.trainer import Trainer, has_checkpoint
from cme295lab.pretraining.trainer.checkpoint import FILE_NAME, read_checkpoint, write_atomically
from tests.pretraining.runs import NUM_STEPS, start_or_resume, tiny_config, tiny_data, tiny_model

CLOCK = ("tokens_per_s", "mfu")  # what differs from run to run


@pytest.fixture(autouse=True)
def _one_thread():
    """As in the child process: sums of several threads are rounded in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    start_or_resume(folder).run()
    return folder


def _lines(path, without=CLOCK):
    return [{k: v for k, v in json.loads(line).items() if k not in without} for line in path.read_text().splitlines()]


def _assert_same(folder, expected):
    (tensors, facts), (tensors_there, facts_there) = read_checkpoint(folder), read_checkpoint(expected)
    assert facts == facts_there
    assert tensors.keys() == tensors_there.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], tensors_there[name])] == []
    assert any("optimizer" in name and tensor.any() for name, tensor in tensors.items())
    assert _lines(folder / "records.jsonl") == _lines(expected / "records.jsonl")
    assert _lines(folder / "evaluations.jsonl") == _lines(expected / "evaluations.jsonl")
    with (folder / "records.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, NUM_STEPS + 1))
    assert [float(row["loss"]) for row in rows] == [line["loss"] for line in _lines(expected / "records.jsonl")]


def test_child_process_killed_again_and_again_ends_up_with_the_same_run(tmp_path, uninterrupted, repository):
    """SIGKILL after a few lines of log, wherever the process is then; the last one may run to its end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for more_lines in (4, 13, 1000):
        before = _num_lines(tmp_path)
        command = [sys.executable, "-m", "tests.pretraining.runs", str(tmp_path)]
        child = subprocess.Popen(command, cwd=repository, env=environment)
        deadline = time.monotonic() + 120
        while child.poll() is None and _num_lines(tmp_path) < before + more_lines and time.monotonic() < deadline:
            time.sleep(0.001)
        if more_lines < 1000:
            child.send_signal(signal.SIGKILL)
            child.wait()
            assert has_checkpoint(tmp_path)
            assert child.returncode == -signal.SIGKILL
    assert child.wait() == 0
    _assert_same(tmp_path, uninterrupted)


def _num_lines(folder):
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


class _Killed(BaseException):
    """Stands in for SIGKILL, at a chosen place."""


@pytest.mark.parametrize("place", ["half a line", "a partial checkpoint", "before the rename", "before the csv line"])
def test_killed_in_the_middle_of_a_write_resumes_to_the_same_run(tmp_path, uninterrupted, monkeypatch, place):
    trainer = start_or_resume(tmp_path)
    trainer.run(until=11)  # checkpoints at 3, 6, 9, 11
    if place == "half a line":
        with (tmp_path / "records.jsonl").open("a") as file:
            file.write('{"step": 12, "loss": 3.1')
    elif place == "a partial checkpoint":
        (tmp_path / f".{FILE_NAME}.partial").write_bytes(b"half of it")
    else:
        rename = place == "before the rename"
        target = "pathlib.Path.replace" if rename else "cme295lab.pretraining.trainer.log._csv_line"
        calls = []

        def die(*arguments):
            calls.append(arguments)
            raise _Killed

        with monkeypatch.context() as patch:
            patch.setattr(target, die)
            with pytest.raises(_Killed):
                trainer.run()
        assert calls
    start_or_resume(tmp_path).run()
    _assert_same(tmp_path, uninterrupted)


def test_atomic_write_leaves_the_old_file_when_it_dies_before_the_rename(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def die(*arguments):
        raise _Killed

    monkeypatch.setattr("os.fsync", die)
    with pytest.raises(_Killed):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_stop_button_leaves_a_checkpoint_and_returns_what_was_done(tmp_path):
    documents = [[1, 2, 3, 4, 5]] * 20
    stopped_at = 5

    class Interrupting(PackedDataset):
        def batch(self, step, rows):
            if step == stopped_at:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(step, rows)

    before = signal.getsignal(signal.SIGINT)
    trainer = Trainer(
        tiny_model(), Interrupting(documents, seq=16, end_token=0), tiny_config(num_steps=30), folder=tmp_path,
        progress=False,
    )  # fmt: skip
    run = trainer.run()
    assert run.interrupted
    assert run.num_steps == stopped_at + 1  # the step in hand is finished
    assert len(run.records) == run.num_steps
    assert read_checkpoint(tmp_path)[1]["step"] == run.num_steps
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ValueError, match="other data"):  # of another kind, by its name
        Trainer.resume(tmp_path, tiny_model(), tiny_data(), progress=False)


def test_folders_that_hold_nothing_another_run_or_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run was started there"):
        Trainer.resume(tmp_path, tiny_model(), tiny_data())
    Trainer(tiny_model(), tiny_data(), tiny_config(), folder=tmp_path, progress=False).run(until=4)
    with pytest.raises(FileExistsError, match=r"Trainer\.resume"):
        Trainer(tiny_model(), tiny_data(), tiny_config(), folder=tmp_path)
    with pytest.raises(ValueError, match="a model of another shape"):
        Trainer.resume(tmp_path, tiny_model(num_layers=1), tiny_data())
    with pytest.raises(ValueError, match="other data"):
        Trainer.resume(tmp_path, tiny_model(), tiny_data(seed=9))
    records = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "records.jsonl").write_text("".join(records[1:]))
    with pytest.raises(ValueError, match="lacks lines"):
        Trainer.resume(tmp_path, tiny_model(), tiny_data())
    path = tmp_path / FILE_NAME
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        Trainer.resume(tmp_path, tiny_model(), tiny_data())
