"""Part 1: attention whose keys and values begin with a trained prefix, and the positions of the tokens behind it.

Any way of computing it is allowed. Output and gradients are held to the formula in float64.

Source: X. L. Li and P. Liang, Prefix-tuning: optimizing continuous prompts for generation, 2021, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.prefix_tuning.attention import INPUTS, MISTAKES, Attention, attend
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import Step, refuse_functions

FUNCTIONS = ("prefix_attention", "token_positions")


@dataclass(frozen=True, kw_only=True)
class Case:
    """The inputs of one call.

    Args:
        seed: of all numbers.
        batch, heads, tokens, dim, length: sizes; length is the prefix's.
        size: factor of queries and keys.
    """

    seed: int
    batch: int = 2
    heads: int = 3
    tokens: int = 7
    dim: int = 8
    length: int = 4
    size: float = 1.0

    @property
    def text(self) -> str:
        """The input in words."""
        shape = (self.batch, self.heads, self.tokens, self.dim)
        larger = f", scores {self.size**2:g} times as large" if self.size != 1 else ""
        return f"q, k, v of shape {shape}, a prefix of {self.length}, float32{larger}, seed {self.seed}"

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """The arguments, and the gradient of the output."""
        generator = torch.Generator().manual_seed(self.seed)
        tokens = (self.batch, self.heads, self.tokens, self.dim)
        prefix = (self.heads, self.length, self.dim)
        shapes = {"q": tokens, "k": tokens, "v": tokens, "prefix_k": prefix, "prefix_v": prefix, "upstream": tokens}
        found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        return found | {name: self.size * found[name] for name in ("q", "k", "prefix_k")}

    def right_gradients(self) -> Mapping[str, Tensor]:
        """Of all arguments, through the formula."""
        leaves = {name: self.tensors[name].double().requires_grad_() for name in INPUTS}
        found = torch.autograd.grad(attend(leaves), [*leaves.values()], self.tensors["upstream"].double())
        return dict(zip(INPUTS, found, strict=True))


def properties(*, seed: int = 0, heads: int = 3, tokens: int = 7, dim: int = 8, length: int = 4) -> list[Property]:
    """What must hold for `prefix_attention(q, k, v, prefix_k, prefix_v)` and `token_positions(...)`.

    Args:
        seed: of all numbers.
        heads, tokens, dim, length: sizes of the first case; length is the prefix's.
    """
    first = Case(seed=seed, heads=heads, tokens=tokens, dim=dim, length=length)
    seen = Once(partial(observe, first))
    whole = "each token sees the prefix, and the tokens up to itself"
    return [
        _property(whole, first, judge_output, seen, weight=4),
        _property("the prefix may be longer than the text", Case(seed=seed + 1, tokens=3, length=9), judge_output),
        _property("a single token sees the prefix and itself", Case(seed=seed + 2, tokens=1), judge_output),
        _property("with an empty prefix it is causal attention", Case(seed=seed + 3, length=0), judge_output),
        _property("large scores do not overflow", Case(seed=seed + 4, size=12.0), judge_output, needs=(whole,)),
        _property("the prefix gets its gradients", first, partial(judge_gradients, ("prefix_k", "prefix_v")), seen,
                  weight=2, needs=(whole,)),
        _property("gradients run on to the layers below", first, partial(judge_gradients, ("q", "k", "v")), seen,
                  needs=(whole,)),
        _positions("shifted, the tokens' positions begin behind the prefix", tokens, length, True),
        _positions("not shifted, they begin at 0", tokens, length, False),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def observe(case: Case, student: Sequence[Callable[..., Any]]) -> Observation:
    """Call the student's attention, and go back from its output."""

    def there_and_back(**tensors: Tensor) -> tuple[Any, Mapping[str, Tensor | None]]:
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        output = student[0](**leaves)
        if isinstance(output, Tensor) and output.requires_grad and output.shape == case.tensors["q"].shape:
            output.backward(case.tensors["upstream"].to(output.dtype))
        found = output.detach().clone() if isinstance(output, Tensor) else output
        return found, {name: leaf.grad for name, leaf in leaves.items()}

    return observe_plainly(there_and_back, {name: case.tensors[name] for name in INPUTS})


