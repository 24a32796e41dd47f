"""Parameter counts against published integers and formulas; what a config refuses."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.transformer import PRESETS, ModelConfig, preset

PUBLISHED = {  # as the released checkpoints have them
    "llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320, "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "llama-3-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096, "gpt-2": 124_439_808, "gpt-2-medium": 354_823_168, "gpt-2-large": 774_030_080,
    "gpt-2-xl": 1_557_611_200, "gpt-3": 174_604_259_328, "mixtral-8x7b": 46_702_792_704,
    "smollm2-135m": 134_515_008,
}  # fmt: skip
SMALL = {"vocab_size": 50, "num_layers": 2, "dim": 12, "num_heads": 3, "mlp_dim": 20, "max_seq": 16}


@pytest.mark.parametrize("name", PUBLISHED)
def test_number_of_parameters_is_that_of_the_published_checkpoint(name):
    assert preset(name).num_parameters == PUBLISHED[name]


def test_mixtral_has_12_9_billion_active_parameters():
    assert preset("mixtral-8x7b").num_active_parameters == 12_879_925_248
    assert preset("mistral-7b").num_active_parameters == preset("mistral-7b").num_parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("megatron-7.5b", 7.5), ("megatron-175b", 174.6), ("megatron-530b", 529.6), ("megatron-1t", 1008.0)],
)
def test_number_of_parameters_is_narayanan_et_al_formula_and_the_last_norm(name, billions):
    c = preset(name)
    layers, h = c.num_layers, c.dim
    # P = 12 l h² (1 + 13 / (12 h) + (V + s) / (12 l h)), multiplied out.
    formula = 12 * layers * h * h + 13 * layers * h + (c.vocab_size + c.max_seq) * h
    assert c.num_parameters == formula + 2 * h
    assert c.num_parameters / 1e9 == pytest.approx(billions, abs=0.06)


def test_counts_by_hand():
    llama = ModelConfig(**SMALL, num_kv_heads=1)
    # Heads of 4: queries and output 12 × 12, keys and values 4 × 12; three matrices 12 × 20.
    assert llama.counts.attention == 2 * (2 * 144 + 2 * 48)
    assert llama.counts.mlp == 2 * 3 * 240
    assert (llama.counts.norms, llama.counts.token_embedding, llama.counts.head) == (5 * 12, 600, 600)
    assert llama.counts.position_embedding == 0
    gpt = ModelConfig(**SMALL, mlp="gelu", norm="layernorm", position="learned", tied_head=True, bias=True)
    assert gpt.counts.attention == 2 * (4 * 144 + 4 * 12)
    assert gpt.counts.mlp == 2 * (2 * 240 + 20 + 12)
    assert (gpt.counts.norms, gpt.counts.embedding, gpt.counts.head) == (5 * 24, 600 + 16 * 12, 0)


shapes = st.fixed_dictionaries({
    "vocab_size": st.integers(1, 99), "num_layers": st.integers(1, 5), "num_heads": st.sampled_from([2, 4, 6]),
    "num_kv_heads": st.sampled_from([1, 2]), "head_dim": st.sampled_from([2, 6]), "dim": st.integers(1, 40),
    "mlp_dim": st.integers(1, 70), "max_seq": st.integers(1, 50), "mlp": st.sampled_from(["swiglu", "gelu"]),
    "norm": st.sampled_from(["rmsnorm", "layernorm"]), "position": st.sampled_from(["rope", "learned"]),
    "tied_head": st.booleans(), "bias": st.booleans(),
})  # fmt: skip


@given(shapes)
def test_parts_add_up_and_the_dictionary_gives_the_config_back(values):
    config = ModelConfig(**values)
    counts = config.counts
    parts = [getattr(counts, item.name) for item in dataclasses.fields(counts)]
    outside = counts.embedding + counts.head + config.norm_parameters
    assert config.num_parameters == counts.total == sum(parts)
    assert config.num_parameters == outside + config.num_layers * config.parameters_per_layer
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_left_out_widths_are_filled_in():
    config = ModelConfig(**SMALL)
    assert (config.num_kv_heads, config.head_dim, config.query_dim, config.kv_dim) == (3, 4, 12, 12)
    assert ModelConfig(**SMALL, head_dim=8).query_dim == 24


def test_course_models_are_as_small_as_their_names_say():
    for name in ("course-1m", "course-4m", "course-30m"):
        millions = int(name.split("-")[1].removesuffix("m"))
        assert preset(name).num_parameters == pytest.approx(millions * 1e6, rel=0.005)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"dim": 0}, ValueError, "dim must be at least 1"),
    ({"dim": 12.0}, TypeError, "dim must be an int"),
    ({"num_heads": 0}, ValueError, "num_heads must be at least 1"),
    ({"num_heads": True}, TypeError, "num_heads must be an int"),
    ({"num_heads": 5}, ValueError, "dim must be a multiple of num_heads"),
    ({"num_kv_heads": 2}, ValueError, "multiple of num_kv_heads"),
    ({"head_dim": 3}, ValueError, "head_dim must be even"),
    ({"mlp": "relu"}, ValueError, "mlp must be one of swiglu, gelu"),
    ({"norm": "batch"}, ValueError, "norm must be one of"),
    ({"position": "alibi"}, ValueError, "position must be one of"),
    ({"dropout": 1.0}, ValueError, "dropout"),
    ({"norm_eps": 0.0}, ValueError, "norm_eps"),
    ({"rope_theta": float("nan")}, ValueError, "rope_theta"),
    ({"bias": 1}, TypeError, "bias must be True or False"),
    ({"num_experts": -1}, ValueError, "num_experts must be 0"),
    ({"num_experts": 4}, ValueError, "experts_per_token must be 1 to num_experts = 4, got 0"),
    ({"num_experts": 4, "experts_per_token": 5}, ValueError, "experts_per_token must be 1 to"),
    ({"experts_per_token": 2}, ValueError, "experts_per_token must be 0 to num_experts = 0"),
    ({"capacity_factor": 1.0}, ValueError, "needs experts"),
    ({"num_experts": 4, "experts_per_token": 1, "capacity_factor": 0.0}, ValueError, "capacity_factor must be a pos"),
    ({"num_experts": 4.0, "experts_per_token": 1}, TypeError, "num_experts must be an int"),
    ({"rope_scaling": {"factor": 8}}, TypeError, "rope_scaling must be a RopeScaling"),
])  # fmt: skip
def test_bad_config_is_refused_by_name(change, error, message):
    with pytest.raises(error, match=message):
        ModelConfig(**(SMALL | change))


def test_unknown_preset_names_the_closest():
    with pytest.raises(ValueError, match=r"Did you mean 'llama-3-8b'.*Known: course-draft"):
        preset("Llama3-8B")
    with pytest.raises(TypeError, match="name must be a string"):
        preset(8)
    with pytest.raises(ValueError, match="has no depth"):
        ModelConfig.from_dict(SMALL | {"depth": 3})


def test_presets_are_named_as_they_are_filed():
    assert all(name == config.name for name, config in PRESETS.items())


def test_counting_imports_no_torch():
    code = "import sys; from cme295lab.transformer import preset; preset('gpt-2').counts; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
