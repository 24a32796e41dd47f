"""A real training step with exactly the tensors that a setting says, on one process, to be measured.

Only what one process can run is built here: no parallelism, an optimizer that torch has, run tensor by tensor
(`step="loop"`), weights and gradients in one format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from cme295lab.memory.formulas.setting import ParallelConfig, TrainingSetting
from cme295lab.memory.recompute import apply_recompute
from cme295lab.transformer.decoder import DecoderLM

TORCH_DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MakeOptimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
_OPTIMIZERS: dict[str, _MakeOptimizer] = {
    "sgd": lambda tensors: torch.optim.SGD(tensors, lr=1e-3, foreach=False),
    "sgd-momentum": lambda tensors: torch.optim.SGD(tensors, lr=1e-3, momentum=0.9, foreach=False),
    "adam": lambda tensors: torch.optim.Adam(tensors, lr=1e-4, foreach=False),
    "adamw": lambda tensors: torch.optim.AdamW(tensors, lr=1e-4, foreach=False),
    "adafactor": lambda tensors: torch.optim.Adafactor(tensors, lr=1e-3, foreach=False),
}


class MasterWeights:
    """Mixed precision written out: an optimizer that updates a copy of each weight in a wider format.

    Each tensor has an optimizer of its own, so that only one gradient at a time exists in the wider format.

    Args:
        parameters: the weights that the model computes with.
        make_optimizer: an optimizer for some tensors.
        dtype: format of the copies.

    Attributes:
        masters: the copies, in the order of the parameters.
        optimizers: one per copy.
    """

    def __init__(self, parameters: Iterable[Tensor], make_optimizer: _MakeOptimizer, dtype: torch.dtype) -> None:
        self.parameters = list(parameters)
        self.masters = [parameter.detach().to(dtype, copy=True).requires_grad_() for parameter in self.parameters]
        self.optimizers = [make_optimizer([master]) for master in self.masters]

    def step(self) -> None:
        """Update each copy with its weight's gradient, and round it into the weight."""
        for parameter, master, optimizer in zip(self.parameters, self.masters, self.optimizers):
            if parameter.grad is None:
                continue
            master.grad = parameter.grad.to(master.dtype)
            optimizer.step()
            master.grad = None
            with torch.no_grad():
                parameter.copy_(master)

    def tensors(self) -> list[Tensor]:
        """States of all optimizers, without the copies."""
        return [tensor for optimizer in self.optimizers for tensor in state_tensors(optimizer)]


def state_tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an optimizer keeps between steps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


class RealStep:
    """Model, optimizer and batch of a setting, ready for a step.

    The constructor runs one whole step, so that optimizer states exist; with gradients that are kept, they exist, too.

    Args:
        setting: the step.
        seed: of weights and tokens.

    Raises:
        ValueError: if one process cannot run the setting; the message says which part.
    """

    def __init__(self, setting: TrainingSetting, *, seed: int = 0) -> None:
        _check(setting)
        self.setting = setting
        generator = torch.Generator().manual_seed(seed)
        shape = (setting.micro_batch, setting.seq)
        self.tokens = torch.randint(setting.config.vocab_size, shape, generator=generator)
        self.targets = torch.randint(setting.config.vocab_size, shape, generator=generator)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = DecoderLM(setting.config, attention=setting.attention)
        self.model.to(TORCH_DTYPES[setting.policy.weights])
        apply_recompute(self.model, setting.recompute)
        make = _OPTIMIZERS[setting.optimizer]
        masters = setting.policy.masters
        self.optimizer: Any = (
            MasterWeights(self.model.parameters(), make, TORCH_DTYPES[masters])
            if masters
            else make(self.model.parameters())
        )
        self.loss().backward()
        self.update()

    def loss(self) -> Tensor:
        """The forward pass, with what is recomputed wrapped as the setting says."""
        return self.model.loss(self.tokens, self.targets)

    def update(self) -> None:
        """The optimizer's step; then gradients are freed, if the setting frees them."""
        self.optimizer.step()
        if self.setting.gradients == "freed":
            for parameter in self.model.parameters():
                parameter.grad = None

    @property
    def masters(self) -> list[Tensor]:
        """The copies that the optimizer updates; none where it updates the weights themselves."""
        return self.optimizer.masters if isinstance(self.optimizer, MasterWeights) else []

    @property
    def states(self) -> list[Tensor]:
        """What the optimizer keeps between steps."""
        optimizer = self.optimizer
        return optimizer.tensors() if isinstance(optimizer, MasterWeights) else state_tensors(optimizer)


def _check(setting: TrainingSetting) -> None:
    """Refuse what one process cannot run."""
    policy = setting.policy
    problems = {
        "parallel": setting.parallel != ParallelConfig(),
        "optimizer": setting.optimizer not in _OPTIMIZERS,
        "step": setting.step != "loop",
        "policy": policy.weights != policy.gradients or (policy.masters or policy.weights) != policy.states,
        "fp32_logits": not setting.fp32_logits,
        "offload_states": setting.offload_states,
        "fragmentation": setting.fragmentation > 0,
    }
    wrong = [name for name, is_wrong in problems.items() if is_wrong]
    if wrong:
        values = ", ".join(f"{name}={getattr(setting, name)!r}" for name in wrong)
        raise ValueError(
            f"a step on one process has no {values}: it runs without parallelism, with step='loop', an optimizer of "
            f"{', '.join(_OPTIMIZERS)}, gradients in the format of the weights, fp32 logits, and no fragmentation"
        )
