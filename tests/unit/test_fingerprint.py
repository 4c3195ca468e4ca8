"""A model's fingerprint tells it from every other, also from one that looks the same from outside."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from r1mac.engine.kept.fingerprint import model_fingerprint
from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import TensorLayout, lay_out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a model of 400,000 bytes, last changed long ago."""
    folder = tmp_path / "model"
    folder.mkdir()
    header, _ = lay_out([TensorLayout("model.norm.weight", "F32", (100_000,))], {"format": "mlx"})
    (folder / "model.safetensors").write_bytes(header + bytes(400_000))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    for path in folder.iterdir():
        os.utime(path, (10**9, 10**9))
    return folder


def test_it_stays_while_the_model_does(folder: Path, tmp_path: Path) -> None:
    """Asked again, moved, or copied with its times, a model has its fingerprint; so it has with another tokenizer."""
    before = model_fingerprint(folder)
    shutil.copytree(folder, tmp_path / "copy")
    (folder / "tokenizer.json").write_text('{"a": 1}')

    assert model_fingerprint(folder) == before
    assert model_fingerprint(tmp_path / "copy") == before
    assert len(before) == 32


def _trained_on(folder: Path) -> None:
    """Change all weights, and nothing that a listing shows."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-400_000] + b"\1" * 400_000)
    os.utime(path, (10**9, 10**9))


def _touched(folder: Path) -> None:
    os.utime(folder / "model.safetensors", (10**9, 10**9 + 1))


def _rotary(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 5}))


def _larger(folder: Path) -> None:
    shutil.copy2(folder / "model.safetensors", folder / "model-2.safetensors")


@pytest.mark.parametrize("change", [_trained_on, _touched, _rotary, _larger])
def test_any_change_of_the_model_changes_it(change: Callable[[Path], None], folder: Path) -> None:
    """Other weights of the same size and date, a later date alone, another config, another file."""
    before = model_fingerprint(folder)

    change(folder)

    assert model_fingerprint(folder) != before


def test_without_weights_there_is_none(folder: Path) -> None:
    """A folder without weights is told as everywhere."""
    (folder / "model.safetensors").unlink()

    with pytest.raises(BadCheckpoint):
        model_fingerprint(folder)
