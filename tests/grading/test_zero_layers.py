"""Part 3 of the exercise on ZeRO: right layers are accepted, and what wrong ones hold, send or forget is named."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from cme295lab.grading.zero_sharding import stack
from tests.grading.students import Student, assert_refused, student
from tests.grading.zero_students import made_in

GATHER = "    dist.all_gather(list(row.chunk(dist.get_world_size())), shard.detach())\n"
SAVE = "        ctx.save_for_backward(x, shard)\n"
FORWARD = "        return x @ gather_weight(shard, shape).T\n"
SAVED = "        x, shard = ctx.saved_tensors\n"
GRAD_X = "        grad_x = grad @ gather_weight(shard, ctx.shape)\n"
REDUCE = "        dist.reduce_scatter(own, list(row.chunk(dist.get_world_size())))\n"
RETURN = "        return grad_x, own / dist.get_world_size(), None"
APPLY = "        return GatheredLinear.apply(x, self.shard, self.shape)"
KEEP_SHARD = "        self.shard = nn.Parameter(shard_of([weight], dist.get_rank(), dist.get_world_size()))\n"

LIST_AND_CAT = """\
    parts = [torch.empty_like(shard) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, shard.detach())
    row = torch.cat(parts)
"""
GATHERED_TENSOR = """\
        class Gathered(torch.autograd.Function):
            @staticmethod
            def forward(ctx, shard, shape):
                return gather_weight(shard, shape).clone()

            @staticmethod
            def backward(ctx, grad):
                num_ranks = dist.get_world_size()
                row = nn.functional.pad(grad.flatten(), (0, -grad.numel() % num_ranks))
                own = torch.empty(row.numel() // num_ranks)
                dist.reduce_scatter(own, list(row.chunk(num_ranks)))
                return own / num_ranks, None

        weight = Gathered.apply(self.shard, self.shape)
"""
FREED = (
    GATHERED_TENSOR
    + """\
        storage, num_bytes = weight.untyped_storage(), weight.untyped_storage().nbytes()

        def again(grad):
            storage.resize_(num_bytes)
            weight.data.copy_(gather_weight(self.shard, self.shape))

        def free(grad):
            storage.resize_(0)

        weight.register_hook(free)
        y = nn.functional.linear(x, weight)
        y.register_hook(again)
        storage.resize_(0)
        return y
"""
)
NEVER_FREED = GATHERED_TENSOR + "        return nn.functional.linear(x, weight)\n"
STALE_FORWARD = """\
        if not hasattr(self, "whole"):
            self.whole = gather_weight(self.shard, self.shape)
        return GatheredLinear.apply(x, self.shard, self.shape, self.whole)
"""
STALE = ("def forward(ctx, x, shard, shape):", "def forward(ctx, x, shard, shape, whole):", FORWARD,
         "        return x @ whole.T\n", APPLY, STALE_FORWARD, "_size(), None", "_size(), None, None")  # fmt: skip
ALL_REDUCED = """\
        dist.all_reduce(row)
        own.copy_(row.chunk(dist.get_world_size())[dist.get_rank()])
"""
ALL_AT_ONCE = """\
        stack = type(self).stack
        if self is stack[0]:
            type(self).whole = [gather_weight(layer.shard, layer.shape) for layer in stack]
        y = GatheredLinear.apply(x, self.shard, self.shape)
        if self is stack[-1]:
            type(self).whole = None
        return y
"""
LAST_ELEMENTS = """\
    num_ranks = dist.get_world_size()
    n = shape.numel() // num_ranks * num_ranks
    if n < shape.numel():
        row[n : shape.numel()] = 0
"""

RIGHT = [
    student("the solution"),
    student("list and cat", "    row = torch.empty(dist.get_world_size() * shard.numel())\n" + GATHER, LIST_AND_CAT),
    student("hooks and a storage that is freed", APPLY, FREED),
]

WRONG = [
    student("the whole weight", KEEP_SHARD, "        self.shard = nn.Parameter(weight.clone().flatten())\n",
            kind=Kind.NOT_SHARDED, says="the parameter is the whole weight", at_most=0.0),
    student("a view", KEEP_SHARD,
            "        self.shard = nn.Parameter(weight.flatten().chunk(dist.get_world_size())[dist.get_rank()])\n",
            kind=Kind.NOT_SHARDED, says="the whole weight is still alive", at_most=0.0),
    student("no shard", KEEP_SHARD, "        self.part = 1\n", kind=Kind.WRONG_SHAPE,
            says="must have an attribute shard", at_most=0.0),
    student("not gathered", GATHER,
            "    row.zero_()\n    row.view(dist.get_world_size(), -1)[dist.get_rank()] = shard\n",
            says="this rank's shard only"),
    student("summed", "own / dist.get_world_size()", "own", says="the gradients are summed, not averaged"),
    student("divided twice", "own / dist.get_world_size()", "own / dist.get_world_size() ** 2", says="divided twice"),
    student("own gradient", REDUCE, "        own = row.chunk(dist.get_world_size())[dist.get_rank()].clone()\n",
            says="of its own rank's batch alone"),
    student("no gradient of the shard", RETURN, "        return grad_x, None, None",
            says="the shard has no gradient"),
    student("counted twice", RETURN, "        own /= dist.get_world_size()\n"
            "        ctx.shard.grad = own if ctx.shard.grad is None else ctx.shard.grad + own\n"
            "        return grad_x, own.clone(), None", SAVE, SAVE + "        ctx.shard = shard\n",
            says="counted twice: it is returned by backward, and added"),
    student("a gradient of x that is wrong", "grad_x = grad @", "grad_x = 0.5 * grad @",
            says="the gradient of weight 0"),
    student("kept by autograd", APPLY, NEVER_FREED, kind=Kind.NOT_SHARDED,
            says=("after the forward pass, no whole weight is left", "the gathered weights stay alive"), at_most=0.9),
    student("saved for backward", SAVE + "        ctx.shape = shape\n" + FORWARD,
            "        weight = gather_weight(shard, shape)\n        ctx.save_for_backward(x, shard, weight)\n"
            "        ctx.shape = shape\n        return x @ weight.T\n", SAVED + GRAD_X,
            "        x, shard, weight = ctx.saved_tensors\n        grad_x = grad @ weight\n", kind=Kind.NOT_SHARDED,
            says="the gathered weights stay alive", at_most=0.9),
    student("stale", *STALE, says=("the next step uses the new weights", "A weight that is kept goes stale"),
            at_most=0.8),
    student("all-reduce", REDUCE, ALL_REDUCED, kind=Kind.TOO_MUCH_COMMUNICATION, says="reduce-scatter is half",
            at_most=0.9),
    student("gathered three times", SAVED, SAVED + "        gather_weight(shard, ctx.shape)\n",
            kind=Kind.TOO_MUCH_COMMUNICATION, says="the weights travel 4 times"),
    student("whole gradients wait", RETURN,
            "        ShardedLinear.waiting = [*getattr(ShardedLinear, 'waiting', []), row]\n" + RETURN,
            kind=Kind.NOT_SHARDED, says="alive at the same time", at_most=0.9),
    student("all layers at once", KEEP_SHARD,
            KEEP_SHARD + "        type(self).stack = [*getattr(type(self), 'stack', []), self]\n", APPLY, ALL_AT_ONCE,
            kind=Kind.NOT_SHARDED, says="gather a layer just before it computes", at_most=0.9),
    student("tied, cumulative", SAVE, SAVE + "        ctx.owner = shard\n", REDUCE,
            "        before = getattr(ctx.owner, 'before', None)\n"
            "        if len(row) < 200:\n            ctx.owner.before = row.clone()\n"
            "        if before is not None:\n"
            "            row += before\n" + REDUCE,
            says=("that two layers share", "counted twice: what was reduced for one use"), at_most=0.9),
    student("wrong with a count that does not divide", "    return row[:", LAST_ELEMENTS + "    return row[:",
            says=("a weight that they do not divide", "the output of rank 0"), at_most=0.9),
    student("a rank stays away", GATHER, "    if dist.get_rank() == 0:\n    " + GATHER, kind=Kind.RANKS_DISAGREE,
            says=("call number 1 is all_gather", "no rank may leave a gather"), at_most=0.0),
    student("the library's", GATHER, "    from cme295lab.parallel.communication import collectives\n"
            "    row.view(dist.get_world_size(), -1)[dist.get_rank()] = shard.detach()\n"
            "    collectives.ring_all_gather(row)\n", kind=Kind.NOT_ALLOWED,
            says="calls the course's library", at_most=0.2),
    student("no graph", APPLY, "        return x @ gather_weight(self.shard, self.shape).T",
            says="the shard has no gradient"),
    student("a crash", SAVED, SAVED + "        shards\n", kind=Kind.CRASHED, says="NameError", at_most=0.0),
    student("not attempted", FORWARD, "        raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip


def layer_of(made: Student):
    return made_in("sharded_linear", made, "ShardedLinear")


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_linear_check_accepts_right_layers(made: Student) -> None:
    result = checks.run("zero_sharding/3", layer_of(made))
    assert result.passed, result.message


def test_linear_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    result = checks.run("zero_sharding/3", layer_of(RIGHT[0]), seed=295, narrow=18, wide=31, num_layers=12)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_linear_check_names_the_mistake(made: Student) -> None:
    result = checks.run("zero_sharding/3", layer_of(made))
    assert_refused(result, made)


def test_truth_adds_up_the_uses_of_a_shared_weight() -> None:
    """By hand: the derivative of the mean loss by the shared weight, from a difference quotient in float64."""
    case = stack.Case(seed=3, num_ranks=2, narrow=3, wide=4, uses=(0, 1, 0, 3))
    weights = {index: case.weight(index).double() for index in set(case.uses)}

    def loss() -> float:
        layers = [lambda x, w=weights[index]: x @ w.T for index in case.uses]
        rows = [stack.run_stack(layers, case.batch(rank, 0).double()) for rank in range(2)]
        return float(sum(stack.loss_of(y) for y in rows) / 2)

    weights[0][1, 2] += 1e-6
    above = loss()
    weights[0][1, 2] -= 2e-6
    quotient = (above - loss()) / 2e-6
    assert float(stack.truth(case).gradient(case, 0)[1, 2]) == pytest.approx(quotient, rel=1e-5)
