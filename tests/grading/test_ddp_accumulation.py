"""Part 3 of overlapping data parallelism: right classes pass, and the mistake in wrong ones is named."""

import pytest
from torch import nn

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, cells, student, written

SILENT = "        self.is_silent = True\n"
LOUD = "            self.is_silent = False\n"
ZEROS = """\
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
"""
REST = "        for bucket in self.buckets[len(self.sent) :]:\n            self.send(bucket)\n"
SUPER = "        super().finish()\n"
READY = "        if not self.is_silent:\n            super().ready(parameter)\n"
FINISH = ZEROS + REST + SUPER

BY_ITSELF = '''\
class AccumulatedGradients:
    """Sends nothing in the hook of a silent micro-batch, and its own zeros."""

    def __init__(self, model, bucket_bytes):
        self.parameters, self.size, self.muted = list(model.parameters())[::-1], bucket_bytes, 0
        self.done, self.sent, self.next = set(), [], 0
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(self.note)

    @contextlib.contextmanager
    def no_sync(self):
        self.muted += 1
        yield
        self.muted -= 1

    def note(self, p):
        if not self.muted:
            self.done.add(p)
            self.advance(False)

    def advance(self, is_over):
        while self.next < len(self.parameters):
            bucket, size = [], 0
            for p in self.parameters[self.next :]:
                if bucket and size + p.nbytes > self.size:
                    break
                bucket.append(p)
                size += p.nbytes
            if not is_over and not set(bucket) <= self.done:
                return
            flat = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in bucket])
            self.sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
            self.next += len(bucket)

    def finish(self):
        self.advance(True)
        for bucket, flat, handle in self.sent:
            handle.wait()
            for p, piece in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = piece.view_as(p) / dist.get_world_size()
        self.done, self.sent, self.next = set(), [], 0
'''
FORGETFUL = """\
        if self.is_silent:
            parameter.grad = None
        else:
            super().ready(parameter)
"""
USERS_ONLY = """\
        used = torch.tensor([float(p.grad is not None) for p in self.model.parameters()])
"""
PARTED = """\
        dist.all_reduce(used)
        for p, num_users in zip(self.model.parameters(), used):
            p.grad *= dist.get_world_size() / num_users
"""

RIGHT = [
    student("the solution"),
    student("a class by itself", "", BY_ITSELF),
    student(
        "zeros at the start",
        ZEROS,
        "        for p in self.model.parameters():\n"
        "            p.grad = p.new_zeros(p.shape) if p.grad is None else p.grad\n",
    ),
]

WRONG = [
    student(
        "no_sync does nothing",
        SILENT,
        "",
        says="only the first micro-batch counts",
        at_most=0.0,
    ),
    student(
        "averages in every micro-batch",
        "            yield\n        finally:\n            self.is_silent = False\n",
        "            yield\n        finally:\n            self.is_silent = False\n"
        "        for p in self.model.parameters():\n            dist.all_reduce(p.grad)\n"
        "            p.grad /= dist.get_world_size()\n",
        kind=Kind.TOO_MUCH_COMMUNICATION,
        says=("within no_sync, nothing is sent", "bytes are sent within no_sync, in", "dist.all_reduce(p.grad)"),
        at_most=0.85,
    ),
    student(
        "only the last micro-batch counts",
        READY,
        FORGETFUL,
        says="only the last micro-batch counts",
        at_most=0.0,
    ),
    student(
        "silent for ever",
        LOUD,
        "            pass\n",
        kind=Kind.NOT_OVERLAPPED,
        says="the last backward ended",
        at_most=0.95,
    ),
    student(
        "divided by the micro-batches",
        SUPER,
        SUPER + "        for p in self.model.parameters():\n            p.grad /= 3\n",
        says="a second time: the loss is divided already",
        at_most=0.0,
    ),
    student(
        "a rank without a gradient",
        FINISH,
        SUPER,
        kind=Kind.DEADLOCK,
        says=("a rank that does not use a layer", "Its bucket never fills there", "waits in wait()"),
        at_most=0.6,
    ),
    student(
        "zeros that nobody sends",
        REST,
        "",
        kind=Kind.DEADLOCK,
        says="Its bucket never fills there",
        at_most=0.6,
    ),
    student(
        "None is sent",
        ZEROS,
        "",
        kind=Kind.CRASHED,
        says=("on rank 1", "'NoneType' object has no attribute"),
        at_most=0.6,
    ),
    student(
        "averaged over the users",
        ZEROS,
        USERS_ONLY + ZEROS,
        SUPER,
        SUPER + PARTED,
        says="divide by the number of all ranks",
        at_most=0.75,
    ),
    student(
        "buckets out of order",
        READY,
        "        if not self.is_silent:\n"
        "            index = self.bucket_of[parameter]\n"
        "            self.missing[index] -= 1\n"
        "            if self.missing[index] == 0:\n"
        "                self.send(self.buckets[index])\n",
        kind=Kind.RANKS_DISAGREE,
        says=("all_reduce of", "on rank 1", "in the same order"),
        at_most=0.6,
    ),
    student(
        "no no_sync", "def no_sync", "def nosync", kind=Kind.WRONG_SHAPE, says="needs a method no_sync", at_most=0.0
    ),
    student(
        "not attempted",
        FINISH,
        "        raise NotImplementedError()\n",
        kind=Kind.NOT_ATTEMPTED,
        says="Replace",
        at_most=0.0,
    ),
]


def averager_of(made: Student):
    given = written("ddp_overlap", "overlapped_gradients", given={"nn": nn})
    changes = made.changes
    if changes and not changes[0][0]:
        changes = ((cells("ddp_overlap")["accumulated_gradients"], changes[0][1]),)
    return written("ddp_overlap", "accumulated_gradients", *changes, given=given)["AccumulatedGradients"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_accumulation_check_accepts_right_classes(made: Student) -> None:
    result = checks.run("ddp_overlap/3", averager_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


def test_accumulation_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    others = {"seed": 295, "bucket_bytes": 2300, "num_micro_batches": 2}
    result = checks.run("ddp_overlap/3", averager_of(RIGHT[0]), **others)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_accumulation_check_names_the_mistake(made: Student) -> None:
    result = checks.run("ddp_overlap/3", averager_of(made))
    assert_refused(result, made)


def test_part_2_handed_in_for_part_3_lacks_a_method() -> None:
    part_2 = written("ddp_overlap", "overlapped_gradients", given={"nn": nn})["OverlappedGradients"]
    result = checks.run("ddp_overlap/3", part_2)
    assert result.kind is Kind.WRONG_SHAPE
    assert "no_sync" in result.message
