"""pull, list, show, rm and convert as a person uses them, against a stand-in for the Hub."""

import json
from pathlib import Path

import mlx.core as mx
import pytest

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.cli.conftest import R1mac
from tests.hub_stand_in import StandIn


def _names(r1mac: R1mac) -> list[str]:
    return [model["name"] for model in json.loads(r1mac("list", "--json").stdout)]


def test_a_hub_repository_is_fetched_run_and_deleted(hub: StandIn, r1mac: R1mac, tmp_path: Path) -> None:
    """A repository that is named is fetched once, runs, is listed and shown, and rm frees its place."""
    write_checkpoint(tmp_path / "hub" / "org" / "tiny", CONFIGS["qwen3"])
    card = "---\ntags: [mlx]\nlicense: apache-2.0\n---\n# Tiny\n"
    (tmp_path / "hub" / "org" / "tiny" / "README.md").write_text(card, encoding="utf-8")

    ran = r1mac("run", "org/tiny", "hi", "--max-tokens", "3")

    assert ran.returncode == 0, ran.stderr
    assert _names(r1mac) == ["org--tiny"]
    served = dict(hub.served_bytes)
    assert r1mac("run", "org/tiny", "hi", "--max-tokens", "3").returncode == 0
    assert hub.served_bytes == served
    shown = json.loads(r1mac("show", "org/tiny", "--json").stdout)
    assert (shown["architecture"], shown["made_from"], shown["licence"]) == ("qwen3", "org/tiny", "apache-2.0")
    assert r1mac("rm", "org/tiny", "--yes").returncode == 0
    assert _names(r1mac) == []


def test_an_alias_takes_the_ready_repository(hub: StandIn, r1mac: R1mac, tmp_path: Path) -> None:
    """pull of a catalog name takes the ready MLX repository of the wanted width, not the original weights."""
    write_checkpoint(tmp_path / "hub" / "mlx-community" / "DeepSeek-R1-Distill-Qwen-7B-8bit", CONFIGS["qwen2"])

    done = r1mac("pull", "7b", "--bits", "8")

    assert done.returncode == 0, done.stderr
    assert _names(r1mac) == ["r1-distill-7b-8bit"]
    assert r1mac("rm", "7b", "--yes").returncode == 0


def test_an_alias_without_a_ready_repository_is_converted(hub: StandIn, r1mac: R1mac, tmp_path: Path) -> None:
    """Where no ready repository has the width, the original weights are fetched, converted, and not kept."""
    write_checkpoint(tmp_path / "hub" / "deepseek-ai" / "DeepSeek-R1-Distill-Qwen-7B", CONFIGS["qwen2"])

    done = r1mac("pull", "7b", "--bits", "2")

    assert done.returncode == 0, done.stderr
    assert _names(r1mac) == ["r1-distill-7b-2bit"]
    shown = json.loads(r1mac("show", "7b", "--bits", "2", "--json").stdout)
    assert shown["quantization"] == {"bits": 2, "group_size": 64, "mode": "affine"}


def test_a_repository_is_converted_to_the_asked_width(hub: StandIn, r1mac: R1mac, tmp_path: Path) -> None:
    """run with --bits on any unquantised repository converts it on the way."""
    write_checkpoint(tmp_path / "hub" / "org" / "tiny", CONFIGS["llama"])

    done = r1mac("run", "org/tiny", "hi", "--bits", "4", "--max-tokens", "3")

    assert done.returncode == 0, done.stderr
    assert "org--tiny-4bit" in _names(r1mac)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_converted_folder_runs(kind: str, r1mac: R1mac, tmp_path: Path) -> None:
    """Every architecture is converted by the command and the result runs."""
    write_checkpoint(tmp_path / "source", CONFIGS[kind])

    made = r1mac("convert", str(tmp_path / "source"), "-o", str(tmp_path / "out"), "--bits", "3", "-q")

    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    assert r1mac("run", str(tmp_path / "out"), "hi", "--max-tokens", "3").returncode == 0
    loaded = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert loaded["lm_head.scales" if kind != "qwen2" else "model.embed_tokens.scales"].dtype == mx.bfloat16


def test_convert_never_overwrites_by_accident(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """An output that is there is refused; --force replaces a model, and never a folder that is none."""
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("keep me", encoding="utf-8")
    out = tmp_path / "out"
    assert r1mac("convert", str(tiny), "-o", str(out)).returncode == 0

    again = r1mac("convert", str(tiny), "-o", str(out))
    forced = r1mac("convert", str(tiny), "-o", str(out), "--bits", "8", "--force")
    onto_letters = r1mac("convert", str(tiny), "-o", str(other), "--force")

    assert (again.returncode, forced.returncode, onto_letters.returncode) == (15, 0, 15)
    assert json.loads((out / "config.json").read_text())["quantization"]["bits"] == 8
    assert (other / "dear.txt").read_text(encoding="utf-8") == "keep me"


def test_a_group_size_that_divides_nothing_is_refused(r1mac: R1mac, tmp_path: Path) -> None:
    """Where the group size divides no matrix, the model would silently stay wide; it is refused instead."""
    config = {**CONFIGS["llama"], "hidden_size": 96, "intermediate_size": 160, "head_dim": 24}
    write_checkpoint(tmp_path / "source", config)

    done = r1mac("convert", str(tmp_path / "source"), "-o", str(tmp_path / "out"), "--group-size", "128")

    assert done.returncode == 5
    assert "--group-size" in done.stderr
