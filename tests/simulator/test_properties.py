"""Random kernels: all programs at once must do what one program at a time does, and what Triton's interpreter does.

The kernels are made of a small grammar with everything that makes programs differ: branches, loops of different length,
early returns, functions that return on two paths, masked accesses, atomics. Arithmetic is in integers and in floats
whose values are exact or rounded element by element, so results must agree to the last bit.
"""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cme295lab.simulator import arithmetic, launch

PROGRAMS, BLOCK = 7, 8

HEAD = """
@triton.jit
def pick(a, b):
    if a < b:
        return a * 2 - b
    c = a - b
    if c % 3 == 1:
        return -c
    return c + 1


@triton.jit
def pair(a, u):
    if a % 2 == 0:
        return u + a, a
    return u * 3 % 500, a - 1


@triton.jit
def larger(a, i, b, j):
    if_second = (b > a) | ((b == a) & (j < i))
    return tl.where(if_second, b, a), tl.where(if_second, j, i)


@triton.jit
def total(a, b):
    return a + b


@triton.jit
def kernel(scalars_ptr, ints_ptr, floats_ptr, scratch_ptr, counters_ptr, x_ptr):
    pid = tl.program_id(0)
    lane = tl.arange(0, 8)
    a, b, c = pid, pid * pid % 5, tl.load(x_ptr + pid)
    u, v = lane + pid, tl.load(x_ptr + pid * 4 + lane)
    f, g = v.to(tl.float32) * 0.5, lane.to(tl.float32)
    ticket = tl.atomic_add(counters_ptr, pid + 1)
"""
TAIL = """
    tl.store(scalars_ptr + pid * 4, a)
    tl.store(scalars_ptr + pid * 4 + 1, b)
    tl.store(scalars_ptr + pid * 4 + 2, c)
    tl.store(scalars_ptr + pid * 4 + 3, ticket)
    tl.store(ints_ptr + pid * 16 + lane, u)
    tl.store(ints_ptr + pid * 16 + 8 + lane, v)
    tl.store(floats_ptr + pid * 16 + lane, f)
    tl.store(floats_ptr + pid * 16 + 8 + lane, g)
"""


