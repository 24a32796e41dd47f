"""Stage 3 on real processes: gradients against the plain model's, bytes against formulas, and what is awkward.

The functions at the top run on ranks; an assertion that fails there fails the test, with the rank's traceback. Many
cases share one launch, because launches cost more than cases.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cme295lab.memory import MemoryTimeline
from cme295lab.parallel import CommLedger, DataParallel, FullyShardedModel, ZeroOptimizer, run_distributed, transport
from cme295lab.parallel.zero3_optimizer import FullyShardedOptimizer
from cme295lab.transformer import DecoderLM, ModelConfig

VOCAB, SEQ = 53, 10


def _config(**changes: Any) -> ModelConfig:
    shape = dict(
        vocab_size=VOCAB, num_layers=3, dim=18, num_heads=3, mlp_dim=35, max_seq=SEQ, mlp="gelu", norm="layernorm",
        position="learned", bias=True,
    )  # fmt: skip
    return ModelConfig(**(shape | changes))


def _batch(offset: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(100 * dist.get_rank() + offset)
    return torch.randint(VOCAB, (2, 2, SEQ), generator=generator)


def _mean_over_ranks(gradient: Tensor | None, like: Tensor) -> Tensor:
    flat = torch.zeros(like.numel()) if gradient is None else gradient.flatten().contiguous()
    transport.all_reduce(flat)
    return flat.mul_(1 / dist.get_world_size()).view(like.shape)


def _plain_gradients(model: nn.Module, backward: Callable[[nn.Module], None]) -> dict[str, Tensor]:
    """The oracle: the plain model, whole on every rank, and one all-reduce per gradient."""
    backward(model)
    return {n: _mean_over_ranks(p.grad, p) for n, p in model.named_parameters() if p.requires_grad}


def _sharded_gradients(sharded: FullyShardedModel) -> dict[str, Tensor]:
    """The gradients of all shards, put together; all weights must have been freed."""
    assert not any(part.is_gathered for unit in sharded.units for part in unit.parts)
    assert all(p.isnan().all() and p.untyped_storage().nbytes() <= 4 for p in sharded.module.parameters())
    found = {}
    for part in sharded.trained:
        flat = torch.empty(part.layout.num_elements)
        gradient = torch.zeros_like(part.shard) if part.gradient is None else part.gradient
        transport.all_gather(flat, gradient)
        found |= {slot.name: flat[slot.start : slot.stop].view(slot.shape) for slot in part.layout.slots}
    return found


def _assert_same_gradients(
    model: nn.Module, backward: Callable[[nn.Module], None], *, sharded_backward: Any = None, **options: Any
) -> FullyShardedModel:
    wanted = _plain_gradients(copy.deepcopy(model), backward)
    sharded = FullyShardedModel(model, **options)
    (sharded_backward or backward)(sharded)
    found = _sharded_gradients(sharded)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), f"{name}: {(found[name] - gradient).abs().max()}"
    return sharded


def _loss(model: nn.Module, offset: int = 0) -> Tensor:
    tokens, targets = _batch(offset)
    return nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def _backward(model: nn.Module) -> None:
    _loss(model).backward()


class Awkward(nn.Module):
    """Layers with an unused parameter, a module that runs twice, a parameter of the root's own, nested outputs."""

    class Layer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            self.linear, self.unused, self.index = nn.Linear(7, 7), nn.Parameter(torch.randn(5)), index

        def forward(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
            x = torch.tanh(self.linear(inputs["x"][0]))
            if self.index == 1 and dist.get_rank() == 0:
                x = x * self.unused.sum()  # unused on all ranks but the first
            return {"x": (x, "text")}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Linear(4, 7), nn.Parameter(torch.randn(7))
        self.layers = nn.ModuleList(Awkward.Layer(index) for index in range(3))
        self.middle, self.buffer = nn.LayerNorm(7), nn.Buffer(torch.full((2,), float(dist.get_rank())))

    def forward(self, x: Tensor) -> Tensor:
        state: dict[str, Any] = {"x": (self.stem(x), "text")}
        for index in (0, 1, 0, 2):
            state = self.layers[index](state)
            if index == 1:
                state = {"x": (self.middle(state["x"][0]), "text")}
        return (state["x"][0] * self.scale).sum()


def _awkward_backward(model: nn.Module) -> None:
    model(torch.randn(3, 4, generator=torch.Generator().manual_seed(dist.get_rank()))).backward()


class Recomputed(nn.Module):
    """A layer that keeps nothing but its input."""

    def __init__(self, layer: nn.Module, use_reentrant: bool) -> None:
        super().__init__()
        self.layer, self.use_reentrant = layer, use_reentrant

    def forward(self, *args: Any) -> Any:
        return checkpoint(self.layer, *args, use_reentrant=self.use_reentrant)


def _recomputed(model: DecoderLM, *, use_reentrant: bool) -> DecoderLM:
    model.layers = nn.ModuleList(Recomputed(layer, use_reentrant) for layer in model.layers)
    return model


def _gradients_are_those_of_the_plain_model() -> None:
    _assert_same_gradients(DecoderLM(_config()), _backward)
    _assert_same_gradients(DecoderLM(_config(tied_head=True)), _backward)
    _assert_same_gradients(DecoderLM(_config(tied_head=True)), _backward, keep_root=True)
    _assert_same_gradients(DecoderLM(_config()), _backward, prefetch=False)
    _assert_same_gradients(DecoderLM(_config()), _backward, units=[])
    _assert_same_gradients(DecoderLM(_config()), _backward, units=[nn.Linear])
    awkward = _assert_same_gradients(Awkward(), _awkward_backward)
    assert awkward.module.buffer.tolist() == [0.0, 0.0]  # rank 0's
    _awkward_backward(awkward)  # and once more, in the order learnt from the first
    for use_reentrant in (False, True):
        _assert_same_gradients(_recomputed(DecoderLM(_config()), use_reentrant=use_reentrant), _backward)
        model = _recomputed(DecoderLM(_config()), use_reentrant=use_reentrant)
        inner = [each.layer for each in model.layers]  # the unit is what runs again
        _assert_same_gradients_of_inner_units(model, inner)


def _assert_same_gradients_of_inner_units(model: nn.Module, inner: list[nn.Module]) -> None:
    wanted = _plain_gradients(copy.deepcopy(model), _backward)
    sharded = FullyShardedModel(model, units=inner)
    with CommLedger() as ledger:
        _backward(sharded)
    found = _sharded_gradients(sharded)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert ledger.sent_bytes == 3 * _padded_bytes(sharded) * (dist.get_world_size() - 1) / dist.get_world_size()


def _frozen(model: DecoderLM, which: Callable[[str], bool]) -> DecoderLM:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not which(name))
    return model


