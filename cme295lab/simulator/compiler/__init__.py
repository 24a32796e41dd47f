"""What Triton's compiler makes of a kernel, for a GPU that need not be there.

Read `report` (the public part) first; `signature` and `build` compile, `failures` words what the compiler refuses,
`sass` reads machine code, `mix` says what its instructions are for, `ir` reads what is still visible of the source,
`main_loop` finds the loop that does the work, `occupancy` counts thread blocks per SM, `advice` says what is wrong.
"""

from cme295lab.simulator.compiler.main_loop import MainLoop
from cme295lab.simulator.compiler.report import CompileReport, compile_report

__all__ = ["CompileReport", "MainLoop", "compile_report"]
