"""The training loop: gradients that do not depend on how a batch is cut, clipping, logs, evaluation, refusals."""

import csv
import json
import math

import pytest
import torch
from torch.nn import functional as F

from cme295lab.pretraining.packing import Batch, MixtureDataset, PackedDataset
from cme295lab.pretraining.trainer import (
    TrainConfig,
    Trainer,
    TrainingDivergedError,
    accumulate_gradients,
    clip_gradients,
    evaluate,
    measure_peak,
)
from cme295lab.transformer import DecoderLM
from tests.pretraining.runs import SEQ, tiny_config, tiny_data, tiny_model


class _Given(DecoderLM):
    """A model whose loss of a batch is its first token; the gradient of its one weight is that of the loss."""

    def __init__(self):
        super().__init__(tiny_model().config)
        self.weight = torch.nn.Parameter(torch.ones(()))

    def loss(self, tokens, targets, **more):
        return self.weight * tokens[0, 0].float()


def _batch(first, num_targets):
    targets = torch.full((1, 8), -100)
    targets[0, :num_targets] = 1
    return Batch(tokens=torch.full((1, 8), first), targets=targets, documents=targets, positions=targets)


def test_two_tokens_at_one_and_six_at_three_have_a_mean_loss_of_two_and_a_half():
    model = _Given()
    loss, auxiliary = accumulate_gradients(model, [_batch(1, 2), _batch(3, 6)])
    assert loss == 2.5
    assert model.weight.grad.item() == 2.5
    assert auxiliary is None


@pytest.mark.parametrize("micro_rows", [1, 2, 4, 5])
def test_gradient_is_the_same_however_the_batch_is_cut(micro_rows):
    """Against the mean over all targets by torch, in float64; rows have different numbers of targets."""
    documents = [[(start + i) % 31 + 1 for i in range(2 + start)] for start in range(11)]
    batch = PackedDataset(documents, seq=SEQ, end_token=0, filling="one-per-row").batch(0, 8)
    assert len({int((row != -100).sum()) for row in batch.targets}) > 1
    model = tiny_model().double()
    loss, _ = accumulate_gradients(model, batch.split(micro_rows))
    expected = tiny_model().double()
    logits = expected(batch.tokens, positions=batch.positions, documents=batch.documents)
    mean = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    mean.backward()
    assert loss == pytest.approx(mean.item(), abs=1e-12)
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)


def test_rows_without_a_target_change_nothing_and_none_at_all_is_refused():
    batch = tiny_data().batch(0, 2)
    empty = Batch(**{**vars(batch), "targets": torch.full_like(batch.targets, -100)})
    one, two = tiny_model(), tiny_model()
    assert accumulate_gradients(one, [batch, empty]) == accumulate_gradients(two, [batch])
    assert torch.equal(one.norm.weight.grad, two.norm.weight.grad)
    with pytest.raises(ValueError, match="no target"):
        accumulate_gradients(one, [empty])


def test_isolated_documents_differ_from_a_shared_row():
    batch = tiny_data().batch(0, 4)
    apart, _ = accumulate_gradients(tiny_model(), [batch])
    together, _ = accumulate_gradients(tiny_model(), [batch], isolate_documents=False)
    assert together == pytest.approx(tiny_model().loss(batch.tokens, batch.targets).item(), abs=1e-6)
    assert abs(apart - together) > 1e-6


@pytest.mark.parametrize("clip_norm", [None, 0.5, 100.0])
def test_clipping_is_torchs_and_reports_the_norm_before(clip_norm):
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 2, 1)]
    others = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for group in (parameters, others):
        group[0].grad, group[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.0, 4.0])
    assert clip_gradients(parameters, clip_norm) == pytest.approx(5.0)
    torch.nn.utils.clip_grad_norm_(others, math.inf if clip_norm is None else clip_norm)
    for one, two in zip(parameters[:2], others[:2], strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-5, atol=0)


def test_experts_add_their_auxiliary_loss_to_the_gradient():
    from cme295lab.transformer.moe import auxiliary_loss, record_routing

    batch = tiny_data().batch(0, 4)
    model, expected = (tiny_model(num_experts=4, experts_per_token=2) for _ in range(2))
    loss, auxiliary = accumulate_gradients(model, [batch], balance_weight=0.5, router_z_weight=0.25)
    with record_routing(expected) as routings:
        plain = expected.loss(batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents)
    extra = auxiliary_loss(routings, balance=0.5, z=0.25)
    (plain + extra).backward()
    assert (loss, auxiliary) == pytest.approx((plain.item(), extra.item()), abs=1e-6)
    assert auxiliary > 0.4  # balance alone is 0.5 or more
    for one, two in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-6)


