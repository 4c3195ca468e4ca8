"""What is checked of a converted model: at its end, and whenever somebody asks."""

import json
import os
from pathlib import Path

import pytest

from tests.checkpoints import DEEPSEEK_V3, write_fp8_checkpoint
from tests.cli.conftest import R1mac


@pytest.fixture(name="converted")
def _converted(tiny: Path, r1mac: R1mac, tmp_path: Path) -> Path:
    """Return a converted model of several weight files."""
    done = r1mac("convert", str(tiny), "-o", str(tmp_path / "model"), "--max-shard", "60kb", "--no-smoke", "-q")
    assert done.returncode == 0, done.stderr
    return tmp_path / "model"


def test_a_whole_model_is_verified(converted: Path, r1mac: R1mac) -> None:
    """A model as it was converted passes: files, headers, tokenizer and a few tokens."""
    done = r1mac("convert", "--verify", str(converted))

    assert done.returncode == 0, done.stderr
    assert "as it was converted" in done.stderr


@pytest.mark.parametrize("name", ["model-00002-of-00005.safetensors", "tokenizer.json", "config.json"])
def test_a_flipped_byte_is_found(name: str, converted: Path, r1mac: R1mac) -> None:
    """One byte that is not what was written is found, in weights or beside them, and the file is named."""
    path = converted / name
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)

    done = r1mac("convert", "--verify", str(converted), "--no-smoke")

    assert done.returncode == 7
    assert name in done.stderr


def test_missing_and_cut_files_are_found(converted: Path, r1mac: R1mac) -> None:
    """A file that lost its end, and one that is gone, are named."""
    os.truncate(converted / "model-00001-of-00005.safetensors", 1000)
    cut = r1mac("convert", "--verify", str(converted), "--no-smoke")
    (converted / "model-00001-of-00005.safetensors").unlink()
    gone = r1mac("convert", "--verify", str(converted), "--no-smoke")

    assert (cut.returncode, gone.returncode) == (7, 7)
    assert "model-00001-of-00005.safetensors" in cut.stderr
    assert "missing" in gone.stderr


def test_what_was_not_converted_cannot_be_verified(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A folder without the record of a conversion, and one that is not there, are refused."""
    assert r1mac("convert", "--verify", str(tiny)).returncode == 7
    assert r1mac("convert", "--verify", str(tmp_path / "nothing")).returncode == 7


def test_the_result_is_tried(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A conversion ends by loading the result; one without a tokenizer is not tried, and that is said."""
    tried = r1mac("convert", str(tiny), "-o", str(tmp_path / "tried"))
    (tiny / "tokenizer.json").unlink()
    not_tried = r1mac("convert", str(tiny), "-o", str(tmp_path / "not-tried"))

    assert tried.returncode == not_tried.returncode == 0
    assert "to try it" in tried.stderr
    assert "not tried" in not_tried.stderr


def test_a_dry_run_tells_the_bytes_and_writes_nothing(r1mac: R1mac, tmp_path: Path) -> None:
    """The forecast names the very size of what is then made, and makes no folder."""
    source = write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    arguments = ("convert", str(source), "-o", str(tmp_path / "out-{bits}"), "--bits", "3,4")

    forecast = json.loads(r1mac(*arguments, "--dry-run", "--json").stdout)
    assert [path.name for path in tmp_path.glob("*out*")] == []
    assert r1mac(*arguments, "--no-smoke").returncode == 0

    for result in forecast["results"]:
        index = json.loads((tmp_path / f"out-{result['bits']}" / "model.safetensors.index.json").read_text())
        assert result["output_bytes"] == index["metadata"]["total_size"]


def test_the_671b_on_paper(r1mac: R1mac) -> None:
    """Without any file: 671,026,419,200 weights of 4.5 bits, but for norms, routers and 61 kB of their biases."""
    forecast = json.loads(r1mac("convert", "671b", "--recipe", "plain", "--bits", "4", "--dry-run", "--json").stdout)

    # mlx-community's repository has 377,606,822,912 bytes; its 58 x 256 router biases are bfloat16 there, float32 here.
    assert forecast["results"][0]["output_bytes"] == 377_606_822_912 + 58 * 256 * 2
    assert forecast["peak_bytes"] < 2**29


@pytest.mark.parametrize("size", ["4", "4 apples", "-1gb"])
def test_a_size_that_is_none(size: str, tiny: Path, r1mac: R1mac) -> None:
    """A size without a unit is a wrong command line."""
    assert r1mac("convert", str(tiny), "-o", "out", "--memory", size).returncode == 2
