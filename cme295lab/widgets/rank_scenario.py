"""What a LoRA rank costs on a model, and how much of a change of weights it can hold.

Pure functions: `rank_scenario` counts (with `lora.num_lora_parameters`) and turns counts into bytes; `spectrum` takes a
change dW apart. Full fine-tuning is counted in mixed precision with AdamW, 16 bytes for each parameter: bf16 weight and
gradient, fp32 master and two states. Beside LoRA the base is frozen in bf16, 2 bytes each, and the adapter is fp32:
weight, gradient and two states, 16 bytes for each of its parameters. Activations are counted for neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cme295lab.finetuning import lora
from cme295lab.finetuning.spectra import singular_values
from cme295lab.transformer.config import ModelConfig
from cme295lab.transformer.presets import preset

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TARGETS = ("query + value", "attention", "mlp", "all-linear", "all-linear + head")


@dataclass(frozen=True, kw_only=True)
class TrainingBytes:
    """Model states of a training step.

    Attributes:
        frozen: weights that are not trained.
        weights: those that are.
        gradients: of these.
        masters: fp32 copies of them, beside 16-bit ones.
        states: Adam's two averages.
    """

    frozen: int
    weights: int
    gradients: int
    masters: int
    states: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.frozen + self.weights + self.gradients + self.masters + self.states


@dataclass(frozen=True, kw_only=True)
class RankScenario:
    """An adapter, counted.

    Attributes:
        model: name of the preset.
        rank: of every matrix.
        targets: one of `TARGETS`.
        num_parameters: of the base.
        num_trainable: of the adapter.
        lora: bytes with the adapter.
        full: bytes of full fine-tuning.
        file_bytes: the adapter's values in a file, in fp32.
    """

    model: str
    rank: int
    targets: str
    num_parameters: int
    num_trainable: int
    lora: TrainingBytes
    full: TrainingBytes
    file_bytes: int

    @property
    def share(self) -> float:
        """Trainable parameters for each one of the base."""
        return self.num_trainable / self.num_parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """A change of weights, taken apart.

    Attributes:
        values: singular values, the largest first.
        kept: how much of the sum of squares the best approximation of rank 0, 1, 2, ... holds, from 0 to 1.
    """

    values: Float[Tensor, " ranks"]
    kept: Float[Tensor, " ranks_and_zero"]

    def kept_by(self, rank: int) -> float:
        """The share that a rank holds at best; all, if the matrix has no larger one."""
        return float(self.kept[min(rank, len(self.values))])

    def rank_for(self, share: float) -> int:
        """The smallest rank that holds a share.

        Raises:
            ValueError: if the share is not above 0 and below 1.
        """
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share}")
        return int((self.kept < share).sum())


def rank_scenario(model: str = "llama-3-8b", *, rank: int = 16, targets: str = "all-linear") -> RankScenario:
    """Count an adapter.

    Args:
        model: name of a preset.
        rank: of every matrix.
        targets: one of `TARGETS`.

    Raises:
        ValueError: if the model or the targets are unknown, or a matrix is too small for the rank.
    """
    config = preset(model)
    num_base = config.num_parameters
    count = lora.num_lora_parameters(config, rank=rank, targets=target_names(config, targets))
    return RankScenario(
        model=model,
        rank=rank,
        targets=targets,
        num_parameters=num_base,
        num_trainable=count,
        lora=TrainingBytes(
            frozen=2 * num_base, weights=4 * count, gradients=4 * count, masters=0, states=8 * count
        ),
        full=TrainingBytes(
            frozen=0, weights=2 * num_base, gradients=2 * num_base, masters=4 * num_base, states=8 * num_base
        ),
        file_bytes=4 * count,
    )  # fmt: skip


def target_names(config: ModelConfig, targets: str) -> tuple[str, ...]:
    """One of `TARGETS` as names of layers.

    Raises:
        ValueError: if it is none.
    """
    mlp = ("gate", "up", "down") if config.mlp == "swiglu" else ("up", "down")
    names = {
        "query + value": ("query", "value"),
        "attention": ("query", "key", "value", "attention.out"),
        "mlp": mlp,
        "all-linear": ("all-linear",),
        "all-linear + head": ("all-linear", "head"),
    }
    if targets not in names:
        raise ValueError(f"targets must be one of {', '.join(TARGETS)}, got {targets!r}")
    return names[targets]


def ranks_of(model: str) -> tuple[int, ...]:
    """Those of `RANKS` that every matrix of a model is large enough for."""
    chosen = lora.lora_targets(model, rank=1, targets=("all-linear", "head"))
    return tuple(rank for rank in RANKS if rank <= min(min(target.shape) for target in chosen))


def spectrum(change: Float[Tensor, "rows columns"]) -> Spectrum:
    """Take a change of weights apart.

    Raises:
        ValueError: if it is no matrix, all zero or not finite.
    """
    if change.ndim != 2 or not bool(torch.isfinite(change).all()) or not bool(change.any()):
        raise ValueError(f"the change must be a finite matrix that is not all zero, got shape {tuple(change.shape)}")
    values = singular_values(change.detach().cpu())
    squares = values.square()
    kept = torch.cat([torch.zeros(1, dtype=torch.float64), squares.cumsum(0) / squares.sum()])
    return Spectrum(values=values, kept=kept)


def example_change() -> Mapping[str, Float[Tensor, "_ _"]]:
    """A made-up change, for want of a measured one: a product of rank 8 and noise, 256 × 256, seeded."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(256, 8, generator=generator), torch.randn(8, 256, generator=generator)
    noise = torch.randn(256, 256, generator=generator)
    return {"made up: rank 8 + noise": left @ right + 0.5 * noise}
