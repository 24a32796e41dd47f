"""Part 1 of the ring: the check accepts every right way to pass chunks on, and names the mistake in wrong ones."""

import pytest

from cme295lab.grading import checks, distributed
from cme295lab.grading.observe import Communication, RankFacts
from cme295lab.grading.result import Kind
from cme295lab.grading.ring_all_reduce.ring import Case, judge_bytes, judge_route
from tests.grading.students import Student, student, written

COPY = "    chunks = tensor.clone().view(num_ranks, -1)\n"
SEND = "        sending = dist.isend(chunks[(rank - 1 - step) % num_ranks], (rank + 1) % num_ranks)\n"
RECEIVE = "        receiving = dist.irecv(received, (rank - 1) % num_ranks)\n"
WAIT = "        sending.wait()\n        receiving.wait()\n"
ADD = "        chunks[(rank - 2 - step) % num_ranks] += received\n"
LOOP = "    for step in range(num_ranks - 1):\n" + SEND + RECEIVE + WAIT + ADD
RETURN = "return chunks[rank].clone()"

EVEN_RANKS_FIRST = """\
        left, right = (rank - 1) % num_ranks, (rank + 1) % num_ranks
        mine = chunks[(rank - 1 - step) % num_ranks]
        if rank % 2 == 0:
            dist.send(mine, right)
            dist.recv(received, left)
        else:
            dist.recv(received, left)
            dist.send(mine, right)
"""
BATCHED = """\
        messages = [
            dist.P2POp(dist.isend, chunks[(rank - 1 - step) % num_ranks], (rank + 1) % num_ranks),
            dist.P2POp(dist.irecv, received, (rank - 1) % num_ranks),
        ]
        for message in dist.batch_isend_irecv(messages):
            message.wait()
"""
OTHER_WAY_ROUND = """\
        sending = dist.isend(chunks[(rank + 1 + step) % num_ranks], (rank - 1) % num_ranks)
        receiving = dist.irecv(received, (rank + 1) % num_ranks)
"""
RUNNING_SUM = """\
    total = chunks[(rank - 1) % num_ranks].clone()
    for step in range(num_ranks - 1):
        sending = dist.isend(total, (rank + 1) % num_ranks)
        dist.recv(received, (rank - 1) % num_ranks)
        sending.wait()
        total = received + chunks[(rank - 2 - step) % num_ranks]
    return total
"""
DIRECT = """\
    for step in range(1, num_ranks):
        sending = dist.isend(chunks[(rank + step) % num_ranks], (rank + step) % num_ranks)
        dist.recv(received, (rank - step) % num_ranks)
        sending.wait()
        chunks[rank] += received
"""
WHOLE_TENSORS = """\
    travelling, total = tensor.clone(), tensor.clone()
    for step in range(num_ranks - 1):
        arriving = torch.empty_like(tensor)
        sending = dist.isend(travelling, (rank + 1) % num_ranks)
        dist.recv(arriving, (rank - 1) % num_ranks)
        sending.wait()
        travelling = arriving
        total += arriving
    return total.view(num_ranks, -1)[rank].clone()
"""
RANK_0_ADDS = """\
    if rank == 0:
        other = torch.empty_like(tensor)
        for source in range(1, num_ranks):
            dist.recv(other, source)
            chunks += other.view(num_ranks, -1)
        for target in range(1, num_ranks):
            dist.send(chunks[target], target)
        return chunks[0].clone()
    dist.send(tensor, 0)
    dist.recv(received, 0)
    return received
"""
SAME_BUFFER = """\
    travelling = chunks[(rank - 1) % num_ranks].clone()
    for step in range(num_ranks - 1):
        sending = dist.isend(travelling, (rank + 1) % num_ranks)
        dist.irecv(travelling, (rank - 1) % num_ranks).wait()
        sending.wait()
        travelling += chunks[(rank - 2 - step) % num_ranks]
    return travelling
"""
ALL_REDUCE = "    total = tensor.clone()\n    dist.all_reduce(total)\n    return total.view(num_ranks, -1)[rank]\n"
LIBRARY = """
    from cme295lab.parallel.communication import collectives
    return collectives.ring_reduce_scatter(tensor)
"""

