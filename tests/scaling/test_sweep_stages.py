"""Running a sweep to its end, with made-up training: stages, going on after an interruption, and running again."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from cme295lab.scaling import ParametricLaw, load_sweep
from cme295lab.scaling.sweep import __main__ as command
from cme295lab.scaling.sweep import plan, run
from cme295lab.scaling.sweep.data import SweepData
from cme295lab.scaling.sweep.training import PlannedRun

LAW = ParametricLaw(1.5, 400.0, 300.0, 0.5, 0.4)
DATA = SweepData(train=np.arange(5, dtype=np.int32), validation=np.arange(3, dtype=np.int32), bytes_per_token=2.0)


class Training:
    """Stands in for the pool: a loss by a law, worse away from the learning rate N^-0.5, and no time at all."""

    def __init__(self, *, stop_after: int | None = None, off: float = 0.0) -> None:
        self.names: list[str] = []
        self.stop_after, self.off = stop_after, off

    def __call__(self, runs: Sequence[PlannedRun], *_: object, **__: object) -> Iterator[dict]:
        for item in runs:
            if self.stop_after is not None and len(self.names) >= self.stop_after:
                raise KeyboardInterrupt
            self.names.append(item.name)
            yield self.record(item)

    def record(self, item: PlannedRun) -> dict:
        size, tokens = item.config.num_parameters, item.num_tokens
        miss = 0.05 * np.log(item.learning_rate / (2.2 * size**-0.5)) ** 2 if item.kind == "trial" else 0.0
        return {
            "name": item.name, "kind": item.kind, "model": item.config.name, "num_parameters": size,
            "num_embedding_parameters": 512 * item.config.dim, "num_tokens": tokens, "flops": 6.0 * size * tokens,
            "learning_rate": item.learning_rate, "loss": float(LAW.loss(size, tokens) + miss + self.off),
            "curve": [[tokens / 2, 4.0], [tokens, 3.0]], "seconds": tokens * size / 1e10,
        }  # fmt: skip


@pytest.fixture(autouse=True)
def _made_up_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "sweep_data", lambda: DATA)


def trained_by(monkeypatch: pytest.MonkeyPatch, **options) -> Training:
    training = Training(**options)
    monkeypatch.setattr(run, "run_all", training)
    return training


def test_sweep_that_is_interrupted_goes_on_and_trains_nothing_twice(monkeypatch, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    first = trained_by(monkeypatch, stop_after=20)
    with pytest.raises(KeyboardInterrupt):
        run.run_sweep(path, progress=False)
    assert len(load_sweep(path).records) == 20
    second = trained_by(monkeypatch)
    sweep = run.run_sweep(path, progress=False)
    assert not set(first.names) & set(second.names)
    planned = [*plan.trial_runs(), *plan.sweep_runs(sweep.rule), *plan.check_runs(sweep.rule, sweep.prediction)]
    assert sorted(first.names + second.names) == sorted(item.name for item in planned)
    again = trained_by(monkeypatch)
    run.run_sweep(path, progress=False)
    assert again.names == []


def test_sweep_predicts_the_best_model_of_its_law_before_it_is_trained(monkeypatch, tmp_path: Path) -> None:
    trained_by(monkeypatch)
    sweep = run.run_sweep(tmp_path / "sweep.json", progress=False)
    assert sweep.rule.exponent == pytest.approx(-0.5, abs=0.02)
    best = LAW.allocate(plan.CHECK_BUDGET).num_parameters
    assert sweep.prediction["by_fit"] == pytest.approx(best, rel=0.02)
    assert sweep.prediction["by_parabolas"] == pytest.approx(best, rel=0.35)
    assert [check.num_parameters for check in sweep.checks] == sorted(
        model["num_parameters"] for model in sweep.prediction["models"]
    )
    assert len(sweep.checks) == 2
    for model in sweep.prediction["models"]:
        expected = LAW.loss(model["num_parameters"], plan.CHECK_BUDGET / 6 / model["num_parameters"])
        assert model["loss"] == pytest.approx(expected, rel=1e-3)


def test_sweep_refuses_a_file_about_other_text(monkeypatch, tmp_path: Path) -> None:
    trained_by(monkeypatch)
    path = tmp_path / "sweep.json"
    run.run_sweep(path, progress=False)
    path.write_text(path.read_text().replace(DATA.fingerprint, "0" * 16))
    with pytest.raises(ValueError, match="has runs on text with the fingerprint 0000000000000000, here it is"):
        run.run_sweep(path, progress=False)


@pytest.mark.parametrize(("off", "code"), [(0.0, 0), (0.3, 1)])
def test_fast_profile_compares_four_runs_with_the_stored_losses(monkeypatch, tmp_path, capsys, off, code) -> None:
    path = tmp_path / "sweep.json"
    trained_by(monkeypatch)
    run.run_sweep(path, progress=False)
    again = trained_by(monkeypatch, off=off)
    monkeypatch.setattr("sys.argv", ["sweep", "--profile", "fast", "--output", str(path)])
    assert command.main() == code
    assert len(again.names) == 4
    assert capsys.readouterr().out.count("stored") == 4


def test_full_profile_prints_what_was_predicted_and_what_came(monkeypatch, tmp_path, capsys) -> None:
    trained_by(monkeypatch)
    monkeypatch.setattr("sys.argv", ["sweep", "--profile", "full", "--output", str(tmp_path / "sweep.json")])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("25 runs, ")
    assert sum("predicted" in line and "trained" in line for line in lines) == 2
