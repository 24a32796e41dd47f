"""LoRA against the `peft` package and against full fine-tuning; a merged model against its base; a base in 4 bits
against bitsandbytes'.

Run alone: `python -m tests.benchmarks.finetuning`. One thread; what is compared is called in turn, and medians are
compared. The model is `transformers`' Llama with 29 M parameters. Before anything is timed, outputs are compared.

A step is forward, backward and AdamW. Memory is how far the process grows while adapters, optimizer and two steps come
and go: gradients, states, activations.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from typing import Any

import bitsandbytes as bnb
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from cme295lab.finetuning import lora, qlora
from cme295lab.units import format_bytes
from tests.benchmarks.timing import medians, one_thread, settled_peak_bytes

RANK, ALPHA = 16, 32
TARGETS = {
    "q, v": ("q_proj", "v_proj"),
    "all linear": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}
ROWS, SEQ = 4, 128


@dataclass(frozen=True, kw_only=True)
class StepSpeed:
    """A training step.

    Args:
        targets: which matrices have adapters.
        dtype: of the base and the adapters.
        seconds, peft_seconds, full_seconds: ours, theirs, fine-tuning in full.
        peak_bytes, peft_peak_bytes, full_peak_bytes: memory beyond the base.
    """

    targets: str
    dtype: str
    seconds: float
    peft_seconds: float
    full_seconds: float
    peak_bytes: int
    peft_peak_bytes: int
    full_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class MergedSpeed:
    """A forward pass.

    Args:
        base_seconds: of the base.
        merged_seconds: with an adapter in its weights.
        beside_seconds: with the adapter beside them.
    """

    base_seconds: float
    merged_seconds: float
    beside_seconds: float


@dataclass(frozen=True, kw_only=True)
class BaseBytes:
    """A base in NF4 with double quantisation.

    Args:
        num_bytes: of its storages, ours; the head stays in bf16.
        bitsandbytes_num_bytes: the same of theirs.
        bf16_num_bytes: in 16 bits.
    """

    num_bytes: int
    bitsandbytes_num_bytes: int
    bf16_num_bytes: int


def step_rows(*, repeats: int = 7) -> list[StepSpeed]:
    """Rows for both sets of targets in fp32, and for all linear layers in bf16."""
    kinds = [("q, v", torch.float32), ("all linear", torch.float32), ("all linear", torch.bfloat16)]
    with one_thread():
        return [_step_row(targets, dtype, repeats) for targets, dtype in kinds]


def merged_row(*, repeats: int = 21) -> MergedSpeed:
    """A forward pass of base, merged and unmerged model."""
    with one_thread(), torch.no_grad():
        base, tokens = _llama(torch.float32).eval(), _tokens()
        beside = copy.deepcopy(base)
        lora.add_lora(beside, rank=RANK, alpha=ALPHA, targets=TARGETS["all linear"])
        for parameter in lora.lora_parameters(beside).values():
            parameter.normal_(std=0.02)
        merged = copy.deepcopy(beside)
        lora.merge(merged)
        torch.testing.assert_close(merged(tokens).logits, beside(tokens).logits, rtol=1e-3, atol=1e-3)
        seconds = medians(*(lambda model=model: model(tokens) for model in (base, merged, beside)), repeats=repeats)
    return MergedSpeed(base_seconds=seconds[0], merged_seconds=seconds[1], beside_seconds=seconds[2])


def base_bytes() -> BaseBytes:
    """Bytes of a base's storages in both libraries' 4 bits."""
    ours = _llama(torch.bfloat16)
    theirs = copy.deepcopy(ours)
    in_16_bits = sum(parameter.nbytes for parameter in ours.parameters())
    qlora.freeze_in_four_bits(ours)
    own = qlora.measured_bytes(ours, [])
    return BaseBytes(num_bytes=own.base, bitsandbytes_num_bytes=_their_bytes(theirs), bf16_num_bytes=in_16_bits)


def _step_row(targets: str, dtype: torch.dtype, repeats: int) -> StepSpeed:
    base, tokens = _llama(dtype), _tokens()

    def ours() -> nn.Module:
        model = copy.deepcopy(base)
        lora.add_lora(model, rank=RANK, alpha=ALPHA, targets=TARGETS[targets])
        return model

    def theirs() -> nn.Module:
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS[targets]))
        return get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)

    _check_equal(ours(), base, tokens)
    made = (ours, theirs, lambda: copy.deepcopy(base))
    seconds = medians(*(_Step(make(), tokens) for make in made), repeats=repeats)
    peaks = []
    for make in made:
        model = make()
        peaks.append(settled_peak_bytes(lambda model=model: _two_steps(model, tokens)))
    return StepSpeed(
        targets=targets,
        dtype=str(dtype).removeprefix("torch."),
        seconds=seconds[0],
        peft_seconds=seconds[1],
        full_seconds=seconds[2],
        peak_bytes=peaks[0],
        peft_peak_bytes=peaks[1],
        full_peak_bytes=peaks[2],
    )


class _Step:
    """Forward, backward and AdamW on those parameters that learn."""

    def __init__(self, model: Any, tokens: torch.Tensor) -> None:
        self.model, self.tokens = model.train(), tokens
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.tokens, labels=self.tokens).loss.backward()
        self.optimizer.step()


def _two_steps(model: nn.Module, tokens: torch.Tensor) -> None:
    step = _Step(model, tokens)
    step()
    step()
    step.optimizer.zero_grad()


def _check_equal(model: nn.Module, base: nn.Module, tokens: torch.Tensor) -> None:
    """Our adapter gives the same outputs in peft."""
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        for parameter in lora.lora_parameters(model).values():
            parameter.normal_(std=0.02)
        lora.save_adapter(folder, model)
        peer = PeftModel.from_pretrained(copy.deepcopy(base), folder, autocast_adapter_dtype=False).eval()
        tolerance = 1e-4 if next(base.parameters()).dtype == torch.float32 else 0.05
        torch.testing.assert_close(
            model.eval()(tokens).logits, peer(tokens).logits, rtol=tolerance, atol=tolerance, msg="outputs differ"
        )


def _their_bytes(model: nn.Module) -> int:
    """bitsandbytes' layers in place of linear ones but the head; bytes of codes, scales, nested scales, code books."""
    total = 0
    replaced = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            layer = bnb.nn.Params4bit(
                module.weight.detach(), requires_grad=False, quant_type="nf4", compress_statistics=True
            ).to("cpu")
            state = layer.quant_state
            nested = state.state2
            total += sum(t.nbytes for t in (layer.data, state.absmax, nested.absmax, state.offset))
            replaced.add(module.weight)
    return total + sum(parameter.nbytes for parameter in model.parameters() if parameter not in replaced)


