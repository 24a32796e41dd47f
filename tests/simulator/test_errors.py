"""What is refused, and what the message says: feature or mistake, kernel, line, and what to do."""

import pytest
import torch
import triton
import triton.language as tl

from cme295lab import simulator
from cme295lab.simulator import KernelTypeError, SimulatorError, UnsupportedFeatureError, interpreter
from cme295lab.simulator.source import kernel_source

plain_global = [1, 2, 3]


HELPER = """import types

notes = types.ModuleType("notes")


def helper(v):
    return v


notes.helper = helper
"""


def run(module_from, body, *, grid=(2,), parameters="out_ptr, x_ptr", head=""):
    """Run a kernel with this body; names: pid, lane (8 positions), x (8 floats)."""
    lines = ["pid = tl.program_id(0)", "lane = tl.arange(0, 8)", "x = tl.load(x_ptr + lane)", *body.splitlines()]
    text = "\n".join("    " + line for line in lines)
    module = module_from(f"{head}\n\n@triton.jit\ndef faulty_kernel({parameters}):\n{text}\n")
    out = torch.zeros(64)
    with simulator.enabled():
        module.faulty_kernel[grid](out, torch.arange(8.0))
    return out


@pytest.mark.parametrize(
    ("body", "feature"),
    [
        ("for i in range(3):\n    break", "break"),
        ("for i in range(3):\n    continue", "continue"),
        ("for i in range(3):\n    pass\nelse:\n    pass", "for … else"),
        ("class A:\n    pass", "class A"),
        ("try:\n    pass\nexcept ValueError:\n    pass", "try"),
        ("with x:\n    pass", "with x"),
        ("import math", "import math"),
        ("def inner():\n    pass", "def inner"),
        ("del x", "del x"),
        ("global y", "global y"),
        ("raise ValueError", "raise ValueError"),
        ("y = [v for v in range(3)]", "'[v for v in range(3)]'"),
        ("y = [v + w for v in (1, 2) for w in (1, 2)]", "nested comprehensions"),
        ("y = tl.sum(x, **{})", "** in the call"),
        ("y = lambda v: v", "lambda"),
        ("y = {1: 2}", "{1: 2}"),
        ("y = x[0]", "indexing 'x[0]'"),
        ("y = x[0:4]", "indexing 'x[0:4]'"),
        ("y = x[pid]", "indexing 'x[pid]'"),
        ("x[0] = 1.0", "assigning to 'x[0]'"),
        ("x.y = 1.0", "assigning to 'x.y'"),
        ("x[0] += 1.0", "x[0] += 1.0"),
        ("y = x ** 2", "** on kernel values"),
        ("y = x @ x", "the operator in 'x @ x'"),
        ("y = x.foo", "the attribute .foo"),
        ("y = x.atomic_nothing(1)", "the attribute .atomic_nothing"),
        ("y = tl.inline_asm_elementwise('mov', '=r,r', [x], tl.int32, True, 1)", "inline assembly"),
        ("y = tl.does_not_exist(x)", "tl.does_not_exist"),
        ("y = notes.helper(x)", "calling the Python function helper"),
        ("for i in x:\n    pass", "a for loop over 'x'"),
    ],
)
def test_unsupported_features_are_named_with_their_line(module_from, body, feature):
    with pytest.raises(UnsupportedFeatureError) as caught:
        run(module_from, body, head=HELPER)
    assert feature in str(caught.value)
    assert "in kernel faulty_kernel, line" in str(caught.value)
    assert caught.value.feature in str(caught.value)
    first = body.splitlines()[0]
    assert caught.value.place.source.strip() in body
    assert first in str(caught.value) or "break" in first or "continue" in body or "range(3)" in first


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if x > 0:\n    pass", "a condition must be a scalar, got a block of shape (8,); use tl.where, or reduce it"),
        ("while x > 0:\n    pass", "a condition must be a scalar"),
        ("y = 1 if x > 0 else 2", "a condition must be a scalar"),
        ("y = tl.arange(0, 12)", "block sizes must be powers of two, got 12"),
        ("y = tl.arange(3, 3)", "end must be greater than start, got 3 and 3"),
        ("y = tl.arange(0, pid)", "tl.arange's end must be a compile-time integer"),
        ("y = tl.zeros([3], tl.float32)", "block sizes must be powers of two, got 3"),
        ("y = tl.zeros([pid], tl.float32)", "must be a compile-time integer"),
        ("y = tl.full([8], 0, 5)", "type"),
        ("y = tl.program_id(3)", "axis must be 0, 1 or 2, got 3"),
        ("y = x + tl.arange(0, 4)", "cannot broadcast blocks of shapes (8,) and (4,)"),
        ("y = x & 1", "'&' needs integers, got fp32 and int32"),
        ("y = x // 2", "'//' needs integers"),
        ("y = ~x", "need integers or booleans, got fp32"),
        ("y = tl.exp(lane)", "tl.exp needs fp32 or fp64, got int32"),
        ("y = tl.exp(x.to(tl.float16))", "tl.exp needs fp32 or fp64, got fp16: convert with .to(tl.float32)"),
        ("y = x.to(3)", "cannot convert to 3: pass a type"),
        ("y = tl.sum(pid)", "tl.sum needs a block, got a scalar"),
        ("y = tl.sum(x, axis=1)", "axis 1 does not exist in a block of shape (8,)"),
        ("y = tl.max(x, axis=-2)", "axis -2 does not exist"),
        ("y = tl.reshape(x, [4])", "cannot reshape a block of shape (8,) to (4,)"),
        ("y = tl.trans(x, 0, 0)", "not an order"),
        ("y = tl.broadcast_to(x, [4])", "cannot broadcast"),
        ("y = tl.split(x)", "tl.split needs a last axis of size 2"),
        ("y = tl.dot(x, x)", "rank 2 or 3"),
        ("y = tl.dot(x[:, None], x[:, None])", "do not match"),
        ("y = tl.dot(x[:, None], x.to(tl.float16)[None, :])", "must have the same type, got fp32 and fp16"),
        ("y = tl.dot(x[:, None], x[None, :], acc=x)", "the accumulator has shape (8,)"),
        ("for i in range(1.5):\n    pass", "a loop bound must be an integer, got 1.5"),
        ("for i in range(x):\n    pass", "a loop bound must be an integer scalar, got fp32 of shape (8,)"),
        ("for i in tl.static_range(pid):\n    pass", "tl.static_range needs compile-time bounds"),
        ("for i in range(0, 1, 2, 3):\n    pass", "range takes one to three bounds, got 4"),
        ("a, b = x, x, x", "cannot unpack"),
        ("y = lane.to(tl.uint32) + -1", "the negative number -1"),
        ("y = lane.to(tl.uint32) // lane", "one signed and one unsigned"),
        ("y = tl.constexpr(x)", "only known when the kernel runs"),
        ("y = 5\ny(3)", "<int32 scalar> cannot be called"),
        ("B = 8\ny = tl.arange(0, B)", "a literal or tl.constexpr), got <int32 scalar>"),
        ("y = f'{pid}'", "an f-string is made at compile time; 'pid' is not known then"),
        ("y = int(pid)", "int(...) of a value that is only known when the kernel runs"),
        ("y = (1, 2) - (3, 4)", "'(1, 2) - (3, 4)' has no meaning"),
        ("y = tl.float32.nothing", "a DType has no attribute 'nothing'"),
    ],
)
def test_mistakes_of_types_and_shapes(module_from, body, message):
    with pytest.raises(KernelTypeError) as caught:
        run(module_from, body)
    assert message in str(caught.value)
    assert "in kernel faulty_kernel, line" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = nowhere + 1", "the name 'nowhere' is not defined"),
        ("if pid > 5:\n    y = 1\ntl.store(out_ptr, y)", "the name 'y' is not defined (or not on the path"),
        ("tl.static_assert(1 == 2, 'sizes')", "tl.static_assert failed: sizes"),
        ("tl.static_assert(pid == 2)", "needs a compile-time condition; use tl.device_assert"),
        ("tl.device_assert(pid < 1, 'too far')", "assertion failed in program (1, 0, 0): too far"),
        ("assert pid < 1, 'too far'", "assertion failed in program (1, 0, 0): too far"),
        ("tl.device_assert(x < 7)", "assertion failed in program (0, 0, 0)"),
        ("tl.device_assert(x < 7, mask=lane < 7)\ntl.device_assert(False, 'end')", "assertion failed: end"),
        ("tl.assume(pid > 0)", "tl.assume does not hold"),
        ("for i in range(0, 5, 0):\n    pass", "must not be zero"),
        ("y = 1 // 0", "ZeroDivisionError"),
        ("y = tl.zeros(8)", "missing"),
        ("y = again(x)", "again"),
        ("y = endless(x)", "calls itself without end"),
        ("y = (1, 2)[3]", "IndexError"),
    ],
)
def test_other_mistakes(module_from, body, message):
    head = "@triton.jit\ndef again(x, y):\n    return x\n\n\n@triton.jit\ndef endless(x):\n    return endless(x)"
    with pytest.raises(SimulatorError) as caught:
        run(module_from, body, head=head)
    assert message in str(caught.value)
    assert "in kernel " in str(caught.value)


