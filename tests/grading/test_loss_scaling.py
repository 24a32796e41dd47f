"""The exercise on loss scaling: right answers of many shapes pass, wrong ones fail with their mistake named."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cme295lab.grading import checks
from cme295lab.grading.loss_scaling import scales, stepping, training, updates
from cme295lab.grading.result import Kind
from tests.grading.students import (
    Student,
    assert_refused,
    assert_stubs_and_results_are_told_apart,
    cells,
    student,
    written,
)

HIDDEN = {
    "scale": {"seed": 295, "size": 3e-6},
    "lost": {"seed": 295, "size": 3e-6},
    "update": {"seed": 295, "interval": 7},
    "step": {"seed": 295, "scale": 256.0},
}
CELLS = {"scale": "largest_scale", "lost": "num_lost", "update": "update", "step": "mixed_step"}
IDS = {"scale": "loss_scaling/1", "lost": "loss_scaling/1", "update": "loss_scaling/2", "step": "loss_scaling/3"}

LARGEST = "largest = max(float(gradient.abs().max()) for gradient in gradients)"
POWER = "return 2.0 ** math.floor(math.log2(65504 / largest))"
LOST = "((gradient * scale).half() == 0) & (gradient != 0) for"
SUM = "return sum(int(mask.sum()) for mask in lost)"

INF = "if found_inf:\n        return scale / 2, 0"
GROW = "if clean_steps + 1 == growth_interval:\n        return scale * 2, 0"
COUNT = "return scale, clean_steps + 1"

BACK = "(loss_of(weights) * scale).backward()"
TRUE = "master.grad = weight.grad.float() / scale"
CLEAR = "        weight.grad = None\n"
CHECK = "if not all(master.grad.isfinite().all() for master in masters):\n        return True"
CLIP = "torch.nn.utils.clip_grad_norm_(masters, max_norm)"
STEP = "optimizer.step()"
COPY = "weight.copy_(master)"
UNSCALE = "\n    for master in masters:\n        master.grad /= scale"

RIGHT = [
    ("scale", student("the solution")),
    ("scale", student("a loop", POWER, "scale = 2.0**200\n    while scale * largest >= 65504:\n        scale /= 2\n"
                      "    return scale")),
    ("scale", student("all in one tensor", LARGEST, "largest = torch.cat([g.flatten() for g in gradients]).abs().max()",
                      POWER, "return 2.0 ** torch.floor(torch.log2(65504 / largest.double()))")),
    ("scale", student("numpy", LARGEST, "largest = max(np.abs(g.numpy()).max() for g in gradients)",
                      POWER, "return np.exp2(np.floor(np.log2(65504 / np.float64(largest))))")),
    ("scale", student("frexp", POWER, "scale = 2.0 ** (16 - math.frexp(largest)[1])\n"
                      "    return scale if scale * largest < 65504 else scale / 2")),
    ("lost", student("the solution")),
    ("lost", student("by a bound", LOST, "((gradient.double() * scale).abs() <= 2.0**-25) & (gradient != 0) for")),
    ("lost", student("numpy", SUM,
                  "return sum(np.sum((g.numpy() * np.float32(scale)).astype(np.float16)[g.numpy() != 0]"
                     " == 0) for g in gradients)")),
    ("lost", student("a tensor", SUM, "return sum(mask.sum() for mask in lost)")),
    ("lost", student("a loop", SUM, "return sum(x != 0 and abs(x * scale) <= 2.0**-25 for g in gradients "
                     "for x in g.flatten().tolist())")),
    ("update", student("the solution")),
    ("update", student("counts down", COUNT, "return scale, clean_steps + 1.0")),
    ("update", student("counts backward", "clean_steps + 1 ==", "-clean_steps + 1 ==", COUNT,
                       "return scale, clean_steps - 1")),
    ("update", student("never resets, but takes the remainder", GROW, "clean_steps += 1\n"
                       "    if clean_steps % growth_interval == 0:\n        return scale * 2, clean_steps\n"
                       "    return scale, clean_steps")),
    ("update", student("tensors", COUNT, "return torch.tensor(scale), clean_steps + 1")),
    ("step", student("the solution")),
    ("step", student("cleared before", CLEAR, "", BACK, "for weight in weights:\n        weight.grad = None\n    "
                  + BACK)),
    ("step", student("autograd.grad", BACK, "found = torch.autograd.grad(loss_of(weights) * scale, weights)",
                     "zip(masters, weights):\n        " + TRUE,
                     "zip(masters, zip(weights, found)):\n        master.grad = weight[1].float() / scale\n"
                     "        continue")),
    ("step", student("a norm of its own", CLIP,
                  "norm = torch.cat([master.grad.flatten() for master in masters]).norm()\n"
                     "    if norm > max_norm:\n        for master in masters:\n"
                     "            master.grad *= max_norm / norm")),
    ("step", student("times the reciprocal", TRUE, "master.grad = weight.grad.float() * (1 / scale)")),
    ("step", student("a norm says it", CHECK, "",
                     CLIP, "if not torch.nn.utils.clip_grad_norm_(masters, max_norm).isfinite():\n"
                     "        return True")),
    ("step", student("data", COPY, "weight.data = weight.data.copy_(master)")),
    ("step", student("torch's bool", "return False", "return torch.tensor(False)")),
    ("step", student("checked in fp16", CHECK, "",
                     BACK, BACK + "\n    if not all(w.grad.isfinite().all() for w in weights):\n"
                     "        for w in weights:\n            w.grad = None\n        return True")),
]  # fmt: skip

WRONG = [
    ("scale", student("no abs", "gradient.abs().max()", "gradient.max()", says="the sign counts")),
    ("scale", student("first tensor", "in gradients)", "in gradients[:1])", says="only the first tensor", at_most=0.9)),
    ("scale", student("last tensor", LARGEST, "largest = float(gradients[-1].abs().max())",
                  says="only the last tensor")),
    ("scale", student("no power", POWER, "return 65504 / largest", says="not a power of two", at_most=0.5)),
    ("scale", student("rounded up", "math.floor", "math.ceil", says="one power of two too large", at_most=0.5)),
    ("scale", student("too careful", "math.log2(65504 / largest)", "math.log2(32752 / largest)",
                      says="one power of two too small", at_most=0.5)),
    ("scale", student("smallest", LARGEST, "largest = min(float(g[g != 0].abs().min()) for g in gradients)",
                      says="the smallest gradient is looked at")),
    ("scale", student("norm", LARGEST, "largest = float(torch.cat([g.flatten() for g in gradients]).norm())",
                  says="the norm")),
    ("scale", student("mean", LARGEST, "largest = float(torch.cat([g.flatten() for g in gradients]).abs().mean())",
                      says="the mean is looked at")),
    ("scale", student("at least 1", POWER, POWER.replace("return ", "return max(1.0, ") + ")", says="never below 1",
                      at_most=0.9)),
    ("scale", student("at most 65536", POWER, POWER.replace("return ", "return min(65536.0, ") + ")",
                      says="cut off at 65536", at_most=0.75)),
    ("scale", student("the power", POWER, POWER.replace("2.0 ** ", ""), says="that is the power")),
    ("scale", student("reciprocal", POWER, POWER.replace("return ", "return 1 / "), says="that is the reciprocal")),
    ("scale", student("always 65536", POWER, "return 65536.0", says="the same number comes back")),
    ("scale", student("text", POWER, "return 'large'", kind=Kind.WRONG_SHAPE, says="return a number")),
    ("lost", student("zeros count", " & (gradient != 0)", "", says="zeros are counted", at_most=0.75)),
    ("lost", student("too late", "(gradient * scale).half()", "(gradient.half() * scale)",
                     says="the scale is not used, or too late", at_most=0.75)),
    ("lost", student("no scale", "gradient * scale", "gradient", says="the scale is not used", at_most=0.75)),
    ("lost", student("divided", "gradient * scale", "gradient / scale", says="gradients are divided by the scale")),
    ("lost", student("subnormals", "(gradient * scale).half() == 0", "(gradient * scale).abs() < 2**-14",
                     says="subnormal numbers are counted")),
    ("lost", student("below 2^-24", "(gradient * scale).half() == 0", "(gradient * scale).abs() < 2**-24",
                     says="round up to 2^-24")),
    ("lost", student("the tie", "(gradient * scale).half() == 0", "(gradient * scale).abs() < 2**-25",
                     says="is a tie of 0 and 2^-24", at_most=0.9)),
    ("lost", student("bf16", ".half()", ".bfloat16()", says="that is bf16")),
    ("lost", student("a share", SUM, SUM + " / sum(mask.numel() for mask in lost)", says="that is a share")),
    ("lost", student("what is left", "== 0) & (gradient != 0)", "!= 0)", says="that are left")),
    ("lost", student("first tensor", "in gradients]", "in gradients[:1]]", says="only the first tensor is counted")),
    ("lost", student("a list", SUM, "return [int(mask.sum()) for mask in lost]", kind=Kind.WRONG_SHAPE,
                     says="return a number")),
    ("update", student("not halved", "scale / 2", "scale", says="the scale is not halved", at_most=0.5)),
    ("update", student("doubled on inf", "scale / 2", "scale * 2", says="the scale is doubled where", at_most=0.5)),
    ("update", student("quartered", "scale / 2", "scale / 4", says="the scale is quartered")),
    ("update", student("down to 1", "scale / 2", "1.0", says="the scale falls to 1")),
    ("update", student("never grows", "scale * 2", "scale", says="the scale never grows", at_most=0.5)),
    ("update", student("halved after clean steps", "scale * 2", "scale / 2", says="the scale is halved after clean")),
    ("update", student("grows at every step", COUNT, "return scale * 2, clean_steps + 1",
                  says="grows at every clean step")),
    ("update", student("inf does not reset", "scale / 2, 0", "scale / 2, clean_steps",
                       says="the counter is not reset where a gradient is inf", at_most=0.7)),
    ("update", student("growth does not reset", GROW, "if clean_steps + 1 >= growth_interval:\n"
                       "        return scale * 2, clean_steps + 1", says="the counter is not reset after growth",
                  at_most=0.6)),
    ("update", student("inf is the first", "scale / 2, 0", "scale / 2, 1", says="counts as the first clean one",
                  at_most=0.7)),
    ("update", student("skipped steps count", "scale / 2, 0", "scale / 2, clean_steps + 1", "+ 1 ==", "+ 1 "
                     ">=", says="skipped steps count",
                       at_most=0.8)),
    ("update", student("one too late", "clean_steps + 1 ==", "clean_steps ==", says="one step too late", at_most=0.5)),
    ("update", student("one too early", "clean_steps + 1 ==", "clean_steps + 2 ==", says="one step too early",
                  at_most=0.5)),
    ("update", student("not below 1", "scale / 2, 0", "max(scale / 2, 1.0), 0", says="the scale stops at 1",
                  at_most=0.9)),
    ("update", student("the scale alone", COUNT, "return scale", kind=Kind.WRONG_SHAPE,
                  says="return (scale, clean_steps)")),
    ("update", student("nothing", COUNT, "return None, clean_steps", kind=Kind.WRONG_SHAPE,
                       says="return (scale, clean_steps)")),
    ("step", student("no scaling at all", BACK, "loss_of(weights).backward()", TRUE, TRUE.replace(" / scale", ""),
                     says="the loss is not scaled: multiply it", at_most=0.85)),
    ("step", student("only divided", BACK, "loss_of(weights).backward()", says="are divided all the same")),
    ("step", student("not unscaled", TRUE, TRUE.replace(" / scale", ""), says="never divided by the scale",
                  at_most=0.4)),
    ("step", student("multiplied", TRUE, TRUE.replace("/ scale", "* scale"), says="multiplied by the scale",
                  at_most=0.4)),
    ("step", student("divided in fp16", TRUE, "master.grad = (weight.grad / scale).float()", says="are divided in fp16",
                     at_most=0.85)),
    ("step", student("unscaled after clipping", TRUE, TRUE.replace(" / scale", ""), CLIP, CLIP + UNSCALE,
                     says="are clipped first and divided", at_most=0.85)),
    ("step", student("the learning rate divided", TRUE, TRUE.replace(" / scale", ""), STEP,
                     "for group in optimizer.param_groups:\n        group['lr'] /= scale\n    optimizer.step()\n"
                     "    for group in optimizer.param_groups:\n        group['lr'] *= scale",
                     says="the learning rate is divided by the scale", at_most=0.7)),
    ("step", student("not clipped", CLIP, "", says="gradients are not clipped", at_most=0.85)),
    ("step", student("clipped one by one", CLIP, "for master in masters:\n"
                     "        torch.nn.utils.clip_grad_norm_([master], max_norm)",
                  says="each tensor is clipped by itself")),
    ("step", student("values clipped", CLIP, CLIP.replace("norm_(", "value_("), says="the single values are clipped")),
    ("step", student("always normalised", CLIP,
                  "norm = torch.cat([master.grad.flatten() for master in masters]).norm()\n"
                     "    for master in masters:\n        master.grad *= max_norm / norm", says="made larger",
                  at_most=0.4)),
    ("step", student("step on inf", CHECK, "", says="the step is taken although a gradient is inf or NaN: check",
                     at_most=0.8)),
    ("step", student("checked after the update", CHECK, "", "return False",
                     "return not all(m.grad.isfinite().all() for m in masters)", says="and that is reported",
                     at_most=0.8)),
    ("step", student("masters checked after the update", CHECK, "", "return False",
                     "return not all(m.isfinite().all() for m in masters)", says="masters are checked, "
                     "after", at_most=0.8)),
    ("step", student("inf becomes 0", CHECK, "bad = not all(m.grad.isfinite().all() for m in masters)\n"
                     "    for m in masters:\n        m.grad = m.grad.nan_to_num(0.0, 0.0, 0.0)",
                     "return False", "return bad",
                     says="what is inf or NaN becomes 0", at_most=0.8)),
    ("step", student("all becomes 0", CHECK, "bad = not all(m.grad.isfinite().all() for m in masters)\n"
                     "    for m in masters:\n        m.grad = torch.zeros_like(m.grad) if bad else m.grad",
                     "return False", "return bad", says="the step is taken with zeros", at_most=0.95)),
    ("step", student("NaN forgotten", CHECK,
                  "if any(master.grad.isinf().any() for master in masters):\n        return True",
                     says="NaN is not counted", at_most=0.95)),
    ("step", student("first tensor", "for master in masters):\n        return True", "for master in masters[:1]):\n"
                     "        return True", says="only the first tensor's gradient", at_most=0.8)),
    ("step", student("last tensor", "for master in masters):\n        return True", "for master in masters[-1:]):\n"
                     "        return True", says="only the last tensor's gradient", at_most=0.8)),
    ("step", student("the loss checked", CHECK, "if not loss_of(weights).isfinite():\n        return True",
                     says="the loss is checked", at_most=0.8)),
    ("step", student("weights skipped, optimizer not", CHECK,
                  "skipped = not all(m.grad.isfinite().all() for m in masters)",
                     "with torch.no_grad():", "if skipped:\n        return True\n    with torch.no_grad():",
                     says="step 2: masters", at_most=0.8)),
    ("step", student("masters rounded", COPY, COPY + "\n            master.copy_(weight)",
                     says="masters are rounded to 16 bits", at_most=0.85)),
    ("step", student("masters from weights", BACK, "with torch.no_grad():\n        for m, w in zip(masters, weights):\n"
                     "            m.copy_(w)\n    " + BACK, says="masters are read from the 16-bit weights")),
    ("step", student("weights not written", "            weight.copy_(master)", "            pass",
                     says="the 16-bit weights are not written", at_most=0.5)),
    ("step", student("replaced in the list",
                  "for master, weight in zip(masters, weights):\n            weight.copy_(master)",
                     "for i, master in enumerate(masters):\n            weights[i] = master.half().requires_grad_()",
                     says="the 16-bit weights are not written", at_most=0.5)),
    ("step", student("never cleared", CLEAR, "", says="gradients are not cleared", at_most=0.5)),
    ("step", student("masters cleared alone", CLEAR, "", "return False", "optimizer.zero_grad()\n    return False",
                     says="gradients are not cleared")),
    ("step", student("not cleared when skipped", CLEAR, "", "return False",
                     "for weight in weights:\n        weight.grad = None\n    return False",
                     says="after a step that is skipped gradients are not cleared", at_most=0.8)),
    ("step", student("no step", STEP, "", says="the optimizer makes no step", at_most=0.3)),
    ("step", student("inverted", "return True", "return None", "return False", "return True", "return None",
                  "return False",
                     says="the other way round", at_most=0.0)),
    ("step", student("skipped in silence", "return True", "return False", says="must return True", at_most=0.8)),
    ("step", student("nothing returned", "return False", "return", kind=Kind.WRONG_SHAPE,
                     says="return True if the step was skipped", at_most=0.0)),
    ("step", student("forward with masters", BACK,
                  "for m in masters:\n        m.requires_grad_()\n        m.grad = None\n"
                     "    (loss_of(masters) * scale).backward()\n    for m, w in zip(masters, weights):\n"
                     "        w.grad = m.grad.half()\n        m.requires_grad_(False)", kind=Kind.WRONG_ROUTE,
                     says="the forward pass ran in float32", at_most=0.0)),
    ("step", student("forward without weights", BACK, "for w in weights:\n        w.grad = torch.ones_like(w)",
                     kind=Kind.WRONG_ROUTE, says="loss_of was not called", at_most=0.0)),
    ("step", student("weights in fp32", COPY, "weight.data = master.clone()", kind=Kind.WRONG_SHAPE,
                     says="must stay in 16 bits", at_most=0.3)),
    ("step", student("masters in fp16", COPY, COPY + "\n            master.data = master.half()", kind=Kind.WRONG_SHAPE,
                     says="masters must stay fp32", at_most=0.3)),
]  # fmt: skip


def of(part: str, made: Student) -> Any:
    found = written("loss_scaling", CELLS[part], *made.changes, given={"np": np})[CELLS[part]]
    if part not in ("scale", "lost"):
        return found
    scale, lost = (written("loss_scaling", CELLS[name])[CELLS[name]] for name in ("scale", "lost"))
    return (found, lost) if part == "scale" else (scale, found)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(IDS[part], of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    assert_refused(checks.run(IDS[part], of(part, made)), made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    name = CELLS[part]
    assert_stubs_and_results_are_told_apart(IDS[part], name, (name, name) if part in ("scale", "lost") else name)


def test_one_of_two_functions_is_judged_while_the_other_is_a_stub() -> None:
    scale, _ = of("scale", student("the solution"))
    source = "def stub(*arguments, **named):\n    raise NotImplementedError()\n"
    stub = written("loss_scaling", "num_lost", (cells("loss_scaling")["num_lost"], source))["stub"]
    result = checks.run("loss_scaling/1", (scale, stub))
    assert result.kind is Kind.NOT_ATTEMPTED
    assert 0.4 < result.score < 0.7


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize("mistake", updates.MISTAKES, ids=lambda mistake: mistake.cause[:50])
def test_every_listed_update_is_found_and_named(mistake: updates.Mistake, hidden: bool) -> None:
    def update(scale: float, state: Any, found_inf: bool, growth_interval: int) -> tuple[float, int]:
        history.append(found_inf)
        if not state:
            history[:] = [found_inf]
            first[:] = [scale]
        case = updates.Case(start=first[0], interval=growth_interval, overflows=tuple(history), name="")
        return case.mistaken(mistake)[-1], len(history)

    history: list[bool] = []
    first: list[float] = []
    result = checks.run("loss_scaling/2", update, **(HIDDEN["update"] if hidden else {}))
    assert mistake.cause in result.message, result.message


@pytest.mark.parametrize("mistake", stepping.MISTAKES, ids=lambda mistake: mistake.cause[:50])
def test_every_listed_step_is_found_and_named_in_the_hidden_check(mistake: training.Mistake) -> None:
    """A cause that fits nothing could never be named; students above are judged by the visible check."""
    result = checks.run("loss_scaling/3", partial(training.step_with, mistake), **HIDDEN["step"])
    assert mistake.cause in result.message, result.message


def test_every_listed_scale_is_one_of_the_questions() -> None:
    """Each cause differs from the right answer in at least one question, so that it can be named."""
    for options in ({}, HIDDEN["scale"]):
        causes: dict[str, bool] = {}
        for item in scales.properties(**options):
            for question in item.judge.__closure__[0].cell_contents:
                for cause, value in question.mistakes:
                    causes[cause] = causes.get(cause, False) or value != question.want
        assert len(causes) > 20
        assert [cause for cause, differs in causes.items() if not differs] == []


def test_the_right_update_is_gradscalers() -> None:
    for seed in range(3):
        overflows = tuple((torch.rand(120, generator=torch.Generator().manual_seed(seed)) < 0.1).tolist())
        case = updates.Case(start=65536.0, interval=6, overflows=overflows, name="")
        assert case.mistaken(updates.Mistake()) == case.scales()


def by_grad_scaler(
    loss_of: Callable[[list[Tensor]], Tensor],
    masters: list[Tensor],
    weights: list[Tensor],
    optimizer: torch.optim.Optimizer,
    scale: float,
    max_norm: float,
) -> bool:
    """The same step, with torch.amp.GradScaler's unscaling and skipping."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(loss_of(weights)).backward()
    for master, weight in zip(masters, weights, strict=True):
        master.grad, weight.grad = weight.grad.float(), None
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(masters, max_norm)
    scaler.step(optimizer)
    scaler.update()
    with torch.no_grad():
        for master, weight in zip(masters, weights, strict=True):
            weight.copy_(master)
    return scaler.get_scale() < scale


