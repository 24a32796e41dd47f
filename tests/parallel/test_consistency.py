"""Ranks that do not make the same call are named, with their calls and lines; nobody hangs."""

import time

import pytest
import torch
import torch.distributed as dist

from cme295lab.parallel import run_distributed
from cme295lab.parallel.communication import transport
from cme295lab.parallel.communication.comm_ledger import CommLedger, ledger_tag
from cme295lab.parallel.communication.consistency import CollectiveMismatch, checked

X = 6


def _message(block, *, timeout_s=10.0):
    """What `checked` says about a block, within its time; a rank that is not concerned says ""."""
    started = time.monotonic()
    try:
        with checked(timeout_s=timeout_s):
            block()
    except CollectiveMismatch as error:
        return f"{time.monotonic() - started < 5}: {error}"
    return ""


def _plain(rank):
    """Mismatches in plain torch.distributed calls."""
    other = dist.get_world_size() - 1  # the last rank goes astray
    none = [0] * (dist.get_world_size() - 2)
    even, odd = [3, 3, *none], [X - 2, 2, *none]
    astray, x = rank == other, torch.ones(X)

    def either(mine, theirs):
        return lambda: theirs() if astray else mine()

    return {
        "shape": lambda: dist.all_reduce(torch.ones(X + astray)),
        "same length": lambda: dist.all_reduce(torch.ones(3, 2) if astray else torch.ones(2, 3)),
        "dtype": lambda: dist.all_reduce(x.double() if astray else x),
        "operation": either(lambda: dist.all_reduce(x), lambda: dist.broadcast(x, 0)),
        "root": lambda: dist.broadcast(x, 1 if astray else 0),
        "splits": lambda: dist.all_to_all_single(torch.ones(X), torch.ones(X), odd if astray else even, even),
        "left": either(lambda: dist.all_reduce(x), lambda: None),
        "late": either(lambda: dist.all_reduce(x), lambda: time.sleep(1.0)),
    }


def _ours(rank):
    """Mismatches in the transport's calls."""
    num_ranks = dist.get_world_size()
    astray, x = rank == num_ranks - 1, torch.ones(X * num_ranks)
    part = torch.ones(X)

    def tagged(name):
        with ledger_tag(name):
            transport.all_reduce(x)

    return {
        "ours shape": lambda: transport.all_reduce(torch.ones(X + astray)),
        "ours operation": lambda: transport.all_gather(x, part) if astray else transport.all_reduce(x),
        "ours dtype": lambda: transport.reduce_scatter(*(t.half() if astray else t for t in (part, x))),
        "ours tag": lambda: tagged("bucket 2" if astray else "bucket 1"),
        "ours long": lambda: transport.all_reduce(torch.ones(500_000 + astray), async_op=True).wait(),
    }


def _mismatches():
    rank, messages = dist.get_rank(), {}
    blocks = _plain(rank) | _ours(rank)
    for name, block in blocks.items():
        messages[name] = _message(block, timeout_s=0.3 if name == "late" else 10.0)
        dist.barrier()  # and what comes after works
    return messages


def test_mismatch_names_each_ranks_call_and_line():
    first, last = run_distributed(_mismatches, 2)
    expected = {
        "shape": ("different shapes", "all_reduce of float32 (6,)", "all_reduce of float32 (7,)"),
        "same length": ("different shapes", "(2, 3)", "(3, 2)"),
        "dtype": ("different dtypes", "float32 (6,)", "float64 (6,)"),
        "operation": ("different collectives", "all_reduce of", "broadcast of"),
        "root": ("different roots", "root_rank 0", "root_rank 1"),
        "splits": ("what one rank sends", "sending [3, 3], expecting [3, 3]", "expecting [4, 2]"),
        "ours shape": ("different shapes", "(6,)", "(7,)"),
        "ours operation": ("different collectives", "all_reduce of float32 (12,)", "all_gather of float32 (6,)"),
        "ours dtype": ("different dtypes", "reduce_scatter of float32", "reduce_scatter of float16"),
        "ours tag": ("different tags", "'bucket 1'", "'bucket 2'"),
        "ours long": ("different shapes", "(500000,)", "(500001,)"),
    }
    for name, texts in expected.items():
        for messages in (first, last):
            message = messages[name]
            assert message.startswith("True: "), f"{name}: took too long, or not noticed: {message!r}"
            rank_lines = [line for line in message.splitlines() if line.startswith("  rank")]
            assert texts[0] in message.splitlines()[0], (name, message)
            assert [line[:8] for line in rank_lines] == ["  rank 0", "  rank 1"], message
            assert all(text in line for text, line in zip(texts[1:], rank_lines)), message
            assert all("test_consistency.py:" in line for line in rank_lines), message


def test_rank_that_does_not_call_is_named():
    messages = run_distributed(_mismatches, 3)
    for name, text in (("left", "left the block after 0 collective calls"), ("late", "no call within 0.3 s")):
        for rank, said in enumerate(messages):
            if rank == 2:
                assert said[name] == ""
            else:
                assert said[name].startswith("True: "), said[name]
                assert "missing: rank 2" in said[name], said[name]
                assert f"rank 2: {text}" in said[name], said[name]


def _what_agrees():
    """Many calls, also of a part of the ranks, that agree: values as without the check, and all counted."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    pair = dist.new_group([0, 1])
    x = torch.full((500_000,), float(rank))
    with CommLedger(check=True, timeout_s=20) as ledger:
        handles = [transport.all_reduce(x, async_op=True), transport.all_reduce(y := torch.ones(3), async_op=True)]
        for handle in reversed(handles):
            handle.wait()
        if rank < 2:
            transport.all_reduce(torch.ones(rank * 0 + 5), group=pair)
        uneven = [source + 1 for source in range(num_ranks)]  # rank r gets r + 1 elements from everybody
        transport.all_to_all(
            torch.empty(num_ranks * (rank + 1)),
            torch.ones(sum(uneven)),
            input_split_sizes=uneven,
            output_split_sizes=[rank + 1] * num_ranks,
        )
        dist.barrier()
        ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 3))
        ddp(torch.ones(1, 3)).sum().backward()
    started = time.perf_counter()
    with checked():
        for _ in range(50):
            transport.barrier()
    per_call_s = (time.perf_counter() - started) / 50
    return x[0].item(), y[0].item(), len(ledger.calls), per_call_s, num_ranks


def test_calls_that_agree_pass_the_check():
    results = run_distributed(_what_agrees, 3)
    for rank, (value, ones, num_calls, per_call_s, _) in enumerate(results):
        assert (value, ones) == (3.0, 3.0)
        assert num_calls >= (6 if rank < 2 else 5)
        assert per_call_s < 0.2


def test_checked_refuses_a_time_limit_that_is_not_positive():
    with pytest.raises(ValueError, match="timeout_s must be positive, got 0"), checked(timeout_s=0):
        pass
    with pytest.raises(ValueError, match="check=True"):
        CommLedger(timeout_s=3.0)


def test_checked_false_does_nothing_without_a_process_group():
    with checked(False):
        assert not dist.is_initialized()
