"""The executed table against the accounting on paper, at sizes that run in seconds."""

import pytest

from cme295lab.attention.io import attention_flops, flash2_backward_elements, flash2_forward_elements, paper_table_bytes
from cme295lab.attention.paper_table import run_paper_table

SIZES = {"heads": 2, "n": 128, "d": 16}


def test_standard_attention_moves_what_the_accounting_says():
    counted = run_paper_table(batch=3, slice_size=2, progress=False, **SIZES)
    assert counted["standard"].compulsory_bytes == paper_table_bytes(batch=3, **SIZES).standard_bytes


def test_flash_attention_requests_what_its_formulas_say():
    counted = run_paper_table(batch=1, progress=False, **SIZES)["flash"]
    n, d = SIZES["n"], SIZES["d"]
    statistics = n + 3 * n + 2 * n  # lse, delta and their readings are fp32: two bytes more than an element
    elements = flash2_forward_elements(n, d, 128) + flash2_backward_elements(n, d, 128, 128)
    assert counted.requested_bytes == SIZES["heads"] * (2 * elements + 2 * statistics)
    assert counted.compulsory_bytes <= counted.requested_bytes


def test_flops_of_the_products_are_those_of_the_kernels():
    counted = run_paper_table(batch=1, progress=False, **SIZES)
    forward = attention_flops(SIZES["n"], SIZES["d"], SIZES["heads"])
    assert counted["standard"].dot_flops == 3 * forward  # 2 products forward, 4 backward
    assert counted["flash"].dot_flops == 4.5 * forward  # 2 forward, 4 for dK and dV, 3 for dQ


def test_slices_do_not_change_the_counts():
    whole = run_paper_table(batch=3, slice_size=3, progress=False, **SIZES)
    cut = run_paper_table(batch=3, slice_size=1, progress=False, **SIZES)
    for name in ("standard", "flash"):
        for count in ("flops", "dot_flops", "requested_bytes", "compulsory_bytes"):
            assert getattr(whole[name], count) == getattr(cut[name], count), (name, count)


def test_counting_without_computing_gives_the_same_table():
    computed = run_paper_table(batch=2, progress=False, **SIZES)
    counted = run_paper_table(batch=2, progress=False, compute=False, **SIZES)
    for name in ("standard", "flash"):
        for count in ("num_launches", "flops", "dot_flops", "requested_bytes", "compulsory_bytes"):
            assert getattr(counted[name], count) == getattr(computed[name], count), (name, count)


@pytest.mark.parametrize("name", ["batch", "slice_size", "n"])
def test_sizes_below_one_are_refused_by_name(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        run_paper_table(**{name: 0})
