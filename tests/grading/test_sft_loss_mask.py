"""The exercise on losses of conversations: right answers of many shapes pass, wrong ones fail with a cause."""

import numpy
import pytest
import torch
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from cme295lab.grading.sft_loss_mask import labels, losses, packing
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

TOPIC = "sft_loss_mask"
HIDDEN = {
    "1": {"seed": 295, "num_turns": 5},
    "2": {"seed": 295, "vocabulary": 17, "length": 9},
    "3": {"seed": 295, "lengths": (3, 6, 1, 4), "spare": 5},
}
CELLS = {
    "1": ("labels", "inputs_and_labels"),
    "2": ("loss", losses.FUNCTIONS),
    "3": ("pack", "pack"),
}

SPEAKS = 'speaks = role == "assistant"'
COUNTED = "[False] * len(headers[role]) + [speaks] * (len(content) + 1)"
WHERE = "torch.where(counted, tokens, -100)[1:]"
RETURNED = "return tokens[:-1], " + WHERE
SUM = (
    "total = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, "
    'reduction="sum")'
)
COUNT = "count = (labels != -100).sum() if num_tokens is None else num_tokens"
DIVIDED = "return total / count"
ALL = "num_tokens = sum(int((labels != -100).sum()) for _, labels in micro_batches)"
ONE = "loss = sft_loss(model(inputs), labels, num_tokens)"
BACK = "loss.backward()\n        total += loss.item()"
LABELS = "labels = torch.cat([labels for _, labels in examples] + [torch.full((lengths[-1],), -100)])"
INPUTS = "inputs = torch.cat([inputs for inputs, _ in examples] + [torch.full((lengths[-1],), padding)])"
POSITIONS = "positions = torch.cat([torch.arange(count) for count in lengths])"
DOCUMENT = "document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))"
MASK = "mask = (document[:, None] == document[None, :]).tril()"
LOOP = """mask = torch.zeros(length, length, dtype=torch.bool)
    begin = 0
    for count in lengths:
        for query in range(begin, begin + count):
            for key in range(begin, query + 1):
                mask[query, key] = True
        begin += count"""
LATER = "torch.cat((document[:1], document[:-1]))"

RIGHT = [
    ("1", student("the solution")),
    ("1", student("slices of lists", "tokens, counted = torch.tensor(tokens), torch.tensor(counted)", "", RETURNED,
                  "return torch.tensor(tokens[:-1]), torch.tensor([token if c else -100 "
                  "for token, c in zip(tokens[1:], counted[1:])])")),
    ("1", student("numpy", RETURNED, "found = np.where(counted.numpy(), tokens.numpy(), -100)\n"
                  "    return tokens[:-1], torch.from_numpy(found[1:].copy())")),
    ("1", student("rolled", WHERE, "torch.where(counted, tokens, -100).roll(-1)[:-1]")),
    ("1", student("masked_fill", WHERE, "tokens[1:].masked_fill(~counted[1:], -100)")),
    ("1", student("a list", RETURNED, "return [tokens[:-1], " + WHERE + "]")),
    ("2", student("the solution")),
    ("2", student("by hand", SUM, "kept = labels != -100\n    total = -logits.log_softmax(-1)[kept]"
                  ".gather(-1, labels[kept][:, None]).sum()")),
    ("2", student("transposed", SUM, 'total = nn.functional.cross_entropy(logits.mT, labels, reduction="sum")')),
    ("2", student("a weighted mean", SUM,
                  'each = nn.functional.cross_entropy(logits.mT, labels.clamp(min=0), reduction="none")\n'
                  "    weights = (labels != -100).float()\n    total = (each * weights).sum()")),
    ("2", student("one by one", SUM, "total = sum(nn.functional.cross_entropy(row, each, reduction='sum') "
                  "for row, each in zip(logits, labels))")),
    ("2", student("scaled means", ONE, "count = int((labels != -100).sum())\n        if count == 0:\n            "
                  "continue\n        loss = sft_loss(model(inputs), labels) * count / num_tokens")),
    ("2", student("divided at the end", ONE, "loss = sft_loss(model(inputs), labels, 1)",
                  "return total\n", "for parameter in model.parameters():\n        parameter.grad /= num_tokens\n"
                  "    return total / num_tokens\n")),
    ("2", student("autograd.grad", BACK,
                  "(found,) = torch.autograd.grad(loss, [*model.parameters()])\n        (weight,) = model.parameters()"
                  "\n        weight.grad = found if weight.grad is None else weight.grad + found\n        "
                  "total += loss.item()")),
    ("2", student("a tensor", "total += loss.item()", "total += loss.detach()")),
    ("3", student("the solution")),
    ("3", student("loops", MASK, LOOP)),
    ("3", student("positions by subtraction", POSITIONS,
                  "starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)\n    positions = torch.arange(length) - "
                  "starts.repeat_interleave(torch.tensor(lengths))")),
    ("3", student("block_diag", MASK, "mask = torch.block_diag(*(torch.ones(n, n).tril() for n in lengths if n))"
                  ".bool()")),
    ("3", student("padding sees the past", MASK, MASK + "\n    mask[length - lengths[-1] :] = True")),
    ("3", student("padding at position 0", POSITIONS, POSITIONS + "\n    positions[length - lengths[-1] :] = 0")),
    ("3", student("& with a triangle", MASK, "mask = torch.ones(length, length).tril().bool() & "
                  "(document[:, None] == document)")),
]  # fmt: skip

