"""The exercise on LoRA: right answers of many shapes pass, wrong ones fail with their mistake named."""

import pytest
import torch
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.lora import batches, counting, layers, merging
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

TOPIC = "lora"
HIDDEN = {
    "1": {"seed": 295, "in_features": 9, "out_features": 12, "rank": 5, "alpha": 12.0},
    "2": {"seed": 295, "sizes": (8, 5, 2), "scale": 0.75},
    "3": {"rank": 24, "num_layers": 80},
    "4": {"seed": 295, "num_adapters": 4, "sizes": (5, 8, 2), "length": 3},
}
CELLS = {
    "1": ("layer", "LoRALinear"),
    "2": ("merge", merging.FUNCTIONS),
    "3": ("count", "num_lora_parameters"),
    "4": ("batch", "batched_lora"),
}

FREEZE = "for parameter in base.parameters():\n            parameter.requires_grad_(False)"
MAKE_A = "self.A = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)"
MAKE_B = "self.B = nn.Parameter(torch.zeros(base.out_features, rank))"
DROPOUT = "self.dropout = nn.Dropout(dropout)"
SCALE = "alpha / rank\n"
OUT = "return self.base(x) + self.scale * (self.dropout(x) @ self.A.T @ self.B.T)"
ADD = "with torch.no_grad():\n            layer.base.weight += layer.scale * layer.B @ layer.A"
TAKE = "with torch.no_grad():\n            layer.base.weight -= layer.scale * layer.B @ layer.A"
PRODUCT = "layer.scale * layer.B @ layer.A"
IF_NOT, IF = "if not layer.merged:", "if layer.merged:"
SET, CLEAR = "layer.merged = True", "layer.merged = False"
COUNT = (
    "return num_layers * sum(rank * (out_features + in_features) for out_features, in_features in shapes)"
)
INDEX = "index = adapter.clamp(min=0)"
EACH = "scale = torch.where(adapter < 0, 0.0, scales[index])"
ADDED = "added = x @ A[index].mT @ B[index].mT"
BATCH = "return x @ weight.T + scale[:, None, None] * added"
LOOP = """rows = []
    for example, k in zip(x, adapter.tolist()):
        row = example @ weight.T
        if k >= 0:
            row = row + scales[k] * (example @ A[k].T @ B[k].T)
        rows.append(row)
    return torch.stack(rows)"""
GROUPED = """y = x @ weight.T
    for k in range(len(A)):
        mine = adapter == k
        y[mine] += scales[k] * (x[mine] @ A[k].T @ B[k].T)
    return y"""
SORTED = """order = adapter.argsort(stable=True)
    x, adapter = x[order], adapter[order]
    index = adapter.clamp(min=0)"""

