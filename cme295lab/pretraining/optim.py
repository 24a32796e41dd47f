"""SGD, Adam and AdamW, written out: one step is a few lines on each parameter, and every state can be looked at.

    SGD    b ← momentum b + g          w ← w - lr b            (Nesterov: w ← w - lr (g + momentum b))
    Adam   m ← β1 m + (1 - β1) g       v ← β2 v + (1 - β2) g²
           w ← w - lr (m / (1 - β1^t)) / (sqrt(v / (1 - β2^t)) + ε)

Weight decay comes in two ways. SGD and Adam add λ w to the gradient, so that Adam divides it by sqrt(v) as well, and
weights with large gradients hardly decay. AdamW takes lr λ off the weight itself ("decoupled").

`foreach=True` does the same arithmetic on lists of all tensors at once: a few large calls instead of many small ones,
for which it needs temporaries as large as the model. Steps equal those of `torch.optim` to 1e-6.

Source: Kingma and Ba 2014, Algorithm 1; Loshchilov and Hutter 2017, Algorithm 2; Sutskever et al. 2013 (Nesterov).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
Loss = TypeVar("Loss")


class _Optimizer(torch.optim.Optimizer):
    """What the three share: groups, the closure, and a look at the state."""

    def __init__(self, params: Parameters, defaults: dict[str, Any], *, foreach: bool) -> None:
        if not isinstance(foreach, bool):
            raise TypeError(f"foreach must be True or False, got {foreach!r}")
        super().__init__(params, defaults)  # type: ignore[arg-type]
        self.foreach = foreach
        for group in self.param_groups:
            _check_group(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Loss] | None = None) -> Loss | None:  # type: ignore[override]
        """Take one step with the gradients that are there; parameters without one stay.

        Args:
            closure: computes the loss and its gradients once more; for optimizers that need it, these do not.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if self.foreach and weights:
                self._step_all(weights, group)
            else:
                for weight in weights:
                    self._step_one(weight, group)
        return loss

    def state_of(self, parameter: Tensor) -> Mapping[str, Any]:
        """The states of a parameter by name, the tensors themselves; empty before its first step.

        Raises:
            KeyError: if the optimizer has no such parameter.
        """
        if not any(parameter is weight for group in self.param_groups for weight in group["params"]):
            raise KeyError(f"the optimizer has no such parameter, of shape {tuple(parameter.shape)}")
        return self.state.get(parameter, {})

    def _step_one(self, weight: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError

    def _step_all(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError


class SGD(_Optimizer):
    """Stochastic gradient descent, with or without momentum. State: "momentum".

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        momentum: share of the last direction that is kept, 0 to 1.
        nesterov: look ahead by one step of momentum.
        weight_decay: λ, added to the gradient as λ w.
        foreach: all tensors at once.

    Raises:
        TypeError, ValueError: if a value is out of range, or nesterov goes without momentum.
    """

    def __init__(
        self, params: Parameters, lr: float, *, momentum: float = 0.0, nesterov: bool = False,
        weight_decay: float = 0.0, foreach: bool = False,
    ) -> None:  # fmt: skip
        if nesterov and not momentum:
            raise ValueError("nesterov=True needs momentum above 0: it looks ahead along it")
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults, foreach=foreach)

    def _step_one(self, weight: Tensor, group: dict[str, Any]) -> None:
        gradient = _gradient(weight).add(weight, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[weight]
            if "momentum" not in state:
                state["momentum"] = gradient.clone()
            else:
                state["momentum"].mul_(group["momentum"]).add_(gradient)
            ahead = gradient.add(state["momentum"], alpha=group["momentum"])
            gradient = ahead if group["nesterov"] else state["momentum"]
        weight.sub_(group["lr"] * gradient)

    def _step_all(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        directions: Any = torch._foreach_add([_gradient(w) for w in weights], weights, alpha=group["weight_decay"])
        if group["momentum"]:
            new = [w for w in weights if "momentum" not in self.state[w]]
            for weight in new:  # zero, so that the first sum below is the gradient itself
                self.state[weight]["momentum"] = torch.zeros_like(weight)
            kept = [self.state[w]["momentum"] for w in weights]
            torch._foreach_mul_(kept, group["momentum"])
            torch._foreach_add_(kept, directions)
            directions = torch._foreach_add(directions, kept, alpha=group["momentum"]) if group["nesterov"] else kept
        torch._foreach_add_(weights, directions, alpha=-group["lr"])


class Adam(_Optimizer):
    """Adam. States: "m" and "v", moving averages of the gradient and its square, and "step".

    Args:
        params: parameters, or groups of them.
        lr: learning rate.
        betas: β1 and β2, how much of the averages is kept, 0 to 1.
        eps: ε, which bounds the step where gradients vanish.
        weight_decay: λ, added to the gradient as λ w.
        foreach: all tensors at once.

    Raises:
        TypeError, ValueError: if a value is out of range.
    """

    decoupled = False

    def __init__(
        self, params: Parameters, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, foreach: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, foreach=foreach)

    def _state(self, weight: Tensor) -> dict[str, Any]:
        state = self.state[weight]
        if not state:
            state.update(step=0, m=torch.zeros_like(weight), v=torch.zeros_like(weight))
        state["step"] += 1
        return state

    def _step_one(self, weight: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self._state(weight), group["betas"]
        gradient = _gradient(weight)
        if self.decoupled:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        else:
            gradient = gradient.add(weight, alpha=group["weight_decay"])
        m, v, step = state["m"], state["v"], state["step"]
        m.mul_(beta1).add_(gradient, alpha=1 - beta1)
        v.mul_(beta2).add_(gradient.square(), alpha=1 - beta2)
        root = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
        weight.sub_(m.div(root).mul_(group["lr"] / (1 - beta1**step)))

    def _step_all(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        states, (beta1, beta2) = [self._state(weight) for weight in weights], group["betas"]
        steps = {state["step"] for state in states}
        if len(steps) > 1:  # some parameters had no gradient before: bias corrections differ
            for weight, state in zip(weights, states, strict=True):
                state["step"] -= 1
                self._step_one(weight, group)
            return
        (step,) = steps
        gradients: Any = [_gradient(weight) for weight in weights]
        if self.decoupled:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        else:
            gradients = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        m, v = [state["m"] for state in states], [state["v"] for state in states]
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, gradients, alpha=1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_add_(v, torch._foreach_mul(gradients, gradients), alpha=1 - beta2)
        roots: Any = torch._foreach_div(v, 1 - beta2**step)
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        steps_taken: Any = torch._foreach_div(m, roots)
        torch._foreach_add_(weights, steps_taken, alpha=-group["lr"] / (1 - beta1**step))


class AdamW(Adam):
    """Adam with decoupled weight decay: lr λ w is taken off the weight itself. States as `Adam`'s.

    Args:
        params, lr, betas, eps, foreach: as for `Adam`.
        weight_decay: λ; 0.01 by default.

    Raises:
        TypeError, ValueError: if a value is out of range.
    """

    decoupled = True

    def __init__(
        self, params: Parameters, lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, foreach: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach)


def decay_groups(named: Iterable[tuple[str, Tensor]], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which decay, and vectors (norms and biases), which do not. A shared weight comes once.

    Args:
        named: as `model.named_parameters()` gives them.
        weight_decay: of the matrices.
    """
    weights = [weight for _, weight in named if weight.requires_grad]
    matrices, vectors = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _check_group(group: Mapping[str, Any]) -> None:
    for name, most in (("lr", None), ("weight_decay", None), ("eps", None), ("momentum", 1.0)):
        if name not in group:
            continue
        value = group[name]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
        if not value >= 0 or (most is not None and value >= most):
            raise ValueError(f"{name} must be at least 0{f' and below {most:g}' if most else ''}, got {value}")
    betas = group.get("betas", (0.0, 0.0))
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas must be two numbers, each at least 0 and below 1, got {betas}")
