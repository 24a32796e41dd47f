"""What holds the repository together: the lazy import, the two lists of dependencies, the Makefile."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import cme295lab

TARGETS = {
    *("setup", "lab", "run", "test", "check", "bench", "test-gpu"),
    *("notebooks", "release", "clean", "setup-browser", "help"),
}


@pytest.fixture
def project(repository: Path) -> dict[str, Any]:
    """The table `project` of pyproject.toml."""
    return tomllib.loads((repository / "pyproject.toml").read_text())["project"]


def test_import_loads_nothing_heavy() -> None:
    code = "import cme295lab, sys; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "cme295lab" in output
    assert not {"torch", "triton", "numpy", "matplotlib", "plotly", "ipywidgets", "typer", "papermill"} & set(output)


@pytest.mark.parametrize("module", ["cme295lab.cli", "cme295lab.units", "cme295lab.hardware"])
def test_ground_floor_needs_no_torch(module: str) -> None:
    code = f"import {module}, sys; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"


def test_rooms_load_when_named() -> None:
    assert cme295lab.units.GiB == 2**30
    assert "units" in dir(cme295lab)
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'; its rooms are .*units"):
        _ = cme295lab.nothing


def test_kernels_are_the_ones_at_the_top(repository: Path) -> None:
    link = repository / "cme295lab" / "kernels"
    assert link.is_symlink()
    assert link.readlink() == Path("../kernels")


def test_conda_environment_lists_the_same_dependencies(repository: Path, project: dict[str, Any]) -> None:
    environment = yaml.safe_load((repository / "environment.yml").read_text())["dependencies"]
    (from_pip,) = [entry["pip"] for entry in environment if isinstance(entry, dict)]
    from_conda = [entry for entry in environment if isinstance(entry, str)]
    assert f"python{project['requires-python']}" in from_conda
    assert "-e .[dev]" in from_pip
    listed = [*(e for e in from_conda if not re.match(r"(python|pip)\b", e)), *(e for e in from_pip if e[0] != "-")]
    assert {_normal(entry) for entry in listed} == {_normal(entry) for entry in project["dependencies"]}


def _normal(requirement: str) -> str:
    parsed = Requirement(requirement)
    return f"{parsed.name.lower()} {parsed.specifier} {parsed.marker or ''}".strip()


def test_constraints_satisfy_the_project_and_name_no_machine(repository: Path, project: dict[str, Any]) -> None:
    text = (repository / "constraints.txt").read_text()
    assert not re.search(r"://|@|file:|/", text)
    pinned = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    versions = {r.name.lower().replace("_", "-"): next(iter(r.specifier)).version for r in pinned}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[requirement.name.lower()]), requirement


def test_default_target_prints_a_line_for_every_target(repository: Path) -> None:
    printed = subprocess.run(["make"], cwd=repository, capture_output=True, text=True, check=True).stdout
    helped = dict(re.findall(r"^  make ([a-z-]+) +(.+)$", printed, re.MULTILINE))
    assert set(helped) >= TARGETS
    phony = re.search(r"^\.PHONY: (.+)$", (repository / "Makefile").read_text(), re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == set(helped)
    assert all(len(line) <= 120 for line in printed.splitlines())


def test_ci_calls_make_test_and_is_executable(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert script.read_text().splitlines()[-1] == "make test"


def test_modules_are_short_enough_to_read(repository: Path) -> None:
    files = [*(repository / "cme295lab").rglob("*.py"), *(repository / "kernels").rglob("*.py")]
    too_long = {path.name: n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert too_long == {}


def _collect_browser_tests(repository: Path, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Collect the browser tests on a machine that has no Chromium."""
    command = [sys.executable, "-m", "pytest", "-m", "browser", "tests/browser", "-p", "no:cacheprovider"]
    nowhere = {"PATH": str(tmp_path), "PLAYWRIGHT_BROWSERS_PATH": str(tmp_path), "HOME": str(tmp_path), **environment}
    return subprocess.run(command, cwd=repository, env=nowhere, capture_output=True, text=True, check=False)


def test_missing_browser_is_said_in_one_line(repository: Path, tmp_path: Path) -> None:
    result = _collect_browser_tests(repository, tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"\d+ browser tests not run: no Chromium on this machine: run `make setup-browser`", result.stdout)


def test_missing_browser_is_an_error_in_ci(repository: Path, tmp_path: Path) -> None:
    result = _collect_browser_tests(repository, tmp_path, CI="true")
    assert result.returncode != 0
    assert "CI must not skip the browser tests" in result.stdout + result.stderr


def test_types_are_checked_in_tests() -> None:
    from cme295lab.units import format_bytes

    assert "TypeCheckError" in _error_of(lambda: format_bytes("many"))


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "no error"
