"""The exercise on decoding: right answers of many shapes are accepted, wrong ones with their mistake named."""

import math

import pytest
import torch

from cme295lab.grading import checks
from cme295lab.grading.decoding import beams, top_k, top_p, truncation
from cme295lab.grading.result import Kind
from cme295lab.transformer.decoding import keep_top_k, keep_top_p
from tests.grading.students import Student, assert_refused, assert_stubs_and_results_are_told_apart, handed_in, student

HIDDEN = {
    "1": {"seed": 295, "rows": 9, "vocab": 31, "top_k": 7},
    "2": {"seed": 295, "rows": 9, "vocab": 31, "top_p": 0.8},
    "3": {"seed": 295},
    "4": {"seed": 295, "vocab": 11, "num_draft": 6},
}
CELLS = {
    "1": ("top_k", "top_k_probabilities"),
    "2": ("top_p", "top_p_probabilities"),
    "3": ("beam_search", "beam_search"),
    "4": ("speculative_step", "speculative_step"),
}

DIVIDE = "z = logits / temperature"
CUT = "cut = torch.full_like(z, -math.inf).scatter(-1, kept, z.gather(-1, kept))"
SOFTMAX = "return cut.softmax(-1)"
RANKS = "kept_ranks = ranked.cumsum(-1) - ranked < top_p"
BACK = "kept = torch.zeros_like(kept_ranks).scatter(-1, order, kept_ranks)"
MASKED = "return logits.masked_fill(~kept, -math.inf).softmax(-1)"
LIVE = "[candidate for candidate in candidates if candidate[0][-1] != end_token][:num_beams]"
ANSWERS = "answers += [candidate for candidate in candidates[:num_beams] if candidate[0][-1] == end_token]"
TOTAL = "total + gain"
SCORE = "total / ((5 + len(tokens)) / 6) ** alpha"
TEST = "uniforms[i] >= p[i, x] / q[i, x]"
MISSING = "missing = (p[i] - q[i]).clamp(min=0)"
REJECTED = "return [*proposals[:i], draw(missing / missing.sum())]"
ALL = "return [*proposals, draw(p[-1])]"

RIGHT = [
    ("1", student("the solution")),
    ("1", student("by sorting", CUT, "ranks = z.argsort(-1, descending=True).argsort(-1)\n"
                  "    cut = torch.where(ranks < top_k, z, -math.inf)")),
    ("1", student("renormalised by hand", SOFTMAX, "e = torch.exp(cut - cut.amax(-1, keepdim=True))\n"
                  "    return e / e.sum(-1, keepdim=True)")),
    ("1", student("cut first, then temperature", DIVIDE, "z = logits",
                  SOFTMAX, "return (cut / temperature).softmax(-1)")),
    ("1", student("in plain Python", DIVIDE, "import numpy as np\n    rows = []\n    for row in logits.tolist():\n"
                  "        keep = sorted(range(len(row)), key=lambda i: -row[i])[:top_k]\n"
                  "        e = {i: math.exp((row[i] - max(row)) / temperature) for i in keep}\n"
                  "        rows.append([e.get(i, 0.0) / sum(e.values()) for i in range(len(row))])\n"
                  "    return torch.from_numpy(np.array(rows, dtype='float32'))\n    z = logits")),
    ("2", student("the solution")),
    ("2", student("the sum moved by a place", RANKS,
                  "reached = ranked.cumsum(-1).roll(1, -1)\n    reached[:, 0] = 0\n    kept_ranks = reached < top_p")),
    ("2", student("counted", RANKS, "count = (ranked.cumsum(-1) < top_p).sum(-1, keepdim=True) + 1\n"
                  "    kept_ranks = torch.arange(ranked.shape[-1]) < count")),
    ("2", student("probabilities renormalised", MASKED, "cut = logits.softmax(-1) * kept\n"
                  "    return cut / cut.sum(-1, keepdim=True)")),
    ("2", student("by the inverse order", BACK, "kept = kept_ranks.gather(-1, order.argsort(-1))")),
    ("3", student("the solution")),
    ("3", student("a walk down the list", f"beams = {LIVE}\n        {ANSWERS}",
                  "beams = []\n        for rank, candidate in enumerate(candidates):\n"
                  "            if candidate[0][-1] == end_token:\n"
                  "                answers += [candidate] * (rank < num_beams)\n"
                  "            elif len(beams) < num_beams:\n                beams.append(candidate)")),
    ("4", student("the solution")),
    ("4", student("without a division", TEST, "uniforms[i] * q[i, x] >= p[i, x]")),
    ("4", student("the smaller of both taken away", MISSING, "missing = p[i] - torch.minimum(p[i], q[i])")),
    ("4", student("by the ratio's minimum", TEST, "not uniforms[i].item() < min(1.0, (p[i][x] / q[i][x]).item())")),
]  # fmt: skip

