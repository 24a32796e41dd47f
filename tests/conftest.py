"""What all tests share: shapes are checked, and what this machine cannot run is left out aloud.

Shapes and types in the library's signatures are checked at every call (jaxtyping, beartype). A test that expects an
error (it contains `pytest.raises`) is about the library's own message, so there the checker stands aside. Kernels are
left alone, because Triton reads their source, and so are the rooms in which nothing is a tensor or every call counts.
"""

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import iter_modules

import jaxtyping
import pytest

import cme295lab
import tests.typecheck  # the import hook finds it by name, as an attribute of `tests`
from cme295lab import _triton_imports
from cme295lab.course import browser

UNCHECKED_ROOMS = {"kernels", "simulator", "grading", "widgets", "cli", "course", "__main__"}
CHECKED_ROOMS = [f"cme295lab.{m.name}" for m in iter_modules(cme295lab.__path__) if m.name not in UNCHECKED_ROOMS]

pytest_plugins = ["tests.browser.fixtures"]
collect_ignore = ["without_triton"]  # importing what is in there blocks Triton for the whole process
_shape_checks = jaxtyping.install_import_hook(CHECKED_ROOMS, f"{tests.typecheck.__name__}.checked")
_left_out = pytest.StashKey[list[str]]()


@pytest.fixture(autouse=True)
def _shapes_unless_an_error_is_expected(request: pytest.FixtureRequest) -> Iterator[None]:
    function = getattr(request, "function", None)
    expects_error = function is not None and "pytest.raises" in inspect.getsource(function)
    jaxtyping.config.update("jaxtyping_disable", expects_error)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _same_numbers_in_every_run() -> None:
    """A test that fails, fails again: random tensors are the same whatever ran before."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture
def repository() -> Path:
    """The clone that the tests belong to."""
    return Path(__file__).resolve().parents[1]


@pytest.hookimpl(trylast=True)  # after -m has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU, Triton or a browser that is not there; in CI a missing browser is an error."""
    reasons = {"gpu": _why_no_gpu, "needs_triton": _why_no_triton, "browser": _why_no_browser}
    config.stash[_left_out] = []
    for marker, why in reasons.items():
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and (reason := why()):
            config.hook.pytest_deselected(items=marked)
            items[:] = [item for item in items if item not in marked]
            config.stash[_left_out].append(f"{len(marked)} {marker} tests not run: {reason}")


def pytest_report_header() -> list[str]:
    """Workers leave tests out without a word, so the head of the report says it."""
    missing = _why_no_triton()
    return [f"tests marked needs_triton are left out: {missing}"] if missing else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say in one line each what was left out."""
    for line in config.stash.get(_left_out, []):
        terminalreporter.write_line(line, yellow=True)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Having left out everything, for a stated reason, is no error."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash.get(_left_out, []):
        session.exitstatus = pytest.ExitCode.OK


def _why_no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "PyTorch sees no CUDA device"


def _why_no_triton() -> str:
    return "" if _triton_imports.is_installed() else "Triton is not installed, and they are about the real one"


def _why_no_browser() -> str:
    if browser.find_browser():
        return ""
    if os.environ.get("CI"):
        raise pytest.UsageError(f"no Chromium, and CI must not skip the browser tests: {browser.HOW_TO_GET_ONE}")
    return f"no Chromium on this machine: {browser.HOW_TO_GET_ONE}"
