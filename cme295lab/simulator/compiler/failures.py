"""What Triton says when it refuses a kernel, shortened, with what to do about it."""

from __future__ import annotations

import re

from cme295lab.hardware import Device
from cme295lab.simulator.errors import SimulatorError
from cme295lab.simulator.source import KernelSource

_LONGEST = 300
_NOISE = re.compile(r"[\^~ ]+$|at \d+:\d+:?$|Repro command|ptxas info")
_ADVICE = (  # pattern of the message, what to do; {device} and groups of the pattern are filled in
    (r"Input shapes should have M >= \d+, N >= \d+ and K >= (?P<k>\d+)",
     "No tensor cores: K, the inner dimension of tl.dot, does not fill a matrix instruction; make it at least {k}, "
     "padding with zeros"),
    (r"Input shapes should have M >= \d+, N >= \d+", "make each side of the tiles of tl.dot at least that long"),
    (r"type fp8e4nv not supported in this architecture",
     "{device} has no float8_e4m3 (sm_89 and later have): use torch.float8_e5m2, or another device"),
    (r"type (?P<type>fp8\w+) not supported in this architecture", "use another float8 format, or another device"),
    (r"exceeds triton maximum tensor numel", "use smaller blocks, and a loop"),
    (r"arange's range must be a power of 2|[Ss]hape element \d+ must be a power of 2",
     "round the block size up (triton.next_power_of_2) and mask what is too much"),
    (r"uses too much shared data|out of resource: shared memory|Shared memory", "use smaller tiles or fewer stages"),
    (r"is not defined", "define it before the kernel, or pass it as an argument"),
    (r"Loop-carried variable (?P<name>\w+) has initial type",
     "give {name} one type and one shape before the loop and in it"),
    (r"Cannot access global variable (?P<name>\w+)", "make it tl.constexpr({name}), or an argument"),
)  # fmt: skip


def refusal(source: KernelSource, device: Device, error: Exception) -> SimulatorError:
    """The error to raise: kernel, device, the compiler's own words in short, the line, what to do."""
    text = "\n".join(_chain(error))
    words = _short(text, source)
    advice = ""
    for pattern, remedy in _ADVICE:
        if (match := re.search(pattern, text)) is not None:
            advice = f". {remedy[0].upper()}{remedy[1:]}".format(device=device.name, **match.groupdict())
            break
    made = SimulatorError(
        f"Triton cannot compile {source.name} for {device.name} (sm_{device.compute_capability}): {words}{advice}"
    )
    line = _line(text)
    if line is not None:
        made.locate(source.place(source.first_line + source.tree.lineno + line - 2))  # Triton counts from "def"
    return made


def _chain(error: BaseException) -> list[str]:
    texts: list[str] = []
    current: BaseException | None = error
    while current is not None and len(texts) < 5:
        texts.append(str(current))
        current = current.__cause__
    return texts


def _short(text: str, source: KernelSource) -> str:
    """The sentence that says what is wrong: no source listing, no command line, no name of an exception."""
    rows = [r.strip() for r in text.splitlines()]
    own = {r.strip() for r in source.lines}
    kept = [r for r in rows if r and r not in own and _NOISE.match(r) is None]
    best = next((r for r in kept if re.search(r"error|assert|support|must|should|exceed|cannot|Cannot|not ", r)), None)
    words = best or (kept[-1] if kept else text.strip().splitlines()[0] if text.strip() else "no message")
    words = re.sub(r"^\w*(?:Error|Exception)\([\"'](.*?)\.?[\"']\)$", r"\1", words)
    return words if len(words) <= _LONGEST else words[: _LONGEST - 1] + "…"


def _line(text: str) -> int | None:
    """The line within the kernel's source that Triton points at."""
    found = re.search(r"^at (\d+):\d+", text, re.MULTILINE)
    return int(found[1]) if found else None
