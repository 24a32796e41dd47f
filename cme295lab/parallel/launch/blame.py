"""Who is to blame when some ranks of a distributed call fail: one report that names the culprit first.

When one process of a group fails, all the others fail, too, or wait for ever. Their messages ("connection closed by
peer", a time-out) come first and in bulk, and say nothing about the cause. So every rank's end is written down as an
``Outcome``, and ``explain`` puts them in order: a rank that died without a word, then the first one that raised an
error of its own, then those whose error is only that somebody else is gone, then those that still wait.

A rank that waits did not report: its stack is written by a signal handler into a file (``faulthandler`` works even when
the process is stuck in C++ code), and ``read_stack`` reads it. From a stack two things are told: the collective that
the rank waits in (the innermost function of ``torch.distributed`` or of this room that has a collective's name) and the
line of the student's own that led there (the innermost one outside of installed packages and of this library).
"""

from __future__ import annotations

import linecache
import re
import signal
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

_COLLECTIVES = re.compile(
    r"_?(all_reduce|reduce_scatter|all_gather|all_to_all|broadcast|reduce|gather|scatter|barrier|monitored_barrier|"
    r"send|recv|isend|irecv|batch_isend_irecv|new_group)(_\w+)?"
)
_SOMEBODY_ELSE_IS_GONE = re.compile(
    r"closed by peer|Connection reset|Broken pipe|Connection refused|pair closure|Socket Timeout|Timed out waiting|"
    r"remote process has terminated|NCCL communicator was aborted|wait timeout after"
)
_STACK_LINE = re.compile(r'^\s*File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_LIBRARY = str(Path(__file__).resolve().parents[2])
_INSTALLED = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")})

End = Literal["finished", "raised", "unsendable", "died", "waits"]


class Frame(NamedTuple):
    """One line of a stack: file, line number, function."""

    file: str
    line: int
    function: str

    @property
    def is_installed(self) -> bool:
        """Part of an installed package or of the standard library."""
        return self.file.startswith((*_INSTALLED, "<frozen"))

    @property
    def is_of_the_user(self) -> bool:
        """Neither installed nor part of this library."""
        return not self.is_installed and not self.file.startswith(_LIBRARY)

    def describe(self) -> str:
        """Line number, file (a notebook's cell by its number) and the line itself."""
        text = linecache.getline(self.file, self.line).strip()
        return f"line {self.line} of {readable_file(self.file)}" + (f": {text}" if text else f", in {self.function}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one rank ended.

    Args:
        rank: the rank.
        end: `finished`; `raised`; `unsendable` (the result cannot be pickled); `died` (without a message); `waits`.
        message: the last line of the error, or how the process died.
        traceback: the full traceback, where there is one.
        frames: the stack, innermost last, of the error or of the wait.
        time_s: when, on the machine's clock.
        payload: the pickled result.
    """

    rank: int
    end: End
    message: str = ""
    traceback: str = ""
    frames: tuple[Frame, ...] = ()
    time_s: float = 0.0
    payload: bytes = b""

    @property
    def is_a_consequence(self) -> bool:
        """The error only says that another rank is gone."""
        return self.end == "raised" and bool(_SOMEBODY_ELSE_IS_GONE.search(self.message))

    @property
    def waits_in_collective(self) -> bool:
        """The rank did not end: it waits for others."""
        return self.end == "waits" and collective_of(self.frames) is not None

    def describe(self) -> str:
        """Say in one line, without the rank's number, how it ended."""
        if self.end == "finished":
            return "had finished"
        if self.end == "waits":
            return self.message or where(self.frames)
        if self.is_a_consequence:
            return f"then lost its connection to another rank {where(self.frames, 'in')}"
        return f"raised {shorten(self.message)}" if self.end == "raised" else self.message


class DistributedError(RuntimeError):
    """A distributed call failed.

    The text names the culprit first, with its full traceback, and then what became of the other ranks.

    Args:
        message: the text.
        failures: rank -> what became of it, in one line, for each rank that did not finish.
        culprit: the rank that failed first; None where no single one is to blame (a deadlock, a time-out).
    """

    def __init__(self, message: str, failures: Mapping[int, str] | None = None, culprit: int | None = None) -> None:
        super().__init__(message)
        self.failures = dict(failures or {})
        self.culprit = culprit

    def __reduce__(self) -> tuple[type[DistributedError], tuple[str, dict[int, str], int | None]]:
        return type(self), (str(self), self.failures, self.culprit)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows (IPython asks for it): the user's call and the text, and nothing of the launcher."""
        frames = [Frame(f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(self.__traceback__)]
        calls = [f"called at {frame.describe()}" for frame in frames if frame.is_of_the_user]
        return [*calls, f"{type(self).__name__}: {self}"]


def explain(outcomes: Mapping[int, Outcome], *, limit: str) -> DistributedError:
    """Put the ends of all ranks into one error, the culprit first.

    Args:
        outcomes: one for each rank; at least one of them is not `finished`.
        limit: what ended the call if no rank failed, for the text.

    Returns:
        The error, to be raised.
    """
    culprit = _find_culprit(outcomes)
    others = [outcomes[rank] for rank in sorted(outcomes) if culprit is None or rank != culprit.rank]
    if culprit is None:
        text = [_describe_deadlock(outcomes, limit)]
    elif culprit.end == "waits":
        text = [f"no end after {limit}: rank {culprit.rank} {culprit.describe()}"]
    else:
        text = [f"rank {culprit.rank} {_describe_culprit(culprit)}"]
    if others:
        text += ["", "The other ranks:" if culprit else "All ranks:", *_describe_ranks(others)]
    failures = {rank: outcomes[rank].describe() for rank in sorted(outcomes) if outcomes[rank].end != "finished"}
    return DistributedError("\n".join(text), failures, culprit.rank if culprit else None)


def where(frames: Sequence[Frame], verb: str = "waits in") -> str:
    """Say in which collective, and at which line of the user's, a stack is.

    Args:
        frames: the stack, innermost last.
        verb: how the sentence begins.

    Returns:
        For example "waits in all_reduce at line 7 of Cell In[3]: dist.all_reduce(x)".
    """
    if not frames:
        return "shows no Python stack" if verb == "waits in" else ""
    of_the_user = [frame for frame in frames if frame.is_of_the_user]
    place = (of_the_user or [frame for frame in frames if not frame.is_installed] or frames)[-1]
    collective = collective_of(frames)
    if collective is None:
        return f"{'is busy at' if verb == 'waits in' else 'at'} {place.describe()}"
    return f"{verb} {collective} at {place.describe()}"


def collective_of(frames: Sequence[Frame]) -> str | None:
    """Find the collective that a stack is in.

    Args:
        frames: the stack, innermost last.

    Returns:
        Its name; "wait()" for the wait for an asynchronous one; None when the rank is in none.
    """
    for frame in reversed(frames):
        is_inside = "/torch/distributed/" in frame.file or frame.file.startswith(f"{_LIBRARY}/parallel/")
        if is_inside and _COLLECTIVES.fullmatch(frame.function):
            return frame.function
    is_wait = bool(frames) and ".wait(" in linecache.getline(frames[-1].file, frames[-1].line)
    return "wait()" if is_wait else None


def read_stack(path: Path, start_bytes: int = 0) -> tuple[Frame, ...]:
    """Read what `faulthandler` wrote.

    Args:
        path: the file; it is missing where the process came to its end before it could make it.
        start_bytes: where to start.

    Returns:
        The stack, innermost last.
    """
    if not path.exists():
        return ()
    text = path.read_bytes()[start_bytes:].decode(errors="replace")
    found = [match for line in text.splitlines() if (match := _STACK_LINE.match(line))]
    frames = [Frame(m["file"], int(m["line"]) if m["line"].isdigit() else 0, m["function"]) for m in found]
    return tuple(reversed(frames))


def describe_exit(exit_code: int | None) -> str:
    """Say how a process ended that left no message.

    Args:
        exit_code: as `multiprocessing` gives it: negative for a signal.

    Returns:
        A sentence without its subject.
    """
    if exit_code is None:
        return "closed its connection without a message"
    if exit_code < 0:
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-exit_code, f"signal {-exit_code}")
        hint = {"SIGKILL": " (out of memory?)", "SIGSEGV": " (a crash in native code)"}.get(name, "")
        return f"was killed by {name}{hint}"
    return f"ended its process with exit code {exit_code} (os._exit?), without a result"


def readable_file(file: str) -> str:
    """A file as its reader knows it: a notebook's cell by its number, any other by its path.

    Args:
        file: name of a file, as in a traceback.

    Returns:
        For example "Cell In[3]".
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None and hasattr(shell.compile, "format_code_name"):
        named = shell.compile.format_code_name(file)
        if named:
            return f"{named[0]} {named[1]}"
    return file


def shorten(text: str, limit: int = 300) -> str:
    """The first line of a message, cut where it is very long."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _find_culprit(outcomes: Mapping[int, Outcome]) -> Outcome | None:
    """A rank that died, else the first to raise an error of its own, else one that alone keeps the others waiting."""
    failed = [outcome for outcome in outcomes.values() if outcome.end not in ("finished", "waits")]
    if failed:
        return min(failed, key=lambda o: (o.is_a_consequence, o.end != "died", o.time_s))
    not_waiting = [
        outcome for outcome in outcomes.values() if outcome.end == "waits" and not outcome.waits_in_collective
    ]
    return not_waiting[0] if len(not_waiting) == 1 else None


def _describe_culprit(culprit: Outcome) -> str:
    if culprit.traceback:
        message = f"raised {shorten(culprit.message)}" if culprit.end == "raised" else culprit.message
        return f"{message}\n\n{_with_cells_named(culprit.traceback.rstrip())}"
    if culprit.frames:
        return f"{culprit.message}, {where(culprit.frames, 'in')}"
    return culprit.message


def _describe_deadlock(outcomes: Mapping[int, Outcome], limit: str) -> str:
    finished = [rank for rank, outcome in outcomes.items() if outcome.end == "finished"]
    running = [outcome for outcome in outcomes.values() if outcome.end == "waits"]
    if not all(outcome.waits_in_collective for outcome in running):
        return f"no end after {limit}"
    if finished:
        return f"deadlock: {_ranks(finished)} returned without a collective that the others wait in ({limit})"
    return f"deadlock: every rank waits for another one ({limit})"


def _describe_ranks(outcomes: Iterable[Outcome]) -> list[str]:
    """One line for all ranks that ended alike."""
    alike: dict[str, list[int]] = {}
    for outcome in outcomes:
        alike.setdefault(outcome.describe(), []).append(outcome.rank)
    return [f"  {_ranks(ranks)} {_in_plural(text) if len(ranks) > 1 else text}" for text, ranks in alike.items()]


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _in_plural(text: str) -> str:
    for singular, plural in (("waits in", "wait in"), ("is busy", "are busy"), ("was ", "were "), (" its ", " their ")):
        text = text.replace(singular, plural, 1) if text.startswith((singular, "then lost its")) else text
    return text


def _with_cells_named(text: str) -> str:
    """Name notebook cells in a traceback as the notebook does."""

    def name(match: re.Match[str]) -> str:
        readable = readable_file(match[1])
        return match[0] if readable == match[1] else readable

    return re.sub(r'File "([^"]+)"', name, text)
