"""Beam search: several answers side by side, and only the most probable ones go on.

Greedy decoding takes the best token and never regrets it. Beam search keeps `num_beams` answers alive. At each step all
their continuations compete, by the *sum* of log-probabilities since the prompt, and the best go on:

    1. candidates: the 2 · num_beams best of num_beams × vocab continuations. Twice as many, so that num_beams are left
       to go on even if every beam's best token is the end token;
    2. those that end (end token, or max_new_tokens) and are among the best num_beams become answers;
    3. the best num_beams that do not end go on.

Longer answers have smaller probability, each token takes some away. So *answers* of different lengths |Y| are compared
after a length penalty, score = log P(Y) / penalty(|Y|):

    "gnmt"   ((5 + |Y|) / 6)^alpha     Wu et al. 2016, eq. 14; alpha 0.6 to 0.7. The default here.
    "power"  |Y|^alpha                 what `transformers` calls length_penalty, with alpha 1 as its default.

alpha = 0 is no penalty at all; either is 1 for |Y| = 1. |Y| counts new tokens, the end token among them. Both divide a
negative number: a larger alpha favours longer answers. Beams that go on all have the same length and need no penalty.

When to end. The search is over when there are num_beams answers and the best beam alive can no longer pass the worst of
them: its log-probability only falls, and the kindest penalty is that of the greatest length. So the bound is
log P / penalty(max_new_tokens) for alpha > 0. `transformers` calls this early_stopping="never". With
`stop_early=True` the search ends as soon as there are num_beams answers, their early_stopping=True. (Their default,
False, bounds by the present length instead, and may miss a longer, better answer.)

Every candidate is kept as a node of a tree, to be drawn.

Not covered: diverse and constrained beams, sampling within beams, several prompts at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cme295lab.transformer.decoder import DecoderLM
from cme295lab.transformer.decoding.context import CacheKind, Context
from cme295lab.transformer.decoding.prompts import check_max_new_tokens, check_prompt, check_tokens, evaluation_mode

PenaltyForm = Literal["gnmt", "power"]


@dataclass(frozen=True, kw_only=True)
class BeamNode:
    """A candidate: one more token on a beam.

    Attributes:
        id: its place in the tree's list.
        parent: id of the node that it continues; None for the first new token.
        step: how many new tokens came before it.
        token: its token.
        log_probability: sum over the new tokens up to here.
        kept: whether it went on as a beam, or became an answer.
        ends: whether it ends an answer (end token, or max_new_tokens reached).
    """

    id: int
    parent: int | None
    step: int
    token: int
    log_probability: float
    kept: bool
    ends: bool


@dataclass(frozen=True, kw_only=True)
class Beam:
    """An answer.

    Attributes:
        tokens: the new tokens, with the end token if there is one.
        log_probability: sum of the log-probabilities of its tokens.
        score: log_probability divided by the length penalty: what answers are ranked by.
        node: id of its last token in the tree.
    """

    tokens: list[int]
    log_probability: float
    score: float
    node: int


@dataclass(frozen=True, kw_only=True)
class BeamResult:
    """Answers, best first, and the tree of all candidates that were considered, in the order of their ids."""

    beams: list[Beam]
    tree: list[BeamNode]

    def path(self, node: int) -> list[int]:
        """Ids from the first new token to this node."""
        return _path(self.tree, node)


def _path(tree: list[BeamNode], node: int) -> list[int]:
    ids: list[int] = []
    at: int | None = node
    while at is not None:
        ids.append(at)
        at = tree[at].parent
    return ids[::-1]


def length_penalty_divisor(length: int, alpha: float, form: PenaltyForm = "gnmt") -> float:
    """What the log-probability of an answer of this many tokens is divided by.

    Example:
        >>> round(length_penalty_divisor(10, 0.6), 6), round(length_penalty_divisor(20, 0.6), 6)
        (1.732862, 2.354362)

    Raises:
        ValueError: if the form is unknown, or the length below 1.

    Source: Wu et al. 2016, "Google's Neural Machine Translation System", eq. 14, without its coverage penalty.
    """
    if form not in get_args(PenaltyForm):
        raise ValueError(f"length_penalty_form must be 'gnmt' or 'power', got {form!r}")
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    return float(((5 + length) / 6) ** alpha if form == "gnmt" else length**alpha)


@torch.no_grad()
def beam_search(
    model: DecoderLM,
    prompt: Sequence[int] | Int[Tensor, " seq"],
    *,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 0.6,
    length_penalty_form: PenaltyForm = "gnmt",
    end_token: int | None = None,
    stop_early: bool = False,
    cache: CacheKind | None = "static",
) -> BeamResult:
    """The most probable answers that beam search finds.

    Args:
        model: in any mode; dropout is off within.
        prompt: token numbers.
        num_beams: answers kept alive, and at most returned; 1 is greedy decoding.
        max_new_tokens: answers end here at the latest.
        length_penalty: the exponent alpha.
        length_penalty_form: "gnmt" or "power" (of `transformers`).
        end_token: ends an answer.
        stop_early: end as soon as there are num_beams answers.
        cache: "static", "growing" or None: the same answers, at other costs.

    Raises:
        TypeError, ValueError: if the prompt does not fit the model (see `generate`), or an option is out of range.
    """
    check_max_new_tokens(max_new_tokens)
    tokens = check_prompt(prompt, model.config, max_new_tokens)
    if isinstance(num_beams, bool) or not isinstance(num_beams, int) or num_beams < 1:
        raise ValueError(f"num_beams must be an integer of at least 1, got {num_beams!r}")
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, got {length_penalty}")
    if end_token is not None:
        check_tokens([end_token], model.config, "end_token")
    longest_divisor = length_penalty_divisor(max_new_tokens, length_penalty, length_penalty_form)

    device = model.embedding.weight.device
    context = Context(model, cache, batch_size=num_beams, max_seq=len(tokens) + max_new_tokens)
    search = _Search(num_beams, max_new_tokens, length_penalty, length_penalty_form, end_token)
    with evaluation_mode(model):
        logits = context.read_alike(torch.tensor(tokens, device=device))
        for step in range(max_new_tokens):
            rows = search.advance(step, logits[:, -1])
            if step + 1 == max_new_tokens or search.is_over(stop_early, longest_divisor):
                break
            context.reorder(torch.tensor(rows, device=device))
            last = [search.tree[node].token for node in search.alive]
            # A tiny vocabulary may offer fewer beams than there are rows; the rows that are left over read along.
            last += [last[0]] * (num_beams - len(last))
            logits = context.read(torch.tensor(last, device=device)[:, None])
    return BeamResult(beams=sorted(search.answers, key=lambda beam: -beam.score), tree=search.tree)


@dataclass
class _Search:
    """The search itself, without a model: log-probabilities in, beams out."""

    num_beams: int
    max_new_tokens: int
    alpha: float
    form: PenaltyForm
    end_token: int | None
    tree: list[BeamNode] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)  # nodes that go on, best first; row i of the model is alive[i]
    answers: list[Beam] = field(default_factory=list)

    def advance(self, step: int, logits: Float[Tensor, "rows vocab"]) -> list[int]:
        """One step of the search; which row each row of the model continues."""
        parents: list[int | None] = list(self.alive) if step else [None]
        sums = torch.tensor([self.tree[node].log_probability for node in self.alive] if step else [0.0])
        # In fp32 as in `transformers`: sums of a few hundred terms, whose error is far below the gaps between beams.
        totals = logits[: len(parents)].float().log_softmax(-1) + sums.to(logits.device)[:, None]
        best = totals.flatten().topk(min(2 * self.num_beams, totals.numel()))
        candidates = [(value, i) for value, i in zip(best.values.tolist(), best.indices.tolist()) if value != -math.inf]
        if not candidates or math.isnan(candidates[0][0]):  # topk takes NaN for the largest
            raise ValueError(f"the model's logits for new token {step} are not finite numbers")
        vocab_size = totals.shape[-1]
        rows: list[int] = []
        self.alive = []
        for rank, (log_probability, index) in enumerate(candidates):
            row, token = divmod(index, vocab_size)
            ends = token == self.end_token or step + 1 == self.max_new_tokens
            # An ending behind the best num_beams is dropped: it came in only to make up for endings before it.
            kept = rank < self.num_beams if ends else len(self.alive) < self.num_beams
            node = BeamNode(
                id=len(self.tree), parent=parents[row], step=step, token=token, log_probability=log_probability,
                kept=kept, ends=ends,
            )  # fmt: skip
            self.tree.append(node)
            if kept and ends:
                self._add_answer(node)
            elif kept:
                self.alive.append(node.id)
                rows.append(row)
        return rows + [0] * (self.num_beams - len(rows))

    def _add_answer(self, node: BeamNode) -> None:
        score = node.log_probability / length_penalty_divisor(node.step + 1, self.alpha, self.form)
        tokens = [self.tree[at].token for at in _path(self.tree, node.id)]
        self.answers.append(Beam(tokens=tokens, log_probability=node.log_probability, score=score, node=node.id))
        # Of more answers than beams, the worst goes.
        if len(self.answers) > self.num_beams:
            self.answers.remove(min(self.answers, key=lambda beam: beam.score))

    def is_over(self, stop_early: bool, longest_divisor: float) -> bool:
        """Whether no beam that is alive can become one of the answers."""
        if not self.alive:
            return True
        if len(self.answers) < self.num_beams:
            return False
        best_alive = self.tree[self.alive[0]]
        # The kindest length is the greatest, or with a negative alpha, which favours short answers, the present one.
        divisor = max(longest_divisor, length_penalty_divisor(best_alive.step + 1, self.alpha, self.form))
        return stop_early or best_alive.log_probability / divisor <= min(beam.score for beam in self.answers)
