"""The exercise on prefix tuning: right answers of many shapes pass, wrong ones fail with their mistake named."""

import pytest
import torch
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.prefix_tuning import attending, attention, counts, encoder
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

TOPIC = "prefix_tuning"
HIDDEN = {
    "1": {"seed": 295, "heads": 2, "tokens": 5, "dim": 6, "length": 3},
    "2": {"length": 100, "bottleneck": 8},
    "3": {"seed": 295, "num_layers": 2, "num_heads": 3, "head_dim": 4, "length": 6},
}
CELLS = {
    "1": ("attention", attending.FUNCTIONS),
    "2": ("counts", counts.FUNCTIONS),
    "3": ("encoder", encoder.FUNCTIONS),
}

KEYS = "keys = torch.cat((prefix_k.expand(batch, -1, -1, -1), k), dim=2)"
VALUES = "values = torch.cat((prefix_v.expand(batch, -1, -1, -1), v), dim=2)"
VISIBLE = "visible = torch.ones(tokens, length + tokens, dtype=torch.bool).tril(length)"
SCORES = "scores = q @ keys.transpose(2, 3) / dim**0.5"
OUT = "return scores.masked_fill(~visible, -torch.inf).softmax(dim=-1) @ values"
SEPARATE = """scores = scores.masked_fill(~visible, -torch.inf)
    of_prefix = scores[..., :length].softmax(-1) @ values[:, :, :length]
    of_tokens = scores[..., length:].softmax(-1) @ values[:, :, length:]
    return """
MERGED = """scores = scores.masked_fill(~visible, -torch.inf)
    total = scores.logsumexp(-1, keepdim=True)
    sizes = [length, tokens]
    parts = [(s - total).exp() @ w for s, w in zip(scores.split(sizes, -1), values.split(sizes, 2))]
    return parts[0] + parts[1]"""
LOOP = """rows = []
    for i in range(tokens):
        seen = torch.cat((keys[:, :, :length], keys[:, :, length : length + i + 1]), 2)
        weights = (q[:, :, i : i + 1] @ seen.mT / dim**0.5).softmax(-1)
        rows.append(weights @ values[:, :, : length + i + 1])
    return torch.cat(rows, 2)"""
SDPA = "return torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=visible)"
POSITIONS = "return torch.arange(num_tokens) + (prefix_length if shifted else 0)"
QUERIES = "q = torch.cat((prefix_k.expand(batch, -1, -1, -1), q), dim=2)\n    "
SQUARE = "visible = torch.ones(length + tokens, length + tokens, dtype=torch.bool).tril()"

PREFIX = "2 * num_layers * length * num_kv_heads * head_dim"
PROMPT = "return length * dim\n"
ADAPTERS = "2 * num_layers * (2 * dim * bottleneck + dim + bottleneck)"
TRAINING = "length * dim + (dim + 1) * hidden + (hidden + 1) * 2 * num_layers * dim"

MADE = "rows.view(len(rows), num_layers, 2, num_heads, -1).permute(1, 2, 3, 0, 4)"
KEPT = "make_prefix(embeddings, mlp, num_layers, num_heads).detach().clone()"
FREEZE = "base.requires_grad_(False)"
GIVEN = "return [embeddings, *mlp.parameters()]"

