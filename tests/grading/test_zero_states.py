"""Part 2 of the exercise on ZeRO: right sharded optimizers are accepted, and the mistake in wrong ones is named."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, student
from tests.grading.zero_students import made_in

PARAMETERS = "        self.parameters = list(model.parameters())\n"
MAKE = "        self.optimizer = optimizer_class([self.shard], **options)\n"
ROW = "        row = torch.zeros(num_ranks * self.shard.numel())\n"
FILL = """\
        for piece, parameter in zip(unflatten(row, self.parameters), self.parameters):
            if parameter.grad is not None:
                piece.copy_(parameter.grad)
"""
REDUCE = "        dist.reduce_scatter(self.shard.grad, list(row.chunk(num_ranks)))\n"
DIVIDE = "        self.shard.grad /= num_ranks\n"
STEP = "        self.optimizer.step()\n"
FREE = "        self.shard.grad = None\n"
GATHER = "        dist.all_gather(list(row.chunk(num_ranks)), self.shard.detach())\n"
BACK = """\
        for piece, parameter in zip(unflatten(row, self.parameters), self.parameters):
            parameter.copy_(piece)
"""
FIRST_GRADIENT = "        self.shard.grad = torch.empty_like(self.shard)\n"
ALL_OF_STEP = ROW + FILL + FIRST_GRADIENT + REDUCE + DIVIDE + STEP + FREE + GATHER + BACK

# Right, in another way.
FLAT_WEIGHTS = """\
        self.parameters = list(model.parameters())
        num_ranks, rank = dist.get_world_size(), dist.get_rank()
        num_elements = sum(p.numel() for p in self.parameters)
        self.row = torch.zeros(num_elements + -num_elements % num_ranks)
        for piece, parameter in zip(unflatten(self.row, self.parameters), self.parameters):
            piece.copy_(parameter.detach())
            parameter.data = piece
        self.shard = nn.Parameter(self.row.view(num_ranks, -1)[rank])
        self.optimizer = optimizer_class([self.shard], **options)
"""
FLAT_STEP = """\
        row = torch.zeros_like(self.row)
        for piece, parameter in zip(unflatten(row, self.parameters), self.parameters):
            if parameter.grad is not None:
                piece.copy_(parameter.grad / num_ranks)
        self.shard.grad = torch.empty_like(self.shard)
        dist.reduce_scatter(self.shard.grad, list(row.chunk(num_ranks)))
        self.optimizer.step()
        self.shard.grad = None
        dist.all_gather(list(self.row.chunk(num_ranks)), self.shard.detach().clone())
"""
SINGLE = (
    "        (getattr(dist, 'reduce_scatter_single', None) or dist.reduce_scatter_tensor)(self.shard.grad, row)\n",
    "        (getattr(dist, 'all_gather_single', None) or dist.all_gather_into_tensor)(row, self.shard.detach())\n",
)
CAT = """\
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        row = torch.cat([gradient.flatten() for gradient in gradients])
        row = nn.functional.pad(row, (0, -row.numel() % num_ranks))
"""

# Wrong.
NO_PADDING = """\
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        row = torch.cat([gradient.flatten() for gradient in gradients])
        n = row.numel() // num_ranks
        self.shard = self.shard if len(self.shard) == n else nn.Parameter(self.shard.detach()[:n].clone())
"""
EVERYBODY = """\
        for parameter in self.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            parameter.grad = gradient / num_ranks
        self.optimizer.step()
"""
WHOLE_STATES = """\
        self.whole = nn.Parameter(torch.cat([p.detach().flatten() for p in self.parameters]))
        self.optimizer = optimizer_class([self.whole], **options)
"""
WHOLE_STEP = """\
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        row = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(row)
        self.whole.grad = row / num_ranks
        self.optimizer.step()
        self.whole.grad = None
        for piece, parameter in zip(unflatten(self.whole.detach(), self.parameters), self.parameters):
            parameter.copy_(piece)
"""
ALL_REDUCED = """\
        dist.all_reduce(row)
        self.shard.grad = row.chunk(num_ranks)[dist.get_rank()].clone()
"""
ONLY_USED = """\
        used = [parameter for parameter in self.parameters if parameter.grad is not None]
        row = shard_of([p.grad for p in used], 0, 1)
        row = nn.functional.pad(row, (0, -row.numel() % num_ranks))
        self.shard.grad = torch.zeros_like(self.shard)
        own = torch.empty(row.numel() // num_ranks)
        dist.reduce_scatter(own, list(row.chunk(num_ranks)))
        self.shard.grad[: len(own)] = own
        row = torch.zeros(num_ranks * self.shard.numel())
"""
LEAVES = """\
        if any(parameter.grad is None for parameter in self.parameters):
            return
"""
TORCHS = """\
        from torch.distributed.optim import ZeroRedundancyOptimizer
        self.optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class, **options)