RIGHT = [
    ("1", student("the solution")),
    ("1", student("nn.Linear inside", MAKE_A, "self.A = nn.Linear(base.in_features, rank, bias=False)", MAKE_B,
                  "self.B = nn.Linear(rank, base.out_features, bias=False)\n        nn.init.zeros_(self.B.weight)",
                  OUT, "return self.base(x) + self.scale * self.B(self.A(self.dropout(x)))")),
    ("1", student("transposed", "rank, base.in_features)", "base.in_features, rank)", "base.out_features, rank",
                  "rank, base.out_features", ".A.T @ self.B.T", ".A @ self.B")),
    ("1", student("other names, Kaiming", MAKE_A, "self.lora_down = nn.Parameter(torch.empty(rank, base.in_features))\n"
                  "        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)", OUT, OUT.replace("self.A.T",
                  "self.lora_down.T"))),
    ("1", student("einsum", "(self.dropout(x) @ self.A.T @ self.B.T)",
                  "torch.einsum('...i,ri,or->...o', self.dropout(x), self.A, self.B)")),
    ("1", student("the whole product", "(self.dropout(x) @ self.A.T @ self.B.T)",
                  "nn.functional.linear(self.dropout(x), self.B @ self.A)")),
    ("1", student("scaled A's output", OUT, "return self.base(x) + (self.dropout(x) @ self.A.T) * self.scale "
                  "@ self.B.T")),
    ("1", student("the base's tensors as buffers", "self.base = base\n", "self.register_buffer('W', "
                  "base.weight.detach())\n        self.register_buffer('b', None if base.bias is None else "
                  "base.bias.detach())\n", "self.base(x)", "nn.functional.linear(x, self.W, self.b)")),
    ("1", student("a ParameterDict", MAKE_A, "self.p = nn.ParameterDict({'A': torch.randn(rank, base.in_features)})",
                  "self.A.T", "self.p['A'].T")),
    ("1", student("functional dropout", DROPOUT, "self.p = dropout", "self.dropout(x)",
                  "nn.functional.dropout(x, self.p, self.training)")),
    ("1", student("a mask by hand", DROPOUT, "self.p = dropout", OUT, "z = x\n        if self.training:\n            "
                  "z = x * (torch.rand_like(x) >= self.p) / (1 - self.p)\n        return self.base(x) + self.scale * "
                  "(z @ self.A.T @ self.B.T)")),
    ("2", student("the solution")),
    ("2", student("add_", ADD, "layer.base.weight.data.add_(layer.B.data @ layer.A.data, alpha=layer.scale)")),
    ("2", student("a new frozen parameter", ADD, "layer.base.weight = nn.Parameter((layer.base.weight + "
                  + PRODUCT + ").detach(), requires_grad=False)")),
    ("2", student("copy_", ADD, "with torch.no_grad():\n            layer.base.weight.copy_("
                  "layer.base.weight + " + PRODUCT + ")")),
    ("2", student("keeps a copy", ADD, "layer.kept = layer.base.weight.detach().clone()\n        "
                  "layer.base.weight.data = (layer.base.weight + " + PRODUCT + ").detach()")),
    ("2", student("through the layer", PRODUCT, "layer.scale * torch.einsum('or,ri->oi', layer.B, layer.A)")),
    ("2", student("returns early", IF_NOT, "if layer.merged:\n        return\n    if True:")),
    ("3", student("the solution")),
    ("3", student("a loop", COUNT, "total = 0\n    for o, i in shapes:\n        total += rank * i + o * rank\n    "
                  "return total * num_layers")),
    ("3", student("all sizes together", COUNT, "return num_layers * rank * sum(map(sum, shapes))")),
    ("4", student("the solution")),
    ("4", student("a loop", BATCH, LOOP)),
    ("4", student("by groups", BATCH, GROUPED)),
    ("4", student("einsum", ADDED, "added = torch.einsum('bti,bri,bor->bto', x, A[index], B[index])")),
    ("4", student("merged for each example", BATCH, "W = weight + scale[:, None, None] * (B[index] @ A[index])\n    "
                  "return torch.einsum('bti,boi->bto', x, W)")),
    ("4", student("an adapter of zeros", INDEX, "A = torch.cat((A, torch.zeros_like(A[:1])))\n    index = adapter",
                  EACH, "B = torch.cat((B, torch.zeros_like(B[:1])))\n    scale = torch.cat((scales, torch.zeros(1)))"
                  "[adapter]")),
    ("4", student("one-hot", ADDED, "choice = nn.functional.one_hot(index, len(A)).float()\n    added = torch.einsum("
                  "'bk,bti,kri,kor->bto', choice, x, A, B)")),
    ("4", student("bmm", ADDED, "added = torch.bmm(torch.bmm(x, A[index].mT), B[index].mT)")),
]  # fmt: skip

