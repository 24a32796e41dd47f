"""Part 2 of the ring: the check accepts every right ring, and names the mistake in wrong ones."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

PAD = "    flat = torch.nn.functional.pad(tensor.flatten(), (0, -tensor.numel() % num_ranks))\n"
EMPTY = "    chunks = torch.empty_like(flat).view(num_ranks, -1)\n"
HALF = "    chunks[rank] = ring_reduce_scatter(flat) / num_ranks\n"
LOOP = "    for step in range(num_ranks - 1):\n"
SEND = "dist.isend(chunks[(rank - step) % num_ranks], (rank + 1) % num_ranks)"
RECEIVE = "dist.irecv(chunks[(rank - 1 - step) % num_ranks], (rank - 1) % num_ranks)"
MESSAGES = (
    f"        sending = {SEND}\n        receiving = {RECEIVE}\n        sending.wait()\n        receiving.wait()\n"
)
RETURN = "    return chunks.flatten()[: tensor.numel()].view(tensor.shape)\n"

IN_UNEVEN_CHUNKS = """\
    chunks = list(tensor.flatten().clone().tensor_split(num_ranks))
    for step in range(2 * (num_ranks - 1)):
        sent, came = chunks[(rank - step) % num_ranks], chunks[(rank - 1 - step) % num_ranks]
        received = torch.empty_like(came)
        works = []
        if sent.numel():
            works.append(dist.isend(sent, (rank + 1) % num_ranks))
        if came.numel():
            works.append(dist.irecv(received, (rank - 1) % num_ranks))
        for work in works:
            work.wait()
        if step < num_ranks - 1:
            came += received
        else:
            came.copy_(received)
    return torch.cat(chunks).view(tensor.shape) / num_ranks
