"""Mixtures of experts against loops over tokens, cases by hand, published values, and the losses' gradients."""

import dataclasses

import pytest
import torch

from cme295lab.transformer import (
    DecoderLM,
    ModelConfig,
    Routing,
    auxiliary_loss,
    load_balancing_loss,
    record_routing,
    router_z_loss,
)
from cme295lab.transformer.moe import MoeMlp, expert_capacity

CONFIG = ModelConfig(
    vocab_size=31, num_layers=2, dim=12, num_heads=2, mlp_dim=10, max_seq=16, num_experts=5, experts_per_token=2
)


def change(**values):
    return dataclasses.replace(CONFIG, **values)


def make_mixture(config):
    torch.manual_seed(0)
    mixture = MoeMlp(config).double()
    torch.nn.init.normal_(mixture.router.weight)
    return mixture


def routing_of(logits, experts, gates=None, kept=None):
    """A routing by hand."""
    logits, experts = torch.as_tensor(logits, dtype=torch.double), torch.as_tensor(experts)
    even = torch.full(experts.shape, 1 / experts.shape[1], dtype=torch.double)
    return Routing(
        logits=logits, probabilities=logits.softmax(-1), experts=experts, gates=even if gates is None else gates,
        kept=torch.ones_like(experts, dtype=torch.bool) if kept is None else kept,
    )  # fmt: skip


def one_by_one(mixture, x):
    """Token by token and in words: softmax over the k largest logits; an expert that is full gives nothing."""
    config, tokens = mixture.config, x.flatten(0, 1)
    room = expert_capacity(len(tokens), config) if config.capacity_factor else len(tokens)
    order = [sorted(range(config.num_experts), key=lambda e: -mixture.router(token)[e].item()) for token in tokens]
    chosen = [row[: config.experts_per_token] for row in order]
    out, taken = torch.zeros_like(tokens), [0] * config.num_experts
    for choice in range(config.experts_per_token):
        for number, token in enumerate(tokens):
            expert = chosen[number][choice]
            if taken[expert] == room:
                continue
            taken[expert] += 1
            gates = mixture.router(token)[chosen[number]].softmax(0)
            out[number] = out[number] + gates[choice] * mixture.experts[expert](token[None, None])[0, 0]
    return out.view_as(x), taken


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("capacity_factor", [None, 0.5, 1.0, 1.25, 9.0])
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_each_token_passes_its_best_experts_that_have_room(k, capacity_factor, mlp):
    mixture = make_mixture(change(experts_per_token=k, capacity_factor=capacity_factor, mlp=mlp))
    x = torch.randn(3, 7, CONFIG.dim, dtype=torch.double)
    with torch.no_grad():
        expected, taken = one_by_one(mixture, x)
        with record_routing(mixture) as routings:
            torch.testing.assert_close(mixture(x), expected, rtol=0, atol=1e-13)
    assert routings[0].load.tolist() == taken
    assert routings[0].num_dropped == 21 * k - sum(taken)
    torch.testing.assert_close(routings[0].gates.sum(-1), torch.ones(21, dtype=torch.double))


def test_dense_mixture_is_the_weighted_sum_over_all_experts():
    mixture = make_mixture(change(experts_per_token=5))
    x = torch.randn(2, 3, CONFIG.dim, dtype=torch.double)
    gates = mixture.router(x).softmax(-1)
    expected = sum(gates[..., number, None] * expert(x) for number, expert in enumerate(mixture.experts))
    torch.testing.assert_close(mixture(x), expected)


def test_one_expert_is_the_plain_mlp():
    mixture = make_mixture(change(num_experts=1, experts_per_token=1))
    x = torch.randn(2, 3, CONFIG.dim, dtype=torch.double)
    torch.testing.assert_close(mixture(x), mixture.experts[0](x))


def test_experts_that_no_token_chose_compute_nothing():
    mixture, calls = make_mixture(CONFIG), [0] * 5
    for number, expert in enumerate(mixture.experts):
        def count(module, inputs, number=number):
            calls[number] += inputs[0].shape[0]
        expert.register_forward_pre_hook(count)
    with record_routing(mixture) as routings:
        mixture(torch.randn(1, 2, CONFIG.dim, dtype=torch.double))
    assert calls == routings[0].load.tolist()
    assert sum(calls) == 4


