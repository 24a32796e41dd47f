"""Continued pretraining: shares by hand, losses of every domain before and after, replay against forgetting."""

import copy

import pytest
import torch

from cme295lab.finetuning.mid_training import DomainChange, MidTrainingRun, compare_replay, mid_train, replay_mixture
from cme295lab.finetuning.sft import SftConfig, SftRun
from cme295lab.pretraining.packing import PackedDataset
from cme295lab.pretraining.trainer import Trainer, evaluate
from tests.pretraining.runs import SEQ, tiny_config, tiny_data, tiny_model


def counting(step, number=60, seed=0):
    """Counting in steps of more than one, in documents of 3 to 11 tokens."""
    documents = [[(start + step * i) % 31 + 1 for i in range(3 + start % 9)] for start in range(number)]
    return PackedDataset(documents, seq=SEQ, seed=seed, end_token=0)


def config(**changes):
    values = {"num_steps": 16, "rows_per_step": 8, "learning_rate": 1e-2, "schedule": "constant", "keep_best": False}
    return SftConfig(**{**values, **changes})


@pytest.fixture(scope="module")
def base():
    """A model that counts in ones."""
    model = tiny_model()
    settings = tiny_config(num_steps=50, rows_per_step=8, micro_rows=None, evaluate_every=None, checkpoint_every=None)
    Trainer(model, tiny_data(), settings, progress=False).run()
    return model


def test_shares_by_hand():
    """A quarter is old. Of the rest, weights 2 : 1; the old ones have as many tokens as each other's documents say."""
    twice, once = counting(5, number=40), counting(5, number=20)
    mixture = replay_mixture(
        {"a": counting(2), "b": counting(3)}, {"c": twice, "d": once}, replay_share=0.25, weights={"a": 2, "b": 1}
    )
    share_of_c = twice.num_tokens / (twice.num_tokens + once.num_tokens)
    assert mixture.weights == {
        "a": 0.5, "b": 0.25, "c": round(0.25 * share_of_c, 3), "d": round(0.25 * (1 - share_of_c), 3),
    }  # fmt: skip
    rows = [domain for step in range(100) for domain in mixture.domains(step, 10)]
    assert {domain: rows.count(domain) / 1000 for domain in mixture.weights} == mixture.weights


def test_without_replay_old_text_is_not_read_and_sizes_decide():
    small, large = counting(2, number=10), counting(3, number=50)
    mixture = replay_mixture({"a": small, "b": large}, {"old": tiny_data()})
    assert mixture.weights.keys() == {"a", "b"}
    assert mixture.weights["a"] == pytest.approx(small.num_tokens / (small.num_tokens + large.num_tokens), abs=5e-4)


def test_replay_forgets_less_and_losses_are_those_of_the_models(base):
    new, old = {"threes": counting(3)}, {"ones": tiny_data()}
    held_out = {"threes": counting(3, seed=1)}, {"ones": tiny_data(seed=1)}
    before = {name: value.clone() for name, value in base.named_parameters()}
    runs = compare_replay(
        base, new, config(), replay_shares=(0.0, 0.5), evaluate_new=held_out[0], evaluate_old=held_out[1], old=old,
        progress=False,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in base.named_parameters())
    none, half = runs[0.0], runs[0.5]
    for run in runs.values():
        threes, ones = run.domains
        assert (threes.domain, threes.is_old, ones.domain, ones.is_old) == ("threes", False, "ones", True)
        assert threes.before == pytest.approx(evaluate(base, counting(3)), abs=1e-5)
        assert ones.before == pytest.approx(evaluate(base, tiny_data()), abs=1e-5)
        assert run.learned == pytest.approx(threes.before - threes.after)
        assert run.forgotten == pytest.approx(ones.after - ones.before)
    assert none.forgotten > 1.0
    assert half.forgotten < none.forgotten - 1.0
    assert none.learned > half.learned > 0.5
    model = copy.deepcopy(base)
    again = mid_train(model, new, config(), evaluate_new=held_out[0], evaluate_old=held_out[1], progress=False)
    assert again.domains == none.domains
    assert again.domains[1].after == pytest.approx(evaluate(model, tiny_data()), abs=1e-5)


def test_the_table():
    empty = SftRun(records=[], evaluations=[], num_steps=0)
    rows = (
        DomainChange(domain="law", is_old=False, before=3.0, after=2.0),
        DomainChange(domain="code", is_old=False, before=2.0, after=1.5),
        DomainChange(domain="stories", is_old=True, before=1.0, after=1.25),
    )
    text = str(MidTrainingRun(run=empty, domains=rows, shares={"law": 0.7, "code": 0.2, "stories": 0.1}))
    assert text.splitlines() == [
        "domain          share  before   after  change",
        "law      new    70.0%   3.000   2.000  -1.000",
        "code     new    20.0%   2.000   1.500  -0.500",
        "stories  old    10.0%   1.000   1.250  +0.250",
        "learned +0.750, forgotten +0.250 (nats per token, mean of domains)",
    ]
    alone = MidTrainingRun(run=empty, domains=rows[:2], shares={})
    assert alone.forgotten is None
    assert "nothing old was looked at" in str(alone)


def test_the_same_call_goes_on_and_a_run_that_is_cut_has_no_result(tmp_path, base, monkeypatch):
    def train(folder):
        return mid_train(
            copy.deepcopy(base), {"threes": counting(3)}, config(num_steps=6), old={"ones": tiny_data()},
            replay_share=0.2, evaluate_new={"threes": counting(3)}, evaluate_old={"ones": tiny_data()}, folder=folder,
            progress=False,
        )  # fmt: skip

    run = Trainer.run
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "run", lambda trainer, until=None: run(trainer, 4))
        with pytest.raises(RuntimeError, match="interrupted after 4 steps"):
            train(tmp_path / "cut")
    resumed, whole = train(tmp_path / "cut"), train(tmp_path / "whole")
    assert resumed.domains == whole.domains
    assert resumed.run.losses == whole.run.losses


def test_what_does_not_fit_is_refused(base):
    a, b = counting(2), counting(3)
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="replay_share must be a share of the rows"):
            replay_mixture({"a": a}, {"b": b}, replay_share=share)
    with pytest.raises(ValueError, match=r"replay_share is 0\.1, and there is no old domain"):
        replay_mixture({"a": a}, replay_share=0.1)
    with pytest.raises(ValueError, match="new is empty"):
        replay_mixture({}, {"b": b}, replay_share=0.1)
    with pytest.raises(ValueError, match="a cannot be new and old"):
        replay_mixture({"a": a}, {"a": b}, replay_share=0.1)
    with pytest.raises(ValueError, match="weights must name the new domains a, got b"):
        replay_mixture({"a": a}, {"b": b}, replay_share=0.1, weights={"b": 1})
    with pytest.raises(ValueError, match="evaluate_new is empty"):
        mid_train(base, {"a": a}, config(), evaluate_new={})
    with pytest.raises(ValueError, match="a cannot be evaluated as new and as old"):
        mid_train(base, {"a": a}, config(), evaluate_new={"a": a}, evaluate_old={"a": a})
    with pytest.raises(ValueError, match="a mixture has no epochs"):
        mid_train(base, {"a": a}, config(num_steps=None, epochs=1), evaluate_new={"a": a})
