"""`CommLedger` counts what a rank sends: calls and bytes by collective and tag, of any torch.distributed code.

    with CommLedger() as ledger:
        with ledger_tag("gradients"):
            loss.backward()
    print(ledger)                                   # a table; ledger.sent_bytes is the total

Counted are the calls of `transport`, one's own calls of torch.distributed, those of DistributedDataParallel's C++
reducer, of FSDP, and point-to-point messages (`c10d_operators` says how they are seen). A call counts once, as the
collective that it stands for, with the bytes of the best ring (`calls`), whatever the backend does inside; the lesson's
own rings of sends and receives are counted as sends and receives, and come to the same sum.

A ledger is of one rank. It can be pickled, so a rank returns it from `run_distributed`; `merge` puts those of all ranks
into one table.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from cme295lab.parallel.communication.c10d_operators import c10d_watch
from cme295lab.parallel.communication.calls import CollectiveCall, ledger_tag
from cme295lab.parallel.communication.consistency import Checker
from cme295lab.units import format_bytes

__all__ = ["CollectiveCall", "CommLedger", "LedgerTable", "Traffic", "ledger_tag", "merge"]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Calls added up.

    Attributes:
        num_calls: how many.
        payload_bytes: bytes of their vectors.
        sent_bytes: bytes sent by the rank.
        received_bytes: bytes received by the rank.
    """

    num_calls: int = 0
    payload_bytes: int = 0
    sent_bytes: float = 0.0
    received_bytes: float = 0.0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            num_calls=self.num_calls + other.num_calls,
            payload_bytes=self.payload_bytes + other.payload_bytes,
            sent_bytes=self.sent_bytes + other.sent_bytes,
            received_bytes=self.received_bytes + other.received_bytes,
        )


