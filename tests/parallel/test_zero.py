"""ZeRO stages 1 and 2 on real processes: bit for bit where data parallelism ends, bytes by formula, awkward models.

The functions at the top run on ranks; an assertion that fails there fails the test, with the rank's traceback.
"""

import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cme295lab.memory import MemoryTimeline, zero_model_state_bytes
from cme295lab.parallel import CommLedger, DataParallel, NonFiniteGradients, ZeroOptimizer, run_distributed
from cme295lab.transformer import DecoderLM, ModelConfig

SHAPE = dict(
    name="odd", vocab_size=53, num_layers=2, dim=18, num_heads=3, mlp_dim=35, max_seq=10, mlp="gelu", norm="layernorm",
    position="learned", bias=True,
)  # fmt: skip
STEPS = 20


def _model(seed=0, **changes):
    torch.manual_seed(seed)
    return DecoderLM(ModelConfig(**(SHAPE | changes)))


def _batch(offset=0, rank=None):
    generator = torch.Generator().manual_seed(100 * (dist.get_rank() if rank is None else rank) + offset)
    return torch.randint(53, (2, 2, 10), generator=generator)


def _loss(call, batch):
    tokens, targets = batch
    return nn.functional.cross_entropy(call(tokens).flatten(0, 1).float(), targets.flatten())


def _values(model):
    return {name: each.detach().clone() for name, each in model.named_parameters()}


def _train(call, optimizer, *, clip=None, steps=STEPS):
    for step in range(steps):
        optimizer.zero_grad()
        _loss(call, _batch(step)).backward()
        if clip is not None:
            clip(0.5)
        optimizer.step()