WRONG = [
    ("1", student("both zero", "torch.randn(rank", "torch.zeros(rank", says="nothing can ever be learned")),
    ("1", student("both random", "torch.zeros(base", "torch.randn(base", says="B must be zero", at_most=0.85)),
    ("1", student("the other way round", "torch.randn(rank", "torch.zeros(rank", "torch.zeros(base",
                  "torch.randn(base", says="the other way round")),
    ("1", student("ones", "torch.randn(rank", "torch.ones(rank", says="random in every number")),
    ("1", student("equal rows", MAKE_A, "self.A = nn.Parameter(torch.randn(1, base.in_features).repeat(rank, 1))",
                  says="depend on each other")),
    ("1", student("never filled", "torch.randn(rank, base.in_features)", "torch.full((rank, base.in_features), "
                  "torch.nan)", says="holds inf or NaN", at_most=0.85)),
    ("1", student("nothing frozen", FREEZE, "", says="the base's weight is trained", at_most=0)),
    ("1", student("the bias", FREEZE, "base.weight.requires_grad_(False)", says="the base's bias is trained",
                  at_most=0)),
    ("1", student("all frozen", FREEZE, "", DROPOUT, DROPOUT + "\n        self.requires_grad_(False)",
                  says="freeze the base's parameters only", at_most=0)),
    ("1", student("plain tensors", MAKE_A, "self.A = torch.randn(rank, base.in_features, requires_grad=True)",
                  MAKE_B, "self.B = torch.zeros(base.out_features, rank, requires_grad=True)", says="is registered",
                  at_most=0)),
    ("1", student("in a list", MAKE_B, "self.parts = [nn.Parameter(torch.zeros(base.out_features, rank))]", "self.B.T",
                  "self.parts[0].T", says="B cannot be found", at_most=0)),
    ("1", student("B is a buffer", MAKE_B, "self.register_buffer('B', torch.zeros(base.out_features, rank))",
                  says="B cannot be found", at_most=0)),
    ("1", student("an inner bias", MAKE_A, "self.A = nn.Linear(base.in_features, rank)", OUT, "return self.base(x) + "
                  "self.scale * (self.A(self.dropout(x)) @ self.B.T)", says="bias=False", at_most=0)),
    ("1", student("swapped shapes", "torch.randn(rank, base.in_features)", "torch.randn(base.out_features, rank)",
                  "torch.zeros(base.out_features, rank)", "torch.zeros(rank, base.in_features)", kind=Kind.CRASHED,
                  at_most=0)),
    ("1", student("no scale", SCALE, "1.0\n", says="the scale is missing", at_most=0.4)),
    ("1", student("upside down", SCALE, "rank / alpha\n", says="upside down", at_most=0.4)),
    ("1", student("alpha", SCALE, "alpha\n", says="alpha alone", at_most=0.4)),
    ("1", student("rsLoRA", SCALE, "alpha / rank**0.5\n", says="rsLoRA", at_most=0.4)),
    ("1", student("whole numbers", SCALE, "alpha // rank\n", says="cut off to a whole number", at_most=0.4)),
    ("1", student("subtracted", "self.base(x) + ", "self.base(x) - ", says="is subtracted", at_most=0.4)),
    ("1", student("no base", "self.base(x) + ", "", says="the base's output is missing", at_most=0.35)),
    ("1", student("no bias", "self.base(x)", "x @ self.base.weight.T", says="the base's bias is missing",
                  at_most=0.35)),
    ("1", student("adapter unused", OUT, "return self.base(x)", says="not used in forward", at_most=0.4)),
    ("1", student("all scaled", OUT, "return self.scale * (self.base(x) + x @ self.A.T @ self.B.T)", at_most=0.4)),
    ("1", student("detached", "@ self.A.T", "@ self.A.detach().T", says="no gradient reaches A")),
    ("1", student("no_grad", OUT, "with torch.no_grad():\n            " + OUT, says="no gradient reaches A")),
    ("1", student("bias assumed", "self.base(x)", "x @ self.base.weight.T + self.base.bias", kind=Kind.CRASHED)),
    ("1", student("no dropout", "self.dropout(x)", "x", says="nothing is dropped in training")),
    ("1", student("all of x", OUT, "x = self.dropout(x)\n        " + OUT.replace("self.dropout(x)", "x"),
                  says="the base's input is dropped")),
    ("1", student("after B", OUT, "return self.base(x) + self.scale * self.dropout(x @ self.A.T @ self.B.T)",
                  says="numbers of the adapter's output are dropped")),
    ("1", student("between", "(self.dropout(x) @ self.A.T @ self.B.T)", "(self.dropout(x @ self.A.T) @ self.B.T)",
                  says="on x, before A")),
    ("1", student("not rescaled", "self.dropout(x)", "(x * (torch.rand_like(x) > 0.5) if self.training and "
                  "self.dropout.p else x)", says="divided by 1 - dropout")),
    ("1", student("always", DROPOUT, "self.p = dropout", "self.dropout(x)", "nn.functional.dropout(x, self.p)",
                  says="dropped in evaluation mode")),
    ("1", student("no module", "(nn.Module)", "", "super().__init__()\n", "", "def forward", "def __call__",
                  kind=Kind.WRONG_SHAPE, says="must be an nn.Module", at_most=0)),
    ("2", student("no scale", PRODUCT, "layer.B @ layer.A", says="without the scale", at_most=0.3)),
    ("2", student("upside down", PRODUCT, "layer.B @ layer.A / layer.scale", says="divided by the scale", at_most=0.3)),
    ("2", student("A and B exchanged", PRODUCT, "layer.scale * layer.A @ layer.B", kind=Kind.CRASHED, at_most=0)),
    ("2", student("transposed", PRODUCT, "layer.scale * (layer.B @ layer.A).T", kind=Kind.CRASHED, at_most=0)),
    ("2", student("subtracted", "weight += ", "weight -= ", says="merging adds it", at_most=0.4)),
    ("2", student("a copy", "layer.base.weight += ", "weight = layer.base.weight.clone()\n            weight += ",
                  says="not a copy", at_most=0.5)),
    ("2", student("replaced", "layer.base.weight += " + PRODUCT, "layer.base.weight.copy_(" + PRODUCT + ")",
                  says="replaces the weight", at_most=0.4)),
    ("2", student("trained", ADD, "layer.base.weight = nn.Parameter((layer.base.weight + " + PRODUCT + ").detach())",
                  says="the merged weight is trained")),
    ("2", student("in the graph", ADD, "layer.base.weight.add_(" + PRODUCT + ")", says="hangs in the graph")),
    ("2", student("assigned in the graph", ADD, "layer.base.weight += " + PRODUCT, kind=Kind.CRASHED, says="non-leaf")),
    ("2", student("with dropout", ADD, ADD.replace("layer.A", "layer.dropout(layer.A)"),
                  says="dropout is in the merged weight", at_most=0.5)),
    ("2", student("merges twice", IF_NOT, "if True:", says="look at layer.merged first")),
    ("2", student("no flag", SET, "pass", says="layer.merged is False")),
    ("2", student("A is cleared", SET, SET + "\n        layer.A.data.zero_()", says="A has changed")),
    ("2", student("A is deleted", SET, SET + "\n        del layer.A", CLEAR, "pass", says="A is gone", at_most=0.75)),
    ("2", student("B is frozen", SET, SET + "\n        layer.B.requires_grad_(False)", says="B is frozen now")),
    ("2", student("added once more", "weight -= ", "weight += ", says="unmerging subtracts it", at_most=0.75)),
    ("2", student("unmerges always", IF, "if True:", says="although it was not in it")),
    ("2", student("never unmerged", TAKE, "pass", says="not a copy", at_most=0.75)),
    ("2", student("unflagged", CLEAR, "pass", says="layer.merged is True")),
    ("3", student("full", "rank * (out_features + in_features)", "out_features * in_features",
                  says="they are frozen", at_most=0)),
    ("3", student("no rank", "rank * (", "(", says="the rank is missing", at_most=0.1)),
    ("3", student("one block", "num_layers * ", "", says="that is one block", at_most=0.3)),
    ("3", student("A alone", "(out_features + in_features)", "in_features", says="only A is counted", at_most=0)),
    ("3", student("B alone", "(out_features + in_features)", "out_features", says="only B is counted", at_most=0)),
    ("3", student("squares", "(out_features + in_features)", "2 * in_features", says="the same size", at_most=0.3)),
    ("3", student("a middle", "rank * (out_features + in_features)", "rank * (out_features + in_features + rank)",
                  says="rank by rank", at_most=0)),
    ("3", student("multiplied", "out_features + in_features", "out_features * in_features", says="are added",
                  at_most=0)),
    ("3", student("first", "in shapes)", "in shapes[:1])", says="only the first matrix", at_most=0.3)),
    ("3", student("text", COUNT, "return '14'", kind=Kind.WRONG_SHAPE, says="return a number", at_most=0)),
    ("4", student("the first one's", INDEX, "adapter = adapter[:1].expand(len(x))\n    " + INDEX,
                  says="the first one's adapter", at_most=0.3)),
    ("4", student("adapter 0", INDEX, "index = torch.zeros_like(adapter)", says="adapter 0", at_most=0.2)),
    ("4", student("from the end", EACH, "scale = scales[adapter]", INDEX, "index = adapter",
                  says="Python counts from the end", at_most=0.7)),
    ("4", student("0 for none", EACH, "scale = scales[index]", says="-1 gets adapter 0", at_most=0.7)),
    ("4", student("all added up", BATCH, "added = sum(s * (x @ a.T @ b.T) for a, b, s in zip(A, B, scales))\n    "
                  "return x @ weight.T + added", says="added up", at_most=0)),
    ("4", student("no scale", EACH, "scale = (adapter >= 0).float()", says="the scale is missing", at_most=0.2)),
    ("4", student("the first one's scale", "scales[index]", "scales[0]", says="the first one's scale", at_most=0.3)),
    ("4", student("A of adapter 0", ADDED, "added = x @ A[0].mT @ B[index].mT", says="A is adapter 0's")),
    ("4", student("no base", "x @ weight.T + ", "", says="the base's output is missing", at_most=0)),
    ("4", student("nothing without adapter", "x @ weight.T + ", "(adapter >= 0)[:, None, None] * (x @ weight.T) + ",
                  says="it gets the base's output", at_most=0.7)),
    ("4", student("by place", INDEX, "index = torch.arange(len(x)) % len(A)", says="by the place in the batch")),
    ("4", student("sorted", INDEX, SORTED, says="put them back into their order")),
    ("4", student("detached", ADDED, ADDED + ".detach()", says="no gradient reaches B", at_most=0.9)),
    ("4", student("no_grad", BATCH, "with torch.no_grad():\n        " + ADDED + "\n    " + BATCH,
                  says="no gradient reaches A and B")),
    ("4", student("one token", INDEX, "x = x[:, -1:]\n    " + INDEX, kind=Kind.WRONG_SHAPE,
                  says="must have the shape", at_most=0)),
]  # fmt: skip


