"""The writer: files laid out first, filled in any order, and never wrong in silence."""

import errno
import hashlib
import json
import os
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1mac.convert.writer import MAX_SHARD_BYTES, ShardWriter, split_into_shards
from r1mac.errors import BadCheckpoint
from r1mac.formats.folder import INDEX_NAME, read_tensors, weight_files
from r1mac.formats.safetensors import TensorLayout

MLX_TYPES = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32, "U32": mx.uint32}
LAYOUTS = [
    TensorLayout("embed", "BF16", (8, 4)),  # 64 bytes
    TensorLayout("layer.weight", "U32", (4, 2)),  # 32
    TensorLayout("layer.scales", "F16", (4, 1)),  # 8
    TensorLayout("layer.biases", "F16", (4, 1)),  # 8
    TensorLayout("router", "F32", (6,)),  # 24
    TensorLayout("stack", "BF16", (2, 3, 4)),  # 48
]
VALUES = {
    layout.name: mx.random.randint(0, 1000, layout.shape, key=mx.random.key(index)).astype(MLX_TYPES[layout.dtype])
    for index, layout in enumerate(LAYOUTS)
}


def sized(*sizes: int) -> list[TensorLayout]:
    """Return tensors of these many bytes."""
    return [TensorLayout(f"t{index}", "U8", (size,)) for index, size in enumerate(sizes)]


def loaded(folder: Path) -> dict[str, mx.array]:
    """Return all tensors of a folder as mlx reads them."""
    tensors: dict[str, mx.array] = {}
    for path in weight_files(folder):
        tensors |= mx.load(str(path))
    return tensors


def assert_written(folder: Path) -> None:
    """Assert that a folder holds VALUES, bit for bit."""
    found = loaded(folder)
    assert found.keys() == VALUES.keys()
    for name, expected in VALUES.items():
        assert found[name].dtype == expected.dtype, name
        assert found[name].shape == expected.shape, name
        assert mx.array_equal(found[name], expected).item(), name


@pytest.mark.parametrize(
    ("sizes", "limit", "shards"),
    [
        ((), 10, []),
        ((3,), 10, [[3]]),
        ((5, 5), 10, [[5, 5]]),
        ((5, 6), 10, [[5], [6]]),
        ((4, 4, 4, 4, 4), 10, [[4, 4], [4, 4], [4]]),
        ((11, 1), 10, [[11], [1]]),
        ((1, 11, 1), 10, [[1], [11], [1]]),
        ((0, 10, 0), 10, [[0, 10, 0]]),
    ],
)
def test_shards_are_cut_before_the_tensor_that_is_too_much(sizes, limit, shards):
    """A shard takes tensors until the next would pass the limit; one larger than the limit is alone."""
    cut = split_into_shards(sized(*sizes), limit)

    assert [[tensor.size_bytes for tensor in shard] for shard in cut] == shards


@given(st.lists(st.integers(0, 30), max_size=20), st.integers(1, 40))
def test_cutting_loses_nothing_and_keeps_the_order(sizes, limit):
    """Joined, the shards are the tensors that were given, and none is over the limit without need."""
    tensors = sized(*sizes)

    shards = split_into_shards(tensors, limit)

    assert [tensor for shard in shards for tensor in shard] == tensors
    assert all(shard for shard in shards)
    assert all(
        sum(tensor.size_bytes for tensor in shard) <= limit or len(shard) == 1 for shard in shards if len(shard) < 2
    )
    for shard in shards:
        sized_tensors = [tensor for tensor in shard if tensor.size_bytes]
        assert sum(tensor.size_bytes for tensor in shard) <= limit or len(sized_tensors) == 1


def test_a_shard_holds_five_gib_like_mlx_lms():
    """The limit is mlx-lm's."""
    assert MAX_SHARD_BYTES == 5 * 2**30


def test_one_shard_is_called_model(tmp_path):
    """A model of one shard is model.safetensors; the index names it all the same."""
    with ShardWriter(tmp_path, LAYOUTS) as writer:
        for name, values in VALUES.items():
            writer.append(name, values)
        writer.finish(parameter_count=7)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", INDEX_NAME]
    assert_written(tmp_path)


