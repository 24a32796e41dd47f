"""What machine instructions are for: their class, the bytes they move, the FLOPs of matrix instructions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from cme295lab.simulator.compiler.sass import Instruction

_CLASSES = (  # the first that matches an opcode counts
    ("tensor cores", r"(HMMA|IMMA|QMMA|DMMA|OMMA|BMMA|HGMMA|IGMMA|QGMMA|BGMMA|UTC\w*MMA)\b"),
    ("global loads", r"(LDG|LD)\b"),
    ("async copies", r"LDGSTS\b"),
    ("TMA", r"(UTMA\w+|UBLKCP|UBLKPF)\b"),
    ("global stores", r"(STG|ST)\b"),
    ("atomics", r"(ATOM|ATOMG|ATOMS|RED|REDG|REDAS)\b"),
    ("shared loads", r"(LDS|LDSM)\b"),
    ("shared stores", r"(STS|STSM)\b"),
    ("tensor memory", r"(LDTM|STTM|UTCCP|UTCATOMSWS|UTCSHIFT)\b"),
    ("local memory", r"(LDL|STL)\b"),
    ("constants", r"(LDC|LDCU|ULDC)\b"),
    ("fp32", r"(FFMA2?|FMUL2?|FADD2?|FMNMX3?|FSEL|FSETP?|FCHK|FSWZADD)\b"),
    ("fp16", r"(HFMA2|HMUL2|HADD2|HMNMX2|HSETP?2|HSET2)\b"),
    ("fp64", r"(DFMA|DMUL|DADD|DSETP)\b"),
    ("special functions", r"MUFU\b"),
    ("conversions", r"(F2F|F2I|I2F|F2FP|FRND|I2I|I2FP|F2IP|I2IP)\b"),
    ("moves", r"(U?MOV|IMAD\.MOV|UIMAD\.MOV|R2UR|U?PRMT|U?SEL|CS2R|CS2UR|S2U?R|MOVM|U?P2R|U?R2P|VOTEU?|R2B|B2R)\b"),
    ("exchange between lanes", r"(SHFL|REDUX|CREDUX|MATCH)\b"),
    ("integers and addresses", r"(U?IMAD|U?IADD3?|VIADD|U?LOP3|U?SHF|U?LEA|U?ISETP|U?IABS|U?IMNMX|VIMNMX\d?|VIADDMNMX|"
                               r"U?PLOP3|U?SGXT|U?POPC|U?FLO|U?BREV|U?BMSK|ISCADD|XMAD|IDP|VABSDIFF4?|U?SHL|U?SHR|LOP)\b"),
    ("synchronisation", r"(BAR|SYNCS|DEPBAR|LDGDEPBAR|ARRIVES|WARPSYNC|WARPGROUP|MEMBAR|ERRBAR|FENCE|BSSY|BSYNC|BREAK|"
                        r"BMOV|UTCBAR|UTCCTL|CCTL|CCTLL|NANOSLEEP|YIELD|ELECT|UCGABAR_\w+|ACQBULK|ACQSHMINIT|USETMAXREG|"
                        r"WARPGROUPSET|UTCATOM\w*)\b"),
    ("control", r"(BRA|BRX|BRXU|JMP|JMX|EXIT|RET|CALL|BPT|KILL|RPCMOV|LEPC|PREEXIT|BRAU?)\b"),
)  # fmt: skip
_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in _CLASSES)
CLASSES = (*(name for name, _ in _CLASSES), "others")
"""The classes of instructions, in the order in which a report lists them."""

_WIDTHS = {"32": 4, "64": 8, "128": 16, "256": 32, "U8": 1, "S8": 1, "U16": 2, "S16": 2}
_PER_WARP = re.compile(r"(?P<m>16|8)(?P<n>8)(?P<k>256|128|64|32|16|8|4)")
_PER_WARP_GROUP = re.compile(r"(\d+)x(\d+)x(\d+)")
_WARPS_IN_GROUP = 4


def class_of(instruction: Instruction) -> str:
    """One of `CLASSES`."""
    return next((name for name, pattern in _COMPILED if pattern.match(instruction.opcode)), CLASSES[-1])


def mix(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Number of instructions by class, without empty classes, in the order of `CLASSES`."""
    counts = Counter(map(class_of, instructions))
    return {name: counts[name] for name in CLASSES if counts[name]}


def is_tensor(instruction: Instruction) -> bool:
    """Whether it multiplies matrices on tensor cores."""
    return _COMPILED[0][1].match(instruction.opcode) is not None


def tensor_instructions(instructions: Iterable[Instruction]) -> dict[str, int]:
    """Matrix instructions by kind, such as "HMMA.16816.F32": operand modifiers do not make a kind."""
    ignored = {"tnspA", "tnspB", "gsb0", "reuse", "ROW", "COL", "SAT"}
    return dict(
        Counter(
            ".".join(p for p in i.opcode.split(".") if p not in ignored) for i in instructions if is_tensor(i)
        ).most_common()
    )


def width(instruction: Instruction) -> int:
    """Bytes that one lane of a load, store or copy moves."""
    return next((_WIDTHS[m] for m in instruction.modifiers if m in _WIDTHS), 4)


def by_width(instructions: Iterable[Instruction], *bases: str) -> dict[str, int]:
    """Instructions with one of these opcodes, by opcode and bytes per thread: {"LDG 16 B": 8}; TMA ones by opcode."""
    chosen = (i for i in instructions if i.base in bases)
    counts = Counter(i.base if i.base.startswith("U") else f"{i.base} {width(i)} B" for i in chosen)
    return dict(sorted(counts.items(), key=lambda item: (item[0].split()[0], width_of_key(item[0]))))


def width_of_key(key: str) -> int:
    """Bytes per thread of a key that `by_width` made; 0 for TMA."""
    parts = key.split()
    return int(parts[1]) if len(parts) > 1 else 0


def tensor_flops(instruction: Instruction, num_warps: int, shape: tuple[int, int, int] | None = None) -> int | None:
    """FLOPs of one matrix instruction, executed by all warps of a thread block.

    Args:
        instruction: a matrix instruction.
        num_warps: of the thread block. HMMA, IMMA and QMMA multiply once per warp, HGMMA and its like once per group
            of four warps; one thread issues UTC*MMA for the whole block.
        shape: M, N, K of a UTC*MMA, which keeps its shape in a register.

    Returns:
        2·M·N·K, times the number of warps or groups; None if the shape is not known.
    """
    if instruction.base.startswith("UTC"):
        return 2 * shape[0] * shape[1] * shape[2] if shape else None
    for part in instruction.modifiers:
        if (group := _PER_WARP_GROUP.fullmatch(part)) is not None:
            m, n, k = (int(x) for x in group.groups())
            return 2 * m * n * k * max(1, num_warps // _WARPS_IN_GROUP)
        if (warp := _PER_WARP.fullmatch(part)) is not None:
            return 2 * int(warp["m"]) * int(warp["n"]) * int(warp["k"]) * num_warps
    return None


def float_flops(instructions: Iterable[Instruction], num_warps: int, warp: int = 32) -> int:
    """FLOPs of fp32 multiply-adds (two each), additions and products, if every thread executes each once."""
    weight = {"FFMA": 2, "FADD": 1, "FMUL": 1, "FFMA2": 4, "FADD2": 2, "FMUL2": 2}
    return sum(weight.get(i.base, 0) for i in instructions) * num_warps * warp
