"""safetensors headers: what the real libraries write, what damage looks like, what they read back."""

import contextlib
import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import DTYPE_BYTES, TensorEntry, TensorLayout, lay_out, read_header
from tests.files import write_anew

MLX_TYPES = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "I16": mx.int16,
    "U16": mx.uint16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "I32": mx.int32,
    "U32": mx.uint32,
    "F32": mx.float32,
    "I64": mx.int64,
    "U64": mx.uint64,
}


def small(path: Path) -> Path:
    """Write a file of two tensors with mlx and return its path."""
    tensors = {"a.weight": mx.arange(24, dtype=mx.float32).reshape(4, 6), "b": mx.ones((3,), dtype=mx.bfloat16)}
    mx.save_safetensors(str(path), tensors, metadata={"format": "pt"})
    return path


def write(path: Path, header: Any, *, data: bytes = b"", length: int | None = None) -> Path:
    """Write a file with *header* (bytes as they are, else as JSON), which may be a lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    write_anew(path, struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """Return the header's entry of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def damage(path: Path) -> str:
    """Return what is said about a damaged file, which must name it and its folder."""
    with pytest.raises(BadCheckpoint) as caught:
        read_header(path)
    assert path.name in caught.value.problem
    assert str(path.parent) in caught.value.hint
    return caught.value.problem


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 0, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("dtype", MLX_TYPES)
def test_what_mlx_writes_is_read(dtype, shape, tmp_path):
    """Every type and shape that mlx saves is found again with its name, type, shape and bytes."""
    path = tmp_path / "x.safetensors"
    values = mx.zeros(shape, dtype=MLX_TYPES[dtype])
    mx.save_safetensors(str(path), {"first": values, "pad": mx.ones((7,), dtype=mx.uint8)})

    found = read_header(path)

    assert found.keys() == {"first", "pad"}
    assert (found["first"].name, found["first"].dtype, found["first"].shape) == ("first", dtype, shape)
    assert found["first"].size_bytes == values.nbytes
    assert path.read_bytes()[found["pad"].start : found["pad"].stop] == b"\1" * 7


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    """Offsets lead to the very bytes of each tensor in a file of the safetensors library."""
    save_file = pytest.importorskip("safetensors.numpy").save_file
    rng = np.random.default_rng(0)
    tensors = {
        "double": rng.normal(size=(3, 5)),
        "half": rng.normal(size=(7,)).astype(np.float16),
        "bytes": rng.integers(0, 255, size=(2, 3), dtype=np.uint8),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), dtype=np.float32),
    }
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"note": "hello"})

    found, content = read_header(path), path.read_bytes()

    assert found.keys() == tensors.keys()
    for name, values in tensors.items():
        assert found[name].shape == values.shape
        assert content[found[name].start : found[name].stop] == values.tobytes()


@pytest.mark.parametrize("cut", [1, 2, 7, 8, 20, 101, 102])
def test_bytes_missing_at_the_end_are_noticed(cut, tmp_path):
    """A file whose last bytes are missing is damaged, whether the cut is in the tensors (102 bytes) or before."""
    path = small(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:-cut])

    assert "truncated" in damage(path)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    """A file cut at any of its bytes is BadCheckpoint, and never another exception."""
    path = small(tmp_path / "x.safetensors")
    content = path.read_bytes()

    for length in range(len(content)):
        write_anew(path, content[:length])
        damage(path)


@pytest.mark.parametrize("count", [1, 4, 4096])
def test_bytes_too_many_are_noticed(count, tmp_path):
    """Bytes behind the last tensor are noticed and counted."""
    path = small(tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes() + b"\0" * count)

    assert f"{count} bytes too many" in damage(path)


@pytest.mark.parametrize("length", [9, 1_000, 100_000_001, 2**62, 2**64 - 1])
def test_a_header_longer_than_the_file_is_not_read(length, tmp_path):
    """A header's length is not believed: a short file is refused without asking for that much memory."""
    assert f"{length} bytes in a file of 10" in damage(write(tmp_path / "x.safetensors", b"{}", length=length))


