"""Stage 3 on real processes: bytes against formulas, training against data parallelism, and bad input."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.memory import MemoryTimeline
from cme295lab.parallel import CommLedger, DataParallel, FullyShardedModel, ZeroOptimizer, run_distributed
from cme295lab.parallel.sharding.gradient_health import NonFiniteGradients
from cme295lab.parallel.sharding.sharded_unit import ROOT, assign_parameters, find_units
from cme295lab.parallel.sharding.zero3_optimizer import FullyShardedOptimizer
from cme295lab.transformer import DecoderLM
from tests.parallel.sharded_cases import make_batch, make_config, mean_loss, padded_bytes, run_backward


def _bytes_of_a_step(tied: bool) -> dict[str, Any]:
    sharded = FullyShardedModel(DecoderLM(make_config(tied_head=tied)))
    optimizer = FullyShardedOptimizer(sharded, torch.optim.AdamW, lr=1e-3)
    for _ in range(2):
        run_backward(sharded)
        optimizer.step()
    gathered: dict[str, list[int]] = {"forward": [], "backward": []}
    for layer in sharded.module.layers:
        layer.mlp.register_forward_hook(partial(_note_gathered, sharded.module, gathered))
    with MemoryTimeline(model=sharded, optimizer=optimizer) as timeline, CommLedger() as ledger:
        run_backward(sharded)
        timeline.mark([part.gradient for part in sharded.trained], "gradient")
        after_backward = timeline.by_class()
        optimizer.step()
        after_step = timeline.by_class()
    return {
        "after backward": after_backward,
        "after step": after_step,
        "gathered": gathered,
        "sent": ledger.sent_bytes - ledger.by_tag()["scalars"].sent_bytes if dist.get_world_size() > 1 else 0.0,
        "held": sum(piece.numel for run in optimizer.runs for piece in run.pieces),
        "runs": len(optimizer.runs),
        "padded": padded_bytes(sharded),
    }


def _note_gathered(model: nn.Module, notes: dict[str, list[int]], _: nn.Module, __: Any, output: Tensor) -> None:
    """Note how many units are gathered now, and when the gradient of this output is there."""

    def num_gathered() -> int:
        vectors = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
        return sum(num_bytes > 4 for num_bytes in vectors.values())

    notes["forward"].append(num_gathered())
    output.register_hook(lambda _: notes["backward"].append(num_gathered()))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
def test_bytes_per_rank_and_on_the_wire_equal_the_formulas(num_ranks: int) -> None:
    config = make_config(tied_head=True)
    psi_bytes = 4 * config.num_parameters
    facts = run_distributed(_bytes_of_a_step, num_ranks, True)
    num_units = config.num_layers + 1
    assert sum(fact["held"] for fact in facts) == config.num_parameters
    for fact in facts:
        padded = fact["padded"]
        assert psi_bytes <= padded <= psi_bytes + 4 * num_units * (num_ranks - 1)
        # 4 bytes are the NaN that stands for what is not here
        assert fact["after backward"]["weight"] == padded // num_ranks + 4
        assert fact["after backward"]["gradient"] == padded // num_ranks
        # Adam's two moments have no padding; each run has a count of steps besides
        assert fact["after backward"]["optimizer state"] == 2 * 4 * fact["held"] + 4 * fact["runs"]
        assert fact["runs"] == num_units
        assert fact["after step"] == {k: v for k, v in fact["after backward"].items() if k != "gradient"}
        # a layer computes with its own weights and, in forward, the root's, which is freed early in backward
        assert fact["gathered"] == {"forward": [2] * config.num_layers, "backward": [1] * config.num_layers}
        assert fact["sent"] == 3 * padded * (num_ranks - 1) / num_ranks


def _train(
    model: nn.Module, make: Callable[..., tuple[Any, Any]], *, max_norm: float = 0.0, num_steps: int = 20
) -> tuple[list[float], dict[str, Tensor]]:
    """Steps with two parameter groups, a schedule, and batches of which each rank counts other tokens."""
    decayed = [p for name, p in model.named_parameters() if p.dim() > 1]
    others = [p for name, p in model.named_parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0, "lr": 3e-3}]
    wrapped, optimizer = make(model, groups)
    clipping = optimizer if hasattr(optimizer, "clip_grad_norm_") else wrapped
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    losses = []
    for step in range(num_steps):
        tokens, targets = make_batch(step)
        targets[:, : 1 + 2 * dist.get_rank()] = -100
        scale = wrapped.token_scale(int((targets != -100).sum()))
        logits = wrapped(tokens).flatten(0, 1).float()
        loss = nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum") * scale
        loss.backward()
        if max_norm:
            clipping.clip_grad_norm_(max_norm)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    weights = wrapped.state_dict() if isinstance(wrapped, FullyShardedModel) else model.state_dict()
    return losses, {name: value.clone() for name, value in weights.items()}


def _training_ends_where_data_parallelism_ends() -> None:
    def plain(model: nn.Module, groups: list[dict[str, Any]]) -> tuple[Any, Any]:
        return DataParallel(model), torch.optim.AdamW(groups, lr=1e-2)

    def sharded(model: nn.Module, groups: list[dict[str, Any]], **options: Any) -> tuple[Any, Any]:
        wrapped = FullyShardedModel(model, **options)
        return wrapped, ZeroOptimizer(wrapped, torch.optim.AdamW, stage=3, param_groups=groups, lr=1e-2)

    first = DecoderLM(make_config(tied_head=True))
    losses, weights = _train(copy.deepcopy(first), plain)
    found_losses, found = _train(copy.deepcopy(first), sharded)
    assert found_losses == losses
    assert all(torch.equal(found[name], weights[name]) for name in weights)

    _, clipped = _train(copy.deepcopy(first), plain, max_norm=0.5, num_steps=4)
    _, found = _train(copy.deepcopy(first), sharded, max_norm=0.5, num_steps=4)
    for name, value in clipped.items():  # the norm's squares are added up in another order
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert not torch.equal(value, weights[name])

    rounding = torch.finfo(torch.bfloat16).eps
    in_bf16, _ = _train(copy.deepcopy(first), partial(sharded, compute_dtype=torch.bfloat16), num_steps=4)
    torch.testing.assert_close(torch.tensor(in_bf16), torch.tensor(losses[:4]), rtol=4 * rounding, atol=4 * rounding)
    assert in_bf16 != losses[:4]


def test_training_ends_bit_for_bit_where_data_parallelism_ends() -> None:
    run_distributed(_training_ends_where_data_parallelism_ends, 4, timeout_s=120.0)


def _refused(message: str, call: Callable[[], Any], kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=message):
        call()


class NoTensor(nn.Module):
    """A unit that hides its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 2)])
        self.layers[0].forward = lambda x: {"hidden": {1.0}}  # type: ignore[method-assign]

    def forward(self, x: Tensor) -> Any:
        return self.layers[0](x)


