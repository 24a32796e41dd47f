"""Flash and tiled attention keep O(N) for the backward pass, standard attention O(N²)."""

import pytest
import torch

from cme295lab import simulator
from cme295lab.attention import flash_attention, standard_attention, standard_attention_kernels, tiled_attention
from tests.attention.oracle import make_inputs


def extra_saved_bytes(attention, length: int) -> int:
    """Bytes saved for the backward pass beyond q, k and v, each storage once."""
    q, k, v, _ = (t.requires_grad_() for t in make_inputs(heads=2, len_q=length, dim=16, dtype=torch.float16))
    inputs = {t.untyped_storage().data_ptr() for t in (q, k, v)}
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with simulator.enabled(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        o = attention(q, k, v, causal=True)
    assert o.requires_grad
    return sum(saved.values())


@pytest.mark.parametrize("attention", [flash_attention, tiled_attention])
def test_flash_saves_the_output_and_a_number_per_query(attention):
    for length in (128, 256, 512):
        output, log_sum_exp = 2 * length * 16 * 2, 2 * length * 4
        assert extra_saved_bytes(attention, length) == output + log_sum_exp


@pytest.mark.parametrize("attention", [standard_attention, standard_attention_kernels])
def test_standard_saves_the_probabilities(attention):
    for length in (128, 256, 512):
        assert extra_saved_bytes(attention, length) >= 2 * length * length * 2
    assert extra_saved_bytes(attention, 512) > 3.5 * extra_saved_bytes(attention, 256)
