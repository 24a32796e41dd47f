"""Part 4: accepting and rejecting proposals. The draw is the check's own, so it sees what the student draws from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.compare import Expected, Hypothesis, allowed_error, judge_tensor
from cme295lab.grading.exercise import Property
from cme295lab.grading.observe import Observation, refuse_function
from cme295lab.grading.observe_plainly import observe_plainly
from cme295lab.grading.result import Kind, Outcome

_DRAWN = 99  # the token that the check's draw returns: no proposal is it


@dataclass
class Draw:
    """Stands in for a random draw: keeps what it was asked to draw from, and always returns the same token."""

    asked: list[Any] = field(default_factory=list)

    def __call__(self, probabilities: Any) -> int:
        """Keep the distribution; the token."""
        self.asked.append(probabilities.detach().clone() if isinstance(probabilities, Tensor) else probabilities)
        return _DRAWN


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of the student's function.

    Args:
        p: the target's distributions, (num_draft + 1, vocab).
        q: the draft's, (num_draft, vocab).
        proposals: tokens.
        uniforms: numbers in [0, 1).
        where: the input in words.
    """

    p: Tensor
    q: Tensor
    proposals: list[int]
    uniforms: Tensor
    where: str

    @property
    def num_accepted(self) -> int:
        """Proposals before the first that is rejected."""
        for i, token in enumerate(self.proposals):
            if self.uniforms[i] * self.q[i, token] >= self.p[i, token]:
                return i
        return len(self.proposals)

    def observe(self, student: Callable[..., Any]) -> Observation:
        """Call the student's function; outputs["result"] is its tokens and what it drew from."""
        draw = Draw()
        inputs = {"p": self.p, "q": self.q, "uniforms": self.uniforms}
        proposals = list(self.proposals)

        def call(**tensors: Tensor) -> tuple[Any, list[Any]]:
            return student(proposals=proposals, draw=draw, **tensors), draw.asked

        return observe_plainly(call, inputs)


def properties(*, seed: int = 0, vocab: int = 6, num_draft: int = 4) -> list[Property]:
    """What must hold for `speculative_step(p, q, proposals, uniforms, draw) -> tokens`.

    Args:
        seed: seeds the distributions.
        vocab: tokens, at least 5.
        num_draft: proposals, at least 3.
    """
    generator = torch.Generator().manual_seed(seed)
    p = (1.5 * torch.randn(num_draft + 1, vocab, generator=generator)).softmax(-1)
    q = (1.5 * torch.randn(num_draft, vocab, generator=generator)).softmax(-1)
    page_p, page_q = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]]), torch.tensor([[0.2, 0.2, 0.6]])
    accepted = "a proposal x is accepted if u < p(x) / q(x)"
    return [
        _decisions("the example of the page is decided right", page_p, page_q, "the page's p and q"),
        _decisions(accepted, p, q, f"random p and q over {vocab} tokens, seed {seed}", weight=2),
        *(
            _whole_step(name, _step(p, q, num_accepted, seed), (accepted,))
            for name, num_accepted in (
                ("after a rejection the draw is from max(p - q, 0), renormalised", 0),
                ("proposals behind a rejection are dropped", num_draft - 2),
                ("if all are accepted, one more token is drawn from the target", num_draft),
            )
        ),
    ]


def refuse(student: Any) -> Outcome | None:
    """Say why this cannot be checked."""
    return refuse_function(student, "speculative_step")


def _step(p: Tensor, q: Tensor, num_accepted: int, seed: int) -> Step:
    """A step that accepts so many: where one must be rejected, the draft likes its token more than the target."""
    num_draft = len(q)
    surplus = q - p[:-1]
    proposals = [int(surplus[i].argmax() if i == num_accepted else surplus[i].argmin()) for i in range(num_draft)]
    uniforms = torch.full((num_draft,), 0.5)
    if num_accepted < num_draft:
        token = proposals[num_accepted]
        uniforms[num_accepted] = 0.5 * (1 + p[num_accepted, token] / q[num_accepted, token])  # above the ratio, below 1
    where = (
        f"{num_draft} proposals {proposals} over {p.shape[-1]} tokens, seed {seed}: "
        + (f"the one at place {num_accepted} must be rejected" if num_accepted < num_draft else "all must be accepted")
    )  # fmt: skip
    return Step(p=p, q=q, proposals=proposals, uniforms=uniforms, where=where)


