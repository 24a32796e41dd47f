"""How accesses to global memory were lowered: bytes per thread and source line, from the code that goes to LLVM.

The machine code says the bytes too, but its line numbers are those of the values' users in some versions of Triton.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_METADATA = re.compile(r"^(!\d+) = (?:distinct )?!(\w+)\((.*)\)$", re.MULTILINE)
_DEBUG = re.compile(r"!dbg (!\d+)")
_PTX = re.compile(r"(?P<op>ld|st|atom|red)\.global[\w.:]*?(?:\.v(?P<count>\d))?\.[bfsu](?P<bits>\d+)\b")
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[\w.:]* \[[^\]]*\], \[[^\]]*\], (0x[0-9a-f]+|\d+)")
_LLVM = re.compile(
    r"\b(?P<op>load|store) (?:volatile )?(?:<(?P<count>\d+) x )?(?P<type>i\d+|half|bfloat|float|double|ptr)>?"
    r".*addrspace\(1\)"
)
_BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64, "ptr": 64}


@dataclass(frozen=True)
class Lowered:
    """One access by one thread.

    Attributes:
        kind: "load" (also cp.async), "store" or "atomic".
        width: bytes.
        place: file name and line; None if it is not known.
    """

    kind: str
    width: int
    place: tuple[str, int] | None


def lowered_accesses(llir: str) -> list[Lowered]:
    """Read LLVM's intermediate code, in which an access is a piece of PTX or a load or store of its own."""
    places = _places(llir)
    found = []
    for row in llir.splitlines():
        access = _access(row)
        if access is not None:
            debug = _DEBUG.search(row)
            found.append(Lowered(*access, places.get(debug[1]) if debug else None))
    return found


def _access(row: str) -> tuple[str, int] | None:
    if (copy := _COPY.search(row)) is not None:
        return "load", int(copy[1], 0)
    if (m := _PTX.search(row)) is not None:
        kind = {"ld": "load", "st": "store"}.get(m["op"], "atomic")
        return kind, int(m["count"] or 1) * int(m["bits"]) // 8
    if "asm" not in row and (m := _LLVM.search(row)) is not None:
        bits = _BITS.get(m["type"]) or int(m["type"][1:])
        return m["op"], int(m["count"] or 1) * max(8, bits) // 8
    return None


def _places(llir: str) -> dict[str, tuple[str, int]]:
    """File name and line of each debug location."""
    nodes = {name: (kind, body) for name, kind, body in _METADATA.findall(llir)}

    def file_of(scope: str) -> str:
        reference = re.search(r"file: (!\d+)", nodes.get(scope, ("", ""))[1])
        name = re.search(r'filename: "([^"]*)"', nodes.get(reference[1], ("", ""))[1]) if reference else None
        return name[1].rsplit("/", 1)[-1] if name else ""

    places = {}
    for name, (kind, body) in nodes.items():
        if kind == "DILocation":
            line, scope = re.search(r"line: (\d+)", body), re.search(r"scope: (!\d+)", body)
            if line and scope:
                places[name] = (file_of(scope[1]), int(line[1]))
    return places
