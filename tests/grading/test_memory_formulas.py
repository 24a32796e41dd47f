"""Parts 1, 2 and 4 of the exercise on training memory: formulas and plans, accepted or with the mistake named."""

import pytest

from cme295lab import memory
from cme295lab.grading import checks
from cme295lab.grading.result import Kind
from cme295lab.grading.training_memory import activations, fitting, states
from tests.grading.students import Student, assert_refused, student, written

MIXED = '"bf16-mixed": (2, 2, 4)'
MASTERS = "total += (masters + states) / (num_ranks if stage >= 1 else 1)"
RETURN = "return num_parameters * total / 1e9"
HIDDEN_STATES = {"billions": 128, "num_ranks": 16}

RIGHT_STATES = [
    student("the solution"),
    student(
        "a list of parts",
        "    total = weights",
        "    parts = ((3, weights), (2, gradients), (1, masters), (1, states))\n"
        "    return sum(num_parameters * size / (1, num_ranks)[stage >= first] for first, size in parts) * 1e-9\n"
        "    total = weights",
    ),
    student("elements of a shard", "/ (num_ranks if stage >= 3 else 1)", "* (1 / num_ranks if stage == 3 else 1.0)"),
]

WRONG_STATES = [
    student("GiB", "/ 1e9", "/ 2**30", says=("that is in GiB", "10^9")),
    student("bytes", " / 1e9", "", says="that is in bytes"),
    student("masters forgotten", MIXED, '"bf16-mixed": (2, 2, 0)', says="the master weights are forgotten"),
    student("fp32 gradients", MIXED, '"bf16-mixed": (2, 4, 4)', says="weights or gradients have 4 bytes here"),
    student("masters in fp32", '"fp32": (4, 4, 0)', '"fp32": (4, 4, 4)', says="weights are their own masters"),
    student("one state", '"adam": 8', '"adam": 4', says="Adam keeps two numbers"),
    student("no constants", "2 + 2 * 4 / 256", "2", says="each block of 256 numbers also keeps"),
    student("SGD remembers", '"sgd": 0', '"sgd": 4', says="plain SGD keeps nothing"),
    student("momentum in bf16", '"sgd-momentum": 4', '"sgd-momentum": 2', says="momentum is kept in fp32"),
    student(
        "states not divided",
        MASTERS,
        "total += masters / (num_ranks if stage >= 1 else 1) + states",
        says=("stage 1", "the optimizer's states are not divided by the ranks"),
    ),
    student(
        "masters not divided",
        MASTERS,
        "total += masters + states / (num_ranks if stage >= 1 else 1)",
        says="the master weights are not divided",
    ),
    student(
        "stage 2 counted as stage 3", "weights / (num_ranks if stage >= 3", "weights / (num_ranks if stage >= 2",
        says=("ZeRO stage 2", "that is stage 3, and stage 2 is asked for", "every rank keeps all weights"),
    ),
    student("nothing divided", RETURN, RETURN.replace("total", "(weights + gradients + masters + states)"),
            says="that is stage 0"),
    student("all ranks together", RETURN, RETURN + " * num_ranks", says="all 64 ranks together"),
    student("a constant", RETURN, "return 120.0", says="the same number comes back", at_most=0.5),
    student("text", RETURN, 'return "a lot"', kind=Kind.WRONG_SHAPE, says="return a number", at_most=0.0),
    student("a crash", RETURN, "return total / 0", kind=Kind.CRASHED, says="ZeroDivisionError", at_most=0.0),
    student("not attempted", RETURN, "raise NotImplementedError()", kind=Kind.NOT_ATTEMPTED, at_most=0.0),
]  # fmt: skip

PLUS_SCORES = "attention_bytes += 5 * scores"
PLUS_ROWS = "attention_bytes += 4 * num_heads * seq * batch"
PARTS = "11 * inputs, 19 * inputs, 4 * inputs"
SUM = "return attention_bytes + mlp_bytes + norm_bytes"
HIDDEN_LAYERS = {"seq": 1024, "batch": 4, "heads": 64, "long": 16384}

RIGHT_LAYERS = [
    student("the solution"),
    student(
        "one line", SUM, "rows = 4 * num_heads * seq * batch if attention == 'flash' else 0\n"
        "    return 34 * inputs + rows + (attention == 'standard' and recompute == 'none') * 5.0 * scores",
    ),
]  # fmt: skip

