"""Result types of operators and functions, for all types and many literals, against Triton's own front end."""

import itertools

import numpy as np
import pytest
import torch
import triton

from cme295lab.simulator import KernelTypeError, arithmetic, dtypes
from cme295lab.simulator.arithmetic import binary
from cme295lab.simulator.dtypes import DType
from cme295lab.simulator.language import NATIVE
from cme295lab.simulator.machine import Machine
from cme295lab.simulator.values import Block

pytestmark = pytest.mark.needs_triton

OPERATORS = {
    "+": "add", "-": "sub", "*": "mul", "/": "truediv", "//": "floordiv", "%": "mod", "&": "and", "|": "or",
    "^": "xor", "<<": "lshift", ">>": "rshift", "<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne",
}  # fmt: skip
LITERALS = [
    True, False, 0, 1, 3, -3, 127, -129, 255, 256, 2**15, -(2**15) - 1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32,
    2**63 - 1, 2**63, -(2**63), 2**64 - 1, 0.0, 0.5, -2.5, 1e-40, 1e300, -1e30, float("inf"), float("nan"),
]  # fmt: skip
PAIRS = list(itertools.product(dtypes.ALL, repeat=2))


@pytest.fixture(scope="module")
def theirs():
    from tests.simulator.triton_typing import TritonTyping

    return TritonTyping()


@pytest.fixture
def machine():
    return Machine((1, 1, 1), counting=False, recording=False, watch=frozenset())


def operand(m, x):
    """A block of ones of a type; a number as it is."""
    if not isinstance(x, DType):
        return x
    ones = torch.ones(1, 32, 32).to(x.torch) if x.is_float else np.ones((1, 32, 32), x.numpy)
    return Block([ones], x, (32, 32), m.active)


def ours(m, function, *operands):
    try:
        found = function(*(operand(m, x) for x in operands))
    except KernelTypeError:
        return "refused"
    return found.dtype.name


TAKES_MORE = {  # the simulator gives these a meaning that Triton refuses
    *(("__not__", d) for d in dtypes.ALL if d.kind == dtypes.INTEGER),
    *(("cast", a, b) for a, b in PAIRS if a.is_fp8() != b.is_fp8() and a.is_float != b.is_float),
    ("sqrt_rn", dtypes.float64),
}


BEFORE_3_9 = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def changed_in_3_9(asked):
    """Whether earlier releases answer in another way; our rules are those of 3.9.

    8-bit floats did not combine with most literals, and were divided as they are; extremes and comparisons made a
    tensor of a literal; scans and max with indices widened bf16, and cumprod left small integers alone.
    """
    what, *operands = asked
    if what in OPERATORS or what in ("where", "maximum", "minimum"):
        types = [x for x in operands if isinstance(x, DType)]
        literal = len(types) < len(operands)
        if literal and what in ("maximum", "minimum", "<", "<=", ">", ">=", "==", "!="):
            return True
        return any(x.is_fp8() for x in types) and (literal or what in "/%")
    (dtype,) = operands[-1:]
    if what.startswith(("tl.cumsum", "tl.cumprod", "tl.max(x, 1, r")) and dtype.is_bf16():
        return True
    return what.startswith("tl.cumprod") and not dtype.is_float and dtype.primitive_bitwidth < 32


def check(compared):
    """All differences at once: (what was asked, Triton's answer, ours)."""
    compared = (c for c in compared if not (BEFORE_3_9 and changed_in_3_9(c[0])))
    different = [
        f"{' '.join(map(str, asked))}: {want}, ours {got}"
        for asked, want, got in compared
        if want != got and asked not in TAKES_MORE
    ]
    assert not different, "; ".join(different[:20])


@pytest.mark.parametrize("op", OPERATORS)
def test_operators_on_all_pairs_of_types(theirs, machine, op):
    check(
        (
            (op, a, b),
            theirs.of_operator(OPERATORS[op], a, b),
            ours(machine, lambda x, y: binary(machine, op, x, y), a, b),
        )
        for a, b in PAIRS
    )


