"""SGD, Adam and AdamW, written so that every number they keep can be looked at.

With the gradient g of a parameter p, a learning rate η and a weight decay λ, step t = 1, 2, ... does

    SGD      b = μ b + g (b = g in the first step)                 p -= η b; with Nesterov's look ahead p -= η (g + μ b)
    Adam     m = β₁ m + (1 - β₁) g      m̂ = m / (1 - β₁ᵗ)
             v = β₂ v + (1 - β₂) g²     v̂ = v / (1 - β₂ᵗ)          p -= η m̂ / (√v̂ + ε)
    AdamW    the same, after p -= η λ p

SGD and Adam add λ p to the gradient ("L2"). In Adam the decay is then divided by √v̂ like everything else, so weights
with large gradients hardly decay; AdamW takes it off the weight itself, whatever the gradient was ("decoupled").

Each update stands here twice: for one parameter, to be read (`_update`), and for all of them at once with torch's
`_foreach` operators (`_update_many`), which spares Python most of its work on models of many small tensors. They do the
same arithmetic in the same order, and a test holds them together bit for bit.

The interface is that of `torch.optim`, whose numbers these are, but parameters have names: `optimizer.state_of(name)`.

Source: Kingma and Ba 2015, "Adam"; Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization"; Sutskever et
al. 2013, "On the importance of initialization and momentum in deep learning".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class Optimizer:
    """What the three have in common: groups, the states by name, and storing them.

    Args:
        parameters: (name, parameter) pairs, as `model.named_parameters()` gives them; or groups, dicts with such pairs
            under "params" and options of their own beside them.
        options: of the groups that have none of their own.
        foreach: whether all parameters of a group are updated at once.

    Attributes:
        param_groups: dicts with "params", "names" and the options; "lr" may be changed between steps.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, parameters: NamedParameters | Sequence[dict[str, Any]], options: Mapping[str, Any], *, foreach: bool
    ) -> None:
        self.foreach = foreach
        self.param_groups = [_group(entry, options) for entry in _as_groups(parameters)]
        names = [name for group in self.param_groups for name in group["names"]]
        if not names:
            raise ValueError("parameters is empty: give model.named_parameters()")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"parameters has {', '.join(twice)} more than once")
        for group in self.param_groups:
            self._check(group)
        self._state: dict[str, dict[str, Any]] = {name: {"step": 0} for name in names}

    def _check(self, group: Mapping[str, Any]) -> None:
        for name in ("lr", "weight_decay"):
            if not (math.isfinite(group[name]) and group[name] >= 0):
                raise ValueError(f"{name} must be a number that is not negative, got {group[name]}")

    def state_of(self, name: str) -> Mapping[str, Any]:
        """What is kept for a parameter: "step", and the tensors that `state_names` lists, once there was a step.

        Raises:
            ValueError: if there is no parameter of that name.
        """
        if name not in self._state:
            raise ValueError(f"no parameter is called {name!r}; there are {', '.join(self._state)}")
        return self._state[name]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            by_step: dict[int, tuple[list[Any], list[Any], list[Any]]] = {}
            for name, parameter in zip(group["names"], group["params"], strict=True):
                if parameter.grad is None:
                    continue
                state = self._state[name]
                if not state["step"]:
                    state |= {part: torch.zeros_like(parameter) for part in self.state_names}
                state["step"] += 1
                columns = by_step.setdefault(state["step"], ([], [], []))
                for column, value in zip(columns, (parameter, parameter.grad, state)):
                    column.append(value)
            for count, (parameters, gradients, states) in by_step.items():
                if self.foreach:
                    kept = [[state[part] for state in states] for part in self.state_names]
                    self._update_many(group, count, parameters, gradients, kept)
                else:
                    for parameter, gradient, state in zip(parameters, gradients, states):
                        self._update(group, count, parameter, gradient, [state[part] for part in self.state_names])

    def _update(self, group: dict[str, Any], step: int, p: Tensor, g: Tensor, state: list[Tensor]) -> None:
        raise NotImplementedError

    def _update_many(
        self, group: dict[str, Any], step: int, p: list[Tensor], g: list[Tensor], state: list[list[Tensor]]
    ) -> None:
        raise NotImplementedError

    def state_tensors(self) -> dict[str, Tensor]:
        """All states as tensors, "name/part" each, as a checkpoint keeps them."""
        return {
            f"{name}/{part}": torch.tensor(value) if part == "step" else value
            for name, state in self._state.items()
            for part, value in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over states that `state_tensors` gave.

        Raises:
            ValueError: if a parameter's state is missing, has another shape, or one belongs to no parameter.
        """
        loaded: dict[str, dict[str, Any]] = {name: {} for name in self._state}
        shapes = {n: p.shape for group in self.param_groups for n, p in zip(group["names"], group["params"])}
        for key, tensor in tensors.items():
            name, _, part = key.rpartition("/")
            if name not in loaded or part not in ("step", *self.state_names):
                raise ValueError(f"the state {key!r} belongs to no parameter of this {type(self).__name__}")
            if part != "step" and tensor.shape != shapes[name]:
                raise ValueError(f"the state {key!r} has shape {tuple(tensor.shape)}, needed {tuple(shapes[name])}")
            loaded[name][part] = int(tensor) if part == "step" else tensor.clone()
        for name, state in loaded.items():
            needed = {"step", *(self.state_names if state.get("step") else ())}
            if missing := needed - set(state):
                raise ValueError(f"the state of {name!r} lacks {', '.join(sorted(missing))}")
        self._state = loaded


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum if asked for.

    Args:
        parameters: see `Optimizer`.
        lr: learning rate η.
        momentum: μ, 0 to below 1.
        nesterov: look one step ahead; needs momentum.
        weight_decay: λ, added to the gradient.
        foreach: all parameters at once.

    Raises:
        ValueError: if a value is out of range.
    """

    state_names = ("momentum",)

    def __init__(
        self, parameters: NamedParameters | Sequence[dict[str, Any]], *, lr: float, momentum: float = 0.0,
        nesterov: bool = False, weight_decay: float = 0.0, foreach: bool = True,
    ) -> None:  # fmt: skip
        options = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(parameters, options, foreach=foreach)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum must be at least 0 and below 1, got {group['momentum']}")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov=True needs momentum above 0")

    def _update(self, group: dict[str, Any], step: int, p: Tensor, g: Tensor, state: list[Tensor]) -> None:
        (b,) = state
        if group["weight_decay"]:
            g = g + group["weight_decay"] * p
        b.mul_(group["momentum"]).add_(g)  # zeros at first, so that b = g
        g = g + group["momentum"] * b if group["nesterov"] else b
        p.add_(g, alpha=-group["lr"])

    def _update_many(
        self, group: dict[str, Any], step: int, p: list[Tensor], g: list[Tensor], state: list[list[Tensor]]
    ) -> None:
        (b,) = state
        if group["weight_decay"]:
            g = list(torch._foreach_add(g, torch._foreach_mul(p, group["weight_decay"])))
        torch._foreach_mul_(b, group["momentum"])
        torch._foreach_add_(b, g)
        if group["nesterov"]:
            g = list(torch._foreach_add(g, torch._foreach_mul(b, group["momentum"])))
        torch._foreach_add_(p, g if group["nesterov"] else b, alpha=-group["lr"])