WRONG_LAYERS = [
    student(
        "scores with flash",
        'if attention == "flash":\n        attention_bytes += 4 * num_heads * seq * batch\n    elif',
        "if",
        says=("flash attention is counted right", "the score matrices are still in it, 5as²b"),
    ),
    student(
        "scores and log-sum-exp with flash",
        PLUS_ROWS,
        PLUS_ROWS + " + 5 * scores",
        says="the score matrices are still in it, 5as²b",
    ),
    student("no log-sum-exp", PLUS_ROWS, "pass", says="the log-sum-exp is missing"),
    student("half of a log-sum-exp", PLUS_ROWS, PLUS_ROWS.replace("4 *", "2 *"), says="in fp32: 4 bytes"),
    student("a log-sum-exp for all heads", PLUS_ROWS, "attention_bytes += 4 * seq * batch", says="for each head"),
    student(
        "softmax alone", PLUS_SCORES, "attention_bytes += 2 * scores", says="dropout keeps its mask and its output"
    ),
    student("no mask", PLUS_SCORES, "attention_bytes += 4 * scores", says="a mask of 1 byte"),
    student("a wide mask", PLUS_SCORES, "attention_bytes += 6 * scores", says="1 byte per element, not 2"),
    student("the scores, too", PLUS_SCORES, "attention_bytes += 7 * scores", says="needs its output"),
    student("one head", PLUS_SCORES, "attention_bytes += 5 * scores // num_heads", says="every head has its own"),
    student("linear in seq", "seq**2", "seq", says="seq × seq elements"),
    student("no norms", PARTS, "11 * inputs, 19 * inputs, 0", says="the two norms are missing"),
    student("no MLP", PARTS, "11 * inputs, 0, 4 * inputs", says="the MLP is missing"),
    student("a narrow MLP", PARTS, "11 * inputs, 7 * inputs, 4 * inputs", says="4 times dim"),
    student("inputs of Q, K, V thrice", PARTS, "15 * inputs, 19 * inputs, 4 * inputs", says="kept once"),
    student("elements", SUM, SUM.replace("return ", "return (") + ") / 2", says="number of elements"),
    student("nothing with full", "return 2 * inputs", "return 0", says="nothing at all is kept"),
    student("a byte with full", "return 2 * inputs", "return inputs", says="2 bytes per element"),
    student("full is selective", "return 2 * inputs", "return 34 * inputs", says="the layer's input alone"),
    student("selective drops nothing", 'elif recompute == "none":', "else:", says="drops the score matrices"),
    student("a missing argument", "num_heads: int, ", "", kind=Kind.CRASHED, says="num_heads", at_most=0.0),
]

ORDER = "for stages in ((0, 1, 2), (3,)):"
FITS = "if ledger.fits(device):"
ANSWER = 'return stage, recompute, ledger.largest_fitting("micro_batch", device=device)'
COUNT_UP = """\
micro_batch = 1
                    while memory.training_memory(
                        model, seq=seq, parallel=parallel, recompute=recompute, micro_batch=micro_batch + 1
                    ).fits(device):
                        micro_batch += 1
                    return stage, recompute, micro_batch"""

RIGHT_PLANS = [student("the solution"), student("counting up", ANSWER, COUNT_UP)]

WRONG_PLANS = [
    student("stage 3 first", ORDER, "for stages in ((3,), (0, 1, 2)):", kind=Kind.TOO_MUCH_COMMUNICATION,
            says="stage 3 sends half as much again"),
    student("the lowest stage above all", ORDER, "for stages in ((0,), (1,), (2,), (3,)):",
            says="recomputing less computes less"),
    student("the highest stage", "(0, 1, 2)", "(2, 1, 0)", says="try the stages from 0 up"),
    student("one sequence", 'ledger.largest_fitting("micro_batch", device=device)', "1", says="fits as well"),
    student("too many sequences", "device=device)\n", "device=device) + 1\n", kind=Kind.TOO_MUCH_MEMORY,
            says="one sequence less fits"),
    student("no question asked", FITS, "if True:", "ledger.largest_fitting(\"micro_batch\", device=device)", "1",
            kind=Kind.TOO_MUCH_MEMORY, says="shards too little"),
    student("GiB for GB", FITS, "if ledger.total_bytes / 1e9 <= 85.9 * 1.0737:",
            "ledger.largest_fitting(\"micro_batch\", device=device)", "1",
            kind=Kind.TOO_MUCH_MEMORY, says="compare bytes with bytes"),
    student("nothing", ANSWER, "pass", kind=Kind.WRONG_SHAPE, says="return (stage, recompute, micro_batch)",
            at_most=0.0),
]  # fmt: skip


