"""Part 3 of the FlashAttention exercise: the check accepts right kernels and names the mistake in wrong ones."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.grading import checks
from cme295lab.grading.flash_attention import kernel
from cme295lab.grading.result import Kind
from tests.grading.students import Student, student, written

LOAD_K = "        k = tl.load(k_ptr + column_offsets, mask=column_exists[:, None], other=0.0)\n"
LOAD_V = "        v = tl.load(v_ptr + column_offsets, mask=column_exists[:, None], other=0.0)\n"
ADD_TO_ACC = "acc = acc * rescale[:, None] + tl.dot(p.to(v.dtype), v)"
ADD_TO_L = "l = l * rescale + tl.sum(p, 1)"
NEW_MAX = "m_new = tl.maximum(m, tl.max(s, 1))"
STORE_O = "    tl.store(o_ptr + row_offsets, acc / l[:, None], mask=row_exists[:, None])\n"
CAUSAL_MASK = "        if CAUSAL:\n            visible = visible & (columns[None, :] <= rows[:, None])\n"
LSE = "m + tl.log(l)"
LOG2_E = "1.4426950408889634"

RIGHT = [
    student("the solution"),
    student("exp2", "* scale\n", f"* (scale * {LOG2_E})\n", "tl.exp(", "tl.exp2(", LSE, f"(m + tl.log2(l)) / {LOG2_E}"),
    student(
        "K transposed when loaded",
        LOAD_K + LOAD_V,
        LOAD_V + LOAD_K + "        k = tl.trans(k)\n",
        "tl.trans(k)) * scale",
        "k) * scale",
    ),
    student("tl.dot adds to the accumulator", ADD_TO_ACC, "acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None])"),
    student(
        "a large negative number as the mask",
        's = tl.where(visible, s, -float("inf"))',
        "s = tl.where(visible, s, -1.0e30)",
    ),
    student(
        "the accumulator is kept divided by l",
        ADD_TO_L,
        "l_new = l * rescale + tl.sum(p, 1)",
        ADD_TO_ACC,
        "acc = acc * (l / l_new * rescale)[:, None] + tl.dot(p.to(v.dtype), v) / l_new[:, None]\n        l = l_new",
        "acc / l[:, None]",
        "acc",
    ),
    student(
        "keys from last to first",
        "columns = start_n + tl",
        "columns = (tl.cdiv(last_key, BLOCK_N) - 1) * BLOCK_N - start_n + tl",
        'm = tl.full([BLOCK_M], -float("inf"), tl.float32)',
        "m = tl.full([BLOCK_M], -1.0e30, tl.float32)",
    ),
    student(
        "the scale goes to q",
        "tl.dot(q, tl.trans(k)) * scale",
        "tl.dot((q * scale).to(k.dtype), tl.trans(k)).to(tl.float32)",
    ),
    student(
        "a helper kernel",
        "@triton.jit\ndef flash",
        "@triton.jit\ndef weigh(s, m):\n    return tl.exp(s - m[:, None])\n\n\n@triton.jit\ndef flash",
        "tl.exp(s - m_new[:, None])",
        "weigh(s, m_new)",
    ),
]

WRONG_VALUES = [
    student(
        "no scale", "tl.dot(q, tl.trans(k)) * scale", "tl.dot(q, tl.trans(k))", says="scale is missing", at_most=0.0
    ),
    student(
        "accumulator not rescaled", "acc * rescale[:, None] +", "acc +", says="accumulator is not rescaled", at_most=0.1
    ),
    student("l not rescaled", "l * rescale +", "l +", says="running sum l is not rescaled", at_most=0.0),
    student(
        "neither rescaled",
        "acc * rescale[:, None] +",
        "acc +",
        "l * rescale +",
        "l +",
        says="neither the accumulator nor",
        at_most=0.0,
    ),
    student("rescaled upside down", "tl.exp(m - m_new)", "tl.exp(m_new - m)", says="exp(m_old - m_new)", at_most=0.1),
    student(
        "causal mask one too strict",
        "columns[None, :] <= rows",
        "columns[None, :] < rows",
        says="causal boundary is one too strict",
        at_most=0.75,
    ),
    student(
        "causal mask one too wide",
        "<= rows[:, None]",
        "<= rows[:, None] + 1",
        says="causal boundary is one too wide",
        at_most=0.75,
    ),
    student("no causal mask", CAUSAL_MASK, "", says="causal mask is missing inside the tile", at_most=0.75),
    student(
        "no causal mask, no causal loop",
        CAUSAL_MASK,
        "",
        "tl.minimum(start_m + BLOCK_M, seq_len) if CAUSAL else seq_len",
        "seq_len",
        says="there is no causal mask",
        at_most=0.75,
    ),
    student(
        "the loop ends before the diagonal",
        "tl.minimum(start_m + BLOCK_M, seq_len)",
        "start_m",
        says="loop over keys ends before the tile",
        at_most=0.75,
    ),
    student("maximum not updated", "        m = m_new\n", "", says="maximum m is not updated", at_most=0.1),
    student("not divided by l", "acc / l[:, None]", "acc", says="not divided by the running sum", at_most=0.1),
    student(
        "columns past the end count",
        "visible = column_exists[None, :]",
        "visible = columns[None, :] >= 0",
        says=("does not divide", "keys past the end"),
        at_most=0.9,
    ),
    student(
        "whole blocks only",
        "range(0, last_key, BLOCK_N)",
        "range(0, last_key // BLOCK_N * BLOCK_N, BLOCK_N)",
        says=("does not divide", "left out"),
        at_most=0.9,
    ),
    student("no maximum", NEW_MAX, "m_new = tl.zeros([BLOCK_M], tl.float32)", says="running maximum is not subtracted"),
    student(
        "the maximum of the first block only",
        NEW_MAX,
        "m_new = tl.where(start_n == 0, tl.max(s, 1), m)",
        says="running maximum is not subtracted",
    ),
    student("exp2 without log2(e)", "tl.exp(", "tl.exp2(", says="log2(e)", at_most=0.1),
    student("log-sum-exp with log2", LSE, "m + tl.log2(l)", says="natural logarithm"),
    student("log-sum-exp without m", LSE, "tl.log(l)", says="maximum m is missing"),
    student("l instead of the log-sum-exp", LSE, "l", says="l, the sum itself"),
    student("zeros", "acc / l[:, None]", "acc * 0.0", says="every value is zero", at_most=0.1),
    student("nothing stored", STORE_O, "", says="nothing was written to o", at_most=0.1),
    student("the input comes back", "acc / l[:, None]", "q", says="input q, untouched", at_most=0.1),
    student(
        "the first head for all heads",
        "head_start + columns[:, None]",
        "columns[:, None]",
        says="only the first head is right",
        at_most=0.1,
    ),
    student(
        "the input is overwritten",
        STORE_O,
        STORE_O + "    tl.store(q_ptr + row_offsets, q * 2, mask=row_exists[:, None])\n",
        says="changes its input q",
        at_most=0.0,
    ),
]

HALF = "(acc * rescale[:, None] + tl.dot(p.to(v.dtype), v))"
NOT_EXACT = [
    student(
        "accumulator in float16",
        "HEAD_DIM], tl.float32)",
        "HEAD_DIM], tl.float16)",
        ADD_TO_ACC,
        f"acc = {HALF}.to(tl.float16)",
        says="float16",
        at_most=0.1,
    ),
    student(
        "accumulator in the input's dtype",
        "HEAD_DIM], tl.float32)",
        "HEAD_DIM], q.dtype)",
        ADD_TO_ACC,
        f"acc = {HALF}.to(q.dtype)",
        says=("accumulator of the output", "float16"),
    ),
    student(
        "l in the input's dtype",
        ADD_TO_L,
        "l = (l * rescale + tl.sum(p, 1)).to(q.dtype).to(tl.float32)",
        says=("running sum l", "float16"),
    ),
    student(
        "tl.dot in float16",
        "tl.dot(p.to(v.dtype), v)",
        "tl.dot(p.to(tl.float16), v.to(tl.float16), out_dtype=tl.float16)",
        says="float16",
        at_most=0.1,
    ),
]

TOO_MUCH = [
    student(
        "untiled: 1,024 keys at once",
        "    last_key =",
        "    BLOCK_N: tl.constexpr = 1024\n    last_key =",
        kind=Kind.TOO_MUCH_MEMORY,
        says=("all N = 1024 scores", "held at once"),
        at_most=0.85,
    ),
    student(
        "K loaded twice",
        "        s = tl.dot(q",
        LOAD_K + "        s = tl.dot(q",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says=("k is read", "2 times", "more often than needed"),
        at_most=0.85,
    ),
    student(
        "q loaded in the loop",
        "        s = tl.dot(q",
        "        q = tl.load(q_ptr + row_offsets, mask=row_exists[:, None], other=0.0)\n        s = tl.dot(q",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says="load it once, before the loop",
    ),
    student(
        "o stored in the loop",
        "        m = m_new\n",
        "        m = m_new\n    " + STORE_O,
        kind=Kind.TOO_MUCH_TRAFFIC,
        says="store it after the loop",
    ),
    student(
        "the loop passes the diagonal",
        "tl.minimum(start_m + BLOCK_M, seq_len) if CAUSAL else seq_len",
        "seq_len",
        kind=Kind.TOO_MUCH_TRAFFIC,
        says="does not stop at the diagonal",
    ),
]

STOPPED = [
    student(
        "no mask at loads",
        ", mask=column_exists[:, None], other=0.0",
        "",
        kind=Kind.CRASHED,
        says=("does not divide", "needs a mask=", "k = tl.load(k_ptr + column_offsets)"),
        at_most=0.85,
    ),
    student(
        "no mask at the store",
        "acc / l[:, None], mask=row_exists[:, None]",
        "acc / l[:, None]",
        kind=Kind.CRASHED,
        says=("does not divide", "needs a mask=", "tl.store(o_ptr"),
        at_most=0.85,
    ),
    student(
        "a misspelt name",
        NEW_MAX,
        "m_new = tl.maximum(m, tl.max(scores, 1))",
        kind=Kind.CRASHED,
        says=("'scores' is not defined", "tl.max(scores, 1)"),
        at_most=0.0,
    ),
    student("mixed dtypes", "p.to(v.dtype)", "p", kind=Kind.CRASHED, says=("same type", "tl.dot(p, v)")),
    student(
        "a missing axis",
        "acc * rescale[:, None]",
        "acc * rescale",
        kind=Kind.CRASHED,
        says="acc * rescale +",
        at_most=0.0,
    ),
    student(
        "renamed pointers",
        "k_ptr",
        "keys",
        kind=Kind.WRONG_SHAPE,
        says="must begin with q_ptr, k_ptr",
        at_most=0.0,
    ),
    student(
        "not attempted",
        "        m = m_new\n",
        "        raise NotImplementedError()\n",
        kind=Kind.NOT_ATTEMPTED,
        says="raise NotImplementedError",
        at_most=0.0,
    ),
    student(
        "an endless loop",
        STORE_O,
        "    while seq_len > 0:\n        l = l * 1.0\n" + STORE_O,
        kind=Kind.TIMED_OUT,
        says=("stopped after", "does it end?"),
        at_most=0.0,
    ),
]


def kernel_of(made: Student):
    return written("flash_attention", "flash_forward_kernel", *made.changes)["flash_forward_kernel"]


@pytest.mark.parametrize("made", RIGHT, ids=str)
def test_kernel_check_accepts_right_kernels(made: Student) -> None:
    result = checks.run("flash_attention/3", kernel_of(made))
    assert result.passed, result.message
    assert result.score == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 295, "heads": 3, "dim": 16, "dtype": torch.float16, "ragged": 77},
        {"seed": 296, "heads": 1, "dim": 64, "dtype": torch.bfloat16},
        {"seed": 297, "heads": 5, "dim": 128, "ragged": 1},
    ],
    ids=str,
)
def test_kernel_check_accepts_the_solution_on_other_inputs(options) -> None:
    result = checks.run("flash_attention/3", kernel_of(RIGHT[0]), **options)
    assert result.passed, result.message


@pytest.mark.parametrize(
    ("made", "kind"),
    [
        *[(made, Kind.WRONG_VALUE) for made in WRONG_VALUES],
        *[(made, Kind.NOT_EXACT) for made in NOT_EXACT],
        *[(made, made.kind) for made in (*TOO_MUCH, *STOPPED)],
    ],
    ids=str,
)
def test_kernel_check_names_the_mistake(made: Student, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is Kind.TIMED_OUT:
        monkeypatch.setattr(kernel, "TIME_LIMIT_S", 0.5)
    result = checks.run("flash_attention/3", kernel_of(made))
    assert not result.passed
    assert result.kind is kind, result.message
    assert result.score <= made.at_most, result.score
    for words in made.says:
        assert words in result.message
    assert 'checks.hint("flash_attention/3")' in result.message


def test_kernel_check_refuses_what_is_not_a_kernel() -> None:
    result = checks.run("flash_attention/3", lambda q: q)
    assert not result.passed
    assert "@triton.jit" in result.message


def test_kernel_check_leaves_the_simulator_switched_off_after_a_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "TIME_LIMIT_S", 0.3)
    endless = next(made for made in STOPPED if made.kind is Kind.TIMED_OUT)
    assert checks.run("flash_attention/3", kernel_of(endless)).kind is Kind.TIMED_OUT
    assert not simulator.is_enabled()