def _llama(dtype: torch.dtype) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=SEQ, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def _tokens() -> torch.Tensor:
    return torch.randint(8192, (ROWS, SEQ), generator=torch.Generator().manual_seed(0))


def print_rows(steps: list[StepSpeed], merged: MergedSpeed, base: BaseBytes) -> None:
    """One line each."""
    for row in steps:
        print(
            f"LoRA step, {row.targets:10} {row.dtype:9} {row.seconds * 1e3:6.0f} ms; peft / ours "
            f"{row.peft_seconds / row.seconds:.2f}, in full / ours {row.full_seconds / row.seconds:.2f}; memory "
            f"{format_bytes(row.peak_bytes)}, peft {format_bytes(row.peft_peak_bytes)}, in full "
            f"{format_bytes(row.full_peak_bytes)}"
        )
    print(
        f"forward pass: merged / base {merged.merged_seconds / merged.base_seconds:.3f}, adapter beside / base "
        f"{merged.beside_seconds / merged.base_seconds:.3f}"
    )
    print(
        f"base in 4 bits: {base.num_bytes} bytes, bitsandbytes {base.bitsandbytes_num_bytes}: "
        f"{base.bitsandbytes_num_bytes / base.num_bytes:.4f}; bf16 {base.bf16_num_bytes}"
    )


if __name__ == "__main__":
    print_rows(step_rows(), merged_row(), base_bytes())