def test_a_header_beyond_the_formats_limit_is_not_read(tmp_path):
    """A header of more than 100 MB is refused though the (sparse) file holds it."""
    path = write(tmp_path / "x.safetensors", b"{}", length=100_000_001)
    with path.open("r+b") as file:
        file.truncate(100_000_100)

    assert "100000001" in damage(path)


WRONG = {
    "no JSON": b"{",
    "no text": b"\xff\xfe\xfd\xfc",
    "nothing": b"",
    "a list": [],
    "a number": 7,
    "null": b"null",
    "deep nesting": b"[" * 100_000,
    "a name twice": b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}',
    "a field twice": b'{"a":{"dtype":"U8","dtype":"I8","shape":[8],"data_offsets":[0,8]}}',
    "a huge number": b'{"a":{"dtype":"U8","shape":[' + b"9" * 5_000 + b'],"data_offsets":[0,0]}}',
    "an entry that is a list": {"a": ["F32", [2], [0, 8]]},
    "an entry that is a text": {"a": "F32"},
    "an entry that is null": {"a": None},
    "no type": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "an unknown type": {"a": entry(dtype="F4")},
    "a type that is a list": {"a": entry(dtype=["F32"])},
    "a shape that is a number": {"a": entry(shape=2)},
    "a shape that is null": {"a": entry(shape=None)},
    "a shape that is a text": {"a": entry(shape="2")},
    "a shape that is an object": {"a": entry(dtype="F64", shape={})},
    "a shape of texts": {"a": entry(shape=["2"])},
    "a shape of fractions": {"a": entry(shape=[2.0])},
    "a shape of truths": {"a": entry(shape=[True, 2])},
    "a negative shape": {"a": entry(shape=[-1, -2])},
    "one offset": {"a": entry(offsets=[0])},
    "three offsets": {"a": entry(offsets=[0, 4, 8])},
    "offsets that are a text": {"a": entry(offsets="08")},
    "offsets that are fractions": {"a": entry(offsets=[0.0, 8.0])},
    "negative offsets": {"a": entry(offsets=[-8, 0])},
    "offsets the wrong way round": {"a": entry(offsets=[8, 0])},
    "too few bytes": {"a": entry(offsets=[0, 7])},
    "too many bytes": {"a": entry(offsets=[0, 9])},
    "a gap at the beginning": {"a": entry(dtype="U8", shape=[7], offsets=[1, 8])},
    "a gap between": {"a": entry(shape=[1], offsets=[0, 4]), "b": entry(dtype="U8", shape=[3], offsets=[5, 8])},
    "an overlap": {"a": entry(shape=[1], offsets=[0, 4]), "b": entry(dtype="U8", shape=[5], offsets=[3, 8])},
    "two tensors in one place": {"a": entry(), "b": entry()},
}  # fmt: skip


@pytest.mark.parametrize("header", WRONG.values(), ids=WRONG)
def test_a_wrong_header_is_refused(header, tmp_path):
    """Whatever is wrong in a header, the answer is BadCheckpoint that names the file.

    Each header speaks of the 8 bytes that there are, so that nothing but its own fault is found.
    """
    damage(write(tmp_path / "x.safetensors", header, data=b"\0" * 8))


@pytest.mark.parametrize("header", [{}, {"__metadata__": {"format": "pt"}}])
def test_a_file_without_tensors_is_whole(header, tmp_path):
    """A header without tensors is no damage, and metadata is no tensor."""
    assert read_header(write(tmp_path / "x.safetensors", header)) == {}


def test_a_missing_file_is_told(tmp_path):
    """A file that is not there is BadCheckpoint like a damaged one."""
    assert "missing" in damage(tmp_path / "x.safetensors")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_read_or_refused(content, tmp_path):
    """No bytes whatever lead to anything but a result or BadCheckpoint."""
    path = tmp_path / "x.safetensors"
    write_anew(path, content)

    with contextlib.suppress(BadCheckpoint):
        read_header(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10) | st.sampled_from(["F32", "BF16", "U8"]) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), inner),
    max_leaves=5,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": JSON | st.sampled_from(["F32", "U8"]),
        "shape": JSON | st.lists(st.integers(0, 4), max_size=2),
        "data_offsets": JSON | st.tuples(st.integers(0, 8), st.integers(0, 8)),
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES | JSON, max_size=3))
def test_arbitrary_headers_are_read_or_refused(header, tmp_path):
    """No JSON whatever in a header leads to anything but BadCheckpoint or tensors that fill the file."""
    path = write(tmp_path / "x.safetensors", header, data=b"\0" * 8)

    with contextlib.suppress(BadCheckpoint):
        assert sum(tensor.size_bytes for tensor in read_header(path).values()) == 8


