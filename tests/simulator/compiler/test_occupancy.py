"""Thread blocks per SM, worked by hand from the table of the CUDA programming guide."""

import pytest

from cme295lab.simulator import SimulatorError
from cme295lab.simulator.compiler.occupancy import LIMITS, occupancy
from cme295lab.units import KiB


@pytest.mark.parametrize(
    ("capability", "registers", "num_warps", "shared", "ctas", "limited_by"),
    [
        (80, 32, 4, 0, 16, "registers and warps"),  # 64 warps / 4; 32 registers fill exactly 64 warps
        (80, 16, 1, 0, 32, "blocks"),
        (80, 128, 4, 0, 4, "registers"),  # 65536 / (128 x 32) = 16 warps
        (80, 172, 8, 0, 1, "registers"),  # 5632 a warp: 2 in each quarter of 16384
        (80, 168, 4, 0, 3, "registers"),  # 5376 a warp: 3 in each quarter, 12 warps
        (80, 80, 1, 0, 24, "registers"),  # 2560 a warp: 6 in each quarter, though 25 would fit an undivided file
        (80, 33, 4, 0, 12, "registers"),  # rounded up to 40 registers: 12 warps in each quarter
        (80, 32, 4, 80 * KiB, 2, "shared memory"),  # 164 / (80 + 1)
        (80, 32, 4, 81 * KiB, 2, "shared memory"),
        (80, 32, 4, 82 * KiB, 1, "shared memory"),
        (80, 32, 4, 164 * KiB, 0, "shared memory"),
        (86, 32, 4, 0, 12, "warps"),
        (86, 16, 1, 0, 16, "blocks"),
        (89, 16, 1, 0, 24, "blocks"),
        (89, 32, 4, 49 * KiB, 2, "shared memory"),
        (90, 32, 4, 75 * KiB, 3, "shared memory"),
        (100, 16, 1, 0, 32, "blocks"),
        (120, 32, 4, 99 * KiB, 1, "shared memory"),
    ],
)  # fmt: skip
def test_by_hand(capability, registers, num_warps, shared, ctas, limited_by):
    fit = occupancy(capability, registers=registers, num_warps=num_warps, shared_bytes=shared)
    assert fit.ctas_per_sm == ctas
    assert fit.limited_by == limited_by
    assert fit.fraction == ctas * num_warps / LIMITS[capability].warps
    assert fit.ctas_by_resource["blocks"] == LIMITS[capability].blocks


def test_tensor_memory_is_shared_too():
    fit = occupancy(100, registers=32, num_warps=4, shared_bytes=0, tensor_memory_columns=256)
    assert (fit.ctas_per_sm, fit.limited_by) == (2, "tensor memory")


def test_an_architecture_that_is_not_known():
    with pytest.raises(SimulatorError, match="the limits of sm_70 are not known; known are sm_80"):
        occupancy(70, registers=32, num_warps=4, shared_bytes=0)
