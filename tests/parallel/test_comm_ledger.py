"""The ledger counts torch's own parallel training, plain torch.distributed code and ours, by the same formulas."""

import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cme295lab.parallel import run_distributed
from cme295lab.parallel.communication import c10d_operators, transport
from cme295lab.parallel.communication.c10d_operators import decode
from cme295lab.parallel.communication.comm_ledger import CommLedger, ledger_tag, merge

ELEMENTS = 24  # divides by 1, 2, 3, 4 and 8 ranks


def _every_call() -> CommLedger:
    """Each call of torch.distributed that people use, and of ours, under a tag that names it."""
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    x, shard = torch.ones(ELEMENTS), torch.ones(ELEMENTS // num_ranks)
    calls = {
        "all_reduce": lambda: dist.all_reduce(x),
        "all_gather list": lambda: dist.all_gather([shard.clone() for _ in range(num_ranks)], shard),
        "all_gather object": lambda: dist.all_gather_object([None] * num_ranks, 1),
        "broadcast": lambda: dist.broadcast(x, 0),
        "reduce": lambda: dist.reduce(x, 0),
        "gather": lambda: dist.gather(shard, [shard.clone() for _ in range(num_ranks)] if rank == 0 else None, dst=0),
        "scatter": lambda: dist.scatter(shard, [shard.clone() for _ in range(num_ranks)] if rank == 0 else None, src=0),
        "all_to_all": lambda: dist.all_to_all_single(torch.empty_like(x), x),
        "barrier": lambda: dist.barrier(),
        "coalesced": lambda: _coalesced(x),
        "ring": lambda: _send_to_the_next(x, rank, num_ranks),
        "ours all_reduce": lambda: transport.all_reduce(x),
        "ours long all_reduce": lambda: transport.all_reduce(torch.ones(480_000), async_op=True).wait(),
        "ours reduce_scatter": lambda: transport.reduce_scatter(shard, x),
        "ours all_gather": lambda: transport.all_gather(x, shard),
        "ours broadcast": lambda: transport.broadcast(x, 0),
        "ours all_to_all": lambda: transport.all_to_all(torch.empty_like(x), x),
        "ours barrier": lambda: transport.barrier(),
    }
    with warnings.catch_warnings(), CommLedger() as ledger:
        warnings.simplefilter("ignore")  # torch renames its calls from release to release
        for name, call in calls.items():
            with ledger_tag(name):
                call()
        with ledger_tag("reduce_scatter"):
            _call("reduce_scatter_single", "reduce_scatter_tensor")(shard, x)
        with ledger_tag("all_gather"):
            _call("all_gather_single", "all_gather_into_tensor")(x, shard)
        with ledger_tag("functional"):
            _functional(x)
    dist.all_reduce(x)  # after the block: not counted
    return ledger


def _call(new, old):
    return getattr(dist, new, None) or getattr(dist, old)


def _coalesced(x):
    with dist._coalescing_manager():
        dist.all_reduce(x)
        dist.all_reduce(x)


def _send_to_the_next(x, rank, num_ranks):
    if num_ranks > 1:
        to, source = (rank + 1) % num_ranks, (rank - 1) % num_ranks
        ops = [dist.P2POp(dist.isend, x, to), dist.P2POp(dist.irecv, torch.empty_like(x), source)]
        for work in dist.batch_isend_irecv(ops):
            work.wait()


def _functional(x):
    import torch.distributed._functional_collectives as functional

    functional.all_reduce(x, "sum", dist.group.WORLD) + 0
    functional.all_gather_tensor(x[: len(x) // dist.get_world_size()], 0, dist.group.WORLD) + 0
    functional.reduce_scatter_tensor(x, "sum", 0, dist.group.WORLD) + 0
    leaf = x.clone().requires_grad_()
    functional.all_to_all_single_autograd(leaf, None, None, dist.group.WORLD).sum().backward()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_ledger_counts_each_call_once_with_the_bytes_of_the_ring(num_ranks):
    ledgers = run_distributed(_every_call, num_ranks)
    size, share = 4 * ELEMENTS, (num_ranks - 1) / num_ranks
    expected = dict.fromkeys(("broadcast", "reduce", "all_to_all", "reduce_scatter", "all_gather"), size * share)
    expected |= {"all_gather list": size * share, "all_reduce": 2 * size * share, "coalesced": 4 * size * share}
    expected |= {"ring": size if num_ranks > 1 else 0, "barrier": 0, "functional": (2 + 1 + 1 + 2) * size * share}
    expected |= {f"ours {name}": expected[name] for name in expected if name in ("all_reduce", "reduce_scatter")}
    expected |= {f"ours {name}": size * share for name in ("all_gather", "broadcast", "all_to_all")}
    expected |= {"ours barrier": 0, "ours long all_reduce": 2 * 4 * 480_000 * share}
    for rank, ledger in enumerate(ledgers):
        got = {tag: traffic.sent_bytes for tag, traffic in ledger.by_tag().items()}
        got.pop("all_gather object")
        root = {"gather": 0 if rank == 0 else size / num_ranks, "scatter": size * share if rank == 0 else 0}
        got.setdefault("ring", 0)  # one rank has no neighbour to send to
        assert got == pytest.approx(expected | root, rel=1e-12)
        for tag, traffic in ledger.by_tag().items():
            calls = {"all_gather object": 2, "ring": 2, "functional": 5}.get(tag, 1)
            assert traffic.num_calls == calls, tag
    received = [ledger.by_tag()["gather"].received_bytes for ledger in ledgers]
    assert received == [size * share] + [0] * (num_ranks - 1)


def _model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(24, 24, bias=False) for _ in range(4)))


def _baselines() -> dict[str, float]:
    """Bytes that torch's own strategies send in a later step, in units of Psi (N-1)/N."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    def step(model, optimizer):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    def measure(model, optimizer, steps=3):  # in the second, DDP agrees on its buckets
        for _ in range(steps - 1):
            step(model, optimizer)
        with CommLedger() as ledger:
            step(model, optimizer)
        return ledger.sent_bytes / unit

    num_ranks = dist.get_world_size()
    x = torch.ones(2, 24) * (dist.get_rank() + 1)
    psi = sum(4 * p.numel() for p in _model().parameters())
    unit = psi * (num_ranks - 1) / num_ranks
    figures = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ddp = DistributedDataParallel(_model())
        figures["ddp"] = measure(ddp, torch.optim.Adam(ddp.parameters()))
        ddp = DistributedDataParallel(_model())
        figures["zero redundancy"] = measure(ddp, ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.Adam))
        for name, reshard in (("fsdp", True), ("fsdp, no reshard", False)):
            model = _model()
            for layer in model:
                fully_shard(layer, reshard_after_forward=reshard)
            fully_shard(model)
            figures[name] = measure(model, torch.optim.Adam(model.parameters()))
        with CommLedger() as ledger:
            whole, shard = torch.ones(24), torch.ones(24 // num_ranks)
            transport.reduce_scatter(shard, whole)
            transport.all_gather(whole, shard)
        figures["zero 1"] = ledger.sent_bytes / (4 * 24 * (num_ranks - 1) / num_ranks)
    return figures


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ledger_of_torchs_own_strategies_equals_the_published_factors(num_ranks):
    expected = {"ddp": 2.0, "zero 1": 2.0, "zero redundancy": 3.0, "fsdp": 3.0, "fsdp, no reshard": 2.0}
    for figures in run_distributed(_baselines, num_ranks):
        assert figures == pytest.approx(expected, rel=1e-9)


def _inside_a_dtensor_operator() -> tuple[list[str], bool]:
    """A product of two matrices that are split by columns: one of them has to be gathered first."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    a, b = torch.arange(16.0).view(4, 4), torch.eye(4)
    left, right = (distribute_tensor(m, mesh, [Shard(1)]) for m in (a, b))
    with CommLedger() as ledger:
        product = left @ right
    return [call.collective for call in ledger.calls], torch.equal(product.full_tensor(), a)


def test_ledger_sees_what_dtensors_send_within_an_operator():
    for collectives, equal in run_distributed(_inside_a_dtensor_operator, 2):
        assert collectives
        assert equal


def _two_tags() -> CommLedger:
    with CommLedger() as ledger:
        with ledger_tag("gradients"):
            for _ in range(2):
                transport.all_reduce(torch.ones(250 + 250))
        if dist.get_rank() == 1:
            with ledger_tag("step"), ledger_tag("<extra>"):
                dist.isend(torch.ones(10), 0).wait()
        else:
            dist.irecv(torch.ones(10), 1).wait()
    return ledger


def test_table_of_all_ranks():
    ledgers = run_distributed(_two_tags, 2)
    table = merge(ledgers)
    assert [traffic.sent_bytes for traffic in table.totals] == [4000, 4040]
    assert [ledger.sent_bytes for ledger in ledgers] == [4000, 4040]
    assert [ledger.received_bytes for ledger in ledgers] == [4040, 4000]
    assert [(ledger.rank, ledger.payload_bytes, ledger.total.num_calls) for ledger in ledgers] == [
        (0, 4040, 3),
        (1, 4040, 3),
    ]
    lines = [line.split() for line in str(table).splitlines()]
    assert lines[1] == ["gradients", "all_reduce", "float32", "2", "2", "4", "kB", "4", "kB", "4", "kB"]
    assert ["<extra>", "send", "float32", "2", "1", "40", "B", "0", "B", "40", "B"] in lines
    assert lines[-1][0] == "total"
    assert lines[-1][-4:] == ["4", "kB", "4.04", "kB"]
    page = table._repr_html_()
    assert "&lt;extra&gt;" in page
    assert page.count("<tr>") == len(lines)
    assert str(ledgers[0]) == str(ledgers[0].report())
    assert "sent, rank 0" in ledgers[0]._repr_html_()
    assert list(ledgers[1].by_tag()) == ["gradients", "<extra>"], "the innermost tag counts"
    assert list(ledgers[0].by_collective()) == ["all_reduce", "recv"]


def test_unknown_operator_is_named():
    class Operator:
        namespace = "c10d"

        class _overloadpacket:
            __name__ = "teleport_"

        class _schema:
            arguments = ()

    Operator._overloadpacket.__name__ = "teleport_"
    with pytest.raises(NotImplementedError, match="c10d::teleport_"):
        decode(Operator, (), {})


def test_every_operator_of_this_torch_is_known():
    known = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith(("c10d::", "_c10d_functional::"))}
    tables = c10d_operators._C10D_OPERATORS, c10d_operators._FUNCTIONAL_OPERATORS
    for name in known:
        namespace, operator = name.split("::")
        kind = operator if namespace == "c10d" else operator.rstrip("_").removesuffix("_out").removesuffix("_coalesced")
        assert kind in tables[namespace != "c10d"] or operator in c10d_operators._MOVES_NOTHING, name


def test_ledger_refuses_what_it_cannot_do():
    with pytest.raises(TypeError, match="ledgers must be CommLedgers"):
        merge([1])
    with pytest.raises(ValueError, match="at least one"):
        merge([])
    with pytest.raises(TypeError, match="name must be a string"), ledger_tag(3):
        pass
    with CommLedger() as ledger, pytest.raises(RuntimeError, match="counting already"), ledger:
        pass
    assert pickle.loads(pickle.dumps(ledger)).sent_bytes == 0