RIGHT = [
    student("the solution"),
    student("even ranks send first", SEND + RECEIVE + WAIT, EVEN_RANKS_FIRST),
    student("batched messages", SEND + RECEIVE + WAIT, BATCHED),
    student(
        "the other way round", SEND + RECEIVE, OTHER_WAY_ROUND, "chunks[(rank - 2 - step)", "chunks[(rank + 2 + step)"
    ),
    student("a running sum", LOOP, RUNNING_SUM),
]

WRONG = [
    student(
        "off by one", "rank - 1 - step", "rank - step", "rank - 2 - step", "rank - 1 - step", says="has another number"
    ),
    student(
        "off by one to the end",
        "rank - 1 - step",
        "rank - step",
        "rank - 2 - step",
        "rank - 1 - step",
        RETURN,
        "return chunks[(rank + 1) % num_ranks].clone()",
        says=("this is the sum of chunk 1", "off by the same number"),
    ),
    student("the mean", RETURN, "return chunks[rank] / num_ranks", says="this is the mean"),
    student("replaced", "] += received", "] = received", says="must be added to your own part before it is sent on"),
    student("added twice", RETURN, "return chunks[rank] + tensor.view(num_ranks, -1)[rank]", says="in the sum twice"),
    student(
        "sent on without what came",
        SEND,
        SEND.replace("dist.isend(chunks[", "dist.isend(tensor.view(num_ranks, -1)["),
        says=("three ranks", "the parts of 2 of the 3 ranks"),
        at_most=0.2,
    ),
    student("no wait", "        receiving.wait()\n", "", says="was every message waited for", at_most=0.2),
    student(
        "one buffer for both",
        LOOP + "    " + RETURN + "\n",
        SAME_BUFFER,
        says="was every message waited for before its buffer was read, or written again",
        at_most=0.9,
    ),
    student("zeros", RETURN, "return 0 * chunks[rank]", says="every value is zero"),
    student("the input is overwritten", "tensor.clone().view", "tensor.view", says="changes its input tensor"),
    student("the whole tensor", RETURN, "return chunks.flatten()", kind=Kind.WRONG_SHAPE, says="return chunk 0 alone"),
    student("nothing", RETURN, "pass", kind=Kind.WRONG_SHAPE, says="must be a tensor, not NoneType"),
    student(
        "the size of a message",
        RECEIVE,
        "        received = torch.empty(1)\n" + RECEIVE,
        kind=Kind.CRASHED,
        says="disagree about its size",
    ),
    student(
        "a crash on three ranks",
        COPY,
        COPY + "    if rank == 2:\n        chunks = chunk\n",
        kind=Kind.CRASHED,
        says=("on rank 2: NameError", "chunks = chunk"),
        at_most=0.2,
    ),
    student(
        "everybody sends first",
        SEND + RECEIVE + WAIT,
        SEND.replace("sending = dist.isend", "dist.send") + RECEIVE.replace("receiving = dist.irecv", "dist.recv"),
        kind=Kind.DEADLOCK,
        says=("rank 0 waits in send", "rank 1 waits in send", "Use isend and irecv"),
    ),
    student(
        "a rank that returns early",
        LOOP,
        "    if rank == 1:\n        return chunks[1].clone()\n" + LOOP,
        kind=Kind.DEADLOCK,
        says=("rank 0 waits in", "those that have returned"),
    ),
    student(
        "an endless loop",
        COPY,
        COPY + "    while True:\n        rank = rank\n",
        kind=Kind.TIMED_OUT,
        says=("rank 1 is busy at line", "does every loop"),
    ),
    student("the whole tensor travels", LOOP, WHOLE_TENSORS, kind=Kind.TOO_MUCH_COMMUNICATION, says="cut it into 4"),
    student("one rank adds", LOOP, RANK_0_ADDS, kind=Kind.TOO_MUCH_COMMUNICATION, says="everything goes to rank 0"),
    student(
        "a step too many",
        "range(num_ranks - 1)",
        "range(num_ranks)",
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says="4 steps where 3 are enough",
    ),
    student("no ring", LOOP, DIRECT, kind=Kind.WRONG_ROUTE, says=("rank 3 sends to rank 1", "not its neighbour")),
    student("all_reduce", COPY, COPY + ALL_REDUCE, kind=Kind.NOT_ALLOWED, says=("calls all_reduce", "dist.all_reduce")),
    student(
        "torch's own",
        LOOP,
        "    dist.reduce_scatter(received, list(chunks))\n    return received\n",
        kind=Kind.NOT_ALLOWED,
        says="calls reduce_scatter",
    ),
    student("the library's own", COPY, LIBRARY, kind=Kind.NOT_ALLOWED, says="calls the course's library"),
    student(
        "not attempted", COPY, "    raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED, says="Replace the line"
    ),
]