@pytest.mark.parametrize(("dtype", "count_bytes"), DTYPE_BYTES.items())
def test_element_sizes(dtype, count_bytes):
    """The digits of a type's name are its bits."""
    bits = {"BOOL": 8, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}.get(dtype)

    assert 8 * count_bytes == (bits or int(dtype[1:]))


LAYOUTS = [
    TensorLayout("model.a.weight", "U32", (3, 2)),
    TensorLayout("model.a.scales", "BF16", (3, 1)),
    TensorLayout("odd", "U8", (5,)),
    TensorLayout("half", "F16", (2, 3)),
    TensorLayout("scalar", "F32", ()),
    TensorLayout("empty", "F32", (0, 3)),
    TensorLayout("übung 🐋", "I64", (2,)),
]


def laid_out(path: Path, layouts: list[TensorLayout]) -> dict[str, TensorEntry]:
    """Write a file whose tensors hold the numbers 0, 1, 2 … as bytes."""
    header, entries = lay_out(layouts, {"format": "mlx"})
    size = sum(tensor.size_bytes for tensor in layouts)
    path.write_bytes(header + bytes(range(size)))
    return entries


def test_a_layout_is_read_back_by_its_own_reader(tmp_path):
    """read_header finds exactly the entries that lay_out announced."""
    entries = laid_out(tmp_path / "x.safetensors", LAYOUTS)

    assert read_header(tmp_path / "x.safetensors") == entries


def test_a_layout_is_read_back_by_the_safetensors_library(tmp_path):
    """The safetensors library, which checks alignment and gaps, finds shapes, bytes and metadata."""
    safetensors = pytest.importorskip("safetensors")
    path = tmp_path / "x.safetensors"
    plain = [tensor for tensor in LAYOUTS if tensor.dtype != "BF16"]
    entries, content = laid_out(path, plain), path.read_bytes()

    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "mlx"}
        assert set(file.keys()) == {tensor.name for tensor in plain}
        for tensor in plain:
            values = file.get_tensor(tensor.name)
            assert values.shape == tensor.shape
            assert values.tobytes() == content[entries[tensor.name].start : entries[tensor.name].stop]


def test_a_layout_is_read_back_by_mlx(tmp_path):
    """``mx.load`` finds the same types, shapes and bytes."""
    path = tmp_path / "x.safetensors"
    entries, content = laid_out(path, LAYOUTS), path.read_bytes()

    found, metadata = mx.load(str(path), return_metadata=True)

    assert metadata == {"format": "mlx"}
    assert found.keys() == entries.keys()
    for tensor in LAYOUTS:
        values = found[tensor.name]
        assert (values.dtype, values.shape) == (MLX_TYPES[tensor.dtype], tensor.shape)
        raw = np.array(values.view(mx.uint16) if tensor.dtype == "BF16" else values).tobytes()
        assert raw == content[entries[tensor.name].start : entries[tensor.name].stop]


@given(st.permutations(LAYOUTS))
def test_every_tensor_begins_at_a_multiple_of_its_element(layouts):
    """Whatever the order, tensors are aligned, lie without gaps, and the header is a multiple of 8 bytes."""
    header, entries = lay_out(layouts, {})
    places = sorted((entry.start, entry.stop) for entry in entries.values())

    assert len(header) % 8 == 0
    assert all(entry.start % DTYPE_BYTES[entry.dtype] == 0 for entry in entries.values())
    assert [start for start, _ in places] == [len(header), *(stop for _, stop in places[:-1])]


def test_the_same_name_twice_cannot_be_laid_out():
    """Two tensors of one name would be one in the header: that is refused."""
    with pytest.raises(ValueError, match="odd is laid out twice"):
        lay_out([*LAYOUTS, TensorLayout("odd", "F32", (2,))], {})
