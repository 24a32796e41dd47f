"""The sweep: its plan, one run of it, what is stored, and what the stored runs say."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cme295lab.scaling import columns, fit_isoflop, fit_parametric, load_sweep
from cme295lab.scaling.fitting.isoflop import group_by_budget
from cme295lab.scaling.sweep import plan
from cme295lab.scaling.sweep.models import (
    SWEEP_MODELS,
    LearningRateRule,
    best_learning_rate,
    model_for_size,
    sweep_model,
)
from cme295lab.scaling.sweep.pool import run_all
from cme295lab.scaling.sweep.results import Sweep, save_sweep
from cme295lab.scaling.sweep.run import cheapest
from cme295lab.scaling.sweep.training import (
    TOKENS_PER_STEP,
    PlannedRun,
    curve_of,
    evaluate,
    initialize,
    rows_of,
    schedule,
    steps_for_budget,
    train_run,
)
from cme295lab.transformer import DecoderLM

RULE = LearningRateRule(coefficient=5.0, exponent=-0.55)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    """A language that can be learned: a token is followed by its double, mod 509, or by chance."""
    rng = np.random.default_rng(0)
    stream = [1]
    for _ in range(20_000):
        stream.append(int(2 * stream[-1] % 509) if rng.random() < 0.9 else int(rng.integers(1, 509)))
    return np.array(stream, dtype=np.int32)


def small_run(name: str = "a", steps: int = 30, rate: float = 0.01) -> PlannedRun:
    return PlannedRun(name=name, config=sweep_model("28x2"), num_steps=steps, learning_rate=rate, kind="sweep")


# The plan


def test_ladder_grows_evenly_from_thirty_thousand_to_three_million() -> None:
    sizes = [config.num_parameters for config in SWEEP_MODELS]
    assert sizes[0] == 32_844  # by hand: 512 × 28 + 2 × (4 × 28² + 3 × 28 × 72 + 2 × 28) + 28
    assert 3.0e6 < sizes[-1] < 3.5e6
    ratios = np.array(sizes[1:]) / sizes[:-1]
    assert ((ratios > 1.2) & (ratios < 1.9)).all()


def test_sweep_spends_each_budget_on_every_size_to_half_a_step() -> None:
    runs = plan.sweep_runs(RULE)
    assert len(runs) >= 20
    assert len({run.name for run in runs}) == len(runs)
    for budget in plan.BUDGETS:
        at_budget = [run for run in runs if run.name.endswith(f"at {budget:.3g}")]
        assert len(at_budget) >= 5
        for run in at_budget:
            spent = 6 * run.config.num_parameters * run.num_tokens
            assert abs(spent - budget) <= 6 * run.config.num_parameters * TOKENS_PER_STEP / 2
    assert plan.CHECK_BUDGET / max(plan.BUDGETS) == pytest.approx(3)


def test_learning_rate_rule_goes_through_the_best_trials() -> None:
    """Parabolas with their bottoms at N^-0.5: the rule must find exponent and coefficient."""
    records = []
    for size in (1e4, 1e5, 1e6):
        for rate in size**-0.5 * np.array([0.3, 0.6, 1.3, 2.7]):
            loss = 3 + 0.1 * math.log(rate / size**-0.5) ** 2
            records.append({"model": str(size), "num_parameters": size, "learning_rate": float(rate), "loss": loss})
    rule = plan.rule_from_trials(records)
    assert rule.exponent == pytest.approx(-0.5, abs=1e-3)
    assert rule(1e5) == pytest.approx(1e5**-0.5, rel=1e-2)


def test_learning_rate_at_the_edge_of_the_trials_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at the edge of those tried \(0\.001, 0\.002, 0\.004\)"):
        best_learning_rate([0.001, 0.002, 0.004], [3.0, 3.1, 3.2])


def test_model_for_a_size_that_no_rung_has() -> None:
    for size in (40_000, 250_000, 900_000):
        assert model_for_size(size).num_parameters == pytest.approx(size, rel=0.3)
    with pytest.raises(ValueError, match=r"num_parameters must be at least 32,844"):
        model_for_size(1000)
    with pytest.raises(ValueError, match="unknown model '1x1'; the sweep has 28x2"):
        sweep_model("1x1")


# A run


def test_schedule_warms_up_and_falls_to_a_tenth() -> None:
    rates = [schedule(step, 200) for step in range(200)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == rates[9] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert schedule(0, 1) == 1.0


def test_initial_weights_fit_the_width() -> None:
    model = initialize(DecoderLM(sweep_model("256x4")))
    assert model.layers[0].mlp.up.weight.std().item() == pytest.approx(256**-0.5, rel=0.02)
    assert model.layers[0].attention.out.weight.std().item() == pytest.approx(256**-0.5 / math.sqrt(8), rel=0.02)
    assert model.head.weight is model.embedding.weight


def test_run_learns_and_is_the_same_twice(tokens: np.ndarray) -> None:
    rows, held_out = rows_of(tokens[:-2000]), rows_of(tokens[-2000:])
    record = train_run(small_run(steps=60), rows, held_out)
    again = train_run(small_run(steps=60), rows, held_out)
    untrained = evaluate(DecoderLM(sweep_model("28x2")), held_out)
    assert record["loss"] < untrained - 0.3
    assert {**record, "seconds": 0} == {**again, "seconds": 0}
    assert record["num_tokens"] == 60 * TOKENS_PER_STEP
    assert record["flops"] == 6 * 32_844 * 60 * TOKENS_PER_STEP
    assert record["num_embedding_parameters"] == 512 * 28
    assert record["curve"][-1][0] <= record["num_tokens"]
    assert record["curve"][-1][1] < record["curve"][0][1]


def test_evaluation_weighs_tokens_and_not_batches(tokens: np.ndarray) -> None:
    """Rows that do not divide: the mean over all targets, whatever goes through the model at a time."""
    data = rows_of(tokens[:3000])
    model = DecoderLM(sweep_model("28x2"))
    torch.manual_seed(1)
    batch = data.rows(range(data.num_rows))
    whole = model.loss(batch.tokens, batch.targets).item()
    assert evaluate(model, data, rows=5) == pytest.approx(whole, rel=1e-5)
    assert evaluate(model, data, rows=100) == pytest.approx(whole, rel=1e-5)


def test_curve_has_means_of_stretches_that_cover_the_run() -> None:
    losses = np.linspace(5, 3, 1000)
    curve = curve_of(losses)
    assert len(curve) == 12
    tokens = [point[0] for point in curve]
    assert tokens == sorted(tokens)
    assert curve[0][1] == pytest.approx(losses[:8].mean(), abs=1e-5)
    assert curve_of(np.array([4.0])) == [[TOKENS_PER_STEP, 4.0]]


def test_steps_for_a_budget() -> None:
    config = sweep_model("64x3")
    assert steps_for_budget(config, 6 * config.num_parameters * TOKENS_PER_STEP * 10.4) == 10
    assert steps_for_budget(config, 1.0) == 1


@pytest.mark.slow
def test_pool_hands_over_every_run_and_equals_one_process(tokens: np.ndarray) -> None:
    """Two processes, three runs: the records of this process."""
    runs = [small_run(name, steps) for name, steps in (("a", 3), ("b", 9), ("c", 5))]
    found = {r["name"]: r for r in run_all(runs, tokens[:-2000], tokens[-2000:], workers=2, progress=False)}
    assert sorted(found) == ["a", "b", "c"]
    here = train_run(runs[1], rows_of(tokens[:-2000]), rows_of(tokens[-2000:]))
    assert found["b"]["loss"] == pytest.approx(here["loss"], abs=1e-4)


def test_pool_refuses_no_workers_and_has_nothing_to_do_without_runs(tokens: np.ndarray) -> None:
    assert list(run_all([], tokens, tokens)) == []
    with pytest.raises(ValueError, match="workers must be at least 1"):
        list(run_all([small_run()], tokens, tokens, workers=0))


# The stored sweep


def record(name: str, size: int, num_tokens: int, loss: float, kind: str = "sweep") -> dict:
    return {
        "name": name, "kind": kind, "model": "28x2", "num_parameters": size, "num_embedding_parameters": size // 2,
        "num_tokens": num_tokens, "flops": 6 * size * num_tokens, "learning_rate": 0.01, "loss": loss,
        "curve": [[1, 4.0], [num_tokens, loss]], "seconds": 1.5,
    }  # fmt: skip


def test_sweep_survives_a_file(tmp_path: Path) -> None:
    sweep = Sweep(
        data={"fingerprint": "x"}, rule=RULE, prediction={"flops": 1.0, "models": []},
        records=(record("b", 2000, 100, 3.0), record("t", 1000, 100, 3.5, "trial"), record("a", 1000, 100, 3.2)),
    )  # fmt: skip
    save_sweep(sweep, tmp_path / "new" / "sweep.json")
    back = load_sweep(tmp_path / "new" / "sweep.json")
    assert [r["name"] for r in back.records] == ["t", "a", "b"]
    assert (back.rule, back.data, back.prediction) == (sweep.rule, sweep.data, sweep.prediction)
    assert [run.num_parameters for run in back.runs] == [1000, 2000]
    assert [run.num_parameters for run in back.runs_without_embeddings] == [500, 1000]
    assert back.runs_without_embeddings[0].flops == 6 * 500 * 100
    assert back.curves[0].loss.tolist() == [4.0, 3.2]
    assert (back.seconds, len(back.checks)) == (4.5, 0)
    assert [r["name"] for r in cheapest(back, 1)] == ["a"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sweep.json"]  # no half-written file is left


def test_load_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    with pytest.raises(FileNotFoundError, match=r"make it with `python -m cme295lab\.scaling\.sweep"):
        load_sweep(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not a sweep: JSONDecodeError"):
        load_sweep(path)
    path.write_text(json.dumps({"format": 7}))
    with pytest.raises(ValueError, match="its format is 7, and 1 is read here"):
        load_sweep(path)


def test_stored_sweep_is_whole() -> None:
    sweep = load_sweep()
    assert sweep.rule is not None
    assert len(sweep.runs) >= 20
    assert min(run.num_parameters for run in sweep.runs) < 35_000
    assert max(run.num_parameters for run in sweep.runs) > 3_000_000
    assert [len(group) >= 5 for group in group_by_budget(sweep.runs)] == [True] * 4
    planned = {run.name: run for run in plan.sweep_runs(sweep.rule)}
    for stored in sweep.of_kind("sweep"):
        run = planned[stored["name"]]
        assert (stored["num_parameters"], stored["num_tokens"]) == (run.config.num_parameters, run.num_tokens)
        assert stored["learning_rate"] == pytest.approx(run.learning_rate, rel=1e-3)


def test_stored_sweep_brackets_the_best_size_of_every_budget_and_larger_budgets_want_larger_models() -> None:
    fit = fit_isoflop(load_sweep().runs)
    assert all(curve.bracketed for curve in fit.curves)
    sizes, losses = [c.num_parameters for c in fit.curves], [c.loss for c in fit.curves]
    assert sizes == sorted(sizes)
    assert losses == sorted(losses, reverse=True)
    assert 0.3 < fit.a < 0.8


def test_stored_sweep_gives_other_exponents_without_embeddings() -> None:
    """What N counts changes what it says: the embedding is 44 % of the smallest model and 4 % of the largest."""
    sweep = load_sweep()
    with_embeddings = fit_parametric(*columns(sweep.runs)).law
    without = fit_parametric(*columns(sweep.runs_without_embeddings)).law
    assert without.alpha < with_embeddings.alpha
    assert abs(without.a - with_embeddings.a) > 0.01
