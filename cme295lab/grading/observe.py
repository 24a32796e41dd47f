"""Run the student's code and record what came out and what it used.

Nothing here judges. An `Observation` is plain data: tensors, counts and text.
"""

from __future__ import annotations

import contextlib
import inspect
import signal
import sys
import sysconfig
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor

from cme295lab.grading.result import Kind, Outcome
from cme295lab.grading.watch import Allocation, Watch, line_text

_NOT_STUDENT_CODE = (
    str(Path(__file__).parents[1]),
    sysconfig.get_path("stdlib"),
    sysconfig.get_path("purelib"),
    sysconfig.get_path("platlib"),
)

# What a common error text usually means.
_CRASH_CAUSES = {
    "same dtype": "half and single precision are mixed: convert to float32 first, with x.float()",
    "unexpected keyword argument": "the function's arguments were renamed: keep the names of the stub",
    "object is not callable": "hand over the function itself, not the result of calling it",
}


@dataclass(frozen=True)
class StudentError:
    """Why the student's code did not return.

    Args:
        kind: not attempted, crashed, or took too long.
        text: the exception and the student's own line.
        cause: what it usually means, or an empty string.
    """

    kind: Kind
    text: str
    cause: str = ""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that a kernel moved between HBM and the chip for one tensor."""

    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryAccess:
    """One load, store or atomic of a kernel's source, all programs together.

    Args:
        kind: "load", "store" or "atomic".
        tensor: what it touches.
        line: the student's line, such as "line 7: x = tl.load(p)".
        requested_bytes: what the active lanes ask for.
        moved_bytes: what memory delivers for that: whole sectors of 32 bytes.
    """

    kind: str
    tensor: str
    line: str
    requested_bytes: int
    moved_bytes: int

    @property
    def efficiency(self) -> float:
        """The share of the moved bytes that was asked for."""
        return self.requested_bytes / self.moved_bytes if self.moved_bytes else 1.0


@dataclass(frozen=True, kw_only=True)
class LaunchFacts:
    """What one launch of a kernel did.

    Args:
        num_programs: programs of the grid.
        accesses: one per load, store or atomic in the source.
        races: what the race detector found, a sentence each, with the line.
        largest_share: the share of all bytes that the busiest program moved.
    """

    num_programs: int
    accesses: tuple[MemoryAccess, ...] = ()
    races: tuple[str, ...] = ()
    largest_share: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Communication:
    """One call of torch.distributed by one rank.

    Args:
        collective: such as "all_reduce", "send" or "recv".
        payload_bytes: of the whole tensor that it is about.
        sent_bytes: what this rank sends for it, by the ring's count.
        received_bytes: what it receives.
        peer: to or from which rank, for "send" and "recv".
        phase: what the check was doing then.
        line: the student's line, such as "line 7: dist.all_reduce(x)", or an empty string.
        tag: what the traffic is for, if the code says so.
        from_library: whether the course's own library made the call.
    """

    collective: str
    payload_bytes: int
    sent_bytes: float
    received_bytes: float = 0.0
    peer: int | None = None
    phase: str = ""
    line: str = ""
    tag: str = ""
    from_library: bool = False

    @property
    def text(self) -> str:
        """In words, such as "all_reduce of 1,024 bytes"; of an exchange that may be uneven, the name alone."""
        even = self.collective in ("all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce")
        return f"{self.collective} of {self.payload_bytes:,} bytes" if even else self.collective


@dataclass(frozen=True, kw_only=True)
class RankFacts:
    """What one rank returned and used.

    Args:
        rank: its number.
        outputs: what the scenario returned there, copied, by name.
        calls: its calls of torch.distributed, in order.
        changed_inputs: names of inputs that it changed in place.
    """

    rank: int
    outputs: Mapping[str, Any]
    calls: tuple[Communication, ...] = ()
    changed_inputs: tuple[str, ...] = ()

    def calls_in(self, phase: str) -> tuple[Communication, ...]:
        """The calls of one phase."""
        return tuple(call for call in self.calls if call.phase == phase)

    @property
    def collectives(self) -> tuple[Communication, ...]:
        """Its calls that need every rank: all but the messages from one rank to another."""
        return tuple(call for call in self.calls if call.collective not in ("send", "recv"))

    @property
    def sent_bytes(self) -> float:
        """What this rank sends in all."""
        return sum(call.sent_bytes for call in self.calls)


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What one run of the student's code returned and used.

    Args:
        outputs: what it returned, detached and copied, by name.
        error: why it did not return, or None.
        largest: the largest tensor it allocated, or None.
        peak_bytes: the most memory its own tensors held at one time.
        forbidden: functions it must not call, each as a sentence.
        changed_inputs: names of inputs that it changed in place.
        traffic: for kernels, the bytes moved per tensor.
        sram_peak_bytes: for kernels, the most on-chip memory that one program held.
        launch: for kernels whose memory accesses are judged, what the launch did.
        ranks: for distributed code, what each rank returned and used.
    """

    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: StudentError | None = None
    largest: Allocation | None = None
    peak_bytes: int = 0
    forbidden: tuple[str, ...] = ()
    changed_inputs: tuple[str, ...] = ()
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    sram_peak_bytes: int = 0
    launch: LaunchFacts | None = None
    ranks: tuple[RankFacts, ...] = ()