def test_dropped_tokens_keep_their_residual_and_no_more():
    mixture = make_mixture(change(capacity_factor=0.2, experts_per_token=1))
    x = torch.randn(1, 10, CONFIG.dim, dtype=torch.double)
    with record_routing(mixture) as routings:
        out = mixture(x)[0]
    kept = routings[0].kept[:, 0]
    assert not kept.all()
    assert out[~kept].eq(0).all()
    assert out[kept].abs().sum(-1).min() > 0


def test_capacity_is_an_even_share_of_all_choices():
    switch = change(num_experts=8, experts_per_token=1, capacity_factor=1.25)
    assert expert_capacity(1024, switch) == 160  # Fedus et al. 2021
    assert expert_capacity(1024, dataclasses.replace(switch, experts_per_token=2)) == 320
    assert expert_capacity(10, change(experts_per_token=1, capacity_factor=1.1)) == 3  # 2.2, rounded up
    assert expert_capacity(500, change(experts_per_token=1, capacity_factor=1.1)) == 110  # and not 111 for 110.00000001
    with pytest.raises(ValueError, match="take all tokens"):
        expert_capacity(10, CONFIG)


def test_first_choices_find_room_before_second_ones_and_earlier_tokens_before_later_ones():
    mixture = make_mixture(change(num_experts=2, experts_per_token=2, capacity_factor=0.5))
    with torch.no_grad():
        mixture.router.weight.zero_()
        mixture.router.weight[0, 0] = 1.0
    x = torch.zeros(1, 4, CONFIG.dim, dtype=torch.double)
    x[0, :, 0] = torch.tensor([-1.0, 1.0, -1.0, -1.0])  # expert 1 first, but for token 1; each has room for 2
    with record_routing(mixture) as routings:
        mixture(x)
    assert routings[0].experts.tolist() == [[1, 0], [0, 1], [1, 0], [1, 0]]
    assert routings[0].kept.tolist() == [[True, True], [True, False], [True, False], [False, False]]


def test_balance_is_1_when_even_and_e_when_all_go_to_one_and_may_be_below_1():
    even = routing_of(torch.zeros(4, 4), [[0], [1], [2], [3]])
    assert load_balancing_loss(even).item() == pytest.approx(1.0)
    collapsed = routing_of([[50.0, 0, 0, 0]] * 4, [[0]] * 4)
    assert load_balancing_loss(collapsed).item() == pytest.approx(4.0)
    # Two tokens go to 0, narrowly; the third hates 0: f = (2/3, 1/3), P_0 = (0.5 + 0.5 + 0) / 3.
    below = routing_of([[0.0, 0], [0, 0], [-50, 0]], [[0], [0], [1]])
    assert load_balancing_loss(below).item() == pytest.approx(2 * (2 / 3 * 1 / 3 + 1 / 3 * 2 / 3))
    assert load_balancing_loss(below).item() < 1


def test_balance_counts_what_was_asked_for_and_as_many_choices_as_told():
    kept = torch.tensor([[True, False], [False, False]])
    routing = routing_of([[2.0, 1, 0], [0, 1, 2]], [[0, 1], [2, 1]], kept=kept)
    mean = torch.tensor([[2.0, 1, 0], [0, 1, 2]]).double().softmax(-1).mean(0)
    first = 3 * (0.5 * mean[0] + 0.5 * mean[2])
    both = 3 * (0.25 * mean[0] + 0.5 * mean[1] + 0.25 * mean[2])
    assert load_balancing_loss(routing).item() == pytest.approx(first.item())
    assert load_balancing_loss(routing, 2).item() == load_balancing_loss(routing, None).item()
    assert load_balancing_loss(routing, None).item() == pytest.approx(both.item())
    assert routing.load.tolist() == [1, 0, 0]
    with pytest.raises(ValueError, match="k must be 1 to 2, the experts of a token, got 3"):
        load_balancing_loss(routing, 3)