def _frozen_parameters_are_gathered_and_get_no_gradient() -> None:
    for which in (
        lambda name: "query" in name or "mlp" in name,  # within every unit
        lambda name: "layers.1" in name or "embedding" in name,  # a whole unit, and what the first unit's input needs
        lambda name: "layers" in name,  # everything but the root
    ):
        sharded = _assert_same_gradients(_frozen(DecoderLM(_config()), which), _backward)
        assert sharded.frozen
        with CommLedger() as ledger:
            _backward(sharded)
        num_ranks = dist.get_world_size()
        reduced = sum(4 * part.layout.num_elements for part in sharded.trained) * (num_ranks - 1) / num_ranks
        assert ledger.by_collective()["reduce_scatter"].sent_bytes == reduced


def _accumulation_is_the_sum_of_its_backward_passes() -> None:
    def twice(model: nn.Module) -> None:
        for offset in (0, 1):
            _loss(model, offset).backward()

    def two_forwards_first(model: nn.Module) -> None:
        losses = [_loss(model, offset) for offset in (0, 1)]
        sum(losses).backward()

    def two_graphs(model: nn.Module) -> None:
        losses = [_loss(model, offset) for offset in (0, 1)]
        for loss in losses:
            loss.backward()

    def without_messages(model: nn.Module) -> None:
        with model.no_sync(), CommLedger() as ledger:  # type: ignore[operator]
            _loss(model, 0).backward()
        assert "reduce_scatter" not in ledger.by_collective()
        _loss(model, 1).backward()

    model = DecoderLM(_config(tied_head=True))
    _assert_same_gradients(copy.deepcopy(model), two_forwards_first)
    _assert_same_gradients(copy.deepcopy(model), twice, sharded_backward=without_messages)
    for backward in (twice, two_graphs):  # each pass is summed over the ranks by itself, so rounding differs
        wanted = _plain_gradients(copy.deepcopy(model), backward)
        sharded = FullyShardedModel(copy.deepcopy(model))
        backward(sharded)
        for name, gradient in _sharded_gradients(sharded).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)