WRONG = [
    ("1", student("everything", COUNTED, "[True] * (len(headers[role]) + len(content) + 1)", says="the prompt's, too")),
    ("1", student("everybody's words", SPEAKS, "speaks = True", says="only what the assistant says counts", at_most=0)),
    ("1", student("not the system", SPEAKS, 'speaks = role != "system"', says="the user's words")),
    ("1", student("the header, too", "[False] * len", "[speaks] * len", says="the assistant's header has labels")),
    ("1", student("no end", COUNTED, "[False] * len(headers[role]) + [speaks] * len(content) + [False]",
                  says="never learn to stop", at_most=0)),
    ("1", student("every end", COUNTED, "[False] * len(headers[role]) + [speaks] * len(content) + [True]",
                  says="every end of turn has a label", at_most=0)),
    ("1", student("last answer", SPEAKS, 'speaks = role == "assistant"\n        if speaks:\n            counted = '
                  "[False] * len(counted)", says="only the last answer", at_most=0.3)),
    ("1", student("first answer", SPEAKS, 'speaks = role == "assistant" and True not in counted',
                  says="only the first answer", at_most=0.3)),
    ("1", student("all that follows", SPEAKS, 'speaks = role == "assistant" or True in counted',
                  COUNTED, "[True in counted] * len(headers[role]) + [speaks] * (len(content) + 1)",
                  says="all that follows", at_most=0.3)),
    ("1", student("not shifted", WHERE, "torch.where(counted, tokens, -100)[:-1]", says="labels are not shifted")),
    ("1", student("mask late", WHERE, "torch.where(counted[:-1], tokens[1:], -100)", says="one place late")),
    ("1", student("mask early", WHERE, "torch.where(counted[1:].roll(-1), tokens[1:], -100)", says="one place early")),
    ("1", student("shifted twice", WHERE, "torch.where(counted, tokens, -100)[1:].roll(-1)",
                  says="labels are shifted twice")),
    ("1", student("zeros", "-100", "0", says="0 stands where nothing counts", at_most=0)),
    ("1", student("searched", COUNTED, COUNTED + "\n    inside, counted = False, []\n    for i in range(len(tokens)):"
                  "\n        inside = inside or tokens[max(i - len(headers['assistant']), 0):i] == headers['assistant']"
                  "\n        counted.append(inside)\n        inside = inside and tokens[i] != end_of_turn",
                  says="searching for the header", at_most=0.9)),
    ("1", student("by value", "tokens, counted = torch.tensor(tokens), ", "said = [t for role, c in turns "
                  "if role == 'assistant' for t in c] + [end_of_turn]\n    counted = [t in said for t in tokens]\n    "
                  "tokens, counted = torch.tensor(tokens), ", says="end of turn has a label")),
    ("1", student("not cut", RETURNED, "return tokens, torch.where(counted, tokens, -100)", kind=Kind.WRONG_SHAPE,
                  says="inputs must have the shape", at_most=0)),
    ("1", student("masked inputs", RETURNED, "return torch.where(counted, tokens, -100)[:-1], " + WHERE,
                  says="inputs are masked", at_most=0)),
    ("1", student("labels twice", RETURNED, "return " + WHERE + ", " + WHERE, says="these are the labels", at_most=0)),
    ("1", student("no first token", "return tokens[:-1]", "return tokens[1:]", says="inputs lack the first token")),
    ("1", student("lists", RETURNED, "return tokens[:-1].tolist(), tokens[1:].tolist()", kind=Kind.WRONG_SHAPE,
                  says="must be a tensor")),
    ("1", student("labels alone", RETURNED, "return " + WHERE, kind=Kind.WRONG_SHAPE, says="return (inputs, labels)")),
    ("2", student("all places", COUNT, "count = labels.numel() if num_tokens is None else num_tokens",
                  says="padding and prompt included", at_most=0.9)),
    ("2", student("mean of rows", DIVIDED, "if num_tokens is None:\n        return torch.stack([nn.functional."
                  "cross_entropy(row, each) for row, each in zip(logits, labels)]).mean()\n    " + DIVIDED,
                  says="mean of the rows' means", at_most=0.9)),
    ("2", student("sum", DIVIDED, "return total if num_tokens is None else total / count", says="that is the sum")),
    ("2", student("padding is token 0", "labels.flatten(), ignore_index=-100", "labels.flatten().clamp(min=0)",
                  COUNT, "count = labels.numel() if num_tokens is None else num_tokens", says="count as token 0")),
    ("2", student("token 0", "(labels != -100).sum() if", "(labels > 0).sum() if", says="token 0 is not counted")),
    ("2", student("shifted again", SUM, "logits, labels = logits[:, :-1], labels[:, 1:]\n    " + SUM,
                  says="shifted once more")),
    ("2", student("log-probability", DIVIDED, "return -total / count", says="the sign is wrong", at_most=0.1)),
    ("2", student("num_tokens unused", COUNT, "count = (labels != -100).sum()", says="num_tokens is not used")),
    ("2", student("divided twice", SUM, SUM.replace('"sum"', '"mean"'), COUNT, "count = num_tokens or 1",
                  says="divided by num_tokens once more")),
    ("2", student("no gradient", DIVIDED, "return total.detach() / count", says="no gradient comes back")),
    ("2", student("mean of means", ONE, "loss = sft_loss(model(inputs), labels) / len(micro_batches)",
                  says="that is a mean of means", at_most=0.6)),
    ("2", student("weighed by rows", ONE, "loss = sft_loss(model(inputs), labels) * len(labels) / "
                  "sum(len(each) for _, each in micro_batches)", says="weighed by rows", at_most=0.7)),
    ("2", student("means added up", ONE, "loss = sft_loss(model(inputs), labels)", says="means are added up")),
    ("2", student("sums added up", ONE, "loss = sft_loss(model(inputs), labels, 1)", says="never divided")),
    ("2", student("divided by both", ONE, ONE + " / len(micro_batches)", says="as well")),
    ("2", student("all places of all", ALL, "num_tokens = sum(labels.numel() for _, labels in micro_batches)",
                  says="the number of all places divides")),
    ("2", student("so far", ALL, "num_tokens = 0", ONE, "num_tokens += int((labels != -100).sum())\n        " + ONE,
                  says="seen so far")),
    ("2", student("gradients of means", ONE, ONE + "\n        mean = sft_loss(model(inputs), labels) / "
                  "len(micro_batches)", "loss.backward()", "mean.backward()", says="that is a mean of means",
                  at_most=0.85)),
    ("2", student("a micro-batch without labels", ONE, "loss = sft_loss(model(inputs), labels) * "
                  "int((labels != -100).sum()) / num_tokens", says="gave 0 / 0")),
    ("2", student("cleared", "loss.backward()", "model.zero_grad()\n        loss.backward()",
                  says="only the last micro-batch", at_most=0.8)),
    ("2", student("no backward", "loss.backward()", "pass", says="the model has no gradient", at_most=0.7)),
    ("2", student("twice", "loss.backward()", "loss.backward(retain_graph=True)\n        loss.backward()",
                  says="added twice", at_most=0.8)),
    ("2", student("all graphs", BACK, "total = total + loss", "return total\n",
                  "total.backward()\n    return total.item()\n", kind=Kind.TOO_MUCH_MEMORY,
                  says="graphs of all micro-batches are kept")),
    ("2", student("nothing returned", "return total\n", "return\n", kind=Kind.WRONG_SHAPE, says="must be one number",
                  at_most=0.75)),
    ("3", student("one document", DOCUMENT, "document = torch.zeros(length)", says="the examples see each other",
                  at_most=0.4)),
    ("3", student("not causal", ".tril()", "", says="the blocks are not causal", at_most=0.4)),
    ("3", student("everything", MASK, "mask = torch.ones(length, length).bool()", says="everything sees everything")),
    ("3", student("strict", ".tril()", ".tril(-1)", says="does not see itself", at_most=0.4)),
    ("3", student("future", ".tril()", ".triu()", says="transposed", at_most=0.4)),
    ("3", student("inverted", MASK, MASK + "\n    mask = ~mask", says="the other way round", at_most=0.4)),
    ("3", student("late", DOCUMENT, DOCUMENT + "\n    document = " + LATER, says="one place too late")),
    ("3", student("additive", MASK, MASK + "\n    mask = torch.where(mask, 0.0, -torch.inf)", kind=Kind.WRONG_SHAPE,
                  says="must be bool")),
    ("3", student("blind padding", MASK, MASK + "\n    mask[length - lengths[-1] :] = False",
                  says="a row of padding sees nothing")),
    ("3", student("run on", POSITIONS, "positions = torch.arange(length)", says="positions run on", at_most=0.6)),
    ("3", student("from 1", "torch.arange(count)", "torch.arange(1, count + 1)", says="positions begin at 1")),
    ("3", student("documents", POSITIONS, DOCUMENT + "\n    positions = document", says="numbers of the examples")),
    ("3", student("padding learned", "(lengths[-1],), -100", "(lengths[-1],), padding", says="it would be learned")),
    ("3", student("filled with 0", "(lengths[-1],), padding", "(lengths[-1],), 0", says="fill inputs with `padding`")),
    ("3", student("inputs twice", LABELS, INPUTS.replace("inputs = ", "labels = ").replace("padding", "-100"),
                  says="these are the inputs", at_most=0.9)),
    ("3", student("shifted again", LABELS, LABELS + "\n    labels = torch.cat((labels[1:], torch.tensor([-100])))",
                  says="shifted once more")),
    ("3", student("not filled", INPUTS, "inputs = torch.cat([inputs for inputs, _ in examples])",
                  kind=Kind.WRONG_SHAPE, says="inputs must have the shape", at_most=0.95)),
    ("3", student("no mask", "return inputs, labels, positions, mask", "return inputs, labels, positions",
                  kind=Kind.WRONG_SHAPE, says="return (inputs, labels, positions, mask)", at_most=0)),
]  # fmt: skip


