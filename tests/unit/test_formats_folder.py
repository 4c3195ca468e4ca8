"""A model's folder: which files it has, and that none points elsewhere."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from r1mac.errors import BadCheckpoint
from r1mac.formats.folder import INDEX_NAME, is_plain_name, read_config, read_json, read_tensors, weight_files
from tests.checkpoints import LLAMA, hub_weights, write_checkpoint


def index(folder: Path, *names: object, text: str | None = None) -> None:
    """Write an index that names these files, one tensor each, or *text*."""
    weight_map = {f"t{number}": name for number, name in enumerate(names)}
    (folder / INDEX_NAME).write_text(text if text is not None else json.dumps({"weight_map": weight_map}))


def shard(path: Path, *names: str) -> None:
    """Write a safetensors file of small tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(path), {name: mx.ones((2,)) for name in names})


def refusal(call: Any, *args: Any) -> BadCheckpoint:
    """Return the error of a call that must refuse its folder, with a hint."""
    with pytest.raises(BadCheckpoint) as caught:
        call(*args)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("shard_count", [1, 2, 5])
def test_all_tensors_of_a_checkpoint_are_found(shard_count, tmp_path):
    """Every tensor of a checkpoint in shards is found with its file, type and shape."""
    weights = hub_weights(LLAMA)
    folder = write_checkpoint(tmp_path, LLAMA, weights=weights, shard_count=shard_count)

    found = read_tensors(folder)

    assert {name: entry.shape for name, (_, entry) in found.items()} == {
        name: values.shape for name, values in weights.items()
    }
    assert len({path for path, _ in found.values()}) == shard_count
    assert {entry.dtype for _, entry in found.values()} == {"BF16"}


def test_with_an_index_only_its_files_count(tmp_path):
    """A safetensors file that the index does not name is not the model's."""
    shard(tmp_path / "model-1.safetensors", "a")
    shard(tmp_path / "consolidated.safetensors", "a", "b")
    index(tmp_path, "model-1.safetensors", "model-1.safetensors")

    assert weight_files(tmp_path) == (tmp_path / "model-1.safetensors",)
    assert read_tensors(tmp_path).keys() == {"a"}


def test_without_an_index_all_files_count_in_order(tmp_path):
    """Where no index is, every safetensors file is the model's, in the order of names; folders are not files."""
    for name in ("b.safetensors", "a.safetensors"):
        shard(tmp_path / name, name[0])
    (tmp_path / "c.safetensors").mkdir()

    assert [path.name for path in weight_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    assert read_tensors(tmp_path).keys() == {"a", "b"}


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "sub/x.safetensors",
        "./x.safetensors",
        "..\\x.safetensors",
        "sub\\x.safetensors",
        "C:x.safetensors",
        "C:\\x.safetensors",
        "..",
        ".",
        "",
        "x.safetensors/",
        "x.safetensors\0",
        "pytorch_model.bin",
        "x.safetensors.py",
        "config.json",
        None,
        7,
        ["x.safetensors"],
    ],
)
def test_an_index_that_points_elsewhere_is_refused(name, tmp_path):
    """An index may name only safetensors files beside it, though the other files exist."""
    model = tmp_path / "model"
    shard(tmp_path / "x.safetensors", "a")
    shard(model / "x.safetensors", "a")
    shard(model / "sub" / "x.safetensors", "a")
    for other in ("pytorch_model.bin", "config.json", "x.safetensors.py"):
        (model / other).write_text("{}")
    index(model, "x.safetensors", name)

    error = refusal(weight_files, model)

    assert repr(str(name)) in error.problem
    assert "not a safetensors file beside it" in error.problem


def test_an_index_with_an_absolute_path_is_refused(tmp_path):
    """An absolute path is refused also where it leads back into the folder."""
    shard(tmp_path / "x.safetensors", "a")
    index(tmp_path, str(tmp_path / "x.safetensors"))

    assert "not a safetensors file beside it" in refusal(weight_files, tmp_path).problem


