"""``r1mac tune --status`` as real processes: what is set, what will be, and the way out of what is wrong."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from r1mac.machine.occupancy import occupy
from r1mac.units import GIB
from tests.cli.test_tune import fails, succeeds
from tests.macs import LABEL, Mac


@pytest.fixture(name="mac")
def _mac(tmp_path):
    return Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1", gpu_core_count=20)


@pytest.fixture(name="home")
def _home():
    return Path(os.environ["R1MAC_HOME"])


def test_status_tells_of_drift(mac):
    """The kernel has another limit than the daemon sets: both are shown."""
    succeeds(mac.r1mac("tune", "70b", "--persist"))
    mac.set_sysctl("iogpu.wired_limit_mb", 0)
    out = succeeds(mac.r1mac("tune", "--status"))

    assert "drift" in out
    assert "sets 54272 MiB at each start, and now it is macOS's own" in out


def test_status_tells_who_keeps_an_old_limit(mac):
    """A process of r1mac that began under another limit keeps it until it ends."""
    title, plan = "DeepSeek 32B", {"planned_bytes": 20 * GIB, "budget_bytes": 64 * GIB}
    with occupy(title, wired_limit_bytes=55662788608, **plan):
        assert "keeps the limit" not in succeeds(mac.r1mac("tune", "--status"))
        applied = succeeds(mac.r1mac("tune", "70b", "--apply"))
        status = succeeds(mac.r1mac("tune", "--status"))

    assert f"{title} (process {os.getpid()})" in applied
    assert f"{title} (process {os.getpid()}) with 20.0 GiB; it keeps the limit of 51.8 GiB" in status
    assert title not in succeeds(mac.r1mac("tune", "--status"))


def test_status_tells_of_another_programs_daemon(mac):
    """Who else sets the limit at each start is named with its file."""
    plist = (
        b'<?xml version="1.0"?><plist version="1.0"><dict><key>Label</key><string>org.other</string>'
        b"<key>RunAtLoad</key><true/><key>ProgramArguments</key><array><string>/usr/sbin/sysctl</string>"
        b"<string>iogpu.wired_limit_mb=58000</string></array></dict></plist>"
    )
    mac.add_daemon("org.other", plist)
    mac.restart()

    assert mac.wired_limit_mib == 58000
    assert "org.other.plist sets 58000 MiB" in succeeds(mac.r1mac("tune", "--status"))


DANGEROUS = 63 * 1024


def test_a_dangerous_limit_has_a_way_out(mac):
    """Where a limit leaves macOS too little the way back is a command, also for a model that no limit helps."""
    mac.set_sysctl("iogpu.wired_limit_mb", DANGEROUS)
    status = mac.r1mac("tune", "--status")
    hopeless = mac.r1mac("tune", "671b")
    data = json.loads(mac.r1mac("tune", "671b", "--json").stdout)

    for done in (status, hopeless):
        assert "sudo sysctl iogpu.wired_limit_mb=0  (macOS's own limit, at once)" in done.stdout
        assert "may freeze" not in done.stderr  # what is shown says it already
    assert "63.0 GiB (64512 MiB) -> 51.8 GiB (macOS's own)" in hopeless.stdout
    assert hopeless.stdout.count("may freeze") == 1
    assert hopeless.returncode == 4
    assert (data["wired_limit_mib_to_set"], data["command"]) == (0, "sudo sysctl iogpu.wired_limit_mb=0")


def test_a_dangerous_limit_is_told_once_by_every_command(mac):
    """plan warns beside its rows; the doctor says it in its report."""
    mac.set_sysctl("iogpu.wired_limit_mb", DANGEROUS)
    planned, examined = mac.r1mac("plan", "8b"), mac.r1mac("doctor")

    assert planned.stderr.count("sudo sysctl iogpu.wired_limit_mb=0") == 1
    assert (examined.stdout + examined.stderr).count("sudo sysctl iogpu.wired_limit_mb=0") == 1


def test_a_dangerous_daemon_has_a_way_out(mac):
    """What will be set at the next start is looked at as what is set now."""
    text = (
        b'<?xml version="1.0"?><plist version="1.0"><dict><key>Label</key><string>dev.r1mac.gpu-wired-limit</string>'
        b"<key>RunAtLoad</key><true/><key>ProgramArguments</key><array><string>/usr/sbin/sysctl</string>"
        b"<string>iogpu.wired_limit_mb=64512</string></array></dict></plist>"
    )
    mac.add_daemon(LABEL, text)
    out = succeeds(mac.r1mac("tune", "--status"))
    way_out = next(line for line in out.splitlines() if "wired-limit uninstall" in line).split("  (")[0].split()

    assert "r1mac's daemon sets 64512 MiB at each start, which leaves macOS less than 4 GiB" in out
    assert way_out[:2] == ["sudo", "sh"]
    assert Path(way_out[2]).is_file()
    assert json.loads(succeeds(mac.r1mac("tune", "--status", "--json")))["dangers"]


def test_a_limit_that_breaks_the_reserve_goes_down(mac):
    """What somebody says with --reserve counts also where a limit is set already."""
    mac.set_sysctl("iogpu.wired_limit_mb", 60 * 1024)
    assert "stays" in succeeds(mac.r1mac("tune", "70b"))
    assert "-> 53.0 GiB (54272 MiB)" in succeeds(mac.r1mac("tune", "70b", "--reserve", "10gb"))
    succeeds(mac.r1mac("tune", "8b", "--reserve", "10gb", "--apply"))

    assert mac.wired_limit_mib == 0


@pytest.mark.parametrize("damage", [b"{}", b"\xff\x00", b"[" * 100_000])
def test_a_damaged_record_locks_nothing(mac, home, damage):
    """--status and the plain command still show the state; the others name the command that really helps."""
    home.mkdir()
    record = home / "tuning.json"
    record.write_bytes(damage)
    mac.set_sysctl("iogpu.wired_limit_mb", 54272)
    for arguments in ([], ["--status"]):
        out = succeeds(mac.r1mac("tune", *arguments))
        assert f"unreadable: {record}" in out
        assert "53.0 GiB (54272 MiB)" in out
    assert json.loads(succeeds(mac.r1mac("tune", "--status", "--json")))["unreadable_record"] == str(record)
    move = f"mv {record} {record}.bad"
    for arguments in (["8b", "--apply"], ["--undo"]):
        fails(mac.r1mac("tune", *arguments), 15, "cannot be read", f"`{move}`", "forgotten")
    assert record.read_bytes() == damage
    subprocess.run(["/bin/sh", "-c", move], check=True)
    succeeds(mac.r1mac("tune", "8b", "--apply"))
    succeeds(mac.r1mac("tune", "--undo"))

    assert mac.wired_limit_mib == 54272