def of(part: str, made: Student):
    cell, names = CELLS[part]
    return handed_in(TOPIC, cell, names, made, np=numpy, nn=nn)


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
@pytest.mark.parametrize("number", range(len(labels.MISTAKES)))
def test_every_listed_mistake_of_labels_is_found_and_named(number: int, hidden: bool) -> None:
    mistake = labels.MISTAKES[number]

    def student(turns, headers, end_of_turn):
        tokens = torch.tensor(labels.tokens_of(tuple(turns), headers, end_of_turn))
        return tokens[:-1], labels.labels_with(mistake, tuple(turns), headers, end_of_turn)

    result = checks.run(f"{TOPIC}/1", student, **(HIDDEN["1"] if hidden else {}))
    assert any(outcome.cause == mistake.cause for outcome in result.outcomes), (mistake.cause, result.message)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("number", range(len(losses.WEIGHINGS)))
def test_every_listed_weighing_is_found_and_named(number: int, hidden: bool) -> None:
    cause, weigh = losses.WEIGHINGS[number]

    def accumulate(model, micro_batches):
        loss, gradient = losses.total_with(weigh, model.table.detach(), micro_batches)
        model.table.grad = gradient.float()
        return float(loss)

    student = (of("2", RIGHT[6][1])[0], accumulate)
    result = checks.run(f"{TOPIC}/2", student, **(HIDDEN["2"] if hidden else {}))
    assert any(outcome.cause == cause for outcome in result.outcomes), (cause, result.message)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("number", range(len(packing.MISTAKES)))
