"""Stage 3 on real processes: gradients against the plain model's, to the bit, wherever that is awkward.

The functions at the top run on ranks; an assertion that fails there fails the test, with the rank's traceback. Many
cases share one launch, because launches cost more than cases.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cme295lab.parallel import CommLedger, FullyShardedModel, run_distributed
from cme295lab.transformer import DecoderLM
from tests.parallel.sharded_cases import (
    Awkward,
    assert_same_gradients,
    awkward_backward,
    make_batch,
    make_config,
    mean_loss,
    norm,
    padded_bytes,
    plain_gradients,
    recomputed,
    run_backward,
    sharded_gradients,
)


def _gradients_are_those_of_the_plain_model() -> None:
    assert_same_gradients(DecoderLM(make_config()), run_backward)
    assert_same_gradients(DecoderLM(make_config(tied_head=True)), run_backward)
    assert_same_gradients(DecoderLM(make_config(tied_head=True)), run_backward, keep_root=True)
    assert_same_gradients(DecoderLM(make_config()), run_backward, prefetch=False)
    assert_same_gradients(DecoderLM(make_config()), run_backward, units=[])
    assert_same_gradients(DecoderLM(make_config()), run_backward, units=[nn.Linear])
    awkward = assert_same_gradients(Awkward(), awkward_backward)
    assert awkward.module.buffer.tolist() == [0.0, 0.0]  # rank 0's
    awkward_backward(awkward)  # and once more, in the order learnt from the first
    for use_reentrant in (False, True):
        assert_same_gradients(recomputed(DecoderLM(make_config()), use_reentrant=use_reentrant), run_backward)
        model = recomputed(DecoderLM(make_config()), use_reentrant=use_reentrant)
        inner = [each.layer for each in model.layers]  # the unit is what runs again
        _assert_same_gradients_of_inner_units(model, inner)


def _assert_same_gradients_of_inner_units(model: nn.Module, inner: list[nn.Module]) -> None:
    wanted = plain_gradients(copy.deepcopy(model), run_backward)
    sharded = FullyShardedModel(model, units=inner)
    with CommLedger() as ledger:
        run_backward(sharded)
    found = sharded_gradients(sharded)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert ledger.sent_bytes == 3 * padded_bytes(sharded) * (dist.get_world_size() - 1) / dist.get_world_size()


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
        sharded = assert_same_gradients(_frozen(DecoderLM(make_config()), which), run_backward)
        assert sharded.frozen
        with CommLedger() as ledger:
            run_backward(sharded)
        num_ranks = dist.get_world_size()
        reduced = sum(4 * part.layout.num_elements for part in sharded.trained) * (num_ranks - 1) / num_ranks
        assert ledger.by_collective()["reduce_scatter"].sent_bytes == reduced


class Sometimes(nn.Module):
    """A layer with a parameter that only some forwards use."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.shift if x.sum() > 0 else x @ self.weight


def _used_in_the_first_pass_alone(model: nn.Module) -> None:
    with model.no_sync() if isinstance(model, FullyShardedModel) else contextlib.nullcontext():
        model(torch.full((2, 5), 1.0 + dist.get_rank())).sum().backward()
    model(torch.full((2, 5), -1.0)).sum().backward()


def _accumulation_is_the_sum_of_its_backward_passes() -> None:
    def twice(model: nn.Module) -> None:
        for offset in (0, 1):
            mean_loss(model, offset).backward()

    def two_forwards_first(model: nn.Module) -> None:
        losses = [mean_loss(model, offset) for offset in (0, 1)]
        sum(losses).backward()

    def two_graphs(model: nn.Module) -> None:
        losses = [mean_loss(model, offset) for offset in (0, 1)]
        for loss in losses:
            loss.backward()

    def without_messages(model: nn.Module) -> None:
        with model.no_sync(), CommLedger() as ledger:  # type: ignore[operator]
            mean_loss(model, 0).backward()
        assert "reduce_scatter" not in ledger.by_collective()
        mean_loss(model, 1).backward()

    model = DecoderLM(make_config(tied_head=True))
    assert_same_gradients(copy.deepcopy(model), two_forwards_first)
    assert_same_gradients(copy.deepcopy(model), twice, sharded_backward=without_messages)
    assert_same_gradients(nn.Sequential(Sometimes(), nn.Tanh()), _used_in_the_first_pass_alone, units=[Sometimes])
    for backward in (twice, two_graphs):  # each pass is summed over the ranks by itself, so rounding differs
        wanted = plain_gradients(copy.deepcopy(model), backward)
        sharded = FullyShardedModel(copy.deepcopy(model))
        backward(sharded)
        for name, gradient in sharded_gradients(sharded).items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-7)


def _passes_without_backward_and_failed_ones_leave_it_usable() -> None:
    model = DecoderLM(make_config())
    plain = copy.deepcopy(model)
    sharded = FullyShardedModel(model, keep_root=True)
    with torch.no_grad():
        assert torch.equal(sharded(make_batch()[0]), plain(make_batch()[0]))
    mean_loss(sharded, 3)  # a graph that is dropped
    failing = model.layers[1].register_forward_pre_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        mean_loss(sharded)
    failing.remove()
    loss = mean_loss(sharded)
    failing_gradient = model.layers[2].mlp.up.weight.register_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    failing_gradient.remove()
    sharded.zero_grad()
    wanted = plain_gradients(plain, run_backward)
    run_backward(sharded)
    found = sharded_gradients(sharded)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def _fail(*_: Any) -> None:
    raise ZeroDivisionError


def _weights_go_in_and_out() -> None:
    model, other = DecoderLM(make_config(tied_head=True)), DecoderLM(make_config(tied_head=True))
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
    run_backward(model)
    assert model.layers[0].mlp.up.weight.grad is not None
    assert not model._forward_hooks
    assert not model.layers[0]._forward_pre_hooks


def _lower_precision_stays_within_its_rounding() -> None:
    for dtype, reduce_dtype in ((torch.bfloat16, None), (torch.float16, torch.float32)):
        model = DecoderLM(make_config())
        wanted = plain_gradients(copy.deepcopy(model), run_backward)
        sharded = FullyShardedModel(model, compute_dtype=dtype, reduce_dtype=reduce_dtype)
        logits: list[Tensor] = []
        sharded.module.register_forward_hook(lambda _, __, output, logits=logits: logits.append(output))
        with CommLedger() as ledger:
            run_backward(sharded)
        assert logits[0].dtype == dtype
        found = sharded_gradients(sharded)
        assert all(gradient.dtype == torch.float32 for gradient in found.values())
        error = norm(found[name] - wanted[name] for name in wanted) / norm(wanted.values())
        assert 0 < error < 4 * torch.finfo(dtype).eps, f"{error} in {dtype}"
        share = (dist.get_world_size() - 1) / dist.get_world_size()
        bytes_per_weight = 2 + 2 + (reduce_dtype or dtype).itemsize
        assert ledger.sent_bytes == share * bytes_per_weight * padded_bytes(sharded) / 4


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
