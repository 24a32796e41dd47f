"""Data parallelism on real processes: the joined batch on one process is the oracle; bytes are counted; ranks differ.

The functions at the top run on ranks; an assertion that fails there fails the test, with the rank's traceback.
"""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from cme295lab.parallel import (
    CommLedger,
    DataParallel,
    DistributedError,
    NonFiniteGradients,
    run_distributed,
    token_scale,
)
from cme295lab.parallel.replication.buckets import plan_buckets

STRATEGIES = ("naive", "flat", "bucketed")


class Net(nn.Module):
    """A tied weight, a frozen one, a scalar, a parameter that only some ranks use, one that none uses, odd sizes."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.embedding = nn.Embedding(11, 5, dtype=dtype)
        self.inner = nn.Linear(5, 5, dtype=dtype)
        self.sometimes = nn.Linear(5, 5, bias=False, dtype=dtype)
        self.never = nn.Parameter(torch.ones(3, dtype=dtype))
        self.frozen = nn.Parameter(torch.ones(5, dtype=dtype), requires_grad=False)
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.head = nn.Linear(5, 11, dtype=dtype)
        self.head.weight = self.embedding.weight
        self.register_buffer("count", torch.zeros(2, dtype=dtype))

    def forward(self, tokens, use_all=True):
        x = torch.tanh(self.inner(self.embedding(tokens)) * self.frozen)
        if use_all:
            x = x + self.sometimes(x)
        return self.head(x * self.scale)


def _model(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model = Net(dtype)
    model.count.fill_(seed)
    return model


def _batch(rank, num_tokens=6, offset=0):
    generator = torch.Generator().manual_seed(1000 * offset + rank)
    return torch.randint(11, (2, num_tokens), generator=generator)


def _loss(model, batch, *, reduction="mean", use_all=True):
    logits = model(batch[0], use_all)
    return nn.functional.cross_entropy(logits, batch[1], reduction=reduction)


def _joined_gradients(num_ranks, lengths, dtype=torch.float64, use_all=lambda rank: True):
    """One process: the mean over all tokens of all ranks."""
    model, total = _model(dtype), sum(lengths)
    for rank in range(num_ranks):
        batch = _batch(rank, lengths[rank])
        (_loss(model, batch, reduction="sum", use_all=use_all(rank)) / total).backward()
    return {name: each.grad for name, each in model.named_parameters() if each.requires_grad}


def _assert_gradients(model, expected, what, tolerance):
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, (what, name)
            continue
        wanted = torch.zeros_like(parameter) if expected[name] is None else expected[name]
        assert parameter.grad is not None, (what, name)
        worst = (parameter.grad - wanted).abs().max()
        assert worst <= tolerance, f"{what}: gradient of {name} is off by {worst}"


def _equals_one_process(dtype, tolerance):
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    used = lambda rank: rank % 2 == 0  # noqa: E731
    bits = {}
    for strategy in STRATEGIES:
        for bucket_bytes in (1, 200, 10**6):
            what = f"{strategy}, {bucket_bytes} bytes a bucket, {num_ranks} ranks"
            wrapped = DataParallel(_model(dtype, seed=rank), strategy=strategy, bucket_bytes=bucket_bytes)
            assert wrapped.module.count.tolist() == [0.0, 0.0], "rank 0's buffers"
            model = wrapped.module
            expected = _joined_gradients(num_ranks, [6] * num_ranks, dtype, used)
            for _ in range(2):  # a second time from the state that the first one left
                model.zero_grad()
                _loss(wrapped, _batch(rank), use_all=used(rank)).backward()
                _assert_gradients(model, expected, what, tolerance)
            bits[what] = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
            _loss(wrapped, _batch(rank), use_all=used(rank)).backward()  # onto gradients that are there
            _assert_gradients(model, {k: None if g is None else 2 * g for k, g in expected.items()}, what, tolerance)
            wrapped.close()
    first = next(iter(bits.values()))
    assert all(torch.equal(first, each) for each in bits.values()), "the strategies agree bit for bit"


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
def test_all_strategies_equal_one_process_on_the_joined_batch(num_ranks):
    run_distributed(_equals_one_process, num_ranks, torch.float64, 2e-15)
    if num_ranks == 3:
        run_distributed(_equals_one_process, num_ranks, torch.float32, 1e-6)


def _weights_unequal_batches():
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    lengths = [2, 6, 0, 5][:num_ranks]
    expected = _joined_gradients(num_ranks, lengths)
    for strategy in STRATEGIES:
        wrapped = DataParallel(_model(), strategy=strategy)
        scale = wrapped.token_scale(lengths[rank])
        (_loss(wrapped, _batch(rank, lengths[rank]), reduction="sum") * scale).backward()
        _assert_gradients(wrapped.module, expected, strategy, 1e-15)
        wrapped.close()
    layer = DataParallel(nn.Linear(1, 1, bias=False))
    values = torch.full(([2, 6, 0, 0][rank], 1), [1.0, 3.0, 0.0, 0.0][rank])
    (layer(values).sum() * token_scale(len(values))).backward()
    return layer.module.weight.grad.item()


def test_batches_of_unequal_length_are_weighted_by_tokens():
    assert run_distributed(_weights_unequal_batches, 2) == [2.5, 2.5]  # (2 × 1.0 + 6 × 3.0) / 8
    assert run_distributed(_weights_unequal_batches, 4) == [2.5] * 4  # ranks without tokens change nothing


def _accumulates():
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    for strategy in STRATEGIES:
        wrapped = DataParallel(_model(), strategy=strategy)
        plain = _model()
        for each in range(num_ranks):
            for offset in range(3):
                (_loss(plain, _batch(each, offset=offset), use_all=offset < 2) / (3 * num_ranks)).backward()
        with CommLedger() as ledger, wrapped.no_sync():
            for offset in range(2):
                (_loss(wrapped, _batch(rank, offset=offset)) / 3).backward()
        assert ledger.sent_bytes == 0, "nothing is sent within no_sync"
        with CommLedger() as ledger:
            (_loss(wrapped, _batch(rank, offset=2), use_all=False) / 3).backward()  # `sometimes` was used before
        trained = sum(each.numel() for each in plain.parameters() if each.requires_grad)
        assert ledger.sent_bytes == 8 * trained * 2 * (num_ranks - 1) / num_ranks
        assert set(ledger.by_tag()) == {"gradients"}
        expected = {name: each.grad for name, each in plain.named_parameters()}
        _assert_gradients(wrapped.module, expected, strategy, 1e-15)
        square = sum(float(each.square().sum()) for each in expected.values() if each is not None)
        assert wrapped.clip_grad_norm_(1e9) == pytest.approx(square**0.5, rel=1e-12)
        _assert_gradients(wrapped.module, expected, "not clipped", 1e-15)
        wrapped.clip_grad_norm_(0.25)
        assert wrapped.clip_grad_norm_(1e9) == pytest.approx(0.25, rel=1e-4)
        wrapped.close()


def _overlaps():
    """Within backward, the last layer's bucket is sent before the first layer's gradient is there."""
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(4)))
    seen = []
    for number, layer in enumerate(model):
        layer.weight.register_post_accumulate_grad_hook(lambda _, number=number: seen.append(number))
    events = {}
    for strategy in STRATEGIES:
        wrapped = DataParallel(model, strategy=strategy, bucket_bytes=8 * 8 * 4)
        seen.clear()
        counts = []
        hook = model[0].weight.register_post_accumulate_grad_hook(
            lambda _, counts=counts: counts.append(len(ledger.calls))
        )
        with CommLedger() as ledger:
            wrapped(torch.ones(1, 8)).sum().backward()
        events[strategy] = counts[0], len(ledger.calls)
        hook.remove()
        wrapped.close()
        model.zero_grad()
    assert events == {"naive": (0, 4), "flat": (0, 1), "bucketed": (4, 4)}, events


def _survives_a_failed_backward():
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    wrapped = DataParallel(_model(), bucket_bytes=200)

    def fail(_):
        raise KeyError("on purpose")

    logits = wrapped(_batch(rank)[0])
    logits.grad_fn.next_functions[0][0].register_hook(lambda *_: None)
    handle = wrapped.module.inner.weight.register_hook(fail)
    with pytest.raises(KeyError, match="on purpose"):
        logits.sum().backward()
    handle.remove()
    wrapped.module.zero_grad()
    _loss(wrapped, _batch(rank)).backward()
    _assert_gradients(wrapped.module, _joined_gradients(num_ranks, [6] * num_ranks), "after a failure", 1e-15)


def _recomputes(use_reentrant):
    rank = dist.get_rank()
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=use_reentrant)
            return x.tanh()

    inputs = [torch.ones(2, 6) * (1 + number) for number in range(2)]
    plain = nn.Sequential(*layers, nn.Tanh())
    sum(plain(each).sum() for each in inputs).div(2).backward()
    expected = [each.grad.clone() for each in layers.parameters()]
    plain.zero_grad()
    wrapped = DataParallel(Checkpointed(), bucket_bytes=60)
    wrapped(inputs[rank].requires_grad_()).sum().backward()
    for parameter, wanted in zip(layers.parameters(), expected):
        torch.testing.assert_close(parameter.grad, wanted)


def _all_of_it():
    _accumulates()
    _overlaps()
    _survives_a_failed_backward()
    if dist.get_world_size() == 2:
        _recomputes(use_reentrant=True)
        _recomputes(use_reentrant=False)


def test_accumulation_overlap_failures_and_recomputation():
    run_distributed(_all_of_it, 2)
    run_distributed(_all_of_it, 3)


def _refuses():
    rank = dist.get_rank()
    with pytest.raises(ValueError, match="strategy must be one of 'bucketed', 'flat', 'naive', got 'ring'"):
        DataParallel(nn.Linear(2, 2), strategy="ring")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got str"):
        DataParallel("model")
    with pytest.raises(ValueError, match="nothing to train"):
        DataParallel(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match="bucket_bytes must be a positive int, got 0"):
        DataParallel(nn.Linear(2, 2), bucket_bytes=0)
    with pytest.raises(
        ValueError, match=r"weight is \(2, 2\) torch.float32 trained on rank 0 and \(2, 3\) .* on rank 1"
    ):
        DataParallel(nn.Linear(2 + rank, 2))
    with pytest.raises(ValueError, match="bias is missing on rank 0 and"):
        DataParallel(nn.Linear(2, 2, bias=rank == 1))
    with pytest.raises(ValueError, match=r"trained on rank 0 and .* frozen on rank 1"):
        DataParallel(nn.Linear(2, 2).requires_grad_(rank == 0))
    model = nn.Linear(2, 2)
    wrapped = DataParallel(model)
    with pytest.raises(ValueError, match="another wrapper already"):
        DataParallel(model)
    with pytest.raises(RuntimeError, match=r"clip_grad_norm_.* before backward"):
        wrapped.clip_grad_norm_(1.0)
    model.bias.requires_grad_(False)
    with pytest.raises(RuntimeError, match="bias is frozen now"):
        wrapped(torch.ones(1, 2))
    model.bias.requires_grad_(True)
    wrapped(torch.full((1, 2), float("nan") if rank else 1.0)).sum().backward()
    with pytest.raises(NonFiniteGradients, match="the mean gradient of weight on rank 0"):
        wrapped.check_finite()
    with pytest.raises(ValueError, match="max_norm must be positive, got 0"):
        wrapped.clip_grad_norm_(0)
    with pytest.raises(ValueError, match="num_tokens is 0 on every rank"):
        token_scale(0)
    with pytest.raises(ValueError, match="num_tokens must be 0 or more, got -1"):
        token_scale(-1)
    with pytest.raises(TypeError, match="num_tokens must be an int, got float"):
        token_scale(1.5)
    sparse = DataParallel(nn.Embedding(4, 2, sparse=True))
    with pytest.raises(TypeError, match="the gradient of weight is sparse"):
        sparse(torch.tensor([1])).sum().backward()


def test_bad_input_is_named_on_every_rank():
    run_distributed(_refuses, 2)


def _one_rank_without_any_gradient():
    wrapped = DataParallel(nn.Linear(2, 2))
    output = wrapped(torch.ones(1, 2))
    if dist.get_rank() == 1:
        output = output.detach()
    output.sum().backward()


def test_a_rank_whose_loss_does_not_depend_on_the_model_is_named():
    with pytest.raises(DistributedError, match="does not require grad"):
        run_distributed(_one_rank_without_any_gradient, 2, timeout_s=20)


def test_outside_of_processes_it_says_what_to_do():
    with pytest.raises(ValueError, match="no process group yet"):
        DataParallel(nn.Linear(1, 1))


def test_plan_puts_large_ones_alone_and_small_ones_together_in_the_order_of_backward():
    sizes = {"first": 3, "large": 100, "small": 5, "half": torch.float16, "last": 4}
    parameters = {
        name: nn.Parameter(torch.zeros(2, dtype=size) if isinstance(size, torch.dtype) else torch.zeros(size))
        for name, size in sizes.items()
    }
    planned = plan_buckets(parameters, bucket_bytes=40)
    assert [list(each) for each in planned] == [["last", "small"], ["half"], ["large"], ["first"]] or [
        list(each) for each in planned
    ] == [["half"], ["last", "small"], ["large"], ["first"]]
    joined = plan_buckets(
        {"a": nn.Parameter(torch.zeros(3)), "b": nn.Parameter(torch.zeros(50))}, bucket_bytes=8, num_ranks=4
    )
    assert [sorted(each) for each in joined] == [["a", "b"]], "three elements cannot be cut for four ranks"
