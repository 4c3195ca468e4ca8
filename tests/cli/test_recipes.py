"""``r1mac convert --recipe`` and ``--list-recipes``, as a person uses them."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import R1mac
from tests.goldens import assert_golden
from tests.macs import Mac

MIX = """\
summary = "mine"
[quantize]
bits = 4
[[quantize.override]]
tensors = ["*.mlp.down_proj"]
layers = [1]
bits = 6
[[quantize.override]]
tensors = "lm_head"
bits = 16
[[quantize.override]]
tensors = "*.v_proj"
mode = "mxfp8"
"""


@pytest.mark.parametrize("model", ["", "671b", "8b"])
def test_the_list_reads_right(tmp_path: Path, model: str) -> None:
    """On a Mac Studio with 512 GB: every recipe, and all that there is for one model."""
    done = Mac(tmp_path / "mac", "m3-ultra-512gb-macos26").r1mac(
        "convert", "--list-recipes", *([model] if model else [])
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert_golden(f"recipes/{model or 'all'}.txt", done.stdout)


def test_the_list_of_an_unknown_model(r1mac: R1mac) -> None:
    """A slip of the name is told like everywhere."""
    done = r1mac("convert", "--list-recipes", "670b")

    assert (done.returncode, done.stdout) == (3, "")
    assert "'670b'" in done.stderr


def test_a_recipe_of_ones_own(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """It is carried out, config.json and `r1mac show` tell the mix, and the model answers."""
    (tmp_path / "mix.toml").write_text(MIX, encoding="utf-8")
    out = tmp_path / "out"

    made = r1mac("convert", str(tiny), "-o", str(out), "--recipe", str(tmp_path / "mix.toml"))

    assert made.returncode == 0, made.stderr
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["quantization"] == config["quantization_config"]
    assert config["quantization"] == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "model.layers.1.mlp.down_proj": {"group_size": 64, "bits": 6, "mode": "affine"},
        "lm_head": False,
        "model.layers.0.self_attn.v_proj": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        "model.layers.1.self_attn.v_proj": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
    }
    # 376,832 weights in matrices: a down projection is 32,768, the head 40,960, a value projection 8,192.
    shown = r1mac("show", str(out))
    assert "10.9% of the weights at 16, 76.1% of the weights at 4, 8.7% of the weights at 6" in shown.stdout
    assert "4.3% of the weights at mxfp8" in shown.stdout
    facts = json.loads(r1mac("show", str(out), "--json").stdout)
    assert facts["quantization"]["weights_by_width"]["6"] == pytest.approx(32_768 / 376_832, abs=1e-4)
    answer = r1mac("run", str(out), "hello", "--max-tokens", "4", "-q")
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--recipe", "r1-671b-2bit"), "r1-671b-2bit is for r1-671b"),
        (("--recipe", "r1-671b-5bit"), "no recipe 'r1-671b-5bit'"),
        (("--recipe", "./absent.toml"), "absent.toml"),
        (("--recipe", "r1-671b-2bit", "--bits", "2"), "says all widths itself"),
        (("--recipe", "mix.toml"), "override 1 of the recipe mix (*.down_porj)"),
        (("--bits", "mxfp4", "--group-size", "64"), "mxfp4 has group_size = 32, not 64"),
    ],
)
def test_a_recipe_that_cannot_be(
    tiny: Path, r1mac: R1mac, tmp_path: Path, options: tuple[str, ...], problem: str
) -> None:
    """The exit code of a bad recipe, one sentence and a hint, and no folder."""
    slip = '[quantize]\nbits = 4\n[[quantize.override]]\ntensors = "*.down_porj"\nbits = 6\n'
    (tmp_path / "mix.toml").write_text(slip, encoding="utf-8")

    done = r1mac("convert", str(tiny), "-o", "out", *options, cwd=tmp_path)

    assert done.returncode == 5, done.stderr
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bits", ["5", "nvfp4"])
def test_a_width_by_its_name(tiny: Path, r1mac: R1mac, tmp_path: Path, bits: str) -> None:
    """5 bits and the floating-point modes are chosen by --bits."""
    done = r1mac("convert", str(tiny), "-o", str(tmp_path / "out"), "--bits", bits, "-q")

    assert done.returncode == 0, done.stderr
    stated = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["quantization"]
    assert bits in {str(stated["bits"]), stated["mode"]}
