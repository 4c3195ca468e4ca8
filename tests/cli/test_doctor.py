"""``r1mac doctor`` as people run it: on this computer, and on Macs made of stubs."""

import json
from pathlib import Path

import pytest

from r1mac.hub.manifest import describe, write_manifest
from tests.macs import Mac

CALM = {"sysctl.proc_translated": 0, "kern.memorystatus_vm_pressure_level": 1}


@pytest.fixture(name="home")
def _home(environment: dict[str, str]) -> Path:
    """Return the folder that R1MAC_HOME names."""
    home = Path(environment["R1MAC_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    return home


def statuses(stdout: str) -> dict[str, str]:
    """Return each line's status by what was looked at."""
    return {result["name"]: result["status"] for result in json.loads(stdout)}


def test_this_computer_gets_a_report(r1mac):
    """On any computer that can run r1mac the doctor finds nothing broken, says what there is, and ends with 0."""
    done = r1mac("doctor")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "mlx 0.32" in done.stdout
    assert done.stderr == ""
    assert "Traceback" not in done.stdout


def test_the_report_as_json(r1mac):
    """With --json every check is an object with the same fields, and nothing else is on stdout."""
    done = r1mac("doctor", "--json")
    results = json.loads(done.stdout)

    assert done.returncode == 0
    assert {"computer", "Python", "MLX", "disk", "settings", "last run"} <= {result["name"] for result in results}
    assert all(set(result) == {"name", "subject", "status", "found", "why", "fix"} for result in results)


def test_a_broken_config_is_a_failure_and_the_rest_is_examined(r1mac, home):
    """config.toml that no other command would accept is a line of the report, and the exit code is 12."""
    (home / "config.toml").write_text("bits = 7\n")
    done = r1mac("doctor")
    as_json = r1mac("doctor", "--json")

    assert (done.returncode, as_json.returncode) == (12, 12)
    assert "checks failed: settings" in done.stderr
    assert "bits must be one of" in done.stdout
    assert statuses(as_json.stdout)["settings"] == "fail"
    assert statuses(as_json.stdout)["MLX"] == "ok"


def test_a_damaged_model_is_a_failure_and_an_unfinished_one_is_not(r1mac, home, tiny):
    """What cannot be run fails with 12; what is only unfinished is a warning, which ends with 0."""
    (home / "models").mkdir()
    partial = home / "models" / ".org--name.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"x" * 1000)
    warned = r1mac("doctor")
    folder = tiny.rename(home / "models" / "tiny")
    write_manifest(folder, describe(folder, source="org/tiny", revision=None, bits=16))
    well = r1mac("doctor")
    (folder / "model-00001-of-00002.safetensors").unlink()
    damaged = r1mac("doctor")

    assert (warned.returncode, well.returncode, damaged.returncode) == (0, 0, 12)
    assert "r1mac pull org/name" in warned.stdout
    assert "tokenizer" in well.stdout
    assert "checks failed: model tiny" in damaged.stderr
    assert "r1mac rm tiny" in damaged.stdout


# On Macs ------------------------------------------------------------------------------------------


def test_a_mac_from_tune_to_doctor(tmp_path):
    """A limit that tune keeps at each start is well; one that somebody raised beyond reason fails with 12."""
    mac = Mac(tmp_path / "mac", "m4-max-128gb-macos26.2", sysctl=CALM, gpu_core_count=40)
    before = mac.r1mac("doctor", "--json")
    tuned = mac.r1mac("tune", "70b", "--bits", "8", "--context", "100000", "--apply", "--persist")
    after = mac.r1mac("doctor", "--json")
    mac.set_sysctl("iogpu.wired_limit_mb", 130_000)
    endangered = mac.r1mac("doctor")

    assert tuned.returncode == 0, tuned.stdout + tuned.stderr
    assert mac.daemon_file.exists()
    assert (before.returncode, after.returncode, endangered.returncode) == (0, 0, 12)
    assert "limit at start" not in statuses(before.stdout)
    assert statuses(after.stdout)["limit at start"] == "ok"
    assert "sudo sysctl iogpu.wired_limit_mb=0" in endangered.stdout
    assert "r1mac tune --undo" in endangered.stdout
    assert "checks failed: wired limit" in endangered.stderr


def test_a_mac_under_rosetta(tmp_path):
    """The doctor runs where nothing else does, and says what to do."""
    mac = Mac(tmp_path / "mac", "m4-16gb-macos26", sysctl={**CALM, "sysctl.proc_translated": 1})
    planned, examined = mac.r1mac("plan", "8b"), mac.r1mac("doctor")

    assert (planned.returncode, examined.returncode) == (8, 12)
    assert "arm64 Python" in examined.stdout
    assert "checks failed: Python" in examined.stderr


def test_nothing_is_changed(tmp_path):
    """The doctor only reads: no command that he runs could change anything, and the folders stay as they were."""
    mac = Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1", sysctl=CALM)
    before = {path: path.stat().st_mtime_ns for path in mac.folder.rglob("*") if path.name != "calls"}
    mac.r1mac("doctor")
    after = {path: path.stat().st_mtime_ns for path in mac.folder.rglob("*") if path.name not in {"calls", "group"}}

    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}
    assert not [call for call in mac.calls if "sudo" in call or "=" in call or "launchctl" in call]
    assert any(call.startswith("pmset -g") for call in mac.calls)
