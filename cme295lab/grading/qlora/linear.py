"""Part 1: a layer whose weight has 4 bits and is frozen, with an adapter in full precision that is trained.

The layer runs forward and backward once for each case. Between the two, what is alive of the tensors that the forward
pass allocated is counted: the matrix in full size must not be among them. How that is done is free (an
autograd.Function, a checkpoint, hooks), as long as output and gradients are those of the formula.

Source: T. Dettmers et al., QLoRA: efficient finetuning of quantized LLMs, 2023, section 3, equation 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
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
from cme295lab.grading.qlora.products import FORWARD, OF_A, OF_B, OF_X, RIGHT, FrozenWeight, Layer, gradients, output
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.watch import Watch

_TIME_LIMIT_S = 10.0
_OUTPUT = "the output is the base's, and the scaled adapter's"
_TWO_DTYPES = "x and an adapter's matrix have different dtypes: convert A and B to x.dtype (A.to(x.dtype))"
_CAUSES = {
    "same dtype": _TWO_DTYPES,
    "expected scalar type": _TWO_DTYPES,
    "not a Variable": "backward returns a gradient for something that has none, such as the 4-bit weight: return None "
    "in its place",
    "can only save variables": "the 4-bit weight is no tensor: keep it as ctx.weight = weight",
    "incorrect number of gradients": "backward returns one value for each argument of forward; None for the 4-bit "
    "weight, and for what needs no gradient",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer and its input.

    Args:
        seed: of all numbers.
        shape: of x, without the features.
        in_features, out_features, rank: of the layer.
        dtype: of x.
        zero_b: whether B is 0, as training starts.
        x_trains: whether x needs a gradient.
    """

    seed: int
    shape: tuple[int, ...] = (6,)
    in_features: int = 160
    out_features: int = 128
    rank: int = 4
    dtype: torch.dtype = torch.float32
    zero_b: bool = False
    x_trains: bool = True
    scale: float = 2.5

    @property
    def text(self) -> str:
        """The input in words."""
        shape = (*self.shape, self.in_features)
        zero = ", B = 0" if self.zero_b else ""
        frozen = "" if self.x_trains else ", x needs no gradient"
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"x of shape {shape}, {dtype}, weight of shape ({self.out_features}, {self.in_features}), rank "
            f"{self.rank}, scale {self.scale}{zero}{frozen}, seed {self.seed}"
        )

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """x, A, B and the gradient that comes from behind."""
        generator = torch.Generator().manual_seed(self.seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        return {
            "x": numbers(*self.shape, self.in_features).to(self.dtype),
            "A": numbers(self.rank, self.in_features) / self.in_features**0.5,
            "B": (0.0 if self.zero_b else 0.3) * numbers(self.out_features, self.rank),
            "upstream": numbers(*self.shape, self.out_features).to(self.dtype),
        }

    def weight(self) -> FrozenWeight:
        """The frozen matrix."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        codes = torch.randint(16, (self.out_features, self.in_features), generator=generator, dtype=torch.uint8)
        return FrozenWeight(codes, 0.11)

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the frozen matrix in the dtype of x."""
        return self.in_features * self.out_features * self.dtype.itemsize

    def right_output(self, layer: Layer = RIGHT) -> Tensor:
        """The output."""
        t = self.tensors
        return output(t["x"], self.weight().values(), t["A"], t["B"], self.scale, layer)

    def right_gradients(self, layer: Layer = RIGHT) -> Mapping[str, Tensor]:
        """The gradients of x, A and B."""
        t = self.tensors
        return gradients(t["x"], self.weight().values(), t["A"], t["B"], self.scale, t["upstream"], layer)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one pass forward and backward gave.

    Args:
        output: of the layer.
        has_graph: whether autograd knows how it came about.
        gradients: of x, A and B; None where there is none.
        kept_bytes: alive after the forward pass, besides inputs and output.
        weight_trains: whether autograd would make a gradient for a matrix of the weight's shape.
        dtypes: in which the matrix was dequantised.
    """

    output: Any
    has_graph: bool
    gradients: Mapping[str, Tensor | None]
    kept_bytes: int
    weight_trains: bool
    dtypes: Sequence[torch.dtype]


def properties(
    *, seed: int = 0, tokens: int = 6, in_features: int = 160, out_features: int = 128, rank: int = 4
) -> list[Property]:
    """What must hold for `qlora_linear(x, weight, A, B, scale)`.

    Args:
        seed: of all numbers.
        tokens: rows of x.
        in_features, out_features, rank: of the layer; x and the adapter must be small beside the matrix.
    """
    plain = Case(seed=seed, shape=(tokens,), in_features=in_features, out_features=out_features, rank=rank)
    batch, start = replace(plain, shape=(2, 3)), replace(plain, zero_b=True)
    half, first = replace(plain, dtype=torch.bfloat16), replace(plain, x_trains=False)
    seen, seen_half = Once(partial(observe, plain)), Once(partial(observe, half))
    adapter, of_x = "A and B get their gradients", "x gets its gradient, through the base and the adapter"
    needs = (_OUTPUT,)
    return [
        _property(_OUTPUT, plain, seen, judge_output, weight=2),
        _property(adapter, plain, seen, partial(judge_gradients, ("A", "B")), weight=2, needs=needs),
        _property(of_x, plain, seen, partial(judge_gradients, ("x",)), weight=2, needs=needs),
        _property("the base is frozen", plain, seen, judge_frozen, needs=needs),
        _property("between forward and backward no dequantised matrix is kept", plain, seen, judge_memory, weight=3,
                  needs=needs),
        _property("x may have a batch dimension", batch, partial(observe, batch), judge_whole, needs=(adapter, of_x)),
        _property("training starts: with B = 0, B gets a gradient and A none", start, partial(observe, start),
                  judge_whole, needs=(adapter,)),
        _property("x may need no gradient, as in the first layer", first, partial(observe, first), judge_whole,
                  needs=(adapter,)),
        _property("in bfloat16, the output and the gradient of x are bfloat16", half, seen_half, judge_whole,
                  needs=(adapter, of_x)),
        _property("the matrix is dequantised in the dtype of x", half, seen_half, judge_dtypes),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "qlora_linear")


def _property(
    name: str,
    case: Case,
    seen: Callable[[Any], Observation],
    judge: Callable[[Case, Run], Outcome],
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    return Property(
        name=name, observe=seen, judge=lambda got: judge(case, got.outputs["run"]), where=case.text, weight=weight,
        needs=needs,
    )  # fmt: skip


def observe(case: Case, student: Callable[..., Any]) -> Observation:
    """Run the student's layer forward and backward."""
    inputs = {name: case.tensors[name].clone() for name in ("x", "A", "B")}
    for name, tensor in inputs.items():
        tensor.requires_grad_(case.x_trains or name != "x")
    try:
        with quiet(), time_limit(_TIME_LIMIT_S):
            run = _run(case, inputs, student)
    except (Exception, TimeLimitReached) as error:
        return Observation(error=_explained(student_error(error, _TIME_LIMIT_S)))
    changed = tuple(name for name, tensor in inputs.items() if not torch.equal(tensor, case.tensors[name]))
    return Observation(outputs={"run": run}, changed_inputs=changed)


def _run(case: Case, inputs: Mapping[str, Tensor], student: Callable[..., Any]) -> Run:
    weight = case.weight()
    watch = Watch(before_call=[*inputs.values(), weight.codes], is_student=is_student)
    with watch:
        y = student(x=inputs["x"], weight=weight, A=inputs["A"], B=inputs["B"], scale=case.scale)
        kept = watch.live_bytes - (y.untyped_storage().nbytes() if isinstance(y, Tensor) else 0)
    trains = isinstance(y, Tensor) and _reaches_a_leaf(y, weight.shape)
    has_graph = isinstance(y, Tensor) and y.requires_grad
    if has_graph and y.shape == case.tensors["upstream"].shape:
        y.backward(case.tensors["upstream"].to(y.dtype))
    return Run(
        output=y.detach().clone() if isinstance(y, Tensor) else y, has_graph=has_graph, kept_bytes=kept,
        gradients={name: None if t.grad is None else t.grad.clone() for name, t in inputs.items()},
        weight_trains=trains, dtypes=tuple(weight.dtypes),
    )  # fmt: skip


def _reaches_a_leaf(y: Tensor, shape: torch.Size) -> bool:
    """Whether the graph behind a tensor ends in a leaf of this shape, which would get a gradient."""
    nodes, known = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in known:
            continue
        known.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and leaf.shape in (shape, shape[::-1]):
            return True
        nodes += [behind for behind, _ in node.next_functions]
    return False


def _explained(error: StudentError) -> StudentError:
    cause = next((cause for part, cause in _CAUSES.items() if part in error.text), error.cause)
    return replace(error, cause=cause)


def judge_output(case: Case, run: Run) -> Outcome:
    """Judge the output, and whether there is a way back from it."""
    right = case.right_output()
    mistakes = [Hypothesis(layer.cause, partial(case.right_output, layer)) for layer in FORWARD]
    found = judge_tensor(run.output, _expected("the output", right, case, mistakes))
    if not found.passed or run.has_graph:
        return found
    cause = (
        "autograd does not know how the output came about: A and B must be used outside of torch.no_grad() and without "
        "detach(), or be arguments of an autograd.Function"
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference="the output has no grad_fn", cause=cause)


def _expected(name: str, right: Tensor, case: Case, mistakes: list[Hypothesis], of_x: bool = True) -> Expected:
    magnitude = float(right.abs().max())
    allowed = allowed_error(case.dtype, magnitude) * (2 if case.dtype == torch.bfloat16 else 1)

    def explain(error: Tensor) -> str:
        close = float(error.max()) < 0.02 * magnitude
        return "something was rounded to 16 bits on the way: compute in x.dtype" if close else ""

    return Expected(
        name=name, value=right, dtype=case.dtype if of_x else torch.float32, allowed=allowed, mistakes=mistakes,
        explain=explain,
    )  # fmt: skip


def judge_gradients(names: Sequence[str], case: Case, run: Run) -> Outcome:
    """Judge the gradients of some tensors; the first that is wrong is reported."""
    for name in names:
        outcome = _judge_gradient(name, case, run.gradients[name])
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _judge_gradient(name: str, case: Case, got: Tensor | None) -> Outcome:
    if got is None:
        cause = f"{name} gets no gradient: " + (
            "the layers before need it, although the base is frozen" if name == "x" else
            "it is trained. Was it detached, used under torch.no_grad(), or rounded to 4 bits?"
        )  # fmt: skip
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"the gradient of {name} is None", cause=cause)
    layers = {"x": OF_X, "A": OF_A, "B": OF_B}[name]
    mistakes = [Hypothesis(layer.cause, lambda layer=layer: case.right_gradients(layer)[name]) for layer in layers]  # type: ignore[misc]
    return judge_tensor(
        got, _expected(f"the gradient of {name}", case.right_gradients()[name], case, mistakes, of_x=name == "x")
    )