class Writer:
    """Writes random statements."""

    def __init__(self, seed, *, everything=False):
        self.everything = everything
        self.random = random.Random(seed)
        self.lines = []
        self.loops = 0

    def pick(self, *choices):
        return self.random.choice(choices)

    def beyond_the_interpreter(self, *expressions):
        """Expressions that Triton's interpreter does not take, or takes for something else than its compiler."""
        return expressions if self.everything else ()

    def scalar(self, depth=2):
        if depth == 0 or self.random.random() < 0.3:
            return self.pick("a", "b", "c", "pid", str(self.random.randint(1, 9)))
        x, y = self.scalar(depth - 1), self.scalar(depth - 1)
        return self.pick(
            f"({x} + {y})", f"({x} - {y})", f"({x} * {y} % 97)", f"({x} ^ {y})", f"({x} & 31)", f"({x} // 3)",
            f"min({x}, {y})", f"tl.maximum({x}, {y})", f"tl.where({x} > {y}, {x}, {y})", f"pick(a + {x}, b)",
            f"tl.load(x_ptr + ({x} + pid & 63))", f"tl.max(u % 50 + ({x}), 0)", "tl.sum(v & 7)",
        )  # fmt: skip

    def condition(self):
        test = f"a {self.pick('<', '<=', '==', '!=', '>')} {self.scalar(1)}"
        return self.pick(test, f"{test} and c > 3", f"({test}) | (b == 2)", f"{self.scalar(1)} % 3 == 1 and pid >= 0")

    def block(self):
        s = self.scalar(1)
        return self.pick(
            f"(u + {s}) % 700", "(u * v) % 300", f"lane * ({s} & 15)", f"tl.where(u > v, u - 1, {s} + v)", "u >> 1",
            "tl.flip(v)", "tl.cumsum(u & 7, 0)", "tl.reshape(tl.trans(tl.reshape(v, [4, 2])), [8])",
            f"tl.load(x_ptr + ((u + lane) & 63), mask=u % 2 == {s} % 2, other=-7)",
            *self.beyond_the_interpreter(
                "tl.gather(u, (v + lane) & 7, 0)", "tl.cumsum(v & 7, 0, reverse=True)", "tl.histogram(v & 7, 8)",
                "tl.associative_scan(u & 7, 0, total)", f"[w + ({s} & 3) for w in (u, v)][1]",
                f"tl.where(0 <= lane < ({s} & 7), u, v)",
                f"tl.load(tl.make_block_ptr(x_ptr, (64,), (1,), (({s} & 63) - 4,), (8,), (0,)), boundary_check=(0,))",
            ),
            f"tl.load(x_ptr + lane, mask=lane < ({s} & 15), other=3)", "tl.maximum(u, v) - tl.min(u, 0)", "u",
        )  # fmt: skip

    def real(self):
        return self.pick(
            "f + g * 0.5", "f - u.to(tl.float32)", "tl.maximum(f, g)", "f * 0.25 + v", "tl.where(f > g, f, 1.5)",
            "g + tl.max(f, 0)", "tl.where(lane == 3, a * 1.0, g)", "tl.abs(f)", "-g", "f",
        )  # fmt: skip

    def statement(self, depth, indent):
        pad = "    " * indent
        kinds = ["scalar", "scalar", "block", "real", "store", "tuple", "ternary", "add", "atomic"]
        if depth:
            kinds += ["if", "if", "for", "while", "return"]
        kind = self.random.choice(kinds)
        if kind == "scalar":
            self.lines.append(f"{pad}{self.pick('a', 'b', 'c')} = ({self.scalar()}) % 1000 + 0 * pid")
        elif kind == "block":
            self.lines.append(f"{pad}{self.pick('u', 'v')} = ({self.block()}) % 1000")
        elif kind == "real":
            self.lines.append(f"{pad}{self.pick('f', 'g')} = {self.real()}")
        elif kind == "add":
            self.lines.append(f"{pad}{self.pick('a += 1', 'u += lane', 'f *= 0.5', 'b -= c % 7', 'g += a')}")
        elif kind == "tuple":
            self.lines.append(
                pad + self.pick("a, b = b, a", "u, v = v, u", "u, a = pair(a, u)", "(f, g), c = (g, f), b")
            )
        elif kind == "ternary":
            self.lines.append(f"{pad}a = tl.load(x_ptr + (b & 63)) if {self.scalar(1)} > b else c")
        elif kind == "store":
            mask = self.pick("", ", mask=u > v", f", mask=lane < ({self.scalar(1)} & 15)", ", mask=lane < a - b")
            self.lines.append(f"{pad}tl.store(scratch_ptr + pid * 64 + lane * 8 + (a & 7), v{mask})")
        elif kind == "atomic":
            operation = self.pick("add", "max", "xor")
            self.lines.append(f"{pad}tl.atomic_{operation}(counters_ptr + {self.pick(1, 2)} + lane % 2 * 2, u)")
            if operation != "add":  # operations of different kinds on one address do not commute
                self.lines[-1] = f"{pad}tl.atomic_add(counters_ptr + 1 + (u & 3), v, mask=u > {self.scalar(0)})"
        elif kind == "return":
            self.lines += [f"{pad}if ({self.scalar(1)}) % 11 == 4:", f"{pad}    tl.store(scratch_ptr + pid * 64, a)"]
            self.lines.append(f"{pad}    return")
        else:
            self.nested(kind, depth, indent)

    def nested(self, kind, depth, indent):
        pad = "    " * indent
        if kind == "if":
            self.lines.append(f"{pad}if {self.condition()}:")
            self.body(depth - 1, indent + 1)
            if self.random.random() < 0.6:
                self.lines.append(f"{pad}else:")
                self.body(depth - 1, indent + 1)
        elif kind == "for":
            self.loops += 1
            bounds = self.pick("0, a & 3", "0, 3", "b & 3, 4, (c & 1) + 1", "c & 3, -2, -1")
            self.lines.append(f"{pad}for i{self.loops} in range({bounds}):")
            self.lines.append(f"{pad}    a += i{self.loops}")
            self.body(depth - 1, indent + 1)
        else:
            self.loops += 1
            w = f"w{self.loops}"
            self.lines += [f"{pad}{w} = pid & 1", f"{pad}while {w} < (a & 3):", f"{pad}    {w} += 1"]
            self.body(depth - 1, indent + 1)

    def body(self, depth, indent):
        for _ in range(self.random.randint(1, 3)):
            self.statement(depth, indent)

    def kernel(self):
        for _ in range(self.random.randint(3, 7)):
            self.statement(3, 1)
        return HEAD + "\n".join(self.lines) + TAIL


