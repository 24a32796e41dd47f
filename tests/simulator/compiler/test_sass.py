"""Machine code, written by hand, read into instructions and loops."""

import pytest

from cme295lab.simulator.compiler import mix, sass

LISTING = """\
\t.section\t.text.kernel,"ax",@progbits
kernel:
.text.kernel:
\t//## File "/somewhere/kernels.py", line 7
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BRA `(.L_x_3) ;
.L_x_0:
\t//## File "/somewhere/kernels.py", line 9
        /*0020*/                   LDG.E.128 R4, [R2.64] ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32 R8, R4.reuse, R6, R8 ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
        /*0050*/               @P2 BRA `(.L_x_4) ;
.L_x_2:
        /*0060*/                   FADD R1, R1, R2 ;
        /*0070*/                   BRA.U UP0, `(.L_x_0) ;
.L_x_3:
        /*0080*/                   STG.E [R2.64], R8 ;
        /*0090*/                   EXIT ;
.L_x_4:
        /*00a0*/                   NANOSLEEP 0x20 ;
        /*00b0*/                   BRA `(.L_x_2) ;
.L_x_5:
        /*00c0*/                   BRA `(.L_x_5) ;
        /*00d0*/                   NOP;
"""


def test_instructions():
    code, labels = sass.parse(LISTING)
    assert len(code) == 13
    assert [i.opcode for i in code[:3]] == ["MOV", "BRA", "LDG.E.128"]
    assert (code[1].predicate, code[1].operands) == ("@!P0", "`(.L_x_3)")
    assert (code[0].file, code[0].line, code[2].line, code[-1].line) == ("kernels.py", 7, 9, 9)
    assert (code[2].base, code[2].modifiers) == ("LDG", ["E", "128"])
    assert labels[".L_x_1"] == 3


def test_loops():
    """The outer loop has the block that was moved out of line; the endless loop at the end is never reached."""
    code, labels = sass.parse(LISTING)
    outer, inner = sorted(sass.loops(code, labels), key=len, reverse=True)
    assert [hex(i.address) for i in inner.instructions] == ["0x30", "0x40"]
    assert [i.address for i in outer.instructions] == [0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0]
    assert outer.header == 0x20


def test_a_jump_back_is_no_loop_if_the_target_can_be_reached_another_way():
    code, labels = sass.parse(
        "        /*0000*/  @P0 BRA `(.L_x_1) ;\n.L_x_0:\n        /*0010*/  MOV R1, R2 ;\n        /*0020*/  EXIT ;\n"
        ".L_x_1:\n        /*0030*/  MOV R1, R3 ;\n        /*0040*/  BRA `(.L_x_0) ;\n"
    )
    assert sass.loops(code, labels) == []
    assert sass.loops([], {}) == []


def instruction(opcode):
    return sass.Instruction(0, opcode, "")


@pytest.mark.parametrize(
    ("opcode", "name"),
    [
        ("HMMA.16816.F32", "tensor cores"), ("HGMMA.64x128x16.F32", "tensor cores"), ("UTCHMMA", "tensor cores"),
        ("LDG.E.128", "global loads"), ("LDGSTS.E.BYPASS.128", "async copies"), ("LDGDEPBAR", "synchronisation"),
        ("UTMALDG.2D", "TMA"), ("STG.E", "global stores"), ("RED.E.ADD.F32", "atomics"),
        ("LDSM.16.M88.4", "shared loads"),
        ("STS.128", "shared stores"), ("LDTM.x64", "tensor memory"), ("STL", "local memory"), ("LDC", "constants"),
        ("FFMA.FTZ", "fp32"), ("FFMA2", "fp32"), ("MUFU.EX2", "special functions"),
        ("F2FP.BF16.F32.PACK_AB", "conversions"),
        ("IMAD.MOV.U32", "moves"), ("IMAD.WIDE", "integers and addresses"), ("SHFL.BFLY", "exchange between lanes"),
        ("BAR.SYNC.DEFER_BLOCKING", "synchronisation"), ("BRA.U", "control"), ("WHATEVER", "others"),
    ],
)  # fmt: skip
def test_classes(opcode, name):
    assert mix.class_of(instruction(opcode)) == name
    assert name in mix.CLASSES


@pytest.mark.parametrize(
    ("opcode", "num_warps", "flops"),
    [
        ("HMMA.16816.F32", 4, 4 * 2 * 16 * 8 * 16),
        ("HMMA.1688.F32.TF32", 8, 8 * 2 * 16 * 8 * 8),
        ("IMMA.16832.S8.S8", 1, 2 * 16 * 8 * 32),
        ("DMMA.884", 2, 2 * 2 * 8 * 8 * 4),
        ("HGMMA.64x128x16.F32", 8, 2 * 2 * 64 * 128 * 16),
        ("QGMMA.64x64x32.F32.E5M2.E5M2", 4, 2 * 64 * 64 * 32),
        ("UTCHMMA", 4, None),
    ],
)
def test_flops_of_matrix_instructions(opcode, num_warps, flops):
    assert mix.tensor_flops(instruction(opcode), num_warps) == flops


def test_flops_of_an_instruction_with_its_shape_elsewhere():
    assert mix.tensor_flops(instruction("UTCHMMA"), 8, (128, 64, 16)) == 2 * 128 * 64 * 16


@pytest.mark.parametrize(
    ("opcode", "width"),
    [("LDG.E", 4), ("LDG.E.64", 8), ("LDG.E.128", 16), ("LDG.E.U16", 2), ("LDG.E.U8.CONSTANT", 1),
     ("LDGSTS.E.BYPASS.LTC128B.128", 16), ("LDGSTS.E.LTC128B", 4), ("LDG.E.ENL2.256", 32), ("STL", 4)],
)  # fmt: skip
def test_widths(opcode, width):
    assert mix.width(instruction(opcode)) == width


def test_counts_by_width():
    code = [instruction(x) for x in ("LDG.E", "LDG.E.128", "LDG.E.128", "UTMALDG.2D", "STG.E", "LDGSTS.E.BYPASS.128")]
    assert mix.by_width(code, "LDG", "UTMALDG", "LDGSTS") == {
        "LDG 4 B": 1, "LDG 16 B": 2, "LDGSTS 16 B": 1, "UTMALDG": 1
    }  # fmt: skip