WRONG = [
    ("1", student("multiplies", DIVIDE, "z = logits * temperature", says="the temperature multiplies")),
    ("1", student("no temperature", DIVIDE, "z = logits", says="the temperature has no effect")),
    ("1", student("ties and all", CUT, "cut = z.masked_fill(z < z.gather(-1, kept[:, -1:]), -math.inf)",
                  says="all that tie with the k-th largest are kept", at_most=0.9)),
    ("1", student("softmax first", SOFTMAX, "return torch.where(cut > -math.inf, z.softmax(-1), 0.0)",
                  says="softmax came first, and what is left was not renormalised")),
    ("1", student("zero logits", "torch.full_like(z, -math.inf)", "torch.zeros_like(z)",
                  says="the logits of dropped tokens became 0")),
    ("1", student("one more", "min(top_k,", "min(top_k + 1,", says="one token too many is kept")),
    ("1", student("above the k-th", CUT, "cut = z.masked_fill(z <= z.gather(-1, kept[:, -1:]), -math.inf)",
                  says="one token too few is kept")),
    ("1", student("the smallest", "dim=-1).indices", "dim=-1, largest=False).indices", says="the smallest logits")),
    ("1", student("over the batch", SOFTMAX, "return cut.softmax(0)", says="softmax runs over the batch")),
    ("1", student("one threshold for all", CUT,
                  "threshold = z.flatten().topk(min(top_k, z.numel())).values[-1]\n"
                  "    cut = z.masked_fill(z < threshold, -math.inf)", says="the k largest of the whole batch")),
    ("1", student("logarithms", "cut.softmax(-1)", "cut.log_softmax(-1)", says="these are logarithms")),
    ("1", student("k beyond the vocabulary", "min(top_k, z.shape[-1])", "top_k", kind=Kind.CRASHED,
                  says="k beyond the vocabulary keeps all", at_most=0.9)),
    ("1", student("exponentials that overflow", SOFTMAX, "e = torch.exp(cut)\n    return e / e.sum(-1, keepdim=True)",
                  says="logits around 1000 do not overflow", at_most=0.9)),
    ("1", student("only what is kept", SOFTMAX, "return z.gather(-1, kept).softmax(-1)", kind=Kind.WRONG_SHAPE,
                  says="must have the shape")),
    ("1", student("in place", DIVIDE, "z = logits.div_(temperature)", says="changes its input logits")),
    ("2", student("the crossing token", RANKS, "kept_ranks = ranked.cumsum(-1) <= top_p",
                  says="the token that crosses p is dropped")),
    ("2", student("the crossing token, but never all", RANKS,
                  "kept_ranks = ranked.cumsum(-1) <= top_p\n    kept_ranks[:, 0] = True",
                  says="the token that crosses p is dropped")),
    ("2", student("one more", RANKS, "kept_ranks = ranked.cumsum(-1) - ranked < top_p\n"
                  "    kept_ranks[:, 1:] = kept_ranks[:, :-1].clone()", says="one token too many is kept")),
    ("2", student("in order of rank", BACK, "kept, logits = kept_ranks, logits.gather(-1, order)",
                  says="the sort is not undone")),
    ("2", student("sorted twice", BACK, "kept = kept_ranks.gather(-1, order)",
                  says="sorted once more instead of back")),
    ("2", student("not renormalised", MASKED, "return logits.softmax(-1) * kept",
                  says="the probabilities are cut and not renormalised")),
    ("2", student("zero logits", "masked_fill(~kept, -math.inf)", "masked_fill(~kept, 0.0)",
                  says="the logits of dropped tokens became 0")),
    ("2", student("the least likely", "descending=True", "descending=False", says="the least likely tokens are kept")),
    ("2", student("unsorted", ".sort(-1, descending=True)", ".sort(-1, descending=True)\n"
                  "    ranked, order = logits.softmax(-1), torch.arange(logits.shape[-1]).expand_as(logits)",
                  says="runs in the order of the vocabulary")),
    ("2", student("each on its own", RANKS, "kept_ranks = ranked >= top_p", says="own probability is held against p")),
    ("2", student("logarithms", "-math.inf).softmax(-1)", "-math.inf).log_softmax(-1)", says="these are logarithms")),
    ("2", student("renormalised by a constant", MASKED, "return logits.softmax(-1) * kept / top_p",
                  says="each row must sum to 1")),
    ("3", student("no sum", TOTAL, "gain", says="only the last log-probability of a beam counts")),
    ("3", student("probabilities", TOTAL, "total + math.exp(gain)", says="probabilities are summed")),
    ("3", student("each beam for itself", "for token, gain in enumerate(next_log_probabilities(tokens))",
                  "for token, gain in (lambda gains: enumerate(gains) if not tokens else "
                  "[max(enumerate(gains), key=lambda pair: pair[1])])(next_log_probabilities(tokens))",
                  says="compete together")),
    ("3", student("the first answer", ANSWERS, ANSWERS + "\n        if answers:\n            break",
                  says="the search stops at the first answer")),
    ("3", student("ends nothing", LIVE, "candidates[:num_beams]", ANSWERS, "pass",
                  says="the end token does not end anything")),
    ("3", student("places taken", LIVE, LIVE.replace("in candidates", "in candidates[:num_beams]"),
                  says="an answer takes a beam's place")),
    ("3", student("answers from anywhere", "in candidates[:num_beams] if", "in candidates if",
                  says="not among the best num_beams of their step")),
    ("3", student("only ended answers", "    answers += beams\n", "    answers = answers or beams\n",
                  says="alive after max_tokens are forgotten")),
    ("3", student("no penalty", SCORE, "total", says="without the length penalty")),
    ("3", student("a mean", SCORE, "total / len(tokens) ** alpha", says="divided by |Y| itself")),
    ("3", student("multiplied", SCORE, "total * ((5 + len(tokens)) / 6) ** alpha", says="the penalty multiplies")),
    ("3", student("without the end token", "len(tokens))", "len(tokens) - (tokens[-1] == end_token))",
                  says="|Y| does not count the end token")),
    ("3", student("everything is searched", "[:num_beams]\n", "\n", "candidates[:num_beams] if", "candidates if",
                  says="best of all answers")),
    ("3", student("another score", SCORE, "total / ((6 + len(tokens)) / 6) ** alpha", says="the score is not")),
    ("3", student("tokens alone", "key=lambda answer: answer[1])", "key=lambda answer: answer[1])[0]",
                  kind=Kind.WRONG_SHAPE, says="return (tokens, score)", at_most=0.0)),
    ("4", student("everything", TEST, "False", says="everything is accepted")),
    ("4", student("nothing", TEST, "True", says="everything is rejected")),
    ("4", student("where q is smaller", TEST, "p[i, x] < q[i, x]", says="the uniform number plays no part")),
    ("4", student("where q is larger", TEST, "p[i, x] >= q[i, x]", says="where it may have to reject")),
    ("4", student("ratio upside down", TEST, "uniforms[i] >= q[i, x] / p[i, x]", says="the ratio is upside down")),
    ("4", student("comparison upside down", TEST, "uniforms[i] < p[i, x] / q[i, x]",
                  says="the comparison is upside down")),
    ("4", student("p alone", TEST, "uniforms[i] >= p[i, x]", says="held against p(x) alone")),
    ("4", student("from p", REJECTED, "return [*proposals[:i], draw(p[i])]", says="that is p: the draft's favourites")),
    ("4", student("from q", REJECTED, "return [*proposals[:i], draw(q[i])]",
                  says="that is q: draw from max(p - q, 0)")),
    ("4", student("no sum", "missing / missing.sum()", "missing", says="does not sum to 1")),
    ("4", student("no cut", ".clamp(min=0)", "", "missing / missing.sum()", "missing", says="not cut off")),
    ("4", student("distance", ".clamp(min=0)", ".abs()", says="that is |p - q|")),
    ("4", student("wrong way round", "(p[i] - q[i])", "(q[i] - p[i])", says="the other way round")),
    ("4", student("the first place", MISSING, "missing = (p[0] - q[0]).clamp(min=0)", says="those of the first place",
                  at_most=0.9)),
    ("4", student("goes on", REJECTED,
                  "proposals = [*proposals[:i], draw(missing / missing.sum()), *proposals[i + 1:]]",
                  says="proposals behind a rejection are in the result")),
    ("4", student("the rejected one", "proposals[:i]", "proposals[: i + 1]", says="was rejected is in the result")),
    ("4", student("accepted ones forgotten", REJECTED, "return [draw(missing / missing.sum())]",
                  says="accepted proposals are missing")),
    ("4", student("no token behind", ALL, "return proposals", says="nothing was drawn: after all proposals",
                  at_most=0.9)),
    ("4", student("from the draft", ALL, "return [*proposals, draw(q[-1])]", says="that is the draft's distribution",
                  at_most=0.9)),
    ("4", student("from the last proposal's place", ALL, "return [*proposals, draw(p[-2])]",
                  says="that is p of the last proposal", at_most=0.9)),
    ("4", student("numbers of its own", TEST, "torch.rand(()) >= p[i, x] / q[i, x]", says="numbers of your own")),
    ("4", student("a draw of its own", "draw(missing / missing.sum())",
                  "int(torch.multinomial(missing / missing.sum(), 1))", says="is not drawn with draw(probabilities)")),
    ("4", student("tensors", REJECTED, "return torch.tensor([*proposals[:i], draw(missing / missing.sum())])",
                  kind=Kind.WRONG_SHAPE, says="return a list of token numbers")),
]  # fmt: skip


