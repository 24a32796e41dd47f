"""Pages between two memories: a small one that is computed in, and a large one where everything has its home.

A page is a tensor. Its home is in the CPU's memory, for good. To be computed with it must be in the pool, which holds
no more than its budget of bytes; when there is no room, the page that was not used for the longest time leaves (LRU).
A page that was changed is copied home before it leaves; one that was only read is dropped, its home is up to date.

                    fetch: copied in                        budget 3 pages, access to a, b, c, d, b
      home  ───────────────────────────►  pool              pool  a | ab | abc | bcd | cdb      a leaves for d
      (CPU) ◄───────────────────────────  (device)
                    evict: copied out, if changed

Everything that moves is counted, in pages and in bytes. A new page is born in the pool, made of zeros: nothing moves.

With a GPU the pool is in its memory and homes are pinned, so that copies need no second copy by the driver. Without one
the pool is a second, budgeted place in the CPU's memory: the same copies happen, from one buffer to another, and the
same bytes are counted. So nothing here is a simulation, but on a CPU nothing is saved either.

CUDA's unified memory, which QLoRA uses, does this in hardware, for pages of fixed size, when they are touched; here a
page is a whole tensor, and is asked for by name.

Source: Dettmers et al. 2023, "QLoRA", §3 "Paged Optimizers".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cme295lab.units import format_bytes


@dataclass(kw_only=True)
class PagingCounts:
    """What was moved between the two memories.

    Attributes:
        hits: uses of a page that was in the pool.
        page_ins: pages copied into it.
        page_outs: pages copied out of it.
        births: pages made of zeros in it.
        bytes_in: bytes copied in.
        bytes_out: bytes copied out.
    """

    hits: int = 0
    page_ins: int = 0
    page_outs: int = 0
    births: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def bytes_moved(self) -> int:
        """In both directions together."""
        return self.bytes_in + self.bytes_out

    def __sub__(self, earlier: PagingCounts) -> PagingCounts:
        """What came since `earlier`."""
        names = [item.name for item in fields(self)]
        return PagingCounts(**{name: getattr(self, name) - getattr(earlier, name) for name in names})

    def __str__(self) -> str:
        return (
            f"{self.hits} hits, {self.births} new pages, {self.page_ins} in ({format_bytes(self.bytes_in)}), "
            f"{self.page_outs} out ({format_bytes(self.bytes_out)})"
        )


class PagePool:
    """Pages within a budget of bytes, each with a home in the CPU's memory.

    Args:
        budget_bytes: what all pages in the pool together may take.

    Attributes:
        counts: what was moved so far.
        peak_bytes: the most that was in the pool at once.

    Raises:
        TypeError, ValueError: if the budget is no positive int.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = checked_budget(budget_bytes)
        self._homes: dict[str, Tensor] = {}
        self._resident: OrderedDict[str, Tensor] = OrderedDict()  # the page used last comes last
        self._changed: set[str] = set()
        self._unborn: set[str] = set()  # pages of zeros that were never used: there is nothing at home yet
        self._in_use: set[str] = set()
        self.counts = PagingCounts()
        self.peak_bytes = 0

    @property
    def budget_bytes(self) -> int:
        """What all pages in the pool together may take. Setting a smaller one sends pages home at once.

        Raises:
            TypeError, ValueError: if it is set to what is no positive int, or to less than the largest page.
        """
        return self._budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int) -> None:
        checked = checked_budget(budget_bytes)
        for name, home in self._homes.items():
            check_fits(name, home.nbytes, checked)
        self._budget_bytes = checked
        self._make_room(0)

    @property
    def resident_bytes(self) -> int:
        """Bytes in the pool now, measured from the storages of its pages."""
        return sum(page.untyped_storage().nbytes() for page in self._resident.values())

    @property
    def home_bytes(self) -> int:
        """Bytes of all homes."""
        return sum(home.untyped_storage().nbytes() for home in self._homes.values())

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the pages in the pool; the one that would leave first comes first."""
        return tuple(self._resident)

    def __contains__(self, name: str) -> bool:
        return name in self._homes

    def add(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Make a page of zeros, with room for it at home. It enters the pool when it is first used.

        Args:
            name: of the page.
            shape: its lengths.
            dtype: of its numbers.
            device: where it is computed with.

        Raises:
            ValueError: if there is a page of that name, or the budget is smaller than this one.
        """
        self._check_new(name, page_bytes(shape, dtype))
        self._homes[name] = _empty_home(shape, dtype, device)
        self._unborn.add(name)

    def put(self, name: str, values: Tensor, device: torch.device) -> None:
        """Make a page that is at home and not in the pool.

        Args:
            name: of the page.
            values: of it, copied.
            device: where it is computed with.

        Raises:
            ValueError: if there is a page of that name, or the budget is smaller than this one.
        """
        self._check_new(name, values.nbytes)
        self._homes[name] = _empty_home(tuple(values.shape), values.dtype, device).copy_(values)

    def clear(self) -> None:
        """Forget all pages; what was counted stays counted."""
        for pages in (self._homes, self._resident, self._changed, self._unborn):
            pages.clear()

    @contextmanager
    def use(self, name: str, device: torch.device, *, changes: bool = True) -> Iterator[Tensor]:
        """Have a page in the pool, and keep it there as long as the `with` block runs.

        Args:
            name: of the page.
            device: where it is computed with.
            changes: whether the block writes to it.

        Raises:
            ValueError: if there is no page of that name, or all that is in the pool is in use.
        """
        if name not in self._homes:
            raise ValueError(f"there is no page called {name!r}; there are {', '.join(self._homes) or 'none'}")
        if name in self._resident:
            self.counts.hits += 1
            self._resident.move_to_end(name)
        else:
            self._make_room(self._homes[name].nbytes)
            self._enter(name, device)
        if changes:
            self._changed.add(name)
        self._in_use.add(name)
        try:
            yield self._resident[name]
        finally:
            self._in_use.discard(name)

    def home(self, name: str) -> Tensor:
        """The values of a page in the CPU's memory, brought up to date; the page stays where it is."""
        if name in self._unborn:
            self._homes[name].zero_()
        self._copy_home(name)
        return self._homes[name]

    def flush(self) -> None:
        """Bring all homes up to date; pages stay in the pool."""
        for name in self._resident:
            self._copy_home(name)

    def _check_new(self, name: str, num_bytes: int) -> None:
        if name in self._homes:
            raise ValueError(f"there is a page called {name!r} already")
        check_fits(name, num_bytes, self._budget_bytes)

    def _enter(self, name: str, device: torch.device) -> None:
        home = self._homes[name]
        if name in self._unborn:
            self._resident[name] = torch.zeros(home.shape, dtype=home.dtype, device=device)
            self._unborn.discard(name)
            self._changed.add(name)
            self.counts.births += 1
        else:
            page = torch.empty(home.shape, dtype=home.dtype, device=device)
            self._resident[name] = page.copy_(home, non_blocking=device.type == "cuda")
            self.counts.page_ins += 1
            self.counts.bytes_in += home.nbytes
        self.peak_bytes = max(self.peak_bytes, self.resident_bytes)

    def _make_room(self, num_bytes: int) -> None:
        resident_bytes = self.resident_bytes
        for name in [name for name in self._resident if name not in self._in_use]:
            if resident_bytes + num_bytes <= self._budget_bytes:
                return
            self._copy_home(name)
            resident_bytes -= self._resident.pop(name).untyped_storage().nbytes()
        if resident_bytes + num_bytes > self._budget_bytes:
            raise ValueError(
                f"budget_bytes = {self._budget_bytes} has no room for {num_bytes} more bytes: "
                f"{', '.join(sorted(self._in_use))} are in use; raise the budget, or use fewer pages at once"
            )

    def _copy_home(self, name: str) -> None:
        if name in self._changed:
            self._homes[name].copy_(self._resident[name])
            self.counts.page_outs += 1
            self.counts.bytes_out += self._homes[name].nbytes
            self._changed.discard(name)


def page_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes of a page."""
    return torch.Size(shape).numel() * dtype.itemsize


def checked_budget(budget_bytes: int) -> int:
    """A budget, if it is one.

    Raises:
        TypeError: if it is no int.
        ValueError: if it is not positive.
    """
    if isinstance(budget_bytes, bool) or not isinstance(budget_bytes, int):
        raise TypeError(f"budget_bytes must be an int, got {budget_bytes!r} of type {type(budget_bytes).__name__}")
    if budget_bytes < 1:
        raise ValueError(f"budget_bytes must be at least 1, got {budget_bytes}")
    return budget_bytes


def check_fits(name: str, num_bytes: int, budget_bytes: int) -> None:
    """Refuse a budget that a single page does not fit.

    Raises:
        ValueError: naming the page and the least budget.
    """
    if num_bytes > budget_bytes:
        raise ValueError(
            f"budget_bytes = {budget_bytes} is smaller than the page of {name!r}, which takes {num_bytes} bytes and is "
            f"never divided: give at least {num_bytes}"
        )


def _empty_home(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")

