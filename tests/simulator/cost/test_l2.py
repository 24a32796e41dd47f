"""The cache model, against a plain one line by line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cme295lab.simulator.cost.l2 import find_atoms, replay
from cme295lab.simulator.cost.schedule import in_order
from cme295lab.simulator.cost.sectors import Footprints, Touches
from tests.simulator.cost.reference import Access, simulate

KINDS = ("load", "store", "atomic")
Footprint = dict[int, int]  # line -> its sectors as bits


@st.composite
def footprints(draw: st.DrawFn) -> Footprint:
    """Tiles of neighbouring lines, strided ones, and scattered ones, with whole or partial sectors."""
    first, count, stride = draw(st.integers(0, 12)), draw(st.integers(1, 6)), draw(st.sampled_from([1, 1, 1, 2, 5]))
    lines = draw(st.sets(st.integers(0, 30), min_size=1, max_size=5)) if stride == 5 else range(
        first, first + count * stride, stride
    )  # fmt: skip
    bits = st.integers(1, 15) if draw(st.booleans()) else st.just(15)
    return {line: draw(bits) for line in sorted(lines)}


@st.composite
def launches(draw: st.DrawFn) -> tuple[list[Footprint], list[list[tuple[int, int, int]]]]:
    """Footprints, and per program its accesses: (footprint, instruction, shift in lines)."""
    shapes = draw(st.lists(footprints(), min_size=1, max_size=4))
    access = st.tuples(st.integers(0, len(shapes) - 1), st.integers(0, 3), st.sampled_from([0, 0, 0, 1, 7]))
    return shapes, draw(st.lists(st.lists(access, max_size=7), min_size=1, max_size=6))


INSTRUCTIONS = (("load", 0), ("store", 0), ("atomic", 1), ("load", 1))


@settings(max_examples=400, deadline=None)
@given(launches(), st.integers(1, 8), st.integers(1, 40))
def test_atoms_give_what_lines_give(launch, num_slots, capacity):
    shapes, programs = launch
    touches = made_touches(shapes, programs)
    order = in_order(touches.program, touches.turn, touches.num_accesses, num_slots)
    kinds, tensors = [k for k, _ in INSTRUCTIONS], [t for _, t in INSTRUCTIONS]
    found = replay(find_atoms(touches), order, kinds, touches.instruction, tensors, capacity)
    expected = simulate(
        [[plain_access(shapes[f], i, shift) for f, i, shift in accesses] for accesses in programs],
        num_slots=num_slots,
        capacity_lines=capacity,
    )
    for name, counts in expected.items():
        mine = found[int(name)]
        assert (mine.read, mine.written) == (counts.read, counts.written)
        assert counts.moved - mine.read - mine.allocated == counts.hit


def made_touches(shapes, programs) -> Touches:
    rows = [(p, k, i, f, s) for p, accesses in enumerate(programs) for k, (f, i, s) in enumerate(accesses)]
    columns = [np.array([row[c] for row in rows], np.int64) for c in range(5)]
    parts = Footprints(
        first=np.cumsum([0] + [len(s) for s in shapes]),
        lines=np.array([line for s in shapes for line in s], np.int64),
        sectors=np.array([bits for s in shapes for bits in s.values()], np.uint8),
        lanes=np.ones(len(shapes), np.int64),
        moved=np.ones(len(shapes), np.int64),
    )
    return Touches(*columns, parts, np.array([len(a) for a in programs]), np.zeros(len(INSTRUCTIONS), np.int64))


def plain_access(shape, instruction, shift) -> Access:
    kind, tensor = INSTRUCTIONS[instruction]
    sectors = {4 * (line + shift) + bit for line, bits in shape.items() for bit in range(4) if bits >> bit & 1}
    return Access(kind, str(tensor), [sectors])


def run(accesses: list[tuple[str, range]], capacity: int) -> tuple[int, int, int]:
    """Lines read, allocated and written back by one program that accesses whole lines."""
    shapes = [dict.fromkeys(lines, 15) for _, lines in accesses]
    touches = made_touches(shapes, [[(n, KINDS.index(kind), 0) for n, (kind, _) in enumerate(accesses)]])
    order = np.argsort(touches.turn)
    found = replay(find_atoms(touches), order, list(KINDS), touches.instruction, [0, 0, 0], capacity)[0]
    return found.read // 4, found.allocated // 4, found.written // 4


def test_streaming_misses_every_line_once():
    assert run([("load", range(i, i + 4)) for i in range(0, 100, 4)], capacity=8) == (100, 0, 0)


def test_what_fits_is_read_once():
    assert run([("load", range(10))] * 5, capacity=10) == (10, 0, 0)


def test_a_cycle_one_line_larger_than_the_cache_never_hits():
    cycle = [("load", range(i, i + 1)) for i in range(11)] * 5
    assert run(cycle, capacity=10) == (55, 0, 0)
    assert run(cycle, capacity=11) == (11, 0, 0)
    assert run([("load", range(11))] * 5, capacity=10) == (55, 0, 0)  # the same as one access


def test_the_least_recently_used_line_goes_first():
    a, b, c = (("load", range(i, i + 1)) for i in range(3))
    assert run([a, b, a, c, a], capacity=2) == (3, 0, 0)  # c drives b out
    assert run([a, b, a, c, b], capacity=2) == (4, 0, 0)


def test_stores_are_written_back_once_if_they_stay_and_each_time_if_they_do_not():
    assert run([("store", range(8))] * 3, capacity=8) == (0, 8, 8)
    assert run([("store", range(8))] * 3, capacity=7) == (0, 24, 24)
    assert run([("store", range(8)), ("load", range(8))], capacity=8) == (0, 8, 8)  # what was written is there
    assert run([("store", range(8)), ("load", range(8))], capacity=4) == (8, 8, 8)  # written out, and read again


def test_atomics_read_and_write_back():
    assert run([("atomic", range(4))] * 10, capacity=4) == (4, 0, 4)


@pytest.mark.parametrize("bits", [1, 0b0101, 0b1111])
def test_only_wanted_sectors_are_read_though_lines_take_room(bits):
    touches = made_touches([dict.fromkeys(range(10), bits)], [[(0, 0, 0), (0, 0, 0)]])
    kinds, tensors = [k for k, _ in INSTRUCTIONS], [t for _, t in INSTRUCTIONS]
    arguments = np.argsort(touches.turn), kinds, touches.instruction, tensors
    assert replay(find_atoms(touches), *arguments, 10)[0].read == 10 * bits.bit_count()
    assert replay(find_atoms(touches), *arguments, 9)[0].read == 20 * bits.bit_count()


def test_the_lines_of_a_tile_are_one_atom():
    tile = dict.fromkeys([0, 1, 8, 9, 16, 17], 15)
    atoms = find_atoms(made_touches([tile, dict.fromkeys(range(40, 44), 15)], [[(0, 0, 0), (1, 0, 0)]] * 9))
    assert sorted(atoms.weight.tolist()) == [4, 6]
    assert atoms.access.shape == (18,)


def test_a_sample_of_the_lines_gives_nearly_the_same():
    """Streaming exactly, random look-ups within the error of a sample: a miss is a coin thrown about 500 times."""
    random = np.random.default_rng(0)
    scattered = [[({int(line): 15}, 0) for line in random.integers(0, 2000, 500)] for _ in range(16)]
    streamed = [({2048 + 16 * p + k: 15}, 1) for p in range(16) for k in range(16)]
    shapes = [shape for program in scattered for shape, _ in program] + [shape for shape, _ in streamed]
    programs = [[(500 * p + i, 0, 0) for i in range(500)] for p in range(16)]
    for p in range(16):
        programs[p] += [(8000 + 16 * p + k, 1, 0) for k in range(16)]
    touches = made_touches(shapes, programs)
    order = in_order(touches.program, touches.turn, touches.num_accesses, 4)
    kinds, tensors = ["load", "load"], [0, 1]
    exact, sampled = find_atoms(touches), find_atoms(touches, most_lookups=1024)
    assert (exact.line_sample, sampled.line_sample) == (1, 8)
    for capacity in (400, 1000):
        whole, part = (replay(a, order, kinds, touches.instruction, tensors, capacity) for a in (exact, sampled))
        assert part[1] == whole[1]
        assert part[0].read == pytest.approx(whole[0].read, rel=0.1)