def of(part: str, made: Student):
    return handed_in("decoding", *CELLS[part], made)


@pytest.mark.parametrize("hidden", [False, True], ids=["visible", "hidden"])
@pytest.mark.parametrize(("part", "made"), RIGHT, ids=str)
def test_right_answers_pass(part: str, made: Student, hidden: bool) -> None:
    result = checks.run(f"decoding/{part}", of(part, made), **(HIDDEN[part] if hidden else {}))
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "made"), WRONG, ids=str)
def test_wrong_answers_fail_with_their_mistake_named(part: str, made: Student) -> None:
    torch.manual_seed(0)
    result = checks.run(f"decoding/{part}", of(part, made))
    assert_refused(result, made)


@pytest.mark.parametrize("part", CELLS)
def test_stubs_and_results_are_told_apart(part: str) -> None:
    assert_stubs_and_results_are_told_apart(f"decoding/{part}", *CELLS[part])


def test_the_right_probabilities_are_the_librarys() -> None:
    logits = 2 * torch.randn(20, 50, dtype=torch.double)
    for number in (1, 7, 49):
        expected = keep_top_k(logits / 0.7, number).softmax(-1)
        torch.testing.assert_close(truncation.top_k_with(truncation.Mistake(), logits, 0.7, number), expected)
    for top_p_value in (0.01, 0.5, 0.97):
        expected = keep_top_p(logits, top_p_value).softmax(-1)
        torch.testing.assert_close(truncation.top_p_with(truncation.Mistake(), logits, top_p_value), expected)


