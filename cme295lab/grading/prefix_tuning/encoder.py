"""Part 3: an MLP makes the prefix while it is trained; afterwards the prefix alone is kept.

The MLP's row for a position holds, layer by layer, its keys and then its values, head after head. What is asked for is
the order in which attention reads them. What is kept must give the same outputs, and hold nothing of the MLP.

Source: X. L. Li and P. Liang, Prefix-tuning, 2021, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cme295lab.grading.compare import Expected, Hypothesis, judge_tensor, largest_difference
from cme295lab.grading.exercise import Once, Property
from cme295lab.grading.observe import Observation
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.prefix_tuning.attention import attend
from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.steps import refuse_functions

FUNCTIONS = ("make_prefix", "keep_prefix", "trainable")
_ALLOWED = 1e-5


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A model, its prefix and its MLP.

    Args:
        seed: of all numbers.
        num_layers, num_heads, head_dim: of the model.
        length: of the prefix.
        hidden: of the MLP.
    """

    seed: int
    num_layers: int = 3
    num_heads: int = 2
    head_dim: int = 5
    length: int = 4
    hidden: int = 7

    @property
    def text(self) -> str:
        """In words."""
        return (
            f"num_layers={self.num_layers}, num_heads={self.num_heads}, dim={self.dim}, a prefix of {self.length}, "
            f"seed {self.seed}"
        )

    @property
    def dim(self) -> int:
        """The model's width."""
        return self.num_heads * self.head_dim

    def parts(self) -> tuple[nn.Parameter, nn.Sequential, nn.Module]:
        """Embeddings, MLP and base; the global random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            width = 2 * self.num_layers * self.dim
            mlp = nn.Sequential(nn.Linear(self.dim, self.hidden), nn.Tanh(), nn.Linear(self.hidden, width))
            base = nn.ModuleList([nn.Linear(self.dim, 3 * self.dim) for _ in range(self.num_layers)])
            return nn.Parameter(torch.randn(self.length, self.dim)), mlp, base

    def rows(self) -> Tensor:
        """The MLP's output in float64, (length, numbers)."""
        embeddings, mlp, _ = self.parts()
        first, last = mlp[0], mlp[2]
        weights = [parameter.detach().double() for layer in (first, last) for parameter in layer.parameters()]
        hidden = torch.tanh(embeddings.detach().double() @ weights[0].T + weights[1])
        return hidden @ weights[2].T + weights[3]

    def right(self) -> Tensor:
        """The prefix, (layers, 2, heads, length, head_dim)."""
        blocks = self.rows().view(self.length, self.num_layers, 2, self.num_heads, self.head_dim)
        return blocks.permute(1, 2, 3, 0, 4)

    def wrong(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """Causes, and the prefixes that they give."""
        layers, heads, length, dim = self.num_layers, self.num_heads, self.length, self.head_dim
        rows, right = self.rows(), self.right()
        yield "the numbers are reshaped at once: a row belongs to a position; split its numbers first, then permute", (
            lambda: rows.reshape(layers, 2, heads, length, dim)
        )
        yield "values come before keys: keys are first", lambda: right.flip(1)
        yield "keys and values share a prefix: each has its own half", lambda: right[:, :1].expand_as(right)
        yield "keys and values share a prefix: each has its own half", lambda: right[:, 1:].expand_as(right)
        yield "all keys are taken to come before all values: in a row, each layer has its keys and then its values", (
            lambda: rows.view(length, 2, layers, heads, dim).permute(2, 1, 3, 0, 4)
        )
        yield "heads are taken to be interleaved: in a row, the numbers of a head are neighbours", (
            lambda: rows.view(length, layers, 2, dim, heads).permute(1, 2, 4, 0, 3)
        )
        yield "heads are taken to come before keys and values: in a row, a layer has its keys and then its values", (
            lambda: rows.view(length, layers, heads, 2, dim).permute(1, 3, 2, 0, 4)
        )
        yield "every layer gets the prefix of the first: each has its own", lambda: right[:1].expand_as(right)

    def run(self, prefix: Tensor) -> Tensor:
        """What the frozen model makes of six tokens behind a prefix, in float64."""
        _, _, base = self.parts()
        x = torch.randn(1, 6, self.dim, generator=torch.Generator().manual_seed(self.seed + 1)).double()
        for layer, (keys, values) in zip(base.children(), prefix.detach().double()):
            weight, bias = (parameter.detach().double() for parameter in layer.parameters())
            parts = (x @ weight.T + bias).view(1, 6, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
            tokens = dict(zip(("q", "k", "v"), parts))
            x = x + attend({**tokens, "prefix_k": keys, "prefix_v": values}).transpose(1, 2).reshape(1, 6, self.dim)
        return x


def properties(
    *, seed: int = 0, num_layers: int = 3, num_heads: int = 2, head_dim: int = 5, length: int = 4
) -> list[Property]:
    """What must hold for `make_prefix`, `keep_prefix` and `trainable`.

    Args:
        seed: of all numbers.
        num_layers, num_heads, head_dim: of the model.
        length: of the prefix.
    """
    sizes = Sizes(seed=seed, num_layers=num_layers, num_heads=num_heads, head_dim=head_dim, length=length)
    made, kept, trained = (Once(partial(watch, sizes)) for watch in (observe_made, observe_kept, observe_trained))
    whole, same = "the MLP's rows become keys and values of every layer", "what is kept gives the same outputs"
    frozen = "the base is frozen"

    def of(
        name: str, seen: Once, judge: Callable[[Sizes, Any], Outcome], weight: float = 1.0, needs: tuple[str, ...] = ()
    ) -> Property:
        return Property(
            name=name, observe=seen, judge=lambda got: judge(sizes, got.outputs["result"]), where=sizes.text,
            weight=weight, needs=needs,
        )  # fmt: skip

    return [
        of(whole, made, judge_made, weight=3),
        of("gradients reach the MLP and the embeddings", made, judge_reached, needs=(whole,)),
        of(same, kept, judge_kept, weight=2),
        of("nothing of the MLP is kept", kept, judge_dropped, weight=2, needs=(same,)),
        of(frozen, trained, judge_frozen, weight=2),
        of("the optimizer gets the embeddings and the MLP", trained, judge_trained, weight=2),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_functions(student, FUNCTIONS)


def observe_made(sizes: Sizes, student: Sequence[Callable[..., Any]]) -> Observation:
    """The student's prefix, and the gradients that a sum of squares of it gives."""

    def run() -> tuple[Any, list[str]]:
        embeddings, mlp, _ = sizes.parts()
        prefix = student[0](embeddings, mlp, sizes.num_layers, sizes.num_heads)
        if isinstance(prefix, Tensor) and prefix.requires_grad:
            prefix.square().sum().backward()
        named = {"embeddings": embeddings, **{f"mlp.{name}": value for name, value in mlp.named_parameters()}}
        lacking = [name for name, parameter in named.items() if parameter.grad is None]
        return (prefix.detach().clone() if isinstance(prefix, Tensor) else prefix), lacking

    return observe_plainly(run, {})


def observe_kept(sizes: Sizes, student: Sequence[Callable[..., Any]]) -> Observation:
    """What the student keeps, and what hangs on it."""

    def run() -> tuple[Any, Mapping[str, Any]]:
        embeddings, mlp, _ = sizes.parts()
        before = [parameter.detach().clone() for parameter in (embeddings, *mlp.parameters())]
        kept = student[1](embeddings, mlp, sizes.num_layers, sizes.num_heads)
        if not isinstance(kept, Tensor):
            return kept, {}
        facts = {"graph": kept.grad_fn is not None, "bytes": kept.untyped_storage().nbytes()}
        found = kept.detach().clone()
        with torch.no_grad():  # training may go on: what is kept is a copy
            for parameter in (embeddings, *mlp.parameters()):
                parameter.add_(1.0)
        facts["alias"] = not torch.equal(kept.detach(), found)
        facts["numbers"] = sum(parameter.numel() for parameter in before)
        return found, facts

    return observe_plainly(run, {})


def observe_trained(sizes: Sizes, student: Sequence[Callable[..., Any]]) -> Observation:
    """What the student gives to the optimizer, and what the base is afterwards."""

    def run() -> tuple[Any, Mapping[str, Any]]:
        embeddings, mlp, base = sizes.parts()
        found = student[2](base, embeddings, mlp)
        owners = {id(parameter): "base" for parameter in base.parameters()}
        owners |= {id(parameter): "mlp" for parameter in mlp.parameters()} | {id(embeddings): "embeddings"}
        parameters = _flat(found)
        names = None if parameters is None else [owners.get(id(parameter), "unknown") for parameter in parameters]
        facts = {
            "base": [parameter.requires_grad for parameter in base.parameters()],
            "rest": all(parameter.requires_grad for parameter in (embeddings, *mlp.parameters())),
            "repeated": parameters is not None and len({id(p) for p in parameters}) < len(parameters),
        }
        return names, facts

    return observe_plainly(run, {})


def _flat(found: Any) -> list[Tensor] | None:
    """The parameters in what an optimizer takes: tensors, or dictionaries with "params"; None if it is neither."""
    if found is None or isinstance(found, Tensor | str | dict):
        return None
    flat: list[Tensor] = []
    for item in found:
        inner = item["params"] if isinstance(item, dict) and "params" in item else item
        flat += [inner] if isinstance(inner, Tensor) else [*inner]
    return flat if all(isinstance(parameter, Tensor) for parameter in flat) else None


def _judge_prefix(sizes: Sizes, got: Any) -> Outcome:
    right = sizes.right()
    heads, length = 2, 3
    if isinstance(got, Tensor) and got.ndim == 5 and got.shape == right.transpose(heads, length).shape != right.shape:
        cause = f"heads come before positions: (layers, 2, heads, length, head_dim), yours is {tuple(got.shape)}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    mistakes = [Hypothesis(cause, output) for cause, output in sizes.wrong()]
    return judge_tensor(
        got, Expected(name="the prefix", value=right, dtype=torch.float32, allowed=_ALLOWED, mistakes=mistakes)
    )


def judge_made(sizes: Sizes, result: tuple[Any, list[str]]) -> Outcome:
    """Judge the prefix number by number."""
    return _judge_prefix(sizes, result[0])


def judge_reached(sizes: Sizes, result: tuple[Any, list[str]]) -> Outcome:
    """Judge whether training would change all of it."""
    if not result[1]:
        return Outcome(name="")
    cause = f"{', '.join(result[1][:2])} get no gradient: no detach(), and no torch.no_grad(), while it is trained"
    return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)


def judge_kept(sizes: Sizes, result: tuple[Any, Mapping[str, Any]]) -> Outcome:
    """Judge the outputs of the frozen model with what was kept."""
    outcome = _judge_prefix(sizes, result[0])
    if outcome.passed:
        return outcome
    if outcome.kind is Kind.WRONG_VALUE:
        difference = largest_difference("the output", sizes.run(result[0]), sizes.run(sizes.right()), _ALLOWED)
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=str(difference), cause=outcome.cause)
    return outcome


def judge_dropped(sizes: Sizes, result: tuple[Any, Mapping[str, Any]]) -> Outcome:
    """Judge whether the MLP could be freed now."""
    kept, facts = result
    if facts["graph"]:
        cause = "the MLP is kept: what you return hangs on its graph. Make it under torch.no_grad(), or detach() it"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference="it has a grad_fn", cause=cause)
    if facts["alias"]:
        cause = "what is kept changes when the MLP or the embeddings do: keep a copy"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    enough = kept.numel() * kept.element_size()
    if facts["bytes"] > enough:
        difference = f"{facts['bytes']:,} bytes are kept, {enough:,} are enough"
        cause = "what is kept is a view of something larger: clone it"
        return Outcome(name="", kind=Kind.TOO_MUCH_MEMORY, difference=difference, cause=cause)
    return Outcome(name="")


