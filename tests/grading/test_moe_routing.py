"""The exercise on mixtures of experts: right answers of many shapes pass, wrong ones fail with their mistake named."""

import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.moe_routing import balance, dispatch, gates
from cme295lab.grading.result import Kind
from cme295lab.transformer import ModelConfig, Routing, load_balancing_loss, router_z_loss
from cme295lab.transformer.moe import MoeMlp
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

HIDDEN = {
    "1": {"seed": 295, "tokens": 14, "experts": 9, "k": 4},
    "2": {"seed": 295, "tokens": 23, "dim": 5, "experts": 5, "k": 3, "capacity_factor": 0.7},
    "3": {"seed": 295, "tokens": 17, "experts": 7, "k": 3},
}
CELLS = {"1": ("route", "route"), "2": ("mixture", "mixture"), "3": ("auxiliary_loss", "auxiliary_loss")}

ROUTED = "return best.softmax(dim=-1), experts"
CAPACITY = "math.ceil(capacity_factor * num_tokens * k / len(experts))"
QUEUE = "choices, tokens = torch.where(chosen.t() == number)"
ROOM = "choices, tokens = choices[:capacity], tokens[:capacity]"
ADD = "y.index_add_(0, tokens, gates[tokens, choices, None] * expert(x[tokens]))"
GATE = "gates[tokens, choices, None] * "
SHARE = "torch.bincount(chosen.flatten(), minlength=num_experts) / chosen.numel()"
MEAN = "logits.softmax(dim=-1).mean(dim=0)"
Z = "logits.logsumexp(dim=-1).square().mean()"

RIGHT = [
    ("1", student("the solution")),
    ("1", student("renormalised probabilities", "logits.topk", "logits.softmax(-1).topk",
                  ROUTED, "return best / best.sum(-1, keepdim=True), experts")),
    ("1", student("the worst of the chosen first", ROUTED, "return best.softmax(-1).flip(-1), experts.flip(-1)")),
    ("1", student("by sorting, as 32-bit numbers", "logits.topk(k, dim=-1)",
                  "(part[:, :k] for part in logits.sort(-1, descending=True))", "), experts", "), experts.int()")),
    ("2", student("the solution")),
    ("2", student("token by token through a mask", QUEUE, "mask = (chosen == number).T.nonzero()\n"
                  "        choices, tokens = mask[:, 0], mask[:, 1]")),
    ("2", student("through a table of gates", ADD, "table = torch.zeros(num_tokens, dtype=x.dtype)\n"
                  "            table[tokens] = gates[tokens, choices]\n            rows = tokens.sort().values\n"
                  "            y[rows] = y[rows] + table[rows, None] * expert(x[rows])")),
    ("2", student("empty calls", "if len(tokens):", "if True:")),
    ("3", student("the solution")),
    ("3", student("with one-hot rows", SHARE, "torch.nn.functional.one_hot(chosen, num_experts).float().mean((0, 1))")),
    ("3", student("by hand", Z, "(logits.exp().sum(-1).log() ** 2).mean() if logits.max() < 50 else torch.tensor(0.)",
                  MEAN, "(logits - logits.logsumexp(-1, keepdim=True)).exp().sum(0) / len(logits)")),
    ("3", student("per token", "balance * num_experts * (f * P).sum()",
                  "balance * num_experts * (logits.softmax(-1) @ f).mean()")),
]  # fmt: skip

