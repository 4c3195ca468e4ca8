"""Macs made of recorded text (tests/machines, tests/captures)."""

from collections.abc import Mapping
from pathlib import Path

from r1mac.machine import darwin_profiler, darwin_readings
from r1mac.machine.base import HardwareProfile
from r1mac.machine.command import CommandResult
from r1mac.machine.darwin import IOREG, SYSCTL, DarwinMachine, build_profile
from r1mac.units import GIB

MACHINES = Path(__file__).parent / "machines"
CAPTURES = Path(__file__).parent / "captures"
ALL_MACHINES = sorted(folder.name for folder in MACHINES.iterdir() if folder.is_dir())
VALUES = {
    "hw.memsize": str(64 * GIB),
    "hw.model": "Mac17,8",
    "machdep.cpu.brand_string": "Apple M5 Pro",
    "hw.optional.arm64": "1",
    "sysctl.proc_translated": "0",
    "kern.osproductversion": "26.6.1",
    "iogpu.wired_limit_mb": "0",
}

_FILES = {
    SYSCTL: "sysctl.txt",
    darwin_readings.MEMORY_SYSCTL: "sysctl.txt",
    darwin_readings.BOOT_SYSCTL: "sysctl.txt",
    darwin_readings.STATE_SYSCTL: "sysctl.txt",
    IOREG: "ioreg.txt",
    darwin_readings.VM_STAT: "vm_stat.txt",
    darwin_readings.POWER: "pmset.txt",
    darwin_readings.BATTERY: "pmset_batt.txt",
    darwin_readings.THERMAL: "notifyutil.txt",
    darwin_profiler.THUNDERBOLT: "thunderbolt.json",
    darwin_profiler.STORAGE: "storage.json",
    darwin_profiler.RDMA_STATUS: "rdma_ctl.txt",
    darwin_profiler.RDMA_DEVICES: "ibv_devices.txt",
}
_SYSCTLS = (SYSCTL, darwin_readings.MEMORY_SYSCTL, darwin_readings.BOOT_SYSCTL, darwin_readings.STATE_SYSCTL)


def recorded(
    name: str,
    *captures: str,
    more_sysctl: str = "",
    answers: Mapping[tuple[str, ...], str] | None = None,
    platform_machine: str = "arm64",
    root: Path = Path("/nowhere"),
) -> DarwinMachine:
    """Build the Mac of a folder, which may be joined by captures of other Macs. It knows r1mac's commands.

    Any other command, or any other argument, fails the test. *more_sysctl* and *answers* are what a test adds.
    """
    folders = [MACHINES / name, *(CAPTURES / capture for capture in captures)]
    texts = {argv: "".join(map(_text, (folder / file for folder in folders))) for argv, file in _FILES.items()}
    for argv in _SYSCTLS:
        texts[argv] += more_sysctl
    texts |= answers or {}
    return DarwinMachine(
        run=lambda argv: CommandResult(returncode=0, stdout=texts[argv]), platform_machine=platform_machine, root=root
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def profile_with(platform_machine: str = "arm64", **changes: str | None) -> HardwareProfile:
    """Build the profile of a 64 GB M5 Pro with some keys changed (``__`` is a dot) or, with None, missing."""
    values = VALUES | {key.replace("__", "."): value for key, value in changes.items()}
    return build_profile({key: value for key, value in values.items() if value is not None}, 20, platform_machine)
