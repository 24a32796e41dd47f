"""What the compiler's intermediate code says of the source: the products in its loops, the tiles that it loads."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod

_DOT = re.compile(
    r"tt\.dot(?:_scaled)? (?P<rest>.*) : tensor<(?P<a>[\dx]+)x(?P<type>\w+)[^>]*>.* \* tensor<(?P<b>[\dx]+)x\w+[^>]*>"
    r".* -> tensor<(?P<c>[\dx]+)x\w+"
)
_PRECISION = re.compile(r"inputPrecision = (\w+)")
_LOOP = re.compile(r"\bscf\.(for|while)\b")
_LOAD = re.compile(r"tt\.(?P<kind>load|store|atomic_rmw) .*tensor<(?P<shape>[\dx]+)x!tt\.ptr<(?P<type>\w+)>")
_PRODUCT = re.compile(r"arith\.mulf .* : tensor<(\d+)x(\d+)x")
_LOC = re.compile(r"loc\((#loc\d*)\)\s*$")
_BITS = {"i1": 8, "f8E5M2": 8, "f8E4M3FN": 8}
_MMA_TCGEN05 = re.compile(r"tcgen05\.mma\S*\.kind::(?P<kind>\w+)\S*\s+(?P<operands>[^;]*);")
_PTX_LINE = re.compile(r"^\s*\.loc\s+\d+\s+(\d+)\s")
Place = tuple[str, int]  # file name and line
_K_BYTES = 32  # of operand that one tcgen05.mma multiplies along K


@dataclass(frozen=True)
class Dot:
    """One tl.dot: M, N, K, how often (batch), operand type (MLIR's name), precision of fp32 operands, and where."""

    m: int
    n: int
    k: int
    batch: int
    dtype: str
    precision: str
    place: Place | None

    @property
    def flops(self) -> int:
        """2·M·N·K per execution and program, as the simulator counts."""
        return 2 * self.m * self.n * self.k * self.batch

    @property
    def parts(self) -> int:
        """Products that it is made of: "tf32x3" sums three, for more bits than one has."""
        return int(self.precision.rpartition("x")[2]) if "x" in self.precision else 1


@dataclass(frozen=True)
class Tile:
    """A load, store or atomic of a whole tile: bytes of the tile, and where."""

    kind: str
    num_bytes: int
    place: Place | None


@dataclass
class SourceFacts:
    """Attributes:
    dots: all products.
    loop_dots: for each loop that has products directly in it, those.
    tiles: all accesses to global memory by tiles.
    outer_products: whether broadcast tiles are multiplied element by element (a product written without tl.dot).
    """

    dots: list[Dot] = field(default_factory=list)
    loop_dots: list[list[Dot]] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    outer_products: bool = False


def source_facts(ttir: str) -> SourceFacts:
    """Read Triton's first intermediate code (TTIR), in which loops and tiles are still those of the source."""
    places = _locations(ttir)
    facts = SourceFacts()
    open_loops: list[tuple[int, list[Dot]]] = []  # depth of braces at the loop, its products
    depth = 0
    for row in ttir.splitlines():
        code = row.split(" loc(")[0]
        where = _LOC.search(row)
        place = places.get(where[1]) if where else None
        if (dot := _dot(code, place)) is not None:
            facts.dots.append(dot)
            if open_loops:
                open_loops[-1][1].append(dot)
        elif (tile := _LOAD.search(code)) is not None:
            size = max(1, _BITS.get(tile["type"], _bits(tile["type"])) // 8)
            facts.tiles.append(Tile(tile["kind"], size * prod(map(int, tile["shape"].split("x"))), place))
        elif _PRODUCT.search(code) is not None:
            facts.outer_products = True
        if _LOOP.search(code) is not None:
            open_loops.append((depth, []))
        depth += code.count("{") - code.count("}")
        while open_loops and depth <= open_loops[-1][0]:
            finished = open_loops.pop()[1]
            if finished:
                facts.loop_dots.append(finished)
    return facts


def _dot(code: str, place: Place | None) -> Dot | None:
    match = _DOT.search(code)
    if match is None:
        return None
    a, c = ([int(n) for n in match[g].split("x")] for g in ("a", "c"))
    precision = _PRECISION.search(match["rest"])
    return Dot(c[-2], c[-1], a[-1], prod(c[:-2]), match["type"], precision[1] if precision else "ieee", place)


def _bits(name: str) -> int:
    digits = re.search(r"\d+", name)
    return int(digits[0]) if digits else 64  # a pointer


def _locations(ttir: str) -> dict[str, Place]:
    """Where each location is; of a call that was inlined, the place in the function that was called."""
    found: dict[str, Place] = {}
    later: dict[str, str] = {}
    for name, place in re.findall(r"^(#loc\d*) = loc\((.*)\)$", ttir, re.MULTILINE):
        direct = re.match(r'"([^"]*)":(\d+):\d+', place)
        inner = re.search(r"(#loc\d*)", place)
        if direct is not None:
            found[name] = (direct[1].rsplit("/", 1)[-1], int(direct[2]))
        elif inner is not None:
            later[name] = inner[1]
    for name in later:
        target, seen = name, set()
        while target in later and target not in seen:
            seen.add(target)
            target = later[target]
        if target in found:
            found[name] = found[target]
    return found


def tcgen05_shapes(ptx: str) -> dict[int | None, list[tuple[int, int, int]]]:
    """M, N, K of the matrix instructions of sm_100, by source line, in order.

    Their shape is in the instruction descriptor, a constant: N / 8 in bits 17 to 22, M / 16 in bits 24 to 28; K is 32
    bytes of the operands. Source: PTX ISA, "tcgen05 instruction descriptor".
    """
    constants = {name: int(value) for name, value in re.findall(r"mov\.b32\s+(%r\d+), (-?\d+);", ptx)}
    shapes: dict[int | None, list[tuple[int, int, int]]] = {}
    line: int | None = None
    for row in ptx.splitlines():
        if (m := _PTX_LINE.match(row)) is not None:
            line = int(m[1])
        elif (m := _MMA_TCGEN05.search(row)) is not None:
            operands = [o.strip() for o in m["operands"].split(",")]
            known = [constants[o] for o in operands if o in constants] + [int(o) for o in operands if o.isdigit()]
            element = {"f16": 2, "tf32": 4}.get(m["kind"], 1)
            if known:
                descriptor = known[0]
                shape = ((descriptor >> 24 & 31) * 16, (descriptor >> 17 & 63) * 8, _K_BYTES // element)
                shapes.setdefault(line, []).append(shape)
    return shapes