"""
AS_A_LIST = """\
    finished = [torch.empty_like(flat[: flat.numel() // num_ranks]) for _ in range(num_ranks)]
    finished[rank] = ring_reduce_scatter(flat / num_ranks)
    for step in range(num_ranks - 1):
        sending = dist.isend(finished[(rank - step) % num_ranks], (rank + 1) % num_ranks)
        dist.recv(finished[(rank - 1 - step) % num_ranks], (rank - 1) % num_ranks)
        sending.wait()
    return torch.cat(finished)[: tensor.numel()].view(tensor.shape)
"""
EVERYTHING_GOES_ROUND = """\
    total, travelling = tensor.clone(), tensor.clone()
    for step in range(num_ranks - 1):
        arriving = torch.empty_like(travelling)
        sending = dist.isend(travelling, (rank + 1) % num_ranks)
        dist.recv(arriving, (rank - 1) % num_ranks)
        sending.wait()
        travelling = arriving
        total += arriving
    return total / num_ranks
"""
EXCHANGE = """\
    for step in range(1, num_ranks):
        sending = dist.isend(chunks[rank], (rank + step) % num_ranks)
        dist.recv(chunks[(rank - step) % num_ranks], (rank - step) % num_ranks)
        sending.wait()
"""
RANK_0_ADDS = """\
    total = tensor.clone()
    if rank == 0:
        other = torch.empty_like(tensor)
        for source in range(1, num_ranks):
            dist.recv(other, source)
            total += other
        for target in range(1, num_ranks):
            dist.send(total, target)
        return total / num_ranks
    dist.send(total, 0)
    dist.recv(total, 0)
    return total / num_ranks
"""

RIGHT = [
    student("the solution"),
    student("uneven chunks, in one loop", PAD + EMPTY + HALF + LOOP + MESSAGES + RETURN, IN_UNEVEN_CHUNKS),
    student("a list of chunks, divided before", EMPTY + HALF + LOOP + MESSAGES + RETURN, AS_A_LIST),
]

WRONG = [
    student("summed", " / num_ranks\n", "\n", says="summed, not averaged"),
    student("divided twice", RETURN, RETURN.rstrip() + " / num_ranks\n", says="divided twice"),
    student(
        "only the own chunk divided",
        HALF,
        HALF.replace(" / num_ranks", ""),
        RETURN,
        "    chunks[rank] /= num_ranks\n" + RETURN,
        says="only one chunk is divided",
    ),
    student(
        "half of it",
        EMPTY,
        "    chunks = flat.clone().view(num_ranks, -1)\n",
        LOOP + MESSAGES,
        "",
        says="second half, which passes the finished chunks on, is missing",
    ),
    student(
        "zeros elsewhere",
        EMPTY,
        "    chunks = torch.zeros_like(flat).view(num_ranks, -1)\n",
        LOOP + MESSAGES,
        "",
        says="second half",
    ),
    student(
        "in the wrong place",
        RETURN,
        RETURN.replace("chunks.flatten", "chunks.roll(1, 0).flatten"),
        says="stand 1 too far",
    ),
    student("its own tensor", RETURN, "    return tensor\n", says="own tensor comes back"),
    student(
        "not received in time",
        "        receiving.wait()\n",
        "",
        EMPTY,
        "    chunks = torch.zeros_like(flat).view(num_ranks, -1)\n",
        says="one of which is late",
        at_most=0.2,
    ),
    student("the input is overwritten", PAD, "    tensor /= num_ranks\n" + PAD, says="changes its input tensor"),
    student(
        "the tail is left out",
        PAD,
        "    whole = tensor.numel() // num_ranks * num_ranks\n    flat = tensor.flatten()[:whole]\n",
        RETURN,
        "    return torch.cat([chunks.flatten(), tensor.flatten()[whole:]]).view(tensor.shape)\n",
        says=("do not divide", "the last elements are left out"),
        at_most=0.85,
    ),
    student(
        "no padding",
        PAD,
        "    flat = tensor.flatten()\n",
        kind=Kind.CRASHED,
        says=("do not divide", "RuntimeError"),
        at_most=0.85,
    ),
    student(
        "padding comes back",
        RETURN,
        "    return chunks.flatten()\n",
        kind=Kind.WRONG_SHAPE,
        says=("four ranks", "must have the shape (4, 6)"),
        at_most=0.2,
    ),
    student(
        "not alone",
        PAD,
        "    assert num_ranks > 1\n" + PAD,
        kind=Kind.CRASHED,
        says=("one rank alone", "AssertionError"),
        at_most=0.95,
    ),
    student(
        "half precision on the way",
        HALF,
        HALF + "    chunks = chunks.double()\n",
        kind=Kind.WRONG_SHAPE,
        says="must be float32",
    ),
    student(
        "an order of its own on each rank",
        PAD + EMPTY + HALF + LOOP + MESSAGES + RETURN,
        EVERYTHING_GOES_ROUND,
        kind=Kind.NOT_EXACT,
        says=("an order of its own", "same bits"),
    ),
    student("an exchange", LOOP + MESSAGES, EXCHANGE, kind=Kind.WRONG_ROUTE, says="not its neighbour"),
    student(
        "one rank adds",
        PAD + EMPTY + HALF + LOOP + MESSAGES + RETURN,
        RANK_0_ADDS,
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says="everything goes to rank 0",
    ),
    student(
        "a step too many",
        LOOP,
        LOOP.replace(" - 1", ""),
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says="2 (N - 1) / N times the tensor",
    ),
    student(
        "all-gather of torch",
        LOOP + MESSAGES,
        "    dist.all_gather(list(chunks), chunks[rank].clone())\n",
        kind=Kind.NOT_ALLOWED,
        says="calls all_gather",
    ),
    student(
        "all-reduce of torch",
        PAD,
        "    dist.all_reduce(total := tensor.clone())\n    return total / num_ranks\n",
        kind=Kind.NOT_ALLOWED,
        says="calls all_reduce",
    ),
    student(
        "everybody sends first",
        "sending = dist.isend",
        "dist.send",
        "        sending.wait()\n",
        "",
        kind=Kind.DEADLOCK,
        says=("rank 0 waits in send", "Use isend and irecv"),
    ),
    student(
        "not attempted", PAD, "    raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED, says="Replace the line"
    ),
]


def mean_of(made: Student):
    given = written("ring_all_reduce", "ring_reduce_scatter")
    return written("ring_all_reduce", "ring_mean", *made.changes, given=given)["ring_mean"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_mean_check_accepts_right_rings(made: Student) -> None:
    result = checks.run("ring_all_reduce/2", mean_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


def test_mean_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    result = checks.run("ring_all_reduce/2", mean_of(RIGHT[0]), seed=295, columns=5, ragged=13)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_mean_check_names_the_mistake(made: Student) -> None:
    result = checks.run("ring_all_reduce/2", mean_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most, result.score
    for words in made.says:
        assert words in result.message, result.message


def test_mean_check_says_not_attempted_when_part_1_is_a_stub() -> None:
    def ring_reduce_scatter(tensor):
        raise NotImplementedError()

    made = written("ring_all_reduce", "ring_mean", given={"ring_reduce_scatter": ring_reduce_scatter})
    result = checks.run("ring_all_reduce/2", made["ring_mean"])
    assert result.score == 0
    assert result.outcomes[0].kind is Kind.NOT_ATTEMPTED, result.message