"""
TIED_TWICE = "        self.parameters = [p for name, p in model.named_parameters(remove_duplicate=False)]\n"

RIGHT = [
    student("the solution"),
    student("weights are views of a row", PARAMETERS, FLAT_WEIGHTS,
            "        self.shard = nn.Parameter(shard_of(self.parameters, dist.get_rank(), dist.get_world_size()))\n",
            "",
            "\n" + MAKE, "\n", ALL_OF_STEP, FLAT_STEP),
    student("one tensor", REDUCE, SINGLE[0], GATHER, SINGLE[1]),
    student("cat and pad, gradient kept", ROW + FILL, CAT, FREE, ""),
]  # fmt: skip

WRONG = [
    student("summed", DIVIDE, "", says="the gradients are summed, not averaged"),
    student("divided twice", DIVIDE, DIVIDE + DIVIDE, says="divided twice"),
    student("own gradients", REDUCE + DIVIDE,
            "        self.shard.grad = row.chunk(num_ranks)[dist.get_rank()].clone()\n",
            says="the gradients of its own rank alone"),
    student("nothing comes back", GATHER + BACK, "", says="copy what was gathered into the model's parameters"),
    student("no all-gather", GATHER, "        row = shard_of(self.parameters, 0, 1)\n"
            "        n = self.shard.numel()\n        r = dist.get_rank()\n"
            "        row = nn.functional.pad(row, (0, num_ranks * n - len(row)))\n"
            "        row[r * n : (r + 1) * n] = self.shard.detach()\n", says="only this rank's shard is new"),
    student("wrong with a count that does not divide", "zip(unflatten(row, self.parameters), self.parameters):\n"
            "            parameter.copy_(piece)", "zip(unflatten(row, self.parameters), self.parameters):\n"
            "            whole = sum(p.numel() for p in self.parameters)\n"
            "            if whole % num_ranks and parameter is self.parameters[-1]:\n"
            "                flat = parameter.view(-1)\n"
            "                flat[: -(whole % num_ranks)].copy_(piece.reshape(-1)[: -(whole % num_ranks)])\n"
            "            else:\n                parameter.copy_(piece)", says="the last elements are not updated"),
    student("no padding", ROW + FILL, NO_PADDING, kind=Kind.CRASHED, says="on rank", at_most=0.4),
    student("states anew in each step", STEP, STEP + "        self.optimizer.state.clear()\n",
            says=("the second step is right, too", "what does the optimizer start the second one from")),
    student("everybody updates everything", MAKE,
            "        self.optimizer = optimizer_class(self.parameters, **options)\n",
            ALL_OF_STEP, EVERYBODY, kind=Kind.NOT_SHARDED,
            says=("states for all parameters on every rank", "optimizer state 11,")),
    student("states replicated", MAKE, WHOLE_STATES, ALL_OF_STEP, WHOLE_STEP, kind=Kind.NOT_SHARDED,
            says="states for all parameters on every rank"),
    student("a copy is kept", ROW, ROW + "        self.row = row\n", kind=Kind.NOT_SHARDED,
            says="stays alive between steps"),
    student("all-reduce", FIRST_GRADIENT + REDUCE, ALL_REDUCED, kind=Kind.TOO_MUCH_COMMUNICATION,
            says="reduce-scatter is half"),
    student("the tied weight twice", PARAMETERS, TIED_TWICE, kind=Kind.NOT_SHARDED,
            says="the tied weight is in it twice", at_most=0.9),
    student("gathered twice", GATHER, GATHER + GATHER, kind=Kind.TOO_MUCH_COMMUNICATION,
            says="one reduce-scatter, one all-gather"),
    student("own shard is not from the gather", BACK,
            BACK + "        self.parameters[0].add_(1e-7 * dist.get_rank())\n",
            kind=Kind.NOT_EXACT, says="take all weights from the all-gather"),
    student("skips what has no gradient", ROW + FILL + FIRST_GRADIENT + REDUCE, ONLY_USED, kind=Kind.RANKS_DISAGREE,
            says=("a layer that one rank does not use", "call number 1 is reduce_scatter",
                  "must take part all the same"),
            at_most=0.85),
    student("leaves where a gradient lacks", ROW, LEAVES + ROW, kind=Kind.DEADLOCK,
            says=("nobody can go on", "rank 0 waits in", "must take part all the same"), at_most=0.85),
    student("a rank stays away", ROW, "        if dist.get_rank() == 1:\n            return\n" + ROW,
            kind=Kind.DEADLOCK, says="those that have returned", at_most=0.0),
    student("torch's own after an all-reduce", MAKE, TORCHS, ALL_OF_STEP, EVERYBODY,
            kind=Kind.TOO_MUCH_COMMUNICATION, says="reduce-scatter is half"),
    student("a crash on one rank", ROW, "        if dist.get_rank() == 1:\n            rows\n" + ROW, kind=Kind.CRASHED,
            says=("on rank 1: NameError", "rows"), at_most=0.0),
    student("not attempted", ROW, "        raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_optimizer_check_accepts_right_optimizers(made: Student) -> None:
    result = checks.run("zero_sharding/2", made_in("sharded_optimizer", made, "ShardedOptimizer"))
    assert result.passed, result.message


def test_optimizer_check_accepts_the_solution_on_the_hidden_inputs() -> None:
    optimizer = made_in("sharded_optimizer", RIGHT[0], "ShardedOptimizer")
    result = checks.run("zero_sharding/2", optimizer, seed=295, num_tokens=9)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_optimizer_check_names_the_mistake(made: Student) -> None:
    result = checks.run("zero_sharding/2", made_in("sharded_optimizer", made, "ShardedOptimizer"))
    assert_refused(result, made)