def tensors():
    x = torch.from_numpy(np.random.default_rng(3).integers(-60, 60, 64, dtype=np.int32))
    return [
        torch.full((PROGRAMS * 4,), -1, dtype=torch.int32), torch.full((PROGRAMS * 16,), -1, dtype=torch.int32),
        torch.full((PROGRAMS * 16,), -1.0), torch.full((PROGRAMS * 64,), -1, dtype=torch.int32),
        torch.zeros(8, dtype=torch.int32), x,
    ]  # fmt: skip


def simulated(kernel, budget, **counting):
    arguments = tensors()
    outcome = launch.launch(
        kernel, (PROGRAMS,), tuple(arguments), {}, launch.Settings(element_budget=budget, **counting)
    )
    return arguments, outcome


def check_equal(got, want, source):
    for name, a, b in zip(("scalars", "ints", "floats", "scratch", "counters", "x"), got, want):
        assert torch.equal(a, b), f"{name} differs:\n{a}\n{b}\n{source}"


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_all_programs_at_once_do_what_one_at_a_time_does(module_from, seed):
    source = Writer(seed, everything=True).kernel()
    kernel = module_from(source).kernel
    alone, counted = simulated(kernel, 1, counting=True, recording=True)
    for budget, reuse_from in ((1 << 20, 1), (1 << 20, 1024), (64, 1)):
        with pytest.MonkeyPatch.context() as patch:  # results overwrite operands even if they are as small as here
            patch.setattr(arithmetic, "_WORTH_REUSING", reuse_from)
            together, outcome = simulated(kernel, budget, counting=True)
        check_equal(together, alone, source)
        for a, b in zip(outcome.storages, counted.storages):
            assert (a.loads, a.stores, a.read_elements, a.written_elements) == (
                b.loads, b.stores, b.read_elements, b.written_elements,
            ), source  # fmt: skip
            assert (a.read.count(), a.written.count()) == (b.read.count(), b.written.count()), source
        ours, theirs = outcome.counters, counted.counters
        assert (ours.other_flops, ours.dot_flops) == (theirs.other_flops, theirs.dot_flops), source
    check_equal(simulated(kernel, 1 << 20)[0], alone, source)


INTERPRETED = """
import importlib.util, sys
from pathlib import Path
import numpy as np
from tests.simulator.test_properties import PROGRAMS, Writer, check_equal, simulated, tensors

np.seterr(all="ignore")
for seed in range(int(sys.argv[2]), int(sys.argv[3])):
    source = Writer(seed).kernel()
    path = Path(sys.argv[1]) / f"interpreted_{seed}.py"
    path.write_text("import triton\\nimport triton.language as tl\\n" + source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert type(module.kernel).__name__ == "InterpretedFunction"
    theirs = tensors()
    module.kernel[(PROGRAMS,)](*theirs)
    check_equal(simulated(module.kernel, 1 << 20)[0], theirs, source)
print("compared", int(sys.argv[3]) - int(sys.argv[2]))
"""


@pytest.mark.needs_triton
def test_random_kernels_do_what_triton_s_interpreter_does(tmp_path, repository):
    """In a process of its own, because Triton reads TRITON_INTERPRET when it is imported."""
    script = tmp_path / "compare.py"
    script.write_text(INTERPRETED)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(repository)}
    command = [sys.executable, str(script), str(tmp_path), "1000", "1060"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-6000:]
    assert done.stdout.strip() == "compared 60"
