"""What the caller sees while ranks run: their output, line by line with the rank in front, and one progress bar.

Everything is written from the thread that called ``run_distributed``: Jupyter shows what a thread of its own prints
under whatever cell runs just then.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

_CHUNK_BYTES = 1 << 16


class Console:
    """Output and progress of the ranks of one call.

    Args:
        files: descriptor (not blocking) of each rank's output.
        print_output: whether output is shown.
        progress: None shows the bar once a rank reports; False never.
    """

    def __init__(self, files: Sequence[int], *, print_output: bool, progress: bool | None) -> None:
        self._files = files
        self._rests = [b""] * len(files)
        self._print_output = print_output
        self._progress = progress
        self._done: dict[int, tuple[float, float]] = {}
        self._bar: Any = None

    def read(self, rank: int) -> Literal["something", "nothing", "end"]:
        """Show what a rank has printed.

        Args:
            rank: the rank.

        Returns:
            Whether there was something, nothing yet, or nothing any more.
        """
        try:
            data = os.read(self._files[rank], _CHUNK_BYTES)
        except BlockingIOError:
            return "nothing"
        *lines, self._rests[rank] = (self._rests[rank] + data).split(b"\n")
        self._show(rank, lines)
        return "something" if data else "end"

    def report(self, rank: int, done: float, total: float, text: str) -> None:
        """Move the bar to where the slowest of the ranks that have reported is."""
        if self._progress is False:
            return
        self._done[rank] = (done, total)
        done, total = min(self._done.values(), key=lambda pair: pair[0] / pair[1] if pair[1] else 1.0)
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total)
        self._bar.total = total
        self._bar.n = done
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.refresh()

    def close(self) -> None:
        """Show what is left of each rank's output, and leave the bar as it is."""
        for rank in range(len(self._files)):
            while self.read(rank) == "something":
                pass
            if self._rests[rank]:
                self._show(rank, [self._rests[rank]])
                self._rests[rank] = b""
        if self._bar is not None:
            self._bar.close()

    def _show(self, rank: int, lines: Sequence[bytes]) -> None:
        if not self._print_output or not lines:
            return
        # of a line that was written over, like a rank's own progress bar, the last state is shown
        shown = [line.decode(errors="replace").rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
        text = "\n".join(f"[rank {rank}] {line}" for line in shown)
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)
