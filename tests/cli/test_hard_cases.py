"""What a fresh pair of eyes broke: nothing of the user's is lost, and nothing is dropped without a word."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.checkpoints import CONFIGS, DEEPSEEK_V3, write_checkpoint, write_fp8_checkpoint
from tests.cli.conftest import COMMAND, R1mac
from tests.hub_stand_in import StandIn


def _convert(r1mac: R1mac, source: Path, output: str, *options: str, **kwargs: object) -> int:
    return r1mac("convert", str(source), "-o", output, "-q", *options, **kwargs).returncode


def test_force_replaces_only_what_r1mac_made(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """--force never deletes the source, a folder that holds it, the folder one is in, or anything not r1mac's own."""
    project = tmp_path / "project"
    (project / "notes").mkdir(parents=True)
    (project / "config.json").write_text("{}", encoding="utf-8")
    (project / "notes" / "thesis.txt").write_text("years of work", encoding="utf-8")
    here = tmp_path / "here"
    here.mkdir()

    codes = [
        _convert(r1mac, tiny, str(project), "--force"),
        _convert(r1mac, tiny, str(tiny), "--force"),
        _convert(r1mac, tiny, str(tiny.parent), "--force"),
        _convert(r1mac, tiny, ".", "--force", cwd=here),
    ]

    assert codes == [15, 15, 15, 15]
    assert (project / "notes" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
    assert (tiny / "model-00001-of-00002.safetensors").exists()
    assert here.is_dir()


def test_a_model_with_a_stranger_inside_is_not_replaced(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A converted model in which the user has put something is no longer only r1mac's, and is left alone."""
    out = tmp_path / "out"
    assert _convert(r1mac, tiny, str(out)) == 0
    (out / "my-notes.txt").write_text("keep", encoding="utf-8")

    assert _convert(r1mac, tiny, str(out), "--force") == 15
    assert (out / "my-notes.txt").exists()


def test_output_names_are_the_users_own(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """An output may be called what the user likes, and may be an empty folder that is there."""
    (tmp_path / "mein Modell").mkdir()

    assert _convert(r1mac, tiny, str(tmp_path / "mein Modell")) == 0
    assert _convert(r1mac, tiny, str(tmp_path / "_modèle")) == 0
    assert r1mac("run", str(tmp_path / "mein Modell"), "hi", "--max-tokens", "2").returncode == 0


def test_a_failed_wish_keeps_the_empty_folder(r1mac: R1mac, tmp_path: Path) -> None:
    """A source that is not there costs nobody the folder that was to be filled."""
    (tmp_path / "empty").mkdir()

    assert _convert(r1mac, tmp_path / "nosuch", str(tmp_path / "empty")) == 7
    assert (tmp_path / "empty").is_dir()


def test_what_a_kill_left_is_not_converted_into(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """Files that a killed conversion left never become part of the next one."""
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "model-00001-of-00003.safetensors").write_bytes(b"old")
    (partial / "chat_template.jinja").write_text("wrong", encoding="utf-8")

    assert _convert(r1mac, tiny, str(tmp_path / "out")) == 0
    assert not (tmp_path / "out" / "chat_template.jinja").exists()
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 1


def test_fp8_scales_of_the_wrong_shape_are_refused(r1mac: R1mac, tmp_path: Path) -> None:
    """A block-FP8 matrix whose scales do not cover it is refused by name: the result would be silently wrong."""
    source = write_fp8_checkpoint(tmp_path / "source", DEEPSEEK_V3)
    path = source / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    # The same bytes under another shape: rows of blocks become columns.
    scales = (key for key in header if key.endswith("_scale_inv"))
    name = next(key for key in scales if header[key]["shape"][0] != header[key]["shape"][1])
    header[name]["shape"].reverse()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])

    done = r1mac("convert", str(source), "-o", str(tmp_path / "out"))

    assert done.returncode == 7
    assert name in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_slow_pipe_is_waited_for(tiny: Path, environment: dict[str, str]) -> None:
    """Text that comes later than a second after the start is part of the prompt."""
    process = subprocess.Popen(
        [*COMMAND, "run", str(tiny), "Repeat:", "--max-tokens", "2", "--json"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert any("waiting for the text" in line for line in process.stderr)
    stdout, _ = process.communicate("x" * 100, timeout=120)

    finished = json.loads(stdout.splitlines()[-1])
    assert process.returncode == 0
    assert finished["stats"]["prompt_tokens"] > 100


def test_unfinished_and_damaged_models_can_be_deleted(r1mac: R1mac, tmp_path: Path) -> None:
    """rm deletes an unfinished download and a model whose manifest is damaged, under the names that it is known by."""
    models = tmp_path / "r1mac-home" / "models"
    for name in (".org--repo.partial", "r1-distill-7b-4bit", ".old.trash-0a1b2c3d"):
        (models / name).mkdir(parents=True)
        (models / name / "x").write_bytes(b"12345")
    (models / "r1-distill-7b-4bit" / "r1mac.json").write_text("{", encoding="utf-8")

    codes = [r1mac("rm", name, "--yes").returncode for name in ("org/repo", "7b")]

    assert codes == [0, 0]
    assert list(models.iterdir()) == []
    assert r1mac("rm", "7b").returncode == 3


def test_a_stored_model_that_lost_a_file_is_made_again(hub: StandIn, r1mac: R1mac, tmp_path: Path) -> None:
    """A stored model that lacks a file is fetched again by the command that runs it."""
    write_checkpoint(tmp_path / "hub" / "org" / "tiny", CONFIGS["llama"])
    assert r1mac("pull", "org/tiny").returncode == 0
    stored = tmp_path / "r1mac-home" / "models" / "org--tiny"
    next(stored.glob("*.safetensors")).unlink()

    assert r1mac("run", "org/tiny", "hi", "--max-tokens", "2").returncode == 0


def test_a_preference_gives_way_and_a_flag_does_not(r1mac: R1mac, environment: dict[str, str], tiny: Path) -> None:
    """A context preferred for all models is cut to what one knows; one asked for with --context is refused."""
    environment["R1MAC_CONTEXT_TOKENS"] = "100000"

    preferred = json.loads(r1mac("plan", str(tiny), "--json").stdout)
    asked = r1mac("plan", str(tiny), "--context", "100000", "--json")

    assert preferred["context_tokens"] == 4096
    assert asked.returncode == 4
    assert "4096" in json.loads(asked.stdout)["problem"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("run", "Why is the sky blue? " * 30, "hi"), 3),
        (("run", "why is the sky", "hi"), 3),
        (("run", "~nobody-of-that-name/x", "hi"), 3),
        (("convert", "~nobody-of-that-name/x", "-o", "out"), 7),
        (("run", "demo", "   "), 2),
        (("run", "demo", "hi", "--temperature", "nan"), 17),
        (("rm", "nosuch", "--yes"), 3),
    ],
)
def test_ordinary_slips_are_no_bugs(arguments: tuple[str, ...], code: int, r1mac: R1mac, tmp_path: Path) -> None:
    """A slip gets a sentence and its exit code, never a traceback."""
    done = r1mac(*arguments, cwd=tmp_path)

    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_odd_text_and_closed_streams(tiny: Path, r1mac: R1mac, environment: dict[str, str], tmp_path: Path) -> None:
    """Text that is not UTF-8, a store that is a file, closed streams and a reader that leaves are all borne."""
    command = " ".join([*COMMAND, "run", str(tiny), "hi", "--max-tokens", "2"])

    def shell(line: str) -> int:
        return subprocess.run(["bash", "-c", line], env=environment, check=False, capture_output=True).returncode

    not_utf8 = subprocess.run(
        [*COMMAND, "run", str(tiny), b"caf\xe9", "--max-tokens", "2"],
        env=environment,
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    (tmp_path / "a-file").write_text("x", encoding="utf-8")
    in_a_file = _convert(r1mac, tiny, str(tmp_path / "a-file" / "out"))

    assert not_utf8.returncode == 0, not_utf8.stderr
    assert in_a_file == 15
    assert shell(f"{command} <&- >&- 2>&-") == 0
    assert shell(f"{command} --json </dev/null | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}") == 0


def test_what_macos_leaves_on_foreign_disks_is_no_weight(tiny: Path, r1mac: R1mac) -> None:
    """Files such as ._model.safetensors beside the weights do not matter."""
    (tiny / "model.safetensors.index.json").unlink()
    for path in list(tiny.glob("*.safetensors")):
        (tiny / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")

    assert r1mac("show", str(tiny)).returncode == 0