def _decisions(name: str, p: Tensor, q: Tensor, where: str, weight: float = 1.0) -> Property:
    """Each token as the single proposal, with uniform numbers on either side of its threshold."""
    steps = []
    for token in range(p.shape[-1]):
        ratio = float(p[0, token] / q[0, token])
        # On either side of the ratio, and where known mistakes decide differently: of q/p, p and 1 - p/q.
        numbers = {0.001, 0.999, min(0.98 * ratio, 0.99), min(1.02 * ratio, 0.99), 0.5 * ratio, 0.5 * (1 + ratio)}
        for number in sorted(u for u in numbers if 0 <= u < 1):
            text = f"{where}: proposal {token}, p = {p[0, token]:.4g}, q = {q[0, token]:.4g}, u = {number:.4g}"
            steps.append(Step(p=p[:2], q=q[:1], proposals=[token], uniforms=torch.tensor([number]), where=text))

    def observe(student: Callable[..., Any]) -> Observation:
        results = []
        for step in steps:
            seen = step.observe(student)
            if seen.error is not None or seen.changed_inputs:
                return seen
            results.append(seen.outputs["result"])
        return Observation(outputs={"results": results})

    def judge(seen: Observation) -> Outcome:
        return judge_decisions(steps, seen.outputs["results"])

    return Property(name=name, observe=observe, judge=judge, where=where, weight=weight)


def judge_decisions(steps: Sequence[Step], results: Sequence[Any]) -> Outcome:
    """Judge whether each proposal was accepted: then it comes first in the tokens, and another behind it."""
    for step, result in zip(steps, results):
        outcome = _refuse_result(step, result)
        if outcome is not None:
            return outcome
    got = [_accepts(step, tokens, asked) for step, (tokens, asked) in zip(steps, results)]
    for step, accepted in zip(steps, got):
        if accepted != bool(step.num_accepted):
            words = ("rejected", "accepted")
            difference = f"expected {words[not accepted]}, got {words[accepted]}"
            cause = _decision_cause(steps, got)
            return Outcome(name="", kind=Kind.WRONG_VALUE, where=step.where, difference=difference, cause=cause)
    return Outcome(name="")


def _accepts(step: Step, tokens: Sequence[int], asked: Sequence[Any]) -> bool:
    """Whether the proposal is in the result, and not only because a rejected one was left there."""
    if list(tokens[:1]) != step.proposals:
        return False
    missing = _normal((step.p[0] - step.q[0]).clamp(min=0))
    return not (asked and isinstance(asked[-1], Tensor) and torch.allclose(asked[-1].float(), missing, atol=1e-4))


def _decision_cause(steps: Sequence[Step], got: Sequence[bool]) -> str:
    """The rule that decides as the student's does everywhere; an empty string if none is known."""
    rules: dict[str, Callable[[float, float, float], bool]] = {
        "everything is accepted: a proposal that the draft likes more than the target may be rejected": (
            lambda p, q, u: True
        ),
        "everything is rejected": lambda p, q, u: False,
        "the uniform number plays no part: where p(x) < q(x), x is still accepted with probability p(x) / q(x)": (
            lambda p, q, u: p >= q
        ),
        "it accepts where p(x) < q(x), which is where it may have to reject": lambda p, q, u: p < q,
        "the ratio is upside down: it is p(x) / q(x)": lambda p, q, u: u < q / p,
        "the comparison is upside down: accept if u < p(x) / q(x)": lambda p, q, u: u >= p / q,
        "u is held against p(x) alone: the draft proposes x as often as q(x) says, so divide by q(x)": (
            lambda p, q, u: u < p
        ),
        "u is held against q(x): what counts is p(x) / q(x)": lambda p, q, u: u < q,
        "u is held against p(x) · q(x): what counts is p(x) / q(x)": lambda p, q, u: u < p * q,
    }
    facts = [
        (float(step.p[0, step.proposals[0]]), float(step.q[0, step.proposals[0]]), float(step.uniforms[0]))
        for step in steps
    ]
    for cause, rule in rules.items():
        if all(rule(*fact) == accepted for fact, accepted in zip(facts, got)):
            return cause
    if any(fact[2] < 0.002 and not accepted for fact, accepted in zip(facts, got)):
        return "are the numbers those of `uniforms`? With random numbers of your own, nobody can repeat the run"
    return ""