def test_a_loop_that_never_ends_is_stopped(module_from, monkeypatch):
    monkeypatch.setattr(interpreter, "_MAX_ITERATIONS", 1000)
    with pytest.raises(SimulatorError, match="the while loop ran 1,000 times"):
        run(module_from, "while pid < 5:\n    pass")


def test_an_error_in_a_called_function_names_that_function(module_from):
    with pytest.raises(KernelTypeError) as caught:
        run(module_from, "y = inner(x)", head="@triton.jit\ndef inner(v):\n    w = v + 1\n    return v & w")
    assert "in kernel inner, line" in str(caught.value)
    assert "return v & w" in str(caught.value)
    assert str(caught.value).count("in kernel") == 1


def test_the_error_s_line_is_the_line_in_the_file(module_from):
    from pathlib import Path

    with pytest.raises(SimulatorError) as caught:
        run(module_from, "y = 1\n# a comment\n\nz = x & 1")
    place = caught.value.place
    assert caught.value.line == place.line
    files = [p for p in Path(module_from("").__file__).parent.iterdir() if p.name == place.file]
    assert files[0].read_text().splitlines()[place.line - 1].strip() == "z = x & 1"


def test_a_kernel_without_source_is_an_error():
    scope = {}
    exec("def hidden(x_ptr):\n    pass\n", scope)
    with pytest.raises(SimulatorError, match="the source of kernel 'hidden' is not available: define it in a file"):
        kernel_source(scope["hidden"])


