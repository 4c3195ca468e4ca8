"""GGUF files: what the library writes is read back, and damage is told as damage."""

import contextlib
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFEndian, GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1mac.errors import BadCheckpoint
from r1mac.formats.gguf import read_gguf
from tests.files import write_anew

ROWS, COLUMNS = 5, 512
METADATA = {
    "text": "llama wörld 🦙",
    "count": 7,
    "negative": -3,
    "rate": 1e6,
    "flag": True,
    "list": [1, 2, 3],
    "words": ["a", "", "ü"],
    "truths": [True, False],
}


def random_blocks(kind: Kind, rng: np.random.Generator) -> np.ndarray:
    """Return random bytes of a matrix in blocks whose float16 scales (wherever they are) are finite."""
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(ROWS, COLUMNS // block_values, block_bytes), dtype=np.uint8)
    # Q4_K begins with the scale and the minimum; Q6_K ends with the scale.
    places = {Kind.Q4_K: (0, 2), Kind.Q6_K: (block_bytes - 2,)}[kind]
    for place in places:
        scales = rng.normal(size=blocks.shape[:2]).astype(np.float16)
        blocks[:, :, place : place + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(ROWS, -1)


def encoded(kind: Kind) -> np.ndarray:
    """Return a random matrix in the format *kind*; the library cannot quantise to the K formats."""
    rng = np.random.default_rng(7)
    if kind in {Kind.Q4_K, Kind.Q6_K}:
        return random_blocks(kind, rng)
    return quants.quantize(rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), kind)


def write(
    path: Path, kind: Kind = Kind.F32, *, architecture: str = "llama", endianess: GGUFEndian = GGUFEndian.LITTLE
) -> Path:
    """Write a file with some metadata, a matrix in the format *kind* and a float32 vector."""
    writer = GGUFWriter(str(path), architecture, endianess=endianess)
    writer.add_block_count(2)
    writer.add_string("test.text", METADATA["text"])
    writer.add_uint32("test.count", METADATA["count"])
    writer.add_int32("test.negative", METADATA["negative"])
    writer.add_float32("test.rate", METADATA["rate"])
    writer.add_bool("test.flag", METADATA["flag"])
    writer.add_array("test.list", METADATA["list"])
    writer.add_array("test.words", METADATA["words"])
    writer.add_array("test.truths", METADATA["truths"])
    writer.add_tensor("matrix", encoded(kind), raw_dtype=kind)
    writer.add_tensor("vector", np.arange(6, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def damage(path: Path) -> BadCheckpoint:
    """Return the error of a damaged file, which must name it."""
    with pytest.raises(BadCheckpoint) as caught:
        read_gguf(path)
    assert path.name in caught.value.problem
    assert caught.value.hint
    return caught.value


KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q4_K, Kind.Q6_K]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_rows_are_the_librarys_own(kind, tmp_path):
    """Rows come back dequantised, bit for bit as ``gguf.quants.dequantize`` makes them, in any range."""
    tensor = read_gguf(write(tmp_path / "x.gguf", kind)).tensors["matrix"]
    expected = quants.dequantize(encoded(kind), kind)

    assert (tensor.shape, tensor.type_name) == ((ROWS, COLUMNS), kind.name)
    assert np.isfinite(expected).all()
    for start, stop in [(0, ROWS), (0, 1), (2, 4), (ROWS - 1, ROWS)]:
        rows = tensor.rows(start, stop)
        assert rows.dtype == np.float32
        assert np.array_equal(rows, expected[start:stop])


def test_a_q8_0_block_is_what_its_definition_says(tmp_path):
    """Apart from any library: a Q8_0 value is the block's float16 scale times its signed byte."""
    raw = encoded(Kind.Q8_0).reshape(ROWS, COLUMNS // 32, 34)
    scales = raw[:, :, :2].copy().view(np.float16).astype(np.float32)
    codes = raw[:, :, 2:].view(np.int8).astype(np.float32)

    rows = read_gguf(write(tmp_path / "x.gguf", Kind.Q8_0)).tensors["matrix"].rows(0, ROWS)

    assert np.array_equal(rows, (scales * codes).reshape(ROWS, COLUMNS))


def test_a_vector_comes_by_ranges_of_values(tmp_path):
    """A tensor of one dimension is cut by values, and its shape has one length."""
    tensor = read_gguf(write(tmp_path / "x.gguf")).tensors["vector"]

    assert tensor.shape == (6,)
    assert tensor.rows(0, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert tensor.rows(2, 4).tolist() == [2, 3]


@pytest.mark.parametrize("endianess", GGUFEndian, ids=lambda endianess: endianess.name)
def test_metadata_come_back(endianess, tmp_path):
    """Texts, numbers, truths and lists come back as Python's own, and all fields as from the library's own reader."""
    path = write(tmp_path / "x.gguf", endianess=endianess)
    metadata = read_gguf(path).metadata

    assert {name: metadata[f"test.{name}"] for name in METADATA} == METADATA
    assert metadata == {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_fields_of_the_architecture_are_found_by_their_short_name(architecture, tmp_path):
    """``get`` puts the architecture's name before the field's, and has a default."""
    file = read_gguf(write(tmp_path / "x.gguf", architecture=architecture))

    assert file.architecture == architecture
    assert file.get("block_count") == 2
    assert file.get("nothing") is None
    assert file.get("nothing", 3) == 3


def test_a_format_that_cannot_be_dequantised_is_named(tmp_path):
    """A tensor of a format without values, such as I32, is BadCheckpoint when its rows are asked for."""
    writer = GGUFWriter(str(tmp_path / "x.gguf"), "llama")
    writer.add_tensor("counts", np.arange(6, dtype=np.int32).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = read_gguf(tmp_path / "x.gguf").tensors["counts"]

    with pytest.raises(BadCheckpoint, match="counts is I32"):
        tensor.rows(0, 2)


def test_a_missing_file_is_told(tmp_path):
    """A path without a file is BadCheckpoint, with the path."""
    with pytest.raises(BadCheckpoint, match="there is no file") as caught:
        read_gguf(tmp_path / "x.gguf")

    assert str(tmp_path / "x.gguf") in caught.value.problem


@pytest.mark.parametrize("content", [b"", b"GGU", b"gguf" + bytes(100), b"PK\3\4" + bytes(100), b"\0" * 64])
def test_a_file_of_another_kind_is_told_by_its_first_bytes(content, tmp_path):
    """What does not begin with GGUF is no GGUF file, and its first bytes are shown."""
    path = tmp_path / "x.gguf"
    path.write_bytes(content)

    assert repr(content[:4]) in damage(path).problem


@pytest.mark.parametrize("version", [0, 1, 4, 2**31])
def test_an_unknown_version_is_refused(version, tmp_path):
    """A version of the format that the library does not read is no crash."""
    path = write(tmp_path / "x.gguf")
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", version) + content[8:])

    damage(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    """A file that ends anywhere before its last tensor's last byte is BadCheckpoint, and never another exception."""
    path = write(tmp_path / "x.gguf")
    content = path.read_bytes()
    # The vector is last: 24 bytes, then 8 of padding.
    end = len(content) - 8
    header = content.index(b"vector") + 64
    lengths = [*range(4, header), *range(header, end, 997), *range(end - 40, end)]

    for length in lengths:
        write_anew(path, content[:length])
        damage(path)


def test_padding_behind_the_last_tensor_may_be_missing(tmp_path):
    """The zeros that fill the last block are not needed."""
    path = write(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:-8])

    assert read_gguf(path).tensors["vector"].rows(0, 6).tolist() == [0, 1, 2, 3, 4, 5]


HUGE = struct.pack("<Q", 2**60)


@pytest.mark.parametrize(
    ("place", "offset"),
    {
        "the number of tensors": (b"GGUF", 8),
        "the number of fields": (b"GGUF", 16),
        "a text's length": (b"test.text", 9 + 4),
        "a list's length": (b"test.list", 9 + 4 + 4),
        "a list of bytes' length": (b"test.truths", 11 + 4 + 4),
        "a list of texts' length": (b"test.words", 10 + 4 + 4),
        "a tensor's rows": (b"matrix", 6 + 4 + 8),
        "a tensor's columns": (b"matrix", 6 + 4),
        "a tensor's offset": (b"vector", 6 + 4 + 8 + 4),
    }.values(),
)
@pytest.mark.parametrize("number", [HUGE, b"\xff" * 8], ids=["2**60", "2**64 - 1"])
def test_a_huge_number_is_not_believed(place, offset, number, tmp_path):
    """A damaged count, length or offset is refused at once: nothing loops, wraps around or fills the memory."""
    path = write(tmp_path / "x.gguf")
    content = path.read_bytes()
    begin = content.index(place) + offset
    path.write_bytes(content[:begin] + number + content[begin + 8 :])

    damage(path)


def test_an_offset_that_wraps_around_is_refused(tmp_path):
    """An offset of -32 in 64 bits does not make the header's last bytes a tensor."""
    path = write(tmp_path / "x.gguf")
    content = path.read_bytes()
    begin = content.index(b"vector") + 6 + 4 + 8 + 4
    path.write_bytes(content[:begin] + struct.pack("<q", -32) + content[begin + 8 :])

    damage(path)


def test_a_tensor_that_holds_nothing_is_refused(tmp_path):
    """A length of 0 has no rows to give, so it is damage and no tensor."""
    path = write(tmp_path / "x.gguf")
    content = path.read_bytes()
    begin = content.index(b"vector") + 6 + 4
    path.write_bytes(content[:begin] + struct.pack("<q", 0) + content[begin + 8 :])

    damage(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4
    )
)
def test_a_corrupted_header_is_read_or_refused(changes, tmp_path):
    """Whatever bytes of the header are wrong, the answer is a file whose rows can be read, or BadCheckpoint."""
    path = write(tmp_path / "x.gguf", Kind.Q8_0)
    content = bytearray(path.read_bytes())
    header = content.index(b"vector") + 40
    for share, wrong in changes:
        place = 4 + int(share * (header - 4))
        content[place : place + len(wrong)] = wrong
    write_anew(path, content)

    with contextlib.suppress(BadCheckpoint):
        for tensor in read_gguf(path).tensors.values():
            if tensor.shape:
                tensor.rows(0, 1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(tail=st.binary(max_size=120))
def test_arbitrary_bytes_behind_the_magic_are_refused_or_read(tail, tmp_path):
    """No bytes behind ``GGUF`` and a known version lead to anything but a result or BadCheckpoint."""
    path = tmp_path / "x.gguf"
    write_anew(path, b"GGUF" + struct.pack("<I", 3) + tail)

    with contextlib.suppress(BadCheckpoint):
        read_gguf(path)
