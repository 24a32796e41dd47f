"""Forms of expressions and assignments that Triton's own front end accepts."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.simulator.errors import KernelTypeError


def run(module_from, body, head="", programs=4, **constants):
    """The four numbers that each program stores in out[pid], as a list."""
    parameters = "".join(f", {n}: tl.constexpr" for n in constants)
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    source = f"{head}\n@triton.jit\ndef kernel(out_ptr{parameters}):\n    pid = tl.program_id(0)\n{lines}"
    source += "    tl.store(out_ptr + pid, result)\n"
    out = torch.zeros(programs, dtype=torch.float64)
    with simulator.enabled():
        module_from(source).kernel[(programs,)](out, **constants)
    return out.tolist()


@pytest.mark.parametrize(
    ("expression", "want"),
    [
        ("1 < pid < 3", lambda p: 1 < p < 3), ("0 < 1 < pid", lambda p: p > 1), ("2 < 1 < pid", lambda p: False),
        ("0 <= pid <= 2 != pid", lambda p: 0 <= p <= 2 != p), ("(z := pid + 1) * 2 + z", lambda p: 3 * (p + 1)),
        ("pid if pid > 1 else -1", lambda p: p if p > 1 else -1), ("pid and True", lambda p: p),
        ("True and pid + 4", lambda p: p + 4), ("False or 0", lambda p: 0), ("pid > 5 or pid == 2", lambda p: p == 2),
        ("(pid, 7, 9)[1:][0]", lambda p: 7), ("((pid, 7) + (9,))[2]", lambda p: 9), ("((pid,) * 3)[2]", lambda p: p),
        ("[v * v for v in (pid, 3, 5)][0]", lambda p: p * p), ("len([v for v in (1, 2, 3) if v > 1])", lambda p: 2),
        ("[a + b for a, b in ((1, 2), (pid, 4))][1]", lambda p: p + 4), ("not pid", lambda p: p == 0),
        ("(pid == None) if pid is None else 3", lambda p: 3), ("tl.constexpr(4).value", lambda p: 4),
        ("len(f'{3}{tl.float32}')", lambda p: 5), ("2 ** 5 // 3", lambda p: 10), ("hasattr(pid, 'dtype')", lambda p: 1),
        ("hasattr(pid, 'nothing')", lambda p: 0), ("isinstance(pid, tl.tensor)", lambda p: 1),
        ("isinstance(3, tl.constexpr)", lambda p: 1), ("isinstance(pid, tl.constexpr)", lambda p: 0),
        ("isinstance((1, 2), tl.tuple)", lambda p: 1), ("getattr(pid, 'dtype').primitive_bitwidth", lambda p: 32),
        ("pid.dtype.is_int32() + pid.dtype.is_fp8()", lambda p: 1), ("tl.int16.get_int_max_value()", lambda p: 32767),
        ("(pid + tl.arange(0, 4)).type.get_block_shapes()[0]", lambda p: 4),
        ("tl.arange(0, 4).type.is_block() + pid.type.is_block()", lambda p: 1),
        ("out_ptr.dtype.element_ty.primitive_bitwidth", lambda p: 64), ("out_ptr.type.is_ptr()", lambda p: 1),
        ("(out_ptr + tl.arange(0, 2)).type.element_ty.element_ty.is_fp64()", lambda p: 1),
        ("tl.float16.fp_mantissa_width", lambda p: 10), ("(1, (2, pid))[1][1]", lambda p: p),
    ],
)  # fmt: skip
def test_expressions_mean_what_they_do_in_python(module_from, expression, want):
    assert run(module_from, f"result = {expression}") == [float(want(p)) for p in range(4)]


def test_a_chained_comparison_evaluates_the_middle_once(module_from):
    body = "x = 0 < tl.atomic_add(out_ptr + pid, 5) < 6\nresult = tl.load(out_ptr + pid) * 10 + x"
    assert run(module_from, body) == [50.0] * 4


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("x: tl.constexpr = 4\nresult = tl.sum(tl.arange(0, x))", 6),
        ("x: tl.constexpr\nx = 4\nresult = tl.sum(tl.arange(0, x))", 6),
        ("a = b = 3\nresult = a + b", 6), ("a, (b, c) = 1, (2, 3)\nresult = a * 100 + b * 10 + c", 123),
        ("x = (1, 2)\nx += (3,)\nresult = x[2]", 3), ("result = 0\nfor i in tl.static_range(3):\n    result += i", 3),
        ("result = 0\nwhile result < 5 and pid >= 0:\n    result += 2", 6), ("pass\nresult = 1", 1),
        ("result = 0\nfor i in tl.range(0, 6, 2, num_stages=2):\n    result += i", 6),
        ("result = 0\nwhile tl.condition(result < 3, disable_licm=True):\n    result += 1", 3),
    ],
)  # fmt: skip
def test_assignments_and_loops(module_from, body, want):
    assert run(module_from, body) == [float(want)] * 4


def test_a_number_in_a_variable_takes_part_in_promotion(evaluate):
    """As in Triton: a literal does not widen fp16, a variable that holds it is an fp32 scalar."""
    x = torch.ones(4, dtype=torch.float16)
    assert evaluate("x * 0.5", x=x).dtype == torch.float16
    assert evaluate("x * half", x=x, before="half = 0.5").dtype == torch.float32
    assert evaluate("x * half", x=x, before="half: tl.constexpr = 0.5").dtype == torch.float16
    assert evaluate("x * pair[0]", x=x, before="pair = (0.5, 1)").dtype == torch.float32
    assert evaluate("x.to(tl.int8) + n", x=x, before="n = 1").dtype == torch.int32


HEAD = """
from typing import NamedTuple