def _groups(model):
    return [
        {"params": (p for p in model.parameters() if p.ndim == 2), "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim != 2], "lr": 3e-3},
    ]


def _ends_where_data_parallel_ends():
    rank = dist.get_rank()
    for tied in (False, True):
        for optimizer_class, options in (
            (torch.optim.AdamW, {"lr": 1e-2}),
            (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        ):
            plain = DataParallel(_model(tied_head=tied), bucket_bytes=3000)
            _train(plain, optimizer_class(_groups(plain.module), **options))
            expected = _values(plain.module)
            for stage in (1, 2):
                for bucket_bytes in (3000, 10**6):
                    model = _model(rank, tied_head=tied)  # only rank 0 has the right values to begin with
                    optimizer = ZeroOptimizer(
                        model,
                        optimizer_class,
                        stage=stage,
                        param_groups=_groups(model),
                        bucket_bytes=bucket_bytes,
                        **options,
                    )
                    _train(model, optimizer)
                    for name, value in _values(model).items():
                        assert torch.equal(value, expected[name]), (stage, bucket_bytes, optimizer_class, name)
    _ends_where_torch_ends()


def _ends_where_torch_ends():
    theirs = DistributedDataParallel(_model())
    parameters = list(theirs.parameters())
    _train(theirs, torch.optim.Adam(parameters, lr=1e-3), clip=lambda norm: nn.utils.clip_grad_norm_(parameters, norm))
    for stage in (1, 2):
        model = _model()
        optimizer = ZeroOptimizer(model, torch.optim.Adam, stage=stage, lr=1e-3)
        _train(model, optimizer, clip=optimizer.clip_grad_norm_)
        for name, value in _values(model).items():
            torch.testing.assert_close(value, theirs.module.get_parameter(name).detach(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_stages_end_bit_for_bit_where_data_parallel_ends(num_ranks):
    run_distributed(_ends_where_data_parallel_ends, num_ranks)


def _bytes_are_as_published():
    num_ranks = dist.get_world_size()
    for strategy in (1, 2, "bucketed"):
        model = _model()
        psi = sum(p.numel() for p in model.parameters())
        if strategy == "bucketed":
            call, optimizer = DataParallel(model), torch.optim.Adam(model.parameters())
            padded, stage = psi, 0
        else:
            call, optimizer = model, ZeroOptimizer(model, torch.optim.Adam, stage=strategy, bucket_bytes=2000)
            padded, stage = psi + optimizer.num_padding, strategy
            assert optimizer.num_padding < num_ranks * len(optimizer.weights)
            assert num_ranks == 1 or optimizer.num_padding > 0, "sizes that do not divide"
        _train(call, optimizer, steps=1)
        with MemoryTimeline(model=model, optimizer=optimizer) as timeline, CommLedger() as ledger:
            optimizer.zero_grad()
            assert timeline.by_class().get("gradient", 0) == 0
            _loss(call, _batch()).backward()
            optimizer_gradients = (
                [w.gradient for w in optimizer.weights] if stage else [p.grad for p in model.parameters()]
            )
            timeline.mark(optimizer_gradients, "gradient")
            own = padded // num_ranks if stage else psi
            live = _at_rest(timeline, gradient_bytes=4 * (own if stage == 2 else padded))
            optimizer.step()
        assert live["weight"] == 4 * padded, (strategy, live)
        assert live["gradient"] == 4 * (own if stage == 2 else padded), (strategy, live)
        ends = sum(run.tensor.numel() for run in optimizer.runs) if stage else psi
        scalars = 4 * (len(optimizer.runs) if stage else len(list(model.parameters())))
        assert live["optimizer state"] == 8 * ends + scalars, (strategy, live)
        assert 0 <= own - ends <= (optimizer.num_padding if stage else 0)
        theory = zero_model_state_bytes(psi, num_ranks, stage)
        assert theory is not None
        gradients, weights = ledger.by_tag().get("gradients"), ledger.by_tag().get("weights")
        one_way = 4 * padded * (num_ranks - 1) / num_ranks
        assert _sent(gradients) == (2 * one_way if not stage else one_way)
        assert _sent(weights) == (one_way if stage else 0)
        assert _sent(ledger.by_tag().get("scalars")) <= 16


def _at_rest(timeline, *, gradient_bytes):
    """What is alive; gloo's threads let go of a message's tensors a moment after `wait` has returned."""
    for _ in range(50):
        live = timeline.by_class()
        if live.get("gradient") == gradient_bytes:
            break
        time.sleep(0.01)
    return live


def _sent(entry):
    return 0 if entry is None else entry.sent_bytes


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
def test_bytes_held_and_sent_equal_the_formulas(num_ranks):
    run_distributed(_bytes_are_as_published, num_ranks)


class Awkward(nn.Module):
    """A frozen part, a parameter that some ranks do not use, one that none uses, a scalar, a buffer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(5, 7).requires_grad_(False)
        self.some, self.never, self.scale = nn.Linear(7, 7), nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(()))
        self.register_buffer("rank", torch.full((1,), float(dist.get_rank())))

    def forward(self, x):
        x = self.stem(x)
        return ((self.some(x) if dist.get_rank() == 0 else x) * self.scale).square().mean()


def _awkward_models():
    inputs = torch.randn(3, 5, generator=torch.Generator().manual_seed(dist.get_rank()))
    torch.manual_seed(1)
    plain = DataParallel(Awkward())
    oracle = torch.optim.Adam(plain.parameters(), lr=0.1)
    for _ in range(3):
        oracle.zero_grad()
        plain(inputs).backward()
        oracle.step()
    for stage in (1, 2):
        torch.manual_seed(1)
        model = Awkward()
        optimizer = ZeroOptimizer(model, torch.optim.Adam, stage=stage, lr=0.1)
        for _ in range(3):
            model(inputs).backward()
            optimizer.step()
        assert model.rank.item() == 0.0
        for name, value in _values(model).items():
            assert torch.equal(value, plain.module.get_parameter(name)), (stage, name)
        assert optimizer.close() is model
        model(inputs).backward()
        assert model.scale.grad is not None, "hooks are gone"


def _accumulates():
    """Three micro-batches: sent one by one, or added up first, or one joined batch."""
    num_ranks = dist.get_world_size()
    plain = _model()
    oracle = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for rank in range(num_ranks):
        for offset in range(3):
            (_loss(plain, _batch(offset, rank)) / (3 * num_ranks)).backward()
    expected = {name: each.grad for name, each in plain.named_parameters()}
    oracle.step()
    for stage in (1, 2):
        for num_silent in (0, 1, 2):
            model = _model()
            optimizer = ZeroOptimizer(model, torch.optim.Adam, stage=stage, lr=1e-2)
            with CommLedger() as ledger:
                with optimizer.no_sync():
                    for offset in range(num_silent):
                        (_loss(model, _batch(offset)) / 3).backward()
                assert ledger.sent_bytes == 0
                for offset in range(num_silent, 3):
                    (_loss(model, _batch(offset)) / 3).backward()
            padded = sum(p.numel() for p in model.parameters()) + optimizer.num_padding
            assert ledger.sent_bytes == (3 - num_silent) * 4 * padded * (num_ranks - 1) / num_ranks
            if stage == 2 or num_silent < 2:  # sums of several passes do not keep whole vectors alive
                for weights in optimizer.weights:
                    assert weights.gradient.untyped_storage().nbytes() == 4 * weights.layout.shard_numel
            for run in optimizer.runs:
                for piece in run.pieces:
                    part = run.gradient[piece.offset : piece.offset + piece.numel]
                    wanted = expected[piece.name].flatten()[piece.start : piece.stop]
                    torch.testing.assert_close(part, wanted, rtol=1e-5, atol=1e-7)
            optimizer.step()
            assert all(p.grad is None for p in model.parameters())


def _weights_by_tokens():
    rank = dist.get_rank()
    for stage in (1, 2):
        layer = nn.Linear(1, 2, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = ZeroOptimizer(layer, torch.optim.SGD, stage=stage, lr=1.0)
        values = torch.full(([2, 6][rank], 1), [1.0, 3.0][rank])
        (layer(values).sum() * optimizer.token_scale(len(values))).backward()
        optimizer.step()
        assert layer.weight.flatten().tolist() == [-2.5, -2.5]  # (2 × 1.0 + 6 × 3.0) / 8


def _computes_in_16_bits():
    num_ranks = dist.get_world_size()
    full = DataParallel(_model())
    _train(full, torch.optim.Adam(full.parameters(), lr=1e-3), steps=10)
    with torch.no_grad():
        wanted = _loss(full.module, _batch()).item()
    for stage in (1, 2):
        for reduce_dtype in (None, torch.float32):
            model = _model()
            original = _values(model)
            optimizer = ZeroOptimizer(
                model, torch.optim.Adam, stage=stage, compute_dtype=torch.bfloat16, reduce_dtype=reduce_dtype, lr=1e-3
            )
            for run in optimizer.runs:  # masters are made of the values before they were rounded
                for piece in run.pieces:
                    part = run.tensor.detach()[piece.offset : piece.offset + piece.numel]
                    assert torch.equal(part, original[piece.name].flatten()[piece.start : piece.stop])
            with CommLedger() as ledger:
                _train(model, optimizer, steps=1)
            padded = sum(p.numel() for p in model.parameters()) + optimizer.num_padding
            one_way = padded * (num_ranks - 1) / num_ranks
            assert _sent(ledger.by_tag()["weights"]) == 2 * one_way
            assert _sent(ledger.by_tag()["gradients"]) == (4 if reduce_dtype else 2) * one_way
            _train(model, optimizer, steps=10)
            assert all(p.dtype == torch.bfloat16 for p in model.parameters())
            assert all(torch.equal(w.shard, w.master.to(torch.bfloat16)) for w in optimizer.weights)
            assert _loss(model, _batch()).item() == pytest.approx(wanted, rel=0.05)
            weights = sum(w.weights.untyped_storage().nbytes() for w in optimizer.weights)
            assert weights == 2 * padded
            assert (
                sum(master.untyped_storage().nbytes() for master in optimizer.master_tensors())
                == 4 * padded // num_ranks
            )


def _offloads():
    for compute_dtype in (None, torch.bfloat16):
        inside, outside = _model(), _model()
        for model, offload in ((inside, False), (outside, True)):
            optimizer = ZeroOptimizer(model, torch.optim.Adam, stage=2, compute_dtype=compute_dtype, offload=offload)
            _train(model, optimizer, steps=3)
        assert all(torch.equal(a, b) for a, b in zip(inside.parameters(), outside.parameters()))
        with MemoryTimeline(model=outside, optimizer=optimizer) as timeline:
            timeline.mark(optimizer.host_tensors(), "host")
        assert timeline.by_class().get("optimizer state", 0) == 0
        own = sum(weights.layout.shard_numel for weights in optimizer.weights)
        states = sum(8 * run.tensor.numel() + 4 for run in optimizer.runs)
        assert timeline.by_class()["host"] == 4 * own + states


def _names_what_is_not_finite():
    rank = dist.get_rank()
    for stage in (1, 2):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        optimizer = ZeroOptimizer(model, torch.optim.Adam, stage=stage, bucket_bytes=1)
        before = _values(model)
        hook = model[0].bias.register_hook(lambda g: g * float("nan") if rank == 1 else g)
        model(torch.ones(1, 3)).sum().backward()
        with pytest.raises(NonFiniteGradients, match=r"infinite: the gradient of 0.bias on rank 1\. No weight"):
            optimizer.step()
        assert all(torch.equal(value, before[name]) for name, value in _values(model).items())
        assert not optimizer.state
        hook.remove()
        optimizer.zero_grad()
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].bias, before["0.bias"])
        with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
            optimizer.step()


def _survives_what_fails():
    """A backward pass that fails on all ranks leaves nothing behind; a stale graph is noticed."""
    for stage in (1, 2):
        model, plain = _model(), _model()
        optimizer = ZeroOptimizer(model, torch.optim.SGD, stage=stage, lr=0.1, bucket_bytes=2000)
        hook = model.layers[0].norm_mlp.weight.register_hook(_fail) if hasattr(model.layers[0], "norm_mlp") else (
            next(model.layers[0].parameters()).register_hook(_fail))  # fmt: skip
        with pytest.raises(KeyError, match="on purpose"):
            _loss(model, _batch()).backward()
        hook.remove()
        stale = _loss(model, _batch())
        _loss(model, _batch()).backward()
        optimizer.step()
        wrapped = DataParallel(plain)
        _train(wrapped, torch.optim.SGD(plain.parameters(), lr=0.1), steps=1)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters()))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            stale.backward()


def _fail(_):
    raise KeyError("on purpose")


def _refuses():
    rank = dist.get_rank()
    for stage in (0, 4, "2", True, None):
        with pytest.raises(ValueError, match="stage must be 1"):
            ZeroOptimizer(nn.Linear(2, 2), torch.optim.Adam, stage=stage)
    with pytest.raises(TypeError, match=r"stage 3 takes FullyShardedModel\(model\), got Linear"):
        ZeroOptimizer(nn.Linear(2, 2), torch.optim.Adam, stage=3)
    with pytest.raises(ValueError, match="more ranks than elements"):
        ZeroOptimizer(nn.Linear(1, 1, bias=False), torch.optim.Adam, stage=1)
    with pytest.raises(ValueError, match="compute_dtype must be a floating dtype"):
        ZeroOptimizer(nn.Linear(2, 2), torch.optim.Adam, stage=1, compute_dtype=torch.int8)
    with pytest.raises(ValueError, match=r"the ranks do not have the same model: weight is \(2, 2\)"):
        ZeroOptimizer(nn.Linear(2 + rank, 2), torch.optim.Adam, stage=2)
    with pytest.raises(ValueError, match="Adafactor is not element-wise"):
        ZeroOptimizer(nn.Linear(2, 2), torch.optim.Adafactor, stage=2)
    model = nn.Linear(2, 2)
    for _ in range(2):  # what was refused leaves no hooks
        with pytest.raises(ValueError, match="Invalid learning rate"):
            ZeroOptimizer(model, torch.optim.Adam, stage=2, lr=-1.0)
    ZeroOptimizer(model, torch.optim.Adam, stage=2)
    with pytest.raises(ValueError, match="another wrapper already"):
        ZeroOptimizer(model, torch.optim.Adam, stage=2)


def _awkward_things():
    _awkward_models()
    _accumulates()
    _weights_by_tokens()
    _computes_in_16_bits()
    _offloads()
    _names_what_is_not_finite()
    _survives_what_fails()
    _refuses()


def test_awkward_models_accumulation_16_bits_offloading_and_bad_input():
    run_distributed(_awkward_things, 2)
