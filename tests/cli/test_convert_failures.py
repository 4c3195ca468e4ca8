"""Conversions that fail in the middle, or are asked for something odd: what is said, what is kept, what is made."""

import json
from pathlib import Path

import mlx.core as mx

from tests.checkpoints import CONFIGS, hub_weights, write_checkpoint
from tests.cli.conftest import R1mac

OPTIONS = ("--max-shard", "60kb", "--no-smoke")
LAST = "model.layers.1.mlp.down_proj.weight"


def _damaged(folder: Path) -> Path:
    weights = hub_weights(CONFIGS["llama"])
    weights[LAST] = mx.where(mx.arange(256) == 5, float("nan"), weights[LAST]).astype(mx.bfloat16)
    return write_checkpoint(folder, CONFIGS["llama"], weights=weights)


def test_a_value_that_is_no_number(r1mac: R1mac, tmp_path: Path) -> None:
    """The tensor is named; what is whole is kept, hidden, and said; with the source mended it all begins anew."""
    source = _damaged(tmp_path / "source")
    arguments = ("convert", str(source), "-o", str(tmp_path / "out"), *OPTIONS)

    failed = r1mac(*arguments)
    kept = sorted(path.name for path in (tmp_path / ".out.partial").glob("*.safetensors"))
    write_checkpoint(source, CONFIGS["llama"])
    mended = r1mac(*arguments)

    assert failed.returncode == 7
    assert LAST in failed.stderr
    assert ".out.partial" in failed.stderr
    assert len(kept) > 1
    assert mended.returncode == 0, mended.stderr
    assert "starting over" in mended.stderr
    assert not (tmp_path / ".out.partial").exists()


def test_another_recipe_into_the_same_output(r1mac: R1mac, tmp_path: Path) -> None:
    """What is unfinished at 4 bits is no beginning of 3 bits, and the person is told."""
    source = _damaged(tmp_path / "source")
    output = ("convert", str(source), "-o", str(tmp_path / "out"), *OPTIONS)
    assert r1mac(*output).returncode == 7

    other = r1mac(*output, "--bits", "3")

    assert "the recipe changed" in other.stderr
    assert other.returncode == 7


def test_an_unfinished_conversion_is_listed_and_deleted(r1mac: R1mac, tmp_path: Path) -> None:
    """In the store, what a conversion left is named by list and by doctor, and deleted by rm."""
    source = _damaged(tmp_path / "source")
    models = tmp_path / "r1mac-home" / "models"
    assert r1mac("convert", str(source), "-o", str(models / "mine"), *OPTIONS).returncode == 7

    listed = r1mac("list")
    doctor = r1mac("doctor", "--json")
    deleted = r1mac("rm", "mine", "--yes")

    assert "mine: unfinished" in listed.stderr
    assert "the command that began it" in doctor.stdout
    assert deleted.returncode == 0
    assert [path.name for path in models.iterdir() if "mine" in path.name] == []


def test_weights_of_another_shape_and_twice(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A matrix that config.json makes otherwise, and one that two files hold, are named before anything is made."""
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"intermediate_size": 512}))
    other_shape = r1mac("convert", str(tiny), "-o", str(tmp_path / "out"))
    (tiny / "config.json").write_text(json.dumps(config))
    for path in list(tiny.glob("model-*.safetensors"))[:1]:
        (tiny / "extra.safetensors").write_bytes(path.read_bytes())
    (tiny / "model.safetensors.index.json").unlink()
    twice = r1mac("convert", str(tiny), "-o", str(tmp_path / "out"))

    assert (other_shape.returncode, twice.returncode) == (7, 7)
    assert "gate_proj" in other_shape.stderr
    assert "extra.safetensors" in twice.stderr
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_several_widths_have_folders_of_their_own(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A list of widths makes a folder for each, which all load."""
    made = r1mac("convert", str(tiny), "-o", str(tmp_path / "out"), "--bits", "2,4,mxfp4", "--group-size", "32")
    named = r1mac("convert", str(tiny), "-o", str(tmp_path / "x{bits}y"), "--bits", "3", "--no-smoke")

    assert made.returncode == named.returncode == 0, made.stderr + named.stderr
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out-2bit", "out-4bit", "out-mxfp4"]
    assert (tmp_path / "x3y" / "r1mac.json").exists()


def test_no_output_and_no_source(tiny: Path, r1mac: R1mac) -> None:
    """Without a folder to make, or weights to convert, the command line is wrong."""
    assert r1mac("convert", str(tiny)).returncode == 2
    assert r1mac("convert", "-o", "out").returncode == 2
