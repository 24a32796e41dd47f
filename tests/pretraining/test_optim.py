"""Optimizers against torch's over 100 steps, by hand, and in what they refuse."""

import math

import pytest
import torch

from cme295lab.pretraining.optim import SGD, Adam, AdamW, decay_groups
from cme295lab.transformer import DecoderLM, ModelConfig

CASES = {
    "sgd": (SGD, torch.optim.SGD, {"lr": 0.05}),
    "sgd-decay": (SGD, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "momentum": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (SGD, torch.optim.SGD, {"lr": 0.02, "momentum": 0.8, "nesterov": True}),
    "adam": (Adam, torch.optim.Adam, {"lr": 0.01}),
    "adam-decay": (Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.95)}),
    "adamw": (AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.3}),
    "adamw-default": (AdamW, torch.optim.AdamW, {"lr": 0.003, "eps": 1e-6}),
}


def network() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(7, 11), torch.nn.Tanh(), torch.nn.Linear(11, 3))


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, num_steps: int = 100) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(num_steps):
        x = torch.randn(13, 7, generator=generator)
        optimizer.zero_grad()
        (model(x) - x[:, :3].sin()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("foreach", [False, True], ids=["plain", "foreach"])
def test_hundred_steps_equal_torchs(name: str, foreach: bool) -> None:
    ours, theirs, options = CASES[name]
    left, right = network(), network()
    train(left, ours(left.parameters(), foreach=foreach, **options))
    train(right, theirs(right.parameters(), foreach=False, **options))
    start = network()
    for a, b, before in zip(left.parameters(), right.parameters(), start.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert (a - before).abs().max() > 1e-2  # it has gone somewhere


@pytest.mark.parametrize("name", CASES)
def test_foreach_equals_the_plain_loop(name: str) -> None:
    ours, _, options = CASES[name]
    left, right = network(), network()
    train(left, ours(left.parameters(), **options))
    train(right, ours(right.parameters(), foreach=True, **options))
    for a, b in zip(left.parameters(), right.parameters()):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-7)  # an ulp or two of a weight near 1


def test_first_steps_of_adam_by_hand() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = Adam([weight], lr=0.1, betas=(0.9, 0.99))
    for gradient in (0.5, -1.0):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
    m = 0.9 * (0.1 * 0.5) + 0.1 * -1.0
    v = 0.99 * (0.01 * 0.25) + 0.01 * 1.0
    second = 0.1 * (m / (1 - 0.81)) / math.sqrt(v / (1 - 0.99**2))
    assert weight.item() == pytest.approx(1.0 - 0.1 - second, rel=1e-6)  # the first step of Adam has length lr
    state = optimizer.state_of(weight)
    assert state["step"] == 2
    assert state["m"].item() == pytest.approx(m)
    assert state["v"].item() == pytest.approx(v)


def test_parameters_without_a_gradient_stay_and_start_later() -> None:
    for foreach in (False, True):
        first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = AdamW([first, second], lr=0.1, foreach=foreach)
        first.grad = torch.ones(2)
        optimizer.step()
        assert second.equal(torch.ones(2))
        assert optimizer.state_of(second) == {}
        second.grad = torch.ones(2)
        optimizer.step()
        assert (optimizer.state_of(first)["step"], optimizer.state_of(second)["step"]) == (2, 1)
        torch.testing.assert_close(second, torch.ones(2) * (1 - 0.1 * 0.01) - 0.1)


def test_vectors_do_not_decay_and_a_tied_head_comes_once() -> None:
    shape = {"vocab_size": 20, "num_layers": 1, "dim": 8, "num_heads": 2, "mlp_dim": 12, "max_seq": 8}
    model = DecoderLM(ModelConfig(**shape, tied_head=True))
    groups = decay_groups(model.named_parameters(), 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert sum(weight.numel() for group in groups for weight in group["params"]) == model.config.num_parameters
    assert all(weight.ndim == 1 for weight in groups[1]["params"])


def test_a_closure_is_called_with_gradients_on() -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = SGD([weight], lr=0.25)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert weight.item() == pytest.approx(1.0)


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda p: SGD(p, lr=-1), ValueError, "lr must be at least 0, got -1"),
    (lambda p: SGD(p, lr="fast"), TypeError, "lr must be a number"),
    (lambda p: SGD(p, lr=1, momentum=1.0), ValueError, "momentum must be at least 0 and below 1"),
    (lambda p: SGD(p, lr=1, nesterov=True), ValueError, "nesterov=True needs momentum"),
    (lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, "betas must be two numbers"),
    (lambda p: Adam(p, eps=-1e-8), ValueError, "eps must be at least 0"),
    (lambda p: AdamW(p, weight_decay=float("nan")), ValueError, "weight_decay must be at least 0"),
    (lambda p: AdamW(p, foreach=1), TypeError, "foreach must be True or False"),
], ids=["lr", "text", "momentum", "nesterov", "betas", "eps", "nan", "foreach"])  # fmt: skip
def test_bad_options_are_refused(make, error, says) -> None:
    with pytest.raises(error, match=says):
        make([torch.nn.Parameter(torch.ones(2))])
    optimizer = SGD([torch.nn.Parameter(torch.ones(2))], lr=1.0)
    with pytest.raises(KeyError, match="no such parameter"):
        optimizer.state_of(torch.ones(2))
