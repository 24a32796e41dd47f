"""One model fine-tuned in three ways, and what each keeps in memory: the bars of QLoRA.

    full     all parameters learn: weights and gradients in 16 bits, two Adam states for each
    LoRA     weights in 16 bits, frozen; gradients and states of adapters alone
    QLoRA    the same adapters, beside linear layers in NF4; embeddings, head and norms stay in 16 bits

With fp32 states the first is 12 bytes per parameter. The format of the states is that of all three, so that a ratio
compares methods and not formats. Bytes are those of `finetuning.qlora.qlora_memory`, cut into the same parts for each
bar. These are model states: activations come on top, and are much the same for the last two.

A budget is counted as its name says, "48 GB" as 48 · 10⁹ bytes. GPUs have a little more, and need it for other things.

Source: Dettmers et al. 2023, "QLoRA", abstract and figure 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cme295lab.finetuning.lora.targets import Targets, targets_of_config
from cme295lab.finetuning.qlora import QloraMemory, qlora_memory
from cme295lab.memory.formulas.precision import FORMAT_BYTES
from cme295lab.transformer import ModelConfig
from cme295lab.transformer.presets import PRESETS
from cme295lab.units import GB

LLAMA_65B = ModelConfig(
    name="llama-65b", vocab_size=32_000, num_layers=80, dim=8192, num_heads=64, mlp_dim=22_016, max_seq=2048
)
"""The largest model of the paper."""
MODELS: Mapping[str, ModelConfig] = MappingProxyType({**PRESETS, LLAMA_65B.name: LLAMA_65B})
"""Name -> config, of all models that can be asked for by name."""
TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "all linear layers": ("all-linear",),
        "query and value": ("query", "value"),
        "attention": ("query", "key", "value", "out"),
        "MLP": ("gate", "up", "down"),
    }
)
"""What gets adapters -> the names of layers; a name that a model does not have is left out."""
BUDGETS: Mapping[str, int] = MappingProxyType({"24 GB": 24 * GB, "48 GB": 48 * GB, "80 GB": 80 * GB})
"""Memory of a GPU -> bytes."""
STATE_FORMATS = ("fp32", "bf16")
PARTS = ("weights, 16 bits", "codes, 4 bits", "scales", "adapters", "gradients", "Adam states")
"""What bars are made of, from the left."""
_BYTES_16 = 2


@dataclass(frozen=True, kw_only=True)
class MemoryBar:
    """What one way of fine-tuning keeps.

    Attributes:
        method: "full", "LoRA" or "QLoRA".
        parts: bytes of each of `PARTS`.
        fits: whether all of it is within the budget.
    """

    method: str
    parts: Mapping[str, int]
    fits: bool

    @property
    def num_bytes(self) -> int:
        """Of all parts."""
        return sum(self.parts.values())


@dataclass(frozen=True, kw_only=True)
class QloraScenario:
    """A model, its three bars and a budget.

    Attributes:
        memory: the QLoRA run in detail.
        bars: full, LoRA, QLoRA.
        budget_bytes: of the GPU.
    """

    memory: QloraMemory
    bars: tuple[MemoryBar, MemoryBar, MemoryBar]
    budget_bytes: int

    @property
    def saving_against_full(self) -> float:
        """How many times less QLoRA keeps than fine-tuning in full."""
        return self.bars[0].num_bytes / self.bars[2].num_bytes

    @property
    def saving_against_lora(self) -> float:
        """How many times less than LoRA with the same adapters beside 16 bits."""
        return self.bars[1].num_bytes / self.bars[2].num_bytes

    @property
    def saving_of_weights(self) -> float:
        """How many times smaller a quantised weight is than one in 16 bits."""
        return self.memory.saving_of_weights


def qlora_scenario(
    model: str | ModelConfig = "llama-65b", *, rank: int = 64, targets: str = "all linear layers", block_size: int = 64,
    double_quant: bool = True, state_format: str = "fp32", budget: str = "48 GB",
) -> QloraScenario:  # fmt: skip
    """Compare fine-tuning in full, LoRA and QLoRA.

    Args:
        model: one of `MODELS`, or a config.
        rank: of all adapters.
        targets: one of `TARGETS`.
        block_size: weights to a scale.
        double_quant: whether scales are in 8 bits.
        state_format: of Adam's states, one of `STATE_FORMATS`, in all three.
        budget: one of `BUDGETS`.

    Raises:
        ValueError: if a name is none of those, the rank is larger than a side of a matrix, or a number is not positive.
    """
    named = {"targets": (targets, TARGETS), "budget": (budget, BUDGETS), "state_format": (state_format, STATE_FORMATS)}
    for name, (value, allowed) in named.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    config = model_config(model)
    memory = qlora_memory(
        config, rank=rank, targets=targets_of(config, targets), block_size=block_size, double_quant=double_quant,
        state_format="fp32" if state_format == "fp32" else "bf16",
    )  # fmt: skip
    states = 2 * FORMAT_BYTES[state_format] * config.num_parameters
    weights, small = _BYTES_16 * config.num_parameters, memory.bytes
    frozen = {"adapters": small.adapters, "gradients": small.gradients, "Adam states": small.states}
    parts = {
        "full": {"weights, 16 bits": weights, "gradients": weights, "Adam states": states},
        "LoRA": {"weights, 16 bits": weights} | frozen,
        "QLoRA": {"weights, 16 bits": small.embeddings + small.norms, "codes, 4 bits": small.codes,
                  "scales": small.scales} | frozen,
    }  # fmt: skip
    full, lora, qlora = (_bar(method, found, BUDGETS[budget]) for method, found in parts.items())
    return QloraScenario(memory=memory, bars=(full, lora, qlora), budget_bytes=BUDGETS[budget])


def model_config(model: str | ModelConfig) -> ModelConfig:
    """A config, or the one of that name.

    Raises:
        ValueError: if there is none of that name.
    """
    if isinstance(model, ModelConfig):
        return model
    if model not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {model!r}")
    return MODELS[model]


def targets_of(config: ModelConfig, targets: str) -> Targets:
    """The names behind a choice, those that a model has: GPT's MLPs have no gate."""
    last = {path.rpartition(".")[2] for path in targets_of_config(config)}
    return tuple(name for name in TARGETS[targets] if name == "all-linear" or name in last)


def _bar(method: str, parts: Mapping[str, int], budget_bytes: int) -> MemoryBar:
    found = {name: parts.get(name, 0) for name in PARTS}
    return MemoryBar(method=method, parts=found, fits=sum(found.values()) <= budget_bytes)
