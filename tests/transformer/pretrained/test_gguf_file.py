"""The GGUF format: blocks by hand, the `gguf` package as the writer, files that are cut off or tampered with."""

import struct

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cme295lab.transformer.pretrained.gguf_file import GgufFile, dequantize
from tests.transformer.pretrained.tiny import random_model
from tests.transformer.pretrained.tiny_gguf import CONFIG, Kind, llama_cpp_tensors, write_gguf

KINDS = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16, "Q8_0": Kind.Q8_0, "Q4_1": Kind.Q4_1}


@pytest.fixture(scope="module")
def model():
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A good file as bytes, and how long its head is."""
    path = write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", model, Kind.Q4_1)
    return path.read_bytes(), min(tensor.start for tensor in GgufFile(path).tensors.values())


def test_q4_1_block_by_hand():
    """d = 0.5, m = -2; byte 0 is 0x7A: number 0 is 10 (low half), number 16 is 7 (high half)."""
    block = struct.pack("<ee", 0.5, -2.0) + bytes([0x7A, 0x0F] + [0] * 14)
    numbers = dequantize(np.frombuffer(block, np.uint8), "Q4_1")
    expected = np.full(32, -2.0, np.float32)
    expected[[0, 16, 1]] = 10 * 0.5 - 2, 7 * 0.5 - 2, 15 * 0.5 - 2
    np.testing.assert_array_equal(numbers, expected)


def test_q8_0_block_by_hand():
    block = struct.pack("<e", 0.25) + np.arange(-16, 16, dtype=np.int8).tobytes()
    np.testing.assert_array_equal(dequantize(np.frombuffer(block, np.uint8), "Q8_0"), np.arange(-16, 16) / 4)


def test_bf16_is_the_upper_half_of_fp32():
    values = torch.tensor([1.0, -2.5, 3e38, 1e-40]).bfloat16()
    raw = values.view(torch.uint8).numpy()
    np.testing.assert_array_equal(dequantize(raw, "BF16"), values.float().numpy())


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
@given(seed=st.integers(0, 2**32 - 1))
def test_any_blocks_give_the_numbers_of_the_gguf_package(kind, seed):
    size = {"Q4_1": 20, "Q8_0": 34}[kind]
    raw = np.random.default_rng(seed).integers(0, 256, 3 * size, dtype=np.uint8)
    for block in range(3):  # scales that are finite: sign and exponent of the halves stay small
        raw[block * size + 1] &= 0xBB
        if kind == "Q4_1":
            raw[block * size + 3] &= 0xBB
    np.testing.assert_array_equal(dequantize(raw, kind), gguf.dequantize(raw, KINDS[kind]))


@pytest.mark.parametrize("kind", KINDS)
def test_file_of_the_gguf_package_is_read(tmp_path, model, kind, monkeypatch):
    monkeypatch.setattr("cme295lab.transformer.pretrained.gguf_file._CHUNK_BYTES", 1000)  # pieces, the last shorter
    path = write_gguf(tmp_path / "m.gguf", model, KINDS[kind], values={"a.flag": True, "a.list": [1, 2], "a.x": 0.5})
    file = GgufFile(path)
    theirs = gguf.GGUFReader(path)
    assert set(file.tensors) == {tensor.name for tensor in theirs.tensors}
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name).numpy(), expected.reshape(tensor.shape[::-1].tolist()))
        assert file.tensors[tensor.name].kind == tensor.tensor_type.name
    own = {name: value for name, value in file.metadata.items() if not name.startswith("GGUF.")}
    assert own == {name: f.contents() for name, f in theirs.fields.items() if not name.startswith("GGUF.")}


def test_quantised_matrices_are_close_to_what_they_were_made_from(tmp_path, model):
    """Half a step of 15 in Q4_1 and of 127 in Q8_0, over the range of a block: at most 0.8 × 2 here."""
    original = llama_cpp_tensors(model)["blk.0.ffn_up.weight"]
    for kind, step in (("Q4_1", 2 * 1.2 / 15), ("Q8_0", 1.2 / 127)):
        got = GgufFile(write_gguf(tmp_path / f"{kind}.gguf", model, KINDS[kind])).read("blk.0.ffn_up.weight").numpy()
        assert 0 < np.abs(got - original).max() <= step / 2 * 1.01  # scales are rounded to fp16


def test_other_alignment_is_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(64)
    writer.add_tensor("a", np.arange(5, dtype=np.float32))
    writer.add_tensor("b", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "m.gguf")
    assert file.read("a").tolist() == [0, 1, 2, 3, 4]
    assert file.read("b").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.tensors["b"].start % 64 == 0


def test_type_that_is_not_read_is_named(tmp_path, model):
    path = write_gguf(tmp_path / "m.gguf", model, Kind.Q5_0)
    with pytest.raises(ValueError, match=r"has type Q5_0, which is not read; types that are: F32, F16, BF16, Q4_1"):
        GgufFile(path)


def test_file_cut_off_anywhere_is_refused(tmp_path, whole):
    data, head = whole
    path = tmp_path / "cut.gguf"
    lengths = [0, 3, 4, 7, 8, 15, 23, *range(24, head, head // 150), head, head + 1, len(data) // 2]
    for length in [*lengths, len(without_padding(data)) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"is empty|cut off|damaged"):
            GgufFile(path)


def without_padding(data):
    """The file without the padding at its end, which nobody misses."""
    return data.rstrip(b"\0")


def test_byte_changed_in_the_head_is_refused_or_gives_a_file_of_the_same_extent(tmp_path, whole):
    """Whatever a byte says, nothing but a ValueError comes out, quickly, and no tensor lies outside the file."""
    data, head = whole
    path = tmp_path / "changed.gguf"
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(100):
        changed = bytearray(data)
        changed[random.integers(head)] = random.integers(256)
        path.write_bytes(changed)
        try:
            file = GgufFile(path)
        except ValueError:
            refused += 1
        else:
            assert all(tensor.start + tensor.num_bytes <= len(data) for tensor in file.tensors.values())
    assert refused > 7


def header(*, magic=b"GGUF", version=3, num_tensors=0, num_values=0, rest=b""):
    return magic + struct.pack("<IQQ", version, num_tensors, num_values) + rest


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor_info(name=b"a", sizes=(4,), kind=0, offset=0):
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


FILES = {
    "other letters": (header(magic=b"GGML"), "is no GGUF file: it does not begin with the letters GGUF"),
    "version 1": (header(version=1), "has version 1 of GGUF"),
    "big-endian": (header(version=3 << 24), "or is big-endian"),
    "2^60 tensors": (header(num_tensors=2**60), "tensors and 0 values are more than the file has room for"),
    "2^60 values": (header(num_values=2**60), "values are more than the file has room for"),
    "long name": (header(num_values=1, rest=struct.pack("<Q", 2**62) + bytes(40)), "bytes should follow .* cut off"),
    "unknown value type": (header(num_values=1, rest=text(b"a") + struct.pack("<I", 99) + bytes(9)), "unknown type 99"),
    "list of 2^60 numbers": (
        header(num_values=1, rest=text(b"a") + struct.pack("<IIQ", 9, 4, 2**60)), "bytes should follow"
    ),
    "list of 2^60 texts": (
        header(num_values=1, rest=text(b"a") + struct.pack("<IIQ", 9, 8, 2**60)), "a list should have"
    ),
    "list of lists": (header(num_values=1, rest=text(b"a") + struct.pack("<IIQ", 9, 9, 1)), "elements of type 9"),
    "bytes for text": (header(num_values=1, rest=text(b"a") + struct.pack("<I", 8) + text(b"\xff")), "not UTF-8"),
    "twice": (header(num_values=2, rest=2 * (text(b"a") + struct.pack("<IB", 0, 1)) + bytes(40)), "'a' is there twice"),
    "alignment": (
        header(num_values=1, rest=text(b"general.alignment") + struct.pack("<II", 4, 12)), "12, not a power of two"
    ),
    "9 dimensions": (header(num_tensors=1, rest=tensor_info(sizes=(1,) * 9)), "a has 9 dimensions"),
    "no numbers": (header(num_tensors=1, rest=tensor_info(sizes=(0,))), r"a has sizes \[0\]"),
    "half a block": (header(num_tensors=1, rest=tensor_info(sizes=(48,), kind=8)), "Q8_0 comes in blocks of 32"),
    "unknown tensor type": (header(num_tensors=1, rest=tensor_info(kind=77)), "type number 77, which is not read"),
    "known tensor type": (header(num_tensors=1, rest=tensor_info(kind=14)), "type Q6_K, which is not read"),
    "huge sizes": (header(num_tensors=1, rest=tensor_info(sizes=(2**62, 2**62))), "is cut off: a should end at byte"),
    "offset beyond the end": (header(num_tensors=1, rest=tensor_info(offset=2**40)), "is cut off: a should end"),
    "offset between": (header(num_tensors=1, rest=tensor_info(offset=8)), "not at a multiple of 32"),
    "one over another": (
        header(num_tensors=2, rest=tensor_info() + tensor_info(b"b") + bytes(99)), "b begins at .*, inside a"
    ),
    "the same name": (
        header(num_tensors=2, rest=tensor_info() + tensor_info(offset=32) + bytes(99)), "a begins at .*, inside a"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_head_that_makes_no_sense_is_refused(tmp_path, kind):
    data, message = FILES[kind]
    (tmp_path / "bad.gguf").write_bytes(data + bytes(16))
    with pytest.raises(ValueError, match=message):
        GgufFile(tmp_path / "bad.gguf")


def test_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        GgufFile(tmp_path / "nothing.gguf")
