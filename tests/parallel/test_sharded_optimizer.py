"""Torch's optimizers on shards: which ones may be, groups and schedulers, clipping, gradients that are not finite."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from cme295lab.parallel import NonFiniteGradients, run_distributed
from cme295lab.parallel.sharding.elementwise import check_elementwise
from cme295lab.parallel.sharding.parameter_groups import number_groups
from cme295lab.parallel.sharding.partition import FlatLayout
from cme295lab.parallel.sharding.sharded_optimizer import ShardedOptimizer


class SignedMomentum(torch.optim.Optimizer):
    """A user's own optimizer, element by element."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    p.sub_(group["lr"] * average.lerp_(p.grad, 0.1).sign())


class Normalized(torch.optim.SGD):
    """A user's own optimizer that looks at a parameter as a whole, without any state that would give it away."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.div_(p.grad.norm())
        return super().step(closure)


O = torch.optim  # noqa: E741
ELEMENTWISE = {
    O.SGD: {"lr": 0.1, "momentum": 0.9}, O.Adam: {"amsgrad": True}, O.AdamW: {}, O.RMSprop: {}, O.Adagrad: {},
    O.NAdam: {}, O.RAdam: {}, O.Adamax: {}, O.Adadelta: {}, O.ASGD: {}, O.Rprop: {}, SignedMomentum: {},
}  # fmt: skip


def test_element_wise_optimizers_are_told_from_others():
    for optimizer_class, options in ELEMENTWISE.items():
        check_elementwise(optimizer_class, options)
    for optimizer_class, error, reason in (
        (O.Adafactor, ValueError, "Adafactor is not element-wise"),
        (Normalized, ValueError, "Normalized is not element-wise"),
        (O.Muon, ValueError, "Muon cannot be used with shards.*2D"),
        (O.SparseAdam, ValueError, "SparseAdam .*dense"),
        (O.LBFGS, TypeError, "LBFGS .*closure"),
        (nn.Linear, TypeError, "optimizer_class must be a class such as"),
        ("Adam", TypeError, "got 'Adam'"),
    ):
        with pytest.raises(error, match=reason):
            check_elementwise(optimizer_class, {"lr": 0.1} if optimizer_class is Normalized else {})
    with pytest.raises(TypeError, match="unexpected keyword argument 'learning_rate'"):
        check_elementwise(O.Adam, {"learning_rate": 1.0})
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        check_elementwise(O.Adam, {"lr": -1.0})


def test_groups_are_checked_before_anything_is_cut():
    model = nn.Linear(2, 2)
    named = dict(model.named_parameters())
    members, options = number_groups(named, [{"params": [model.bias], "lr": 1.0}, {"params": model.weight}])
    assert (members, options) == ([["bias"], ["weight"]], [{"lr": 1.0}, {}])
    assert number_groups(named, None) == ([["weight", "bias"]], [{}])
    with pytest.raises(ValueError, match="bias in no group"):
        number_groups(named, [{"params": [model.weight]}])
    with pytest.raises(ValueError, match="weight is in groups 0 and 1"):
        number_groups(named, [{"params": [model.weight]}, {"params": [model.weight, model.bias]}])
    with pytest.raises(ValueError, match=r"param_groups\[0\] holds a tensor that is no parameter"):
        number_groups(named, [{"params": [torch.ones(1)]}])
    with pytest.raises(TypeError, match=r"param_groups\[0\] must be a dictionary"):
        number_groups(named, [model.weight])


def _model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 2))


def _groups(model):
    biases = [p for p in model.parameters() if p.ndim == 1]
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": biases, "lr": 0.03}]


def _sharded(model, optimizer_class, *, dtype=torch.float32, **options):
    """One flat vector of everything, and this rank's part of it."""
    group = dist.group.WORLD
    layout = FlatLayout.of(dict(model.named_parameters()), num_ranks=group.size())
    flat = torch.cat([*(p.detach().flatten() for p in model.parameters()), torch.zeros(layout.num_padding)]).to(dtype)
    own = slice(*layout.shard_range(group.rank()))
    shard = SimpleNamespace(name="all", layout=layout, shard=flat[own].clone(), gradient=None)
    keys = {"param_groups", "offload", "on_nonfinite"} & options.keys()
    wrapper = {key: options.pop(key) for key in keys}
    optimizer = ShardedOptimizer(model, [shard], optimizer_class, options=options, group=group, stage=3, **wrapper)
    return optimizer, shard, own


def _gradients(layout, step):
    generator = torch.Generator().manual_seed(step)
    flat = torch.randn(layout.num_elements, generator=generator)
    flat[layout.num_used :] = float("nan")  # padding must not matter
    return flat


def _set_plain(model, layout, flat):
    for slot, parameter in zip(layout.slots, model.parameters()):
        parameter.grad = flat[slot.start : slot.stop].view(slot.shape).clone()


def _own_part(model, layout, own):
    return torch.cat([*(p.detach().flatten() for p in model.parameters()), torch.zeros(layout.num_padding)])[own]


def _each_optimizer_equals_the_plain_one():
    for optimizer_class, options in ELEMENTWISE.items():
        plain = _model()
        optimizer, shard, own = _sharded(_model(), optimizer_class, param_groups=None, **options)
        oracle = optimizer_class(plain.parameters(), **options)
        for step in range(4):
            flat = _gradients(shard.layout, step)
            _set_plain(plain, shard.layout, flat)
            shard.gradient = flat[own].clone()
            oracle.step()
            optimizer.step()
        used = slice(0, max(0, min(own.stop, shard.layout.num_used) - own.start))
        expected = _own_part(plain, shard.layout, own)
        assert torch.equal(shard.shard[used], expected[used]), optimizer_class


