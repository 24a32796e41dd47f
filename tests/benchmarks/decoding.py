"""Decode speed of SmolLM2-135M against `transformers`: the same weights, prompt and number of tokens, batch of 1.

Run alone: `python -m tests.benchmarks.decoding`. It needs the model (`cme295lab fetch smollm2`) and downloads nothing.
One thread; both decode greedily with their own key/value cache and their own loop, in turn, and the ratio is the median
of the ratios of neighbours, which saw the same machine. In fp32 both must say the same tokens. In bf16 they may part
where two tokens are nearly as likely, because roundings come in another order.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cme295lab.transformer import load_pretrained, save_pretrained
from cme295lab.transformer.decoding import generate
from cme295lab.transformer.pretrained.cache import is_fetched
from cme295lab.transformer.pretrained.registry import SMOLLM2
from tests.benchmarks.timing import seconds_of

PROMPT = "<|im_start|>user\nCan I put my teddy bear in the washing machine?<|im_end|>\n<|im_start|>assistant\n"


@dataclass(frozen=True, kw_only=True)
class DecodeSpeed:
    """One dtype.

    Args:
        dtype: of weights and cache.
        num_tokens: new tokens of a run; reading the prompt counts as time.
        tokens_per_s: here.
        transformers_tokens_per_s: there.
        speedup: median of their time over ours, run by run.
        same_tokens: whether both said the same.
    """

    dtype: str
    num_tokens: int
    tokens_per_s: float
    transformers_tokens_per_s: float
    speedup: float
    same_tokens: bool


def decode_rows(*, num_tokens: int = 48, repeats: int = 5) -> list[DecodeSpeed]:
    """Rows for fp32 and bf16; none if the model is not on this machine."""
    if not is_fetched(SMOLLM2):
        print(f"decode speed: not measured, {SMOLLM2.name} is not here: cme295lab fetch {SMOLLM2.short}")
        return []
    return [_decode_speed(dtype, num_tokens, repeats) for dtype in (torch.float32, torch.bfloat16)]


def _decode_speed(dtype: torch.dtype, num_tokens: int, repeats: int) -> DecodeSpeed:
    loaded = load_pretrained(SMOLLM2.name, dtype=dtype)
    prompt = loaded.tokenizer.encode(PROMPT)
    theirs = _transformers_run(loaded, prompt, dtype, num_tokens)

    def ours() -> list[int]:
        return generate(loaded.model, [prompt], max_new_tokens=num_tokens).tokens[0]

    same = ours() == theirs()  # and both are warm
    pairs = [(seconds_of(ours), seconds_of(theirs)) for _ in range(repeats)]
    own_s, their_s = (statistics.median(times) for times in zip(*pairs))
    return DecodeSpeed(
        dtype=str(dtype).removeprefix("torch."),
        num_tokens=num_tokens,
        tokens_per_s=num_tokens / own_s,
        transformers_tokens_per_s=num_tokens / their_s,
        speedup=statistics.median(their / own for own, their in pairs),
        same_tokens=same,
    )


def _transformers_run(loaded, prompt: list[int], dtype: torch.dtype, num_tokens: int) -> Callable[[], list[int]]:
    from transformers import AutoModelForCausalLM, GenerationConfig

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(folder, loaded.model, loaded.tokenizer)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    tokens = torch.tensor([prompt])
    config = GenerationConfig(do_sample=False, max_new_tokens=num_tokens, pad_token_id=0, eos_token_id=None)

    def run() -> list[int]:
        out = model.generate(tokens, generation_config=config, attention_mask=torch.ones_like(tokens))
        return out[0, len(prompt) :].tolist()

    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    for row in decode_rows():
        print(
            f"decode {row.dtype:<9} {row.tokens_per_s:6.1f} tokens/s, "
            f"transformers {row.transformers_tokens_per_s:6.1f}, ratio {row.speedup:.2f}, "
            f"{'the same' if row.same_tokens else 'other'} tokens"
        )
