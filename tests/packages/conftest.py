"""Holds the table of docs/simulator.md against what the tests of a file have launched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.packages.harness import Ledger

_deselected: set[str] = set()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Remembers the files of which only a part runs."""
    _deselected.update(item.path.name for item in items)


@pytest.fixture
def last_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autotuned kernels take the last configuration that their pruning keeps, instead of the first."""
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs
    monkeypatch.setattr(Autotuner, "prune_configs", lambda tuner, options: prune(tuner, options)[::-1])


@pytest.fixture
def table_says_what_ran(request: pytest.FixtureRequest, repository: Path) -> Callable[[Ledger], None]:
    """Checks a package's row; to be called by the last test of a file."""

    def check(ledger: Ledger) -> None:
        if request.path.name in _deselected or any("::" in argument for argument in request.config.args):
            pytest.skip("the table counts all tests of the file, and only some of them run")
        page = (repository / "docs" / "simulator.md").read_text()
        assert ledger.row() in page, f"docs/simulator.md must have the row\n{ledger.row()}"
        for name, reason in ledger.failing.items():
            assert f"- `{name}`: {reason}" in page, f"docs/simulator.md must say why {name} fails: {reason}"

    return check
