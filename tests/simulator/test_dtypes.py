"""The type of `a op b`, against the rules of the installed Triton."""

import itertools
import operator

import pytest
import torch
import triton
import triton.language as tl

from cme295lab.simulator import KernelTypeError, dtypes

NUMBERS = [True, 0, 3, -3, 2**31, 2**32, -(2**31) - 1, 2**63, 0.0, 0.5, -1e30, 1e-40, 1e300, float("inf"), float("nan")]


# Our rules are those of Triton 3.9. Before it, dividing an fp8 value gave fp8 or fp16 where it now gives fp32.
FP8_DIVISION_CHANGED = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def as_in_newer_triton(division, *kinds):
    return division and FP8_DIVISION_CHANGED and any(k.is_fp8() for k in kinds)


def theirs(dtype):
    names = {"fp8e5": tl.float8e5, "fp8e4nv": tl.float8e4nv}
    return names.get(dtype.name) or tl.dtype(dtype.name)


@pytest.fixture
def semantic():
    """Triton's rules; they need no builder as long as nothing is built."""
    from triton.language.semantic import TritonSemantic

    return TritonSemantic.__new__(TritonSemantic)


def their_type_of(semantic, number):
    if hasattr(semantic, "to_tensor_type"):
        return semantic.to_tensor_type(number)
    if isinstance(number, bool):
        return tl.int1
    asked = []  # before Triton 3.7 the type is only found on the way to making a constant
    semantic.scalar_constant = lambda value, dtype: asked.append(dtype)
    semantic.to_tensor(number)
    return asked[0]


def computed(rule, *args):
    """The name of the resulting type, or the fact that the rule refuses."""
    try:
        return str(rule(*args))
    except (TypeError, KernelTypeError):
        return "refused"


@pytest.mark.needs_triton
@pytest.mark.parametrize("division", [False, True])
def test_two_blocks_combine_as_in_triton(semantic, division):
    for a, b in itertools.product(dtypes.ALL, repeat=2):
        if as_in_newer_triton(division, a, b):
            continue
        want = computed(semantic.computation_type_impl, theirs(a), False, theirs(b), False, division)
        assert computed(lambda x, y: dtypes.promote(x, y, division=division), a, b) == want, (a, b)


@pytest.mark.needs_triton
@pytest.mark.parametrize("division", [False, True])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_block_and_a_number_combine_as_in_triton(semantic, number, division):
    kind = their_type_of(semantic, number)
    assert str(dtypes.of_number(number)) == str(kind)
    for a in dtypes.ALL:
        if as_in_newer_triton(division, a):
            continue
        own = dtypes.of_number(number)
        want = computed(semantic.computation_type_impl, theirs(a), False, kind, True, division)
        assert computed(lambda x, y: dtypes.promote(x, y, b_is_number=True, division=division), a, own) == want, a
        want = computed(semantic.computation_type_impl, kind, True, theirs(a), False, division)
        assert computed(lambda x, y: dtypes.promote(x, y, a_is_number=True, division=division), own, a) == want, a


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_an_error(number):
    with pytest.raises(KernelTypeError, match="does not fit in 64 bits"):
        dtypes.of_number(number)


@pytest.mark.needs_triton
def test_predicates_agree_with_triton():
    names = ["is_floating", "is_int", "is_int_signed", "is_int_unsigned", "is_fp8", "is_fp16", "is_bf16", "is_fp32",
             "is_fp64", "is_int1", "is_bool", "is_ptr", "is_block"]  # fmt: skip
    for dtype in dtypes.ALL:
        for name in names:
            if hasattr(theirs(dtype), name):
                assert getattr(dtype, name)() == getattr(theirs(dtype), name)(), (dtype, name)
        assert dtype.primitive_bitwidth == theirs(dtype).primitive_bitwidth
        assert dtype.int_bitwidth == theirs(dtype).primitive_bitwidth


@pytest.mark.needs_triton
@pytest.mark.parametrize("op", ["+", "-", "*", "/", "//", "%", "&", "<<", "<", "tl.maximum", "tl.where"])
def test_results_have_the_promoted_type(semantic, evaluate, op):
    """The whole way from source to result, for pairs of types as a kernel writes them."""
    kinds = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int32, torch.int64]
    for a, b in itertools.product(kinds, repeat=2):
        x, y = torch.ones(4).to(a), torch.ones(4).to(b)
        call = {"tl.maximum": "tl.maximum(x, y)", "tl.where": "tl.where(x > 0, x, y)"}.get(op, f"x {op} y")
        want = computed(
            semantic.computation_type_impl,
            *(v for t in (a, b) for v in (theirs(dtypes.BY_TORCH[t]), False)), op in ("/", "//", "%"),
        )  # fmt: skip
        if op == "/" and want != "refused" and not (a.is_floating_point or b.is_floating_point):
            want = "fp32"
        if op in ("//", "&", "<<") and (a.is_floating_point or b.is_floating_point):
            want = "refused"
        if op == "<" and want != "refused":
            want = "int1"

        def name(x=x, y=y, call=call):
            return dtypes.BY_TORCH[evaluate(call, x=x, y=y).dtype].name

        try:
            got = name()
        except KernelTypeError:
            got = "refused"
        assert got == want, (a, b)


def test_type_methods_and_constants_in_a_kernel(evaluate):
    x = torch.zeros(4, dtype=torch.float16)
    flags = "tl.full([1], {}, tl.int1)"
    for condition in (
        "x.dtype == tl.float16", "x_ptr.dtype.element_ty == tl.float16", "x_ptr.type.element_ty.is_fp16()",
        "x.dtype.is_floating()", "x.dtype.primitive_bitwidth == 16", "x.type.scalar == tl.float16", "x.shape[0] == 4",
        "x.numel == 4", "len(x.shape) == 1", "x.dtype != tl.bfloat16", "x_ptr.dtype.is_ptr()",
        "not x.dtype.is_int()", "(x > 0).dtype == tl.int1", "x.dtype in (tl.float16, tl.bfloat16)",
    ):  # fmt: skip
        assert evaluate(flags.format(condition), x=x).item(), condition


def test_operator_table_is_complete():
    """Python's operators on two numbers stay Python's."""
    from cme295lab.simulator.arithmetic import binary

    for symbol, function in {"+": operator.add, "//": operator.floordiv, "%": operator.mod, "**": operator.pow}.items():
        assert binary(None, symbol, -7, 2) == function(-7, 2)
