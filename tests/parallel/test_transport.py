"""The transport: exact sums in the order of the ranks, several calls under way, little memory, clear errors."""

import random
import weakref

import pytest
import torch
import torch.distributed as dist

from cme295lab.parallel import run_distributed
from cme295lab.parallel.communication import exchange, transport
from cme295lab.parallel.communication.exchange import PIECE_BYTES, SCRATCH_BYTES, sequencer
from tests.parallel.refusals import messages_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32)
LENGTHS = (0, 1, 3, 7, 64, 1000, 300_001)  # the last one goes in shards


def _values(length, dtype, seed):
    return (torch.randn(length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 100).to(dtype)


def _sum_in_order(num_ranks, length, dtype):
    wide = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    total = _values(length, dtype, 0).to(wide)
    for rank in range(1, num_ranks):
        total = total + _values(length, dtype, rank).to(wide)
    return total.to(dtype)


def _compare(group):
    exchange.PIECE_BYTES = 50_000  # so that the longest vectors go in many pieces
    rank, num_ranks = dist.get_rank(group), dist.get_world_size(group)
    for dtype in DTYPES:
        for length in LENGTHS:
            what = f"{dtype} {length}"
            mine, expected = _values(length, dtype, rank), _sum_in_order(num_ranks, length, dtype)
            got = mine.clone()
            transport.all_reduce(got, group=group)
            assert torch.equal(got, expected), f"all_reduce {what}"
            shard = -(-length // num_ranks)
            whole, padded = mine.new_zeros(shard * num_ranks), mine.new_zeros(shard * num_ranks)
            whole[:length], padded[:length] = mine, expected
            part = padded.view(num_ranks, -1)[rank]
            output = mine.new_empty(shard)
            transport.reduce_scatter(output, whole, group=group)
            assert torch.equal(output, part), f"reduce_scatter {what}"
            own = whole.view(num_ranks, -1)[rank]
            transport.reduce_scatter(own, whole, group=group, async_op=True).wait()
            assert torch.equal(own, part), f"reduce_scatter in place {what}"
            gathered = torch.empty_like(padded)
            transport.all_gather(gathered, output, group=group)
            assert torch.equal(gathered, padded), f"all_gather {what}"
            gathered.zero_().view(num_ranks, -1)[rank] = output
            own = gathered.view(num_ranks, -1)[rank]
            transport.all_gather(gathered, own, group=group, async_op=True).wait()
            assert torch.equal(gathered, padded), f"all_gather in place {what}"
    return "equal"


def _all_lengths():
    num_ranks = dist.get_world_size()
    results = [_compare(dist.group.WORLD)]
    if num_ranks > 2:
        group = dist.new_group(list(range(1, num_ranks)))
        if dist.get_rank() > 0:
            results.append(_compare(group))
    return results


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_sums_are_bit_for_bit_those_in_the_order_of_the_ranks(num_ranks):
    for results in run_distributed(_all_lengths, num_ranks, timeout_s=100):
        assert set(results) == {"equal"}


def _eight():
    x = _values(300_001, torch.float32, dist.get_rank())
    transport.all_reduce(x)
    y = _values(5, torch.bfloat16, dist.get_rank())
    transport.all_reduce(y)
    same = torch.equal(x, _sum_in_order(8, 300_001, torch.float32))
    return same and torch.equal(y, _sum_in_order(8, 5, torch.bfloat16))


def test_sums_on_eight_ranks():
    assert run_distributed(_eight, 8, timeout_s=100) == [True] * 8


def _under_way():
    """Twelve calls at once, short and long, on two groups, waited for in another order on each rank."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    group = dist.new_group([0, 1])
    results = {}

    def start(index):
        length, where = (11 if index % 3 else 300_000) + index, group if index % 2 and rank < 2 else None
        if index % 2 and rank >= 2:
            return None
        members = 2 if index % 2 else num_ranks
        x = torch.full((length,), float(rank + index))
        results[index] = x, sum(range(members)) + members * index
        if index % 4 == 2:
            shard = torch.full((300_000,), float(rank))
            whole = torch.empty(300_000 * num_ranks)
            results[index] = whole.view(num_ranks, -1)[:, 7], torch.arange(num_ranks).float()
            return transport.all_gather(whole, shard, async_op=True)
        return transport.all_reduce(x, group=where, async_op=True)

    handles = [handle for handle in map(start, range(12)) if handle is not None]
    between = torch.full((400_000,), 1.0)
    transport.all_reduce(between)  # a call that waits, while others are under way
    random.Random(rank).shuffle(handles)
    for handle in handles:
        handle.wait()
        handle.wait()
    return [index for index, (x, value) in results.items() if not (x == value).all()], between[-1].item()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_calls_under_way_may_be_waited_for_in_any_order(num_ranks):
    assert run_distributed(_under_way, num_ranks) == [([], float(num_ranks))] * num_ranks


def _wait_before_the_next_call():
    """Rank 0 starts two sums and waits for the first; rank 1 starts the second only after a message from rank 0."""
    x, y, token = torch.ones(400_000), torch.ones(400_000), torch.zeros(1)
    first = transport.all_reduce(x, async_op=True)
    if dist.get_rank() == 0:
        second = transport.all_reduce(y, async_op=True)
        first.wait()
        dist.send(token, 1)
    else:
        first.wait()
        dist.recv(token, 0)
        second = transport.all_reduce(y, async_op=True)
    second.wait()
    return x[0].item(), y[0].item()


def test_a_call_that_others_make_later_does_not_block_an_earlier_one():
    assert run_distributed(_wait_before_the_next_call, 2, timeout_s=20) == [(2.0, 2.0)] * 2


def _moves():
    """What is moved without adding, in dtypes that gloo has no name for as well."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    wrong = []
    for dtype in (torch.float32, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.bfloat16):
        for length in (3, 300_000):
            mine = torch.full((length,), float(rank % 2)).to(dtype)
            whole = torch.empty(num_ranks * length, dtype=dtype)
            transport.all_gather(whole, mine)
            rows = whole.view(num_ranks, length).float()
            wrong += [] if all((row == r % 2).all() for r, row in enumerate(rows)) else [("all_gather", dtype, length)]
            transport.broadcast(mine, num_ranks - 1)
            wrong += [] if (mine.float() == (num_ranks - 1) % 2).all() else [("broadcast", dtype, length)]
            sent = torch.arange(num_ranks).repeat_interleave(2).add(rank).remainder(2).to(torch.float32).to(dtype)
            received = torch.empty_like(sent)
            transport.all_to_all(received, sent, async_op=True).wait()
            expected = torch.arange(num_ranks).repeat_interleave(2).add(rank).remainder(2).float()
            wrong += [] if torch.equal(received.float(), expected) else [("all_to_all", dtype, length)]
    sizes = [rank + 1] * num_ranks
    sent, received = torch.full((sum(sizes),), float(rank)), torch.empty(sum(r + 1 for r in range(num_ranks)))
    transport.all_to_all(received, sent, input_split_sizes=sizes, output_split_sizes=[r + 1 for r in range(num_ranks)])
    uneven = [float(r) for r in range(num_ranks) for _ in range(r + 1)]
    wrong += [] if received.tolist() == uneven else [("uneven all_to_all", received.tolist())]
    return wrong


def test_moving_keeps_every_bit_in_every_dtype():
    assert run_distributed(_moves, 3) == [[]] * 3


def _largest_allocation():
    """Bytes allocated in one go during a long sum, and the thread that ends with its group."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func._schema.name.startswith("aten::empty"):
                made.append(result.untyped_storage().nbytes())
            return result

    made, figures = [], {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        made.clear()
        x = torch.arange(128, dtype=dtype).repeat(40 * 2**20 // dtype.itemsize // 128)
        expected = x * 2
        with Allocations():
            transport.all_reduce(x)
        figures[name] = sum(made) if torch.equal(x, expected) else -1
    group = dist.new_group([0, 1], backend="gloo")
    handle = transport.all_reduce(torch.ones(400_000), group=group, async_op=True)
    handle.wait()
    thread = sequencer(group)._thread
    forgotten = weakref.ref(group)
    dist.destroy_process_group(group)
    del group, handle
    thread.join(5)
    return figures, thread.is_alive(), forgotten() is None


def test_long_sum_needs_little_memory_and_its_thread_ends_with_the_group():
    for figures, alive, forgotten in run_distributed(_largest_allocation, 2):
        assert all(0 < num_bytes <= SCRATCH_BYTES for num_bytes in figures.values())
        assert max(figures.values()) <= 2 * PIECE_BYTES < 40 * 2**20
        assert (alive, forgotten) == (False, True)


def _bad_input():
    x = torch.ones(4)
    calls = {
        "list": lambda: transport.all_reduce([1.0]),
        "shape": lambda: transport.all_reduce(torch.ones(2, 2)),
        "strides": lambda: transport.all_reduce(torch.ones(8)[::2]),
        "bool": lambda: transport.all_reduce(torch.ones(4, dtype=torch.bool)),
        "length": lambda: transport.reduce_scatter(torch.ones(3), x),
        "gather length": lambda: transport.all_gather(torch.ones(9), x),
        "dtypes": lambda: transport.all_gather(torch.ones(8), x.half()),
        "source": lambda: transport.broadcast(x, 2),
        "split": lambda: transport.all_to_all(torch.ones(3), torch.ones(3)),
        "sizes": lambda: transport.all_to_all(x, x, input_split_sizes=[1, 2]),
        "group": lambda: transport.barrier(group=-100),
    }
    return messages_of(calls.values())


def test_bad_input_is_named():
    expected = [
        "TypeError: tensor must be a torch.Tensor, got list",
        "ValueError: tensor must be flat and contiguous, got shape (2, 2)",
        "ValueError: tensor must be flat and contiguous, got shape (4,), not contiguous",
        "TypeError: torch.bool cannot be summed",
        "ValueError: input must have num_ranks * len(output) = 2 * 3 elements, got 4",
        "ValueError: output must have num_ranks * len(input) = 2 * 4 elements, got 9",
        "ValueError: output and input must have one dtype and device",
        "ValueError: src must be a rank of the group [0, 1], got 2",
        "ValueError: input has 3 elements, which 2 ranks cannot share equally",
        "ValueError: input_split_sizes must be 2 sizes >= 0 that add up to the 4 elements of input, got [1, 2]",
        "ValueError: group must be a ProcessGroup that this rank is a member of, got -100",
    ]
    for messages in run_distributed(_bad_input, 2, env={"JAXTYPING_DISABLE": "1"}):
        assert [m.startswith(e) for m, e in zip(messages, expected, strict=True)] == [True] * len(expected), messages


def test_without_processes_the_error_says_what_to_do():
    with pytest.raises(ValueError, match="run_distributed"):
        transport.all_reduce(torch.ones(3))


def _another_backend():
    """On a backend other than gloo, here torch's fake one of four ranks, the calls are torch's own."""
    import torch.testing._internal.distributed.fake_pg as fake_pg

    from cme295lab.parallel.communication.comm_ledger import CommLedger

    dist.destroy_process_group()
    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=1, world_size=4)
    whole, shard = torch.ones(400_000), torch.ones(100_000)
    with CommLedger() as ledger:
        transport.all_reduce(whole)
        transport.reduce_scatter(shard, whole, async_op=True).wait()
        transport.all_gather(whole, shard)
        transport.broadcast(whole, 0)
        transport.all_to_all(torch.empty_like(whole), whole)
        transport.barrier()
    return [(call.collective, call.sent_bytes) for call in ledger.calls]


def test_other_backends_get_torchs_own_calls_counted_once():
    one = 4 * 300_000.0
    expected = [("all_reduce", 2 * one), ("reduce_scatter", one), ("all_gather", one), ("broadcast", one)]
    assert run_distributed(_another_backend, 1) == [[*expected, ("all_to_all", one), ("barrier", 0)]]