def judge_whole(case: Case, run: Run) -> Outcome:
    """Judge the output and all gradients."""
    outcome = judge_output(case, run)
    names = ("x", "A", "B") if case.x_trains else ("A", "B")
    return outcome if not outcome.passed else judge_gradients(names, case, run)


def judge_memory(case: Case, run: Run) -> Outcome:
    """Judge what is alive after the forward pass."""
    if run.kept_bytes <= case.matrix_bytes // 2:
        return Outcome(name="")
    difference = (
        f"{run.kept_bytes:,} bytes are kept besides x, A, B and the output; the dequantised matrix has "
        f"{case.matrix_bytes:,}, the 4-bit one {case.matrix_bytes // (2 * case.dtype.itemsize):,}"
    )
    cause = (
        "the dequantised matrix is kept for the backward pass: autograd saves it in x @ W.T, and so does "
        "ctx.save_for_backward(W). Keep the 4-bit weight (ctx.weight = weight), and dequantise again in backward. Or "
        "B @ A was made, which is as large: multiply x by A first, then by B"
    )
    return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)


def judge_frozen(case: Case, run: Run) -> Outcome:
    """Judge whether autograd makes a gradient for the base."""
    if not run.weight_trains:
        return Outcome(name="")
    cause = "the dequantised matrix requires a gradient: the base is frozen, and its 4 bits could not be updated"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference="W0 gets a gradient", cause=cause)


def judge_dtypes(case: Case, run: Run) -> Outcome:
    """Judge in which dtype the matrix was asked for."""
    others = [str(dtype).removeprefix("torch.") for dtype in run.dtypes if dtype != case.dtype]
    if run.dtypes and not others:
        return Outcome(name="")
    if not run.dtypes:
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause="weight.dequantize(dtype) was never called")
    cause = f"x is bfloat16, and the matrix was dequantised in {others[0]}: ask for x.dtype, weight.dequantize(x.dtype)"
    return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
