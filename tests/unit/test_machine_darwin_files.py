"""Reports of panics and settings at the start of a Mac, from what real Macs wrote (tests/captures)."""

import json
import os
import plistlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine.darwin_files import parse_panic, read_panics, read_startup_settings
from r1mac.machine.readings import StartupSetting
from tests.recorded import CAPTURES, recorded

DAY = 86_400


def write_report(
    root: Path, words: str, *, name: str = "panic-full-2026-08-18-092125.0002.panic", age_s: int = 0
) -> Path:
    """Write a report as macOS does: a line of JSON, then an object with the kernel's words in it."""
    folder = root / "Library/Logs/DiagnosticReports"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    header = {"bug_type": "210", "timestamp": "2026-08-18 09:21:25.00 +0200", "os_version": "macOS 26.4 (25E246)"}
    body = {"build": "macOS 26.4 (25E246)", "product": "Mac16,10", "panicString": words}
    path.write_text(f"{json.dumps(header)}\n{json.dumps(body, indent=2)}\n")
    os.utime(path, (1_000_000 - age_s, 1_000_000 - age_s))
    return path


def capture(name: str) -> str:
    """Return the kernel's words in a recorded panic."""
    return (CAPTURES / name / "panic.txt").read_text()


def test_a_panic_of_the_gpu_driver(tmp_path):
    """What macOS 26 wrote when the driver lost count is known as such, with the start of the Mac that it ended."""
    path = write_report(tmp_path, capture("m4-mini-16gb-panic"))
    (panic,) = recorded("m5-max", root=tmp_path).panics(since_s=0)

    assert panic.path == path
    assert panic.cause == "gpu"
    assert panic.reason == '"completeMemory() prepare count underflow" @IOGPUMemory.cpp:550'
    assert panic.session == "7EDF3EA8-1F47-4E07-A28D-C02488B3E469"
    assert panic.at_s == 1_000_000


def test_the_task_of_a_panic():
    """The program that ran is named where the report tells it; macOS 15 has the same words at another line."""
    panic = parse_panic(capture("python-panic-macos15"), path=Path("x"), at_s=0)

    assert (panic.cause, panic.task, panic.session) == ("gpu", "Python", None)


def test_a_panic_of_a_starved_system():
    """A watchdog that got no sign of life for a minute and a half is told from other panics."""
    panic = parse_panic(capture("m5-pro-48gb-panic"), path=Path("x"), at_s=0)

    assert panic.cause == "starved"
    assert panic.reason.startswith("watchdog timeout: no checkins from watchdogd in 93 seconds")


def test_another_panic():
    """A panic of something else is not laid at the GPU's door, even if a report names its driver further down."""
    words = "panic(cpu 1 caller 0xfffffe0037230464): busy timeout[0], (60s) @IOService.cpp:5963\ncom.apple.iokit.IOGPUFamily 1"

    assert parse_panic(words, path=Path("x"), at_s=0).cause == "other"


def test_old_reports_and_other_files_are_left_out(tmp_path):
    """Only panics count, and only those since then; the latest comes first, the place of sent reports included."""
    write_report(tmp_path, capture("m4-mini-16gb-panic"), name="panic-full-a.panic", age_s=2 * DAY)
    write_report(tmp_path, capture("m5-pro-48gb-panic"), name="panic-base+socd-b.000.panic", age_s=DAY)
    write_report(tmp_path, capture("m5-pro-48gb-panic"), name="panic-full-old.panic", age_s=9 * DAY)
    write_report(tmp_path, "python crashed", name="Python-2026-08-18-092125.ips")
    retired = tmp_path / "Library/Logs/DiagnosticReports/Retired"
    retired.mkdir()
    sent = retired / "panic-full-c.panic"
    write_report(tmp_path, capture("m4-mini-16gb-panic"), name="panic-full-c.panic").rename(sent)

    assert [panic.path.name for panic in read_panics(tmp_path, since_s=1_000_000 - 3 * DAY)] == [
        "panic-full-c.panic",
        "panic-base+socd-b.000.panic",
        "panic-full-a.panic",
    ]


def test_no_reports_and_no_right_to_read_them(tmp_path):
    """An empty place is no panic; one that may not be read is unknown."""
    assert read_panics(tmp_path, since_s=0) == ()
    write_report(tmp_path, capture("m4-mini-16gb-panic")).unlink()
    folder = tmp_path / "Library/Logs/DiagnosticReports"
    assert read_panics(tmp_path, since_s=0) == ()
    (folder / "panic-full-x.panic").mkdir()  # cannot be opened as a file, whoever asks

    assert read_panics(tmp_path, since_s=0) is None


@given(st.text())
def test_any_report_is_a_panic(text):
    """A report that is cut off or of another form still counts as a panic."""
    assert parse_panic(text, path=Path("x"), at_s=0).reason


# What is set at the start -------------------------------------------------------------------------


LOOP = (
    'n=0; while [ "$n" -lt 30 ]; do /usr/sbin/sysctl -w iogpu.wired_limit_mb=114688 >/dev/null 2>&1; '
    '[ "$(/usr/sbin/sysctl -n iogpu.wired_limit_mb 2>/dev/null)" = "114688" ] && exit 0; n=$((n+1)); sleep 2; done; exit 1'
)


def write_daemon(root: Path, name: str, arguments: list[str], **options: object) -> Path:
    """Write a plist of launchd."""
    path = root / "Library/LaunchDaemons" / f"{name}.plist"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(plistlib.dumps({"Label": name, "ProgramArguments": arguments, "RunAtLoad": True}, **options))
    return path


def test_what_would_be_set_at_the_start(tmp_path):
    """r1mac's own daemon, another program's and sysctl.conf are found, each with its value; others are not."""
    own = write_daemon(tmp_path, "dev.r1mac.gpu-wired-limit", ["/bin/sh", "-c", LOOP])
    binary = write_daemon(
        tmp_path, "com.me.gpu", ["/usr/sbin/sysctl", "-w", "iogpu.wired_limit_mb=57344"], fmt=plistlib.FMT_BINARY
    )
    write_daemon(tmp_path, "com.me.other", ["/usr/sbin/sysctl", "-w", "kern.maxfiles=9"])
    conf = tmp_path / "etc/sysctl.conf"
    conf.parent.mkdir()
    conf.write_text(
        "# iogpu.wired_limit_mb=1\nkern.maxfiles=9\niogpu.wired_mem_alloc_limit_percent=90  # as a blog says\n"
    )

    assert recorded("m5-max", root=tmp_path).startup_settings() == (
        StartupSetting(path=binary, key="iogpu.wired_limit_mb", value=57344),
        StartupSetting(path=own, key="iogpu.wired_limit_mb", value=114688),
        StartupSetting(path=conf, key="iogpu.wired_mem_alloc_limit_percent", value=90),
    )


@pytest.mark.parametrize(
    "content", [b"", b"iogpu", b"<plist><dict>iogpu", b"bplist00rubbish", b"\xff\xfe iogpu", plistlib.dumps(["iogpu"])]
)
def test_a_broken_plist_is_passed_by(tmp_path, content):
    """A file that launchd could not read either sets nothing."""
    write_daemon(tmp_path, "com.me.gpu", []).write_bytes(content)

    assert read_startup_settings(tmp_path) == ()


def test_a_mac_without_such_files(tmp_path):
    """Nothing is set where nothing is there."""
    assert read_startup_settings(tmp_path) == ()
