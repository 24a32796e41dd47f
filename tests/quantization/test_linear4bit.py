"""The 4-bit linear layer: bitsandbytes' layer in train mode, dense layers, gradients, memory, state dicts."""

import copy
import pickle

import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cme295lab.quantization import Linear4bit, linear4bit, nf4
from cme295lab.quantization.files import to_state_dict
from cme295lab.quantization.linear4bit import linear_plainly

KINDS = [("nf4", True), ("nf4", False), ("fp4", True)]
KIND_NAMES = ["nf4-double", "nf4-plain", "fp4-double"]


def their_layer(layer: Linear4bit) -> bnb.nn.Linear4bit:
    """bitsandbytes' layer, made of our state dict."""
    state_dict = layer.state_dict()
    theirs = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=layer.compute_dtype
    )
    statistics = {name: part for name, part in state_dict.items() if name.startswith("weight.")}
    theirs.weight = bnb.nn.Params4bit.from_prequantized(state_dict["weight"], statistics, device="cpu", module=theirs)
    if layer.bias is not None:
        theirs.bias = nn.Parameter(state_dict["bias"].clone())
    return theirs.train()  # in eval mode theirs computes in bfloat16, whatever it is told


@pytest.mark.parametrize(("quant_type", "double_quant"), KINDS, ids=KIND_NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_of_bitsandbytes_gives_the_same_output_and_gradients(
    quant_type: str, double_quant: bool, dtype: torch.dtype, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear4bit, "SLAB_VALUES", 128 * 16)  # 3 slabs, the last one smaller
    layer = Linear4bit(128, 40, bias, quant_type=quant_type, double_quant=double_quant, compute_dtype=dtype)
    theirs = their_layer(layer)
    x = torch.randn(2, 5, 128, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    y, expected = layer(x), theirs(other)
    assert y.dtype == x.dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-7}
    torch.testing.assert_close(y, expected, **tolerance)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x.grad, other.grad, **tolerance)
    if bias:  # theirs sums the first dimension alone, so it is asked for nothing here
        torch.testing.assert_close(layer.bias.grad, gradient.to(dtype).sum((0, 1)).float(), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 5), (7, 1), (130, 257)], ids=str)