class CommLedger:
    """Counts the collective calls that this rank makes in a block.

    Args:
        check: also compare each call between the ranks before it starts, see `consistency.checked`.
        timeout_s: with `check`, how long to wait for a rank that does not call.

    Attributes:
        calls: a `CollectiveCall` for each call, in order.
        rank: the rank that counts; None before the block.
    """

    def __init__(self, *, check: bool = False, timeout_s: float | None = None) -> None:
        if timeout_s is not None and not check:
            raise ValueError("timeout_s is for check=True; without it nothing waits")
        self.calls: list[CollectiveCall] = []
        self.rank: int | None = None
        self._check, self._timeout_s = check, timeout_s
        self._open: ExitStack | None = None
        self._checker: Checker | None = None

    def __enter__(self) -> CommLedger:
        if self._open is not None:
            raise RuntimeError("this ledger is counting already; make another one for a block within its block")
        self.rank = dist.get_rank() if dist.is_initialized() else None
        with ExitStack() as stack:
            if self._check:
                self._checker = Checker(timeout_s=self._timeout_s)
                stack.callback(self._checker.leave)
            stack.enter_context(c10d_watch(self))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._open is not None
        stack, self._open = self._open, None
        stack.__exit__(*error)
        self._checker = None

    def observe(self, call: CollectiveCall, group: dist.ProcessGroup) -> None:
        """Count a call that is about to start (called by whoever announces it)."""
        if self._checker is not None:
            self._checker.observe(call, group)
        self.calls.append(call)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None, "_checker": None}

    @property
    def total(self) -> Traffic:
        """All calls together."""
        return _add_up(self.calls)

    @property
    def sent_bytes(self) -> float:
        """Bytes that this rank sent."""
        return self.total.sent_bytes

    @property
    def received_bytes(self) -> float:
        """Bytes that this rank received."""
        return self.total.received_bytes

    @property
    def payload_bytes(self) -> int:
        """Bytes of the vectors of all calls."""
        return self.total.payload_bytes

    def by_collective(self) -> dict[str, Traffic]:
        """Traffic by collective, in the order of first use."""
        return self._by(lambda call: call.collective)

    def by_tag(self) -> dict[str, Traffic]:
        """Traffic by tag, in the order of first use; "" is what no `ledger_tag` named."""
        return self._by(lambda call: call.tag)

    def _by(self, key: Callable[[CollectiveCall], str]) -> dict[str, Traffic]:
        return {name: _add_up(call for call in self.calls if key(call) == name) for name in map(key, self.calls)}

    def report(self) -> LedgerTable:
        """A row for each tag, collective and dtype; prints as text and shows as a table in a notebook."""
        rank = "rank ?" if self.rank is None else f"rank {self.rank}"
        return LedgerTable(columns=(rank,), rows=_rows([self]))

    def __str__(self) -> str:
        return str(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


@dataclass(frozen=True, kw_only=True)
class LedgerTable:
    """Traffic by tag, collective, dtype and rank.

    Attributes:
        columns: names of the ranks.
        rows: ((tag, collective, dtype, number of ranks), traffic of each rank).
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[tuple[str, str, str, int], tuple[Traffic, ...]], ...]

    @property
    def totals(self) -> tuple[Traffic, ...]:
        """All rows together, by rank."""
        return tuple(sum((row[i] for _, row in self.rows), Traffic()) for i in range(len(self.columns)))

    def _cells(self) -> list[list[str]]:
        """Head, rows and totals as text. Calls and payload are those of the first rank that has any."""
        lines = [["tag", "collective", "dtype", "ranks", "calls", "payload", *(f"sent, {c}" for c in self.columns)]]
        for (tag, collective, dtype, num_ranks), row in self.rows:
            some = next(traffic for traffic in row if traffic.num_calls)
            counts = [str(some.num_calls), format_bytes(some.payload_bytes)]
            sent = [format_bytes(traffic.sent_bytes) for traffic in row]
            lines.append([tag or "-", collective, dtype, str(num_ranks), *counts, *sent])
        first = self.totals[0] if self.columns else Traffic()
        totals = [str(first.num_calls), format_bytes(first.payload_bytes)]
        return [*lines, ["total", "", "", "", *totals, *(format_bytes(traffic.sent_bytes) for traffic in self.totals)]]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        left = range(3)
        texts = [
            "  ".join(f"{text:<{widths[i]}}" if i in left else f"{text:>{widths[i]}}" for i, text in enumerate(line))
            for line in cells
        ]
        return "\n".join(text.rstrip() for text in texts)

    def _repr_html_(self) -> str:
        """A table that follows the notebook's light or dark theme."""
        head, *rows = self._cells()
        lines = [_line("th", head), *(_line("td", row) for row in rows)]
        return f'<table style="font-variant-numeric:tabular-nums">{"".join(lines)}</table>'


def merge(ledgers: Iterable[CommLedger]) -> LedgerTable:
    """Put the ledgers of several ranks into one table, a column of sent bytes for each.

    Args:
        ledgers: one of each rank, in the order of the columns.

    Raises:
        TypeError: if something else than ledgers is given.
        ValueError: if there is none.
    """
    ledgers = list(ledgers)
    for ledger in ledgers:
        if not isinstance(ledger, CommLedger):
            raise TypeError(f"ledgers must be CommLedgers, one of each rank, got {type(ledger).__name__}")
    if not ledgers:
        raise ValueError("ledgers must have at least one CommLedger, got none")
    names = [f"rank {index if ledger.rank is None else ledger.rank}" for index, ledger in enumerate(ledgers)]
    return LedgerTable(columns=tuple(names), rows=_rows(ledgers))


def _add_up(calls: Iterable[CollectiveCall]) -> Traffic:
    total = Traffic()
    for call in calls:
        total += Traffic(
            num_calls=1,
            payload_bytes=call.payload_bytes,
            sent_bytes=call.sent_bytes,
            received_bytes=call.received_bytes,
        )
    return total


def _kind(call: CollectiveCall) -> tuple[str, str, str, int]:
    return call.tag, call.collective, call.dtype, call.num_ranks


def _rows(ledgers: Sequence[CommLedger]) -> tuple[tuple[tuple[str, str, str, int], tuple[Traffic, ...]], ...]:
    kinds = dict.fromkeys(_kind(call) for ledger in ledgers for call in ledger.calls)
    return tuple(
        (kind, tuple(_add_up(call for call in ledger.calls if _kind(call) == kind) for ledger in ledgers))
        for kind in kinds
    )


def _line(cell: str, texts: Sequence[str]) -> str:
    aligned = ["left"] * 3 + ["right"] * (len(texts) - 3)
    cells = (f'<{cell} style="text-align:{a}">{html.escape(t)}</{cell}>' for a, t in zip(aligned, texts))
    return f"<tr>{''.join(cells)}</tr>"
