"""The exercise on counting compute: right answers pass, and the mistake in wrong ones is named."""

import pytest
import torch.nn.functional as F
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.flops_accounting import accumulation, bill, compute, utilization
from cme295lab.grading.result import Kind
from cme295lab.transformer import preset
from tests.grading.students import Student, assert_refused, student, written

TOPIC = "flops_accounting"
HIDDEN = {
    "1": {"dim": 64, "num_layers": 5, "billions": 3},
    "2": {"gpus": 3072, "tokens": 98_765, "seq": 4096},
    "3": {"seed": 295, "counts": ((8, 8, 1), (3,), (7, 2), (4, 4, 4, 1))},
    "4": {"gpus": 3072, "billions": 1008, "tokens_billions": 450, "tflops": 163},
}

SIX = "return 6.0 * num_parameters * num_tokens"
TABLES = "tables = vocab_size * dim * (1 if tied else 2)"
LAYER = "layer = attention + 3 * dim * mlp_dim + 2 * dim"
SUM = "num_parameters = tables + num_layers * layer + dim"
RIGHT_COMPUTE = [
    student("the solution"),
    student("in two steps", SIX, "forward = 2 * num_parameters * num_tokens\n    return forward + 2 * forward"),
    student("an integer", "6.0", "6"),
]
WRONG_COMPUTE = [
    student("tied counts twice", TABLES, "tables = 2 * vocab_size * dim", says=("a tied table is one matrix",
            "the tied table is counted twice")),
    student("no head", TABLES, "tables = vocab_size * dim", says="the head is missing"),
    student("2ND", "6.0", "2.0", says="2ND, the forward pass alone", at_most=0.0),
    student("3ND", "6.0", "3.0", says="a multiply-add is two FLOP", at_most=0.0),
    student("4ND", "6.0", "4.0", says="the backward pass alone", at_most=0.0),
    student("8ND", "6.0", "8.0", says="with full recomputation", at_most=0.0),
    student("N alone", SIX, "return num_parameters", says="that is the number of parameters", at_most=0.0),
    student("one token", " * num_tokens", "", says="6N, for one token", at_most=0.0),
    student("per day", SIX, SIX + " / 86_400", says="a count of operations has no time in it", at_most=0.0),
    student("Kaplan's N", "tables + ", "", says="N here is all parameters"),
    student("wide keys", "2 * dim * kv_dim", "2 * dim * dim", says="as wide as the queries"),
    student("no values", "2 * dim * kv_dim", "dim * kv_dim", says="keys or values are missing"),
    student("two matrices", "3 * dim * mlp_dim", "2 * dim * mlp_dim", says="three matrices: gate, up and down"),
    student("GPT's MLP", "3 * dim * mlp_dim", "8 * dim * dim", says="2 · 4d²"),
    student("one norm", LAYER, LAYER.replace(" + 2 * dim", " + dim"), says="a layer has two norms"),
    student("no last norm", SUM, SUM.replace(" * layer + dim", " * layer"), says="the last norm is missing"),
    student("no norm", LAYER, LAYER.replace(" + 2 * dim", ""), "num_layers * layer + dim", "num_layers * layer",
            says="the norms are missing"),
    student("one layer", "num_layers * layer", "layer", says="multiply by num_layers"),
    student("a constant", SIX, "return 1e18", at_most=0.0),
    student("text", SIX, 'return "3.14e23"', kind=Kind.WRONG_SHAPE, says="return a number", at_most=0.0),
    student("not attempted", SIX, "raise NotImplementedError()", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip

CORE = "12 * num_layers * attention_dim * seq"
FLOPS = f"flops = 6 * num_parameters + {CORE}"
IF = 'if hardware and recompute == "full":'
ANSWER = "return flops * tokens_per_s / (num_gpus * peak)"
RIGHT_UTILIZATION = [
    student("the solution"),
    student("eight and sixteen", IF + "\n        flops *= 4 / 3", IF + "\n        flops = 8 * num_parameters + 16 * "
            "num_layers * attention_dim * seq"),
]  # fmt: skip
WRONG_UTILIZATION = [
    student("no attention", FLOPS, "flops = 6 * num_parameters", says="attention's term is missing"),
    student("half of attention", CORE, CORE.replace("12", "6"), says="half as large"),
    student("twice attention", CORE, CORE.replace("12", "24"), says="twice as large as it should be"),
    student("forward attention", CORE, CORE.replace("12", "4"), says="that of the forward pass alone, 4"),
    student("quadratic in the width", CORE, CORE.replace("_dim", "_dim**2"), says="quadratic in the width"),
    student("quadratic in seq", CORE, CORE.replace("seq", "seq**2"), kind=Kind.WRONG_VALUE, says="seq twice"),
    student("one layer", CORE, "12 * attention_dim * seq", says="multiply by num_layers"),
    student("2N", FLOPS, FLOPS.replace("6 *", "2 *"), says="2N is the forward pass alone"),
    student("forward alone", FLOPS, FLOPS.replace("6 *", "2 *").replace("12 *", "4 *"), says="training takes 6N"),
    student("peak with sparsity", "if with_sparsity:", "if False:", says="the data sheet's figure is with sparsity"),
    student("always halved", "if with_sparsity:", "if True:", says="it is a dense one already"),
    student("recomputation in MFU", IF, 'if recompute == "full":', says=("recomputation leaves MFU as it is",
            "recomputation is counted in MFU")),
    student("none in HFU", IF, "if False:", says="HFU counts four passes"),
    student("HFU is always more", IF, "if hardware:", says="nothing is computed again here"),
    student("attention not again", "flops *= 4 / 3", "flops += 2 * num_parameters", says="attention is computed again"),
    student("per GPU", "num_gpus * peak", "peak", kind=Kind.WRONG_VALUE, says="multiply it by num_gpus"),
    student("TFLOP", "* 1e12", "", says="one TFLOP is 10^12"),
    student("giga", "1e12", "1e9", says="tera is 10^12"),
    student("per cent", "return flops", "return 100 * flops", says="in per cent"),
    student("FLOP over FLOP/s", "flops * tokens_per_s /", "flops /", says="seconds of a token", at_most=0.0),
    student("the rate", "/ (num_gpus * peak)", "", says="the achieved rate"),
    student("a crash", ANSWER, "return flops / 0", kind=Kind.CRASHED, says="ZeroDivisionError", at_most=0.0),
]  # fmt: skip

LOSS = 'loss = F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum") / total'
MEAN = "F.cross_entropy(logits, targets.flatten())"
TOTAL = "total = sum(int((targets != -100).sum()) for _, targets in micro_batches)"
CLEAR = "    model.zero_grad()\n"
BACKWARD = "        loss.backward()\n"
RIGHT_ACCUMULATION = [
    student("the solution"),
    student("scaled afterwards", " / total\n", "\n", "mean += loss.item()", "mean += loss.item() / total",
            "    return mean", "    for p in model.parameters():\n        p.grad /= total\n    return mean"),
    student("means times counts", LOSS, "count = int((targets != -100).sum())\n"
            "        if count == 0:\n            continue\n        loss = " + MEAN + " * count / total"),
    student("a tensor", "return mean", "return torch.tensor(mean)"),
]  # fmt: skip
WRONG_ACCUMULATION = [
    student("the mean of means", LOSS, "loss = " + MEAN + " / len(micro_batches)",
            says=("every token counts the same", "the mean of the micro-batches' means")),
    student("the sum of means", LOSS, "loss = " + MEAN, says="divided by nothing", at_most=0.0),
    student("sums", " / total\n", "\n", says="the losses are summed", at_most=0.0),
    student("the last alone", CLEAR, "", "        logits =", "        model.zero_grad()\n        logits =",
            says="only the last micro-batch is left", at_most=0.0),
    student("the first alone", "        mean += loss.item()\n", "        mean += loss.item()\n        break\n",
            says="only the first micro-batch counts", at_most=0.0),
    student("positions", TOTAL, "total = sum(targets.numel() for _, targets in micro_batches)",
            says="positions without a target (-100) are counted"),
    student("weighted by positions", TOTAL, "total = sum(targets.numel() for _, targets in micro_batches)", LOSS,
            "loss = " + MEAN + " * targets.numel() / total", says="weighted by their rows or positions"),
    student("divided twice", " / total\n", " / total / len(micro_batches)\n", says="as well", at_most=0.0),
    student("nothing of nothing", LOSS, "loss = " + MEAN + " * (targets != -100).sum() / total",
            says="the mean over no target is 0 / 0"),
    student("old gradients", CLEAR, "", says="gradients of the step before are still in the sum"),
    student("all at once", BACKWARD, "        losses = loss if mean == 0 else losses + loss\n", "    return mean",
            "    losses.backward()\n    return mean", kind=Kind.TOO_MUCH_MEMORY, says="backward comes after the loop"),
    student("put together", "    for tokens, targets in micro_batches:\n", "    micro_batches = [tuple(map(torch.cat, "
            "zip(*micro_batches)))]\n    for tokens, targets in micro_batches:\n", kind=Kind.TOO_MUCH_MEMORY,
            says="the micro-batches are put together"),
    student("no backward", BACKWARD, "", says="no parameter has a gradient", at_most=0.1),
    student("an update", "    return mean", "    with torch.no_grad():\n        for parameter in model.parameters():\n"
            "            parameter -= parameter.grad\n    return mean", says="the weights have changed"),
    student("the wrong loss", "mean += loss.item()", "mean += loss.item() / len(micro_batches)", says="as well"),
    student("no loss", "    return mean", "    return None", kind=Kind.WRONG_SHAPE, says="return the loss as a number"),
    student("not attempted", LOSS, "raise NotImplementedError()", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip

DAYS, PRICE = "return seconds / 86_400", "return days * 24 * num_gpus * usd_per_gpu_hour"
ENERGY = "return days * 24 * num_gpus * watts_per_gpu * pue / 1e6"
RIGHT_BILL = [student("the solution"), student("by the hour", DAYS, "return seconds / 3600 / 24")]
WRONG_BILL = [
    student("seconds", DAYS, "return seconds", says="that is in seconds"),
    student("hours", DAYS, "return seconds / 3600", says="that is in hours"),
    student("minutes of a day", DAYS, "return seconds / 1440", says="an hour has 3,600 s"),
    student("6 with recomputation", '8 if recompute == "full" else 6', "6", says=("days, with full recomputation",
            "6 FLOP per parameter and token are counted")),
    student("8 without", '8 if recompute == "full" else 6', "8", says="8 FLOP per parameter and token are counted"),
    student("forward alone", '8 if recompute == "full" else 6', "2", says="the forward pass alone"),
    student("TFLOP", " * 1e12", "", says="one TFLOP is 10^12"),
    student("one GPU", "num_gpus * tflops_per_gpu", "tflops_per_gpu", says="the days of a single GPU"),
    student("a count for a rate", " / (num_gpus * tflops_per_gpu * 1e12)", "", says="not divided by the rate"),
    student("a daily price", PRICE, PRICE.replace("24 * ", ""), says="the price is by the hour"),
    student("the price of one", PRICE, PRICE.replace("num_gpus * ", ""), says="that is one GPU's"),
    student("no PUE", ENERGY, ENERGY.replace("* pue ", ""), says="the data centre is missing"),
    student("PUE divides", ENERGY, ENERGY.replace("* pue", "/ pue"), says="divided by the PUE"),
    student("kWh", ENERGY, ENERGY.replace("1e6", "1e3"), says="that is in kWh"),
    student("watt-days", ENERGY, ENERGY.replace("24 * ", ""), says="a watt-hour is a watt for an hour"),
    student("energy of one", ENERGY, ENERGY.replace("num_gpus * ", ""), says="that is one GPU's"),
]  # fmt: skip


def compute_of(made: Student):
    return written(TOPIC, "training_flops", *made.changes)["training_flops"]


def utilization_of(made: Student):
    return written(TOPIC, "utilization", *made.changes)["utilization"]


def accumulate_of(made: Student):
    return written(TOPIC, "accumulate", *made.changes, given={"F": F, "nn": nn})["accumulate"]


def bill_of(made: Student):
    names = written(TOPIC, "bill", *made.changes)
    return tuple(names[name] for name in bill.FUNCTIONS)


PARTS = {
    "1": (compute_of, RIGHT_COMPUTE, WRONG_COMPUTE),
    "2": (utilization_of, RIGHT_UTILIZATION, WRONG_UTILIZATION),
    "3": (accumulate_of, RIGHT_ACCUMULATION, WRONG_ACCUMULATION),
    "4": (bill_of, RIGHT_BILL, WRONG_BILL),
}


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), [(part, made) for part, (_, all_, _) in PARTS.items() for made in all_],
                         ids=str)  # fmt: skip
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"{TOPIC}/{part}", PARTS[part][0](made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), [(part, made) for part, (*_, all_) in PARTS.items() for made in all_],
                         ids=str)  # fmt: skip
def test_wrong_answers_are_rejected_and_the_mistake_is_named(part: str, made: Student) -> None:
    result = checks.run(f"{TOPIC}/{part}", PARTS[part][0](made))
    assert_refused(result, made)
    assert not checks.run(f"{TOPIC}/{part}", PARTS[part][0](made), **HIDDEN[part]).passed


def test_answers_are_published_figures() -> None:
    """Llama-3 8B's parameters; PaLM's 46.2% MFU; 34 days for GPT-3 and 84 for a trillion parameters."""
    llama = preset("llama-3-8b")
    shape = compute.Shape(vocab_size=128_256, num_layers=32, dim=4096, num_heads=32, num_kv_heads=8, mlp_dim=14_336,
                          tied=False, num_tokens=1)  # fmt: skip
    assert compute.question(shape).want == 6 * llama.num_parameters == 6 * 8_030_261_248
    palm = utilization.Run(num_parameters=540_350_000_000, num_layers=118, attention_dim=48 * 256, seq=2048,
                           tokens_per_s=238_300, num_gpus=6144, sheet_tflops=275)  # fmt: skip
    assert utilization.question(palm).want == pytest.approx(0.462, abs=5e-4)
    for gpus, parameters, tokens, tflops, days in ((1024, 175, 300, 140, 33.9), (3072, 1008, 450, 163, 83.9)):
        question = bill.days_question(num_parameters=parameters * 10**9, num_tokens=tokens * 10**9, num_gpus=gpus,
                                      tflops_per_gpu=tflops, recompute="full")  # fmt: skip
        assert question.want == pytest.approx(days, abs=0.05)


def test_two_tokens_and_six_by_hand() -> None:
    """2 tokens at 1.0 and 6 at 3.0: 2.5, where the mean of means is 2."""
    case = accumulation.Case(seed=0, targets=((2,), (6,)))
    few, many = accumulation.sums_of(case)
    right = accumulation.right(case)
    assert right.loss == pytest.approx((few.loss + many.loss) / 8)
    weights = [few.loss / 2, many.loss / 6]
    assert right.loss == pytest.approx(0.25 * weights[0] + 0.75 * weights[1])
    assert 0.25 * 1 + 0.75 * 3 == 2.5


def test_every_listed_mistake_gives_a_wrong_answer_somewhere() -> None:
    """A cause that only ever gives the right number could never be named."""
    shapes = [compute.Shape(vocab_size=90, num_layers=3, dim=32, num_heads=4, num_kv_heads=kv, mlp_dim=50, tied=tied,
                            num_tokens=1000) for kv in (1, 4) for tied in (False, True)]  # fmt: skip
    runs = [utilization.Run(num_parameters=10**9, num_layers=3, attention_dim=64, seq=512, tokens_per_s=999, num_gpus=7,
                            sheet_tflops=100, with_sparsity=sparse, recompute=recompute, hardware=hardware)
            for sparse in (False, True) for recompute in ("none", "full") for hardware in (False, True)]  # fmt: skip
    bills = [
        *(bill.days_question(num_parameters=10**9, num_tokens=10**9, num_gpus=3, tflops_per_gpu=4, recompute=kind)
          for kind in ("none", "full")),
        bill.price_question(days=2, num_gpus=3, usd_per_gpu_hour=4),
        bill.energy_question(days=2, num_gpus=3, watts_per_gpu=4, pue=1.5),
    ]  # fmt: skip
    for questions in (map(compute.question, shapes), map(utilization.question, runs), bills):
        is_wrong: dict[str, bool] = {}
        for question in questions:
            for cause, value in question.mistakes:
                is_wrong[cause] = is_wrong.get(cause, False) or value != pytest.approx(question.want)
        assert [cause for cause, wrong in is_wrong.items() if not wrong] == []


def test_bill_is_refused_only_as_a_whole() -> None:
    right = bill_of(student("the solution"))
    stub = written(TOPIC, "bill", (ENERGY, "raise NotImplementedError()"))
    partly = checks.run(f"{TOPIC}/4", (*right[:2], stub["energy_mwh"]))
    assert partly.score == pytest.approx(0.75)
    assert "not attempted" in partly.message
    for wrong in (right[0], right[:2], None):
        assert checks.run(f"{TOPIC}/4", wrong).kind is Kind.WRONG_SHAPE
    assert checks.run(f"{TOPIC}/4", (stub["energy_mwh"],) * 3).kind is Kind.NOT_ATTEMPTED
