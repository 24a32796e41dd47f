"""What runs on each rank while a student's distributed code is observed.

A *scenario* is a function of the check's own, `scenario(probe, student, **inputs) -> outputs`. It runs on every rank:
it makes the rank's inputs from a seed, calls the student's code, and returns what a judge needs as plain data. Its
`Probe` names the phases of a step, calls the student's function, and lets one rank wait for another, so that a mistake
which shows only when a neighbour is slow shows every time.

What every rank calls is written down before the call begins: in files, because a collective that does not fit the other
ranks' may end the process.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cme295lab.grading.observe import Communication, RankFacts, StudentError, is_student, student_error
from cme295lab.grading.result import Kind
from cme295lab.grading.watch import line_text
from cme295lab.parallel.communication.c10d_operators import c10d_watch
from cme295lab.parallel.communication.calls import CollectiveCall

Scenario = Callable[..., Mapping[str, Any]]

SOMEBODY_ELSE_IS_GONE = re.compile(r"closed by peer|Connection reset|Broken pipe|pair closure|Timed out waiting")
_MESSAGES = ("send", "recv")
_LIBRARY = "cme295lab.parallel"
_SEAMS = ("transport", "calls", "c10d_operators")  # of it, what a call goes through anyway


@dataclass(frozen=True, kw_only=True)
class Signs:
    """The files by which the ranks and the check tell each other how the ranks stand.

    Args:
        folder: private to one run.
    """

    folder: Path

    def write(self, sign: str, rank: int, content: Mapping[str, Any]) -> None:
        """Leave a sign; whoever reads it sees all of it or nothing."""
        unfinished = self.folder / f".{sign}-{rank}"
        unfinished.write_text(json.dumps(dict(content)))
        unfinished.replace(self.folder / f"{sign}-{rank}")

    def read(self, sign: str) -> dict[int, dict[str, Any]]:
        """The signs of all ranks that have left this one."""
        found = {}
        for path in sorted(self.folder.glob(f"{sign}-*")):
            with contextlib.suppress(FileNotFoundError):  # taken back in between
                found[int(path.name.rpartition("-")[2])] = json.loads(path.read_text())
        return found

    def note_collective(self, rank: int, text: str) -> None:
        """Add a line to the list of what a rank calls; it outlives the process."""
        with (self.folder / f"list-{rank}").open("a") as file:
            file.write(text + "\n")

    def errors(self) -> list[RankError]:
        """What stopped ranks, the first one first."""
        found = sorted(self.read("error").items(), key=lambda item: (item[1]["is_connection_lost"], item[1]["time_s"]))
        return [RankError.of(rank, content) for rank, content in found]

    def collectives(self) -> dict[int, list[str]]:
        """What each rank has called, in order."""
        paths = self.folder.glob("list-*")
        return {int(path.name.rpartition("-")[2]): path.read_text().splitlines() for path in sorted(paths)}


@dataclass(frozen=True)
class RankError:
    """What stopped a rank.

    Args:
        error: in words, with the rank.
        is_connection_lost: whether it only says that another rank is gone.
    """

    error: StudentError
    is_connection_lost: bool

    @classmethod
    def of(cls, rank: int, content: Mapping[str, Any]) -> RankError:
        """From the sign that the rank left."""
        kind = Kind(content["kind"])
        text = content["text"] if kind is Kind.NOT_ATTEMPTED else f"on rank {rank}: {content['text']}"
        return cls(StudentError(kind, text, content["cause"]), content["is_connection_lost"])


class Probe:
    """A scenario's view of its rank.

    Args:
        rank: this rank.
        num_ranks: how many there are.
        signs: of this run.
    """

    def __init__(self, rank: int, num_ranks: int, signs: Signs) -> None:
        self.rank = rank
        self.num_ranks = num_ranks
        self._signs = signs
        self._phase = ""
        self._changed: list[str] = []

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Name what happens in the block; the calls of torch.distributed in it carry the name."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    @property
    def current_phase(self) -> str:
        """The name of the innermost phase, or an empty string."""
        return self._phase

    def call(self, function: Callable[..., Any], **inputs: Any) -> Any:
        """Call the student's function, and note which inputs it changes in place."""
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        before = {name: value.clone() for name, value in tensors.items()}
        result = function(**inputs)
        self._changed += [name for name in tensors if not torch.equal(before[name], tensors[name])]
        return result

    def note_collective(self, text: str) -> None:
        """Write down a collective before it begins: one that does not fit the others' may never end."""
        self._signs.note_collective(self.rank, text)

    def signal(self, name: str) -> None:
        """Tell the other ranks that this one has come so far."""
        self._signs.write(f"signal.{name}", self.rank, {})

    def wait_for(self, name: str, rank: int, limit_s: float = 5.0) -> bool:
        """Wait until another rank has come so far.

        Args:
            name: of its signal.
            rank: which rank.
            limit_s: how long to wait, in s.

        Returns:
            Whether the signal came.
        """
        until_s = time.monotonic() + limit_s
        while rank not in (came := self._signs.read(f"signal.{name}")) and time.monotonic() < until_s:
            time.sleep(0.01)
        return rank in came

    def facts(self, outputs: Mapping[str, Any], calls: tuple[Communication, ...]) -> RankFacts:
        """All that was noted, as plain data."""
        return RankFacts(
            rank=self.rank,
            outputs={name: plain(value) for name, value in outputs.items()},
            calls=calls,
            changed_inputs=tuple(dict.fromkeys(self._changed)),
        )