def of(part: str, made: Student):
    cell, names = CELLS[part]
    return handed_in(TOPIC, cell, names, made, nn=nn)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"{TOPIC}/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    result = checks.run(f"{TOPIC}/{part}", of(part, made))
    assert_refused(result, made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"{TOPIC}/{part}", *CELLS[part])


def test_a_class_of_stubs_is_not_attempted() -> None:
    source = "raise NotImplementedError()"
    begun = student("stub", FREEZE, source)
    assert checks.run("lora/1", of("1", begun)).kind is Kind.NOT_ATTEMPTED
    assert checks.run("lora/1", of("1", student("half", OUT, source))).kind is Kind.NOT_ATTEMPTED


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("number", range(len(batches.MISTAKES)))
def test_every_listed_mistake_of_batches_is_found_and_named(number: int, hidden: bool) -> None:
    mistake = batches.MISTAKES[number]

    def batched(**inputs):
        return batches.output_with(mistake, inputs).float()

    result = checks.run(f"{TOPIC}/4", batched, **(HIDDEN["4"] if hidden else {}))
    assert any(outcome.cause == mistake.cause for outcome in result.outcomes), (mistake.cause, result.message)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
def test_every_listed_scale_is_found_and_named(hidden: bool) -> None:
    inputs = HIDDEN["1"] if hidden else {"seed": 0, "in_features": 10, "out_features": 7, "rank": 3, "alpha": 8.0}
    for cause, scale in layers.scales(layers.Setting(**inputs)):
        wrong = student(cause, SCALE, f"{scale}\n")
        message = checks.run("lora/1", of("1", wrong), **inputs).message
        assert cause in message, message