def scatter_of(made: Student):
    return written("ring_all_reduce", "ring_reduce_scatter", *made.changes)["ring_reduce_scatter"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_scatter_check_accepts_right_rings(made: Student) -> None:
    result = checks.run("ring_all_reduce/1", scatter_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


def test_scatter_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    result = checks.run("ring_all_reduce/1", scatter_of(RIGHT[0]), seed=295, chunk=7)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_scatter_check_names_the_mistake(made: Student, monkeypatch: pytest.MonkeyPatch) -> None:
    if made.kind is Kind.TIMED_OUT:
        monkeypatch.setattr(distributed, "TIME_LIMIT_S", 1.0)
    result = checks.run("ring_all_reduce/1", scatter_of(made))
    assert not result.passed
    assert result.kind is (Kind.WRONG_VALUE if made.kind is Kind.PASSED else made.kind), result.message
    assert result.score <= made.at_most, result.score
    for words in made.says:
        assert words in result.message, result.message


def facts(rank: int, *peers: int, num_bytes: int = 20) -> RankFacts:
    """A rank that sends to some others, and receives as much."""
    calls = [
        call
        for peer in peers
        for call in (
            Communication(collective="send", payload_bytes=num_bytes, sent_bytes=num_bytes, peer=peer),
            Communication(
                collective="recv", payload_bytes=num_bytes, sent_bytes=0, received_bytes=num_bytes, peer=peer
            ),
        )
    ]
    return RankFacts(rank=rank, outputs={}, calls=tuple(calls))


def test_route_goes_one_way_round() -> None:
    assert judge_route([facts(rank, (rank + 1) % 4) for rank in range(4)]).passed
    assert judge_route([facts(rank, (rank - 1) % 4) for rank in range(4)]).passed
    both_ways = judge_route([facts(rank, (rank + 1) % 4, (rank - 1) % 4) for rank in range(4)])
    assert both_ways.kind is Kind.WRONG_ROUTE
    assert "in one direction" in both_ways.cause
    assert "rank 0 sends to rank 2" in judge_route([facts(0, 1, 2), facts(1, 2), facts(2, 3), facts(3, 0)]).difference


def test_bytes_are_those_of_the_busiest_rank() -> None:
    """Four chunks of 20 bytes: each rank sends three of them."""
    case = Case(seed=0, num_ranks=4, shape=(20,))
    ring = [facts(rank, *[(rank + 1) % 4] * 3) for rank in range(4)]
    assert judge_bytes(ring, case, 60).passed
    busy = judge_bytes([*ring[:3], facts(3, 0, 0, 0, 0)], case, 60)
    assert busy.kind is Kind.TOO_MUCH_COMMUNICATION
    assert busy.difference.startswith("rank 3 sends 80 bytes and receives 80; 60 each are enough")
    assert busy.cause == ""