def _bad_input_is_refused() -> None:
    rank = dist.get_rank()
    linear = nn.Linear(3, 3)
    _refused("model must be a torch.nn.Module, got str", lambda: FullyShardedModel("model"), TypeError)  # type: ignore[arg-type]
    _refused("is a FullyShardedModel already", lambda: FullyShardedModel(FullyShardedModel(nn.Linear(3, 3))), TypeError)
    _refused("2 parameters for 3 ranks.* use 2 ranks at most", lambda: FullyShardedModel(nn.Linear(1, 1)))
    _refused("compute_dtype must be a floating dtype", lambda: FullyShardedModel(linear, compute_dtype=torch.int8))
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())
    _refused(r"several dtypes \(0.weight torch.float32, .*1.weight torch.float64", lambda: FullyShardedModel(mixed))
    _refused(
        "not have the same model: weight is .* on rank 2", lambda: FullyShardedModel(nn.Linear(3 + (rank == 2), 3))
    )
    hidden = FullyShardedModel(NoTensor())
    _refused("layers.0 returns dict without a tensor", lambda: hidden(torch.ones(2, 2)), TypeError)
    in_bf16 = FullyShardedModel(nn.Linear(3, 3), compute_dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="write=True would round"), in_bf16.gathered(write=True):
        pass
    _refused("assign=True would replace the shards", lambda: in_bf16.load_state_dict({}, assign=True))
    frozen = FullyShardedModel(nn.Linear(3, 3).requires_grad_(False))
    _refused("nothing to train", lambda: ZeroOptimizer(frozen, torch.optim.SGD, stage=3, lr=1.0))
    _refused(
        r"stage 3 takes FullyShardedModel\(model\)", lambda: ZeroOptimizer(linear, torch.optim.SGD, stage=3), TypeError
    )
    _steps_are_refused()


