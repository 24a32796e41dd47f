"""A training step of `DecoderLM` against `transformers`' Llama: the same shape, the same weights, the same batch.

Run alone: `python -m tests.benchmarks.transformer`. One thread; forward and backward with the loss, gradients kept
apart, in turn, and the ratio is the median of the ratios of neighbours, which saw the same machine. The losses must be
equal, so that both do the same work.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from cme295lab.transformer import DecoderLM, preset
from tests.benchmarks.timing import seconds_of

_NAMES = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_PARTS = {
    "attention.query": "self_attn.q_proj", "attention.key": "self_attn.k_proj", "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj", "mlp.gate": "mlp.gate_proj", "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj", "attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """Forward and backward of one model.

    Args:
        model: its name.
        dtype: of weights and activations.
        rows, seq: of the batch.
        own_s: median seconds here.
        transformers_s: median seconds there.
        speedup: median of their time over ours, step by step.
        same_loss: whether both computed the same loss, to 4 digits.
    """

    model: str
    dtype: str
    rows: int
    seq: int
    own_s: float
    transformers_s: float
    speedup: float
    same_loss: bool


def training_rows(*, name: str = "course-30m", rows: int = 1, seq: int = 256, repeats: int = 5) -> list[TrainingStep]:
    """Rows for fp32 and bf16."""
    return [_training_step(name, dtype, rows, seq, repeats) for dtype in (torch.float32, torch.bfloat16)]


def _training_step(name: str, dtype: torch.dtype, rows: int, seq: int, repeats: int) -> TrainingStep:
    torch.manual_seed(0)
    ours = DecoderLM(preset(name)).to(dtype)
    theirs = llama_of(ours)
    tokens = torch.randint(ours.config.vocab_size, (rows, seq + 1))

    def own_step() -> float:
        ours.zero_grad()
        loss = ours.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        return loss.item()

    def their_step() -> float:
        theirs.zero_grad()
        loss = theirs(tokens[:, :-1], labels=tokens[:, 1:], shift_labels=tokens[:, 1:], use_cache=False).loss
        loss.backward()
        return loss.item()

    same = abs(own_step() - their_step()) < 1e-4 * (1 if dtype is torch.float32 else 100)  # and both are warm
    pairs = [(seconds_of(own_step), seconds_of(their_step)) for _ in range(repeats)]
    own_s, their_s = (statistics.median(times) for times in zip(*pairs))
    return TrainingStep(
        model=name,
        dtype=str(dtype).removeprefix("torch."),
        rows=rows,
        seq=seq,
        own_s=own_s,
        transformers_s=their_s,
        speedup=statistics.median(their / own for own, their in pairs),
        same_loss=same,
    )


def llama_of(model: DecoderLM) -> torch.nn.Module:
    """`transformers`' Llama with the weights of a decoder of that family."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = model.config
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, max_position_embeddings=config.max_seq,
            rms_norm_eps=config.norm_eps, tie_word_embeddings=config.tied_head,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )  # fmt: skip
    state = {}
    for name, value in model.state_dict().items():
        path = name.removesuffix(".weight")
        if path in _NAMES:
            state[f"{_NAMES[path]}.weight"] = value
        else:
            _, number, part = path.split(".", 2)
            state[f"model.layers.{number}.{_PARTS[part]}.weight"] = value
    llama.load_state_dict(state)
    return llama.to(model.embedding.weight.dtype)


def print_rows(rows: list[TrainingStep]) -> None:
    """A line for each."""
    for row in rows:
        print(
            f"training step {row.model} {row.dtype}, {row.rows} x {row.seq}: {row.own_s * 1e3:.0f} ms, "
            f"transformers {row.transformers_s * 1e3:.0f} ms, ratio {row.speedup:.2f}, "
            f"{'the same' if row.same_loss else 'ANOTHER'} loss"
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print_rows(training_rows())