def test_a_missing_shard_is_named(tmp_path):
    """A file that the index names and the folder lacks is named."""
    shard(tmp_path / "model-1.safetensors", "a")
    index(tmp_path, "model-1.safetensors", "model-2.safetensors")

    assert "model-2.safetensors" in refusal(weight_files, tmp_path).problem


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"weight_map": {}}', '{"weight_map": ["x"]}'])
def test_an_index_that_is_none_is_refused_with_its_path(text, tmp_path):
    """An index that is not JSON, no object or without a map is named, and the files beside it are not guessed at."""
    shard(tmp_path / "model.safetensors", "a")
    index(tmp_path, text=text)

    assert str(tmp_path / INDEX_NAME) in refusal(weight_files, tmp_path).problem


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt"])
def test_a_folder_of_pickle_is_refused_for_what_it_is(name, tmp_path):
    """Pickle is never opened: the error names the file and says why."""
    (tmp_path / name).write_bytes(b"\x80\x04")

    problem = refusal(weight_files, tmp_path).problem

    assert name in problem
    assert "can run code" in problem


def test_pickle_beside_safetensors_does_no_harm(tmp_path):
    """Where there are safetensors files, pickle beside them is not looked at."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    shard(tmp_path / "model.safetensors", "a")

    assert [path.name for path in weight_files(tmp_path)] == ["model.safetensors"]


def test_a_folder_without_weights_is_told_so(tmp_path):
    """An empty folder is named, with what is missing."""
    problem = refusal(weight_files, tmp_path).problem

    assert str(tmp_path) in problem
    assert ".safetensors" in problem


def test_a_folder_that_is_not_there_is_told_so(tmp_path):
    """A folder that does not exist is BadCheckpoint too."""
    assert str(tmp_path / "gone") in refusal(weight_files, tmp_path / "gone").problem


def test_a_tensor_in_two_files_is_refused_with_both(tmp_path):
    """Two files that hold one tensor do not belong together: neither is silently preferred."""
    shard(tmp_path / "a.safetensors", "x", "y")
    shard(tmp_path / "b.safetensors", "y")

    problem = refusal(read_tensors, tmp_path).problem

    assert "tensor y is in both a.safetensors and b.safetensors" in problem


def test_a_damaged_shard_is_named(tmp_path):
    """Damage in any shard is found when the headers are read."""
    folder = write_checkpoint(tmp_path, LLAMA)
    path = weight_files(folder)[1]
    path.write_bytes(path.read_bytes()[:-1])

    assert path.name in refusal(read_tensors, folder).problem


def test_a_config_is_returned_as_it_is(tmp_path):
    """config.json comes back with everything in it."""
    write_checkpoint(tmp_path, LLAMA)

    assert read_config(tmp_path) == LLAMA


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not valid JSON"),
        (b"[]", "list"),
        (b"7", "int"),
        (b"null", "NoneType"),
        (b'"text"', "str"),
    ],
)
def test_a_config_that_is_none_is_refused_with_its_path(content, word, tmp_path):
    """A config.json that is not JSON, or not an object, is named with what it is."""
    (tmp_path / "config.json").write_bytes(content)

    problem = refusal(read_config, tmp_path).problem

    assert str(tmp_path / "config.json") in problem
    assert word in problem


def test_a_folder_without_a_config_is_told_so(tmp_path):
    """A missing config.json is told with the folder."""
    assert f"{tmp_path} has no config.json" in refusal(read_config, tmp_path).problem


@pytest.mark.parametrize("value", ["modeling_evil.py", "", None])
def test_a_config_that_wants_to_run_code_is_refused(value, tmp_path):
    """mlx-lm would import ``model_file`` from the folder: such a config is refused, whatever it names."""
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "model_file": value}))

    assert "runs no code" in refusal(read_config, tmp_path).problem


@pytest.mark.parametrize("name", ["model.safetensors", "a b", "ü.json", "..model", "-", "model..safetensors"])
def test_plain_names(name):
    """A file name stays one, with spaces, dots and letters of any language."""
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a/", "a\\b", "C:a", "\0", "a\0", None, 7, b"a"])
def test_names_that_lead_elsewhere(name):
    """Whatever has a folder, a drive or a zero byte in it, on any system, is no plain name."""
    assert not is_plain_name(name)


def test_json_is_read_as_utf_8(tmp_path):
    """A JSON file is UTF-8 whatever the locale is."""
    (tmp_path / "x.json").write_bytes('{"a": "＜｜User｜＞"}'.encode())

    assert read_json(tmp_path / "x.json") == {"a": "＜｜User｜＞"}
