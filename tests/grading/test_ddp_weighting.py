"""Part 1 of overlapping data parallelism: right averages pass, and the mistake in wrong ones is named."""

import pytest
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.ddp_overlap.training import Case
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

TOTAL = "    total = torch.tensor(float(num_tokens))\n    dist.all_reduce(total)\n"
LOOP = "    for parameter in model.parameters():\n"
WEIGHT = "        parameter.grad *= num_tokens\n"
REDUCE = "        dist.all_reduce(parameter.grad)\n"
DIVIDE = "        parameter.grad /= total\n"
ALL = TOTAL + LOOP + WEIGHT + REDUCE + DIVIDE

FLAT = """\
    parameters = list(model.parameters())
    flat = torch.cat([*(p.grad.flatten() * num_tokens for p in parameters), torch.tensor([float(num_tokens)])])
    dist.all_reduce(flat)
    pieces = (flat[:-1] / flat[-1]).split([p.numel() for p in parameters])
    for parameter, piece in zip(parameters, pieces):
        parameter.grad = piece.view_as(parameter)
"""
HALVES = """\
    world, flat = dist.get_world_size(), torch.cat([p.grad.flatten() * num_tokens for p in model.parameters()])
    counts = torch.tensor([float(num_tokens)])
    dist.all_reduce(counts)
    padded = nn.functional.pad(flat, (0, -flat.numel() % world)).view(world, -1)
    part = torch.empty_like(padded[0])
    dist.reduce_scatter(part, list(padded.unbind()))
    dist.all_gather(list(padded.unbind()), part / counts)
    sizes = [p.numel() for p in model.parameters()]
    for p, piece in zip(model.parameters(), padded.flatten()[: flat.numel()].split(sizes)):
        p.grad.copy_(piece.view_as(p))
"""
SHARES = "    share = num_tokens / total\n" + LOOP + "        parameter.grad = parameter.grad * share\n" + REDUCE
EVERY_MODULE = "    for parameter in (p for m in model.modules() for p in m.parameters(recurse=False)):\n"
LIBRARY = (
    "    from cme295lab.parallel.communication.collectives import ring_all_reduce\n"
    "    ring_all_reduce(next(model.parameters()).grad)\n"
)

RIGHT = [
    student("the solution"),
    student("one flat message", ALL, FLAT),
    student("the share first", LOOP + WEIGHT + REDUCE + DIVIDE, SHARES),
    student("reduce-scatter and all-gather", ALL, HALVES),
]

WRONG = [
    student("summed", WEIGHT, "", DIVIDE, "", says=("equal batches", "summed, not averaged"), at_most=0.0),
    student(
        "the mean of the means",
        WEIGHT,
        "",
        DIVIDE,
        "        parameter.grad /= dist.get_world_size()\n",
        says=("unequal batches", "the mean of the ranks' means", "Weight each rank by its tokens"),
        at_most=0.2,
    ),
    student("not divided", DIVIDE, "", says="not divided by the number of all tokens", at_most=0.0),
    student("not weighted", WEIGHT, "", says="without being weighted", at_most=0.0),
    student(
        "divided again",
        DIVIDE,
        "        parameter.grad /= total * dist.get_world_size()\n",
        says="divided by the number of ranks as well",
        at_most=0.0,
    ),
    student(
        "divided by the own tokens",
        "    dist.all_reduce(total)\n",
        "",
        says="divide by the number of tokens of all ranks together",
        at_most=0.0,
    ),
    student("nothing at all", ALL, "    pass\n", says="this rank's own: nothing has reached it", at_most=0.0),
    student(
        "gradients thrown away", DIVIDE, "        parameter.grad = None\n", says="there is no gradient", at_most=0.0
    ),
    student(
        "the tied weight twice",
        LOOP,
        EVERY_MODULE,
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says="the tied weight is sent twice",
        at_most=0.8,
    ),
    student(
        "all twice",
        DIVIDE,
        DIVIDE + WEIGHT + REDUCE + DIVIDE,
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says="travel 2 times: send each of them once",
        at_most=0.8,
    ),
    student(
        "only the ranks with many tokens",
        LOOP,
        "    if num_tokens < 5:\n        return\n" + LOOP,
        kind=Kind.DEADLOCK,
        says=("rank 1 waits in all_reduce at line", "those that have returned never called"),
        at_most=0.2,
    ),
    student(
        "another order on rank 1",
        LOOP,
        "    for parameter in sorted(model.parameters(), key=torch.numel, reverse=dist.get_rank() == 1):\n",
        kind=Kind.RANKS_DISAGREE,
        says=(
            "call number 2 is all_reduce of 64 bytes on rank 0, and all_reduce of 2,560 bytes on rank 1",
            "same order",
        ),
        at_most=0.0,
    ),
    student(
        "a typo", WEIGHT, WEIGHT.replace("tokens", "token"), kind=Kind.CRASHED, says="'num_token' is not", at_most=0.0
    ),
    student(
        "the library's own",
        TOTAL,
        LIBRARY + TOTAL,
        kind=Kind.NOT_ALLOWED,
        says=("calls the course's library", "ring_all_reduce(next(model"),
        at_most=0.0,
    ),
    student(
        "messages",
        TOTAL,
        TOTAL + "    dist.isend(total, (dist.get_rank() + 1) % dist.get_world_size())\n",
        kind=Kind.NOT_ALLOWED,
        says="calls send",
        at_most=0.0,
    ),
    student(
        "not attempted",
        TOTAL,
        "    raise NotImplementedError()\n",
        kind=Kind.NOT_ATTEMPTED,
        says="Replace the line",
        at_most=0.0,
    ),
]


def average_of(made: Student):
    return written("ddp_overlap", "average_gradients", *made.changes, given={"nn": nn})["average_gradients"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_weighting_check_accepts_right_averages(made: Student) -> None:
    result = checks.run("ddp_overlap/1", average_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


def test_weighting_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    result = checks.run("ddp_overlap/1", average_of(RIGHT[0]), seed=295, num_tokens=(11, 2, 5))
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_weighting_check_names_the_mistake(made: Student) -> None:
    result = checks.run("ddp_overlap/1", average_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most, result.score
    for words in made.says:
        assert words in result.message, result.message


def test_right_gradients_are_those_of_one_process_on_the_joined_batch() -> None:
    """An oracle that knows nothing of weights: all tokens in one batch of one model."""
    import torch

    case = Case(seed=3, num_ranks=3, num_tokens=(2, 9, 4))
    model, total = case.model().double(), sum(case.num_tokens)
    summed = sum(case.loss(model, rank) * case.num_tokens[rank] for rank in range(3)) / total
    summed.backward()
    want = case.weighted([tokens / total for tokens in case.num_tokens])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[name])
