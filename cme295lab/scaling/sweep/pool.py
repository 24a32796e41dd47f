"""Many runs on a few processes of one thread each: with a progress bar, and each result handed over as it comes.

Two small models train faster on two cores one beside the other than one after the other on both: their matrices are too
small to be divided.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from cme295lab.scaling.sweep.training import PlannedRun, rows_of, train_run

_in_worker: dict[str, Any] = {}  # what a worker process has loaded, once for all its runs


def run_all(
    runs: Sequence[PlannedRun], train: np.ndarray, validation: np.ndarray, *, workers: int = 2, progress: bool = True
) -> Iterator[dict[str, Any]]:
    """Train all runs, the most expensive first, and yield each record when it is there.

    Whoever stops asking (or presses Ctrl-C) cancels what has not begun; what was yielded is finished.

    Args:
        runs: what to train.
        train, validation: streams of tokens.
        workers: processes.
        progress: whether to show a bar, over compute.

    Raises:
        ValueError: if there is no worker.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if not runs:
        return
    ordered = sorted(runs, key=lambda run: -run.num_tokens * run.config.num_parameters)
    total = sum(run.num_tokens * run.config.num_parameters * 6e-9 for run in ordered)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("train.npy", "validation.npy")]
        for path, tokens in zip(paths, (train, validation), strict=True):
            np.save(path, tokens)
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start, initargs=(paths,))
        try:
            futures = {pool.submit(_train, run): run for run in ordered}
            with tqdm(total=total, unit="GFLOP", unit_scale=True, disable=not progress) as bar:
                for future in as_completed(futures):
                    record = future.result()
                    bar.set_postfix_str(f"{record['name']}: loss {record['loss']:.3f}")
                    bar.update(record["flops"] / 1e9)
                    yield record
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start(paths: Sequence[Path]) -> None:
    torch.set_num_threads(1)
    _in_worker["train"], _in_worker["validation"] = (rows_of(np.load(path)) for path in paths)


def _train(run: PlannedRun) -> dict[str, Any]:
    return train_run(run, _in_worker["train"], _in_worker["validation"])