def _property(
    name: str,
    case: Case,
    judge: Callable[[Case, Any], Outcome],
    seen: Callable[[Any], Observation] | None = None,
    weight: float = 1.0,
    needs: tuple[str, ...] = (),
) -> Property:
    return Property(
        name=name, observe=seen or partial(observe, case), judge=lambda got: judge(case, got.outputs["result"]),
        where=case.text, weight=weight, needs=needs,
    )  # fmt: skip


def judge_output(case: Case, result: tuple[Any, Mapping[str, Tensor | None]]) -> Outcome:
    """Judge what the tokens get."""
    got, right = result[0], attend(case.tensors)
    rows = case.tokens + case.length
    if isinstance(got, Tensor) and case.length and got.ndim == 4 and got.shape[2] == rows:
        cause = (
            f"the output has {rows} rows, {case.length} of them for the prefix: it has keys and values, but no queries"
        )
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    mistakes = [Hypothesis(how.cause, partial(attend, case.tensors, how)) for how in MISTAKES if _applies(case, how)]
    allowed = allowed_error(torch.float32, float(right.abs().max()) * max(1.0, case.size))
    return judge_tensor(
        got, Expected(name="the output", value=right, dtype=torch.float32, allowed=allowed, mistakes=mistakes)
    )


def _applies(case: Case, how: Attention) -> bool:
    """Whether a mistake can be made here; without a prefix, a first token that does not see itself sees nothing."""
    return bool(case.length) or how.mask != "strict"


def judge_gradients(names: Sequence[str], case: Case, result: tuple[Any, Mapping[str, Tensor | None]]) -> Outcome:
    """Judge the gradients of some arguments; the first that is wrong is reported."""
    right = case.right_gradients()
    for name in names:
        got = result[1][name]
        if got is None:
            why = "it is what is trained" if name.startswith("prefix") else "the prefixes of the layers below need it"
            cause = f"{name} gets no gradient: {why}. Was it detached, or used under torch.no_grad()?"
            return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"the gradient of {name} is None", cause=cause)
        allowed = allowed_error(torch.float32, float(right[name].abs().max()))
        expected = Expected(name=f"the gradient of {name}", value=right[name], dtype=torch.float32, allowed=allowed)
        outcome = judge_tensor(got, expected)
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def _positions(name: str, tokens: int, length: int, shifted: bool) -> Property:
    inputs = {"num_tokens": tokens, "prefix_length": length, "shifted": shifted}
    return Step(
        position=1, inputs=inputs, judge=partial(judge_positions, tokens, length, shifted),
        where=", ".join(f"{name}={value}" for name, value in inputs.items()),
    ).as_property(name)  # fmt: skip


def judge_positions(tokens: int, length: int, shifted: bool, got: Any) -> Outcome:
    """Judge the positions, which may be a list."""
    values = got.tolist() if isinstance(got, Tensor) and got.ndim == 1 else got
    if not isinstance(values, list | tuple | range) or not all(isinstance(value, int) for value in values):
        cause = f"return {tokens} whole numbers, such as torch.arange gives them"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    start, found = length if shifted else 0, list(values)
    want = list(range(start, start + tokens))
    if found == want:
        return Outcome(name="")
    causes = {
        tuple(range(tokens)): "the tokens are not shifted: the prefix takes the first positions",
        tuple(range(length, length + tokens)): "the tokens are shifted: here the prefix takes no positions",
        tuple(range(length + tokens)): "there are positions for the prefix, too: return those of the tokens",
        tuple(range(length + 1, length + 1 + tokens)): "positions count from 0: the prefix has 0 to length - 1",
        tuple(range(1, 1 + tokens)): "positions count from 0",
        tuple(range(-length, tokens - length)): "the tokens are shifted to the left: the prefix stands before them",
    }
    kind = Kind.WRONG_VALUE if len(found) == tokens else Kind.WRONG_SHAPE
    return Outcome(
        name="", kind=kind, difference=f"expected {want}, got {found}", cause=causes.get(tuple(found), "")
    )
