"""The KV cache explorer: published sizes, bounds worked by hand, and the view that shows them."""

from typing import Any

import pytest

from cme295lab.transformer import preset
from cme295lab.widgets.kv_cache_explorer import KvCacheExplorer
from cme295lab.widgets.kv_cache_scenario import kv_cache_scenario

GIB = 2**30


def scenario(**change: Any) -> Any:
    values = {"model": "llama-2-7b", "seq": 4096, "batch": 1, "dtype": "bf16", "device": "A100", "num_gpus": 1}
    return kv_cache_scenario(**(values | change))


@pytest.mark.parametrize(
    ("model", "seq", "per_token", "cache_gib"),
    [
        ("llama-2-7b", 4096, 524_288, 2.0),
        ("llama-2-13b", 4096, 819_200, 3.125),
        ("llama-2-70b", 4096, 327_680, 1.25),
        ("llama-3-8b", 8192, 131_072, 1.0),
        ("llama-3-8b", 131_072, 131_072, 16.0),
        ("llama-3-70b", 8192, 327_680, 2.5),
    ],
)
def test_cache_of_published_models(model: str, seq: int, per_token: int, cache_gib: float) -> None:
    own = scenario(model=model, seq=seq).own
    assert own.bytes_per_token == per_token
    assert own.cache_bytes == cache_gib * GIB


def test_kinds_of_attention_by_hand() -> None:
    """Llama-2 70B: 64 query heads of 128, 8 key/value heads, 80 layers; as MHA its cache is 8 times as large."""
    layouts = {layout.kind: layout for layout in scenario(model="llama-2-70b").layouts}
    assert layouts["MHA"].bytes_per_token == 2 * 64 * 128 * 80 * 2 == 2.5 * 2**20
    assert layouts["MHA"].cache_bytes == 10 * GIB
    assert layouts["GQA"].bytes_per_token == 327_680
    assert layouts["MQA"].bytes_per_token == 2 * 128 * 80 * 2
    assert layouts["MLA"].bytes_per_token == (512 + 64) * 80 * 2
    # DeepSeek-V3 has 61 layers, and 70,272 bytes a token: 1,152 for each layer.
    assert layouts["MLA"].bytes_per_token / 80 == 70_272 / 61


def test_a_model_without_groups_has_no_bar_for_them() -> None:
    assert [layout.kind for layout in scenario().layouts] == ["MHA", "MQA", "MLA"]
    assert scenario().own.kind == "MHA"
    assert scenario(model="llama-3-8b").own.kind == "GQA"


def test_lower_bound_by_hand() -> None:
    """13.48 GB of weights at 2,039 GB/s: 6.61 ms; a cache of 2 GiB adds 1.05 ms."""
    weights_s = 2 * 6_738_415_616 / 2039e9
    assert weights_s == pytest.approx(6.61e-3, abs=5e-6)
    assert scenario().own.step_s == pytest.approx(weights_s + 2 * GIB / 2039e9)
    assert scenario(batch=8).own.step_s == pytest.approx(weights_s + 16 * GIB / 2039e9)
    assert scenario(num_gpus=4).own.step_s == pytest.approx(scenario().own.step_s / 4)


def test_a_large_batch_with_little_context_is_bound_by_arithmetic() -> None:
    """512 sequences, 2 FLOP per parameter of all matrices and 4 per number of the keys, at 312 TFLOP/s."""
    config = preset("llama-2-7b")
    matrices = config.num_parameters - 32_000 * 4096 - (2 * 32 + 1) * 4096
    flops = 512 * (2 * matrices + 4 * 32 * 4096 * 128)
    assert scenario(seq=128, batch=512).layouts[-1].step_s == pytest.approx(flops / 312e12)


def test_a_mixture_holds_all_experts_and_reads_some() -> None:
    found = scenario(model="mixtral-8x7b", num_gpus=2, seq=1024)
    assert found.weight_bytes == 2 * 46_702_792_704
    read_s = (2 * 12_879_925_248 + found.own.cache_bytes) / 2039e9 / 2
    assert found.own.step_s == pytest.approx(read_s)


def test_tokens_that_fit_fill_the_gpus_and_no_more() -> None:
    for change in ({}, {"model": "llama-3-70b", "num_gpus": 2}, {"dtype": "fp32"}, {"device": "T4", "dtype": "fp16"}):
        found = scenario(**change)
        for layout in found.layouts:
            room = found.capacity_bytes - found.weight_bytes
            assert layout.max_tokens * layout.bytes_per_token <= room < (layout.max_tokens + 1) * layout.bytes_per_token
            assert layout.fits == (found.seq * found.batch <= layout.max_tokens)
    assert scenario(model="llama-3-405b").own.max_tokens == 0
    assert not scenario(model="llama-3-405b").own.fits


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seq": 0}, "seq must be"),
        ({"batch": -1}, "batch must be"),
        ({"num_gpus": 0}, "num_gpus must be"),
        ({"dtype": "int3"}, "dtype must be one of"),
        ({"model": "llama-9"}, "unknown model"),
        ({"device": "A1000"}, "unknown device"),
        ({"device": "T4"}, "dtype 'bf16'"),
        ({"model": "gpt-2"}, "max_seq of gpt-2, 1024"),
    ],
    ids=["seq", "batch", "gpus", "dtype", "model", "device", "format", "positions"],
)
def test_impossible_scenarios_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scenario(**change)


def test_view_shows_the_scenario_and_follows_its_controls() -> None:
    explorer = KvCacheExplorer()
    assert list(explorer.plot.data[2].x) == [layout.bytes_per_token for layout in explorer.scenario.layouts]
    assert explorer.plot.data[1].text[0] == "2 GiB"
    assert "6,144" not in explorer._text.value
    explorer.controls["model"].value = "llama-2-70b"
    explorer.controls["num_gpus"].value = 2
    assert list(explorer.plot.data[1].text) == ["10 GiB", "1.25 GiB", "160 MiB", "360 MiB"]
    assert explorer.plot.layout.shapes[0].x0 == 2 * 80 * GIB
    assert explorer.scenario.weight_bytes == 2 * preset("llama-2-70b").num_parameters
    assert "fits" in explorer._text.value
    explorer.controls["num_gpus"].value = 1
    assert "does not fit" in explorer._text.value
    picture = explorer.figure()
    assert picture.alt_text in repr(explorer)
    assert len(picture.png()) < 100_000


def test_view_says_what_is_not_possible_and_keeps_its_picture() -> None:
    explorer = KvCacheExplorer()
    shown = list(explorer.plot.data[1].text)
    explorer.controls["device"].value = "T4"
    assert "Not possible" in explorer._text.value
    assert "bf16" in explorer._text.value
    assert list(explorer.plot.data[1].text) == shown
    explorer.controls["dtype"].value = "fp16"
    assert "T4" in explorer.plot.layout.annotations[-1].text
    assert "Not possible" not in explorer._text.value


def test_view_refuses_odd_values() -> None:
    with pytest.raises(ValueError, match="seq must be one of"):
        KvCacheExplorer(seq=5000)
    with pytest.raises(ValueError, match="unknown device"):
        KvCacheExplorer(device="A1000")