RIGHT = [
    *((part, student("the solution")) for part in CELLS),
    ("1", student("torch's attention", OUT, SDPA)),
    ("1", student("a loop", OUT, LOOP)),
    ("1", student("two parts of one softmax", OUT, MERGED)),
    ("1", student("queries, cut off", SCORES, QUERIES + SQUARE + "\n    " + SCORES, "@ values", "@ values[:, :, :]",
                  OUT.replace("@ values", "@ values[:, :, :]"), "return (scores.masked_fill(~visible, -torch.inf)"
                  ".softmax(dim=-1) @ values)[:, :, length:]")),
    ("1", student("the prefix behind", "(prefix_k.expand(batch, -1, -1, -1), k)",
                  "(k, prefix_k.expand(batch, -1, -1, -1))", "(prefix_v.expand(batch, -1, -1, -1), v)",
                  "(v, prefix_v.expand(batch, -1, -1, -1))", VISIBLE, "visible = torch.cat((torch.ones(tokens, tokens)"
                  ".tril(), torch.ones(tokens, length)), 1).bool()")),
    ("1", student("a mask that is added", OUT, "bias = torch.zeros(tokens, length + tokens).masked_fill(~visible, "
                  "-torch.inf)\n    return torch.softmax(scores + bias, -1) @ values")),
    ("1", student("repeated", "prefix_k.expand(batch, -1, -1, -1)", "prefix_k[None].repeat(batch, 1, 1, 1)")),
    ("1", student("a list of positions", POSITIONS, "first = prefix_length if shifted else 0\n    return "
                  "list(range(first, first + num_tokens))")),
    ("2", student("by shapes", ADAPTERS, "num_layers * 2 * (dim * bottleneck + bottleneck + bottleneck * dim + dim)",
                  TRAINING, "length * dim + sum((rows + 1) * columns for rows, columns in ((dim, hidden), (hidden, "
                  "2 * num_layers * dim)))")),
    ("3", student("position by position", MADE, "torch.stack([row.view(num_layers, 2, num_heads, -1) for row in "
                  "rows], 3)")),
    ("3", student("chunks", MADE, "torch.stack([torch.stack([half.view(len(rows), num_heads, -1).transpose(0, 1) for "
                  "half in layer.chunk(2, 1)]) for layer in rows.chunk(num_layers, 1)])")),
    ("3", student("reshape", "rows.view(", "rows.reshape(", "-1).permute(1, 2, 3, 0, 4)",
                  "rows.shape[1] // (2 * num_layers * num_heads)).permute(1, 2, 3, 0, 4).contiguous()")),
    ("3", student("without gradients", "return " + KEPT, "with torch.no_grad():\n        return make_prefix("
                  "embeddings, mlp, num_layers, num_heads)")),
    ("3", student("a parameter is kept", KEPT, "nn.Parameter(" + KEPT + ")")),
    ("3", student("one by one", FREEZE, "for parameter in base.parameters():\n        parameter.requires_grad = "
                  "False")),
    ("3", student("groups", GIVEN, 'return [{"params": [embeddings]}, {"params": mlp.parameters()}]')),
    ("3", student("by name", GIVEN, 'return [p for m in (base, mlp) for p in m.parameters() if p.requires_grad] + '
                  "[embeddings]")),
]  # fmt: skip

