"""On a GPU a timeline equals what the CUDA allocator was asked for, to the byte, at every point and at the peak."""

from collections.abc import Iterator

import pytest
import torch

from cme295lab.memory import MemoryTimeline, apply_recompute
from cme295lab.transformer import DecoderLM, ModelConfig

pytestmark = pytest.mark.gpu

CONFIG = ModelConfig(name="s", vocab_size=1000, num_layers=3, dim=96, num_heads=3, mlp_dim=200, max_seq=64, dropout=0.1)


def requested(which: str) -> int:
    """Bytes that tensors asked the allocator for: without its rounding."""
    return int(torch.cuda.memory_stats()[f"requested_bytes.all.{which}"])


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_live_and_peak_bytes_are_the_allocators(recompute: str) -> None:
    model = DecoderLM(CONFIG, attention="standard").cuda()
    apply_recompute(model, recompute)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    tokens = torch.randint(1000, (2, 33), device="cuda")

    def parts_of_a_step() -> Iterator[None]:
        model.loss(tokens, tokens).backward()
        yield
        optimizer.step()
        yield
        optimizer.zero_grad()
        yield

    list(parts_of_a_step())  # workspaces of cuBLAS are there from now on
    before = requested("current")
    torch.cuda.reset_peak_memory_stats()
    with MemoryTimeline(model=model, optimizer=optimizer, device="cuda") as m:
        base = before - m.live_bytes - tokens.untyped_storage().nbytes()
        m.mark(tokens, "input")
        seen = [(m.live_bytes + base, requested("current")) for _ in parts_of_a_step()]
    assert all(ours == theirs for ours, theirs in seen), seen
    assert m.peak_bytes + base == requested("peak")


def test_offloading_moves_block_inputs_to_the_host() -> None:
    model = DecoderLM(CONFIG, attention="standard").cuda()
    tokens = torch.randint(1000, (2, 33), device="cuda")
    gradients = []
    for offload in (False, True):
        apply_recompute(model, "full", offload=offload)
        torch.manual_seed(0)
        model.zero_grad()
        with MemoryTimeline(model=model) as m:
            loss = model.loss(tokens, tokens)
            offloaded = m.by_class().get("offloaded", 0)
            loss.backward()
        assert offloaded == offload * CONFIG.num_layers * 4 * 2 * 33 * CONFIG.dim
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
