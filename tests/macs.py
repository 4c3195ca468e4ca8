"""A Mac on any computer: a folder whose tools are the stubs of ``tests/stubs``, with the facts of a recorded Mac.

What the tools change stays in the folder, so r1mac runs on it as real processes (``tests/mac_main.py``), and a
test looks at what is left afterwards.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from r1mac.machine.admin import run_as_admin
from r1mac.machine.command import CommandResult, run_command
from r1mac.machine.darwin import DarwinMachine

TESTS = Path(__file__).parent
ROOT = TESTS.parent
STUBS = TESTS / "stubs"
MACHINES = TESTS / "machines"
LABEL = "dev.r1mac.gpu-wired-limit"

# Tool to the stub that plays it. A tool that only tells is an «answer»; one that Linux has too is the «same».
TOOLS = {
    "/usr/sbin/sysctl": "sysctl",
    "/usr/bin/sudo": "sudo",
    "/bin/launchctl": "launchctl",
    "/usr/bin/plutil": "plutil",
    "/usr/bin/install": "install",
    "/usr/bin/id": "id",
    "/usr/bin/uname": "uname",
    "/bin/sleep": "sleep",
    "/bin/sh": "same",
    "/bin/cat": "same",
    "/bin/mv": "same",
    "/bin/rm": "same",
    "/usr/sbin/ioreg": "answer",
    "/usr/bin/vm_stat": "answer",
    "/usr/bin/memory_pressure": "answer",
    "/usr/bin/pmset": "answer",
    "/usr/bin/sw_vers": "answer",
    "/usr/sbin/system_profiler": "answer",
    "/usr/sbin/diskutil": "answer",
    "/usr/bin/ibv_devices": "answer",
    "/usr/bin/rdma_ctl": "answer",
    "/usr/bin/notifyutil": "answer",
    "/bin/df": "answer",
}
# What every Mac with Apple silicon says and the recordings leave out.
_COMPLETED = {
    "hw.optional.arm64": "1",
    "kern.bootsessionuuid": "11111111-0000-4000-8000-000000000001",
    "kern.boottime": "{ sec = 1762000000, usec = 237429 } Sat Nov  1 12:26:40 2025",
    "iogpu.wired_limit_mb": "0",
    "iogpu.wired_lwm_mb": "0",
    "iogpu.dynamic_lwm": "1",
}


class Mac:
    """A Mac in *folder*.

    Args:
        folder: where it is laid out; it must not exist.
        recorded: the folder of ``tests/machines`` that it is, or None for one that is all of *sysctl*.
        sysctl: keys with other values than recorded; None takes one away.
        gpu_core_count: for a Mac whose ``ioreg`` was not recorded.
    """

    def __init__(
        self,
        folder: Path,
        recorded: str | None = None,
        *,
        sysctl: Mapping[str, str | int | None] | None = None,
        gpu_core_count: int | None = None,
    ) -> None:
        self.folder = folder
        self.state = folder / "state"
        for name in ("sysctl", "answers", "loaded", "owners", "faults"):
            (self.state / name).mkdir(parents=True)
        for name in ("Library/LaunchDaemons", "var/log"):
            (folder / name).mkdir(parents=True)
        shutil.copy(STUBS / "common.sh", self.state)
        for tool, stub in TOOLS.items():
            self._lay_out(tool, stub)
        values: dict[str, str | int | None] = {**_COMPLETED}
        if recorded is not None:
            lines = (MACHINES / recorded / "sysctl.txt").read_text().splitlines()
            values |= dict(re.split(r"\s*[:=]\s*", line, maxsplit=1) for line in lines)
            for path in (MACHINES / recorded).glob("*.txt"):
                if path.name != "sysctl.txt":
                    self.says(path.stem, path.read_text())
        for key, value in (values | dict(sysctl or {})).items():
            if value is not None:
                (self.state / "sysctl" / key).write_text(f"{value}\n")
        if gpu_core_count is not None:
            self.says(
                "ioreg", f'+-o AGXAcceleratorG17S  <class AGXAcceleratorG17S>\n  "gpu-core-count" = {gpu_core_count}\n'
            )

    def machine(self) -> DarwinMachine:
        """Return it as r1mac sees it, for tests of this process."""
        return machine_in(self.folder)

    # What a test sets up ---------------------------------------------------------------------------

    def says(self, command: str, text: str, *, code: int = 0) -> None:
        """Let a tool print *text*: ``"pmset"`` whatever it is asked, ``"pmset -g therm"`` for these arguments."""
        path = self.state / "answers" / command.replace("/", "_")
        path.write_text(text)
        Path(f"{path}.code").write_text(str(code))

    def has_not(self, tool: str) -> None:
        """Take a tool away, such as ``"/usr/bin/rdma_ctl"``."""
        (self.folder / tool.lstrip("/")).unlink()

    def fault(self, name: str, value: str = "") -> None:
        """Let something go wrong from now on; ``tests/stubs/README.md`` lists what."""
        (self.state / "faults" / name).write_text(value)

    def mend(self, name: str) -> None:
        """End a fault."""
        (self.state / "faults" / name).unlink()

    def password(self, text: str) -> None:
        """Let sudo ask for a password."""
        (self.state / "sudo-password").write_text(text)

    def cut_power_at(self, call: int) -> None:
        """Kill r1mac and all that it started at the call of a tool that makes the record this long."""
        (self.state / "kill-at").write_text(str(call))

    # What there is ---------------------------------------------------------------------------------

    def sysctl(self, key: str) -> str:
        """Return the value of a key."""
        return (self.state / "sysctl" / key).read_text().strip()

    def set_sysctl(self, key: str, value: str | int) -> None:
        """Set a key, as somebody else than r1mac may."""
        (self.state / "sysctl" / key).write_text(f"{value}\n")

    @property
    def wired_limit_mib(self) -> int:
        """What the kernel's limit is now; 0 is macOS's own."""
        return int(self.sysctl("iogpu.wired_limit_mb"))

    @property
    def daemon_file(self) -> Path:
        """Where r1mac's LaunchDaemon is, if it is installed."""
        return self.folder / "Library/LaunchDaemons" / f"{LABEL}.plist"

    @property
    def loaded(self) -> set[str]:
        """The jobs that launchd knows."""
        return {path.name for path in (self.state / "loaded").iterdir()}

    @property
    def calls(self) -> list[str]:
        """Every call of a tool up to now."""
        path = self.state / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def add_daemon(self, label: str, plist: bytes) -> None:
        """Put a LaunchDaemon where another program's installer would, owned by root."""
        path = self.folder / "Library/LaunchDaemons" / f"{label}.plist"
        path.write_bytes(plist)
        path.chmod(0o644)
        (self.state / "owners" / str(path.stat().st_ino)).write_text("root:wheel\n")

    def snapshot(self) -> dict[str, object]:
        """Return all that tune may change on it."""
        daemons = (self.folder / "Library/LaunchDaemons").iterdir()
        return {
            "sysctl": {path.name: path.read_text() for path in (self.state / "sysctl").glob("iogpu.*")},
            "daemons": {path.name: (path.read_bytes(), oct(path.stat().st_mode)) for path in daemons},
            "loaded": self.loaded,
        }

    # What it does ----------------------------------------------------------------------------------

    def restart(self) -> None:
        """Start it again: the kernel forgets what was set, and launchd runs the daemons."""
        count = int(self.sysctl("kern.bootsessionuuid")[-12:]) + 1
        self.set_sysctl("kern.bootsessionuuid", f"11111111-0000-4000-8000-{count:012}")
        self.set_sysctl("kern.boottime", f"{{ sec = {1762000000 + 86400 * count}, usec = 0 }} Sun Nov  2 12:26:40 2025")
        for path in (self.state / "sysctl").glob("iogpu.wired_*"):
            path.write_text("0\n")
        (self.state / "sudo-ticket").unlink(missing_ok=True)
        subprocess.run([self.folder / "bin/launchctl", "restart"], check=True, env={}, timeout=60)

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of an r1mac that runs on this Mac."""
        return [sys.executable, str(TESTS / "mac_main.py"), str(self.folder), *arguments]

    def r1mac(self, *arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
        """Run r1mac on this Mac to its end, without a terminal."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            start_new_session=True,
            **{"stdin": subprocess.DEVNULL, "env": environment, **options},
        )

    def _lay_out(self, tool: str, stub: str) -> None:
        path = self.folder / tool.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        # The environment of a stub has no PATH to find Python in.
        text = (STUBS / stub).read_text().replace("#!/usr/bin/env python3", f"#!{sys.executable} -SE", 1)
        path.write_text(text)
        path.chmod(0o755)


def machine_in(folder: Path) -> DarwinMachine:
    """Return the machine whose tools and files are below *folder*."""

    def run(argv: tuple[str, ...]) -> CommandResult:
        return run_command((f"{folder}{argv[0]}", *argv[1:]))

    def as_admin(argv: tuple[str, ...]) -> CommandResult:
        return run_as_admin((f"{folder}{argv[0]}", *argv[1:]))

    return DarwinMachine(run=run, run_as_admin=as_admin, platform_machine="arm64", root=folder, user_id=501)
