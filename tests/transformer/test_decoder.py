"""The decoder against its formula, against itself in another way, and against float64."""

import dataclasses
import itertools

import pytest
import torch

from cme295lab.transformer import PRESETS, DecoderLM, ModelConfig
from cme295lab.transformer.layers import RMSNorm, rotate

SMALL = ModelConfig(vocab_size=37, num_layers=2, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=32)
GPT = dataclasses.replace(
    SMALL, num_kv_heads=4, mlp="gelu", norm="layernorm", position="learned", tied_head=True, bias=True
)


def kinds():
    for mlp, norm, position in itertools.product(("swiglu", "gelu"), ("rmsnorm", "layernorm"), ("rope", "learned")):
        yield dataclasses.replace(SMALL, mlp=mlp, norm=norm, position=position, name=f"{mlp}-{norm}-{position}")


def tokens_for(config, batch=2, seq=11):
    return torch.randint(config.vocab_size, (batch, seq))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_on_the_meta_device_are_as_many_as_the_formula_says(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = DecoderLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters
    assert all(parameter.is_meta for parameter in model.parameters())
    in_layers = sum(parameter.numel() for parameter in model.layers[0].parameters())
    assert in_layers == config.parameters_per_layer


@pytest.mark.parametrize("config", [*kinds(), GPT], ids=lambda config: config.name)
@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_logits_never_depend_on_later_tokens(config, attention):
    model, tokens = DecoderLM(config, attention=attention), tokens_for(config)
    before = model(tokens)
    changed = tokens.clone()
    changed[:, 6] = (tokens[:, 6] + 1) % config.vocab_size
    after = model(changed)
    torch.testing.assert_close(after[:, :6], before[:, :6], rtol=0, atol=1e-6)
    assert (after[:, 6:] - before[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-4  # every later position sees it


@pytest.mark.parametrize("config", [SMALL, GPT], ids=["llama", "gpt"])
def test_flash_and_standard_attention_are_the_same_model(config):
    flash, standard = DecoderLM(config).double(), DecoderLM(config, attention="standard").double()
    standard.load_state_dict(flash.state_dict())
    tokens = tokens_for(config, batch=3, seq=17)
    torch.testing.assert_close(standard(tokens), flash(tokens), rtol=0, atol=1e-13)
    for model in (flash, standard):
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
    for (name, ours), (_, theirs) in zip(standard.named_parameters(), flash.named_parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-14, msg=name)


@pytest.mark.parametrize("config", [SMALL, GPT], ids=["llama", "gpt"])
@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_gradients_equal_finite_differences_in_float64(config, attention):
    model = DecoderLM(config, attention=attention).double()
    tokens = tokens_for(config, batch=1, seq=5)
    model.loss(tokens, tokens.roll(-1, 1)).backward()
    step = 1e-5
    for name, parameter in model.named_parameters():
        index = parameter.grad.abs().argmax()  # the element that matters most
        flat = parameter.data.view(-1)
        value = flat[index].item()
        ends = []
        for sign in (1, -1):
            flat[index] = value + sign * step
            ends.append(model.loss(tokens, tokens.roll(-1, 1)).item())
        flat[index] = value
        difference = (ends[0] - ends[1]) / (2 * step)
        assert parameter.grad.view(-1)[index].item() == pytest.approx(difference, rel=1e-5, abs=1e-9), name


def test_rms_norm_is_torchs_with_its_gradients():
    ours = RMSNorm(12, eps=1e-3).double()
    torch.nn.init.normal_(ours.weight)
    x = torch.randn(2, 5, 12, dtype=torch.double, requires_grad=True)
    torch.testing.assert_close(ours(x), torch.nn.functional.rms_norm(x, (12,), ours.weight, 1e-3), rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(ours, (x,))
    assert torch.autograd.gradcheck(lambda weight: torch.func.functional_call(ours, {"weight": weight}, (x,)),
                                    (ours.weight.detach().requires_grad_(),))  # fmt: skip


def test_rms_norm_of_bf16_is_rounded_once():
    norm = RMSNorm(64, eps=1e-5).bfloat16()
    x = torch.randn(7, 64).bfloat16()
    exact = torch.nn.functional.rms_norm(x.double(), (64,), norm.weight.double(), 1e-5)
    torch.testing.assert_close(norm(x), exact.bfloat16())  # half a unit in the last place, and no more


def test_rotations_depend_on_distance_alone():
    model, x = DecoderLM(SMALL), torch.randn(1, 1, 1, 6, dtype=torch.double)
    y = torch.randn_like(x)
    cos, sin, _ = model.positions(32, like=x)
    products = [
        (rotate(x, cos[i, None], sin[i, None]) * rotate(y, cos[j, None], sin[j, None])).sum().item()
        for i, j in ((5, 2), (20, 17), (31, 28))
    ]
    assert products == pytest.approx([products[0]] * 3, abs=1e-12)
    assert rotate(x, cos[0, None], sin[0, None]).equal(x)
    # By hand: head_dim 6 has frequencies 1, θ^(-1/3), θ^(-2/3); element 1 pairs with element 4.
    angle = 5 * 10_000 ** (-1 / 3)
    turned = rotate(x, cos[5, None], sin[5, None]).flatten()
    pair = torch.tensor(angle, dtype=torch.double)
    expected = x.flatten()[1] * pair.cos() - x.flatten()[4] * pair.sin()
    assert turned[1].item() == pytest.approx(expected.item(), abs=1e-12)


def test_loss_is_the_mean_over_targets_that_count():
    model = DecoderLM(SMALL).double()
    tokens = tokens_for(SMALL)
    targets = tokens.roll(-1, 1)
    targets[0, :7] = -100
    log_probabilities = model(tokens).log_softmax(-1)
    wanted = [-log_probabilities[i, j, targets[i, j]] for i in range(2) for j in range(11) if targets[i, j] != -100]
    assert len(wanted) == 15
    assert model.loss(tokens, targets).item() == pytest.approx(torch.stack(wanted).mean().item(), rel=1e-12)


def test_loss_of_a_bf16_model_is_fp32_and_close():
    model = DecoderLM(SMALL)
    tokens = tokens_for(SMALL)
    exact = model.loss(tokens, tokens).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        automatic = model.loss(tokens, tokens)
    automatic.backward()
    loss = model.to(torch.bfloat16).loss(tokens, tokens)
    assert loss.dtype == automatic.dtype == torch.float32
    assert [loss.item(), automatic.item()] == pytest.approx([exact] * 2, abs=0.02)  # bf16: 3 digits


@pytest.mark.parametrize("attention", ["flash", "standard"])
def test_overfits_one_batch(attention):
    model, tokens = DecoderLM(SMALL, attention=attention), tokens_for(SMALL, seq=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    assert first == pytest.approx(torch.tensor(37.0).log().item(), abs=0.3)  # it knows nothing yet
    assert loss.item() < 0.2


def test_dropout_drops_in_training_only_and_never_without_a_word():
    config = dataclasses.replace(SMALL, dropout=0.5)
    model, tokens = DecoderLM(config, attention="standard"), tokens_for(config)
    assert not model(tokens).equal(model(tokens))
    model.eval()
    assert model(tokens).equal(model(tokens))
    flash = DecoderLM(config)
    with pytest.raises(ValueError, match="torch has no such kernel on the CPU"):
        flash(tokens)
    flash.eval()
    assert flash(tokens).isfinite().all()


def test_tied_head_is_one_parameter():
    model = DecoderLM(GPT)
    assert model.head.weight is model.embedding.weight
    assert "head.weight" not in dict(model.named_parameters())
    assert model.to(torch.bfloat16).head.weight is model.embedding.weight


def test_bad_arguments():
    with pytest.raises(ValueError, match="attention must be 'flash' or 'standard'"):
        DecoderLM(SMALL, attention="sparse")
    with pytest.raises(ValueError, match="33 positions, the model has max_seq 32"):
        DecoderLM(SMALL)(tokens_for(SMALL, seq=33))
