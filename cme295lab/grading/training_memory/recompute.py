"""Part 3: a checkpoint that forgets what a layer computes, and computes it again in the backward pass.

The student's `checkpoint(function, x)` runs a few layers that count their calls. A plain run of the same layers, from
the same random state, is the truth: outputs and gradients must be equal to the bit. What autograd keeps is what is
alive after the forward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.grading.compare import largest_difference
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import (
    Observation,
    StudentError,
    TimeLimitReached,
    is_student,
    quiet,
    refuse_function,
    student_error,
    time_limit,
)
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.watch import Watch

_TIME_LIMIT_S = 10.0
_ROOM_BYTES = 16 * 1024  # per layer, for the state of the random numbers
_READY_MADE = {
    "torch.utils.checkpoint": "torch.utils.checkpoint does the work",
    "cme295lab.memory.recompute": "the course's library does the work",
}
_OUTPUT, _PLAIN, _DROPOUT = (
    "the output is that of the plain layers",
    "without dropout, all gradients are equal to the bit",
    "with dropout, all gradients are equal to the bit",
)
_NO_GRAPH = (
    "what is computed again has no graph: inside backward, and inside an autograd.Function, gradients are off. Compute "
    "under torch.enable_grad(), from x.detach().requires_grad_()"
)
_NOT_DETACHED = (
    "what is computed again still hangs on the graph of the layers before, and backward runs on into them: start from "
    "x.detach().requires_grad_()"
)
_OTHER_MASK = (
    "without dropout the gradients are right: the second computation draws another dropout mask. Keep the state of the "
    "random numbers (torch.get_rng_state) before the first, and put it back before the second"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A stack of layers and its input.

    Args:
        seed: of weights, input and dropout.
        num_layers: layers, each one checkpointed.
        tokens, dim: shape of the input.
        dropout: probability.
    """

    seed: int
    num_layers: int = 3
    tokens: int = 128
    dim: int = 32
    dropout: float = 0.0

    @property
    def text(self) -> str:
        """The input in words."""
        shape = f"x of shape ({self.tokens}, {self.dim}), float32"
        return f"{self.num_layers} layers in a row, dropout {self.dropout:g}, {shape}, seed {self.seed}"

    @property
    def input_bytes(self) -> int:
        """Bytes of the input of a layer."""
        return 4 * self.tokens * self.dim

    def layers(self) -> list[CountingLayer]:
        """The layers; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return [CountingLayer(self.dim, self.dropout) for _ in range(self.num_layers)]

    def input(self) -> Tensor:
        """The input, which needs a gradient."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        return torch.randn(self.tokens, self.dim, generator=generator).requires_grad_()