def test_gradient_of_balance_goes_through_probabilities_alone():
    logits = torch.randn(6, 4, dtype=torch.double, requires_grad=True)
    routing = routing_of(logits, logits.topk(2, dim=-1).indices)
    (gradient,) = torch.autograd.grad(load_balancing_loss(routing), logits)
    share = torch.bincount(logits.argmax(-1), minlength=4).double() / 6
    by_hand = torch.autograd.grad(4 * (share * logits.softmax(-1).mean(0)).sum(), logits)[0]
    torch.testing.assert_close(gradient, by_hand)
    # dL/dz_te = E/T · p_te (f_e - Σ f p_t)
    p = logits.detach().softmax(-1)
    torch.testing.assert_close(gradient, 4 / 6 * p * (share - (share * p).sum(-1, keepdim=True)))


def test_z_loss_by_hand_and_its_gradient():
    routing = routing_of([[0.0, 0, 0], [1, 1, 1]], [[0], [1]])
    log3 = torch.tensor(3.0).double().log()
    assert router_z_loss(routing).item() == pytest.approx(((log3**2 + (1 + log3) ** 2) / 2).item())
    logits = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: router_z_loss(routing_of(z, z.topk(1).indices)), (logits,))


def test_auxiliary_loss_is_the_mean_over_layers():
    model = DecoderLM(CONFIG).double()
    with record_routing(model) as routings:
        model(torch.randint(CONFIG.vocab_size, (2, 8)))
    assert len(routings) == CONFIG.num_layers
    each = [0.3 * load_balancing_loss(routing, None) + 0.2 * router_z_loss(routing) for routing in routings]
    assert auxiliary_loss(routings, balance=0.3, z=0.2).item() == pytest.approx(sum(each).item() / 2)
    with pytest.raises(ValueError, match="routings is empty"):
        auxiliary_loss([])


def test_balancing_spreads_a_router_that_had_collapsed():
    model = DecoderLM(change(num_layers=1))
    tokens = torch.randint(CONFIG.vocab_size, (8, 16))
    for layer in model.layers:
        with torch.no_grad():  # norms make all tokens alike in their first number, which expert 0 loves
            layer.mlp_norm.weight[0] = 0
            layer.mlp.router.weight.mul_(0.01)
            layer.mlp.router.weight[0] += model.embedding.weight.mean(0) * 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    spread = []
    for _ in range(60):
        with record_routing(model) as routings:
            loss = model.loss(tokens, tokens.roll(-1, 1))
        spread.append(routings[0].load.max().item() / routings[0].load.sum().item())
        optimizer.zero_grad()
        (loss + auxiliary_loss(routings, balance=1.0)).backward()
        optimizer.step()
    assert spread[-1] < min(0.28, spread[0])  # 0.2 is even


def test_gradients_equal_finite_differences():
    mixture = make_mixture(CONFIG)
    x = torch.randn(1, 4, CONFIG.dim, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(mixture, (x,), eps=1e-7, atol=1e-6)
    weight, fixed = mixture.router.weight.detach().requires_grad_(), x.detach()

    def of_router(w):
        return torch.func.functional_call(mixture, {"router.weight": w}, (fixed,))

    assert torch.autograd.gradcheck(of_router, (weight,), eps=1e-7, atol=1e-6)


def test_recording_ends_with_its_block_and_nests():
    model = DecoderLM(CONFIG)
    tokens = torch.randint(CONFIG.vocab_size, (1, 5))
    with record_routing(model) as outer:
        model(tokens)
        with record_routing(model) as inner:
            model(tokens)
        model(tokens)
        with pytest.raises(ValueError, match="17 positions"):
            model(tokens.expand(1, 5).repeat(1, 4)[:, :17])
    model(tokens)
    assert (len(outer), len(inner)) == (4, 2)
    dense = change(num_experts=0, experts_per_token=0)
    with pytest.raises(ValueError, match="no mixture of experts"), record_routing(DecoderLM(dense)):
        pass
    with pytest.raises(ValueError, match="num_experts must be at least 1"):
        MoeMlp(dense)


def test_active_parameters_are_those_that_get_a_gradient_of_one_token():
    model = DecoderLM(CONFIG)
    model(torch.tensor([[3]])).sum().backward()
    touched = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert touched == CONFIG.num_active_parameters
    assert CONFIG.num_parameters - touched == 2 * 3 * 3 * 12 * 10  # layers, idle experts, matrices