def run_scenario(scenario: Scenario, student: Any, inputs: Mapping[str, Any], folder: str) -> RankFacts:
    """Run a scenario on this rank; `run_distributed` calls it.

    Args:
        scenario: see above; a function of a module, not of a test or a notebook.
        student: what the student wrote.
        inputs: for the scenario.
        folder: for the signs.

    Returns:
        What was returned and used.
    """
    signs = Signs(folder=Path(folder))
    probe = Probe(dist.get_rank(), dist.get_world_size(), signs)
    recorder = _Recorder(probe)
    try:
        with warnings.catch_warnings(), c10d_watch(recorder), _Peers(recorder):
            warnings.simplefilter("ignore")
            outputs = scenario(probe, student, **inputs)
        return probe.facts(outputs, tuple(recorder.calls))
    except BaseException as error:
        lost = bool(SOMEBODY_ELSE_IS_GONE.search(str(error)))
        facts = {"time_s": time.time(), "is_connection_lost": lost, **asdict(student_error(error))}
        signs.write("error", probe.rank, facts)
        raise


def plain(value: Any) -> Any:
    """A copy that holds tensors, numbers and text only, whatever class the student's objects have."""
    if isinstance(value, Tensor):
        return value.detach().clone().cpu().as_subclass(Tensor)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(plain(item) for item in value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    return f"<{type(value).__name__}>"


class _Recorder:
    """Writes down every call of torch.distributed: who called, in which phase, and for which rank."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self.calls: list[Communication] = []
        self.peer: int | None = None

    def observe(self, call: CollectiveCall, group: dist.ProcessGroup) -> None:
        """See one call, before it starts."""
        line, from_library = _student_line(sys._getframe())
        seen = Communication(
            collective=call.collective,
            payload_bytes=call.payload_bytes,
            sent_bytes=float(call.sent_bytes),
            received_bytes=float(call.received_bytes),
            peer=self.peer,
            phase=self._probe.current_phase,
            line=line,
            tag=call.tag,
            from_library=from_library,
        )
        self.calls.append(seen)
        if call.collective not in _MESSAGES:
            self._probe.note_collective(seen.text)


class _Peers(TorchDispatchMode):
    """Tells the recorder to or from which rank the message goes that it is about to see."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_message = func.namespace == "c10d" and func._overloadpacket.__name__ in ("send", "recv_")
        self._recorder.peer = int(args[2]) if is_message else None
        return func(*args, **(kwargs or {}))


def _student_line(frame: FrameType | None) -> tuple[str, bool]:
    """The student's line on a stack, and whether the course's library stands between it and the call."""
    from_library = False
    while frame is not None:
        if is_student(frame.f_code.co_filename):
            return line_text(frame.f_code.co_filename, frame.f_lineno), from_library
        module = str(frame.f_globals.get("__name__", ""))
        if module.startswith(f"{_LIBRARY}.") and module.rpartition(".")[2] not in _SEAMS:
            from_library = True
        frame = frame.f_back
    return "", False
