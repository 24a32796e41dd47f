"""The device table reproduces the vendors' arithmetic: peaks, bandwidths and ridge points from first factors."""

import dataclasses
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cme295lab import hardware
from cme295lab.hardware import DEVICES, Device, device_at_hand, get_device
from cme295lab.units import GiB, KiB, MiB

# SMs, boost clock in GHz, dense fp16 tensor-core FLOP per clock and SM (vendors' architecture papers)
TENSOR_FACTORS = {
    "V100-16GB-SXM2": (80, 1.53, 1024),
    "V100-32GB-SXM2": (80, 1.53, 1024),
    "A100-40GB-SXM": (108, 1.41, 2048),
    "A100-80GB-SXM": (108, 1.41, 2048),
    "A100-80GB-PCIe": (108, 1.41, 2048),
    "H100-SXM5": (132, 1.83, 4096),
    "H100-PCIe": (114, 1.62, 4096),
    "H200-SXM": (132, 1.83, 4096),
    "B200": (148, 1.85, 8192),
    "L4": (58, 2.04, 1024),
    "T4": (40, 1.59, 1024),
    "RTX-4090": (128, 2.52, 512),
}
# the same for the ordinary fp32 cores; Hopper clocks them higher than its tensor cores
FP32_FACTORS = {
    "V100-16GB-SXM2": (80, 1.53, 128),
    "A100-80GB-SXM": (108, 1.41, 128),
    "H100-SXM5": (132, 1.98, 256),
    "H200-SXM": (132, 1.98, 256),
    "L4": (58, 2.04, 256),
    "T4": (40, 1.59, 128),
    "RTX-4090": (128, 2.52, 256),
}


@pytest.mark.parametrize("name", DEVICES)
def test_tensor_core_peak_is_sms_times_clock_times_flop_per_clock(name: str) -> None:
    num_sms, clock_ghz, flop_per_clock = TENSOR_FACTORS[name]
    assert DEVICES[name].num_sms == num_sms
    assert DEVICES[name].peak("fp16") == pytest.approx(num_sms * clock_ghz * 1e9 * flop_per_clock, rel=0.005)


@pytest.mark.parametrize("name", FP32_FACTORS)
def test_fp32_peak_is_sms_times_clock_times_flop_per_clock(name: str) -> None:
    num_sms, clock_ghz, flop_per_clock = FP32_FACTORS[name]
    expected = num_sms * clock_ghz * 1e9 * flop_per_clock
    assert DEVICES[name].peak("fp32") == pytest.approx(expected, rel=0.006)  # "8.1 TFLOP/s" is rounded by 0.6 %


@pytest.mark.parametrize(
    ("name", "bus_bits", "gbit_per_s_and_pin"),
    [("A100-40GB-SXM", 5120, 2 * 1.215), ("T4", 256, 10), ("L4", 192, 12.5), ("RTX-4090", 384, 21)],
)
def test_bandwidth_is_bus_width_times_data_rate(name: str, bus_bits: int, gbit_per_s_and_pin: float) -> None:
    assert DEVICES[name].bandwidth_bytes_per_s == pytest.approx(bus_bits * gbit_per_s_and_pin / 8 * 1e9, rel=0.001)


@pytest.mark.parametrize(
    ("name", "dtype", "flop_per_byte"),
    [
        ("A100-40GB-SXM", "bf16", 200.6),
        ("A100-80GB-SXM", "bf16", 153.0),
        ("H100-SXM5", "bf16", 295.3),
        ("H100-PCIe", "bf16", 378.0),
        ("H200-SXM", "bf16", 206.1),
        ("B200", "bf16", 281.25),
        ("L4", "bf16", 403.3),
        ("T4", "fp16", 203.1),
        ("RTX-4090", "bf16", 163.9),
    ],
)
def test_ridge_point_matches_published_peak_over_bandwidth(name: str, dtype: str, flop_per_byte: float) -> None:
    assert DEVICES[name].ridge_point(dtype) == pytest.approx(flop_per_byte, abs=0.06)


def test_aggregate_sram_of_the_lecture() -> None:
    """FlashAttention paper, Fig. 1: 20 MB of SRAM in an A100 at 19 TB/s."""
    a100, h100 = get_device("A100"), get_device("H100")
    assert a100.num_sms * a100.sram_bytes_per_sm == 20.25 * MiB
    assert h100.num_sms * h100.sram_bytes_per_sm == 33 * MiB
    assert a100.sram_bandwidth_bytes_per_s == pytest.approx(19e12, rel=0.03)


def test_memory_and_links_of_the_data_sheets() -> None:
    table = {name: (d.memory_bytes // GiB, d.l2_bytes // MiB, d.link_bytes_per_s / 1e9) for name, d in DEVICES.items()}
    assert table == {
        "V100-16GB-SXM2": (16, 6, 300),
        "V100-32GB-SXM2": (32, 6, 300),
        "A100-40GB-SXM": (40, 40, 600),
        "A100-80GB-SXM": (80, 40, 600),
        "A100-80GB-PCIe": (80, 40, 600),
        "H100-SXM5": (80, 50, 900),
        "H100-PCIe": (80, 50, 600),
        "H200-SXM": (141, 50, 900),
        "B200": (180, 126, 1800),
        "L4": (24, 48, 64),
        "T4": (16, 4, 32),
        "RTX-4090": (24, 72, 64),
    }


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: device.name)
def test_device_is_consistent(device: Device) -> None:
    assert device.max_shared_bytes_per_block < device.sram_bytes_per_sm
    assert device.register_bytes_per_sm == 256 * KiB
    assert device.on_chip_bytes_per_sm >= device.sram_bytes_per_sm + device.register_bytes_per_sm
    assert device.peak("fp64") <= device.peak("fp32") <= device.peak("fp16")
    assert ("bf16" in device.peak_flops_per_s) == (device.compute_capability >= 80)
    assert ("fp8" in device.peak_flops_per_s) == (device.compute_capability >= 89)
    assert device.source
    assert device.confidence == "certain" or device.remark


def test_blackwell_counts_its_tensor_memory_as_on_chip() -> None:
    assert get_device("b200").on_chip_bytes_per_sm == (256 + 256 + 256) * KiB


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("A100", "A100-80GB-SXM"),
        ("a100 40gb", "A100-40GB-SXM"),
        ("H100", "H100-SXM5"),
        ("h100_pcie", "H100-PCIe"),
        ("RTX 4090", "RTX-4090"),
        ("4090", "RTX-4090"),
        ("v100", "V100-16GB-SXM2"),
        *((name, name) for name in DEVICES),
    ],
)
def test_get_device_knows_aliases_in_any_case(name: str, canonical: str) -> None:
    assert get_device(name) is DEVICES[canonical]


