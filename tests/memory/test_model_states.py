"""Bytes of weights, gradients, masters and optimizer states: ZeRO's table, QLoRA's numbers, torch's own states."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.memory import (
    POLICIES,
    ParallelConfig,
    PrecisionPolicy,
    blockwise_bits_per_parameter,
    bytes_per_parameter,
    get_policy,
    largest_model_parameters,
    zero_model_state_bytes,
)
from cme295lab.memory.formulas.model_states import model_states, optimizer_state_bytes
from cme295lab.memory.formulas.shapes import ParameterShape, layers_of_stage, parameter_shapes
from cme295lab.transformer import PRESETS, DecoderLM, ModelConfig, preset

SMALL = ModelConfig(vocab_size=200, num_layers=2, dim=96, num_heads=4, num_kv_heads=2, mlp_dim=136, max_seq=32)
GPT = dataclasses.replace(
    SMALL, num_kv_heads=4, mlp="gelu", norm="layernorm", position="learned", tied_head=True, bias=True
)

TABLE_1 = {  # Rajbhandari et al. 2020, Table 1, in GB; printed truncated, 1.88 rounded
    (7.5e9, 1): (120, 120, 120), (7.5e9, 4): (52.5, 41.3, 30), (7.5e9, 64): (31.4, 16.6, 1.88),
    (128e9, 1): (2048, 2048, 2048), (128e9, 4): (896, 704, 512), (128e9, 64): (536, 284, 32),
    (1e12, 1): (16000, 16000, 16000), (1e12, 4): (7000, 5500, 4000), (1e12, 64): (4187, 2218, 250),
}  # fmt: skip


@pytest.mark.parametrize(("size", "ranks"), TABLE_1)
def test_zero_table_1(size, ranks):
    for stage, published in zip((1, 2, 3), TABLE_1[size, ranks]):
        found = zero_model_state_bytes(int(size), ranks, stage) / 1e9
        assert found == pytest.approx(published, rel=0.006)


def test_zero_figure_1():
    found = [zero_model_state_bytes(7_500_000_000, 64, stage) for stage in (0, 1, 2, 3)]
    assert found == [120_000_000_000, 31_406_250_000, 16_640_625_000, 1_875_000_000]
    assert [round(size / 1e9, 1) for size in found] == [120.0, 31.4, 16.6, 1.9]


def test_largest_model_on_64_gpus_of_32_gb():
    found = [largest_model_parameters(32e9, 64, stage) for stage in (0, 1, 2, 3)]
    assert [round(size / 1e9, 1) for size in found] == [2.0, 7.6, 14.4, 128.0]
    for stage, size in enumerate(found):
        assert zero_model_state_bytes(size, 64, stage) <= 32e9 < zero_model_state_bytes(size + 1, 64, stage)


def test_bytes_per_parameter_of_each_policy():
    found = {name: bytes_per_parameter(name) for name in POLICIES}
    assert found == {
        "fp32": 16, "bf16-mixed": 16, "fp16-mixed": 16, "bf16-mixed-fp32-gradients": 18, "bf16-fp32-states": 12,
        "bf16-pure": 8,
    }  # fmt: skip
    assert bytes_per_parameter("fp32", "sgd") == 8
    assert bytes_per_parameter("fp32", "sgd-momentum") == 12
    assert bytes_per_parameter("bf16-mixed", "adam-8bit") == 10 + 8 / 256


def test_published_totals():
    assert 65e9 * bytes_per_parameter("bf16-fp32-states") == 780e9  # QLoRA's abstract: ">780 GB for 65B"
    totals = {"llama-2-7b": 107.8e9, "llama-3-405b": 6494e9, "llama-2-70b": 1104e9}
    for name, size in totals.items():
        assert zero_model_state_bytes(preset(name).num_parameters, 1, 0) == pytest.approx(size, rel=5e-4)


def test_bits_of_a_quantised_base():
    plain, double = (blockwise_bits_per_parameter(double_quantization=double) for double in (False, True))
    assert float(plain) == 4.5
    assert float(double) == pytest.approx(4.127, abs=5e-4)
    assert float(plain - double) == pytest.approx(0.373, abs=5e-4)
    assert 65e9 * float(plain - double) / 8 / 1e9 == pytest.approx(3.03, abs=0.005)
    assert 16 / float(double) == pytest.approx(3.88, abs=0.005)  # weights alone shrink by so much
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        blockwise_bits_per_parameter(block_size=0)


def test_a_shard_that_does_not_divide_is_rounded_up_to_a_parameter():
    # 10 parameters over 4 ranks: 3 each. Stage 1: 4 × 10 + 12 × 3; stage 2: 2 × 10 + 14 × 3; stage 3: 16 × 3.
    assert [zero_model_state_bytes(10, 4, stage) for stage in (0, 1, 2, 3)] == [160, 76, 62, 48]
    assert zero_model_state_bytes(1, 8, 3) == 16  # more ranks than parameters: a padded one each


@given(st.integers(1, 10**12), st.integers(1, 2000), st.sampled_from(sorted(POLICIES)))
def test_each_stage_saves_and_all_shards_together_hold_everything(size, ranks, policy):
    stages = [zero_model_state_bytes(size, ranks, stage, policy=policy) for stage in (0, 1, 2, 3)]
    assert stages == sorted(stages, reverse=True)
    per_parameter = bytes_per_parameter(policy)
    assert stages[0] == size * per_parameter
    assert 0 <= ranks * stages[3] - stages[0] <= per_parameter * (ranks - 1)
    assert zero_model_state_bytes(size, ranks, 3, policy=policy) >= zero_model_state_bytes(
        size, ranks + 1, 3, policy=policy
    )


@pytest.mark.parametrize("name", PRESETS)
def test_shapes_are_the_models_parameters(name):
    config = PRESETS[name]
    with torch.device("meta"):
        model = DecoderLM(config)
    ours = {shape.name: shape.shape for shape in parameter_shapes(config)}
    assert ours == {key: tuple(value.shape) for key, value in model.named_parameters()}


@pytest.mark.parametrize("name", ["llama-3-8b", "gpt-2-xl", "megatron-7.5b"])
def test_parts_of_a_split_model_add_up(name):
    config = preset(name)
    tensor, stages = (5 if name == "gpt-2-xl" else 4), 3

    def elements(**where):
        return sum(shape.num_elements for shape in parameter_shapes(config, ParallelConfig(**where)))

    whole = [shape for shape in parameter_shapes(config) if shape.part == "norms" or shape.name.endswith(_WHOLE)]
    copied = sum(shape.num_elements for shape in whole)
    padding = tensor * -(-config.vocab_size // tensor) - config.vocab_size
    tables = 1 if config.tied_head else 2
    assert (
        tensor * elements(tensor=tensor)
        == config.num_parameters + (tensor - 1) * copied + tables * padding * config.dim
    )
    by_stage = [elements(pipeline=stages, pipeline_rank=rank) for rank in range(stages)]
    tied = config.vocab_size * config.dim if config.tied_head else 0  # the last stage needs a copy of it
    assert sum(by_stage) == config.num_parameters + tied


_WHOLE = ("position_embedding.weight", "out.bias", "down.bias")


@pytest.mark.parametrize("stages", [1, 3, 5, 32])
def test_each_layer_is_on_one_stage(stages):
    config = preset("llama-3-8b")
    ranges = [layers_of_stage(config, ParallelConfig(pipeline=stages, pipeline_rank=rank)) for rank in range(stages)]
    assert [layer for stage in ranges for layer in stage] == list(range(32))
    assert len(ranges[0]) == -(-32 // stages) == max(len(stage) for stage in ranges)


def test_keys_and_values_are_copied_over_more_ranks_than_heads():
    shapes = {shape.name: shape.shape for shape in parameter_shapes(preset("llama-3-8b"), ParallelConfig(tensor=16))}
    assert shapes["layers.0.attention.query.weight"] == (256, 4096)
    assert shapes["layers.0.attention.key.weight"] == (128, 4096)  # 8 heads over 16 ranks: one each, twice


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd-momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    "adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.1),
}


@pytest.mark.parametrize("config", [SMALL, GPT], ids=["llama", "gpt"])
@pytest.mark.parametrize("policy", ["fp32", "bf16-pure"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_are_torchs_to_the_byte(name, policy, config):
    model = DecoderLM(config).to(torch.float32 if policy == "fp32" else torch.bfloat16)
    optimizer = OPTIMIZERS[name](model.parameters())
    tokens = torch.randint(config.vocab_size, (1, 8))
    model.loss(tokens, tokens).backward()
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    counters = sum(value.nbytes for value in values if value.ndim == 0)
    states = sum(value.nbytes for value in values if value.ndim)
    assert optimizer_state_bytes(parameter_shapes(config), policy, name) == (states, counters)


def test_eight_bit_states_by_hand():
    shapes = [ParameterShape(name=str(size), shape=(size,), part="mlp") for size in (4095, 4096, 5000)]
    # fp32 below 4096 elements; else 2 bytes an element and 2 constants per started block of 256.
    wanted = 8 * 4095 + (2 * 4096 + 8 * 16) + (2 * 5000 + 8 * math.ceil(5000 / 256))
    assert optimizer_state_bytes(shapes, "bf16-mixed", "adam-8bit") == (wanted, 0)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_model_states_of_a_config_are_zeros_formula(stage):
    found = model_states(parameter_shapes(GPT), "bf16-mixed", "adamw", zero_stage=stage, num_shards=7)
    assert found.total - found.counters == zero_model_state_bytes(GPT.num_parameters, 7, stage)


def test_bad_arguments():
    with pytest.raises(ValueError, match="stage must be 0, 1, 2 or 3, got 4"):
        zero_model_state_bytes(10, 2, 4)
    with pytest.raises(ValueError, match="num_ranks must be at least 1"):
        zero_model_state_bytes(10, 0, 1)
    with pytest.raises(TypeError, match="num_parameters must be an int"):
        zero_model_state_bytes(7.5e9, 64, 1)
    with pytest.raises(ValueError, match=r"unknown precision policy 'bf16-mix'. Did you mean 'bf16-mixed'"):
        get_policy("bf16-mix")
    with pytest.raises(TypeError, match="policy must be a name"):
        get_policy(16)
    with pytest.raises(ValueError, match="gradients must be one of"):
        PrecisionPolicy(name="odd", weights="bf16", gradients="fp12", masters=None, states="fp32")
    with pytest.raises(ValueError, match="adafactor has no fixed bytes"):
        bytes_per_parameter("fp32", "adafactor")
    with pytest.raises(ValueError, match="optimizer must be one of"):
        bytes_per_parameter("fp32", "lion")
    with pytest.raises(ValueError, match="memory_bytes must be positive"):
        largest_model_parameters(0, 1)