def test_training_is_a_plain_loop_with_torchs_adamw():
    model, twin = tiny_model(), tiny_model()
    config = tiny_config(num_steps=12, weight_decay=0.0, clip_norm=0.7)
    run = Trainer(model, tiny_data(), config, progress=False).run()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1.0, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = config.make_schedule()
    for step in range(12):
        batch = tiny_data().batch(step, 6)
        optimizer.param_groups[0]["lr"] = 1e-2 * schedule(step)
        optimizer.zero_grad()
        loss = twin.loss(batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.7)
        optimizer.step()
        record = run.records[step]
        assert record["loss"] == pytest.approx(loss.item(), abs=2e-5)
        assert record["gradient_norm"] == pytest.approx(norm.item(), abs=2e-4)
        assert (record["step"], record["num_tokens"]) == (step + 1, (step + 1) * 6 * SEQ)
    assert run.losses[-1] < run.losses[0] - 0.3


def test_files_say_what_the_run_says(tmp_path):
    trainer = Trainer(tiny_model(), tiny_data(), tiny_config(num_steps=9), validation={"a": tiny_data(1)},
                      folder=tmp_path, progress=False, peak=1e9)  # fmt: skip
    run = trainer.run()
    assert [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()] == run.records
    assert [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()] == run.evaluations
    with (tmp_path / "records.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == run.losses
    assert [evaluation["step"] for evaluation in run.evaluations] == [7, 9]
    assert run.evaluations[-1]["losses"]["a"] == pytest.approx(evaluate(trainer.model, tiny_data(1)), abs=1e-6)
    from cme295lab.pretraining.flops import flops_per_token

    flops = flops_per_token(trainer.model.config, SEQ).model_flops
    for record in run.records:
        assert record["mfu"] == pytest.approx(flops * record["tokens_per_s"] / 1e9)


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_evaluation_is_a_mean_over_tokens_without_dropout(rows):
    model, data = tiny_model(dropout=0.5), tiny_data()
    model.train()
    found = evaluate(model, data, rows=rows)
    assert model.training
    model.eval()
    whole = data.rows(range(data.num_rows))
    expected = model.loss(whole.tokens, whole.targets, positions=whole.positions, documents=whole.documents)
    assert found == pytest.approx(expected.item(), abs=1e-5)


def test_the_same_seed_gives_the_same_run_and_leaves_random_numbers_alone():
    def losses(seed):
        model = tiny_model(dropout=0.3)
        torch.manual_seed(77)
        run = Trainer(model, tiny_data(), tiny_config(num_steps=4, seed=seed), progress=False).run()
        return run.losses, torch.rand(1).item()

    first, second, other = losses(1), losses(1), losses(2)
    assert first == second
    assert first[0] != other[0]
    torch.manual_seed(77)
    assert torch.rand(1).item() == first[1] == other[1]


def test_a_mixture_and_a_progress_bar(capsys):
    data = MixtureDataset({"a": tiny_data(1), "b": tiny_data(2)}, {"a": 0.7, "b": 0.3})
    run = Trainer(tiny_model(), data, tiny_config(num_steps=5), peak=measure_peak(size=64)).run()
    shown = capsys.readouterr().err
    assert run.num_steps == 5
    assert "5/5" in shown
    assert "loss" in shown
    assert "tokens/s, MFU" in shown


def test_a_loss_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(tmp_path):
    model = tiny_model()
    trainer = Trainer(model, tiny_data(), tiny_config(), folder=tmp_path, progress=False)
    trainer.run(until=5)
    with torch.no_grad():
        model.norm.weight[0] = math.nan
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(TrainingDivergedError, match=r"update 6 has loss nan.*checkpoint of step 5 .*learning rate"):
        trainer.run()
    assert all(torch.equal(one, two) or one.isnan().any() for one, two in zip(before, model.parameters(), strict=True))
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"micro_rows": 4}, "micro_rows must divide rows_per_step, got 4 and 6"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"clip_norm": 0.0}, "clip_norm must be"),
        ({"weight_decay": -1.0}, "weight_decay must be"),
        ({"warmup_steps": 41}, "must fit into num_steps"),
        ({"schedule": "step"}, "kind of schedule"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        tiny_config(**changes)


def test_settings_survive_json_and_unknown_ones_are_refused():
    config = tiny_config(schedule="wsd", decay_steps=5)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match="has no epochs"):
        TrainConfig.from_dict({**config.to_dict(), "epochs": 3})


def test_data_that_do_not_belong_to_the_model_are_refused():
    with pytest.raises(ValueError, match="max_seq 8, got 16"):
        Trainer(tiny_model(max_seq=8), tiny_data(), tiny_config())
    with pytest.raises(ValueError, match=r"rows of 16 tokens, config\.seq is 12"):
        Trainer(tiny_model(), tiny_data(), tiny_config(seq=12))
    strange = PackedDataset([[1, 99, 3]], seq=SEQ, end_token=0)
    with pytest.raises(ValueError, match="data has token 99, the model knows 32"):
        Trainer(tiny_model(), strange, tiny_config())
    with pytest.raises(ValueError, match="v has token 99"):
        Trainer(tiny_model(), tiny_data(), tiny_config(), validation={"v": strange})
    trainer = Trainer(tiny_model(), tiny_data(), tiny_config(), progress=False)
    with pytest.raises(ValueError, match="until must be 0"):
        trainer.run(until=41)
