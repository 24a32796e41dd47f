"""Files of four-bit tensors: bitsandbytes reads ours, we read theirs, and what was tampered with is refused."""

import json
from pathlib import Path

import bitsandbytes as bnb
import bitsandbytes.functional as theirs
import pytest
import torch
from safetensors.torch import load_file, save_file

from cme295lab.quantization import FourBitTensor, quantize_four_bit
from cme295lab.quantization.files import four_bit_names, from_state_dict, load_four_bit, save_four_bit, to_state_dict

KINDS = ((torch.float32, 64), (torch.bfloat16, 256))
CASES = [(q, d, t, b) for q in ("nf4", "fp4") for d in (False, True) for t, b in KINDS]
CASE_NAMES = [f"{q}-{'double' if d else 'plain'}-{str(t)[6:]}-{b}" for q, d, t, b in CASES]
STATE = "weight.quant_state.bitsandbytes__nf4"


def same(a: FourBitTensor, b: FourBitTensor) -> bool:
    ours, others = to_state_dict(a), to_state_dict(b)
    return ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


@pytest.mark.parametrize(("quant_type", "double_quant", "dtype", "block_size"), CASES, ids=CASE_NAMES)
def test_bitsandbytes_reads_ours_and_we_read_theirs(
    quant_type: str, double_quant: bool, dtype: torch.dtype, block_size: int, tmp_path: Path
) -> None:
    w = torch.randn(96, 256).to(dtype)
    ours = quantize_four_bit(w, quant_type=quant_type, block_size=block_size, double_quant=double_quant)
    save_four_bit({"a.weight": ours}, tmp_path / "ours.safetensors")
    stored = load_file(tmp_path / "ours.safetensors")
    statistics = {name: part for name, part in stored.items() if name != "a.weight"}
    read = bnb.nn.Params4bit.from_prequantized(stored["a.weight"], dict(statistics), device="cpu")
    assert torch.equal(theirs.dequantize_4bit(read.data, read.quant_state), ours.dequantize())

    packed, state = theirs.quantize_4bit(
        w, blocksize=block_size, compress_statistics=double_quant, quant_type=quant_type
    )
    parts = {f"a.weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    assert set(parts) == set(statistics)
    for name, part in parts.items():  # JSON included: the same bytes
        assert torch.equal(part, statistics[name]), name
    save_file({"a.weight": packed, "a.bias": torch.zeros(96), **parts}, tmp_path / "theirs.safetensors")
    assert same(load_four_bit(tmp_path / "theirs.safetensors")["a.weight"], ours)


@pytest.mark.parametrize("shape", [(1,), (7, 9), (3, 5, 70), (64, 64)], ids=str)
def test_round_trip_of_any_shape(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {
        f"{quant_type}.{double_quant}.weight": quantize_four_bit(
            torch.randn(shape).half(), quant_type=quant_type, double_quant=double_quant
        )
        for quant_type in ("nf4", "fp4")
        for double_quant in (False, True)
    }
    save_four_bit(tensors, tmp_path / "four.safetensors")
    loaded = load_four_bit(tmp_path / "four.safetensors")
    assert sorted(loaded) == sorted(tensors)
    for name, tensor in tensors.items():
        assert same(loaded[name], tensor), name
        assert loaded[name].shape == torch.Size(shape)
        assert torch.equal(loaded[name].dequantize(), tensor.dequantize())


def test_codes_packed_into_wider_numbers_are_read() -> None:
    """`quant_storage=bfloat16`: what sharded training stores, the same bytes under another dtype."""
    w = torch.randn(32, 64)
    packed, state = theirs.quantize_4bit(w, quant_type="nf4", quant_storage=torch.bfloat16)
    assert packed.dtype == torch.bfloat16
    parts = {f"weight.{name}": part for name, part in state.as_dict(packed=True).items()}
    assert same(from_state_dict({"weight": packed, **parts}), quantize_four_bit(w))


def test_names_of_four_bit_weights_are_found_among_others() -> None:
    state_dict = {"bias": torch.zeros(3), **to_state_dict(quantize_four_bit(torch.randn(64)), "layers.0.up.weight")}
    assert four_bit_names(state_dict) == ["layers.0.up.weight"]


def about(state_dict: dict[str, torch.Tensor]) -> dict:
    return json.loads(bytes(state_dict[STATE].tolist()))


def with_about(state_dict: dict[str, torch.Tensor], **changes: object) -> dict[str, torch.Tensor]:
    fields = {name: value for name, value in {**about(state_dict), **changes}.items() if value is not None}
    return {**state_dict, STATE: torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)}


@pytest.mark.parametrize("name", ["absmax", "quant_map", "nested_absmax", "nested_quant_map"])
def test_missing_parts_are_named(name: str) -> None:
    parts = to_state_dict(quantize_four_bit(torch.randn(64, 64), double_quant=True))
    del parts[f"weight.{name}"]
    with pytest.raises(ValueError, match=rf"weight is incomplete: weight.{name} is missing"):
        from_state_dict(parts)


def test_weights_that_are_not_there_or_not_quantised_are_refused(tmp_path: Path) -> None:
    parts = to_state_dict(quantize_four_bit(torch.randn(64, 64)))
    with pytest.raises(ValueError, match=r"there is no 'up.weight' among 'weight', 'weight.quant_map'"):
        from_state_dict(parts, "up.weight")
    with pytest.raises(ValueError, match="got neither: is weight quantised to 4 bits"):
        from_state_dict({"weight": torch.ones(3, 3)})
    other = STATE.replace("nf4", "fp4")
    with pytest.raises(ValueError, match="there must be exactly one of"):
        from_state_dict({**parts, other: parts[STATE]})
    with pytest.raises(ValueError, match="says that its quant_type is 'nf4'"):
        from_state_dict({**{name: part for name, part in parts.items() if name != STATE}, other: parts[STATE]})
    with pytest.raises(ValueError, match=r"parts that four-bit weights do not have: weight.extra"):
        from_state_dict({**parts, "weight.extra": torch.ones(1)})
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="holds no four-bit weights, only 'w'"):
        load_four_bit(tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="tensors is empty"):
        save_four_bit({}, tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError):
        load_four_bit(tmp_path / "absent.safetensors")


