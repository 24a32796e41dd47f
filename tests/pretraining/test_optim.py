"""Optimizers: equal to torch's, to a step by hand, and the fast way to the plain one."""

import pytest
import torch
from torch import nn

from cme295lab.pretraining.optim import SGD, Adam, AdamW, decay_groups
from cme295lab.transformer import DecoderLM, ModelConfig

CASES = [
    pytest.param(SGD, torch.optim.SGD, {"lr": 0.1}, id="sgd"),
    pytest.param(SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, id="sgd-momentum"),
    pytest.param(SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, id="sgd-nesterov"),
    pytest.param(SGD, torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.2}, id="sgd-decay"),
    pytest.param(Adam, torch.optim.Adam, {"lr": 0.01}, id="adam"),
    pytest.param(Adam, torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.2, "betas": (0.8, 0.9)}, id="adam-l2"),
    pytest.param(AdamW, torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.2, "betas": (0.9, 0.97)}, id="adamw"),
]


def _model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def _train(model, optimizer, num_steps=100):
    generator = torch.Generator().manual_seed(2)
    for _ in range(num_steps):
        x = torch.randn(4, 5, generator=generator)
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("foreach", [False, True], ids=["plain", "foreach"])
@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_weights_after_100_steps_are_torchs(ours, theirs, options, foreach):
    one, two = _model(), _model()
    found = _train(one, ours(one.named_parameters(), **options, foreach=foreach))
    expected = _train(two, theirs(two.parameters(), **options))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("ours", "theirs", "options"), CASES)
def test_all_at_once_is_one_by_one_bit_for_bit(ours, theirs, options):
    one, two = _model(), _model()
    found = _train(one, ours(one.named_parameters(), **options, foreach=True), 20)
    assert torch.equal(found, _train(two, ours(two.named_parameters(), **options, foreach=False), 20))


def test_adam_by_hand_shows_its_states():
    p = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Adam([("w", p)], lr=0.1, betas=(0.9, 0.99), eps=1e-12)
    for gradient in (2.0, -1.0):
        p.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    state = optimizer.state_of("w")
    m, v = 0.9 * 0.2 - 0.1, 0.99 * 0.04 + 0.01
    assert state["step"] == 2
    assert state["m"].item() == pytest.approx(m, abs=1e-15)
    assert state["v"].item() == pytest.approx(v, abs=1e-15)
    first = 1.0 - 0.1  # m̂ / √v̂ is the sign of the gradient in the first step
    assert p.item() == pytest.approx(first - 0.1 * (m / 0.19) / (v / 0.0199) ** 0.5, abs=1e-10)


def test_decoupled_decay_does_not_depend_on_the_gradient_and_l2_does():
    shrunk = {}
    for kind in (Adam, AdamW):
        for scale in (1.0, 1000.0):
            p = nn.Parameter(torch.tensor([10.0]))
            optimizer = kind([("w", p)], lr=0.01, weight_decay=0.5)
            p.grad = torch.tensor([scale])
            optimizer.step()
            shrunk[kind, scale] = 10 - p.item() - 0.01  # less the step itself, lr × sign
    assert shrunk[AdamW, 1.0] == pytest.approx(0.01 * 0.5 * 10, abs=1e-5)
    assert shrunk[AdamW, 1000.0] == pytest.approx(0.01 * 0.5 * 10, abs=1e-5)
    assert shrunk[Adam, 1000.0] == pytest.approx(0, abs=1e-5)


def test_groups_leave_norms_and_embeddings_alone_and_equal_torch():
    config = ModelConfig(vocab_size=11, num_layers=1, dim=8, num_heads=2, mlp_dim=12, max_seq=8, tied_head=True)
    torch.manual_seed(3)
    ours = DecoderLM(config)
    theirs = DecoderLM(config)
    theirs.load_state_dict(ours.state_dict())
    groups = decay_groups(ours, 0.3)
    assert sorted(name for name, _ in groups[1]["params"]) == [
        "embedding.weight", "layers.0.attention_norm.weight", "layers.0.mlp_norm.weight", "norm.weight",
    ]  # fmt: skip
    assert sum(len(group["params"]) for group in groups) == len(list(ours.parameters()))
    named = dict(theirs.named_parameters())
    torch_groups = [{**group, "params": [named[name] for name, _ in group["params"]]} for group in groups]
    pairs = (ours, AdamW(groups, lr=0.01)), (theirs, torch.optim.AdamW(torch_groups, lr=0.01, betas=(0.9, 0.95)))
    tokens = torch.randint(0, 11, (2, 6))
    for model, optimizer in pairs:
        for _ in range(20):
            optimizer.zero_grad()
            model.loss(tokens, tokens.roll(1, 1)).backward()
            optimizer.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_states_loaded_into_a_new_optimizer_go_on_as_if_nothing_happened():
    one = _model()
    optimizer = AdamW(one.named_parameters(), lr=0.01)
    _train(one, optimizer, 7)
    two = _model()
    two.load_state_dict(one.state_dict())
    other = AdamW(two.named_parameters(), lr=0.01)
    other.load_state_tensors(optimizer.state_tensors())
    assert torch.equal(_train(one, optimizer, 5), _train(two, other, 5))


def test_a_parameter_without_gradient_keeps_its_value_and_step():
    used, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([("used", used), ("idle", idle)], lr=0.1)
    used.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.state_of("idle") == {"step": 0}
    assert idle.tolist() == [1, 1]
    assert used[0] < 0.9


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (SGD, {"lr": -1.0}, "lr must be"),
        (SGD, {"lr": float("nan")}, "lr must be"),
        (SGD, {"lr": 0.1, "momentum": 1.0}, "momentum must be"),
        (SGD, {"lr": 0.1, "nesterov": True}, "needs momentum"),
        (Adam, {"betas": (0.9, 1.0)}, "betas must be"),
        (Adam, {"eps": 0.0}, "eps must be"),
        (AdamW, {"weight_decay": -0.1}, "weight_decay must be"),
    ],
)
def test_values_out_of_range_are_refused(kind, options, said):
    with pytest.raises(ValueError, match=said):
        kind(_model().named_parameters(), **options)


def test_parameters_without_names_twice_or_unknown_are_refused():
    model = _model()
    with pytest.raises(TypeError, match="named_parameters"):
        Adam(model.parameters())
    with pytest.raises(ValueError, match="more than once"):
        Adam([*model.named_parameters(), *model.named_parameters()])
    with pytest.raises(ValueError, match="empty"):
        Adam([])
    with pytest.raises(ValueError, match="no option learning_rate"):
        Adam([{"params": model.named_parameters(), "learning_rate": 1}])
    optimizer = Adam(model.named_parameters())
    with pytest.raises(ValueError, match="no parameter is called 'head'"):
        optimizer.state_of("head")
    with pytest.raises(ValueError, match="belongs to no parameter"):
        optimizer.load_state_tensors({"head/m": torch.ones(1)})
    with pytest.raises(ValueError, match="lacks"):
        optimizer.load_state_tensors({"0.weight/step": torch.tensor(3)})