class CountingLayer(nn.Module):
    """An MLP with dropout that counts its calls, and notes who makes them.

    Args:
        dim: its width.
        dropout: probability.
    """

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.num_calls = 0
        self.callers: set[str] = set()

    def forward(self, x: Tensor) -> Tensor:
        """x, and what the MLP makes of it."""
        self.num_calls += 1
        self.callers |= _modules_on_the_stack()
        y: Tensor = x + self.dropout(self.second(self.dropout(nn.functional.gelu(self.first(x)))))
        return y


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run of the layers gave.

    Args:
        output: of the last layer.
        has_graph: whether autograd knows how the output came about.
        gradients: of the input and of all parameters, by name; None where there is none.
        calls: of the layers in the forward and in the backward pass.
        kept_bytes: alive after the forward pass, besides input, weights and output.
        next_number: what the random numbers go on with after the backward pass.
    """

    output: Any
    has_graph: bool
    gradients: Mapping[str, Tensor | None]
    calls: tuple[int, int]
    kept_bytes: int
    next_number: float


def properties(*, seed: int = 0, tokens: int = 128, dim: int = 32, num_layers: int = 3) -> list[Property]:
    """What must hold for `checkpoint(function, x)`.

    Args:
        seed: of weights, input and dropout.
        tokens, dim: shape of the input.
        num_layers: layers in a row.
    """
    plain = Case(seed=seed, tokens=tokens, dim=dim, num_layers=num_layers)
    dropped = replace(plain, dropout=0.25)
    on_plain, on_dropped = _observer(plain), _observer(dropped)
    return [
        _property(_OUTPUT, plain, on_plain, judge_output),
        _property(_PLAIN, plain, on_plain, judge_gradients, weight=2, needs=(_OUTPUT,)),
        _property(
            "after the forward pass, only the layers' inputs are kept",
            plain, on_plain, judge_memory, weight=2, needs=(_OUTPUT,),
        ),
        _property(
            "each layer is computed once in the forward and once in the backward pass",
            plain, on_plain, judge_calls, weight=2, needs=(_PLAIN,),
        ),
        _property(_DROPOUT, dropped, on_dropped, judge_gradients, weight=2, needs=(_PLAIN,)),
        _property(
            "afterwards, the random numbers go on as without a checkpoint",
            dropped, on_dropped, judge_random_numbers, needs=(_DROPOUT,),
        ),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "checkpoint")


def _property(
    name: str,
    case: Case,
    observe: Once,
    judge: Callable[[Case, Run], Outcome],
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    def judge_seen(seen: Observation) -> Outcome:
        return judge(case, seen.outputs["run"])

    return Property(name=name, observe=observe, judge=judge_seen, where=case.text, weight=weight, needs=needs)


def _observer(case: Case) -> Once:
    def observe(student: Callable[..., Any]) -> Observation:
        layers = case.layers()
        try:
            with quiet(), time_limit(_TIME_LIMIT_S):
                found = run_layers(case, layers, student)
        except (Exception, TimeLimitReached) as error:
            return Observation(error=_explained(student_error(error, _TIME_LIMIT_S)))
        callers = {name for layer in layers for name in layer.callers}
        forbidden = tuple(f"{text}: write it yourself" for name, text in _READY_MADE.items() if name in callers)
        return Observation(outputs={"run": found}, forbidden=forbidden)

    return Once(observe)


def run_layers(case: Case, layers: list[CountingLayer], apply: Callable[..., Any]) -> Run:
    """Run the layers forward and backward.

    Args:
        case: the input.
        layers: of the case.
        apply: calls a layer with its input: the student's checkpoint, or a plain call.
    """
    x = case.input()
    parameters = {f"layers.{i}.{name}": p for i, layer in enumerate(layers) for name, p in layer.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed + 2)
        watch = Watch(before_call=[x, *parameters.values()], is_student=is_student)
        y: Any = x
        with watch:
            for layer in layers:
                y = apply(layer, y)
            kept = watch.live_bytes - (y.untyped_storage().nbytes() if isinstance(y, Tensor) else 0)
        num_forward = sum(layer.num_calls for layer in layers)
        has_graph = isinstance(y, Tensor) and y.requires_grad
        if has_graph:
            y.backward(_upstream(case))  # type: ignore[no-untyped-call]
        num_backward = sum(layer.num_calls for layer in layers) - num_forward
        next_number = float(torch.rand(()))
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in {"x": x, **parameters}.items()}
    return Run(
        output=y.detach().clone() if isinstance(y, Tensor) else y,
        has_graph=has_graph,
        gradients=gradients,
        calls=(num_forward, num_backward),
        kept_bytes=kept,
        next_number=next_number,
    )


def _upstream(case: Case) -> Tensor:
    return torch.randn(case.tokens, case.dim, generator=torch.Generator().manual_seed(case.seed + 3))


def truth(case: Case) -> Run:
    """The plain run."""
    return run_layers(case, case.layers(), lambda layer, x: layer(x))


def judge_output(case: Case, run: Run) -> Outcome:
    """Judge the output of the forward pass."""
    got, want = run.output, truth(case).output
    if not isinstance(got, Tensor) or got.shape != want.shape:
        cause = f"checkpoint(function, x) must return what function(x) does: a tensor of shape {tuple(want.shape)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    difference = largest_difference("the output", got, want, 0.0)
    if difference.exceeds:
        cause = "run function(x) itself: the output must be equal to the bit"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=str(difference), cause=cause)
    if run.has_graph:
        return Outcome(name="")
    cause = (
        "the output needs no gradient: autograd does not know how it came about. Make it with an autograd.Function "
        "(its apply), whose forward gets x as an argument"
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference="the output has no grad_fn", cause=cause)


def judge_gradients(case: Case, run: Run) -> Outcome:
    """Judge all gradients: equal to the bit to those of the plain run."""
    want = truth(case).gradients
    lacking = [name for name, gradient in run.gradients.items() if gradient is None]
    if lacking:
        return Outcome(
            name="",
            kind=Kind.WRONG_VALUE,
            difference=f"there is no gradient of {', '.join(lacking[:3])}",
            cause=_why_none(lacking),
        )
    worst, doubled = None, []
    for name, right in want.items():
        got = run.gradients[name]
        assert got is not None
        assert right is not None
        if torch.equal(got, right):
            continue
        if torch.allclose(got, 2 * right):
            doubled.append(name)
        difference = largest_difference(f"the gradient of {name}", got, right, 0.0)
        if worst is None or abs(difference.got - difference.expected) > abs(worst.got - worst.expected):
            worst = difference
    if worst is None:
        return Outcome(name="")
    if doubled:
        cause = (
            f"the gradients of {', '.join(doubled[:3])} are twice what they must be: they reach the parameters on two "
            "ways, or the backward pass runs twice"
        )
    else:
        cause = _OTHER_MASK if case.dropout else ""
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=str(worst), cause=cause)


def _why_none(lacking: list[str]) -> str:
    if "x" in lacking and len(lacking) == 1:
        return (
            "backward must return the gradient of x: give the detached copy requires_grad_(), and return its .grad. "
            "The layers before need it"
        )
    if "x" in lacking:
        return (
            "the gradient ends on its way to x: backward must return it for x, in the place of its argument, so that "
            "the layers before get theirs"
        )
    return (
        "the parameters of the function get no gradient: run torch.autograd.backward on the output that was computed "
        "again, which fills the .grad of all of them; torch.autograd.grad for x alone does not"
    )


def judge_memory(case: Case, run: Run) -> Outcome:
    """Judge what is alive after the forward pass."""
    limit = case.num_layers * (case.input_bytes + _ROOM_BYTES)
    if run.kept_bytes <= limit:
        return Outcome(name="")
    plain = truth(case).kept_bytes
    difference = (
        f"{run.kept_bytes:,} bytes are kept besides the output; the inputs of {case.num_layers} layers are "
        f"{case.num_layers * case.input_bytes:,}, and without a checkpoint it would be {plain:,}"
    )
    cause = (
        "the activations are kept: function(x) runs with gradients on, so autograd saves what is inside, or the graph "
        "of it hangs on ctx. In the forward of an autograd.Function gradients are off"
    )
    return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)


def judge_calls(case: Case, run: Run) -> Outcome:
    """Judge how often the layers are computed."""
    forward, backward = (calls / case.num_layers for calls in run.calls)
    if (forward, backward) == (1, 1):
        return Outcome(name="")
    difference = f"each layer is computed {forward:g} times in the forward and {backward:g} times in the backward pass"
    if forward > 1:
        cause = "the forward pass needs each layer once: compute it once, and keep the input"
    elif backward > 1:
        cause = (
            "it is computed again more than once: let one second run give the gradients of x and of the parameters "
            "together"
        )
    else:
        cause = "nothing is computed again: what the backward pass uses was kept"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def judge_random_numbers(case: Case, run: Run) -> Outcome:
    """Judge whether what comes later draws the same random numbers as without a checkpoint."""
    want = truth(case).next_number
    if run.next_number == want:
        return Outcome(name="")
    difference = f"the next random number is {run.next_number:.6f}; without a checkpoint it is {want:.6f}"
    cause = (
        "the second computation leaves the random numbers where it ended, so later layers repeat their masks: put the "
        "state back that was there before it (torch.random.fork_rng does both)"
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _explained(error: StudentError) -> StudentError:
    if not error.cause and "does not require grad and does not have a grad_fn" in error.text:
        return replace(error, cause=_NO_GRAPH)
    if not error.cause and "backward through the graph a second time" in error.text:
        return replace(error, cause=_NOT_DETACHED)
    return error


def _modules_on_the_stack() -> set[str]:
    found: set[str] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        found.add(str(frame.f_globals.get("__name__", "")))
        frame = frame.f_back
    return found