def _steps_are_refused() -> None:
    """Before backward, with gradients that are NaN on one rank, and a graph older than the weights."""
    sharded = FullyShardedModel(DecoderLM(make_config()))
    optimizer = ZeroOptimizer(sharded, torch.optim.AdamW, stage=3, lr=1e-2)
    before = sharded.state_dict()
    _refused(r"step\(\) before backward\(\)", optimizer.step, RuntimeError)
    with optimizer.no_sync():
        run_backward(sharded)
    _refused(r"step\(\) before backward\(\)", optimizer.step, RuntimeError)
    optimizer.zero_grad()
    (mean_loss(sharded) * (torch.nan if dist.get_rank() == 1 else 1.0)).backward()
    _refused("gradients are NaN or infinite: .* No weight was changed", optimizer.step, NonFiniteGradients)
    after = sharded.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    optimizer.zero_grad()
    old = mean_loss(sharded)
    run_backward(sharded)
    optimizer.step()
    _refused("modified by an inplace operation", old.backward, RuntimeError)
    run_backward(sharded)  # and all is well again
    optimizer.step()


def test_bad_input_is_refused_with_what_to_do() -> None:
    run_distributed(_bad_input_is_refused, 3)


def test_units_are_layers_or_what_was_asked_for() -> None:
    model = DecoderLM(make_config(tied_head=True))
    units = find_units(model, None)
    assert list(units) == ["layers.0", "layers.1", "layers.2"]
    assigned = assign_parameters(model, units)
    assert list(assigned) == [*units, ROOT]
    assert set(assigned[ROOT]) == {"embedding.weight", "position_embedding.weight", "norm.weight", "norm.bias"}
    assert sum(p.numel() for unit in assigned.values() for p in unit.values()) == model.config.num_parameters
    model.layers[1].mlp.up.weight = model.layers[0].mlp.up.weight  # shared by two units: the root's
    assert "layers.0.mlp.up.weight" in assign_parameters(model, units)[ROOT]
    assert list(find_units(model, [nn.LayerNorm, model.head])) == [
        *(f"layers.{i}.{name}_norm" for i in range(3) for name in ("attention", "mlp")), "norm", "head",
    ]  # fmt: skip
    _refused("there is no such Linear within the model", lambda: find_units(model, [nn.Linear(2, 2)]))
    _refused("there is no such Conv2d within the model", lambda: find_units(model, [nn.Conv2d]))
    _refused("lies within layers.0, which is a unit", lambda: find_units(model, [model.layers[0], model.layers[0].mlp]))
    _refused("layers is a ModuleList, which has no forward", lambda: find_units(model, [model.layers]))
    with pytest.raises(TypeError, match="units must be modules or classes"):
        find_units(model, ["layers"])  # type: ignore[list-item]


def test_without_ranks_the_error_says_where_to_call_it() -> None:
    _refused("no process group yet: call inside run_distributed", lambda: FullyShardedModel(nn.Linear(2, 2)))