def _whole_step(name: str, step: Step, needs: tuple[str, ...]) -> Property:
    def judge(seen: Observation) -> Outcome:
        return judge_step(step, seen.outputs["result"])

    return Property(name=name, observe=step.observe, judge=judge, where=step.where, needs=needs)


def judge_step(step: Step, result: Any) -> Outcome:
    """Judge the tokens of a step, then what the last one was drawn from."""
    outcome = _refuse_result(step, result)
    if outcome is not None:
        return outcome
    tokens, asked = list(result[0]), result[1]
    num = step.num_accepted
    want = [*step.proposals[:num], _DRAWN]
    if not asked:
        cause = (
            "nothing was drawn: after all proposals one more token comes from p[-1], which is there already"
            if tokens == step.proposals
            else "the last token is not drawn with draw(probabilities): with random numbers of your own, nobody can "
            "repeat the run"
        )
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=f"expected {want}, got {tokens}", cause=cause)
    if tokens != want:
        cause = _tokens_cause(step, tokens, want)
        difference = f"expected {want} (draw gives {_DRAWN}), got {tokens}"
        return Outcome(name="", kind=Kind.WRONG_VALUE, difference=difference, cause=cause)
    return judge_tensor(asked[-1], _expected_draw(step))


def _tokens_cause(step: Step, tokens: list[int], want: list[int]) -> str:
    num = step.num_accepted
    if len(tokens) > len(want) and num < len(step.proposals):
        if tokens[: num + 1] == step.proposals[: num + 1]:
            return "the proposal that was rejected is in the result"
        return "proposals behind a rejection are in the result: they continue a token that is not there"
    if tokens == [*step.proposals[:num], _DRAWN][1:] or tokens == [_DRAWN]:
        return "accepted proposals are missing from the result"
    if tokens == want[:-1]:
        return "the token that was drawn is missing from the result"
    return ""


def _expected_draw(step: Step) -> Expected:
    """What the last token of a step must be drawn from, and what known mistakes draw from."""
    num = step.num_accepted
    p = step.p[num].double()
    mistakes = []
    if num == len(step.proposals):
        last_q, last_p = step.q[-1].double(), step.p[-2].double()
        surplus = (last_p - last_q).clamp(min=0)
        mistakes = [
            Hypothesis("that is the draft's distribution: the target has one for this place, p[-1]", lambda: last_q),
            Hypothesis("that is p of the last proposal: the place behind it is p[-1]", lambda: last_p),
            Hypothesis("nothing was rejected, so nothing is to be made up for: p[-1]", lambda: surplus / surplus.sum()),
        ]
        value = p
    else:
        q = step.q[num].double()
        surplus = (p - q).clamp(min=0)
        value = surplus / surplus.sum()
        after = step.p[num + 1].double()
        mistakes = [
            Hypothesis("that is p: the draft's favourites would come too often. Draw from max(p - q, 0)", lambda: p),
            Hypothesis("that is q: draw from max(p - q, 0)", lambda: q),
            Hypothesis("max(p - q, 0) does not sum to 1: divide it by its sum", lambda: surplus),
            Hypothesis("negative differences are not cut off: max(p - q, 0)", lambda: p - q),
            Hypothesis("that is |p - q|: where q is larger, nothing is missing", lambda: _normal((p - q).abs())),
            Hypothesis("that is max(q - p, 0): the other way round", lambda: _normal((q - p).clamp(min=0))),
            Hypothesis("that is p one place further on", lambda: after),
            Hypothesis("p and q are those of the first place: take those where it was rejected",
                       lambda: _normal((step.p[0] - step.q[0]).double().clamp(min=0))),
        ]  # fmt: skip
    return Expected(
        name="what is drawn from",
        value=value,
        dtype=step.p.dtype,
        allowed=allowed_error(step.p.dtype, 4.0),
        mistakes=mistakes,
    )


def _normal(values: Tensor) -> Tensor:
    return values / values.sum()


def _refuse_result(step: Step, result: Any) -> Outcome | None:
    tokens = result[0]
    if not isinstance(tokens, list | tuple) or not all(isinstance(token, int) for token in tokens):
        cause = f"return a list of token numbers (int), not {tokens!r}"
        return Outcome(name="", kind=Kind.WRONG_SHAPE, where=step.where, cause=cause)
    return None
