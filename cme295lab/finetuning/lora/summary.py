"""What an adapter adds to a model, counted and shown as a table."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cme295lab.finetuning.lora.state import chosen_adapter, get_lora
from cme295lab.quantization.linear4bit import Linear4bit


@dataclass(frozen=True, kw_only=True)
class LoraRow:
    """One matrix of an adapter."""

    path: str
    rank: int
    shape: tuple[int, int]
    num_parameters: int


@dataclass(frozen=True, kw_only=True)
class LoraSummary:
    """What an adapter adds; `print` shows it as a table.

    Args:
        adapter: its name.
        rows: its matrices.
        num_base: parameters of the base, those in 4 bits among them.
    """

    adapter: str
    rows: tuple[LoraRow, ...]
    num_base: int

    @property
    def num_trainable(self) -> int:
        """Parameters of the adapter."""
        return sum(row.num_parameters for row in self.rows)

    @property
    def num_parameters(self) -> int:
        """Of base and adapter."""
        return self.num_base + self.num_trainable

    def __str__(self) -> str:
        kinds: dict[tuple[str, int, tuple[int, int]], list[LoraRow]] = {}
        for row in self.rows:
            kinds.setdefault((row.path.rpartition(".")[2], row.rank, row.shape), []).append(row)
        table = [("matrix", "rank", "shape", "how many", "parameters")]
        for (name, rank, shape), rows in kinds.items():
            count = sum(row.num_parameters for row in rows)
            table.append((name, str(rank), f"{shape[0]} × {shape[1]}", str(len(rows)), f"{count:,}"))
        widths = [max(map(len, column)) for column in zip(*table)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table]
        share = 100 * self.num_trainable / self.num_parameters
        return "\n".join([*lines, f"adapter {self.adapter!r}: {self.num_trainable:,} parameters, {share:.3g} % of all"])


def summarize(model: nn.Module, adapter: str | None = None) -> LoraSummary:
    """What an adapter adds to a model; None means the active one.

    Raises:
        ValueError: if there is no such adapter, or none is active.
    """
    lora, name = get_lora(model), chosen_adapter(model, adapter)
    rows = [
        LoraRow(
            path=path, rank=matrix.lora_A[name].shape[0], shape=matrix.target.shape,
            num_parameters=sum(
                parameters[name].numel()
                for parameters in (matrix.lora_A, matrix.lora_B, matrix.lora_magnitude)
                if name in parameters
            ),
        )
        for path, matrix in lora.of(name).items()
    ]  # fmt: skip
    mine = {id(parameter) for parameter in lora.parameters()}
    base = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in mine)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    packed = {id(layer.weight): layer.weight.num_values for layer in layers}
    return LoraSummary(adapter=name, rows=tuple(rows), num_base=base + sum(packed.values()))