@triton.jit
def global_kernel(out_ptr):
    tl.store(out_ptr, plain_global[0])


def test_a_global_that_is_no_constant_is_refused_as_in_triton():
    with (
        pytest.raises(KernelTypeError, match=r"the global 'plain_global' is a list.*tl.constexpr"),
        simulator.enabled(),
    ):
        global_kernel[(1,)](torch.zeros(1))


def test_messages_before_a_place_is_known():
    error = SimulatorError("something")
    assert str(error) == "something"
    assert error.line is None
    assert str(UnsupportedFeatureError("flying", "walk")) == "the simulator does not support flying: walk"


def test_prints(module_from, capsys):
    run(module_from, "tl.static_print('size', 3)\ntl.device_print('pid ', pid)\nprint('block', lane)")
    text = capsys.readouterr().out
    assert "size 3" in text
    assert "(1, 0, 0) pid 1" in text
    assert "[0 1 2 3 4 5 6 7]" in text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y = tl.sum(x, no_such_keyword=1)", "TypeError: "), ("y = (1, 2)[5]", "IndexError: "),
        ("y = 1 // 0", "ZeroDivisionError: "), ("y = 'a' + 1", "TypeError: "), ("y = 'a' < 1", "TypeError: "),
        ("y = failing(3)", "ValueError: found 3"),
    ],
)  # fmt: skip
def test_mistakes_that_python_finds_are_the_kernel_s(module_from, body, message):
    head = "@triton.constexpr_function\ndef failing(x):\n    raise ValueError(f'found {x}')\n"
    with pytest.raises(SimulatorError) as caught:
        run(module_from, body, head=head)
    assert str(caught.value).startswith(message)
    assert "internal error" not in str(caught.value)
    assert "in kernel faulty_kernel, line" in str(caught.value)


def test_a_failure_inside_the_simulator_is_called_so(module_from, monkeypatch):
    def broken(*args):
        raise IndexError("of our own making")

    monkeypatch.setattr("cme295lab.simulator.language.reductions._written_out", broken)
    with pytest.raises(SimulatorError) as caught:
        run(module_from, "y = tl.xor_sum(lane)")
    text = str(caught.value)
    assert text.startswith("internal error of the simulator in reductions.py, line")
    assert "(IndexError: of our own making)" in text
    assert "--> y = tl.xor_sum(lane)" in text