@pytest.mark.parametrize("seed", [0, 295])
def test_the_right_step_is_gradscalers(seed: int) -> None:
    result = checks.run("loss_scaling/3", by_grad_scaler, seed=seed)
    assert result.passed, result.message


@pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adamw"])
def test_the_right_step_is_that_of_fp32_training(adam: bool) -> None:
    """With gradients that fp16 holds exactly, masters go as plain fp32 training does."""
    draw = torch.Generator().manual_seed(0)
    start = tuple(torch.randn(shape, generator=draw) for shape in ((3, 4), (5,)))
    whole = [tuple(torch.randint(-64, 64, x.shape, generator=draw) / 64 for x in start) for _ in range(6)]
    run = training.Run(masters=start, gradients=tuple(whole), max_norm=0.7, adam=adam, learning_rate=0.1)
    facts = list(run.follow(partial(training.step_with, stepping.RIGHT)))
    plain = [x.clone() for x in start]
    optimizer = torch.optim.SGD(plain, lr=0.1)
    if adam:
        optimizer = torch.optim.AdamW(plain, lr=0.1, eps=1e-15, weight_decay=0.0)
    for step, gradients in zip(facts, whole, strict=True):
        for parameter, gradient in zip(plain, gradients, strict=True):
            parameter.grad = gradient.clone()
        torch.nn.utils.clip_grad_norm_(plain, 0.7)
        optimizer.step()
        torch.testing.assert_close(list(step.masters), plain, rtol=2e-6, atol=2e-6)


def test_the_page_says_what_the_functions_give() -> None:
    scale, lost = of("scale", student("the solution"))
    page = [torch.tensor([0.0, 3e-8, -2e-5, 0.003])]
    assert (scale(page), lost(page, 1.0)) == (2.0**24, 0)
    assert pytest.approx(2.18e7, rel=0.01) == 65504 / 0.003
    update = of("update", student("the solution"))
    state, rows = (8.0, 0), []
    for inf in (False, False, True, False, True, False):
        state = update(*state, inf, 2)
        rows.append(state)
    assert rows == [(8, 1), (16, 0), (8, 0), (8, 1), (4, 0), (4, 1)]
    assert torch.tensor(1.0).half() + torch.tensor(0.0001).half() == 1
