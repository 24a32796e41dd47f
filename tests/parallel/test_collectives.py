"""The lesson's collectives on real processes: equal to torch.distributed's, and as many bytes as the formulas say."""

import itertools

import pytest
import torch
import torch.distributed as dist

from cme295lab.parallel import run_distributed
from cme295lab.parallel.communication import collectives
from cme295lab.parallel.communication.comm_ledger import CommLedger
from tests.parallel.refusals import messages_of

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64)
SHAPES = ((24,), (1,), (0,), (13,), (3, 7))


def _values(shape, dtype, seed):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 8).to(dtype)


def _close(got, expected, num_ranks, what):
    """Exact for integers; for floats, an error of half a unit in the last place for each of the N-1 sums."""
    if not got.is_floating_point():
        assert torch.equal(got, expected), what
        return
    scale = 8 * 4 * num_ranks  # no partial sum is larger
    limit = num_ranks * scale * torch.finfo(got.dtype).eps / 2
    error = (got.double() - expected.double()).abs().max().item() if got.numel() else 0.0
    assert error <= limit, f"{what}: off by {error}, more than {limit}"


def _compare_all(group, members):
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    for dtype, shape in itertools.product(DTYPES, SHAPES):
        what = f"{dtype} {shape}"
        mine = _values(shape, dtype, rank)
        exact = sum(_values(shape, dtype, other).double() for other in range(num_ranks))
        for function in (collectives.ring_all_reduce, collectives.tree_all_reduce):
            got = mine.clone()
            function(got, group=group)
            _close(got, exact.to(dtype), num_ranks, f"{function.__name__} {what}")
            copies = [torch.empty_like(got) for _ in range(num_ranks)]
            dist.all_gather(copies, got, group=group)
            assert all(torch.equal(copy, got) for copy in copies), f"{function.__name__} {what}: ranks differ"
        work = mine.clone()
        shard = collectives.ring_reduce_scatter(work, group=group)
        _close(shard, exact.to(dtype).view(-1).tensor_split(num_ranks)[rank], num_ranks, f"reduce-scatter {what}")
        gathered = torch.zeros_like(mine)
        own = gathered.view(-1).tensor_split(num_ranks)[rank]
        own.copy_(_values(shape, dtype, 99).view(-1).tensor_split(num_ranks)[rank])
        collectives.ring_all_gather(gathered, group=group)
        assert torch.equal(gathered, _values(shape, dtype, 99)), f"all-gather {what}"
        for root in {members[0], members[-1]}:
            for function in (collectives.ring_broadcast, collectives.tree_broadcast):
                got = mine.clone()
                function(got, root, group=group)
                assert torch.equal(got, _values(shape, dtype, members.index(root))), f"{function.__name__} {what}"
        sent = _values((num_ranks, 5), dtype, rank)
        received, expected = torch.empty_like(sent), torch.empty_like(sent)
        collectives.pairwise_all_to_all(received, sent, group=group)
        dist.all_to_all_single(expected.view(-1), sent.view(-1), group=group)
        assert torch.equal(received, expected), f"all-to-all {dtype}"


def _lesson():
    """All functions, over all ranks and over a part of them; then the bytes of each."""
    num_ranks = dist.get_world_size()
    _compare_all(dist.group.WORLD, list(range(num_ranks)))
    if num_ranks > 2:
        members = list(range(1, num_ranks))
        group = dist.new_group(members)
        if dist.get_rank() > 0:
            _compare_all(group, members)
    x = torch.ones(24 * num_ranks)
    sent = {}
    for function in (collectives.ring_all_reduce, collectives.ring_reduce_scatter, collectives.ring_all_gather):
        with CommLedger() as ledger:
            function(x)
        assert set(ledger.by_collective()) <= {"send", "recv"}
        sent[function.__name__] = ledger.sent_bytes
    with CommLedger() as ledger:
        collectives.tree_all_reduce(x)
    return sent | {"tree_all_reduce": ledger.sent_bytes}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_collectives_equal_torchs_and_send_the_bytes_of_the_formula(num_ranks):
    size = 4 * 24 * num_ranks
    half = size * (num_ranks - 1) // num_ranks
    for sent in run_distributed(_lesson, num_ranks, timeout_s=90):
        tree = sent.pop("tree_all_reduce")
        assert sent == {"ring_all_reduce": 2 * half, "ring_reduce_scatter": half, "ring_all_gather": half}
        if num_ranks in (1, 2, 4):
            assert tree == size * {1: 0, 2: 1, 4: 2}[num_ranks]


def _eight():
    x = torch.arange(37, dtype=torch.int64) * (dist.get_rank() + 1)
    y = x.clone()
    collectives.ring_all_reduce(x)
    collectives.tree_all_reduce(y)
    return torch.equal(x, torch.arange(37) * 36), torch.equal(y, x)


def test_collectives_on_eight_ranks():
    assert run_distributed(_eight, 8, timeout_s=90) == [(True, True)] * 8


def _bad_input():
    return messages_of([
        lambda: collectives.ring_all_reduce([1.0]),
        lambda: collectives.ring_all_reduce(torch.ones(4, 4).t()),
        lambda: collectives.ring_all_reduce(torch.ones(4, dtype=torch.bool)),
        lambda: collectives.ring_broadcast(torch.ones(4), 7),
        lambda: collectives.ring_broadcast(torch.ones(4), 0, num_chunks=0),
        lambda: collectives.pairwise_all_to_all(torch.ones(3), torch.ones(3)),
        lambda: collectives.pairwise_all_to_all(torch.ones(2), torch.ones(4)),
        lambda: collectives.ring_all_reduce(torch.ones(4), group=3),
    ])


def test_collectives_refuse_bad_input():
    expected = [
        "TypeError: tensor must be a torch.Tensor, got list",
        "ValueError: tensor must be contiguous",
        "TypeError: torch.bool cannot be summed",
        "ValueError: src must be a rank of the group [0, 1], got 7",
        "ValueError: num_chunks must be at least 1, got 0",
        "ValueError: input has 3 elements, which 2 ranks cannot share equally",
        "ValueError: output must have the elements and dtype of input",
        "ValueError: group must be a ProcessGroup",
    ]
    for messages in run_distributed(_bad_input, 2):
        assert [m.startswith(e) for m, e in zip(messages, expected, strict=True)] == [True] * len(expected), messages


def test_collectives_outside_of_a_group_say_what_to_do():
    with pytest.raises(ValueError, match="run_distributed"):
        collectives.ring_all_reduce(torch.ones(3))
