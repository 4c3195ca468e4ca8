"""The power goes while tune works, as it does in real processes; undo then leaves the Mac as tune found it."""

import os
import subprocess
from pathlib import Path

import pytest

from r1mac import paths
from tests.macs import Mac

SCRIPT = paths.script("wired-limit")
# What r1mac asks before its first change, and the script before its own.
CALLS_BEFORE = 10
CALLS_OF_PERSIST = 23


def files() -> dict[str, str]:
    home = Path(os.environ["R1MAC_HOME"])
    return {path.name: path.read_text() for path in home.iterdir()} if home.is_dir() else {}


def cut(mac: Mac, after_calls: int, *arguments: str) -> bool:
    """Run r1mac until it and its helpers have made so many calls, then kill them all; tell whether it came to that."""
    mac.cut_power_at(len(mac.calls) + after_calls)
    done = mac.r1mac(*arguments)
    (mac.state / "kill-at").unlink(missing_ok=True)
    return done.returncode < 0


@pytest.mark.parametrize("after_calls", range(CALLS_BEFORE, CALLS_OF_PERSIST))
def test_undo_after_a_power_cut(tmp_path, after_calls):
    """Cut at each call of a tool in turn, and once more while undoing, with a restart or a mere crash.

    Every other Mac has a daemon of an earlier tune, with another limit, whose record was lost.
    """
    mac = Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1")
    if after_calls % 2:
        earlier = [mac.folder / "usr/bin/sudo", "/bin/sh", SCRIPT, "install", "53100"]
        subprocess.run(earlier, check=True, capture_output=True)
        mac.restart()
    Path(os.environ["R1MAC_HOME"]).mkdir()
    (Path(os.environ["R1MAC_HOME"]) / "config.toml").write_text("top_p = 0.9 # mine\n")
    untouched = mac.snapshot()

    assert cut(mac, after_calls, "tune", "70b", "--persist")
    if after_calls % 4 in {1, 2}:
        mac.restart()
    cut(mac, CALLS_BEFORE + 3 * after_calls % 14, "tune", "--undo")
    if after_calls % 3 == 0:
        mac.restart()
    done = mac.r1mac("tune", "--undo")

    assert done.returncode == 0, done.stderr
    assert mac.snapshot() == untouched
    assert files() == {"config.toml": "top_p = 0.9 # mine\n"}


def test_the_number_of_calls_is_right(tmp_path):
    """The range above reaches from the first change to the last."""
    mac = Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1")
    mac.r1mac("tune", "70b", "--persist")
    changes = [
        number
        for number, call in enumerate(mac.calls, start=1)
        if call.startswith(("install", "launchctl b")) or "mb=" in call
    ]

    assert changes[0] > CALLS_BEFORE
    assert changes[-1] < CALLS_OF_PERSIST - 1
