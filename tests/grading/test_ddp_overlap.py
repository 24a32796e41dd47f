"""Part 2 of overlapping data parallelism: right overlaps pass, and the mistake in wrong ones is named."""

import pytest
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.ddp_overlap.overlap import judge_buckets, judge_start, num_buckets
from cme295lab.grading.ddp_overlap.training import Case
from cme295lab.grading.observe import Communication, RankFacts
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, cells, student, written

PARAMETERS = "reversed(list(model.parameters()))"
FULL = "            if self.buckets[-1] and filled + num_bytes > bucket_bytes:\n"
READY = """\
        self.missing[self.bucket_of[parameter]] -= 1
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self.send(self.buckets[len(self.sent)])
"""
HOOKS = """\
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(self.ready)
"""
FINISH = "        for bucket, (flat, handle) in zip(self.buckets, self.sent):\n            handle.wait()\n"
DIVIDE = "            flat /= dist.get_world_size()\n"
COPY = "                parameter.grad.copy_(piece.view_as(parameter))\n"
RESET = "        self.missing, self.sent = [len(bucket) for bucket in self.buckets], []\n        ### END"
SEND = "        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))\n"

IN_ORDER_OF_ARRIVAL = """\
class OverlappedGradients:
    def __init__(self, model, bucket_bytes):
        self.bucket_bytes, self.waiting, self.filled, self.sent = bucket_bytes, [], 0, []
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(self.collect)

    def collect(self, p):
        self.waiting.append(p)
        self.filled += p.grad.nbytes
        if self.filled >= self.bucket_bytes:
            self.send()

    def send(self):
        flat = torch.cat([p.grad.flatten() for p in self.waiting]) / dist.get_world_size()
        self.sent.append((self.waiting, flat, dist.all_reduce(flat, async_op=True)))
        self.waiting, self.filled = [], 0

    def finish(self):
        if self.waiting:
            self.send()
        for parameters, flat, handle in self.sent:
            handle.wait()
            for p, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
                p.grad = piece.view_as(p)
        self.sent = []
"""
WITH_TRANSPORT = SEND.replace("dist.all_reduce", "transport.all_reduce").replace(
    "        self", "        from cme295lab.parallel.communication import transport\n        self"
)
WITH_FUTURES = (
    "        work = dist.all_reduce(flat, async_op=True)\n        self.sent.append((flat, work.get_future()))\n"
)
NEVER_FLUSHED = IN_ORDER_OF_ARRIVAL.replace(
    "        if self.waiting:\n            self.send()\n        for", "        for"
)
PER_PARAMETER = IN_ORDER_OF_ARRIVAL.replace("self.filled >= self.bucket_bytes", "True")
TIED_TWICE = IN_ORDER_OF_ARRIVAL.replace(
    "for p in model.parameters()", "for p in (p for m in model.modules() for p in m.parameters(recurse=False))"
)
DDP = """\
class OverlappedGradients:
    def __init__(self, model, bucket_bytes):
        self.model = nn.parallel.DistributedDataParallel(model)

    def finish(self):
        pass
"""
LIBRARY = """\
class OverlappedGradients:
    def __init__(self, model, bucket_bytes):
        self.model = model

    def finish(self):
        from cme295lab.parallel.communication.collectives import ring_all_reduce

        for p in self.model.parameters():
            ring_all_reduce(p.grad)
            p.grad /= dist.get_world_size()
"""


def instead(source: str) -> tuple[str, str]:
    """A class of the student's own, whatever the solution's looks like."""
    return "", source


RIGHT = [
    student("the solution"),
    student("in the order of arrival", *instead(IN_ORDER_OF_ARRIVAL)),
    student("the course's transport", SEND, WITH_TRANSPORT),
    student("futures", SEND, WITH_FUTURES),
]