@pytest.mark.parametrize("op", OPERATORS)
def test_operators_on_all_types_and_literals(theirs, machine, op):
    check(
        (
            (op, x, y),
            theirs.of_operator(OPERATORS[op], x, y),
            ours(machine, lambda a, b: binary(machine, op, a, b), x, y),
        )
        for d, number in itertools.product(dtypes.ALL, LITERALS)
        for x, y in ((d, number), (number, d))
    )


@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extremes_of_all_pairs(theirs, machine, name):
    import triton.language as tl

    def native(x, y):
        return NATIVE[name](machine, x, y)

    operands = [*PAIRS, *itertools.product(dtypes.ALL, LITERALS), *itertools.product(LITERALS, dtypes.ALL)]
    check(((name, x, y), theirs.of(getattr(tl, name), x, y), ours(machine, native, x, y)) for x, y in operands)


def test_where_of_all_pairs(theirs, machine):
    import triton.language as tl

    def native(c, x, y):
        return NATIVE["where"](machine, c, x, y)

    operands = [*PAIRS, *itertools.product(dtypes.ALL, LITERALS), *itertools.product(LITERALS, dtypes.ALL)]
    check(
        (("where", x, y), theirs.of(tl.where, dtypes.int1, x, y), ours(machine, native, dtypes.int1, x, y))
        for x, y in operands
    )


def test_dot_of_all_pairs(theirs, machine):
    import triton.language as tl

    check(
        (("dot", a, b), theirs.of(tl.dot, a, b), ours(machine, lambda x, y: NATIVE["dot"](machine, x, y), a, b))
        for a, b in PAIRS
    )


def test_conversions_between_all_types(theirs, machine):
    import triton.language as tl

    def ours_to(b):
        return lambda x: NATIVE["cast"](machine, x, b)

    check(
        (("cast", a, b), theirs.of(tl.cast, a, dtype=tl.dtype(b.name)), ours(machine, ours_to(b), a)) for a, b in PAIRS
    )


@pytest.mark.parametrize("sign", ["__neg__", "__invert__", "__not__"])
def test_signs_of_all_types(theirs, machine, sign):
    import triton.language as tl

    function = {
        "__neg__": lambda x: arithmetic.negative(machine, x),
        "__invert__": lambda x: arithmetic.invert(machine, x, logical=False),
        "__not__": lambda x: arithmetic.invert(machine, x, logical=True),
    }[sign]
    check(((sign, d), theirs.of(getattr(tl.tensor, sign), d), ours(machine, function, d)) for d in dtypes.ALL)


@pytest.mark.parametrize(
    "name", ["abs", "exp", "exp2", "log", "log2", "sin", "cos", "sqrt", "sqrt_rn", "rsqrt", "erf", "floor", "ceil"]
)
def test_mathematics_of_all_types(theirs, machine, name):
    import triton.language as tl

    check(
        ((name, d), theirs.of(getattr(tl, name), d), ours(machine, lambda x: NATIVE[name](machine, x), d))
        for d in dtypes.ALL
    )


@pytest.mark.parametrize(
    "expression",
    [
        "tl.sum(x, 1)",
        "tl.sum(x)",
        "tl.sum(x, 0, dtype=tl.float32)",
        "tl.max(x, 1)",
        "tl.min(x, 1)",
        "tl.argmax(x, 1)",
        "tl.argmin(x, 1)",
        "tl.max(x, 1, return_indices=True)[0]",
        "tl.min(x, 1, return_indices=True)[1]",
        "tl.xor_sum(x, 1)",
        "tl.cumsum(x, 1)",
        "tl.cumprod(x, 1)",
        "tl.sort(x)",
        "tl.topk(x, 4)",
        "tl.flip(x, 0)",
        "tl.softmax(x)",
        "tl.sigmoid(x)",
        "tl.cdiv(x, 3)",
    ],
)
def test_library_functions_of_all_types(theirs, evaluate, module_from, expression):
    def mine(d):
        x = torch.ones(32, 32).to(d.torch) if d.is_float else torch.from_numpy(np.ones((32, 32), d.numpy))
        try:
            return dtypes.BY_TORCH[evaluate(expression, x=x).dtype].name
        except KernelTypeError:
            return "refused"

    check(((expression, d), theirs.of_text(module_from, expression, d), mine(d)) for d in dtypes.ALL)
