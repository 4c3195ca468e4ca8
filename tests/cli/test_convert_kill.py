"""Real conversions, killed with SIGKILL at random moments: each ends in the identical result, and repeats nothing."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.checkpoints import DEEPSEEK_V3, write_fp8_checkpoint
from tests.cli.conftest import COMMAND

# `R1MAC_KILLS=50 pytest tests/cli/test_convert_kill.py` is the long run (docs/lab.md).
KILLS = int(os.environ.get("R1MAC_KILLS", "6"))
OPTIONS = ("--max-shard", "500kb", "--memory", "113mib", "--no-smoke", "-q")


@pytest.fixture(name="source", scope="module")
def _source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint that makes a dozen files."""
    config = {**DEEPSEEK_V3, "num_hidden_layers": 4, "n_routed_experts": 16}
    return write_fp8_checkpoint(tmp_path_factory.mktemp("kill") / "source", config)


def _start(source: Path, output: Path, environment: dict[str, str], *bits: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [*COMMAND, "convert", str(source), "-o", str(output), *bits, *OPTIONS],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _finish(source: Path, output: Path, environment: dict[str, str], *bits: str) -> None:
    process = _start(source, output, environment, *bits)
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr.decode()


def _bytes_of(folder: Path) -> dict[str, bytes]:
    # r1mac.json says when it was made; README.md the name of the folder.
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in {"r1mac.json", "README.md"}}


def _shards(partial: Path) -> list[str]:
    """Return the files that the journal says are whole."""
    from r1mac.convert.journal import Journal
    from r1mac.errors import BadCheckpoint

    try:
        return sorted(Journal.load(partial).shards)
    except BadCheckpoint:
        return []


def _journalled(partial: Path) -> dict[str, tuple[int, int]]:
    """Return which files those are; nothing may be at work there."""
    # A file that is journalled may not have its name yet.
    there = {
        name: next(path for path in (partial / name, partial / f"{name}.partial") if path.exists())
        for name in _shards(partial)
    }
    return {name: (path.stat().st_ino, path.stat().st_mtime_ns) for name, path in there.items()}


def _wait_for_journal(process: "subprocess.Popen[bytes]", partial: Path) -> None:
    while not (partial / "r1mac-conversion.json").exists() and process.poll() is None:
        time.sleep(0.002)


def test_killed_at_random_moments(source: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """However often it is killed, the same command ends in the same bytes, and whole files are never touched again."""
    whole = tmp_path / "whole"
    process = _start(source, whole, environment)
    _wait_for_journal(process, tmp_path / ".whole.partial")
    begun = time.monotonic()
    _, stderr = process.communicate(timeout=240)
    span_seconds = time.monotonic() - begun
    assert process.returncode == 0, stderr.decode()
    expected = _bytes_of(whole)
    assert sum(name.endswith(".safetensors") for name in expected) >= 10
    dice = random.Random(4)
    tries = killed_inside = killed_within_files = 0
    while killed_inside < KILLS:
        tries += 1
        assert tries <= 3 * KILLS, "the conversions were over before they were killed: nothing was tested"
        output, partial = tmp_path / f"out-{tries}", tmp_path / f".out-{tries}.partial"
        process = _start(source, output, environment)
        _wait_for_journal(process, partial)
        time.sleep(dice.random() * span_seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        if not output.exists():
            killed_inside += 1
            before = _journalled(partial)
            killed_within_files += bool(before)
            _finish(source, output, environment)
            after = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in output.glob("*.safetensors")}
            assert before.items() <= after.items()
        assert _bytes_of(output) == expected
        assert not partial.exists()
    print(f"{killed_inside} killed before the end, {killed_within_files} with files that were whole; {tries} tries")


def test_several_widths_are_killed_and_go_on(source: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Killed in the middle, a run of two widths goes on with both."""
    _finish(source, tmp_path / "whole-{bits}", environment, "--bits", "2,3")
    process = _start(source, tmp_path / "out", environment, "--bits", "2,3")
    partial = tmp_path / ".out-3bit.partial"
    while not _shards(partial) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate(timeout=60)

    _finish(source, tmp_path / "out", environment, "--bits", "2,3")

    for bits in (2, 3):
        assert _bytes_of(tmp_path / f"out-{bits}bit") == _bytes_of(tmp_path / f"whole-{bits}")


def test_ctrl_c_says_how_to_go_on(source: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """An interruption ends with 130, keeps what is whole, and says that the same command goes on."""
    command = [*COMMAND, "convert", str(source), "-o", str(tmp_path / "out"), *OPTIONS[:-1]]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    partial = tmp_path / ".out.partial"
    while not _shards(partial) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "the same command goes on" in stderr.decode()
    assert _journalled(partial)
    done = subprocess.run(command, env=environment, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    assert "files are whole" in done.stderr.decode()