WRONG = [
    ("1", student("not renormalised", ROUTED, "return logits.softmax(-1).gather(-1, experts), experts",
                  says="was not renormalised", at_most=0.5)),
    ("1", student("softmax twice", "logits.topk", "logits.softmax(-1).topk", says="softmax was taken twice")),
    ("1", student("logits as gates", ROUTED, "return best, experts", says="the gates are the logits themselves")),
    ("1", student("an average", ROUTED, "return torch.full_like(best, 1 / k), experts", says="all gates are 1 / k")),
    ("1", student("the worst", "topk(k, dim=-1)", "topk(k, dim=-1, largest=False)", says="smallest logits are chosen")),
    ("1", student("over tokens", "best.softmax(dim=-1)", "best.softmax(dim=0)", says="softmax runs over the tokens")),
    ("1", student("out of order", ROUTED, "return best.softmax(-1), experts.flip(-1)", says="in the same order")),
    ("1", student("swapped", ROUTED, "return experts, best.softmax(-1)", kind=Kind.WRONG_SHAPE, says="swapped?")),
    ("1", student("one expert for all", "experts = logits.topk(k, dim=-1)",
                  "experts = logits.topk(k, dim=-1)\n    experts = experts[:, :1].expand_as(experts)",
                  says="chosen twice by the same token")),
    ("1", student("all gates", ROUTED, "return logits.softmax(-1), experts", kind=Kind.WRONG_SHAPE,
                  says="gates must have the shape (tokens, k)")),
    ("1", student("exp without a maximum", ROUTED, "e = best.exp()\n    return e / e.sum(-1, keepdim=True), experts",
                  says="logits around 1000 do not overflow", at_most=0.9)),
    ("2", student("no capacity", ROOM, "", says="nothing is dropped")),
    ("2", student("without k", "* num_tokens * k /", "* num_tokens /", says="the capacity ignores k")),
    ("2", student("rounded down", CAPACITY, CAPACITY.replace("math.ceil", "int"), says="rounded down")),
    ("2", student("not divided", " / len(experts))", ")", says="a share of all choices")),
    ("2", student("token by token", QUEUE, "tokens, choices = torch.where(chosen == number)",
                  says="the queue goes token by token")),
    ("2", student("the last ones", ROOM, "choices, tokens = choices.view(-1), tokens.view(-1)\n"
                  "        order = (choices * num_tokens - tokens).argsort()[:capacity]\n"
                  "        choices, tokens = choices[order], tokens[order]", says="the last tokens found room")),
    ("2", student("the largest gates", ROOM, "order = gates[tokens, choices].argsort(descending=True)[:capacity]\n"
                  "        choices, tokens = choices[order], tokens[order]", says="the largest gates found room")),
    ("2", student("no gates", GATE, "", says="the gates are ignored")),
    ("2", student("averaged", GATE, "1 / k * ", says="what comes back is averaged")),
    ("2", student("renormalised", "    return y", "    kept = torch.zeros_like(gates)\n"
                  "    for number in range(len(experts)):\n"
                  "        c, t = torch.where(chosen.T == number)\n        kept[t[:capacity], c[:capacity]] = 1\n"
                  "    return y / (gates * kept).sum(-1, keepdim=True).clamp(min=1e-9)",
                  says="gates are renormalised after dropping")),
    ("2", student("everything everywhere", "expert(x[tokens])", "expert(x)[tokens]", kind=Kind.WRONG_ROUTE,
                  says="computes tokens that were not sent to it", at_most=0.8)),
    ("2", student("one by one", "expert(x[tokens])", "torch.cat([expert(x[t : t + 1]) for t in tokens])",
                  kind=Kind.WRONG_ROUTE, says="an expert is called several times", at_most=0.8)),
    ("2", student("overwritten", "y.index_add_(0, tokens, ", "y.index_copy_(0, tokens, ", says="the largest error")),
    ("2", student("in place", "y = torch.zeros_like(x)", "y = x.zero_()", says="changes its input x")),
    ("3", student("no factor", "num_experts * (f", "(f", says="the factor E is missing")),
    ("3", student("first choices", SHARE, "torch.bincount(chosen[:, 0], minlength=num_experts) / len(chosen)",
                  says="f counts first choices alone")),
    ("3", student("sums to k", "chosen.numel()", "len(chosen)", says="f does not sum to 1")),
    ("3", student("counts", " / chosen.numel()", "", says="f is a count")),
    ("3", student("probabilities twice", SHARE, MEAN, says="both factors are the mean probability")),
    ("3", student("logits", MEAN, "logits.mean(dim=0)", says="P is the mean of logits")),
    ("3", student("chosen alone", MEAN,
                  "(logits.softmax(-1) * torch.zeros_like(logits).scatter(1, chosen, 1.)).mean(0)",
                  says="P counts only the probabilities of chosen experts")),
    ("3", student("detached", MEAN, MEAN + ".detach()", says="no gradient reaches the logits", at_most=0.8)),
    ("3", student("through the counts", SHARE, SHARE + "\n    q = logits.softmax(-1).mean(0)\n"
                  "    f = f + q - q.detach()", says="the gradient goes through f as well", at_most=0.8)),
    ("3", student("no square", ".square().mean()", ".mean()", says="the z loss lacks its square")),
    ("3", student("square last", ".square().mean()", ".mean().square()", says="the z loss squares the mean")),
    ("3", student("a sum", ".square().mean()", ".square().sum()", says="the z loss sums over tokens")),
    ("3", student("a z loss of probabilities", Z, "logits.softmax(-1).logsumexp(-1).square().mean()",
                  says="the z loss is of probabilities")),
    ("3", student("a vector", "balance * num_experts * (f * P).sum()", "balance * num_experts * (f * P)",
                  kind=Kind.WRONG_SHAPE, says="must have the shape ()")),
]  # fmt: skip