def test_json_that_was_tampered_with_is_refused() -> None:
    parts = to_state_dict(quantize_four_bit(torch.randn(64, 64), double_quant=True))
    for change, message in (
        ({"shape": [64, 65]}, r"shape \(64, 65\) packs into \(2080, 1\) bytes, got packed of \(2048, 1\)"),
        ({"shape": [-64, -64]}, "impossible shape"),
        ({"shape": ["64", 64]}, "impossible shape"),
        ({"shape": None}, "says nothing about 'shape'"),
        ({"shape": 4096}, "'shape' in the quant_state of weight must not be 4096"),
        ({"blocksize": 128}, "4096 values in blocks of 128 have 32 scales, got 64"),
        ({"blocksize": 60}, "block_size must be one of"),
        ({"blocksize": "64"}, "'blocksize' in the quant_state of weight must not be '64'"),
        ({"dtype": "float64"}, "dtype in the quant_state must be one of float32, float16, bfloat16, got 'float64'"),
        ({"nested_blocksize": 0}, "block_size must be at least 1, got 0"),
        ({"nested_blocksize": 16}, "64 codes in blocks of 16 need 4 constants, got 1"),
        ({"nested_dtype": "float16"}, "nested_dtype must be 'float32', got 'float16'"),
        ({"nested_offset": float("nan")}, "nested_offset must be finite, got nan"),
        ({"nested_offset": None}, "says nothing about 'nested_offset'"),
        ({"colour": "red"}, "fields that it should not have: colour"),
    ):
        with pytest.raises(ValueError, match=message):
            from_state_dict(with_about(parts, **change))
    for text, message in ((b"{", "must be the bytes of JSON"), (b"[]", "a JSON object, got list"), (b"\xff", "JSON")):
        with pytest.raises(ValueError, match=message):
            from_state_dict({**parts, STATE: torch.tensor(list(text), dtype=torch.uint8)})
    with pytest.raises(TypeError, match=r"must be torch.uint8, the bytes of JSON, got torch.float32"):
        from_state_dict({**parts, STATE: parts[STATE].float()})


def test_tensors_that_were_tampered_with_are_refused() -> None:
    for double_quant in (False, True):
        parts = to_state_dict(quantize_four_bit(torch.randn(64, 64), double_quant=double_quant))
        table = parts["weight.quant_map"]
        changes = [
            ("weight", parts["weight"][:-1], ValueError, r"got packed of \(2047, 1\)"),
            ("weight.absmax", parts["weight.absmax"][:-1], ValueError, "have 64 scales, got 63|4096 values"),
            ("weight.absmax", parts["weight.absmax"].half(), TypeError, "got torch.float16"),
            ("weight.quant_map", table * 1.01, ValueError, r"weight.quant_map is not the table of nf4"),
            ("weight.quant_map", table[:8], ValueError, "must have 16 levels"),
            ("weight.quant_map", table * torch.nan, ValueError, "is not the table"),
        ]
        if double_quant:
            table = parts["weight.nested_quant_map"].flip(0)
            changes += [
                ("weight.nested_quant_map", table, ValueError, "nested_quant_map is not the table of scales in 8 bits"),
                ("weight.nested_absmax", torch.ones(2), ValueError, "need 1 constants, got 2"),
                ("weight.nested_absmax", torch.ones(1).double(), TypeError, "nested_absmax must be torch.float32"),
            ]
        for name, part, kind, message in changes:
            with pytest.raises(kind, match=message):
                from_state_dict({**parts, name: part})