import numpy as np


class Tile(NamedTuple):
    first: tl.tensor
    size: tl.constexpr


class notes:
    SCALE = tl.constexpr(3)


@triton.constexpr_function
def larger(a, b):
    return max(a, b)


@triton.constexpr_function
def wider(dtype):
    return tl.float64 if dtype == tl.float32 else tl.float32


@triton.jit
def moved(tile, by, f: tl.constexpr, *rest):
    return Tile(f(tile.first, by), tile.size)


@triton.jit
def plus(a, b):
    return a + b


@triton.jit
def both(*values):
    return values[0] + values[1], len(values)


FUNCTION = tl.constexpr(plus)
"""


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("t = moved(Tile(pid, 4), 10, plus)\nresult = t.first + t.size", lambda p: p + 14),
        ("t = Tile(pid, 4)\nfor i in range(pid):\n    t = moved(t, 1, plus)\n"
         "result = t.first + tl.sum(tl.arange(0, t.size))",
         lambda p: 2 * p + 6),
        ("n: tl.constexpr = larger(2, 8)\nresult = tl.sum(tl.zeros((n,), tl.int32) + 1)", lambda p: 8),
        ("result = tl.full((), 0.1, wider(tl.float32))", lambda p: 0.1),
        ("x, n = both(*(pid, 2))\nresult = x + n", lambda p: p + 4),
        ("result = FUNCTION(pid, 1)", lambda p: p + 1),
    ],
)  # fmt: skip
def test_named_tuples_functions_as_arguments_and_compile_time_functions(module_from, body, want):
    assert run(module_from, body, head=HEAD) == [want(p) for p in range(4)]


def test_a_named_tuple_as_an_argument_of_the_launch(module_from):
    source = """
from typing import NamedTuple

class Matrix(NamedTuple):
    data: tl.tensor
    stride: tl.tensor

@triton.jit
def kernel(x, out_ptr):
    pid = tl.program_id(0)
    tl.store(out_ptr + pid, tl.load(x.data + pid * x.stride))
"""
    module = module_from(source)
    x, out = torch.randn(4, 3), torch.zeros(4)
    with simulator.enabled():
        module.kernel[(4,)](module.Matrix(x, 3), out)
    assert torch.equal(out, x[:, 0])


AGGREGATE = """
from triton.language.core import _aggregate


@_aggregate
class Range:
    first: tl.tensor
    size: tl.constexpr

    @triton.constexpr_function
    def __init__(self, first, size):
        self.first = first
        self.size = tl.constexpr(size)

    @triton.jit
    def moved(self, by):
        return Range(self.first + by, self.size)

    @triton.jit
    def lanes(self):
        return self.first + tl.arange(0, self.size)
"""


def test_aggregates_have_fields_and_methods_and_survive_branches(module_from):
    body = """r = Range(pid, 4)
for i in range(pid):
    if i % 2 == 0:
        r = r.moved(10)
result = tl.sum(r.lanes()) + r.size"""
    assert run(module_from, body, head=AGGREGATE) == [float(4 * (p + 10 * ((p + 1) // 2)) + 6 + 4) for p in range(4)]


def test_wrong_uses_of_aggregates_are_named(module_from):
    with pytest.raises(KernelTypeError, match="Range has no field or method 'last'"):
        run(module_from, "result = Range(pid, 4).last", head=AGGREGATE)
    with pytest.raises(KernelTypeError, match="has no field 'last'"):
        run(module_from, "result = Range(pid, 4).size", head=AGGREGATE.replace("self.size = tl", "self.last = tl"))
