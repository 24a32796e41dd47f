"""Machine code as text (SASS, from nvdisasm), read into instructions, basic blocks and loops.

A loop is a natural loop: a jump back to a block that every path to the jump passes through (the header dominates the
latch), together with all blocks that reach the jump without passing the header. Code that was moved out of line and
jumps back into the middle of a loop is thereby a part of that loop and no loop of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_LABEL = re.compile(r"^\s*(\.L_x_\d+|[\w$.]+):\s*$")
_INSTRUCTION = re.compile(
    r"^\s*/\*(?P<address>[0-9a-f]{4,})\*/\s+(?:(?P<predicate>@!?U?P\w+)\s+)?(?P<opcode>[A-Z][\w.]*)\s*(?P<operands>[^;]*);"
)
_LINE = re.compile(r'^\s*//## File "(?P<file>[^"]*)", line (?P<line>\d+)')
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_JUMPS = frozenset({"BRA", "BRX", "JMP", "JMX", "BRXU", "JMXU"})
_ENDS = frozenset({"EXIT", "RET", "BPT", "KILL"})


@dataclass(frozen=True, slots=True)
class Instruction:
    """One machine instruction.

    Attributes:
        address: byte offset in the code.
        opcode: with its modifiers, such as "LDG.E.128".
        operands: the rest, as text.
        predicate: "@P0", "@!UP1" or "": the lanes for which it is executed.
        file, line: the source line that it was made for; None where the assembler does not say.
    """

    address: int
    opcode: str
    operands: str
    predicate: str = ""
    file: str = ""
    line: int | None = None

    @property
    def base(self) -> str:
        """The opcode without modifiers: "LDG"."""
        return self.opcode.split(".", 1)[0]

    @property
    def modifiers(self) -> list[str]:
        return self.opcode.split(".")[1:]


@dataclass(frozen=True)
class Loop:
    """The instructions of a natural loop, in the order of their addresses."""

    header: int  # address of its first instruction
    instructions: tuple[Instruction, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.instructions)


@dataclass
class _Block:
    instructions: list[Instruction]
    successors: list[int] = field(default_factory=list)


def parse(text: str) -> tuple[list[Instruction], dict[str, int]]:
    """Read a disassembly.

    Args:
        text: output of `nvdisasm -c`, with source lines if `-g` was given too.

    Returns:
        The instructions (padding at the end left out), and for each label the index of the instruction after it.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    file, line = "", None
    for row in text.splitlines():
        if (m := _INSTRUCTION.match(row)) is not None:
            if m["opcode"] != "NOP":
                found = (int(m["address"], 16), m["opcode"], m["operands"].strip(), m["predicate"] or "", file, line)
                instructions.append(Instruction(*found))
        elif (m := _LINE.match(row)) is not None:
            file, line = m["file"].rsplit("/", 1)[-1], int(m["line"])
        elif (m := _LABEL.match(row)) is not None:
            labels[m[1]] = len(instructions)
    return instructions, labels


def loops(instructions: list[Instruction], labels: dict[str, int]) -> list[Loop]:
    """The natural loops of more than one instruction; those that share a header are one."""
    if not instructions:
        return []
    blocks, starts = _blocks(instructions, labels)
    order = _reverse_postorder(blocks)
    dominator = _dominators(blocks, order)
    predecessors: dict[int, list[int]] = {b: [] for b in order}
    for b in order:
        for s in blocks[b].successors:
            predecessors[s].append(b)
    bodies: dict[int, set[int]] = {}
    for latch in order:
        for header in blocks[latch].successors:
            if _dominates(header, latch, dominator):
                bodies.setdefault(header, {header}).update(_body(header, latch, predecessors))
    found = []
    for header, body in sorted(bodies.items()):
        members = tuple(i for b in sorted(body) for i in blocks[b].instructions)
        if len(members) > 1:
            found.append(Loop(instructions[starts[header]].address, members))
    return found


def _blocks(instructions: list[Instruction], labels: dict[str, int]) -> tuple[list[_Block], list[int]]:
    """Basic blocks with the blocks that may follow each, and the index of each one's first instruction."""
    total = len(instructions)
    starts = {0, *labels.values()}
    starts.update(n + 1 for n, i in enumerate(instructions) if i.base in _JUMPS or i.base in _ENDS)
    ordered = sorted(s for s in starts if s < total)
    number = {start: n for n, start in enumerate(ordered)}
    blocks = [_Block(instructions[a:b]) for a, b in zip(ordered, [*ordered[1:], total], strict=True)]
    for n, block in enumerate(blocks):
        last = block.instructions[-1]
        target = _TARGET.search(last.operands) if last.base in _JUMPS else None
        if target is not None and labels.get(target[1], total) < total:
            block.successors.append(number[labels[target[1]]])
        if not _leaves(last) and n + 1 < len(blocks):
            block.successors.append(n + 1)
    return blocks, ordered


def _leaves(last: Instruction) -> bool:
    """Whether the next instruction is never the one that follows. A jump may be conditional by an operand too."""
    if last.base in _ENDS:
        return not last.predicate
    return last.base in _JUMPS and not last.predicate and last.operands.startswith("`")


def _reverse_postorder(blocks: list[_Block]) -> list[int]:
    seen, order = {0}, []
    stack: list[tuple[int, int]] = [(0, 0)]
    while stack:
        block, k = stack.pop()
        if k == len(blocks[block].successors):
            order.append(block)
            continue
        stack.append((block, k + 1))
        successor = blocks[block].successors[k]
        if successor not in seen:
            seen.add(successor)
            stack.append((successor, 0))
    return order[::-1]


def _dominators(blocks: list[_Block], order: list[int]) -> dict[int, int]:
    """The immediate dominator of each reachable block.

    Source: Cooper, Harvey, Kennedy 2001, "A simple, fast dominance algorithm".
    """
    rank = {b: n for n, b in enumerate(order)}
    predecessors: dict[int, list[int]] = {b: [] for b in order}
    for b in order:
        for s in blocks[b].successors:
            predecessors[s].append(b)
    dominator = {order[0]: order[0]}
    changed = True
    while changed:
        changed = False
        for b in order[1:]:
            known = [p for p in predecessors[b] if p in dominator]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    if rank[new] > rank[other]:
                        new = dominator[new]
                    else:
                        other = dominator[other]
            if dominator.get(b) != new:
                dominator[b], changed = new, True
    return dominator


def _dominates(header: int, block: int, dominator: dict[int, int]) -> bool:
    while block != header and dominator[block] != block:
        block = dominator[block]
    return block == header


def _body(header: int, latch: int, predecessors: dict[int, list[int]]) -> set[int]:
    body, waiting = {latch}, [latch]
    while waiting:
        block = waiting.pop()
        if block != header:
            new = set(predecessors[block]) - body
            body |= new
            waiting.extend(new)
    return body
