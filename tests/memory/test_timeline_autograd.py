"""A timeline sees through autograd, and autograd does not notice it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from cme295lab.memory import MemoryTimeline
from cme295lab.transformer import DecoderLM, ModelConfig

CONFIG = ModelConfig(
    name="small", vocab_size=40, num_layers=2, dim=24, num_heads=3, mlp_dim=40, max_seq=16, dropout=0.2
)


class Cube(torch.autograd.Function):
    """Keeps its input and, besides what autograd knows, a square."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.square = x * x
        cube = ctx.square * x
        assert cube.isfinite().all()  # operators after the one that makes the result
        return cube

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        assert torch.equal(ctx.square, x * x)
        return 3 * ctx.square * gradients[0]


def step_of(model: nn.Module, forward: Callable[[], Tensor]) -> list[Tensor]:
    torch.manual_seed(3)
    model.zero_grad()
    loss = forward()
    loss.backward()
    return [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]


def variants() -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    tokens = torch.randint(CONFIG.vocab_size, (2, 7))
    model = DecoderLM(CONFIG, attention="standard")

    def checkpointed(reentrant: bool) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            x = model.embedding(tokens)
            positions = model.positions(7, like=x)
            for layer in model.layers:
                x = checkpoint(layer, x, positions, use_reentrant=reentrant)
            return model.head(model.norm(x)).square().mean()

        return forward

    def offloaded() -> Tensor:
        with save_on_cpu():
            return model.loss(tokens, tokens)

    def halved() -> Tensor:  # the program's own hooks: saved tensors in another format
        with saved_tensors_hooks(lambda x: (x.dtype, x.half()), lambda packed: packed[1].to(packed[0])):
            return model.embedding(tokens).exp().sin().sum() + sum(p.square().sum() for p in model.parameters())

    return {
        "plain": (model, lambda: model.loss(tokens, tokens)),
        "checkpoint": (model, checkpointed(False)),
        "reentrant checkpoint": (model, checkpointed(True)),
        "save_on_cpu": (model, offloaded),
        "hooks": (model, halved),
        "own function": (model, lambda: Cube.apply(model.embedding(tokens)).mean() + 0 * model.loss(tokens, tokens)),
    }


@pytest.mark.parametrize(
    "name", ["plain", "checkpoint", "reentrant checkpoint", "save_on_cpu", "hooks", "own function"]
)
def test_gradients_are_the_same_to_the_bit_and_nothing_stays(name: str) -> None:
    model, forward = variants()[name]
    plain = step_of(model, forward)
    with MemoryTimeline(model=model) as m:
        watched = step_of(model, forward)
        assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
        del watched
        assert m.by_class()["gradient"] == m.by_class()["weight"] == 4 * CONFIG.num_parameters
        assert "activation" not in m.by_class()


def test_checkpointing_shows_in_the_peak_of_activations() -> None:
    peaks = {}
    for name in ("plain", "checkpoint", "reentrant checkpoint"):
        model, forward = variants()[name]
        with MemoryTimeline(model=model) as m:
            step_of(model, forward)
        peaks[name] = m.peak_bytes_of(["activation"])
    assert peaks["checkpoint"] < 0.75 * peaks["plain"]
    assert peaks["reentrant checkpoint"] < 0.75 * peaks["plain"]


def test_what_an_own_function_keeps_is_an_activation() -> None:
    x = torch.randn(10, requires_grad=True)
    with MemoryTimeline() as m:
        y = Cube.apply(x.neg())
        assert m.by_class() == {"activation": 40 + 40, "input": 40, "temporary": 40}
        y.sum().backward()
        assert m.by_class()["input"] == 40
        del y
        assert m.by_class() == {"input": 40, "gradient": 40}


def test_function_saved_before_a_backward_that_is_given_its_gradient() -> None:
    """No operator runs between the function's end and the first node of the backward pass."""
    x, gradient = torch.randn(10, requires_grad=True), torch.ones(10)
    with MemoryTimeline() as m:
        Cube.apply(x.neg()).backward(gradient)
    assert [r.class_name for r in m.records if r.operator == "aten.mul.Tensor"][:2] == ["activation", "temporary"]