def of(part: str, made: Student):
    return handed_in("moe_routing", *CELLS[part], made)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"moe_routing/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    result = checks.run(f"moe_routing/{part}", of(part, made))
    assert_refused(result, made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"moe_routing/{part}", *CELLS[part])


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
def test_every_listed_mistake_is_found_and_named(hidden: bool) -> None:
    """In the visible check and in the hidden one: a cause that fits nothing could never be named."""
    for cause, option in gates.MISTAKES.items():

        def choose(logits: torch.Tensor, k: int, option: str = option) -> tuple[torch.Tensor, torch.Tensor]:
            experts = logits.topk(k, largest=option != "smallest").indices
            return gates.gate_table(logits, k, option).gather(-1, experts).float(), experts

        result = checks.run("moe_routing/1", choose, **(HIDDEN["1"] if hidden else {}))
        assert cause in result.message, result.message
    for mistake in dispatch.MISTAKES:
        arguments = HIDDEN["2"] if hidden else {}
        result = checks.run("moe_routing/2", dispatch_student(mistake), **arguments)
        assert mistake.cause in result.message, (mistake, result.message)
    for mistake in (*balance.BALANCE_MISTAKES, *balance.Z_MISTAKES):
        result = checks.run("moe_routing/3", balance.student_of(mistake), **(HIDDEN["3"] if hidden else {}))
        assert mistake.cause in result.message, (mistake, result.message)


def dispatch_student(mistake: dispatch.Mistake):
    """A student who makes the mistake, with experts that count rows."""

    def mixture(x, gates, chosen, experts, capacity_factor):
        weights = torch.stack([expert._weight for expert in experts])
        case = dispatch.Case(
            x=x, gates=gates, chosen=chosen, weights=weights, capacity_factor=capacity_factor, where=""
        )  # fmt: skip
        return case.result(mistake).float()

    return mixture


def test_the_right_answers_are_the_librarys() -> None:
    for k, factor in ((1, 0.6), (2, 0.8), (3, 5.0)):
        config = ModelConfig(
            vocab_size=9, num_layers=1, dim=6, num_heads=1, mlp_dim=5, max_seq=8, num_experts=4, experts_per_token=k,
            capacity_factor=factor,
        )  # fmt: skip
        layer = MoeMlp(config).double()
        torch.nn.init.normal_(layer.router.weight)
        case = dispatch.make_case(3, 13, 6, 4, k, factor)
        layer.experts = torch.nn.ModuleList(Tanh(weight) for weight in case.weights.double())
        x = case.x.double()
        routing = layer.route(x)
        table = torch.zeros(13, 4, dtype=torch.double).scatter(1, routing.experts, routing.gates)
        torch.testing.assert_close(gates.gate_table(routing.logits, k), table)
        ours = dispatch.Case(**(vars(case) | {"x": x, "gates": routing.gates, "chosen": routing.experts}))
        assert ours.kept(dispatch.Mistake()).equal(routing.kept)
        torch.testing.assert_close(ours.result(), layer(x[None])[0])
        arguments = (routing.logits, routing.experts)
        loss = balance.loss_with(balance.Mistake(), *arguments, 1.0, 0.0)
        torch.testing.assert_close(loss, load_balancing_loss(routing, None))
        torch.testing.assert_close(balance.loss_with(balance.Mistake(), *arguments, 0.0, 1.0), router_z_loss(routing))
        assert isinstance(routing, Routing)


class Tanh(torch.nn.Module):
    """The check's expert as a module."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return dispatch.expert_output(rows, self.weight)


def test_the_page_says_what_the_example_gives() -> None:
    table = gates.gate_table(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), 2)
    assert table[0].tolist() == pytest.approx([0.731, 0.269, 0, 0], abs=5e-4)
    case = dispatch.make_case(0, 3, 2, 2, 2, 2 / 3)
    case = dispatch.Case(**(vars(case) | {"chosen": torch.tensor([[1, 0], [0, 1], [1, 0]])}))
    assert case.capacity() == 2
    assert case.kept(dispatch.Mistake()).tolist() == [[True, True], [True, False], [True, False]]
