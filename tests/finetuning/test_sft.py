"""Fine-tuning: against a plain loop, killed and resumed, a frozen base, the best weights, a real small model."""

import math
import pkgutil

import pytest
import torch

from cme295lab.finetuning.chat import ChatExample, chat_template, encode_chats, pack_chats
from cme295lab.finetuning.instructions import instruction_data
from cme295lab.finetuning.sft import SftConfig, SftRun, SftTrainer, choose_parameters, load_best, train_sft
from cme295lab.finetuning.sft.trainer import BEST_NAME, best_step
from cme295lab.pretraining.packing import MixtureDataset, PackedDataset
from cme295lab.pretraining.trainer import evaluate
from cme295lab.pretraining.trainer.checkpoint import FILE_NAME, read_checkpoint
from cme295lab.transformer.pretrained.load import load_pretrained
from tests.finetuning.sft_runs import chats, config, never_said, only_norms, packed
from tests.pretraining.runs import SEQ, tiny_data, tiny_model


def _loss_sum_and_count(model, batch):
    """Each conversation of a batch alone, without packing, and its loss mask looked up where it was written."""
    masks = {tuple(example.tokens): example.loss_mask for example in chats()}
    total, count, means = 0.0, 0, []
    for row in range(len(batch.tokens)):
        sums, targets = 0.0, 0
        for document in range(1, int(batch.documents[row].max()) + 1):
            tokens = batch.tokens[row][batch.documents[row] == document]
            log_probabilities = model(tokens[None])[0].log_softmax(-1)
            for place, says in enumerate(masks[tuple(tokens.tolist())]):
                if says:
                    sums = sums - log_probabilities[place - 1, tokens[place]]
                    targets += 1
        total, count = total + sums, count + targets
        means.append(sums / targets)
    return total, count, torch.stack(means).mean()


@pytest.mark.parametrize("micro_rows", [1, 2, None])
def test_training_is_a_plain_loop_over_conversations_with_torchs_adamw(micro_rows):
    model, twin = tiny_model(), tiny_model()
    settings = config(num_steps=4, micro_rows=micro_rows, warmup_share=0.5, clip_norm=0.7, learning_rate=1e-2)
    data = packed()
    run = train_sft(model, data, settings, progress=False)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1.0, betas=(0.9, 0.999), weight_decay=0.0)
    unlike_means = []
    for step in range(4):
        total, count, mean_of_means = _loss_sum_and_count(twin, data.batch(step, 4))
        share = (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 2))
        optimizer.param_groups[0]["lr"] = 1e-2 * share
        optimizer.zero_grad()
        (total / count).backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.7)
        optimizer.step()
        record = run.records[step]
        assert record["loss"] == pytest.approx((total / count).item(), abs=2e-5)
        assert record["gradient_norm"] == pytest.approx(norm.item(), abs=2e-4)
        assert record["learning_rate"] == pytest.approx(1e-2 * share)
        unlike_means.append(abs((total / count - mean_of_means).item()))
    assert max(unlike_means) > 1e-3  # a mean of the rows' means would have been seen


def _same_folder(one, two):
    for name in (FILE_NAME, BEST_NAME):
        (tensors, facts), (tensors_there, facts_there) = (read_checkpoint(folder, name=name) for folder in (one, two))
        assert facts == facts_there
        assert tensors.keys() == tensors_there.keys()
        assert [key for key in tensors if not torch.equal(tensors[key], tensors_there[key])] == []
    assert (one / "evaluations.jsonl").read_text() == (two / "evaluations.jsonl").read_text()


class _Killed(BaseException):
    """Stands in for SIGKILL, at a chosen place."""