def test_counts_are_the_published_ones() -> None:
    assert counting.question(counting.GPT3, 1, 96).want == 4_718_592
    assert counting.question(counting.GPT3, 8, 96).want == 37_748_736
    assert counting.question(counting.LLAMA2, 16, 32).want == 39_976_960
    assert counting.question(counting.LLAMA2, 64, 32).want == 159_907_840
    assert counting.question(counting.LLAMA31_ATTENTION, 1, 32).want == 851_968


def test_the_pages_examples() -> None:
    setting = layers.Setting(seed=0, in_features=2, out_features=2, rank=1, alpha=4.0)
    x, a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 1.0]]), torch.tensor([[2.0], [0.0]])
    assert layers.product(setting, x, setting.scale, a, b).tolist() == [40.0, 0.0]
    assert counting.question(((3, 4),), 2, 1).want == 14
    weight = torch.tensor([[1.0, 1.0]]) + 2 * torch.tensor([[3.0]]) @ torch.tensor([[1.0, 0.0]])
    assert weight.tolist() == [[7.0, 1.0]]


@pytest.mark.parametrize("merged", [False, True])
def test_the_layer_to_merge_gives_the_same_either_way(merged: bool) -> None:
    case = merging.Case(seed=1, sizes=(5, 8, 2), scale=1.5, begins_merged=merged)
    weight, bias, a, b = case.numbers()
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    found = case.layer().eval()(x)
    want = x.double() @ (weight.double() + 1.5 * b.double() @ a.double()).T + bias.double()
    torch.testing.assert_close(found.double(), want, atol=1e-4, rtol=0)
