"""Recomputation: gradients equal to the bit, less memory, and the FLOPs that the formula says."""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cme295lab.memory import MemoryTimeline, apply_recompute, checkpoint, recomputed_flops
from cme295lab.transformer import DecoderLM, ModelConfig

BATCH, SEQ = 2, 11
CONFIGS = {
    "swiglu": ModelConfig(
        name="a", vocab_size=40, num_layers=5, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=16, dropout=0.2
    ),
    "gelu": ModelConfig(
        name="b", vocab_size=40, num_layers=2, dim=24, num_heads=3, mlp_dim=56, max_seq=16, mlp="gelu",
        norm="layernorm", position="learned", bias=True, tied_head=True, dropout=0.1,
    ),
}  # fmt: skip
SETTINGS: list[dict[str, Any]] = [
    {"kind": "selective"},
    {"kind": "selective", "every": 2, "offload": True},
    {"kind": "full"},
    {"kind": "full", "every": 2},
    {"kind": "full", "every": 3, "offload": True},
]


def gradients_of(model: nn.Module, run: Callable[[], Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    model.zero_grad()
    run().backward()
    after = torch.rand(3)  # the generator goes on as if nothing had been recomputed
    return [after, *(parameter.grad for parameter in model.parameters())]


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_gradients_with_dropout_are_equal_to_the_bit(name: str, setting: dict[str, Any]) -> None:
    model = DecoderLM(CONFIGS[name], attention="standard")
    tokens = torch.randint(40, (BATCH, SEQ))
    plain = gradients_of(model, lambda: model.loss(tokens, tokens))
    apply_recompute(model, **setting)
    again = gradients_of(model, lambda: model.loss(tokens, tokens))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_gradients_under_autocast_are_equal_to_the_bit() -> None:
    model = DecoderLM(CONFIGS["swiglu"], attention="standard")
    tokens = torch.randint(40, (BATCH, SEQ))

    def loss() -> Tensor:  # backward runs outside of autocast
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.loss(tokens, tokens)

    plain = gradients_of(model, loss)
    apply_recompute(model, "full")
    again = gradients_of(model, loss)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize(("kind", "every"), [("none", 1), ("selective", 1), ("selective", 2), ("full", 1), ("full", 3)])
def test_extra_flops_are_those_of_the_formula(name: str, kind: Any, every: int) -> None:
    config = CONFIGS[name]
    model = DecoderLM(config, attention="standard")
    tokens = torch.randint(40, (BATCH, SEQ))

    def flops(backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            loss = model.loss(tokens, tokens)
            if backward:
                loss.backward()
        return counter.get_total_flops()

    plain, forward = flops(True), flops(False)
    apply_recompute(model, kind, every=every)
    assert flops(False) == forward
    extra = flops(True) - plain
    assert extra == recomputed_flops(config, kind, batch=BATCH, seq=SEQ, every=every)
    if kind == "full" and every == 1:  # the head is the only product that does not run again
        assert extra == forward - 2 * BATCH * SEQ * config.dim * config.vocab_size


def test_published_shares_of_extra_flops() -> None:
    """GPT-3 at sequence 2048 (Korthikanti et al. 2022): full is a third more, selective a few per cent."""
    gpt3 = ModelConfig(
        name="gpt3", vocab_size=51200, num_layers=96, dim=12288, num_heads=96, mlp_dim=49152, max_seq=2048, mlp="gelu"
    )
    full, selective = (recomputed_flops(gpt3, kind, batch=1, seq=2048) for kind in ("full", "selective"))
    assert selective / (3 * full) == pytest.approx(0.009, abs=5e-4)  # s / (3 (6h + s)) = 2048 / 227328
    with_head = 3 * (full + 2 * 2048 * gpt3.dim * gpt3.vocab_size)
    assert full / with_head == pytest.approx(1 / 3, rel=0.01)


def kept_bytes(model: DecoderLM, tokens: Tensor) -> dict[str, int]:
    """What is alive when the forward pass is over."""
    with MemoryTimeline(model=model) as m:
        loss = model.loss(tokens, tokens)
        kept = m.by_class()
    del loss
    return kept


def test_full_keeps_one_tensor_per_block() -> None:
    config = CONFIGS["swiglu"]
    tokens = torch.randint(40, (BATCH, SEQ))
    model = DecoderLM(config, attention="standard")
    plain = kept_bytes(model, tokens)["activation"]
    apply_recompute(model, "full")
    kept = kept_bytes(model, tokens)
    stream = 4 * BATCH * SEQ * config.dim
    # block inputs, the input of the last norm and its one number per token, its result, the log-probabilities (the loss
    # saves its weight, a number), the dropout mask of the embedding, and the shared rotations and mask
    positions = 2 * 4 * SEQ * config.head_dim + 4 * SEQ**2
    outside = stream + 4 * BATCH * SEQ + stream + 4 * BATCH * SEQ * 40 + 4 + stream // 4
    assert kept["activation"] == config.num_layers * stream + positions + outside
    assert kept["activation"] < 0.3 * plain


def test_selective_forgets_the_core_and_keeps_the_rest() -> None:
    config = CONFIGS["gelu"]
    tokens = torch.randint(40, (BATCH, SEQ))
    model = DecoderLM(config, attention="standard")
    plain = kept_bytes(model, tokens)["activation"]
    apply_recompute(model, "selective")
    kept = kept_bytes(model, tokens)["activation"]
    square = BATCH * config.num_heads * SEQ**2
    # forgotten: softmax (4 bytes), what dropout leaves of it (4), its mask (1), and the factor of Q, a number. Q is
    # kept in place of scaled Q, K and V as before, and the causal mask, which all layers share, as an argument
    layer = square * (4 + 4 + 1) + 8
    assert plain - kept == config.num_layers * layer - 4 * SEQ**2


def test_peak_falls_from_none_over_selective_to_full() -> None:
    model = DecoderLM(CONFIGS["swiglu"], attention="standard")
    tokens = torch.randint(40, (BATCH, 16))
    peaks = {}
    for kind in ("none", "selective", "full"):
        apply_recompute(model, kind)
        model.zero_grad()
        with MemoryTimeline(model=model) as m:
            model.loss(tokens, tokens).backward()
        peaks[kind] = m.peak_bytes_of(["activation", "temporary"])
    assert peaks["full"] < 0.6 * peaks["selective"]
    assert peaks["selective"] < 0.8 * peaks["none"]


def test_offloaded_inputs_are_counted_apart() -> None:
    config = CONFIGS["swiglu"]
    tokens = torch.randint(40, (BATCH, SEQ))
    model = DecoderLM(config, attention="standard")
    apply_recompute(model, "full")
    here = kept_bytes(model, tokens)
    apply_recompute(model, "full", offload=True)
    there = kept_bytes(model, tokens)
    stream = 4 * BATCH * SEQ * config.dim
    assert there["offloaded"] == config.num_layers * stream
    assert there["activation"] == here["activation"] - config.num_layers * stream
    with MemoryTimeline(model=model) as m:
        model.loss(tokens, tokens).backward()
        assert "offloaded" not in m.by_class()
    assert m.peak_bytes_of(without=["offloaded"]) < m.peak_bytes


def test_undone_and_applied_anew() -> None:
    model = DecoderLM(CONFIGS["gelu"], attention="standard")
    tokens = torch.randint(40, (BATCH, SEQ))
    plain = kept_bytes(model, tokens)
    for kind in ("full", "selective", "full", "none"):
        apply_recompute(model, kind)
    assert kept_bytes(model, tokens) == plain
    assert all("forward" not in vars(module) for module in model.modules())


def test_model_can_be_copied_and_its_state_has_the_same_names() -> None:
    model = DecoderLM(CONFIGS["gelu"], attention="standard")
    names = list(model.state_dict())
    apply_recompute(model, "full")
    twin = copy.deepcopy(model)
    assert list(twin.state_dict()) == names
    tokens = torch.randint(40, (BATCH, SEQ))
    gradients_of(twin, lambda: twin.loss(tokens, tokens))
    assert all(parameter.grad is None for parameter in model.parameters())


# ---- checkpoint by itself


def test_function_of_nested_arguments_runs_twice_and_keeps_nothing() -> None:
    calls = []

    def function(parts: dict[str, Any], factor: float) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return (parts["pair"][0].sin() * parts["pair"][1]).exp() * factor

    a, b = (torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    want = torch.autograd.grad(function({"pair": (a, b)}, 3.0).sum(), (a, b))
    calls.clear()
    with MemoryTimeline() as m:
        result = checkpoint(function, {"pair": (a, b)}, 3.0)
        assert m.by_class() == {"input": 2 * 56, "temporary": 56}
        got = torch.autograd.grad(result.sum(), (a, b), retain_graph=True)
        assert "activation" not in m.by_class()  # what was recomputed is gone, although the graph is still there
    assert calls == [True, True]
    assert all(torch.equal(x, y) for x, y in zip(want, got))


def test_backward_twice_and_second_derivatives() -> None:
    x = torch.linspace(0.2, 1, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: checkpoint(lambda y: y.sin().exp(), x), (x,))
    result = checkpoint(lambda y: y.exp().sin(), x)
    first, second = (torch.autograd.grad(result.sum(), x, retain_graph=keep)[0] for keep in (True, False))
    assert torch.equal(first, second)


def test_parameters_alone_need_no_argument_that_needs_a_gradient() -> None:
    layer = nn.Linear(3, 2)
    x = torch.ones(4, 3)
    checkpoint(lambda x: layer(x).tanh(), x).sum().backward()
    got = layer.weight.grad.clone()
    layer.zero_grad()
    layer(x).tanh().sum().backward()
    assert torch.equal(got, layer.weight.grad)


def test_call_within_a_call() -> None:
    x = torch.randn(6, requires_grad=True)
    inner = lambda y: checkpoint(lambda z: z.sin().exp(), y.cos())  # noqa: E731
    (want,) = torch.autograd.grad(x.cos().sin().exp().sum(), x)
    (got,) = torch.autograd.grad(checkpoint(inner, x).sum(), x)
    assert torch.equal(want, got)


def test_without_gradients_it_is_a_plain_call() -> None:
    with torch.no_grad():
        assert not checkpoint(torch.exp, torch.ones(2, requires_grad=True)).requires_grad


def test_exception_of_the_function_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        checkpoint(lambda x: x.exp() * (1 / 0), torch.ones(2, requires_grad=True))
    assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def test_argument_changed_in_place_is_an_error() -> None:
    x = torch.randn(3, requires_grad=True)
    y = x.exp()
    result = checkpoint(lambda y: y.sin(), y)
    with torch.no_grad():
        y.add_(1)
    with pytest.raises(RuntimeError, match=r"shape \(3,\), was changed in place"):
        result.sum().backward()


def test_function_that_does_something_else_the_second_time_is_an_error() -> None:
    counter = itertools.count(2)

    def more_each_time(x: Tensor) -> Tensor:
        for _ in range(next(counter)):
            x = x.exp()
        return x

    result = checkpoint(more_each_time, torch.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match="saved 2 tensors at first and 3 now"):
        result.sum().backward()

    wider = itertools.count(1)
    result = checkpoint(lambda x: x.repeat(next(wider)).exp().sum(), torch.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"number 0 was float32 \(2,\) and is float32 \(4,\)"):
        result.backward()


def test_bad_input_is_refused_by_name() -> None:
    model = DecoderLM(CONFIGS["gelu"])
    with pytest.raises(ValueError, match="kind must be one of none, selective, full, got 'some'"):
        apply_recompute(model, "some")
    with pytest.raises(ValueError, match="every must be a number of layers, at least 1, got 0"):
        apply_recompute(model, "full", every=0)
    with pytest.raises(ValueError, match="offload moves what recomputation keeps"):
        apply_recompute(model, "none", offload=True)
    with pytest.raises(TypeError, match=r"ModuleList `model.layers`.*Linear has none"):
        apply_recompute(nn.Linear(2, 2), "full")
    bare = nn.Module()
    bare.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(TypeError, match=r"block.attention.core"):
        apply_recompute(bare, "selective")
    with pytest.raises(TypeError, match="function must be something to call, got 3"):
        checkpoint(3, torch.ones(1))
    with pytest.raises(ValueError, match="kind must be one of"):
        recomputed_flops(CONFIGS["gelu"], "half", batch=1, seq=1)
