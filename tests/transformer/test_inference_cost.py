"""Published bytes and times of decoding, and the operations that PyTorch counts."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cme295lab.hardware import get_device
from cme295lab.transformer import DecoderLM, ModelConfig, StaticCache, decode_cost, kv_bytes, prefill_cost, preset
from cme295lab.transformer.inference_cost import parameters_read

SMALL = ModelConfig(vocab_size=50, num_layers=3, dim=24, num_heads=4, num_kv_heads=2, mlp_dim=36, max_seq=64)
MOE = dataclasses.replace(SMALL, num_experts=5, experts_per_token=2)


def test_bytes_per_token_of_published_models():
    per_token = {"llama-2-7b": 524_288, "llama-2-13b": 819_200, "llama-2-70b": 327_680, "llama-3-8b": 131_072}
    assert {name: kv_bytes(preset(name), num_positions=1) for name in per_token} == per_token
    assert kv_bytes(preset("llama-3-8b"), num_positions=131_072) == 16 * 2**30


def test_llama_2_7b_on_an_a100_needs_6_61_ms_for_a_token_and_1_05_more_for_4096_of_context():
    llama = preset("llama-2-7b")
    bare, full = (decode_cost(llama, context=context, device="A100-80GB") for context in (0, 4096))
    assert bare.lower_bound_s * 1e3 == pytest.approx(13.4768 / 2.039, abs=0.005)
    assert (full.lower_bound_s - bare.lower_bound_s) * 1e3 == pytest.approx(2 * 2**30 / 2.039e9, rel=1e-9)
    assert (full.bound, full.weight_bytes) == ("memory", 2 * 6_738_415_616)
    assert full.tokens_per_s == pytest.approx(1 / full.lower_bound_s)


def test_large_batches_are_bound_by_compute_without_context_and_by_their_caches_with_it():
    llama, ridge = preset("llama-2-7b"), 312e12 / 2.039e12
    without = [decode_cost(llama, context=0, batch_size=batch).intensity for batch in (1, 64, 512)]
    assert without == pytest.approx([without[0] * batch for batch in (1, 64, 512)])
    assert decode_cost(llama, context=0, batch_size=512).bound == "compute"
    assert without[2] > ridge > without[1]
    limit = decode_cost(llama, context=4096, batch_size=10**6)
    assert limit.bound == "memory"
    assert limit.intensity < 10  # (2P + 4 L d T) / (2 · 2 L d T), whatever the batch
    assert prefill_cost(llama, context=512).bound == "compute"


@pytest.mark.parametrize("config", [SMALL, MOE], ids=["dense", "experts"])
def test_operations_are_those_that_pytorch_counts(config):
    model = DecoderLM(config, attention="standard").eval()
    cache = StaticCache(config, batch_size=2, max_seq=64)
    tokens = torch.randint(config.vocab_size, (2, 32))
    counted = []
    with torch.no_grad():
        for part in (tokens[:, :31], tokens[:, 31:]):
            with FlopCounterMode(display=False) as counter:
                model(part, cache=cache, num_logits=1)
            counted.append(counter.get_total_flops())
    # PyTorch computes all scores, also those that the mask hides.
    hidden = 4 * config.num_layers * config.query_dim * 2 * (31 * 31 - 31 * 32 // 2)
    assert prefill_cost(config, context=31, batch_size=2).flops == counted[0] - hidden
    assert decode_cost(config, context=32, batch_size=2).flops == counted[1]


def test_a_batch_reads_the_union_of_its_experts():
    mixtral = preset("mixtral-8x7b")
    assert parameters_read(mixtral, 1) == pytest.approx(mixtral.num_active_parameters)
    assert parameters_read(mixtral, 10_000) == pytest.approx(mixtral.num_parameters)
    torch.manual_seed(0)
    choices = torch.rand(20_000, 3, MOE.num_experts).topk(2, dim=-1).indices  # 3 tokens, 2 of 5 experts each
    used = torch.zeros(20_000, MOE.num_experts).scatter(1, choices.flatten(1), 1.0).sum(1).mean().item()
    outside = MOE.num_parameters - MOE.num_layers * MOE.num_experts * MOE.parameters_per_expert
    expected = outside + MOE.num_layers * used * MOE.parameters_per_expert
    assert parameters_read(MOE, 3) == pytest.approx(expected, rel=0.01)


def test_fewer_bytes_per_number_are_read_faster():
    times = [decode_cost(preset("llama-3-8b"), context=64, dtype=dtype, device="H100").memory_s for dtype in
             ("fp32", "bf16", "fp8")]  # fmt: skip
    assert times == pytest.approx([4 * times[2], 2 * times[2], times[2]])
    assert times[1] == pytest.approx(
        (2 * 8_030_261_248 + 64 * 131_072) / get_device("H100").bandwidth_bytes_per_s, rel=1e-12
    )


def test_bad_arguments():
    for change, message in (
        ({"context": 65}, "context must be 0 to the max_seq of model, 64, got 65"),
        ({"context": -1}, "context must be 0 to"),
        ({"context": 1, "batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"context": 1, "dtype": "int3"}, "dtype must be one of fp32, bf16, fp16, fp8, got 'int3'"),
        ({"context": 1, "dtype": "fp8", "device": "A100"}, "dtype 'fp8': A100.* computes in"),
        ({"context": 1, "device": "abacus"}, "unknown device 'abacus'"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_cost(SMALL, **change)
    with pytest.raises(ValueError, match="context must be 1 to"):
        prefill_cost(SMALL, context=0)