@pytest.mark.parametrize(("limit", "count"), [(1, 6), (64, 4), (80, 3), (150, 2)])
def test_several_shards_have_numbers_and_an_index(limit, count, tmp_path):
    """Shards are numbered from 1 of their count, and the index leads from each tensor to its file."""
    with ShardWriter(tmp_path, LAYOUTS, max_shard_bytes=limit) as writer:
        for name, values in VALUES.items():
            writer.append(name, values)
        writer.finish(parameter_count=7)

    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    index = json.loads((tmp_path / INDEX_NAME).read_text())
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == names
    assert index["metadata"] == {"total_size": 184, "total_parameters": 7}  # 64 + 32 + 8 + 8 + 24 + 48
    assert index["weight_map"] == {name: path.name for name, (path, _) in read_tensors(tmp_path).items()}
    assert list(index["weight_map"]) == sorted(VALUES)
    assert_written(tmp_path)


ROWS = [(layout.name, row) for layout in LAYOUTS for row in range(layout.shape[0])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(order=st.permutations(ROWS))
def test_pieces_may_come_in_any_order_of_tensors(order, tmp_path_factory):
    """However the pieces of different tensors are mixed, each tensor's own pieces in order make the same files."""
    folder = tmp_path_factory.mktemp("model")
    given_rows = dict.fromkeys(VALUES, 0)

    with ShardWriter(folder, LAYOUTS, max_shard_bytes=80) as writer:
        for name, _ in order:
            row = given_rows[name]
            writer.append(name, VALUES[name][row : row + 1])
            given_rows[name] += 1
        writer.finish(parameter_count=0)

    assert_written(folder)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_pieces_may_be_of_any_size(rows, tmp_path):
    """Blocks of 1, 2, 3, 7 rows or all make the same file."""
    with ShardWriter(tmp_path, LAYOUTS) as writer:
        for name, values in VALUES.items():
            for start in range(0, values.shape[0], rows):
                writer.append(name, values[start : start + rows])
        writer.finish(parameter_count=0)

    assert_written(tmp_path)


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_piece_need_not_be_contiguous(dtype, tmp_path):
    """Transposed and strided arrays are written in their logical order."""
    base = mx.arange(24, dtype=mx.float32).reshape(4, 6).astype(MLX_TYPES[dtype])
    expected = mx.array([[float(row + 6 * column) for column in range(4)] for row in range(6)])

    with ShardWriter(tmp_path, [TensorLayout("t", dtype, (6, 4)), TensorLayout("s", dtype, (4, 3))]) as writer:
        writer.append("t", base.T)
        writer.append("s", base[:, ::2])
        writer.finish(parameter_count=0)

    found = loaded(tmp_path)
    assert mx.array_equal(found["t"].astype(mx.float32), expected).item()
    assert mx.array_equal(found["s"].astype(mx.float32), expected.T[:, ::2]).item()


def test_scalars_and_empty_tensors_can_be_written(tmp_path):
    """A tensor without dimensions and one without values are tensors too."""
    layouts = [TensorLayout("scalar", "F32", ()), TensorLayout("empty", "F32", (0, 4))]

    with ShardWriter(tmp_path, layouts) as writer:
        writer.append("scalar", mx.array(7.0))
        writer.append("empty", mx.zeros((0, 4)))
        writer.finish(parameter_count=1)

    assert loaded(tmp_path)["scalar"].item() == 7.0
    assert loaded(tmp_path)["empty"].shape == (0, 4)


def test_too_many_bytes_are_refused_before_they_are_written(tmp_path):
    """A piece that would pass the tensor's end is refused, and its neighbour is untouched."""
    with ShardWriter(tmp_path, LAYOUTS) as writer:
        for name, values in VALUES.items():
            writer.append(name, values)
        with pytest.raises(ValueError, match=r"layer.weight was given more bytes"):
            writer.append("layer.weight", VALUES["layer.weight"][:1])
        writer.finish(parameter_count=0)

    assert_written(tmp_path)


@pytest.mark.parametrize("name", VALUES)
def test_a_tensor_that_was_not_filled_is_named(name, tmp_path):
    """A tensor with a row too few, whichever it is, stops the end, and no index is written."""
    with ShardWriter(tmp_path, LAYOUTS) as writer:
        for other, values in VALUES.items():
            writer.append(other, values[:-1] if other == name else values)
        with pytest.raises(ValueError, match=f"^{name} has "):
            writer.finish(parameter_count=0)

    assert not (tmp_path / INDEX_NAME).exists()


@pytest.mark.parametrize(
    ("name", "dtype"), [("embed", mx.float16), ("layer.scales", mx.bfloat16), ("router", mx.uint32)]
)
def test_a_piece_of_another_type_is_refused(name, dtype, tmp_path):
    """Bytes of another type of the same width would be another number: they are not written."""
    with ShardWriter(tmp_path, LAYOUTS) as writer, pytest.raises(ValueError, match=name):
        writer.append(name, VALUES[name].astype(dtype))


def test_an_unknown_tensor_is_refused(tmp_path):
    """A name that was not laid out has no place."""
    with ShardWriter(tmp_path, LAYOUTS) as writer, pytest.raises(KeyError, match="nobody"):
        writer.append("nobody", mx.zeros((1,)))


@pytest.mark.parametrize("limit", [1, 1000])
def test_two_tensors_of_one_name_are_refused(limit, tmp_path):
    """One name cannot be two tensors, in one shard or in two."""
    with pytest.raises(ValueError, match="router is laid out twice"):
        ShardWriter(tmp_path, [*LAYOUTS, TensorLayout("router", "F32", (6,))], max_shard_bytes=limit)

    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_leaves_no_file_open(tmp_path):
    """Where a file cannot get its length, the system's error is told, and leaving the block closes every file."""
    resource = pytest.importorskip("resource")
    import signal

    layouts = [TensorLayout("small", "F32", (8,)), TensorLayout("large", "F32", (10_000,))]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    opened = set(Path("/dev/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        with ShardWriter(tmp_path, layouts, max_shard_bytes=1000) as writer:
            writer.append("small", mx.zeros((8,)))
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
                writer.append("large", mx.zeros((10_000,)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)

    assert caught.value.errno == errno.EFBIG
    assert set(Path("/dev/fd").iterdir()) == opened


def test_a_file_that_became_shorter_is_noticed(tmp_path):
    """The headers are read back at the end: a file that lost its last bytes is BadCheckpoint."""
    with ShardWriter(tmp_path, LAYOUTS) as writer:
        for name, values in VALUES.items():
            writer.append(name, values)
        path = tmp_path / "model.safetensors.partial"
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(BadCheckpoint, match="truncated"):
            writer.finish(parameter_count=0)


def test_files_have_their_full_length_from_the_first_value_on(tmp_path):
    """From the first value on a file is as long as it will be, under a name that says that it is not whole."""
    with ShardWriter(tmp_path, LAYOUTS) as writer:
        (first, values), *rest = VALUES.items()
        writer.append(first, values)
        assert not (tmp_path / "model.safetensors").exists()
        before = (tmp_path / "model.safetensors.partial").stat().st_size
        for name, values in rest:
            writer.append(name, values)
        writer.finish(parameter_count=0)

    assert (tmp_path / "model.safetensors").stat().st_size == before
    assert writer.total_bytes == 184


@pytest.mark.parametrize("limit", [1, 80, 1000])
def test_checksums_are_those_of_the_files(limit, tmp_path):
    """Size and sha256 that are given for each file are what its bytes have, in whatever order they were written."""
    with ShardWriter(tmp_path, LAYOUTS, max_shard_bytes=limit) as writer:
        for name, values in reversed(VALUES.items()):
            writer.append(name, values)
        digests = writer.finish(parameter_count=0)

    files = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    assert {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()} == digests


def test_a_file_that_is_whole_is_named_when_that_is_written_down(tmp_path):
    """A commit tells which files are full; they get their names afterwards, and the others stay for later."""
    with ShardWriter(tmp_path, LAYOUTS, max_shard_bytes=80) as writer:
        writer.append("embed", VALUES["embed"])
        writer.append("stack", VALUES["stack"][:1])
        done = writer.commit()
        assert {path.suffix for path in tmp_path.iterdir()} == {".partial"}
        writer.publish()

    assert list(done) == ["model-00001-of-00003.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model-00001-of-00003.safetensors",
        "model-00003-of-00003.safetensors.partial",
    ]