class Adam(Optimizer):
    """Adam; weight decay is added to the gradient.

    Args:
        parameters: see `Optimizer`.
        lr: learning rate η.
        betas: β₁ and β₂, each 0 to below 1.
        eps: ε.
        weight_decay: λ.
        foreach: all parameters at once.

    Raises:
        ValueError: if a value is out of range.
    """

    state_names = ("m", "v")
    decoupled: ClassVar[bool] = False

    def __init__(
        self, parameters: NamedParameters | Sequence[dict[str, Any]], *, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0, foreach: bool = True,
    ) -> None:  # fmt: skip
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, options, foreach=foreach)

    def _check(self, group: Mapping[str, Any]) -> None:
        super()._check(group)
        if len(group["betas"]) != 2 or not all(0 <= beta < 1 for beta in group["betas"]):
            raise ValueError(f"betas must be two numbers of at least 0 and below 1, got {group['betas']}")
        if not (math.isfinite(group["eps"]) and group["eps"] > 0):
            raise ValueError(f"eps must be a positive number, got {group['eps']}")

    def _update(self, group: dict[str, Any], step: int, p: Tensor, g: Tensor, state: list[Tensor]) -> None:
        (m, v), (beta1, beta2) = state, group["betas"]
        if self.decoupled:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            g = g + group["weight_decay"] * p
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        # m̂ / (√v̂ + ε), with the two corrections as numbers rather than as tensors
        denominator = v.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
        p.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1**step))

    def _update_many(
        self, group: dict[str, Any], step: int, p: list[Tensor], g: list[Tensor], state: list[list[Tensor]]
    ) -> None:
        (m, v), (beta1, beta2) = state, group["betas"]
        if self.decoupled:
            torch._foreach_mul_(p, 1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            g = list(torch._foreach_add(g, torch._foreach_mul(p, group["weight_decay"])))
        torch._foreach_mul_(m, beta1)
        torch._foreach_add_(m, g, alpha=1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        denominators = torch._foreach_sqrt(v)
        torch._foreach_div_(denominators, math.sqrt(1 - beta2**step))
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(p, m, denominators, value=-group["lr"] / (1 - beta1**step))


class AdamW(Adam):
    """Adam whose weight decay is taken off the weights themselves: p -= η λ p.

    Args and Raises: as for `Adam`, with betas and decay as language models are trained with.
    """

    decoupled = True

    def __init__(
        self, parameters: NamedParameters | Sequence[dict[str, Any]], *, lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.1, foreach: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, foreach=foreach)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups of a model's parameters: matrices, which decay, and norms, biases and embeddings, which do not.

    A head that is tied to the embedding is an embedding here. What is frozen (no `requires_grad`) is in neither.

    Args:
        model: any module.
        weight_decay: of the first group.
    """
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decaying: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        (decaying if parameter.ndim > 1 and id(parameter) not in tables else others).append((name, parameter))
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _as_groups(parameters: NamedParameters | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    entries: list[Any] = list(parameters)
    return entries if entries and isinstance(entries[0], dict) else [{"params": entries}]


def _group(entry: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    if unknown := sorted(set(entry) - {"params", *options}):
        raise ValueError(f"a group has no option {', '.join(unknown)}; it has {', '.join(options)}")
    pairs = list(entry["params"])
    if any(not isinstance(pair, tuple) for pair in pairs):
        raise TypeError("parameters must be (name, parameter) pairs: give model.named_parameters()")
    return {**options, **entry, "params": [p for _, p in pairs], "names": [name for name, _ in pairs]}
