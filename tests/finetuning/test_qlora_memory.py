"""The bytes of a QLoRA run on paper: published figures, tensors as they are stored, and a model counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cme295lab.finetuning.qlora import qlora_memory
from cme295lab.finetuning.qlora.memory import code_bytes, scale_bytes
from cme295lab.quantization import nf4
from cme295lab.transformer import DecoderLM, ModelConfig

LLAMA_65B = ModelConfig(
    name="llama-65b", vocab_size=32_000, num_layers=80, dim=8192, num_heads=64, mlp_dim=22_016, max_seq=2048
)
TINY = ModelConfig(
    name="tiny", vocab_size=50, num_layers=2, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=40, max_seq=16
)


def test_65b_takes_less_than_48_gb_where_fine_tuning_in_full_takes_more_than_780() -> None:
    memory = qlora_memory(LLAMA_65B, rank=64)
    assert memory.num_parameters == 65_285_660_672
    assert 780e9 < memory.full_bytes < 790e9
    assert memory.bytes.total < 48e9
    assert memory.saving_against_full > 780 / 48


def test_65b_in_nf4_with_double_quantisation_is_33_5_gb() -> None:
    bytes_ = qlora_memory(LLAMA_65B).bytes
    per_weight = (bytes_.codes + bytes_.scales) / qlora_memory(LLAMA_65B).num_quantized
    assert round(65e9 * per_weight / 1e9, 1) == 33.5
    plain = qlora_memory(LLAMA_65B, double_quant=False)
    assert round(65e9 * (plain.bits_per_weight - 8 * per_weight) / 8 / 1e9, 2) == 3.03  # what double quantisation saves


def test_16_times_is_a_saving_of_training_and_weights_shrink_less_than_4_times() -> None:
    memory = qlora_memory(LLAMA_65B)
    assert round(memory.saving_of_weights, 2) == 3.88
    assert round(memory.bits_per_weight, 3) == 4.127
    assert memory.saving_against_full > 16


@pytest.mark.parametrize(
    ("targets", "rank", "trained"),
    [(("query", "value"), 8, 4_194_304), ("all-linear", 16, 39_976_960), ("all-linear", 64, 159_907_840)],
    ids=["query and value", "all of rank 16", "all of rank 64"],
)
def test_adapters_of_llama_2_7b_have_the_published_sizes(targets: object, rank: int, trained: int) -> None:
    memory = qlora_memory("llama-2-7b", targets=targets, rank=rank)  # type: ignore[arg-type]
    assert memory.num_trained == trained
    assert memory.bytes.adapters == memory.bytes.gradients == 2 * trained
    assert memory.bytes.states == 8 * trained


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize(("shape", "block_size"), [((1, 1), 64), ((7, 9), 32), ((33, 65), 64), ((130, 131), 128)])
def test_bytes_of_a_tensor_are_those_that_it_is_stored_in(
    shape: tuple[int, int], block_size: int, double_quant: bool
) -> None:
    stored = nf4.quantize(torch.randn(shape), block_size=block_size, double_quant=double_quant)
    num_values = shape[0] * shape[1]
    assert code_bytes(num_values) == stored.packed.nbytes
    assert scale_bytes(num_values, block_size, double_quant) == stored.num_bytes - stored.packed.nbytes


def test_a_small_model_counted_by_hand() -> None:
    # Per layer: query and out 24×24, key and value 12×24, gate, up and down 40×24. Two layers.
    memory = qlora_memory(TINY, rank=2, adapter_format="fp32")
    per_layer = 2 * 576 + 2 * 288 + 3 * 960
    assert memory.num_quantized == 2 * per_layer == 9216
    assert memory.bytes.codes == 4608
    # Blocks of 64: 9 of 576, 4.5 → 5 of 288, 15 of 960; with each tensor an fp32 constant and an fp32 mean.
    assert memory.bytes.scales == 2 * (2 * (9 + 8) + 2 * (5 + 8) + 3 * (15 + 8))
    assert memory.bytes.embeddings == 2 * 2 * 50 * 24
    assert memory.bytes.norms == 2 * 5 * 24
    assert memory.num_trained == 2 * 2 * (2 * 48 + 2 * 36 + 3 * 64)
    assert memory.bytes.adapters == memory.bytes.gradients == 4 * memory.num_trained
    assert memory.bytes.base + 16 * memory.num_trained == memory.bytes.total


def test_a_head_of_its_own_can_be_quantised_and_a_tied_one_cannot() -> None:
    kept, quantized = (qlora_memory(TINY, rank=2, quantize_head=head) for head in (False, True))
    assert quantized.num_quantized - kept.num_quantized == 50 * 24
    assert kept.bytes.embeddings - quantized.bytes.embeddings == 2 * 50 * 24
    assert qlora_memory("gpt-2", quantize_head=True).bytes == qlora_memory("gpt-2").bytes


@pytest.mark.parametrize("name", ["course-draft", "course-moe", "gpt-2"])
def test_every_parameter_is_in_one_class(name: str) -> None:
    memory = qlora_memory(name, rank=4)
    frozen = memory.num_quantized + (memory.bytes.embeddings + memory.bytes.norms) // 2
    assert frozen == memory.num_parameters


def test_quantised_layers_are_the_linear_layers_of_the_model() -> None:
    model = DecoderLM(TINY)
    linear = [layer for layer in model.layers.modules() if isinstance(layer, nn.Linear)]
    assert qlora_memory(TINY, rank=2).num_quantized == sum(layer.weight.numel() for layer in linear)


def test_the_table_shows_both_savings() -> None:
    text = str(qlora_memory(LLAMA_65B))
    assert "17.8 times less than in full; a weight takes 4.127 bits, 3.88 times less than 16" in text
    assert "QLoRA               44.1 GB" in text
    assert "in full, 16 bits     783 GB" in text


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1, got 0"),
        ({"rank": 2.0}, TypeError, "rank must be an int"),
        ({"rank": 13}, ValueError, r"rank must be at most the shorter side of layers.0.attention.key, \(12, 24\)"),
        ({"targets": ("q_proj",)}, ValueError, "'q_proj', and no layer has that name; .*there are down, embed"),
        ({"targets": "query"}, TypeError, r"write \('query',\)"),
        ({"targets": ()}, ValueError, "targets is empty"),
        ({"block_size": 0}, ValueError, "block_size must be at least 1"),
        ({"adapter_format": "fp8"}, ValueError, "adapter_format must be one of fp64, fp32, bf16, fp16, got 'fp8'"),
    ],
    ids=["rank 0", "rank float", "rank too large", "target", "text", "no target", "block", "format"],
)
def test_memory_refuses(options: dict[str, object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        qlora_memory(TINY, **options)  # type: ignore[arg-type]