def observe_call(function: Callable[..., Any], inputs: Mapping[str, Any], time_limit_s: float = 10.0) -> Observation:
    """Call the student's function and record its result, memory and forbidden calls.

    Args:
        function: the student's function.
        inputs: its arguments by name; tensors are checked for changes afterwards.
        time_limit_s: seconds of computing before the call is stopped.

    Returns:
        The observation; `outputs["result"]` holds what the function returned.
    """
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    watch = Watch(before_call=[value for value in inputs.values() if isinstance(value, Tensor)], is_student=is_student)
    result, error = None, None
    try:
        with quiet(), time_limit(time_limit_s), watch:
            result = _copied(function(**inputs))
    except (Exception, TimeLimitReached) as reason:
        error = student_error(reason, time_limit_s)
    changed = tuple(
        name for name, value in before.items() if not torch.equal(value.nan_to_num(), inputs[name].nan_to_num())
    )
    return Observation(
        outputs={"result": result},
        error=error,
        largest=watch.largest,
        peak_bytes=watch.peak_bytes,
        forbidden=tuple(watch.forbidden),
        changed_inputs=changed,
    )


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return tuple(_copied(item) for item in value)
    return value


class TimeLimitReached(BaseException):
    """Raised inside the student's code when its time is up; no `except Exception` can swallow it."""


_WALL_TIMES_CPU = 12  # code that waits is stopped too, but a busy machine gets this much patience


@contextlib.contextmanager
def time_limit(cpu_seconds: float) -> Iterator[None]:
    """Stop the block after some seconds of computing, or after twelve times as long by the clock.

    Only the main thread of a Unix process can be stopped; elsewhere the block runs on.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise TimeLimitReached()

    timers = (
        (signal.ITIMER_PROF, signal.SIGPROF, cpu_seconds),
        (signal.ITIMER_REAL, signal.SIGALRM, cpu_seconds * _WALL_TIMES_CPU),
    )
    previous = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, seconds in timers:
        # It fires again and again, in case a `finally` or a bare `except` of the student's takes the first one.
        signal.setitimer(timer, seconds, 1.0)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, previous):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings out and send stderr to stdout: graders take any stderr of a cell for a failure."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(sys.stdout):
        warnings.simplefilter("ignore")
        yield


def is_student(filename: str) -> bool:
    """Whether a file is the student's own: not this library, not an installed package, not the standard library."""
    return not filename.startswith((*_NOT_STUDENT_CODE, "<frozen"))


NOT_ATTEMPTED = StudentError(
    Kind.NOT_ATTEMPTED,
    "NotImplementedError",
    "Replace the line `raise NotImplementedError()` by your code (and delete that line).",
)


def refuse_function(student: Any, name: str) -> Outcome | None:
    """Say why a student's function cannot be checked: it is none, or still a stub.

    Args:
        student: what was handed over.
        name: what the exercise calls it.
    """
    if not callable(student):
        cause = f"hand over the function {name} itself, not what it returned"
        return Outcome(name="there is a function", kind=Kind.WRONG_SHAPE, cause=cause)
    if inspect.isfunction(student) and is_stub(student):
        return Outcome(name="the function is written", kind=NOT_ATTEMPTED.kind, cause=NOT_ATTEMPTED.cause)
    return None


def is_stub(function: Callable[..., Any]) -> bool:
    """Whether a function is what the exercise began with. One that was typed without a file has no source: then no."""
    try:
        source = inspect.getsource(function)
    except OSError:
        return False
    return "raise NotImplementedError" in source


def student_error(error: BaseException, time_limit_s: float = 0.0) -> StudentError:
    """Describe an exception by the student's own line.

    Args:
        error: what was raised.
        time_limit_s: the limit that was set, for the text of a time-out.
    """
    line = _student_line(error.__traceback__)
    at = f" at {line}" if line else ""
    # PyTorch raises NotImplementedError too, for operators that a dtype lacks: that is a crash.
    if isinstance(error, NotImplementedError) and "NotImplementedError" in line:
        return NOT_ATTEMPTED
    if isinstance(error, TimeLimitReached):
        cause = "does every loop advance its index, and does it end?"
        return StudentError(Kind.TIMED_OUT, f"stopped after {time_limit_s:g} s{at}", cause)
    text = f"{type(error).__name__}: {error}"
    cause = next((cause for part, cause in _CRASH_CAUSES.items() if part in text), "")
    return StudentError(Kind.CRASHED, text + (f"\nat {line}" if line else ""), cause)


def _student_line(trace: TracebackType | None) -> str:
    """The innermost line of the student's own code, such as "line 7: s = q @ k"."""
    line = ""
    while trace is not None:
        filename, number = trace.tb_frame.f_code.co_filename, trace.tb_lineno
        if is_student(filename):
            line = line_text(filename, number)
        trace = trace.tb_next
    return line