WRONG = [
    ("1", student("causal from the first key", ".tril(length)", ".tril()", says="aligned with its first key")),
    ("1", student("prefix behind, causal", "(prefix_k.expand(batch, -1, -1, -1), k)",
                  "(k, prefix_k.expand(batch, -1, -1, -1))", "(prefix_v.expand(batch, -1, -1, -1), v)",
                  "(v, prefix_v.expand(batch, -1, -1, -1))", ".tril(length)", ".tril()",
                  says="the prefix is not used")),
    ("1", student("is_causal", OUT, "return torch.nn.functional.scaled_dot_product_attention(q, keys, values, "
                  "is_causal=True)", says="the prefix is masked by causality")),
    ("1", student("both causal", VISIBLE, "visible = torch.cat((torch.ones(tokens, length).tril(), torch.ones(tokens, "
                  "tokens).tril()), 1).bool()", says="sees only a part of it")),
    ("1", student("not itself", ".tril(length)", ".tril(length - 1)", says="does not see itself")),
    ("1", student("no mask", ".tril(length)", "", says="tokens see later tokens")),
    ("1", student("no prefix", OUT, "return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)",
                  says="the prefix is not used")),
    ("1", student("shared keys", "prefix_v.expand", "prefix_k.expand", says="share a prefix, that of the keys")),
    ("1", student("shared values", "prefix_k.expand", "prefix_v.expand", says="share a prefix, that of the values")),
    ("1", student("exchanged", KEYS, KEYS.replace("prefix_k", "SPARE"), VALUES, VALUES.replace("prefix_v", "prefix_k"),
                  "SPARE", "prefix_v", says="are exchanged")),
    ("1", student("values without", "prefix_v.expand(batch, -1, -1, -1)", "torch.zeros_like(prefix_v)"
                  ".expand(batch, -1, -1, -1)", says="the values have no prefix")),
    ("1", student("values without, cut", VALUES, "values = v", "softmax(dim=-1) @", "softmax(dim=-1)[..., length:] @",
                  says="the values have no prefix")),
    ("1", student("keys without", KEYS, "keys = torch.nn.functional.pad(k, (0, 0, length, 0))",
                  says="the keys have no prefix")),
    ("1", student("one head", "prefix_k.expand(batch, -1, -1, -1)", "prefix_k[:1].expand(batch, k.shape[1], -1, -1)",
                  "prefix_v.expand(batch, -1, -1, -1)", "prefix_v[:1].expand(batch, k.shape[1], -1, -1)",
                  says="the prefix of the first one")),
    ("1", student("two softmaxes", OUT, SEPARATE + "of_prefix + of_tokens",
                  says="another over the prefix: one")),
    ("1", student("two softmaxes, averaged", OUT, SEPARATE + "(of_prefix + of_tokens) / 2", says="averaged")),
    ("1", student("no root", " / dim**0.5", "", says="not divided by the root")),
    ("1", student("dim", " / dim**0.5", " / dim", says="divided by dim: by its root")),
    ("1", student("all heads", " / dim**0.5", " / (dim * q.shape[1])**0.5", says="by that of one head")),
    ("1", student("softmax over queries", "softmax(dim=-1)", "softmax(dim=-2)", says="the softmax runs over queries")),
    ("1", student("queries added", SCORES, QUERIES + SQUARE + "\n    " + SCORES, kind=Kind.WRONG_SHAPE,
                  says="it has keys and values, but no queries")),
    ("1", student("the prefix's rows", SCORES, QUERIES + SQUARE + "\n    " + SCORES, OUT,
                  OUT.replace("return ", "return (") + ")[:, :, :tokens]", says="the first rows are those of the")),
    ("1", student("no batch", "prefix_k.expand(batch, -1, -1, -1)", "prefix_k", kind=Kind.CRASHED)),
    ("1", student("no maximum", OUT, "e = scores.exp() * visible\n    return e / e.sum(-1, keepdim=True) @ values",
                  says="exp overflow", at_most=0.95)),
    ("1", student("detached", KEYS, KEYS.replace("prefix_k", "prefix_k.detach()"), says="prefix_k gets no gradient")),
    ("1", student("base detached", KEYS, "k, v = k.detach(), v.detach()\n    " + KEYS, says="k gets no gradient")),
    ("1", student("no gradients", OUT, "with torch.no_grad():\n        " + OUT, says="prefix_k gets no gradient")),
    ("1", student("never shifted", POSITIONS, "return torch.arange(num_tokens)", says="the tokens are not shifted")),
    ("1", student("always shifted", "(prefix_length if shifted else 0)", "prefix_length",
                  says="here the prefix takes no positions")),
    ("1", student("the other way round", "if shifted", "if not shifted", says="the tokens are not shifted")),
    ("1", student("from 1", "(prefix_length if", "(prefix_length + 1 if", says="positions count from 0: the prefix")),
    ("1", student("to the left", "prefix_length if", "-prefix_length if", says="to the left")),
    ("1", student("the prefix's, too", POSITIONS, "return torch.arange(num_tokens + (prefix_length if shifted else 0))",
                  kind=Kind.WRONG_SHAPE, says="positions for the prefix, too")),
    ("2", student("no factor 2", PREFIX, PREFIX.removeprefix("2 * "), says="the factor 2 is missing")),
    ("2", student("query heads", PREFIX, PREFIX.replace("num_kv_heads", "num_heads"), says="query heads are counted",
                  at_most=0.9)),
    ("2", student("one head", PREFIX, PREFIX.replace(" * num_kv_heads", ""), says="that is one head")),
    ("2", student("three", PREFIX, "3" + PREFIX[1:], says="no queries")),
    ("2", student("queries, too", PREFIX, "num_layers * length * head_dim * (num_heads + 2 * num_kv_heads)",
                  says="a prefix has keys and values")),
    ("2", student("one layer", PREFIX, PREFIX.replace("num_layers * ", ""), says="that is one layer")),
    ("2", student("no length", PREFIX, PREFIX.replace("length * ", ""), says="for one position")),
    ("2", student("a prompt of keys and values", PROMPT, "return 2 * length * dim\n", says="there is no factor 2")),
    ("2", student("one adapter", ADAPTERS, ADAPTERS.removeprefix("2 * "), says="two adapters in each layer")),
    ("2", student("no biases", " + dim + bottleneck", "", says="the biases are missing")),
    ("2", student("no bias up", "+ dim + bottleneck", "+ bottleneck", says="the bias of the way up")),
    ("2", student("no bias down", "+ dim + bottleneck", "+ dim", says="the bias of the way down")),
    ("2", student("one matrix", "(2 * dim * bottleneck", "(dim * bottleneck", says="two matrices, down and up")),
    ("2", student("adapters of one layer", ADAPTERS, ADAPTERS.replace("num_layers * ", ""), says="that is one layer")),
    ("2", student("the prefix", TRAINING, "2 * num_layers * length * dim", says="that is the prefix that the MLP")),
    ("2", student("no embeddings", TRAINING, TRAINING.removeprefix("length * dim + "), says="embeddings are missing")),
    ("2", student("no biases of the MLP", "(dim + 1) * hidden + (hidden + 1)", "dim * hidden + hidden",
                  says="the biases are missing")),
    ("2", student("keys alone", "(hidden + 1) * 2 *", "(hidden + 1) *", says="the MLP makes keys and values")),
    ("2", student("an MLP for one layer", TRAINING, "length * dim + (dim + 1) * hidden + (hidden + 1) * 2 * dim",
                  says="the MLP makes all layers")),
    ("2", student("prefix and MLP", TRAINING, TRAINING + " + 2 * num_layers * length * dim",
                  says="the prefix is counted as well")),
    ("3", student("reshaped at once", MADE, "rows.view(num_layers, 2, num_heads, len(rows), -1)",
                  says="the numbers are reshaped at once")),
    ("3", student("values first", MADE, MADE + ".flip(1)", says="values come before keys")),
    ("3", student("all keys first", "num_layers, 2, num_heads, -1).permute(1, 2,",
                  "2, num_layers, num_heads, -1).permute(2, 1,", says="all keys are taken to come before")),
    ("3", student("heads interleaved", "num_heads, -1).permute(1, 2, 3, 0, 4)", "rows.shape[1] // (2 * num_layers * "
                  "num_heads), num_heads).permute(1, 2, 4, 0, 3)", says="heads are taken to be interleaved")),
    ("3", student("shared", MADE, MADE + "[:, :1].expand(-1, 2, -1, -1, -1)", says="share a prefix")),
    ("3", student("the first layer's", MADE, MADE + "[:1].expand(num_layers, -1, -1, -1, -1)",
                  says="the prefix of the first: each has its own")),
    ("3", student("positions first", "(1, 2, 3, 0, 4)", "(1, 2, 0, 3, 4)", kind=Kind.WRONG_SHAPE,
                  says="heads come before positions")),
    ("3", student("rows", MADE, "rows", kind=Kind.WRONG_SHAPE, says="the shape (3, 2, 2, 4, 5)")),
    ("3", student("detached in training", "rows = mlp(embeddings)", "rows = mlp(embeddings).detach()",
                  says="get no gradient")),
    ("3", student("embeddings detached", "mlp(embeddings)", "mlp(embeddings.detach())", says="embeddings get no grad")),
    ("3", student("the MLP hangs on it", ".detach().clone()", "", kind=Kind.TOO_MUCH_MEMORY, says="the MLP is kept",
                  at_most=0.85)),
    ("3", student("only cloned", ".detach().clone()", ".clone()", kind=Kind.TOO_MUCH_MEMORY, says="the MLP is kept",
                  at_most=0.85)),
    ("3", student("more than the prefix", KEPT, "torch.cat([" + KEPT + ".flatten(), *(p.detach().flatten() for p in "
                  "mlp.parameters())])[: 2 * len(embeddings) * num_layers * embeddings.shape[1]].view("
                  "num_layers, 2, num_heads, len(embeddings), -1)", kind=Kind.TOO_MUCH_MEMORY,
                  says="a view of something larger", at_most=0.85)),
    ("3", student("the embeddings are kept", KEPT, "embeddings.detach().clone()", kind=Kind.WRONG_SHAPE,
                  says="the prefix must have the shape", at_most=0.75)),
    ("3", student("half", KEPT, KEPT + ".half()", kind=Kind.WRONG_SHAPE, says="must be float32", at_most=0.75)),
    ("3", student("rounded", KEPT, KEPT + ".bfloat16().float()", says="at the output", at_most=0.75)),
    ("3", student("not frozen", FREEZE, "", says="the base's parameters require gradients", at_most=0.85)),
    ("3", student("eval", FREEZE, "base.eval()", says="the base's parameters require gradients", at_most=0.85)),
    ("3", student("base trained", GIVEN, "return [embeddings, *mlp.parameters(), *base.parameters()]",
                  says="the base is trained", at_most=0.85)),
    ("3", student("no embeddings", GIVEN, "return list(mlp.parameters())", says="embeddings are missing",
                  at_most=0.85)),
    ("3", student("no MLP", GIVEN, "return [embeddings]", says="parameters of the MLP are missing", at_most=0.85)),
    ("3", student("all frozen", GIVEN, "mlp.requires_grad_(False)\n    " + GIVEN, says="frozen, too", at_most=0.85)),
    ("3", student("copies", GIVEN, "return [p.clone() for p in (embeddings, *mlp.parameters())]",
                  says="return the parameters themselves", at_most=0.85)),
    ("3", student("twice", GIVEN, "return [embeddings, *mlp.parameters(), embeddings]", says="there twice",
                  at_most=0.85)),
    ("3", student("nothing", GIVEN, "", kind=Kind.WRONG_SHAPE, says="return a list of parameters", at_most=0.85)),
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


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("number", range(len(attention.MISTAKES)))
def test_every_listed_mistake_of_attention_is_found_and_named(number: int, hidden: bool) -> None:
    how = attention.MISTAKES[number]

    def wrong(**inputs):
        return attention.attend(inputs, how).float()

    result = checks.run(f"{TOPIC}/1", (wrong, lambda **_: []), **(HIDDEN["1"] if hidden else {}))
    assert how.cause in result.message, result.message


@pytest.mark.parametrize("seed", range(4))
def test_the_right_output_is_torchs(seed: int) -> None:
    case = attending.Case(seed=seed, heads=2, tokens=5, length=seed)
    q, k, v, prefix_k, prefix_v = (case.tensors[name].double() for name in attention.INPUTS)
    keys, values = torch.cat((prefix_k.expand(2, -1, -1, -1), k), 2), torch.cat((prefix_v.expand(2, -1, -1, -1), v), 2)
    mask = torch.arange(seed + 5) <= torch.arange(5)[:, None] + seed
    want = torch.nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    torch.testing.assert_close(attention.attend(case.tensors), want)


def test_the_pages_examples() -> None:
    zeros = torch.zeros(1, 1, 2, 1)
    inputs = {"q": zeros, "k": zeros, "v": torch.tensor([[[[0.0], [3.0]]]])}
    inputs |= {"prefix_k": torch.zeros(1, 1, 1), "prefix_v": torch.full((1, 1, 1), 6.0)}
    assert attention.attend(inputs).flatten().tolist() == [3.0, 3.0]
    assert counts.of_prefix(2, 3, 2, 2, 2).want == 48
    assert counts.of_prompt(3, 4).want == 12
    assert counts.of_adapters(2, 4, 1).want == 52
    assert counts.in_training(2, 3, 4, 5).want == 133


def test_published_counts_come_out() -> None:
    """Li and Liang: 0.1% of GPT-2 medium; Houlsby: 1.89% of BERT large with 64, 0.25% with 8, 7.53% with 256."""
    assert counts.of_prefix(24, 10, 16, 16, 64).want == 491_520
    for bottleneck, percent in ((8, 0.25), (64, 1.89), (256, 7.53)):
        share = counts.of_adapters(24, 1024, bottleneck).want / 335_141_888
        assert 100 * share == pytest.approx(percent, abs=0.01)


def test_the_right_count_in_training_is_that_of_modules() -> None:
    sizes = encoder.Sizes(seed=0)
    embeddings, mlp, _ = sizes.parts()
    number = embeddings.numel() + sum(parameter.numel() for parameter in mlp.parameters())
    assert counts.in_training(sizes.num_layers, sizes.length, sizes.dim, sizes.hidden).want == number


def test_the_right_prefix_number_by_number() -> None:
    sizes = encoder.Sizes(seed=3)
    embeddings, mlp, _ = sizes.parts()
    rows, right = mlp(embeddings).detach(), sizes.right()
    for layer, which, head, position, number in ((0, 0, 0, 0, 0), (2, 1, 1, 3, 4), (1, 0, 1, 2, 3), (0, 1, 0, 3, 1)):
        column = layer * 2 * sizes.dim + which * sizes.dim + head * sizes.head_dim + number
        found = float(right[layer, which, head, position, number])
        assert found == pytest.approx(float(rows[position, column]), abs=1e-5)
