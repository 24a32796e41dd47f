"""Part 1: a linear layer with an adapter: what it is made of, how it begins, what it computes and what it learns.

A and B are found by their shapes among what the layer has to train, so how a student stores them is free: nn.Parameter,
nn.Linear, transposed. Then they are filled with numbers of the check's, and the layer is held to the product.

Source: E. Hu et al., LoRA, 2021: h = W0 x + (alpha / r) B A x, A random, B zero.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

NAME = "LoRALinear"
_ALLOWED = 2e-5
_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A layer to build.

    Args:
        seed: of the base's numbers, the input and the adapter's.
        in_features, out_features, rank: three different numbers.
        alpha: of the scale.
        bias: whether the base has one.
        dropout: probability.
    """

    seed: int
    in_features: int
    out_features: int
    rank: int
    alpha: float
    bias: bool = True
    dropout: float = 0.0

    @property
    def where(self) -> str:
        """The layer in words."""
        return (
            f"nn.Linear({self.in_features}, {self.out_features}, bias={self.bias}), rank={self.rank}, "
            f"alpha={self.alpha:g}, dropout={self.dropout:g}"
        )

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / self.rank

    def normal(self, number: int, *shape: int) -> Tensor:
        """Random numbers, others for each number."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(1000 * self.seed + number))

    def base(self) -> nn.Linear:
        """A fresh base."""
        base = nn.Linear(self.in_features, self.out_features, bias=self.bias)
        with torch.no_grad():
            base.weight.copy_(self.normal(0, self.out_features, self.in_features) / self.in_features**0.5)
            if self.bias:
                base.bias.copy_(self.normal(1, self.out_features))
        return base

    def adapter(self) -> tuple[Tensor, Tensor]:
        """What A and B are filled with."""
        a = self.normal(2, self.rank, self.in_features) / self.in_features**0.5
        return a, self.normal(3, self.out_features, self.rank)

    def role(self, shape: torch.Size) -> str:
        """Which part has this shape: "A", "B", "weight", "bias", or an empty string."""
        known = {
            "A": (self.rank, self.in_features), "B": (self.out_features, self.rank),
            "weight": (self.out_features, self.in_features),
        }  # fmt: skip
        found = [name for name, sizes in known.items() if tuple(shape) in (sizes, sizes[::-1])]
        return found[0] if found else "bias" if tuple(shape) == (self.out_features,) else ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A parameter of the student's layer."""

    role: str
    value: Tensor
    trained: bool
    gradient: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a layer was seen to be and to do.

    Args:
        is_module: whether it is an nn.Module.
        parts: its parameters.
        output: of one forward pass.
        again: of a forward pass in evaluation mode.
    """

    is_module: bool
    parts: tuple[Part, ...] = ()
    output: Any = None
    again: Any = None

    def of(self, role: str) -> list[Part]:
        """The trained parts with this role."""
        return [part for part in self.parts if part.trained and part.role == role]


def properties(
    *, seed: int = 0, in_features: int = 10, out_features: int = 7, rank: int = 3, alpha: float = 8.0
) -> list[Property]:
    """What must hold for `LoRALinear(base, rank, alpha, dropout)`.

    Args:
        seed: of all random numbers.
        in_features, out_features, rank: of the layer, three different numbers.
        alpha: of the scale; neither the rank, nor 1, nor a multiple of the rank.
    """
    make = partial(Setting, seed=seed, in_features=in_features, out_features=out_features, rank=rank, alpha=alpha)
    plain, bare, dropping = make(), make(bias=False), make(dropout=0.5)
    x, rows = plain.normal(4, 2, 5, in_features), 3.0 * torch.eye(in_features).repeat(_ROWS, 1)[:_ROWS]
    fresh, filled = Once(partial(observe, plain, x, False)), Once(partial(observe, plain, x, True))
    dropped = Once(partial(observe, dropping, rows, True))
    trained, product = "A and B are trained, and nothing else", "the adapter adds alpha / rank times B A x"
    needs, whole = (trained,), (trained, product)
    return [
        Property(name=trained, observe=fresh, judge=partial(judge_parts, plain), where=plain.where, weight=2),
        Property(name="at the start the output is the base's", observe=fresh, judge=partial(judge_start, plain, x),
                 where=plain.where, needs=needs),
        Property(name="A is random and B is zero", observe=fresh, judge=judge_numbers, where=plain.where, needs=needs),
        Property(name=product, observe=filled, judge=partial(judge_output, plain, x), where=plain.where, weight=3,
                 needs=needs),
        Property(name="A and B get their gradients", observe=filled, judge=partial(judge_gradients, plain, x),
                 where=plain.where, needs=whole),
        Property(name="a base without bias, and a single vector", observe=partial(observe, bare, x[0, 0], True),
                 judge=partial(judge_output, bare, x[0, 0]), where=bare.where, needs=whole),
        Property(name="dropout lies on the way to A alone", observe=dropped, where=dropping.where, needs=whole,
                 judge=partial(judge_dropout, dropping, rows)),
        Property(name="in evaluation mode nothing is dropped", observe=dropped, where=dropping.where, needs=whole,
                 judge=partial(judge_again, dropping, rows)),
    ]  # fmt: skip


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    if not callable(student) or isinstance(student, nn.Module):
        cause = f"hand over the class {NAME} itself, not an object of it"
        return Outcome(name="there is a class", kind=Kind.WRONG_SHAPE, cause=cause)
    return refuse_function(student, NAME) if inspect.isfunction(student) else None


def observe(setting: Setting, x: Tensor, fill: bool, student: Callable[..., Any]) -> Observation:
    """Build a layer, fill A and B if asked to, and run it forward and backward."""

    def run() -> Facts:
        torch.manual_seed(setting.seed)
        layer = student(setting.base(), setting.rank, setting.alpha, setting.dropout)
        if not isinstance(layer, nn.Module):
            return Facts(is_module=False)
        layer.train()
        if fill:
            _fill(setting, layer)
        leaf = x.clone().requires_grad_()  # so that there is something to differentiate, whatever is frozen
        output = layer(leaf)
        if isinstance(output, Tensor) and output.requires_grad:
            (output * setting.normal(5, *output.shape)).sum().backward()
        parts = tuple(
            Part(role=setting.role(p.shape), value=p.detach().clone(), trained=p.requires_grad, gradient=p.grad)
            for p in layer.parameters()
        )
        layer.eval()
        again = layer(x.clone())
        return Facts(is_module=True, parts=parts, output=output, again=again)

    with torch.random.fork_rng(devices=[]):
        return observe_plainly(run, {})


def _fill(setting: Setting, layer: nn.Module) -> None:
    values = dict(zip("AB", setting.adapter(), strict=True))
    for parameter in layer.parameters():
        value = values.get(setting.role(parameter.shape))
        if value is not None and parameter.requires_grad:
            with torch.no_grad():
                parameter.copy_(value if parameter.shape == value.shape else value.T)


def judge_parts(setting: Setting, seen: Observation) -> Outcome:
    """Judge what the optimizer would get."""
    facts: Facts = seen.outputs["result"]
    if not facts.is_module:
        cause = f"{NAME} must be an nn.Module: class {NAME}(nn.Module), and super().__init__() first"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    cause = _wrong_parts(setting, facts)
    if not cause:
        return Outcome(name="")
    trained = [part for part in facts.parts if part.trained]
    shapes = ", ".join(str(tuple(part.value.shape)) for part in trained) or "nothing"
    want = f"{(setting.rank, setting.in_features)} and {(setting.out_features, setting.rank)}"
    difference = f"expected parameters {want} to train, got {shapes}"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def _wrong_parts(setting: Setting, facts: Facts) -> str:
    """What is wrong with the parameters; empty if nothing is."""
    missing = [role for role in "AB" if not facts.of(role)]
    frozen = [role for role in missing if any(part.role == role for part in facts.parts)]
    if frozen:
        return f"{' and '.join(frozen)} must be trained: freeze the base's parameters only"
    if missing:
        return (
            f"{' and '.join(missing)} cannot be found among the layer's parameters: an nn.Parameter (or nn.Linear) "
            "that is an attribute is registered, a plain tensor or one in a list is not; A is (rank, in_features), B "
            "(out_features, rank)"
        )
    if facts.of("weight"):
        return "the base's weight is trained: freeze it, requires_grad_(False)"
    if facts.of("bias"):
        return "the base's bias is trained: freeze it, too"
    if [part for part in facts.parts if part.trained and part.role == ""]:
        return "there is more to train than A and B: an nn.Linear inside needs bias=False"
    if len(facts.of("A")) > 1 or len(facts.of("B")) > 1:
        return "there is more than one A or B"
    return ""


def judge_start(setting: Setting, x: Tensor, seen: Observation) -> Outcome:
    """Judge the output of a fresh layer."""
    facts: Facts = seen.outputs["result"]
    base = setting.base()
    value = nn.functional.linear(x.double(), base.weight.double(), base.bias.double()).detach()
    mistakes = [
        Hypothesis("the base's output is missing: the adapter's is added to it", lambda: torch.zeros_like(value)),
        Hypothesis("the base's bias is missing", lambda: value - base.bias.detach().double()),
    ]
    if not all(bool(part.value.isfinite().all()) for part in facts.parts):
        cause = "A or B holds inf or NaN: torch.empty fills nothing"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    random = any(bool((part.value != 0).any()) for part in facts.of("B"))
    cause = "the adapter changes the output before anything is learned: B must be zero" if random else ""
    return judge_tensor(
        facts.output, Expected(name="the output", value=value, dtype=torch.float32, allowed=_ALLOWED,
                               mistakes=() if random else mistakes, explain=lambda error: cause)
    )  # fmt: skip


def judge_numbers(seen: Observation) -> Outcome:
    """Judge the numbers that A and B begin with, and what the first gradient does."""
    facts: Facts = seen.outputs["result"]
    (a, *_), (b, *_) = facts.of("A"), facts.of("B")
    a_zero, b_zero = (not bool((part.value != 0).any()) for part in (a, b))
    cause = ""
    if a_zero and b_zero:
        cause = "A and B are both zero: then both gradients are zero, and nothing can ever be learned. A is random"
    elif a_zero:
        cause = "it is the other way round: A, which x meets first, is random, and B is zero"
    elif not b_zero:
        cause = "A and B are both random: B must be zero, or the output changes at the start"
    elif float((a.value == 0).double().mean()) > 0.1 or a.value.double().std() < 1e-12:
        cause = "A must be random in every number: equal rows would learn the same, as if the rank were 1"
    elif int(torch.linalg.matrix_rank(a.value.double().nan_to_num())) < min(a.value.shape):
        cause = "the rows of A depend on each other: make every number random"
    if not cause:
        return Outcome(name="")
    difference = "; ".join(
        f"{name} between {float(part.value.min()):.3g} and {float(part.value.max()):.3g}, largest gradient "
        f"{0.0 if part.gradient is None else float(part.gradient.abs().max()):.3g}"
        for name, part in (("A", a), ("B", b))
    )
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)


def product(setting: Setting, x: Tensor, scale: float, a: Tensor, b: Tensor) -> Tensor:
    """What the adapter adds, in float64."""
    return scale * (x.double() @ a.double().T @ b.double().T)


def _base_output(setting: Setting, x: Tensor) -> tuple[Tensor, Tensor]:
    """Product with the weight, and bias, in float64."""
    base = setting.base()
    bias = base.bias.detach().double() if setting.bias else torch.zeros(setting.out_features, dtype=torch.float64)
    return x.double() @ base.weight.detach().double().T, bias


def scales(setting: Setting) -> Iterator[tuple[str, float]]:
    """Causes, and the scale that each gives."""
    alpha, rank = setting.alpha, setting.rank
    yield "the scale is missing: multiply by alpha / rank", 1.0
    yield "the scale is upside down: it is alpha / rank", rank / alpha
    yield "the scale is alpha alone: divide by the rank", alpha
    yield "the scale is 1 / rank: alpha is missing", 1 / rank
    yield "the scale is alpha / sqrt(rank), that of rsLoRA: here it is alpha / rank", alpha / math.sqrt(rank)
    yield "the scale is cut off to a whole number: // where / is meant", float(alpha // rank)
    yield "the scale is taken twice", (alpha / rank) ** 2
    yield "the scale is alpha * rank: divide by the rank", alpha * rank
    yield "the adapter is subtracted: it is added", -alpha / rank
    yield "the scale is alpha / in_features: divide by the rank", alpha / setting.in_features
    yield "A and B are not used in forward", 0.0


def judge_output(setting: Setting, x: Tensor, seen: Observation) -> Outcome:
    """Judge the output with A and B filled."""
    return _judge_product(setting, x, seen.outputs["result"].output, {})


def judge_again(setting: Setting, x: Tensor, seen: Observation) -> Outcome:
    """Judge the output in evaluation mode."""
    cause = "something is dropped in evaluation mode: use nn.Dropout, or look at self.training"
    return _judge_product(setting, x, seen.outputs["result"].again, {"explain": lambda error: cause})


def _judge_product(setting: Setting, x: Tensor, got: Any, more: dict[str, Any]) -> Outcome:
    a, b = setting.adapter()
    through, bias = _base_output(setting, x)
    add = partial(product, setting, x, a=a, b=b)
    right = add(scale=setting.scale)
    mistakes = [Hypothesis(cause, lambda s=scale: through + bias + add(scale=s)) for cause, scale in scales(setting)]  # type: ignore[misc]
    mistakes += [
        Hypothesis("the base's output is missing: the adapter's is added to it", lambda: right),
        Hypothesis("the base's bias is missing", lambda: through + right),
        Hypothesis("the base's bias is added twice", lambda: through + 2 * bias + right),
        Hypothesis("the base's output is multiplied by the scale as well",
                   lambda: setting.scale * (through + bias) + right),
        Hypothesis("the sum is multiplied by the scale: only the adapter's part is",
                   lambda: setting.scale * (through + bias + add(scale=1.0))),
    ]  # fmt: skip
    value = through + bias + right
    return judge_tensor(
        got, Expected(name="the output", value=value, dtype=torch.float32, allowed=_ALLOWED * setting.alpha,
                      mistakes=mistakes, **more)
    )  # fmt: skip


def judge_gradients(setting: Setting, x: Tensor, seen: Observation) -> Outcome:
    """Judge the gradients of A and B, by autograd on the product."""
    facts: Facts = seen.outputs["result"]
    leaves = {name: value.double().requires_grad_() for name, value in zip("AB", setting.adapter(), strict=True)}
    output = product(setting, x, setting.scale, leaves["A"], leaves["B"])
    (output * setting.normal(5, *output.shape)).sum().backward()
    for role, leaf in leaves.items():
        got, want = facts.of(role)[0].gradient, leaf.grad
        assert want is not None
        if got is None:
            cause = f"no gradient reaches {role}: detach(), .data or no_grad() cuts it off"
            return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
        value = want if got.shape == want.shape else want.T
        name = f"the gradient of {role}"
        outcome = judge_tensor(got, Expected(name=name, value=value, dtype=torch.float32,
                                             allowed=1e-5 * float(want.abs().max())))  # fmt: skip
        if not outcome.passed:
            return outcome
    return Outcome(name="")


def judge_dropout(setting: Setting, x: Tensor, seen: Observation) -> Outcome:
    """Judge the output in training, where every row of x has one number that is not 0: it is kept, doubled, or not."""
    got = seen.outputs["result"].output
    through, bias = _base_output(setting, x)
    added = product(setting, x, setting.scale, *setting.adapter())
    shaped = judge_tensor(got, Expected(name="the output", value=through + bias, dtype=torch.float32,
                                        allowed=torch.inf))  # fmt: skip
    if not shaped.passed:
        return shaped
    rest = got.detach().double() - through - bias

    def near(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).abs() <= 1e-3 * added.abs().max()

    whole = near(rest, torch.zeros_like(rest)) | near(rest, 2 * added)
    kept = near(rest, 2 * added).all(1).double().mean()
    if bool((near(rest, torch.zeros_like(rest)).all(1) | near(rest, 2 * added).all(1)).all()) and 0.1 < kept < 0.9:
        return Outcome(name="")
    doubled = through + 2 * added
    if bool(near(rest, added).all()):
        cause = "nothing is dropped in training: dropout(x) goes into A"
    elif bool((near(rest, -through).all(1) | near(rest, doubled).all(1)).all()):
        cause = "the base's input is dropped as well: only what goes into A is"
    elif bool(whole.all()):
        cause = "numbers of the adapter's output are dropped: drop its input, before A"
    elif bool((near(rest, torch.zeros_like(rest)).all(1) | near(rest, added).all(1)).all()):
        cause = "what is kept must be divided by 1 - dropout: use nn.Dropout"
    else:
        cause = "dropout must be on x, before A, and on nothing else"
    difference = f"{(~whole).double().mean():.0%} of the numbers are neither without the adapter nor with twice of it"
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