@pytest.mark.parametrize("part", ["1", "2", "3"])
def test_every_listed_mistake_is_found_and_named(part: str) -> None:
    """In the visible check and in the hidden one: a cause that fits nothing could never be named."""
    listed = {"1": top_k.MISTAKES, "2": top_p.MISTAKES, "3": beams.MISTAKES}[part]
    makers = {
        "1": lambda mistake: lambda **inputs: truncation.top_k_with(mistake, **inputs).float(),
        "2": lambda mistake: lambda **inputs: truncation.top_p_with(mistake, **inputs).float(),
        "3": lambda mistake: lambda language, **options: beams.search(language.__self__, mistake),
    }
    for mistake in listed:
        for options in ({}, HIDDEN[part]):
            result = checks.run(f"decoding/{part}", makers[part](mistake), **options)
            assert mistake.cause in result.message, (mistake, result.message)


def test_the_plain_search_is_the_librarys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beams of a random model: a language for one, logits for the other."""
    from cme295lab.transformer.decoding import beam_search
    from tests.transformer.decoding.test_beam import TINY, random_model

    model = random_model(TINY, seed=1, scale=4.0)

    def language(seed: int | None, tokens: tuple[int, ...]) -> tuple[float, ...]:
        with torch.no_grad():
            return tuple(model(torch.tensor([[0, *tokens]]))[0, -1].double().log_softmax(-1).tolist())

    monkeypatch.setattr(beams, "_language", language)
    for num_beams in (1, 2, 4):
        for end_token in (None, 1, 3):
            for alpha in (0.0, 0.6, 2.0):
                question = beams.Question(
                    seed=0, num_beams=num_beams, max_tokens=5, end_token=end_token, alpha=alpha
                )  # fmt: skip
                tokens, score = beams.search(question)
                best = beam_search(
                    model, [0], num_beams=num_beams, max_new_tokens=5, end_token=end_token, length_penalty=alpha
                ).beams[0]
                assert best.tokens == tokens
                assert best.score == pytest.approx(score, abs=1e-4)


def test_the_page_says_what_the_example_gives() -> None:
    answers = [beams.search(beams.Question(seed=None, num_beams=num, max_tokens=2, end_token=2)) for num in (1, 2)]
    assert [tokens for tokens, _ in answers] == [[0, 0], [1, 2]]
    assert [math.exp(score) for _, score in answers] == pytest.approx([0.20, 0.36])
