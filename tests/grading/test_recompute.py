"""Part 3 of the exercise on training memory: right checkpoints are accepted, and the mistake in wrong ones is named."""

import pytest

from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from tests.grading.students import Student, assert_refused, student, written

KEEP_STATE = "        ctx.random_state = torch.get_rng_state()\n"
SAVE = "        ctx.save_for_backward(x)\n"
DETACH = "        x = x.detach().requires_grad_()\n"
FORK = "        with torch.random.fork_rng(devices=[]), torch.enable_grad():\n"
SET_STATE = "            torch.set_rng_state(ctx.random_state)\n"
AGAIN = "            y = ctx.function(x)\n"
BACK = "        torch.autograd.backward(y, grad)\n"
RETURN = "        return x.grad, None"
APPLY = "    return Recompute.apply(x, function)"

HOOKS = """\
    state, again = torch.get_rng_state(), []

    def pack(tensor):
        number[0] += 1
        return number[0] - 1

    def unpack(index):
        if not again:
            with torch.random.fork_rng(devices=[]), torch.enable_grad():
                torch.set_rng_state(state)
                with torch.autograd.graph.saved_tensors_hooks(lambda t: again.append(t.detach()), lambda t: t):
                    function(x.detach().requires_grad_())
        return again[index]

    number = [0]
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return function(x)"""
PARAMETERS_AS_INPUTS = """\
    class WithParameters(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, *parameters):
            ctx.random_state = torch.random.get_rng_state()
            ctx.save_for_backward(x, *parameters)
            return function(x)

        @staticmethod
        def backward(ctx, grad):
            x, *parameters = ctx.saved_tensors
            after = torch.random.get_rng_state()
            torch.random.set_rng_state(ctx.random_state)
            with torch.enable_grad():
                x = x.detach().requires_grad_(True)
                y = function(x)
            torch.random.set_rng_state(after)
            return torch.autograd.grad(y, [x, *parameters], grad)

    return WithParameters.apply(x, *function.parameters())"""
TORCHS = "    from torch.utils.checkpoint import checkpoint\n    return checkpoint(function, x, use_reentrant=False)"
KEEPS_GRAPH = (
    "        with torch.enable_grad():\n            ctx.x = x.detach().requires_grad_()\n"
    "            ctx.y = function(ctx.x)\n        return ctx.y.detach()\n"
)

RIGHT = [
    student("the solution"),
    student("saved-tensor hooks", APPLY, HOOKS),
    student("parameters are inputs", APPLY, PARAMETERS_AS_INPUTS),
    student("x on ctx", SAVE, "        ctx.x = x.detach()\n", "(x,) = ctx.saved_tensors", "x = ctx.x"),
    student("y.backward", BACK, "        y.backward(grad)\n"),
]

WRONG = [
    student("no checkpoint", APPLY, "    return function(x)", kind=Kind.TOO_MUCH_MEMORY,
            says=("without a checkpoint it would be", "the activations are kept"), at_most=0.6),
    student("the graph hangs on ctx", SAVE + "        return function(x)", KEEPS_GRAPH,
            "(x,) = ctx.saved_tensors\n" + DETACH + FORK + SET_STATE + AGAIN, "x, y = ctx.x, ctx.y\n",
            kind=Kind.TOO_MUCH_MEMORY, says="the activations are kept"),
    student("no random state", SET_STATE, "", says=("with dropout", "draws another dropout mask")),
    student("random state not put back", FORK, "        with torch.enable_grad():\n",
            says=("the random numbers go on", "put the state back"), at_most=0.9),
    student("no gradients in backward", "), torch.enable_grad():", "):", kind=Kind.CRASHED,
            says=("Compute under torch.enable_grad()", "torch.autograd.backward(y, grad)"), at_most=0.0),
    student("no gradients at all", APPLY, "    with torch.no_grad():\n        return function(x)",
            says="the output needs no gradient", at_most=0.1),
    student("computed twice", BACK, BACK + "        ctx.function(x)\n",
            says=("2 times in the backward pass", "computed again more than once")),
    student("computed twice forward", SAVE, SAVE + "        function(x)\n", says="keep the input"),
    student("not detached", DETACH, "", kind=Kind.CRASHED, says="hangs on the graph of the layers before", at_most=0.2),
    student("no gradient of the parameters", BACK + RETURN, "        return torch.autograd.grad(y, x, grad)[0], None",
            says="the parameters of the function get no gradient"),
    student("no gradient of x", RETURN, "        return None, None", says="backward must return the gradient of x"),
    student("gradients twice", BACK, "        torch.autograd.backward(y, grad, retain_graph=True)\n" + BACK,
            says=("twice what they must be",)),
    student("another output", "        return function(x)", "        return function(x) * 1.0001",
            says="equal to the bit", at_most=0.1),
    student("half precision", APPLY, "    return Recompute.apply(x.half(), function)", kind=Kind.CRASHED, at_most=0.0),
    student("torch's own", APPLY, TORCHS, kind=Kind.NOT_ALLOWED, says="torch.utils.checkpoint does the work",
            at_most=0.0),
    student("nothing", APPLY, "    pass", kind=Kind.WRONG_SHAPE, says="must return what function(x) does", at_most=0.0),
    student("not attempted", SAVE, "        raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED,
            says="Replace the line", at_most=0.0),
    student("half attempted", BACK, "        raise NotImplementedError()\n", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip


def checkpoint_of(made: Student):
    return written("training_memory", "checkpoint", *made.changes)["checkpoint"]


@pytest.mark.parametrize("options", [{}, {"seed": 295, "tokens": 96, "dim": 48, "num_layers": 4}], ids=str)
@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_checkpoint_check_accepts_right_checkpoints(made: Student, options) -> None:
    result = checks.run("training_memory/3", checkpoint_of(made), **options)
    assert result.passed, result.message


@pytest.mark.parametrize("made", WRONG, ids=str)
def test_checkpoint_check_names_the_mistake(made: Student) -> None:
    result = checks.run("training_memory/3", checkpoint_of(made))
    assert_refused(result, made)
