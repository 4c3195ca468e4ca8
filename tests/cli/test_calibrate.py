"""``r1mac calibrate`` as a user runs it."""

import json
from pathlib import Path

import pytest

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.cli.conftest import R1mac

TEXT = "The quick brown fox jumps over the lazy dog. 17 * 3 = 51.\n" * 20


def test_a_model_is_calibrated_with_a_text_of_ones_own(r1mac: R1mac, tiny: Path, tmp_path: Path) -> None:
    text, folder = tmp_path / "mine.txt", tmp_path / "statistics"
    text.write_text(TEXT, encoding="utf-8")

    done = r1mac("calibrate", str(tiny), "-o", str(folder), "--calibration", str(text))

    assert done.returncode == 0, done.stderr
    assert f"--statistics {folder}" in done.stderr
    record = json.loads((folder / "r1mac-statistics.json").read_text())
    assert record["complete"]
    assert record["tokens"] >= 512
    assert {path.name for path in folder.glob("*.safetensors")} == {
        "block-00000.safetensors",
        "block-00001.safetensors",
        "head.safetensors",
    }


def test_events_are_json_lines_where_asked(r1mac: R1mac, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(TEXT, encoding="utf-8")

    done = r1mac("calibrate", str(tiny), "-o", str(tmp_path / "s"), "--calibration", str(text), "--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["done"] for event in events if event.get("task") == "calibrate"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("too short", 7, "at least 256 are needed"),
        (None, 7, "cannot read the calibration text"),
    ],
)
def test_a_text_that_cannot_serve_is_refused(
    text: str | None, code: int, said: str, r1mac: R1mac, tiny: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")

    done = r1mac("calibrate", str(tiny), "-o", str(tmp_path / "s"), "--calibration", str(path))

    assert done.returncode == code
    assert said in done.stderr


def test_a_folder_with_something_else_in_it_is_left_alone(r1mac: R1mac, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")

    done = r1mac("calibrate", str(tiny), "-o", str(folder))

    assert done.returncode == 15
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_a_model_without_a_tokenizer_is_refused(r1mac: R1mac, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", CONFIGS["llama"])
    (source / "tokenizer.json").unlink()

    done = r1mac("calibrate", str(source), "-o", str(tmp_path / "s"))

    assert done.returncode == 7
    assert "tokenizer.json" in done.stderr


def test_a_conversion_measures_by_itself_and_leaves_nothing_of_that_behind(
    r1mac: R1mac, tiny: Path, tmp_path: Path
) -> None:
    text, out = tmp_path / "mine.txt", tmp_path / "out"
    text.write_text(TEXT, encoding="utf-8")

    done = r1mac("convert", str(tiny), "-o", str(out), "--bits", "3", "--quality", "--calibration", str(text))

    assert done.returncode == 0, done.stderr
    assert "calibrating" in done.stderr
    assert "3 bits: 3." in done.stderr, "it does not say which widths it chose"
    assert not (out / ".statistics").exists()
    assert "the calibration" in json.loads((out / "r1mac-conversion.json").read_text())["identity"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--statistics", "nowhere"], 2, "--quality"),
        (["--quality", "--statistics", "nowhere"], 7, "r1mac calibrate"),
        (["--quality", "--statistics", "nowhere", "--calibration", "mine.txt"], 2, "leave out --calibration"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    arguments: list[str], code: int, said: str, r1mac: R1mac, tiny: Path, tmp_path: Path
) -> None:
    done = r1mac("convert", str(tiny), "-o", str(tmp_path / "out"), *arguments, cwd=tmp_path)

    assert done.returncode == code
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_budget_becomes_widths_that_are_said_and_kept(r1mac: R1mac, tiny: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "mine.txt", tmp_path / "out"
    text.write_text(TEXT, encoding="utf-8")
    asked = ["--quality", "--calibration", str(text), "--bits-per-weight", "3.6", "--no-smoke"]

    done = r1mac("convert", str(tiny), "-o", str(out), *asked)

    assert done.returncode == 0, done.stderr
    assert "chosen by measured divergence" in done.stderr
    recipe = (tmp_path / "out.toml").read_text(encoding="utf-8")
    assert "[[quantize.override]]" in recipe
    again = r1mac(
        "convert", str(tiny), "-o", str(tmp_path / "again"), "--recipe", str(tmp_path / "out.toml"), "--no-smoke"
    )
    assert again.returncode == 0, again.stderr
    configs = [json.loads((tmp_path / name / "config.json").read_text())["quantization"] for name in ("out", "again")]
    assert configs[0] == configs[1]