def _train(folder, frozen, chance=0):
    model = only_norms(tiny_model(dropout=0.1)) if frozen else tiny_model(dropout=0.1)
    torch.manual_seed(chance)  # which no run may depend on
    evaluation = {"same": packed(number=9, seed=1), "other": packed(step=3, number=9)}
    settings = config(method="as-marked" if frozen else "full")
    return train_sft(model, packed(), settings, evaluation=evaluation, folder=folder, progress=False)


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory):
    folders = {frozen: tmp_path_factory.mktemp("whole") for frozen in (False, True)}
    return {frozen: (folder, _train(folder, frozen)) for frozen, folder in folders.items()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("place", ["first evaluation", "checkpoint of a best", "last best", "optimizer"])
def test_killed_and_called_again_is_the_run_that_was_never_killed(tmp_path, monkeypatch, whole_runs, place, frozen):
    target, after = {
        "first evaluation": ("cme295lab.finetuning.sft.trainer.SftTrainer._keep_best", 0),
        "checkpoint of a best": ("cme295lab.pretraining.trainer.loop.write_checkpoint", 4),
        "last best": ("cme295lab.finetuning.sft.trainer.SftTrainer._keep_best", 3),
        "optimizer": ("cme295lab.pretraining.optim.AdamW.step", 4),
    }[place]
    real, calls = pkgutil.resolve_name(target), []
    with monkeypatch.context() as patch:

        def die(*arguments, **more):
            calls.append(arguments)
            if len(calls) > after:
                raise _Killed
            return real(*arguments, **more)

        patch.setattr(target, die)
        with pytest.raises(_Killed):
            _train(tmp_path, frozen)
    run = _train(tmp_path, frozen, chance=1)
    expected_folder, whole = whole_runs[frozen]
    _same_folder(tmp_path, expected_folder)
    assert run.losses == whole.losses
    assert run.best_step == whole.best_step == 6
    if place == "last best":
        assert _train(tmp_path, frozen).records == run.records  # done: nothing is done again


@pytest.mark.parametrize("method", ["full", "as-marked"])
def test_interrupted_between_two_calls_is_the_whole_run(tmp_path, method):
    model, whole = tiny_model(), tiny_model()
    settings = config().train_config(packed())
    evaluation = {"same": packed(number=9, seed=1)}
    for trained in (model, whole):
        choose_parameters(only_norms(trained), method)
    SftTrainer(model, packed(), settings, validation=evaluation, folder=tmp_path, progress=False, best_by="same").run(4)
    resumed = SftTrainer.resume(tmp_path, model, packed(), validation=evaluation, progress=False, best_by="same").run()
    expected = SftTrainer(whole, packed(), settings, validation=evaluation, progress=False, best_by="same").run()
    assert resumed.losses == expected.losses
    assert resumed.evaluations == expected.evaluations
    for one, two in zip(model.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_frozen_base_stays_as_it_is_bit_for_bit_and_is_in_no_file(tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.named_parameters()}
    model.loss(*(torch.ones(1, 3, dtype=torch.int64),) * 2).backward()  # gradients from before, of all parameters
    only_norms(model)
    run = train_sft(
        model, packed(), config(method="as-marked", weight_decay=0.5, clip_norm=1e-3), evaluation={"a": packed()},
        folder=tmp_path, progress=False,
    )  # fmt: skip
    trained = {name for name in before if "norm" in name}
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in trained)
    assert set(read_checkpoint(tmp_path, name=BEST_NAME)[0]) == trained
    tensors = read_checkpoint(tmp_path)[0]
    assert {name.removeprefix("model/") for name in tensors if name.startswith("model/")} == trained
    assert {name.split("/")[1] for name in tensors if name.startswith("optimizer/")} == trained
    alone = only_norms(tiny_model())  # without the old gradients: they are in no norm
    assert train_sft(
        alone, packed(), config(method="as-marked", weight_decay=0.5, clip_norm=1e-3), progress=False
    ).records[0]["gradient_norm"] == run.records[0]["gradient_norm"]
    other = tiny_model()
    with torch.no_grad():
        other.embedding.weight[0, 0] += 1
    with pytest.raises(ValueError, match="is of another base"):
        train_sft(only_norms(other), packed(), config(method="as-marked", weight_decay=0.5, clip_norm=1e-3),
                  evaluation={"a": packed()}, folder=tmp_path, progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="other parameters"):
        load_best(tiny_model(), tmp_path)


ADDED = {
    "prefix": {"length": 3, "hidden": 5}, "adapters": {"bottleneck": 4, "places": ("attention", "mlp")},
    "lora": {"rank": 4, "targets": "all-linear"}, "prompt": {"length": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", ADDED)
def test_a_method_is_one_option_resumes_and_leaves_the_base_alone(tmp_path, method):
    """Trained in one go, and in two calls with the base each time; dropped in a fresh base, the best weights answer."""
    options = ADDED[method]
    before = {name: value.clone() for name, value in tiny_model().named_parameters()}
    settings = config(method=method, method_options=options, seed=3, learning_rate=3e-2)
    evaluation = {"a": packed(number=12)}

    def train(folder):
        model = tiny_model()
        return model, train_sft(model, packed(), settings, evaluation=evaluation, folder=folder, progress=False)

    (_, whole), model = train(None), tiny_model()
    choose_parameters(model, method, options, seed=3)
    SftTrainer(model, packed(), settings.train_config(packed()), validation=evaluation, folder=tmp_path, best_by="a",
               progress=False, method={"name": method, **options}).run(4)  # fmt: skip
    model, run = train(tmp_path)
    assert run.losses == whole.losses
    assert run.losses_of("a")[6] < run.losses_of("a")[0]
    frozen = [value.tolist() for value in model.parameters() if not value.requires_grad]
    assert sorted(map(str, frozen)) == sorted(str(value.tolist()) for value in before.values())
    added = {name for name, value in model.named_parameters() if value.requires_grad}
    assert set(read_checkpoint(tmp_path, name=BEST_NAME)[0]) == added
    fresh = tiny_model()
    choose_parameters(fresh, method, options, seed=4)
    facts = load_best(fresh, tmp_path)
    assert evaluate(fresh, evaluation["a"], rows=2) == facts["losses"]["a"]


def test_full_trains_what_was_frozen_before():
    model = tiny_model().requires_grad_(False)
    assert choose_parameters(model, "full").keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("decided_by", "least", "most"), [("same", 6, 6), ("against", 0, 0), ("few", 1, 9)])
def test_the_best_weights_are_the_best(tmp_path, in_memory, decided_by, least, most):
    """On data of the same kind the last is best, on answers never given the first; in between after few examples."""
    model = tiny_model()
    evaluation = {"against": never_said(), "same": packed(number=12)}
    settings = config(best_by=decided_by, schedule="constant")
    train = packed()
    if decided_by == "few":  # learned by heart: the loss on others rises again
        evaluation = {"few": packed(number=9, seed=1)}
        train, settings = packed(number=3), config(num_steps=10, micro_rows=None, schedule="constant", rows_per_step=1)
    run = train_sft(model, train, settings, evaluation=evaluation, folder=None if in_memory else tmp_path,
                    progress=False)  # fmt: skip
    losses = run.losses_of(decided_by)
    assert least <= run.best_step <= most
    assert run.best_step == min(losses, key=losses.get)
    facts = load_best(model, run if in_memory else tmp_path)
    assert facts["step"] == run.best_step
    assert facts["losses"][decided_by] == losses[run.best_step] == min(losses.values())
    rows = settings.micro_rows or settings.rows_per_step
    assert evaluate(model, evaluation[decided_by], rows=rows) == losses[run.best_step]
    assert losses[0] == evaluate(tiny_model(), evaluation[decided_by], rows=rows)  # before the first update


def test_best_step_is_the_first_of_equals_and_never_one_that_is_no_number():
    entries = [{"step": step, "losses": {"a": loss}} for step, loss in enumerate([math.nan, 2.0, 1.0, 1.0, math.inf])]
    assert best_step(entries, "a") == 2
    assert best_step(entries[:1], "a") is None


def test_a_best_file_that_is_missing_or_of_another_step_is_seen(tmp_path):
    def train():
        return train_sft(tiny_model(), packed(), config(schedule="constant", evaluate_every=None),
                         evaluation={"against": never_said()}, folder=tmp_path, progress=False)  # fmt: skip

    assert train().best_step == 0
    best = (tmp_path / BEST_NAME).read_bytes()
    (tmp_path / BEST_NAME).unlink()
    with pytest.raises(FileNotFoundError, match=BEST_NAME):
        train()
    (tmp_path / BEST_NAME).write_bytes(best.replace(b'\\"step\\": 0', b'\\"step\\": 5'))
    with pytest.raises(ValueError, match=r"is of step 5, the log's best of 'against' is step 0"):
        train()


def test_epochs_steps_and_mixtures():
    data = packed()
    assert config(num_steps=None, epochs=2, rows_per_step=3, micro_rows=None).train_config(data).num_steps == math.ceil(
        2 * data.num_rows / 3
    )
    assert config(num_steps=None, epochs=0.01).train_config(data).num_steps == 1
    settings = config(num_steps=100, warmup_share=0.1).train_config(data)
    assert (settings.warmup_steps, settings.seq, settings.weight_decay) == (10, SEQ, 0.0)
    mixture = MixtureDataset({"chats": data, "text": tiny_data()}, {"chats": 0.8, "text": 0.2})
    run = train_sft(tiny_model(), mixture, config(keep_best=False), evaluation={"a": data}, progress=False)
    assert (run.num_steps, run.best_step, run.best_weights) == (6, None, None)
    assert run.losses_of("a")[6] < run.losses_of("a")[0]
    with pytest.raises(ValueError, match="a mixture has no epochs"):
        train_sft(tiny_model(), mixture, config(num_steps=None, epochs=1), progress=False)
    with pytest.raises(ValueError, match="holds no best weights"):
        load_best(tiny_model(), run)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"num_steps": None}, ValueError, "give num_steps or epochs, one of them, got None and None"),
        ({"epochs": 1.0}, ValueError, "give num_steps or epochs, one of them, got 6 and 1.0"),
        ({"num_steps": None, "epochs": 0.0}, ValueError, "epochs must be a positive number"),
        ({"warmup_share": 1.0}, ValueError, "warmup_share must be a share"),
        ({"method": "loras"}, ValueError, "method must be one of full, as-marked"),
        ({"method_options": {"rank": torch.ones(1)}}, TypeError, "method_options must be plain values"),
        ({"keep_best": False, "best_by": "a"}, ValueError, "needs keep_best=True"),
        ({"micro_rows": 3}, ValueError, "micro_rows must divide rows_per_step"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_do_not_fit_are_refused(changes, error, said):
    with pytest.raises(error, match=said):
        config(**changes)


def _without_targets():
    data = packed()
    data._carries_loss[:] = False
    data.num_targets = 0
    return data


class _SilentLater(PackedDataset):
    """Documents, of which step 2 has no target."""

    def batch(self, step, rows):
        batch = super().batch(step, rows)
        if step == 2:
            batch.targets.fill_(-100)
        return batch


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to train: with method 'as-marked'"):
        train_sft(tiny_model().requires_grad_(False), packed(), config(method="as-marked"), progress=False)
    frozen = tiny_model().requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train: no parameter"):
        SftTrainer(frozen, packed(), config().train_config(packed()), progress=False)
    with pytest.raises(ValueError, match="the training data has no assistant token"):
        train_sft(tiny_model(), _without_targets(), config(), progress=False)
    with pytest.raises(ValueError, match="silent has no assistant token"):
        train_sft(tiny_model(), packed(), config(), evaluation={"silent": _without_targets()}, progress=False)
    with pytest.raises(ValueError, match=r"the first \d+ rows have no target"):
        evaluate(tiny_model(), _without_targets())
    with pytest.raises(ValueError, match=r"1 of 41 conversations are longer than a row of seq 16 tokens"):
        pack_chats([*chats(), ChatExample([1] * 17, [False] * 16 + [True])], seq=SEQ, end_token=0)
    with pytest.raises(ValueError, match=r"rows of 16 tokens, config\.seq is 12"):
        train_sft(tiny_model(), packed(), config(seq=12), progress=False)
    with pytest.raises(ValueError, match=r"evaluation \(a, b\), or None, got 'c'"):
        train_sft(tiny_model(), packed(), config(best_by="c"), evaluation={"a": packed(), "b": packed()})
    with pytest.raises(TypeError, match=r"method 'full' with options \{'rank': 8\}"):
        train_sft(tiny_model(), packed(), config(method_options={"rank": 8}))
    model = tiny_model()
    silent = _SilentLater([[1, 2, 3]] * 9, seq=SEQ, end_token=0)
    with pytest.raises(ValueError, match="batch of step 3 has no assistant token"):
        train_sft(model, silent, config(), folder=tmp_path, progress=False)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2


def test_a_folder_with_another_run_is_refused(tmp_path):
    def train(changes, evaluation=None, data=None):
        names = {"a": packed(), "b": packed(step=3)} if evaluation is None else evaluation
        return train_sft(tiny_model(), data or packed(), config(**changes), evaluation=names, folder=tmp_path,
                         progress=False)  # fmt: skip

    train({})
    with pytest.raises(ValueError, match=r"other settings \(learning_rate 0\.02 there, 0\.03 here\)"):
        train({"learning_rate": 3e-2})
    with pytest.raises(ValueError, match=r"other settings: there .*'a'.*, here .*'b'"):
        train({"best_by": "b"})
    examples = [ChatExample(one.tokens, [False, *([True] * (len(one.tokens) - 1))]) for one in chats()]
    with pytest.raises(ValueError, match="of other data"):  # the same tokens, others of which are targets
        train({}, data=pack_chats(examples, seq=SEQ, end_token=0))


def test_the_courses_small_model_learns_to_answer():
    """Loss on answers to questions of families that training never sees; the base is left as it was."""
    data, loaded = instruction_data(num_examples=60, num_held_out=8), load_pretrained("course-draft")
    template = chat_template("alpaca", bos_token="", eos_token="<|end|>")

    def pack(examples):
        encoded = encode_chats([example.messages for example in examples], loaded.tokenizer, template, max_length=256,
                               on_error="skip")  # fmt: skip
        return pack_chats(encoded.examples, seq=256, end_token=0)

    run = train_sft(
        loaded.model, pack(data.train), SftConfig(num_steps=8, rows_per_step=2, learning_rate=6e-3),
        evaluation={"in_distribution": pack(data.in_distribution), "shifted": pack(data.shifted)}, progress=False,
    )  # fmt: skip
    assert isinstance(run, SftRun)
    assert run.best_step == 8
    inside, shifted = run.losses_of("in_distribution"), run.losses_of("shifted")
    assert inside[8] < inside[0] - 0.7
    assert shifted[8] < shifted[0]
    assert inside[8] < shifted[8]
