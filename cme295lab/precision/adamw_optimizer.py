"""AdamW as an optimizer of a whole model with 16-bit weights.

It owns what the model must not lose: for each 16-bit parameter an fp32 master and two fp32 moments, 12 bytes beside the
2 of the weight and the 2 of its gradient. That makes 16 bytes per parameter, as many as training in fp32 takes: mixed
precision saves time and activations, not the memory of model states.

Parameters have names, as in the course's other optimizers, so that a state can be looked up. Which of the three
implementations of the step is used changes no bit of the result (see `adamw`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cme295lab.precision.adamw import (
    WEIGHT_DTYPES,
    AdamWOptions,
    adamw_step_fused,
    adamw_step_reference,
    adamw_step_unfused,
)

Update = Literal["reference", "unfused", "fused"]
_STATES = ("master", "exp_avg", "exp_avg_sq")
_STEPS: dict[str, Callable[..., None]] = {
    "reference": adamw_step_reference, "unfused": adamw_step_unfused, "fused": adamw_step_fused,
}  # fmt: skip


class MixedPrecisionAdamW:
    """AdamW over 16-bit parameters, with an fp32 master and two fp32 moments for each.

    Args:
        named_parameters: (name, parameter) pairs, as `model.named_parameters()` gives them, all fp16 or bf16.
        options: learning rate and so on.
        update: "reference" is plain PyTorch; "fused" one Triton kernel per parameter, "unfused" twelve (on CPU tensors
            both run in the simulator, which is for counting, not for training).
        masters: fp32 weights by name, if there were any before the model was rounded to 16 bits; the parameters are set
            to them, rounded. None starts from the parameters.

    Raises:
        TypeError: if a parameter is not a 16-bit float tensor, or `named_parameters` are not pairs.
        ValueError: if there are no parameters, names repeat, or masters do not fit.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        options: AdamWOptions | None = None,
        *,
        update: Update = "reference",
        masters: Mapping[str, Tensor] | None = None,
    ) -> None:
        if update not in _STEPS:
            raise ValueError(f"update must be one of {', '.join(map(repr, _STEPS))}, got {update!r}")
        self.options = AdamWOptions() if options is None else options
        self.update = update
        self.parameters = _by_name(named_parameters)
        if masters is not None and set(masters) != set(self.parameters):
            differing = ", ".join(sorted(set(masters) ^ set(self.parameters)))
            raise ValueError(f"masters must have the names of the parameters; they differ in {differing}")
        self._state: dict[str, dict[str, Any]] = {}
        for name, parameter in self.parameters.items():
            source = parameter if masters is None else masters[name]
            if source.shape != parameter.shape:
                raise ValueError(
                    f"masters[{name!r}] must have shape {tuple(parameter.shape)}, got {tuple(source.shape)}"
                )
            master = source.detach().to(parameter.device, torch.float32, copy=True).contiguous()
            self._state[name] = {
                "step": 0, "master": master,
                "exp_avg": torch.zeros_like(master), "exp_avg_sq": torch.zeros_like(master),
            }  # fmt: skip
        self._round_masters()

    @property
    def num_state_bytes(self) -> int:
        """Bytes of masters and moments: 12 per parameter."""
        return sum(state[part].nbytes for state in self._state.values() for part in _STATES)

    def state_of(self, name: str) -> Mapping[str, Any]:
        """What is kept for a parameter: "step", "master", "exp_avg" and "exp_avg_sq".

        Raises:
            ValueError: if there is no parameter of that name.
        """
        if name not in self._state:
            raise ValueError(f"no parameter is called {name!r}; there are {', '.join(self._state)}")
        return self._state[name]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def step(self, *, inverse_scale: float = 1.0, learning_rate: float | None = None) -> None:
        """Update every parameter that has a gradient.

        Args:
            inverse_scale: 1 / loss scale.
            learning_rate: of this step, where a schedule changes it; None means that of the options.
        """
        options = self.options
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            state = self._state[name]
            _STEPS[self.update](
                state["master"], parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"], parameter.detach(),
                step=state["step"] + 1, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay,
                learning_rate=options.learning_rate if learning_rate is None else learning_rate,
                inverse_scale=inverse_scale,
            )  # fmt: skip
            state["step"] += 1

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Copies of all states, by parameter name."""
        return {
            name: {part: value if part == "step" else value.clone() for part, value in state.items()}
            for name, state in self._state.items()
        }

    def load_state_dict(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over states that `state_dict` gave; the 16-bit parameters become the masters, rounded.

        Raises:
            ValueError: if names, parts or shapes are not those of this optimizer; nothing is changed then.
        """
        if set(states) != set(self._state):
            differing = ", ".join(sorted(set(states) ^ set(self._state)))
            raise ValueError(f"states must have the names of the parameters; they differ in {differing}")
        for name, state in states.items():
            if set(state) != {"step", *_STATES}:
                raise ValueError(f"states[{name!r}] must have step, {', '.join(_STATES)}, got {', '.join(state)}")
            for part in _STATES:
                if state[part].shape != self.parameters[name].shape:
                    raise ValueError(
                        f"states[{name!r}][{part!r}] must have shape {tuple(self.parameters[name].shape)}, "
                        f"got {tuple(state[part].shape)}"
                    )
        for name, state in states.items():
            self._state[name]["step"] = int(state["step"])
            for part in _STATES:
                self._state[name][part].copy_(state[part])
        self._round_masters()

    @torch.no_grad()
    def _round_masters(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(self._state[name]["master"])


def _by_name(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    pairs: list[Any] = list(named_parameters)
    if not pairs:
        raise ValueError("named_parameters is empty: give model.named_parameters()")
    if any(not (isinstance(pair, tuple) and len(pair) == 2) for pair in pairs):
        raise TypeError("named_parameters must be (name, parameter) pairs: give model.named_parameters()")
    parameters = dict(pairs)
    if len(parameters) < len(pairs):
        names = [name for name, _ in pairs]
        twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
        raise ValueError(f"named_parameters has {twice} more than once")
    for name, parameter in parameters.items():
        if parameter.dtype not in WEIGHT_DTYPES:
            raise TypeError(
                f"parameter {name!r} must be torch.float16 or torch.bfloat16, got {parameter.dtype}: the masters hold "
                f"fp32; convert the model with .to(torch.bfloat16)"
            )
        if not parameter.is_contiguous():
            raise ValueError(f"parameter {name!r} must be contiguous, got strides {parameter.stride()}")
    return parameters
