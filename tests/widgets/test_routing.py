"""Where a mixture of experts sends a text: against the layer itself, by hand, and the view that shows it."""

import math
from dataclasses import replace

import pytest
import torch

from cme295lab.transformer import DecoderLM, load_balancing_loss, record_routing
from cme295lab.widgets.routing_explorer import RoutingExplorer
from cme295lab.widgets.routing_figures import busiest_expert_figure
from cme295lab.widgets.routing_scenario import (
    RoutedToken,
    RoutingScenario,
    RoutingText,
    gate_matrix,
    routing_scenario,
)
from tests.widgets.fake_language_model import MIXTURE as CONFIG
from tests.widgets.fake_language_model import fake_mixture, fake_mixtures

TEXT = fake_mixtures()[1]


@pytest.fixture(scope="module")
def model() -> DecoderLM:
    return fake_mixture(0)


def test_a_text_keeps_its_domains_and_letters() -> None:
    assert "".join(TEXT.texts) == "the cat sat onfor i in x."
    assert TEXT.domains == ("english",) * 14 + ("code",) * 11
    assert TEXT.domain_names == ("english", "code")


@pytest.mark.parametrize("layer", [0, 1])
def test_tokens_go_where_the_layer_sends_them(model: DecoderLM, layer: int) -> None:
    found = routing_scenario(model, TEXT, experts_per_token=2, capacity_factor=None, layer=layer)
    with torch.no_grad(), record_routing(model) as routings:
        logits = model(torch.tensor([TEXT.tokens]))
    routing = routings[layer]
    assert [token.experts for token in found.tokens] == [tuple(row) for row in routing.experts.tolist()]
    assert [token.gates for token in found.tokens] == [pytest.approx(row) for row in routing.gates.tolist()]
    assert found.load() == routing.load.tolist()
    assert found.balance_loss == pytest.approx(float(load_balancing_loss(routing)))
    targets = torch.tensor(TEXT.tokens[1:])
    assert found.loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits[0, :-1], targets)))
    assert (found.capacity, found.num_dropped) == (None, 0)


def test_dense_mixture_uses_all_experts_and_costs_all_parameters(model: DecoderLM) -> None:
    found = routing_scenario(model, TEXT, experts_per_token=5, capacity_factor=None)
    assert found.load() == [25] * 5
    assert all(sum(token.gates) == pytest.approx(1) for token in found.tokens)
    assert found.config.num_active_parameters == found.config.num_parameters == CONFIG.num_parameters
    assert CONFIG.num_parameters - CONFIG.num_active_parameters == 2 * 3 * (3 * 16 * 24)  # three idle experts a layer
    assert found.busiest_share == pytest.approx(1 / 5)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25])
def test_nobody_takes_more_than_the_capacity(model: DecoderLM, factor: float) -> None:
    found = routing_scenario(model, TEXT, experts_per_token=2, capacity_factor=factor)
    assert found.capacity == math.ceil(25 * 2 / 5 * factor)
    free = routing_scenario(model, TEXT, experts_per_token=2, capacity_factor=None)
    assert found.load() == [min(wanted, found.capacity) for wanted in free.load()]
    assert found.num_dropped == sum(max(wanted - found.capacity, 0) for wanted in free.load()) > 0
    by_domain = [found.load(domain=domain) for domain in TEXT.domain_names]
    assert [a + b for a, b in zip(*by_domain, strict=True)] == found.load()


def test_gates_and_shares_by_hand() -> None:
    tokens = (
        RoutedToken(text="a", domain="x", experts=(0, 2), gates=(0.75, 0.25), kept=(True, True)),
        RoutedToken(text="b", domain="y", experts=(0, 1), gates=(0.5, 0.5), kept=(False, True)),
        RoutedToken(text="c", domain="y", experts=(0, 1), gates=(0.6, 0.4), kept=(False, True)),
    )
    config = replace(CONFIG, num_experts=3)
    found = RoutingScenario(config=config, layer=0, tokens=tokens, capacity=1, balance_loss=1.0, loss=2.0)
    assert found.load() == [1, 2, 1]
    assert found.load(kept=False) == [2, 0, 0]
    assert found.load(domain="y") == [0, 2, 0]
    assert (found.num_assignments, found.num_dropped, found.busiest_share) == (6, 2, 0.5)
    nan = math.nan
    expected = [[0.75, nan, nan], [nan, 0.5, 0.4], [0.25, nan, nan]]
    assert [[*map(float, row)] for row in gate_matrix(found)] == [pytest.approx(row, nan_ok=True) for row in expected]


def test_the_model_is_left_as_it_was(model: DecoderLM) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    routing_scenario(model, TEXT, experts_per_token=1, capacity_factor=0.5)
    assert model.config == CONFIG
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_view_switches_models_capacity_and_k() -> None:
    explorer = RoutingExplorer(*fake_mixtures())
    assert explorer.controls["coefficient"].value == 0.0
    assert explorer.scenario.busiest_share > 0.35
    wanted = "The most wanted expert gets"
    assert f"{wanted} {explorer.scenario.busiest_share:.0%}" in explorer._text.value
    crosses = explorer.plot.data[1]
    assert len(crosses.x) == explorer.scenario.num_dropped > 0
    explorer.controls["capacity_factor"].value = "none"
    assert len(crosses.x) == 0
    assert explorer.plot.layout.shapes[0].visible is False
    explorer.controls["coefficient"].value = 0.1
    english = next(bar for bar in explorer.plot.data if bar.name == "english")
    assert list(english.x) == explorer.scenario.load(domain="english")
    before = list(english.x)
    explorer.controls["experts_per_token"].value = "all: dense"
    assert list(english.x) == [14] * 5 != before
    assert f"{CONFIG.num_parameters:,}" in explorer._text.value
    assert f"{CONFIG.num_active_parameters:,}" in explorer._text.value
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


def test_bad_input_is_refused(model: DecoderLM) -> None:
    dense = DecoderLM(replace(CONFIG, num_experts=0, experts_per_token=0))
    with pytest.raises(ValueError, match="must be a mixture of experts"):
        routing_scenario(dense, TEXT, experts_per_token=2, capacity_factor=None)
    with pytest.raises(ValueError, match="layer must be 0 to 1, got 2"):
        routing_scenario(model, TEXT, experts_per_token=2, capacity_factor=None, layer=2)
    with pytest.raises(ValueError, match="of one shape, got 0"):
        RoutingExplorer({}, TEXT)
    with pytest.raises(ValueError, match="of one shape, got 2"):
        RoutingExplorer({0.0: model, 0.1: dense}, TEXT)
    with pytest.raises(ValueError, match="capacity_factor must be one of"):
        RoutingExplorer({0.0: model}, TEXT, capacity_factor=3.3)
    with pytest.raises(ValueError, match="equally many"):
        RoutingText(tokens=(1, 2), texts=("a",), domains=("x", "x"))
    with pytest.raises(ValueError, match="at most 5 domains"):
        RoutingExplorer({0.0: model}, RoutingText(tokens=(1,) * 6, texts=("a",) * 6, domains=tuple("abcdef")))


def test_curves_of_training_say_how_they_end() -> None:
    picture = busiest_expert_figure({0.0: [0.2, 0.5], 0.01: [0.2, 0.15]}, num_experts=8)
    assert "0: 50%; 0.01: 15%" in picture.alt_text
    assert len(picture.png()) < 100_000
    with pytest.raises(ValueError, match="1 to 5 curves"):
        busiest_expert_figure({}, num_experts=8)