def test_slabs_of_any_height_are_the_plain_product(
    size: tuple[int, int], block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_features, in_features = size
    weight = nf4.quantize(torch.randn(size), block_size=block_size)
    bias = torch.randn(out_features)
    x = torch.randn(9, in_features, requires_grad=True)
    layer = Linear4bit.from_weight(weight, nn.Parameter(bias.clone()), compute_dtype=torch.float32)
    expected = linear_plainly(x, weight, bias)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    for slab_values in (1, 1000, 1 << 20):
        monkeypatch.setattr(linear4bit, "SLAB_VALUES", slab_values)
        y = layer(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-3)


def test_product_against_float64() -> None:
    layer = Linear4bit(64, 48, compute_dtype=torch.float32)
    x = torch.randn(10, 64)
    expected = F.linear(x.double(), layer.weight.dequantize().double(), layer.bias.double())
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_gradient_of_the_bias_by_hand() -> None:
    """Each output's gradient is 1, so the bias' is the number of rows; in another dtype than the bias, too."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        layer = Linear4bit(32, 3, compute_dtype=dtype)
        layer(torch.randn(4, 5, 32)).sum().backward()
        assert layer.bias.grad.tolist() == [20, 20, 20], dtype


def test_sixteen_bit_gradients_are_summed_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many slabs must not be worse than one: the error of a bf16 sum would grow with their number."""
    layer = Linear4bit(64, 2048, bias=False, compute_dtype=torch.bfloat16)
    gradient = torch.randn(8, 2048).bfloat16()
    exact = gradient.double() @ layer.weight.dequantize(torch.bfloat16).double()
    errors = []
    for slab_values in (64 * 2048, 64 * 8):
        monkeypatch.setattr(linear4bit, "SLAB_VALUES", slab_values)
        x = torch.zeros(8, 64, dtype=torch.bfloat16, requires_grad=True)
        layer(x).backward(gradient)
        errors.append(float((x.grad.double() - exact).square().mean().sqrt()))
    assert errors[1] < 2 * errors[0]


def test_nothing_but_packed_weights_is_kept_for_the_backward_pass() -> None:
    saved = []
    layer = Linear4bit(128, 128)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(torch.randn(4, 128, requires_grad=True))
    assert [t for t in saved if t.numel() >= 128 * 128] == []
    assert y.grad_fn is not None
    assert [name for name, _ in layer.named_parameters()] == ["bias"]


def test_frozen_input_and_bias_need_no_graph() -> None:
    layer = Linear4bit(64, 8)
    layer.bias.requires_grad_(False)
    assert not layer(torch.randn(3, 64)).requires_grad
    x = torch.randn(3, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert layer.bias.grad is None


def test_adapters_beside_the_layer_learn_through_it() -> None:
    """Low rank below a frozen layer: the loss falls, and the packed weight stays what it was."""
    down, layer = nn.Linear(64, 64), Linear4bit(64, 16, compute_dtype=torch.float32)
    packed = layer.weight.packed.clone()
    x, target = torch.randn(32, 64), torch.randn(32, 16)
    optimizer = torch.optim.Adam(down.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(layer(down(x)), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert torch.equal(layer.weight.packed, packed)


@pytest.mark.parametrize(("quant_type", "double_quant"), KINDS, ids=KIND_NAMES)
def test_state_dict_round_trips_and_interchanges(quant_type: str, double_quant: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 64), Linear4bit(64, 24, quant_type=quant_type, double_quant=double_quant))
    state_dict = {name: part.clone() for name, part in model.state_dict().items()}
    loaded = nn.Sequential(nn.Linear(8, 64), Linear4bit(64, 24))
    loaded.load_state_dict(state_dict)
    x = torch.randn(5, 8)
    assert torch.equal(loaded(x), model(x))
    assert loaded[1].weight.quant_type == quant_type
    state_dict["1.weight"].zero_()  # loading copied
    assert torch.equal(loaded(x), model(x))

    theirs = their_layer(model[1]).state_dict()
    ours = model[1].state_dict()
    assert set(theirs) == set(ours)
    for name, part in theirs.items():
        assert torch.equal(part, ours[name]), name
    fresh = Linear4bit(64, 24)
    fresh.load_state_dict(theirs)
    assert torch.equal(fresh.weight.dequantize(), model[1].weight.dequantize())


def test_copies_and_pickles_are_the_same_layer() -> None:
    layer = Linear4bit(64, 8)
    x = torch.randn(2, 64)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
        assert twin.weight.packed.data_ptr() != layer.weight.packed.data_ptr()


def test_casts_and_moves_leave_codes_and_scales_alone() -> None:
    layer = Linear4bit(64, 8, double_quant=False, compute_dtype=torch.float32)
    before = layer.weight.dequantize()
    layer.bfloat16()
    assert layer.bias.dtype == torch.bfloat16
    assert layer.weight.absmax.dtype == torch.float32
    assert torch.equal(layer.weight.dequantize(), before)
    assert layer(torch.randn(3, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert layer.to("meta").weight.packed.device.type == "meta"


def test_from_linear_keeps_bias_mode_and_numbers() -> None:
    linear = nn.Linear(64, 8).eval()
    layer = Linear4bit.from_linear(linear, block_size=32, compute_dtype=torch.float32)
    assert layer.bias is linear.bias
    assert not layer.training
    assert torch.equal(layer.weight.packed, nf4.quantize(linear.weight, block_size=32).packed)
    assert float((layer(torch.eye(64)) - linear(torch.eye(64))).detach().abs().max()) < 0.03
    assert layer.num_bytes == layer.weight.num_bytes + 8 * 4
    assert "quant_type=nf4, block_size=32, scales=double" in repr(layer)


def test_no_rows_and_no_batch_dimension_are_possible() -> None:
    layer = Linear4bit(64, 8)
    assert layer(torch.randn(0, 64)).shape == (0, 8)
    assert layer(torch.randn(64)).shape == (8,)
    assert layer(torch.randn(2, 0, 64)).shape == (2, 0, 8)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="in_features and out_features must be positive, got 0 and 3"):
        Linear4bit(0, 3)
    with pytest.raises(TypeError, match=r"compute_dtype must be one of .* got torch.float64"):
        Linear4bit(64, 3, compute_dtype=torch.float64)
    with pytest.raises(ValueError, match="quant_type must be one of"):
        Linear4bit(64, 3, quant_type="int4")
    with pytest.raises(ValueError, match=r"weight must have shape \(out_features, in_features\) = \(3, 64\)"):
        Linear4bit(64, 3, weight=nf4.quantize(torch.randn(64, 3)))
    with pytest.raises(ValueError, match=r"weight must be a matrix"):
        Linear4bit.from_weight(nf4.quantize(torch.randn(64)))
    with pytest.raises(ValueError, match=r"last dimension of x must be in_features = 64, got \(2, 63\)"):
        Linear4bit(64, 3)(torch.randn(2, 63))


def test_state_dicts_that_do_not_fit_are_refused() -> None:
    layer = Linear4bit(64, 8)
    good = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"A weight that is not quantised becomes one by Linear4bit.from_linear"):
        layer.load_state_dict(nn.Linear(64, 8).state_dict())
    with pytest.raises(RuntimeError, match=r"weight has shape \(8, 32\), the layer needs \(8, 64\)"):
        layer.load_state_dict({**good, **to_state_dict(nf4.quantize(torch.randn(8, 32), double_quant=True))})
    with pytest.raises(RuntimeError, match=r"weight.absmax is missing"):
        layer.load_state_dict({name: part for name, part in good.items() if name != "weight.absmax"})
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        layer.load_state_dict({"bias": good["bias"]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*wait"):
        layer.load_state_dict({**good, "wait": torch.ones(1)})