def _passes_without_backward_and_failed_ones_leave_it_usable() -> None:
    model = DecoderLM(_config())
    plain = copy.deepcopy(model)
    sharded = FullyShardedModel(model, keep_root=True)
    with torch.no_grad():
        assert torch.equal(sharded(_batch()[0]), plain(_batch()[0]))
    _loss(sharded, 3)  # a graph that is dropped
    failing = model.layers[1].register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        _loss(sharded)
    failing.remove()
    loss = _loss(sharded)
    failing_gradient = model.layers[2].mlp.up.weight.register_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    failing_gradient.remove()
    sharded.zero_grad()
    wanted = _plain_gradients(plain, _backward)
    _backward(sharded)
    found = _sharded_gradients(sharded)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def _weights_go_in_and_out() -> None:
    model, other = DecoderLM(_config(tied_head=True)), DecoderLM(_config(tied_head=True))
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    sharded = FullyShardedModel(model)
    state = sharded.state_dict()
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    sharded.load_state_dict(other.state_dict())
    with sharded.gathered() as whole:
        assert torch.equal(whole.layers[0].mlp.up.weight, other.layers[0].mlp.up.weight)
    with sharded.gathered(write=True) as whole, torch.no_grad():
        whole.norm.bias.fill_(2.5)
    for key, value, message in (
        ("norm.bias", torch.zeros(3), "another shape"),
        ("new", torch.zeros(1), "not in the model"),
    ):
        with pytest.raises(RuntimeError, match=message):
            sharded.load_state_dict(other.state_dict() | {key: value})
    plain = sharded.close()
    assert plain is model
    assert (model.norm.bias == 2.5).all()
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.head.weight, other.head.weight)
    _backward(model)
    assert model.layers[0].mlp.up.weight.grad is not None
    assert not model._forward_hooks
    assert not model.layers[0]._forward_pre_hooks


def _lower_precision_stays_within_its_rounding() -> None:
    for dtype, reduce_dtype in ((torch.bfloat16, None), (torch.float16, torch.float32)):
        model = DecoderLM(_config())
        wanted = _plain_gradients(copy.deepcopy(model), _backward)
        sharded = FullyShardedModel(model, compute_dtype=dtype, reduce_dtype=reduce_dtype)
        logits: list[Tensor] = []
        sharded.module.register_forward_hook(lambda _, __, output, logits=logits: logits.append(output))
        with CommLedger() as ledger:
            _backward(sharded)
        assert logits[0].dtype == dtype
        found = _sharded_gradients(sharded)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        error = _norm(found[name] - wanted[name] for name in wanted) / _norm(wanted.values())
        assert 0 < error < 4 * torch.finfo(dtype).eps, f"{error} in {dtype}"
        share = (dist.get_world_size() - 1) / dist.get_world_size()
        bytes_per_weight = 2 + 2 + (reduce_dtype or dtype).itemsize
        assert ledger.sent_bytes == share * bytes_per_weight * _padded_bytes(sharded) / 4


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def _padded_bytes(sharded: FullyShardedModel) -> int:
    return sum(4 * part.layout.num_elements for part in sharded.trained + sharded.frozen)


CASES = (
    _gradients_are_those_of_the_plain_model,
    _frozen_parameters_are_gathered_and_get_no_gradient,
    _accumulation_is_the_sum_of_its_backward_passes,
    _passes_without_backward_and_failed_ones_leave_it_usable,
    _weights_go_in_and_out,
    _lower_precision_stays_within_its_rounding,
)


def _all_cases() -> None:
    for case in CASES:
        torch.manual_seed(0)
        case()


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_gradients_equal_the_plain_models_in_all_settings(num_ranks: int) -> None:
    run_distributed(_all_cases, num_ranks, timeout_s=120.0)


def _bytes_of_a_step(tied: bool) -> dict[str, Any]:
    sharded = FullyShardedModel(DecoderLM(_config(tied_head=tied)))
    optimizer = FullyShardedOptimizer(sharded, torch.optim.AdamW, lr=1e-3)
    for _ in range(2):
        _backward(sharded)
        optimizer.step()
    gathered: dict[str, list[int]] = {"forward": [], "backward": []}
    for layer in sharded.module.layers:
        layer.mlp.register_forward_hook(partial(_note_gathered, sharded.module, gathered))
    with MemoryTimeline(model=sharded, optimizer=optimizer) as timeline, CommLedger() as ledger:
        _backward(sharded)
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
        "padded": _padded_bytes(sharded),
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
    config = _config(tied_head=True)
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
        tokens, targets = _batch(step)
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

    first = DecoderLM(_config(tied_head=True))
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
