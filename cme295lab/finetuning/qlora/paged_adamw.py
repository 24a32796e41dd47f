"""AdamW whose states live in the CPU's memory and visit the device for their parameter's update.

Adam keeps 8 bytes for each trained parameter and reads them once per step. Between steps they are idle, while
activations want the room. Here each parameter's m and v are one page (`paging`), and at most `budget_bytes` of pages
are on the device. `optimizer.budget_bytes` may be lowered before a step with long sequences and raised after it: that
is the memory spike for which QLoRA pages its optimizer.

Not a bit of the result changes: the update is the course's AdamW (`pretraining.optim`), handed pages instead of states.

A step goes once through all parameters, which is what LRU is worst at. In the same order each time, a page has always
just left when it is needed: with a budget below the total, everything is copied in and out in every step. With
`order="alternating"` every second step runs backwards and begins with the pages that are there: what fits the budget
does not move. With states of S bytes, pages of one size and a budget of B < S, a step copies

    order="forward"       S in and S out                      order="alternating"     S - B in and S - B out

16-bit parameters may have fp32 states (`state_dtype`), as in the policy bf16-fp32-states: the update is computed in
fp32 and the parameter rounded. (Without fp32 masters, small updates are lost; see `precision`.)

Not covered: copies that overlap with computing, and states of 8 bits.

Source: Dettmers et al. 2023, "QLoRA", §3 "Paged Optimizers"; Loshchilov and Hutter 2019, "Decoupled Weight Decay
Regularization".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cme295lab.finetuning.qlora.paging import PagePool, PagingCounts, check_fits, page_bytes
from cme295lab.pretraining.optim import AdamW, NamedParameters

Order = Literal["alternating", "forward"]
STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class PagedAdamW(AdamW):
    """AdamW with a budget of bytes for the states that are on the device.

    Args:
        parameters: (name, parameter) pairs, or groups with such pairs under "params"; frozen ones have no states.
        budget_bytes: of the states on the device, at least those of the largest parameter.
        lr, betas, eps, weight_decay: as in `pretraining.optim.AdamW`.
        order: of parameters in a step; "alternating" runs backwards in every second one.
        state_dtype: of the states; None means that of the parameter.

    Raises:
        TypeError: if the budget is no int, `state_dtype` no float dtype, or `parameters` are not pairs.
        ValueError: if the budget is smaller than the states of a parameter, or a value is out of range.
    """

    def __init__(
        self, parameters: NamedParameters | Sequence[dict[str, Any]], *, budget_bytes: int, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1,
        order: Order = "alternating", state_dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=False)
        if order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(map(repr, get_args(Order)))}, got {order!r}")
        if state_dtype is not None and state_dtype not in STATE_DTYPES:
            allowed = ", ".join(map(str, STATE_DTYPES))
            raise TypeError(f"state_dtype must be None or one of {allowed}, got {state_dtype}")
        self.order, self.state_dtype = order, state_dtype
        self._pool = PagePool(budget_bytes)
        self._num_steps = 0
        for name, parameter in self._trained():
            check_fits(name, self._page_bytes(parameter), budget_bytes)

    @property
    def budget_bytes(self) -> int:
        """Bytes of states that may be on the device; a smaller one sends states home at once.

        Raises:
            TypeError, ValueError: if it is set to what is no positive int, or to less than a parameter's states.
        """
        return self._pool.budget_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget_bytes: int) -> None:
        for name, parameter in self._trained():
            check_fits(name, self._page_bytes(parameter), budget_bytes)
        self._pool.budget_bytes = budget_bytes

    @property
    def counts(self) -> PagingCounts:
        """What was moved so far; a copy, to be subtracted from a later one."""
        return replace(self._pool.counts)

    @property
    def device_bytes(self) -> int:
        """Bytes of states on the device now."""
        return self._pool.resident_bytes

    @property
    def peak_device_bytes(self) -> int:
        """The most that it was."""
        return self._pool.peak_bytes

    @property
    def num_state_bytes(self) -> int:
        """Bytes of all states, which is what the CPU's memory holds."""
        return self._pool.home_bytes

    def state_of(self, name: str) -> Mapping[str, Any]:
        """What is kept for a parameter: "step", and copies of "m" and "v" in the CPU's memory once there was a step.

        Raises:
            ValueError: if there is no parameter of that name.
        """
        state = super().state_of(name)
        if name not in self._pool:
            return dict(state)
        return {**state, **{part: tensor.clone() for part, tensor in zip(self.state_names, self._pool.home(name))}}

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient, one after the other."""
        work = [
            (group, name, parameter)
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter.grad is not None
        ]
        if self.order == "alternating" and self._num_steps % 2:
            work.reverse()
        for group, name, parameter in work:
            if name not in self._pool:
                dtype = self.state_dtype or parameter.dtype
                self._pool.add(name, (len(self.state_names), *parameter.shape), dtype, parameter.device)
            state = self._state[name]
            state["step"] += 1
            with self._pool.use(name, parameter.device) as page:
                self._update_with(page, group, state["step"], parameter)
        self._num_steps += 1

    def state_tensors(self) -> dict[str, Tensor]:
        """All states as tensors in the CPU's memory, "name/part" each, as a checkpoint keeps them."""
        return {
            f"{name}/{part}": torch.tensor(value) if part == "step" else value
            for name in self._state
            for part, value in self.state_of(name).items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over states that `state_tensors` gave, of this optimizer or of one that is not paged.

        Raises:
            ValueError: if a parameter's state is missing, has another shape, or one belongs to no parameter.
        """
        super().load_state_tensors(tensors)  # which makes new states of copies: what is paged in is void
        self._pool.clear()
        parameters = {n: p for group in self.param_groups for n, p in zip(group["names"], group["params"])}
        for name, state in self._state.items():
            parts = [state.pop(part) for part in self.state_names if part in state]
            if parts:
                parameter = parameters[name]
                page = torch.stack([part.to("cpu", self.state_dtype or parameter.dtype) for part in parts])
                self._pool.put(name, page, parameter.device)

    def _update_with(self, page: Tensor, group: dict[str, Any], step: int, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        m, v = page
        if page.dtype == parameter.dtype:
            self._update(group, step, parameter, gradient, [m, v])
            return
        wide = parameter.to(page.dtype)
        self._update(group, step, wide, gradient.to(page.dtype), [m, v])
        parameter.copy_(wide)

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [
            (name, parameter)
            for group in self.param_groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
            if parameter.requires_grad
        ]

    def _page_bytes(self, parameter: Tensor) -> int:
        return page_bytes((len(self.state_names), *parameter.shape), self.state_dtype or parameter.dtype)