def test_softmax_saves_its_output() -> None:
    x = torch.randn(5, 3, requires_grad=True)
    with MemoryTimeline() as m:
        y = x.softmax(-1)
        y.neg()
        assert m.by_class() == {"activation": 60, "input": 60}
        assert y.shape == (5, 3)


def test_second_derivatives() -> None:
    def hessian_diagonal() -> Tensor:
        x = torch.linspace(0.1, 1, 7, requires_grad=True)
        (first,) = torch.autograd.grad(Cube.apply(x.sin()).exp().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.exp().sum(), x, retain_graph=True)
        (again,) = torch.autograd.grad(first.exp().sum(), x)
        assert torch.equal(second, again)
        return second

    plain = hessian_diagonal()
    with MemoryTimeline() as m:
        watched = hessian_diagonal()
        assert torch.equal(plain, watched)
        del watched
        assert m.by_class() == {"input": 28}  # `plain`, to compare


def test_in_place_changes_of_saved_tensors_are_still_errors() -> None:
    x = torch.randn(4, requires_grad=True)
    with MemoryTimeline():
        y = x.exp()
        y.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_backward_twice_is_still_an_error() -> None:
    x = torch.randn(4, requires_grad=True)
    with MemoryTimeline():
        y = x.exp().sum()
        y.backward()
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.backward()


def test_programs_own_hooks_run_as_often_as_without() -> None:
    def count() -> tuple[int, int, int]:
        packed, unpacked, seen = [], [], []

        def pack(tensor: Tensor) -> Tensor:
            packed.append(1)
            return tensor

        def unpack(tensor: Tensor) -> Tensor:
            unpacked.append(1)
            return tensor

        layer = nn.Linear(3, 3)
        layer.weight.register_hook(lambda gradient: seen.append(1))
        layer.weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(1))
        with saved_tensors_hooks(pack, unpack):
            loss = layer(torch.ones(2, 3)).softmax(-1).square().sum()
        loss.backward()
        return len(packed), len(unpacked), len(seen)

    plain = count()
    with MemoryTimeline():
        assert count() == plain
    assert plain[2] == 2


def test_gradients_that_a_hook_takes_away_are_gradients() -> None:
    """As ZeRO does it: each gradient goes into a bucket and is freed as soon as it is there."""
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30))
    bucket = torch.zeros(3 * 930)
    place = 0

    def take(parameter: nn.Parameter) -> None:
        nonlocal place
        end = place + parameter.numel()
        bucket[place:end] += parameter.grad.flatten() * 2
        place, parameter.grad = end, None
        bucket[:5].clone()  # no gradient, though it is made while the parameter has none

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(take)
    with MemoryTimeline(model=model) as m:
        m.mark(bucket, "gradient bucket")
        model(torch.ones(1, 30)).sum().backward()
        assert m.by_class()["weight"] == m.by_class()["gradient bucket"] == 3 * 930 * 4
    gradients = [r for r in m.records if r.class_name == "gradient"]
    assert sorted(r.num_bytes for r in gradients) == [120] * 3 + [3600] * 3
    assert {r.name for r in gradients} == {name for name, _ in model.named_parameters()}
    assert m.peak_bytes_of(["gradient"]) <= 2 * 3600


def test_gradients_with_respect_to_inputs_are_gradients_too() -> None:
    x = torch.ones(6, requires_grad=True)
    with MemoryTimeline() as m:
        (x * x).sum().backward()
        assert m.by_class() == {"input": 24, "gradient": 24}


def test_no_grad_makes_temporaries_only() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()), torch.ones(2, 4)
    with torch.no_grad(), MemoryTimeline(model=model) as m:
        model(x)
    assert {r.class_name for r in m.records} == {"weight", "input", "temporary"}
    assert {r.phase for r in m.records if r.operator} == {"forward"}
