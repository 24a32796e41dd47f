"""The optimizer of a fine-tuning run: pages change no bit, LoRA+ is two learning rates, and each is resumed."""

from dataclasses import replace

import pytest
import torch

from cme295lab.finetuning.lora import add_lora
from cme295lab.finetuning.qlora import PagedAdamW
from cme295lab.finetuning.sft import OptimizerChoice, SftConfig, SftTrainer, choose_parameters, train_sft
from cme295lab.pretraining.optim import AdamW
from cme295lab.pretraining.trainer.checkpoint import read_checkpoint
from tests.finetuning.sft_runs import config, packed
from tests.pretraining.runs import tiny_config, tiny_model

LORA = {"rank": 2, "targets": "all-linear"}
LARGEST_BYTES = 2 * 4 * 32 * 16  # m and v of the embedding, in fp32
PAGED = {"budget_bytes": LARGEST_BYTES + 100}


def _train(folder=None, chance=0, **changes):
    model = tiny_model()
    torch.manual_seed(chance)  # which no run may depend on
    settings = config(**changes)
    return model, train_sft(model, packed(), settings, evaluation={"a": packed(number=8)}, folder=folder,
                            progress=False)  # fmt: skip


def _same_weights(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_paged_run_is_the_plain_run_bit_for_bit_within_its_budget():
    plain, expected = _train(weight_decay=0.1)
    model = tiny_model()
    choice = OptimizerChoice.of("paged-adamw", PAGED)
    settings = config(weight_decay=0.1).train_config(packed())
    trainer = SftTrainer(model, packed(), settings, progress=False, optimizer=choice)
    assert trainer.run().losses == expected.losses
    assert _same_weights(model, plain)
    assert isinstance(trainer.optimizer, PagedAdamW)
    assert trainer.optimizer.order == "alternating"
    assert OptimizerChoice.of("paged-adamw", {**PAGED, "order": "forward"}).make(model, settings).order == "forward"
    assert trainer.optimizer.num_state_bytes > PAGED["budget_bytes"] >= trainer.optimizer.peak_device_bytes > 0


CASES = {
    "paged, all parameters": {"optimizer": "paged-adamw", "optimizer_options": PAGED},
    "LoRA+": {
        "method": "lora",
        "method_options": {**LORA, "dropout": 0.3},
        "optimizer_options": {"lora_plus_ratio": 8},
    },
    "paged LoRA+, fp32 states of bf16": {
        "method": "lora",
        "method_options": {**LORA, "dtype": "bf16"},
        "optimizer": "paged-adamw",
        "optimizer_options": {"budget_bytes": 700, "order": "forward", "state_dtype": "fp32", "lora_plus_ratio": 16.0},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_gone_on_with_is_the_whole_run(tmp_path, case):
    """Stopped after five updates of six, the base anew: weights, states and losses of the run without a stop."""
    changes = CASES[case]
    whole_folder, folder = tmp_path / "whole", tmp_path / "stopped"
    whole, expected = _train(whole_folder, **changes)
    settings, model = config(**changes), tiny_model()
    choose_parameters(model, settings.method, settings.method_options)
    SftTrainer(model, packed(), settings.train_config(packed()), validation={"a": packed(number=8)}, folder=folder,
               best_by="a", progress=False, method={"name": settings.method, **settings.method_options},
               optimizer=settings.optimizer_choice()).run(5)  # fmt: skip
    model, run = _train(folder, chance=1, **changes)
    assert run.losses == expected.losses
    assert _same_weights(model, whole)
    tensors, there = read_checkpoint(folder)[0], read_checkpoint(whole_folder)[0]
    assert tensors.keys() == there.keys()
    assert all(torch.equal(tensors[name], there[name]) for name in tensors)
    states = {tensor.dtype for name, tensor in tensors.items() if name.endswith("/m")}
    assert states == {torch.float32}


def test_lora_plus_is_torchs_adamw_with_two_rates_on_one_schedule():
    model, twin = tiny_model().double(), tiny_model().double()
    settings = config(num_steps=3, method="lora", method_options=LORA, optimizer_options={"lora_plus_ratio": 4.0},
                      warmup_share=0.4, weight_decay=0.1, clip_norm=None, learning_rate=2e-2)  # fmt: skip
    run = train_sft(model, packed(), settings, progress=False)
    choose_parameters(twin, "lora", LORA)
    named = {name: value for name, value in twin.named_parameters() if value.requires_grad}
    slow, fast = ([value for name, value in named.items() if ("lora_B" in name) == is_b] for is_b in (False, True))
    assert len(slow) == len(fast) == 14
    optimizer = torch.optim.AdamW([{"params": slow}, {"params": fast}], betas=(0.9, 0.999), weight_decay=0.1)
    for step, share in enumerate((1.0, 1.0, 0.5)):  # a warm-up of one update, and a cosine over the other two
        for group, peak in zip(optimizer.param_groups, (2e-2, 8e-2), strict=True):
            group["lr"] = peak * share
        optimizer.zero_grad()
        batch = packed().batch(step, 4)
        twin.loss(batch.tokens, batch.targets, positions=batch.positions, documents=batch.documents).backward()
        optimizer.step()
        assert run.records[step]["learning_rate"] == pytest.approx(2e-2 * share)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    for name, value in named.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-9, msg=name)
    marked = tiny_model().double()  # LoRA that hangs on the model already, as on one in 4 bits
    choose_parameters(marked, "lora", LORA)
    again = train_sft(marked, packed(), replace(settings, method="as-marked", method_options={}), progress=False)
    assert again.losses == run.losses


def test_lora_plus_leaves_weight_decay_and_embeddings_as_they_are():
    """B of an embedding and DoRA's magnitudes learn like A; magnitudes, vectors, do not decay."""
    model = tiny_model(tied_head=False)
    add_lora(model, rank=2, targets=("embedding",))
    optimizer = OptimizerChoice(lora_plus_ratio=8.0).make(model, tiny_config(learning_rate=0.5))
    assert [(group["lr"], len(group["params"])) for group in optimizer.param_groups] == [(0.5, 2)]
    model = tiny_model()
    add_lora(model, rank=2, targets=("query",), dora=True)
    optimizer = OptimizerChoice(lora_plus_ratio=8.0).make(model, tiny_config(learning_rate=0.5, weight_decay=0.2))
    found = {
        name.split(".")[-2]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name in group["names"]
    }
    assert found == {"lora_A": (0.5, 0.2), "lora_B": (4.0, 0.2), "lora_magnitude": (0.5, 0.0)}
    assert type(optimizer) is AdamW


def test_only_what_changes_the_numbers_must_be_the_same_to_go_on(tmp_path):
    """A plain run stores what it did before there was a choice; it may go on with pages, and under another budget."""
    evaluation, settings = {"a": packed(number=8)}, config()
    SftTrainer(tiny_model(), packed(), settings.train_config(packed()), validation=evaluation,
               folder=tmp_path / "a", best_by="a", progress=False, method={"name": "full"}).run(2)  # fmt: skip
    assert read_checkpoint(tmp_path / "a")[1]["run"]["sft"] == {"best_by": "a", "method": {"name": "full"}}
    paged = {"optimizer": "paged-adamw", "optimizer_options": PAGED}
    assert _train(tmp_path / "a", **paged)[1].losses == _train()[1].losses
    with pytest.raises(ValueError, match=r"other settings: there .*, here .*'optimizer': \{'state_dtype': 'bf16'\}"):
        _train(tmp_path / "a", optimizer="paged-adamw", optimizer_options={**PAGED, "state_dtype": "bf16"})
    lora = {"method": "lora", "method_options": LORA}
    _train(tmp_path / "b", **lora, optimizer_options={"lora_plus_ratio": 8.0})
    _train(tmp_path / "b", **lora, optimizer="paged-adamw", optimizer_options={"lora_plus_ratio": 8, **PAGED})
    for options in ({}, {"lora_plus_ratio": 9.0}):
        with pytest.raises(ValueError, match="is of other settings"):
            _train(tmp_path / "b", **lora, optimizer_options=options)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"optimizer": "sgd"}, ValueError, "optimizer must be one of adamw, paged-adamw, got 'sgd'"),
        ({"optimizer": "paged-adamw"}, ValueError, "needs optimizer_options={'budget_bytes': ...}"),
        ({"optimizer_options": {"budget_bytes": 9}}, ValueError, "budget_bytes is of optimizer 'paged-adamw' alone"),
        ({"optimizer_options": {"budget": 9}}, TypeError, "optimizer_options has budget; there are budget_bytes"),
        ({"optimizer": "paged-adamw", "optimizer_options": {"budget_bytes": 1e6}}, TypeError, "must be an int"),
        ({"optimizer": "paged-adamw", "optimizer_options": {"budget_bytes": 0}}, ValueError, "must be positive"),
        ({"optimizer": "paged-adamw", "optimizer_options": {**PAGED, "order": "up"}}, ValueError, "order must be one"),
        ({"optimizer": "paged-adamw", "optimizer_options": {**PAGED, "state_dtype": "fp8"}}, ValueError,
         "state_dtype must be one of fp32, bf16, fp16, or None, got 'fp8'"),
        ({"method": "lora", "optimizer_options": {"lora_plus_ratio": 0}}, ValueError, "lora_plus_ratio must be a pos"),
        ({"optimizer_options": {"lora_plus_ratio": 16.0}}, ValueError, "lora_plus_ratio needs method 'lora'"),
    ],
    ids=range(10),
)  # fmt: skip
def test_optimizers_that_do_not_fit_are_refused(changes, error, said):
    with pytest.raises(error, match=said):
        SftConfig(num_steps=1, rows_per_step=1, learning_rate=1e-3, **changes)


def test_what_the_model_cannot_have_is_refused():
    with pytest.raises(ValueError, match="the model has no LoRA adapters"):
        _train(method="as-marked", optimizer_options={"lora_plus_ratio": 8.0})
    with pytest.raises(ValueError, match=r"embedding\.weight"):
        _train(optimizer="paged-adamw", optimizer_options={"budget_bytes": LARGEST_BYTES - 1})