def test_get_device_passes_a_device_through() -> None:
    own = dataclasses.replace(get_device("A100"), name="mine", memory_bytes=1)
    assert get_device(own) is own


def test_get_device_names_known_devices_and_the_closest_when_unknown() -> None:
    with pytest.raises(ValueError, match=r"unknown device 'H10'. Did you mean 'H100-\w+'\? Known: .*T4.*4090"):
        get_device("H10")
    with pytest.raises(ValueError, match=r"unknown device 'abacus'. Known:"):
        get_device("abacus")
    with pytest.raises(TypeError, match="must be a name or a Device"):
        get_device(100)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bf16", "bfloat16", torch.bfloat16, "BF16"])
def test_peak_accepts_the_usual_names_of_a_format(dtype: object) -> None:
    assert get_device("A100").peak(dtype) == 312e12


def test_peak_lists_the_formats_when_the_gpu_lacks_one() -> None:
    with pytest.raises(ValueError, match=r"T4 has no peak for dtype 'bf16'; it has fp64, fp32, fp16"):
        get_device("T4").ridge_point("bf16")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_sms", 0),
        ("memory_bytes", -1),
        ("bandwidth_bytes_per_s", float("nan")),
        ("peak_flops_per_s", {"fp32": 0.0}),
    ],
)
def test_device_refuses_limits_that_are_not_positive(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} of 'A100-80GB-SXM' must"):
        dataclasses.replace(get_device("A100"), **{field: value})


def test_device_cannot_be_changed_by_accident() -> None:
    device = get_device("A100")
    with pytest.raises(dataclasses.FrozenInstanceError):
        device.num_sms = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        device.peak_flops_per_s["fp32"] = 1.0  # type: ignore[index]
    with pytest.raises(TypeError):
        DEVICES["mine"] = device  # type: ignore[index]


def test_device_travels_to_another_process_and_hashes() -> None:
    device = get_device("A100")
    assert pickle.loads(pickle.dumps(device)) == device
    assert len({device, get_device("a100"), get_device("H100")}) == 2


def test_device_draws_itself_without_style_or_script_tags() -> None:
    card = dataclasses.replace(get_device("B200"), remark="a <b> & c")._repr_html_()
    for text in ("B200", "180 GiB HBM3e at 8 TB/s", "likely", "1.8 TB/s", "2.25 PFLOP/s", "a &lt;b&gt; &amp; c"):
        assert text in card
    assert "<style" not in card
    assert "<script" not in card
    assert "color:#" not in card.replace("background", "")  # text inherits the theme's colour
    assert "peak bf16" in str(get_device("A100"))


def test_importing_the_table_does_not_import_torch() -> None:
    code = "import sys; import cme295lab.hardware; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="this checks the answer of a machine without CUDA")
def test_device_at_hand_is_none_without_cuda() -> None:
    assert device_at_hand() is None


def _pretend_cuda(monkeypatch: pytest.MonkeyPatch, **properties: object) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(**properties))


@pytest.mark.parametrize(
    ("reported", "canonical"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB-SXM"),
        ("NVIDIA H100 80GB HBM3", "H100-SXM5"),
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
    ],
)
def test_device_at_hand_finds_the_data_sheet(monkeypatch: pytest.MonkeyPatch, reported: str, canonical: str) -> None:
    _pretend_cuda(monkeypatch, name=reported)
    assert device_at_hand() is DEVICES[canonical]


def test_every_driver_name_leads_to_the_table() -> None:
    assert set(hardware._DRIVER_NAMES.values()) == set(DEVICES)


def test_device_at_hand_builds_an_unknown_gpu_from_its_properties(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RTX 3090: 82 SMs at 1.695 GHz, 384 bit at 19.5 Gbit/s; its data sheet says 71 TFLOP/s and 936 GB/s."""
    _pretend_cuda(
        monkeypatch,
        name="NVIDIA GeForce RTX 3090",
        major=8,
        minor=6,
        total_memory=24 * GiB,
        multi_processor_count=82,
        clock_rate=1_695_000,
        memory_clock_rate=9_751_000,
        memory_bus_width=384,
        L2_cache_size=6 * MiB,
        shared_memory_per_multiprocessor=100 * KiB,
        shared_memory_per_block_optin=99 * KiB,
        regs_per_multiprocessor=65_536,
    )
    device = device_at_hand()
    assert device is not None
    assert device.peak("bf16") == pytest.approx(71e12, rel=0.005)
    assert device.peak("fp32") == pytest.approx(35.6e12, rel=0.005)
    assert device.bandwidth_bytes_per_s == pytest.approx(936e9, rel=0.001)
    assert (device.confidence, device.compute_capability, device.register_bytes_per_sm) == ("likely", 86, 256 * KiB)
