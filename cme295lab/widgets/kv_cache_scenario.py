"""A model that generates on GPUs: weights, the cache of keys and values under four kinds of attention, and what fits.

The same model is asked how many numbers it would keep of a token in each layer:

    MHA   2 × heads × head_dim            every query head has keys and values of its own
    GQA   2 × kv_heads × head_dim         a group of query heads shares them
    MQA   2 × head_dim                    all query heads share one
    MLA   512 + 64                        a compressed vector and a rotated part, sized as in DeepSeek-V3

What a step of generating reads and computes is `decode_cost`'s, of `cme295lab.transformer.inference_cost`: for each
token of each sequence the weights and the whole cache are read once, so that bytes / bandwidth, or FLOP / peak if that
is longer, bounds a step from below. The weights are those of the model as it is, whatever the attention; several GPUs
are taken to share weights and cache evenly, and their links to be free.

Source: Ainslie et al. 2023 (GQA); DeepSeek-AI 2024, "DeepSeek-V3 Technical Report" (MLA); Pope et al. 2022, section 2.
"""

from dataclasses import dataclass, replace

from cme295lab.hardware import Device, get_device
from cme295lab.transformer import ModelConfig, decode_cost, preset

DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp8": 1}
MLA_NUMBERS = 512 + 64
_NAMES = {
    "MHA": "each head its own", "GQA": "groups share", "MQA": "all share one", "MLA": "as DeepSeek-V3",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KvLayout:
    """A kind of attention, and what it keeps.

    Attributes:
        kind: "MHA", "GQA", "MQA" or "MLA".
        is_own: whether the model has it.
        bytes_per_token: keys and values of a token in all layers.
        cache_bytes: of all sequences.
        max_tokens: tokens, of all sequences together, that fit beside the weights.
        fits: whether weights and cache fit.
        step_s: lower bound of the time for one token of each sequence.
    """

    kind: str
    is_own: bool
    bytes_per_token: int
    cache_bytes: int
    max_tokens: int
    fits: bool
    step_s: float

    @property
    def label(self) -> str:
        return f"{self.kind}, {'this model' if self.is_own else _NAMES[self.kind]}"


@dataclass(frozen=True, kw_only=True)
class KvCacheScenario:
    """A model that generates, and its layouts.

    Attributes:
        config: the model.
        seq: tokens of context in each sequence.
        batch: sequences.
        dtype: of weights and cache.
        device: the GPU.
        num_gpus: how many share the work.
        weight_bytes: all weights.
        capacity_bytes: memory of all GPUs.
        layouts: kinds of attention, the largest cache first.
    """

    config: ModelConfig
    seq: int
    batch: int
    dtype: str
    device: Device
    num_gpus: int
    weight_bytes: int
    capacity_bytes: int
    layouts: tuple[KvLayout, ...]

    @property
    def own(self) -> KvLayout:
        """The layout that the model has."""
        return next(layout for layout in self.layouts if layout.is_own)


def kv_cache_scenario(
    *, model: str, seq: int, batch: int, dtype: str = "bf16", device: str | Device = "A100", num_gpus: int = 1
) -> KvCacheScenario:
    """What a model keeps and reads while it generates.

    Args:
        model: name of a preset.
        seq: tokens of context in each sequence.
        batch: sequences.
        dtype: "bf16", "fp16", "fp32" or "fp8".
        device: GPU.
        num_gpus: how many share weights and cache.

    Raises:
        ValueError: if a count is not positive, a name unknown, the GPU has no such format, or the model's learned
            positions end before the context.
    """
    for name, value in (("seq", seq), ("batch", batch), ("num_gpus", num_gpus)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    config, gpu = preset(model), get_device(device)
    weight_bytes = config.num_parameters * DTYPES[dtype]
    capacity = gpu.memory_bytes * num_gpus
    # Rotations go on for ever, if not well, so a context beyond what the model was trained for can be asked about.
    longer = replace(config, max_seq=max(seq, config.max_seq)) if config.position == "rope" else config
    cost = decode_cost(longer, context=seq, batch_size=batch, dtype=dtype, device=gpu)

    def layout(kind: str, numbers: int, is_own: bool) -> KvLayout:
        per_token = numbers * config.num_layers * DTYPES[dtype]
        cache = per_token * seq * batch
        return KvLayout(
            kind=kind, is_own=is_own, bytes_per_token=per_token, cache_bytes=cache,
            max_tokens=max(0, capacity - weight_bytes) // per_token, fits=weight_bytes + cache <= capacity,
            step_s=max((cost.weight_bytes + cache) / gpu.bandwidth_bytes_per_s, cost.compute_s) / num_gpus,
        )  # fmt: skip

    heads = {"MHA": config.num_heads, "GQA": config.num_kv_heads, "MQA": 1}
    own = "MHA" if config.num_kv_heads == config.num_heads else "GQA" if config.num_kv_heads > 1 else "MQA"
    shown = [kind for kind in heads if kind != "GQA" or own == "GQA"]
    layouts = [layout(kind, 2 * heads[kind] * config.head_dim, kind == own) for kind in shown]
    return KvCacheScenario(
        config=config, seq=seq, batch=batch, dtype=dtype, device=gpu, num_gpus=num_gpus, weight_bytes=weight_bytes,
        capacity_bytes=capacity, layouts=(*layouts, layout("MLA", MLA_NUMBERS, is_own=False)),
    )  # fmt: skip
