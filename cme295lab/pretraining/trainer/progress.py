"""The progress bar of a run: loss, tokens per second, MFU."""

from __future__ import annotations

import time
from typing import Any

from cme295lab.pretraining.trainer.log import Record

_REDRAW_S = 0.2  # drawing takes longer than a step of a tiny model
_SMOOTHING = 0.05  # of the loss, whose batches differ


class Progress:
    """A bar of tqdm's, or nothing; use it as a context.

    Args:
        shown: whether there is a bar at all.
        first: updates done before.
        last: updates after which it is full.
    """

    def __init__(self, shown: bool, first: int, last: int) -> None:
        self.shown, self.first, self.last = shown, first, last
        self._bar: Any = None
        self._loss: float | None = None
        self._drawn_s = 0.0

    def __enter__(self) -> Progress:
        if self.shown:
            from tqdm.auto import tqdm

            self._bar = tqdm(initial=self.first, total=self.last, unit="step", miniters=1)
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, record: Record) -> None:
        """Move on by a step; redraw if the last time is long enough ago."""
        if self._bar is None:
            return
        before = record["loss"] if self._loss is None else self._loss
        self._loss = before + _SMOOTHING * (record["loss"] - before)
        now = time.perf_counter()
        if record["step"] == self.last or now - self._drawn_s > _REDRAW_S:
            mfu = "" if record["mfu"] is None else f", MFU {record['mfu']:.0%}"
            text = f"loss {self._loss:.3f}, {record['tokens_per_s']:,.0f} tokens/s{mfu}"
            self._bar.set_postfix_str(text, refresh=False)
            self._drawn_s = now
        self._bar.update()