WRONG = [
    student("summed", DIVIDE, "", says="summed, not averaged", at_most=0.0),
    student("divided twice", DIVIDE, DIVIDE + DIVIDE, says="divided twice", at_most=0.0),
    student("no wait", "            handle.wait()\n", "", says="before the messages had arrived", at_most=0.0),
    student("never copied back", COPY, "                pass\n", says="never copied back", at_most=0.0),
    student(
        "never flushed",
        *instead(NEVER_FLUSHED),
        says=("embedding.weight are still", "The last one need not be full; who sends it?"),
        at_most=0.9,
    ),
    student(
        "not emptied",
        RESET,
        "        ### END",
        says=("the next step is right", "reset the counters"),
        at_most=0.95,
    ),
    student(
        "after backward",
        HOOKS,
        "",
        FINISH,
        "        for bucket in self.buckets:\n            self.send(bucket)\n" + FINISH,
        kind=Kind.NOT_OVERLAPPED,
        says=("all communication comes after backward", "0 of 5,824 bytes"),
        at_most=0.85,
    ),
    student(
        "a hook that waits",
        SEND,
        "        handle = dist.all_reduce(flat, async_op=True)\n        handle.wait()\n"
        "        self.sent.append((flat, handle))\n",
        kind=Kind.NOT_OVERLAPPED,
        says=("rank 0 did not end backward", "async_op=True"),
        at_most=0.85,
    ),
    student(
        "a blocking call",
        SEND,
        "        dist.all_reduce(flat)\n        self.sent.append((flat, None))\n",
        "            handle.wait()\n",
        "",
        kind=Kind.NOT_OVERLAPPED,
        says="a hook waits for its message",
        at_most=0.85,
    ),
    student(
        "one bucket",
        FULL,
        "            if False:\n",
        kind=Kind.NOT_OVERLAPPED,
        says=("1 messages of 5,824 bytes", "full only when backward is over"),
        at_most=0.85,
    ),
    student(
        "a message per parameter",
        *instead(PER_PARAMETER),
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says=("there is a message per parameter", "4 buckets hold all gradients"),
        at_most=0.85,
    ),
    student(
        "the tied weight twice",
        *instead(TIED_TWICE),
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says="the tied weight is sent twice",
        at_most=0.95,
    ),
    student(
        "buckets in another order on rank 1",
        PARAMETERS,
        "sorted(model.parameters(), key=torch.numel, reverse=dist.get_rank() == 1)",
        kind=Kind.RANKS_DISAGREE,
        says=("call number 1 is all_reduce of", "in the same order"),
        at_most=0.0,
    ),
    student(
        "a rank that sends nothing",
        READY,
        "        if dist.get_rank() == 1:\n            return\n" + READY,
        kind=Kind.DEADLOCK,
        says=("rank 0 waits in wait() at line", "those that have returned"),
        at_most=0.0,
    ),
    student("a typo", SEND, SEND.replace("async_op", "asynch_op"), kind=Kind.CRASHED, says="asynch_op", at_most=0.0),
    student("the library's own", *instead(LIBRARY), kind=Kind.NOT_ALLOWED, says="the course's library", at_most=0.0),
    student("torch's own", *instead(DDP), says="still this rank's own gradients", at_most=0.0),
    student("no finish", "def finish", "def finnish", kind=Kind.WRONG_SHAPE, says="needs a method finish", at_most=0.0),
    student(
        "not attempted",
        READY,
        "        raise NotImplementedError()\n",
        kind=Kind.NOT_ATTEMPTED,
        says="Replace the line",
    ),
]


def averager_of(made: Student):
    source = [new for old, new in made.changes if not old]
    if source:
        return written_anew(source[0])
    return written("ddp_overlap", "overlapped_gradients", *made.changes, given={"nn": nn})["OverlappedGradients"]


def written_anew(source: str):
    """A class that shares no line with the solution."""
    whole = cells("ddp_overlap")["overlapped_gradients"]
    return written("ddp_overlap", "overlapped_gradients", (whole, source), given={"nn": nn})["OverlappedGradients"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_overlap_check_accepts_right_overlaps(made: Student) -> None:
    result = checks.run("ddp_overlap/2", averager_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


def test_overlap_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    others = {"seed": 295, "bucket_bytes": 2300, "larger_bucket_bytes": 3200, "num_tokens": 9}
    result = checks.run("ddp_overlap/2", averager_of(RIGHT[0]), **others)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_overlap_check_names_the_mistake(made: Student) -> None:
    result = checks.run("ddp_overlap/2", averager_of(made))
    assert_refused(result, made)


def test_overlap_check_refuses_an_object() -> None:
    result = checks.run("ddp_overlap/2", "OverlappedGradients")
    assert result.kind is Kind.WRONG_SHAPE
    assert "hand over the class" in result.message


def test_buckets_of_the_visible_case_by_hand() -> None:
    """From the last parameter: 64 + 1024 + 64, 1024 + 64, 1024, and the embedding's 2560 bytes by themselves."""
    sizes = {"seed": 0, "num_ranks": 2, "num_tokens": (6, 6)}
    assert num_buckets(Case(**sizes, bucket_bytes=1200)) == 4
    assert num_buckets(Case(**sizes, bucket_bytes=10_000)) == 1
    assert num_buckets(Case(**sizes, bucket_bytes=1)) == 7


def facts(*messages: tuple[str, int]) -> RankFacts:
    """A rank that all-reduces so many bytes, in backward or in finish of the first step."""
    calls = [
        Communication(collective="all_reduce", payload_bytes=size, sent_bytes=size, phase=f"step 0: {phase}")
        for phase, size in messages
    ]
    return RankFacts(rank=0, outputs={}, calls=tuple(calls))


def test_one_bucket_may_be_left_for_finish() -> None:
    case = Case(seed=0, num_ranks=2, num_tokens=(6, 6), bucket_bytes=1200)
    assert judge_start(case, facts(("backward", 3264), ("finish", 2560))).passed
    late = judge_start(case, facts(("backward", 1152), ("finish", 2112), ("finish", 2560)))
    assert late.kind is Kind.NOT_OVERLAPPED
    assert "1,152 of 5,824 bytes" in late.difference
    assert "most of the communication" in late.cause


def test_a_bucket_may_overflow_by_one_gradient_and_one_message_more_is_fine() -> None:
    case = Case(seed=0, num_ranks=2, num_tokens=(6, 6), bucket_bytes=1200)
    assert judge_buckets(case, facts(("backward", 2176), ("backward", 3648))).passed
    assert judge_buckets(case, facts(*[("backward", 1164)] * 5)).passed
    many = judge_buckets(case, facts(*[("backward", 970)] * 6))
    assert many.kind is Kind.TOO_MUCH_COMMUNICATION
    assert "per parameter" not in many.cause
    assert judge_buckets(case, facts(("backward", 4800), ("backward", 1024))).kind is Kind.NOT_OVERLAPPED
