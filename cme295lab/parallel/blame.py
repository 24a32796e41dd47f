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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

COLLECTIVES = re.compile(
    r"_?(all_reduce|reduce_scatter|all_gather|all_to_all|broadcast|reduce|gather|scatter|barrier|monitored_barrier|"
    r"send|recv|isend|irecv|batch_isend_irecv|new_group)(_\w+)?"
)
_SOMEBODY_ELSE_IS_GONE = re.compile(
    r"closed by peer|Connection reset|Broken pipe|Connection refused|pair closure|Socket Timeout|Timed out waiting|"
    r"remote process has terminated|NCCL communicator was aborted|wait timeout after"
)
_STACK_LINE = re.compile(r'^\s*File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)$')
_LIBRARY = str(Path(__file__).resolve().parents[1])
_INSTALLED = tuple({sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")})

End = Literal["finished", "raised", "unsendable", "died", "waits"]


class Frame(NamedTuple):
    """One line of a stack: file, line number, function."""

    file: str
    line: int
    function: str

    @property
    def is_of_the_user(self) -> bool:
        """Neither an installed package, nor the standard library, nor this library."""
        return not self.file.startswith((*_INSTALLED, _LIBRARY, "<frozen", "<string>"))

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

    def describe(self) -> str:
        """One line without the rank's number."""
        if self.end == "finished":
            return "had finished"
        if self.end == "died":
            return self.message
        if self.end == "waits":
            return where(self.frames)
        if self.end == "unsendable":
            return self.message
        place = f", {where(self.frames, 'in')}" if self.is_a_consequence and self.frames else ""
        return f"raised {shorten(self.message)}{place}"


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


def explain(outcomes: Mapping[int, Outcome], *, timeout_s: float) -> DistributedError:
    """Put the ends of all ranks into one error, the culprit first.

    Args:
        outcomes: one for each rank; at least one of them is not `finished`.
        timeout_s: the limit, in s, for the text of a time-out.

    Returns:
        The error, to be raised.
    """
    failed = [outcome for outcome in outcomes.values() if outcome.end not in ("finished", "waits")]
    others = dict(sorted(outcomes.items()))
    if failed:
        culprit = min(failed, key=_guilt)
        del others[culprit.rank]
        text = [f"rank {culprit.rank} {culprit.describe()}"]
        if culprit.traceback:
            text += ["", f"Traceback of rank {culprit.rank}:", _with_cells_named(culprit.traceback.rstrip())]
        elif culprit.frames:
            text += [f"It {where(culprit.frames, 'was in')}"]
    else:
        culprit = None
        text = [_describe_time_out(outcomes, timeout_s)]
    if others:
        text += ["", "The other ranks:" if culprit else "The ranks:", *_describe_ranks(others.values())]
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
        return f"{verb} code that shows no Python stack"
    mine = next((frame for frame in reversed(frames) if frame.is_of_the_user), None)
    collective = _collective(frames)
    if collective is None:
        verb = "is busy" if verb == "waits in" else verb
        return f"{verb} at {(mine or frames[-1]).describe()}"
    return f"{verb} {collective} at {(mine or frames[-1]).describe()}"


def read_stack(path: Path) -> tuple[Frame, ...]:
    """Read what `faulthandler` wrote.

    Args:
        path: the file; missing or empty where the process could not write.

    Returns:
        The stack, innermost last.
    """
    if not path.exists():
        return ()
    matches = [_STACK_LINE.match(line) for line in path.read_text(errors="replace").splitlines()]
    found = [match for match in matches if match]
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


def _guilt(outcome: Outcome) -> tuple[bool, bool, float]:
    """What comes first is to blame: deaths, then own errors, then errors about others; each by time."""
    return outcome.is_a_consequence, outcome.end != "died", outcome.time_s


def _collective(frames: Sequence[Frame]) -> str | None:
    for frame in reversed(frames):
        inside = "/torch/distributed/" in frame.file or frame.file.startswith(f"{_LIBRARY}/parallel/")
        if inside and COLLECTIVES.fullmatch(frame.function):
            return frame.function
    last = linecache.getline(frames[-1].file, frames[-1].line)
    return "wait()" if ".wait(" in last else None


def _describe_time_out(outcomes: Mapping[int, Outcome], timeout_s: float) -> str:
    finished = [rank for rank, outcome in outcomes.items() if outcome.end == "finished"]
    waiting = [outcome for outcome in outcomes.values() if outcome.end == "waits"]
    if all(_collective(outcome.frames) for outcome in waiting):
        if finished:
            return (
                f"deadlock: no end after {timeout_s:g} s. {_ranks(finished)} returned, and the others wait in a "
                "collective that needs every rank of its group"
            )
        return (
            f"deadlock: no end after {timeout_s:g} s. Every rank waits in a collective, and not all of them in the "
            "same one, or not all with the same arguments"
        )
    return f"no end after {timeout_s:g} s (timeout_s)"


def _describe_ranks(outcomes: Sequence[Outcome] | Mapping[int, Outcome] | object) -> list[str]:
    """One line for all ranks that ended alike."""
    alike: dict[str, list[int]] = {}
    for outcome in outcomes:  # type: ignore[attr-defined]
        alike.setdefault(outcome.describe(), []).append(outcome.rank)
    return [f"  {_ranks(ranks)} {_in_plural(text) if len(ranks) > 1 else text}" for text, ranks in alike.items()]


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


def _in_plural(text: str) -> str:
    for singular, plural in (("waits in", "wait in"), ("is busy", "are busy"), ("was ", "were ")):
        if text.startswith(singular):
            return plural + text[len(singular) :]
    return text


def _with_cells_named(text: str) -> str:
    """Name notebook cells in a traceback as the notebook does."""
    return re.sub(
        r'File "([^"]+)"',
        lambda match: match[0] if readable_file(match[1]) == match[1] else readable_file(match[1]),
        text,
    )