def test_every_listed_mistake_of_masks_is_found_and_named(number: int, hidden: bool) -> None:
    mistake = packing.MISTAKES[number]
    right = of("3", RIGHT[-1][1])

    def student(examples, length, padding):
        mask = packing.mask_with(mistake, [len(inputs) for inputs, _ in examples], length)
        return *right(examples, length, padding)[:3], mask

    result = checks.run(f"{TOPIC}/3", student, **(HIDDEN["3"] if hidden else {}))
    assert any(outcome.cause == mistake.cause for outcome in result.outcomes), (mistake.cause, result.message)


def test_the_pages_examples() -> None:
    want = [-100] * 6 + [31, 32, 2]
    assert labels.tokens_of(labels.EXAMPLE)[:-1] == [1, 6, 21, 22, 2, 1, 7, 31, 32]
    assert labels.labels_with(labels.RIGHT, labels.EXAMPLE).tolist() == want
    table, batches = losses.example_table(), losses.example()
    each = [losses.losses_of(table[inputs], wanted) for inputs, wanted in batches]
    assert [each[0].max().item(), each[1].max().item()] == pytest.approx([1.0, 3.0])
    assert [int((wanted != -100).sum()) for _, wanted in batches] == [2, 6]
    assert losses.total_with(losses.right_weight, table, batches)[0].item() == pytest.approx(2.5)
    assert losses.total_with(losses.WEIGHINGS[0][1], table, batches)[0].item() == pytest.approx(2.0)
    mask = packing.mask_with(packing.RIGHT, [2, 3], 6)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[0], [0, 1], [2], [2, 3], [2, 3, 4], [5]]


def test_losses_are_those_of_torch() -> None:
    logits, wanted = losses.random_batch(3, (4, 9), 13)
    found = nn.functional.cross_entropy(logits.double().flatten(0, 1), wanted.flatten())
    assert (losses.losses_of(logits, wanted).sum() / (wanted != -100).sum()).item() == pytest.approx(found.item())
    assert len({int(count) for count in (wanted != -100).sum(-1)}) == 4  # otherwise a mean of means is the mean
