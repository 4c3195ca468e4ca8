"""The script that runs as root, run by real shells on a Mac of stubs."""

import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1mac import paths
from r1mac.units import GIB
from tests.macs import LABEL, Mac

SCRIPT = paths.script("wired-limit")
SHELLS = [shell for shell in ("/bin/dash", "/bin/bash", "/bin/zsh", "/bin/ksh") if Path(shell).exists()]


@pytest.fixture(name="mac")
def _mac(tmp_path):
    return Mac(tmp_path / "mac", "m5-pro-64gb-macos26.6.1")


def as_root(mac, *words: str, shell: str = "/bin/sh", **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run the script as sudo does, with the tools of *mac* written into a copy of it."""
    return _run(mac, {"MAC_ROOT": "yes", **environment}, shell, *words)


def as_user(mac, *words: str) -> "subprocess.CompletedProcess[str]":
    return _run(mac, {}, "/bin/sh", *words)


def _run(mac, environment, shell, *words):
    copy = mac.state / "wired-limit"
    copy.write_text(re.sub(r"(?m)^([a-z_]+)=/", rf"\1={mac.folder}/", SCRIPT.read_text()))
    return subprocess.run(
        [shell, copy, *words], capture_output=True, text=True, env=environment, timeout=60, check=False
    )


# What it refuses ----------------------------------------------------------------------------------

NO_NUMBERS = [
    "", " ", "0", "-1", "+57344", "057344", "57344.0", "57344 ", " 57344", "5e4", "0xE000", "57,344", "57344\n",
    "99999999", "9" * 30, "57344;id", "$(id)", "`id`", "*", "57344 -a", "set", "-n", "٥٧٣٤٤", "¹",
]  # fmt: skip


@pytest.mark.parametrize("command", ["set", "install"])
@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_plain_number_is_refused(mac, command, text):
    """No sign, space, leading zero, letter, other digit or length beyond sense; nothing of it is run."""
    done = as_root(mac, command, text)

    assert (done.returncode, done.stdout) == (64, "")
    assert "is not a number of MiB" in done.stderr
    assert mac.wired_limit_mib == 0
    assert not any("=" in call for call in mac.calls)


@pytest.mark.parametrize(("memory_gib", "most_mib"), [(8, 4096), (64, 61440), (512, 520192)])
@pytest.mark.parametrize("command", ["set", "install"])
def test_a_limit_that_leaves_less_than_4_gib_is_refused(mac, command, memory_gib, most_mib):
    """The most is allowed, one MiB more is not, whatever was allowed by whoever called."""
    mac.set_sysctl("hw.memsize", memory_gib * GIB)
    refused = as_root(mac, command, str(most_mib + 1))

    assert refused.returncode == 65
    assert f"{most_mib} MiB is the most here" in refused.stderr
    assert mac.wired_limit_mib == 0
    assert as_root(mac, command, str(most_mib)).returncode == 0
    assert mac.wired_limit_mib == most_mib


def test_gib_for_mib_is_refused(mac):
    """56, meant as GiB, would leave the screen no memory."""
    done = as_root(mac, "set", "56")

    assert done.returncode == 65
    assert "counted in MiB" in done.stderr
    assert mac.wired_limit_mib == 0


@pytest.mark.parametrize(
    "words",
    [(), ("set",), ("install",), ("set", "57344", "1"), ("reset", "1"), ("nonsense",), ("--help",), ("SET", "57344")],
)
def test_wrong_words_are_refused(mac, words):
    done = as_root(mac, *words)

    assert done.returncode == 64
    assert "usage: wired-limit" in done.stderr
    assert mac.calls == []


@pytest.mark.parametrize("words", [("set", "57344"), ("reset",), ("install", "57344"), ("uninstall",)])
def test_without_root_nothing_is_tried(mac, words):
    mac.set_sysctl("iogpu.wired_limit_mb", 50000)
    before = mac.snapshot()
    done = as_user(mac, *words)

    assert done.returncode == 77
    assert "only root" in done.stderr
    assert mac.snapshot() == before
    assert not any(call.startswith(("launchctl", "install")) or "=" in call for call in mac.calls)


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_on_no_mac_it_does_nothing():
    """The script as it is shipped, on this computer, as whoever runs the tests."""
    done = subprocess.run(["/bin/sh", SCRIPT, "set", "57344"], capture_output=True, text=True, check=False)

    assert done.returncode == 69
    assert "no Mac" in done.stderr or "no iogpu.wired_limit_mb" in done.stderr


@pytest.mark.parametrize("words", [("status",), ("set", "57344"), ("install", "57344"), ("reset",)])
def test_without_the_key_it_does_nothing(tmp_path, words):
    """macOS 13 has no such key."""
    mac = Mac(tmp_path / "old", "m5-pro-64gb-macos26.6.1", sysctl={"iogpu.wired_limit_mb": None})
    done = as_root(mac, *words)

    assert done.returncode == 69
    assert "macOS 14" in done.stderr
    assert list((mac.folder / "Library/LaunchDaemons").iterdir()) == []


def test_a_limit_that_does_not_stick_is_an_error(mac):
    mac.fault("value-does-not-stick")
    for words in (("set", "57344"), ("install", "57344")):
        done = as_root(mac, *words)
        assert done.returncode == 74
        assert "was set to 57344 and is 0" in done.stderr
    assert mac.loaded == set()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12))
def test_any_text_sets_what_it_says_or_nothing(mac, text):
    """Whatever stands for the number: the limit is that number, or as it was."""
    mac.set_sysctl("iogpu.wired_limit_mb", 0)
    done = as_root(mac, "set", text)

    valid = re.fullmatch(r"[1-9][0-9]{3,6}", text, re.ASCII) and 1024 <= int(text) <= 60 * 1024
    assert mac.wired_limit_mib == (int(text) if valid else 0)
    assert (done.returncode == 0) == bool(valid)


def test_the_environment_does_not_change_its_tools(mac, tmp_path):
    """Variables of the caller with the names of the script's own, and a PATH with other tools, are of no effect."""
    names = ("sysctl", "launchctl", "plutil", "install", "uname", "id", "sleep", "daemons")
    evil = tmp_path / "evil"
    evil.mkdir()
    for name in names:
        (evil / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (evil / name).chmod(0o755)
    variables = {name: str(evil / name) for name in names}
    done = as_root(mac, "install", "57344", **variables, PATH=f"{evil}:/usr/bin:/bin", ENV=str(evil / "id"))

    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


# What it does -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_set_and_reset_in_every_shell(mac, shell):
    assert as_root(mac, "set", "57344", shell=shell).stdout == "iogpu.wired_limit_mb: 57344\n"
    assert mac.wired_limit_mib == 57344
    assert as_root(mac, "reset", shell=shell).stdout == "iogpu.wired_limit_mb: 0\n"
    assert mac.wired_limit_mib == 0
    assert as_root(mac, "install", "57344", shell=shell).returncode == 0
    assert (mac.wired_limit_mib, mac.loaded) == (57344, {LABEL})


def test_the_daemons_plist_is_what_launchd_wants(mac):
    """A property list with the label of its file, root's and nobody else's to write, with real paths only."""
    done = as_root(mac, "install", "57344")
    plist = plistlib.loads(mac.daemon_file.read_bytes())

    assert done.returncode == 0, done.stderr
    assert plist["Label"] == mac.daemon_file.stem == LABEL
    assert plist["RunAtLoad"] is True
    assert plist["ProgramArguments"][:2] == ["/bin/sh", "-c"]
    assert mac.daemon_file.stat().st_mode & 0o777 == 0o644
    assert (mac.state / "owners" / str(mac.daemon_file.stat().st_ino)).read_text() == "root:wheel\n"
    command = plist["ProgramArguments"][2]
    assert set(re.findall(r"(?<![\w$])/[\w/]+", command)) == {"/usr/sbin/sysctl", "/bin/sleep"}
    assert command.count("57344") == 3
    assert str(mac.folder) not in mac.daemon_file.read_text()
    assert plistlib.loads(plistlib.dumps(plist)) == plist


def test_the_daemons_command_is_good_shell(mac):
    """Its text passes shellcheck as the script does."""
    if (shellcheck := shutil.which("shellcheck")) is None:
        pytest.skip("shellcheck is not installed")
    as_root(mac, "install", "57344")
    command = plistlib.loads(mac.daemon_file.read_bytes())["ProgramArguments"][2]
    done = subprocess.run([shellcheck, "-s", "sh", "-"], input=command, capture_output=True, text=True, check=False)

    assert done.stdout == ""


def test_the_daemon_sets_the_limit_at_each_start(mac):
    as_root(mac, "install", "57344")
    for _ in range(2):
        mac.restart()
        assert mac.wired_limit_mib == 57344


def test_the_daemon_waits_for_a_key_that_comes_late(mac):
    """Early in a start the key may not be there: it tries again, and reads back what it set."""
    as_root(mac, "install", "57344")
    mac.fault("key-appears-later", "7")
    mac.restart()

    assert mac.wired_limit_mib == 57344
    assert sum(call.startswith("sleep 2") for call in mac.calls) >= 3


def test_the_daemon_gives_up_after_a_minute(mac):
    """Thirty attempts, two seconds apart; then it says in its log that it did not work."""
    as_root(mac, "install", "57344")
    mac.fault("value-does-not-stick")
    mac.restart()

    assert mac.wired_limit_mib == 0
    assert sum(call.startswith("sleep 2") for call in mac.calls) == 30
    assert "was not set to 57344" in (mac.folder / f"var/log/{LABEL}.log").read_text()


@pytest.mark.parametrize("memory", [str(60 * GIB - 1), "16777216", "", "x"])
def test_the_daemon_refuses_what_the_mac_cannot_bear(mac, memory):
    """A disk that was moved into a Mac with less memory, or a Mac that does not tell: macOS's own limit stays."""
    as_root(mac, "install", "57344")
    mac.set_sysctl("hw.memsize", memory)
    mac.restart()

    assert mac.wired_limit_mib == 0


def test_install_again_replaces_the_daemon(mac):
    """The second value counts, now and at the next start, though launchd takes no label twice."""
    as_root(mac, "install", "57344")
    done = as_root(mac, "install", "54272")

    assert done.returncode == 0
    assert mac.wired_limit_mib == 54272
    mac.restart()
    assert mac.wired_limit_mib == 54272


def test_a_refused_daemon_is_taken_away_again(mac):
    """launchd says no, five times: the limit is set until the next start, and no file is left for it."""
    mac.fault("launchctl-fails")
    done = as_root(mac, "install", "57344")

    assert done.returncode == 71
    assert "launchd refused the daemon, which was removed: Bootstrap failed: 5" in done.stderr
    assert mac.wired_limit_mib == 57344
    assert list((mac.folder / "Library/LaunchDaemons").iterdir()) == []


def test_launchd_may_say_no_and_do_it(mac):
    """What launchd knows afterwards counts, not what it said."""
    mac.fault("launchctl-says-no")

    assert as_root(mac, "install", "57344").returncode == 0
    assert mac.loaded == {LABEL}


def test_uninstall_leaves_nothing_but_the_limit(mac):
    """It may be run twice, and where there is no daemon."""
    as_root(mac, "install", "57344")
    for _ in range(2):
        assert as_root(mac, "uninstall").stdout == "daemon: none\n"
        assert mac.loaded == set()
        assert list((mac.folder / "Library/LaunchDaemons").iterdir()) == []
        assert list((mac.folder / "var/log").iterdir()) == []
        assert mac.wired_limit_mib == 57344
    mac.restart()
    assert mac.wired_limit_mib == 0


def test_a_daemon_that_launchd_keeps_is_told(mac):
    """launchd may not let go: then it is not said that there is none. Its file goes, so the next start is without it."""
    as_root(mac, "install", "57344")
    mac.fault("launchctl-keeps")
    done = as_root(mac, "uninstall")

    assert (done.returncode, done.stdout) == (73, "")
    assert "launchd keeps the daemon until this Mac starts again" in done.stderr
    assert not mac.daemon_file.exists()
    mac.restart()
    assert (mac.wired_limit_mib, mac.loaded) == (0, set())
    assert as_root(mac, "uninstall").stdout == "daemon: none\n"


def test_status_needs_no_root(mac):
    assert as_user(mac, "status").stdout == "iogpu.wired_limit_mb: 0\ndaemon: none\n"
    as_root(mac, "install", "57344")
    assert as_user(mac, "status").stdout == f"iogpu.wired_limit_mb: 57344\ndaemon: {mac.daemon_file}\n"


def test_it_may_be_executed():
    """The mode survives whatever brought the file here."""
    assert SCRIPT.stat().st_mode & 0o111
    assert SCRIPT.read_text().startswith("#!/bin/sh\n")