def states_of(made: Student):
    return written("training_memory", "model_states", *made.changes)["model_state_gb"]


def layers_of(made: Student):
    return written("training_memory", "layer_activations", *made.changes)["layer_activation_bytes"]


def plans_of(made: Student):
    return written("training_memory", "choose_plan", *made.changes, given={"memory": memory})["choose_plan"]


ACCEPTED = [
    *(("1", states_of, made, options) for made in RIGHT_STATES for options in ({}, HIDDEN_STATES)),
    *(("2", layers_of, made, options) for made in RIGHT_LAYERS for options in ({}, HIDDEN_LAYERS)),
    *(("4", plans_of, made, options) for made in RIGHT_PLANS for options in ({}, {"hidden": True})),
]
REJECTED = [
    *(("1", states_of, made) for made in WRONG_STATES),
    *(("2", layers_of, made) for made in WRONG_LAYERS),
    *(("4", plans_of, made) for made in WRONG_PLANS),
]


def named(value: object) -> str:
    """An id that is the same in every process: a function is its name."""
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize(("part", "make", "made", "options"), ACCEPTED, ids=named)
def test_memory_checks_accept_right_formulas(part: str, make, made: Student, options) -> None:
    result = checks.run(f"training_memory/{part}", make(made), **options)
    assert result.passed, result.message


@pytest.mark.parametrize(("part", "make", "made"), REJECTED, ids=named)
def test_memory_checks_name_the_mistake(part: str, make, made: Student) -> None:
    result = checks.run(f"training_memory/{part}", make(made))
    assert_refused(result, made)


@pytest.mark.parametrize(("stage", "published"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_model_states_are_those_of_the_paper(stage: int, published: float) -> None:
    """ZeRO, Fig. 1: 7.5 billion parameters on 64 GPUs."""
    model = states.Model(num_parameters=7_500_000_000, num_ranks=64, stage=stage)
    assert states.question(model).want == pytest.approx(published, abs=0.05)


@pytest.mark.parametrize(("recompute", "published_mib"), [("none", 2736), ("selective", 816), ("full", 48)])
def test_activations_are_those_of_the_published_table(recompute, published_mib: int) -> None:
    """Korthikanti et al. 2022, 175B: 2736 and 48 MiB; 34 of 114 parts are left without the scores."""
    layer = activations.Layer(seq=2048, batch=1, dim=12288, num_heads=96, recompute=recompute)
    assert activations.right_bytes(layer) == published_mib * 2**20


def test_every_listed_mistake_gives_a_wrong_answer_somewhere() -> None:
    """A cause that only ever gives the right number could never be named."""
    models = [
        states.Model(num_parameters=2**30, precision=precision, optimizer=optimizer, num_ranks=8, stage=stage)
        for precision in ("fp32", "bf16-mixed")
        for optimizer in ("sgd", "sgd-momentum", "adam", "adam-8bit")
        for stage in range(4)
    ]
    layers = [
        activations.Layer(seq=64, batch=2, dim=96, num_heads=3, attention=attention, recompute=recompute)
        for attention, recompute in (
            ("standard", "none"), ("standard", "selective"), ("standard", "full"), ("flash", "none"), ("flash", "full"),
        )
    ]  # fmt: skip
    for questions in (map(states.question, models), map(activations.question, layers)):
        is_wrong: dict[str, bool] = {}
        for question in questions:
            for cause, value in question.mistakes:
                is_wrong[cause] = is_wrong.get(cause, False) or value != pytest.approx(question.want)
        assert [cause for cause, wrong in is_wrong.items() if not wrong] == []


def test_the_best_plan_fits_and_nothing_cheaper_does() -> None:
    task = fitting.Task("llama-3-8b", 8, 8192, "H100")
    stage, kind, micro_batch = fitting.best_plan(task)
    assert (stage, kind, micro_batch) == (1, "full", 2)
    assert fitting.fits(task, (stage, kind, micro_batch))
    assert not fitting.fits(task, (stage, kind, micro_batch + 1))
    assert not any(fitting.fits(task, (s, k, 1)) for s in (0, 1, 2) for k in ("none", "selective"))