def judge_frozen(sizes: Sizes, result: tuple[list[str] | None, Mapping[str, Any]]) -> Outcome:
    """Judge the base's requires_grad, and whether the optimizer has it."""
    names, facts = result
    if names is not None and "base" in names:
        cause = "the base is trained: its parameters are among those that you return"
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    if any(facts["base"]):
        cause = (
            "the base's parameters require gradients: autograd makes and stores them although no optimizer uses them. "
            "requires_grad_(False) for each"
        )
        return Outcome(name="", kind=Kind.WRONG_VALUE, cause=cause)
    return Outcome(name="")


def judge_trained(sizes: Sizes, result: tuple[list[str] | None, Mapping[str, Any]]) -> Outcome:
    """Judge what the optimizer would get."""
    names, facts = result
    if names is None:
        cause = "return a list of parameters, as an optimizer takes it"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, cause=cause)
    if not facts["rest"]:
        cause = "the embeddings or the MLP are frozen, too: they are what is trained"
    elif facts["repeated"]:
        cause = "a parameter is there twice"
    elif "unknown" in names:
        cause = "there are tensors that are none of the parameters: return the parameters themselves, no copies"
    elif "embeddings" not in names:
        cause = "the embeddings are missing: they are trained with the MLP"
    elif names.count("mlp") < 4:
        cause = "parameters of the MLP are missing: it has two matrices and two biases"
    else:
        return Outcome(name="")
    return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"returned: {', '.join(names) or 'none'}", cause=cause)
