"""docs/simulator.md lists what the simulator implements: it must be what the code has."""

import re
from pathlib import Path

import pytest
import triton.language as tl

from cme295lab.simulator import frontend
from cme295lab.simulator.language import METHODS, NATIVE

GROUPS = {
    "core": "programs, memory, types", "block_pointers": "block pointers", "descriptors": "tensor descriptors",
    "elementwise": "element by element", "shapes": "shapes",
    "reductions": "reductions and scans", "mapping": "gathering and mapping", "products": "products",
    "scaled_products": "products of scaled formats",
    "random": "random numbers",
    "standard": "sorting and more",
}  # fmt: skip
INTERNAL = {"philox_impl", "to", "_experimental_make_tensor_descriptor"}


def table() -> str:
    """The table of functions, as it must stand in the documentation."""
    lines = ["| | functions; those with a dot are methods of blocks too |", "|---|---|"]
    for module, title in GROUPS.items():
        names = sorted(
            n for n, b in NATIVE.items() if b.function.__module__.endswith(f".{module}") and n not in INTERNAL
        )
        if names:
            listed = ", ".join(f"`.{n}`" if n in METHODS else f"`{n}`" for n in names)
            lines.append(f"| {title} | {listed} |")
    return "\n".join(lines)


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "simulator.md").read_text()


def test_the_table_of_functions_is_that_of_the_code(page):
    found = re.search(r"<!-- functions -->\n(.*)\n<!-- /functions -->", page, re.DOTALL)
    assert found is not None
    assert found.group(1).strip() == table(), "paste the right-hand side into docs/simulator.md"


def test_every_function_belongs_to_a_group():
    assert {b.function.__module__.rsplit(".", 1)[-1] for b in NATIVE.values()} == set(GROUPS)


@pytest.mark.needs_triton
def test_what_triton_writes_in_its_own_language_is_ours_too():
    """Nothing that kernels may name runs from the installed Triton's source, so it makes no difference which one."""
    for module in (tl, tl.math, tl.standard, tl.random):
        for name in dir(module):
            if not name.startswith("_") and name != "sort_impl" and frontend.is_kernel(getattr(module, name)):
                assert name in NATIVE, name


def test_what_is_said_to_be_refused_is_not_implemented(page):
    section = page.split("### What is refused, and why")[1].split("\n## ")[0]
    names = re.findall(r"`tl\.(\w+)`", section)
    assert "inline_asm_elementwise" in names
    for name in set(names) - {"math", "constexpr"}:
        assert name not in NATIVE or name == "inline_asm_elementwise", name  # which is there to refuse
        assert not frontend.is_kernel(getattr(tl, name, None)), name


def test_every_module_is_in_the_table_of_modules(page, repository):
    section = page.split("## Architecture")[1]
    for path in (repository / "cme295lab" / "simulator").glob("*.py"):
        if path.stem != "__init__":
            assert f"`{path.stem}`" in section, path.stem