def _groups_schedulers_and_clipping_equal_the_plain_ones():
    plain = _model()
    model = _model()
    optimizer, shard, own = _sharded(model, O.AdamW, param_groups=_groups(model), lr=0.01)
    oracle = O.AdamW(_groups(plain), lr=0.01)
    schedules = [O.lr_scheduler.LambdaLR(each, lambda step: 1 / (1 + step)) for each in (optimizer, oracle)]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.03]
    for step in range(5):
        flat = _gradients(shard.layout, step)
        _set_plain(plain, shard.layout, flat)
        shard.gradient = flat[own].clone()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        assert optimizer.clip_grad_norm_(0.5) == pytest.approx(float(norm), rel=1e-6)
        assert optimizer.grad_norm() == pytest.approx(0.5, rel=1e-5)
        for each, schedule in zip((oracle, optimizer), schedules[::-1]):
            each.step()
            schedule.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.03 / 6)
    used = slice(0, max(0, min(own.stop, shard.layout.num_used) - own.start))
    torch.testing.assert_close(shard.shard[used], _own_part(plain, shard.layout, own)[used], rtol=1e-5, atol=1e-6)
    names = [piece.name for run in optimizer.runs for piece in run.pieces]
    assert names == [piece.name for piece in shard.layout.pieces(dist.get_rank())]
    assert all(run.group == (1 if run.pieces[0].name.endswith("bias") else 0) for run in optimizer.runs)
    saved = optimizer.state_dict()
    again, _, _ = _sharded(model, O.AdamW, param_groups=_groups(model), lr=0.01)
    again.load_state_dict(saved)
    assert again.state is again.optimizer.state
    assert all(torch.equal(again.state[a.tensor]["exp_avg"], optimizer.state[b.tensor]["exp_avg"])
               for a, b in zip(again.runs, optimizer.runs))  # fmt: skip
    with pytest.raises(RuntimeError, match="cut into shards once"):
        optimizer.add_param_group({"params": [torch.ones(1)]})


def _masters_are_wide_and_may_live_elsewhere():
    optimizer, shard, _ = _sharded(_model(), O.SGD, dtype=torch.bfloat16, lr=2.0**-12)
    before = shard.shard.clone()
    assert optimizer.host_tensors() == []
    (master,) = optimizer.master_tensors()
    assert master.dtype == torch.float32
    for _ in range(2**4):  # each step is too small for bf16, all together are not
        shard.gradient = before.sign().mul(before.abs()).clone()
        optimizer.step()
    assert torch.equal(shard.shard, master.to(torch.bfloat16))
    if before.abs().max() > 0:
        assert not torch.equal(shard.shard, before)
    optimizer, shard, _ = _sharded(_model(), O.Adam, offload=True)
    shard.gradient = torch.ones_like(shard.shard)
    optimizer.step()
    assert optimizer.master_tensors()[0].data_ptr() != shard.shard.data_ptr()
    num_runs = len(optimizer.runs)
    assert len(optimizer.host_tensors()) == 1 + 3 * num_runs  # master; step, exp_avg, exp_avg_sq of each run


def _what_is_not_finite_changes_nothing_anywhere():
    rank = dist.get_rank()
    for bad in (float("nan"), float("inf")):
        optimizer, shard, _ = _sharded(_model(), O.Adam)
        before = shard.shard.clone()
        with pytest.raises(RuntimeError, match=r"step\(\) before backward\(\)"):
            optimizer.step()
        shard.gradient = torch.ones_like(shard.shard)
        if rank == 1:
            shard.gradient[0] = bad
        first = shard.layout.pieces(1)[0].name
        with pytest.raises(NonFiniteGradients, match=f"the summed gradient of {first}, held on rank 1"):
            optimizer.step()
        assert torch.equal(shard.shard, before)
        assert not optimizer.state
    optimizer, shard, _ = _sharded(_model(), O.Adam, on_nonfinite="skip")
    shard.gradient = torch.full_like(shard.shard, math.inf if rank == 0 else 1.0)
    assert optimizer.clip_grad_norm_(1.0) == math.inf
    optimizer.step()
    assert (optimizer.num_skipped, shard.gradient) == (1, None)
    assert torch.equal(shard.shard, before)
    shard.gradient = torch.full_like(shard.shard, 3e38)  # finite, though their sum is not
    optimizer.step()
    assert optimizer.num_skipped == 1
    with pytest.raises(ValueError, match='on_nonfinite must be "raise" or "skip"'):
        _sharded(_model(), O.Adam, on_nonfinite="ignore")
    with pytest.raises(ValueError, match="max_norm must be positive, got -1"):
        optimizer.clip_grad_norm_(-1)
    with pytest.raises(ValueError, match="set_to_none must be True"):
        optimizer.zero_grad(set_to_none=False)


def _on_ranks():
    _each_optimizer_equals_the_plain_one()
    _groups_schedulers_and_clipping_equal_the_plain_ones()
    _masters_are_wide_and_may_live_elsewhere()
    if dist.get_world_size() > 1:
        _what_is_not_finite_changes_nothing_anywhere()


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_shards_end_where_the_plain_optimizer_ends(num_ranks):
    run_distributed(_on_ranks, num_ranks)
