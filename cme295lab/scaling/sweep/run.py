"""Running a sweep to its end, or going on with one; and running a few of its runs again.

    python -m cme295lab.scaling.sweep --profile full     # all stages, into the package's own file
    python -m cme295lab.scaling.sweep --profile fast     # four of its runs again, compared with the stored losses
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cme295lab.scaling.sweep import plan
from cme295lab.scaling.sweep.data import SweepData, sweep_data
from cme295lab.scaling.sweep.models import sweep_model
from cme295lab.scaling.sweep.pool import run_all
from cme295lab.scaling.sweep.results import STORED, Record, Sweep, load_sweep, save_sweep
from cme295lab.scaling.sweep.training import TOKENS_PER_STEP, PlannedRun

_NUM_AGAIN = 4
SAME_DATA_TOLERANCE = 0.02  # nats per token: other processors round otherwise, and training amplifies it


def run_sweep(path: Path | str = STORED, *, workers: int = 2, progress: bool = True) -> Sweep:
    """Run what is missing of a sweep, stage after stage; the file is written after every run.

    Args:
        path: of the file; runs that it has are kept.
        workers: processes of one thread each.
        progress: whether to show bars.

    Returns:
        The whole sweep.

    Raises:
        ValueError: if the file has runs on other text, or none of the learning rates tried is best.
    """
    data = sweep_data()
    sweep = load_sweep(path) if Path(path).exists() else Sweep(data=data.facts)
    if sweep.data["fingerprint"] != data.fingerprint:
        raise ValueError(
            f"{path} has runs on text with the fingerprint {sweep.data['fingerprint']}, here it is {data.fingerprint} "
            f"(another version of Python?): write to another file"
        )
    stage = _Stage(path=Path(path), data=data, workers=workers, progress=progress)
    sweep = stage.run(sweep, plan.trial_runs())
    if sweep.rule is None:
        sweep = stage.keep(replace(sweep, rule=plan.rule_from_trials(sweep.of_kind("trial"))))
    rule = sweep.rule
    assert rule is not None
    sweep = stage.run(sweep, plan.sweep_runs(rule))
    if sweep.prediction is None:
        sweep = stage.keep(replace(sweep, prediction=plan.predict(sweep)))
    assert sweep.prediction is not None
    return stage.run(sweep, plan.check_runs(rule, sweep.prediction))


@dataclass(frozen=True, kw_only=True)
class _Stage:
    path: Path
    data: SweepData
    workers: int
    progress: bool

    def run(self, sweep: Sweep, runs: Sequence[PlannedRun]) -> Sweep:
        """Train what the sweep has not got, and write the file after each."""
        known = {record["name"] for record in sweep.records}
        missing = [run for run in runs if run.name not in known]
        for record in run_all(
            missing, self.data.train, self.data.validation, workers=self.workers, progress=self.progress
        ):
            sweep = self.keep(replace(sweep, records=(*sweep.records, record)))
        return sweep

    def keep(self, sweep: Sweep) -> Sweep:
        save_sweep(sweep, self.path)
        return sweep


@dataclass(frozen=True, kw_only=True)
class Again:
    """A stored run and the same run now.

    Args:
        name: of the run.
        stored_loss, loss: at its end, nats per token.
        same_data: whether the text is the same.
        seconds: that it took.
    """

    name: str
    stored_loss: float
    loss: float
    same_data: bool
    seconds: float

    @property
    def agrees(self) -> bool:
        """Whether the loss is the stored one, but for rounding."""
        return abs(self.loss - self.stored_loss) <= SAME_DATA_TOLERANCE


def run_again(
    path: Path | str | None = None, *, num_runs: int = _NUM_AGAIN, workers: int = 2, progress: bool = True
) -> list[Again]:
    """Train the cheapest runs of a stored sweep again.

    Args:
        path: of the sweep; None means the course's.
        num_runs: how many.
        workers: processes of one thread each.
        progress: whether to show a bar.

    Returns:
        Stored against new losses. Where the text differs (another version of Python), they need not agree.
    """
    sweep, data = load_sweep(path), sweep_data()
    stored = {record["name"]: record for record in cheapest(sweep, num_runs)}
    runs = [_planned(record) for record in stored.values()]
    same = sweep.data["fingerprint"] == data.fingerprint
    found = [
        Again(
            name=record["name"],
            stored_loss=stored[record["name"]]["loss"],
            loss=record["loss"],
            same_data=same,
            seconds=record["seconds"],
        )
        for record in run_all(runs, data.train, data.validation, workers=workers, progress=progress)
    ]
    return sorted(found, key=lambda again: again.name)


def cheapest(sweep: Sweep, num_runs: int) -> list[Record]:
    """The runs of the sweep that took the least time."""
    return sorted(sweep.of_kind("sweep"), key=lambda record: record["seconds"])[:num_runs]


def _planned(record: Record) -> PlannedRun:
    return PlannedRun(
        name=record["name"],
        config=sweep_model(record["model"]),
        num_steps=record["num_tokens"] // TOKENS_PER_STEP,
        learning_rate=record["learning_rate"],
        kind="sweep",
    )
