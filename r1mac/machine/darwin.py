"""macOS: what ``sysctl``, ``ioreg`` and ``vm_stat`` say, and what it means.

Running a command and understanding its text are two functions, so all but the first is tested
on any computer with text recorded on real Macs (tests/machines).
"""

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from r1mac.errors import UnsupportedMachine
from r1mac.machine.base import WIRED_LIMIT_KEY, HardwareProfile, Machine
from r1mac.machine.chips import find_chip
from r1mac.machine.command import Run, run_command
from r1mac.machine.darwin_files import read_panics, read_startup_settings
from r1mac.machine.darwin_profiler import read_disk, read_thunderbolt
from r1mac.machine.darwin_readings import (
    VM_STAT,
    is_translated,
    parse_page_bytes,
    parse_sysctl,
    read_boot,
    read_memory_state,
    read_readings,
    read_thermal,
)
from r1mac.machine.disk import existing_parent, free_disk_bytes
from r1mac.machine.readings import Boot, Disk, MemoryState, Panic, Readings, StartupSetting, Thermal, Thunderbolt
from r1mac.units import GIB, MIB, format_memory

if TYPE_CHECKING:
    from r1mac.machine.launch_agent import LaunchAgent
    from r1mac.machine.wired_limit import WiredLimit

logger = logging.getLogger(__name__)

SYSCTL = (
    "/usr/sbin/sysctl",
    "hw.memsize",
    "hw.model",
    "machdep.cpu.brand_string",
    "hw.optional.arm64",
    "sysctl.proc_translated",
    "kern.osproductversion",
    WIRED_LIMIT_KEY,
)
# -w 0: no line is cut. Class matching takes subclasses in, such as AGXAcceleratorG16G.
IOREG = ("/usr/sbin/ioreg", "-r", "-d", "1", "-w", "0", "-c", "AGXAccelerator")

# What macOS needs in every case. Macs that kept 2.4 and 3 GiB were reported to panic, ones with 6 to work.
LEAST_FOR_MACOS_BYTES = 4 * GIB
RESET_WIRED_LIMIT = f"sudo sysctl {WIRED_LIMIT_KEY}=0"

_FIRST_MACOS = 14  # MLX's floor, and the first with iogpu.wired_limit_mb
_NEW_FRACTIONS_MACOS = 26
_GPU_PAGE_BYTES = 16384

# Sizes of memory, in GiB, whose default limit was published as the output of a real Mac. A number that
# somebody reported without showing it does not count, such as 144 GB of 192 on macOS 15.
_PROVEN_GIB_MACOS_15 = frozenset({16, 24, 36, 64, 128, 256, 512})
_PROVEN_GIB_MACOS_26 = frozenset({8, 16, 24, 32, 36, 48, 64, 96, 128, 512})


class DarwinMachine(Machine):
    """This Mac. It keeps no fact: the wired limit may change between two questions."""

    def __init__(
        self,
        *,
        run: Run = run_command,
        run_as_admin: Run | None = None,
        platform_machine: str | None = None,
        root: Path = Path("/"),
        user_id: int | None = None,
    ) -> None:
        self._run = run
        self._user_id = os.getuid() if user_id is None else user_id
        self._run_as_admin = run_as_admin
        self._platform_machine = platform_machine or os.uname().machine
        self._root = root
        self._has_warned = False

    def profile(self) -> HardwareProfile:
        """Return the facts of this Mac; warn, once, if its wired limit leaves macOS too little.

        Raises:
            UnsupportedMachine: MLX cannot run here (Intel, Rosetta, macOS before 14).
        """
        # sysctl exits with 1 when one key is missing, and still prints the others.
        values = parse_sysctl(self._run(SYSCTL).stdout)
        gpu_core_count = parse_gpu_core_count(self._run(IOREG).stdout)
        profile = build_profile(values, gpu_core_count, self._platform_machine)
        if starves_macos(profile) and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s lets the GPU hold %s of %s, and with less than 4 GiB for macOS this Mac may freeze: `%s` brings "
                "macOS's own limit back",
                WIRED_LIMIT_KEY,
                format_memory(profile.wired_limit_bytes),
                format_memory(profile.memory_bytes),
                RESET_WIRED_LIMIT,
            )
        return profile

    def hush(self) -> None:
        """Do not warn of the wired limit."""
        self._has_warned = True

    def free_disk_bytes(self, path: Path) -> int:
        """Return the room left on the disk that holds *path* or its nearest existing parent."""
        return free_disk_bytes(path)

    def available_memory_bytes(self) -> int:
        """Return the memory that is neither used by programs nor held by the kernel, as Activity Monitor counts."""
        memory_bytes = _integer(parse_sysctl(self._run(SYSCTL).stdout), "hw.memsize")
        used = used_bytes(parse_page_bytes(self._run(VM_STAT).stdout))
        if memory_bytes is None or used is None:
            import psutil

            return int(psutil.virtual_memory().available)
        return max(0, memory_bytes - used)

    def readings(self) -> Readings:
        """Return the state of this Mac: five commands of a few milliseconds."""
        return read_readings(self._run, platform_machine=self._platform_machine)

    def memory_state(self) -> MemoryState:
        """Return how short memory is: one sysctl."""
        return read_memory_state(self._run)

    def thermal(self) -> Thermal | None:
        """Return how far macOS has slowed down to cool: one notifyutil, about 11 ms."""
        return read_thermal(self._run)

    def boot(self) -> Boot:
        """Return which start of this Mac it is: one sysctl."""
        return read_boot(self._run)

    def thunderbolt(self) -> Thunderbolt:
        """Return the Thunderbolt ports and whether RDMA is on; takes a third of a second."""
        return read_thunderbolt(self._run)

    def disk(self, path: Path) -> Disk:
        """Return the kind of the volume of *path*, or of its nearest existing parent; takes a third of a second."""
        return read_disk(self._run, existing_parent(path))

    def panics(self, *, since_s: float) -> tuple[Panic, ...] | None:
        """Return the panics whose report was written at or after *since_s*, the latest first."""
        return read_panics(self._root, since_s=since_s)

    def startup_settings(self) -> tuple[StartupSetting, ...]:
        """Return what would set the GPU's memory when this Mac starts."""
        return read_startup_settings(self._root)

    def wired_limit(self) -> "WiredLimit":
        """Return the limit of what the GPU may hold, to read and to set."""
        from r1mac.machine.admin import run_as_admin
        from r1mac.machine.wired_limit import WiredLimit

        return WiredLimit(run=self._run, run_as_admin=self._run_as_admin or run_as_admin, root=self._root)

    def launch_agent(self) -> "LaunchAgent":
        """Return what starts a program at each login."""
        from r1mac.machine.launch_agent import LaunchAgent

        return LaunchAgent(run=self._run, home=Path.home(), user_id=self._user_id)


def parse_gpu_core_count(text: str) -> int | None:
    """Return the number of GPU cores in *text*, ioreg's answer to ``IOREG``; None where it does not say."""
    match = re.search(r'"gpu-core-count"\s*=\s*([0-9]{1,4})\b', text)
    return int(match[1]) or None if match else None


def used_bytes(page_bytes: Mapping[str, int]) -> int | None:
    """Return the used memory in bytes from vm_stat's counts, or None where they lack what the sum needs.

    Caches of files and purgeable memory count as free: the kernel gives them up without writing.
    """
    if not {"Pages active", "Pages wired down"} <= page_bytes.keys():
        return None
    return max(0, sum(sign * page_bytes.get(key, 0) for key, sign in _USED_TERMS.items()))


_USED_TERMS = {
    "Pages active": 1,
    "Pages inactive": 1,
    "Pages speculative": 1,
    "Pages wired down": 1,
    "Pages occupied by compressor": 1,
    "Pages purgeable": -1,
    "File-backed pages": -1,
}


def build_profile(
    sysctl_values: Mapping[str, str], gpu_core_count: int | None, platform_machine: str
) -> HardwareProfile:
    """Return the facts of a Mac from what its commands said.

    Args:
        sysctl_values: what parse_sysctl returned; every key but ``hw.memsize`` may be missing.
        gpu_core_count: what parse_gpu_core_count returned.
        platform_machine: what this Python was built for, ``"arm64"`` or ``"x86_64"``.

    Raises:
        UnsupportedMachine: MLX cannot run here (Intel, Rosetta, macOS before 14), or the memory is unknown.
    """
    macos = _parse_version(sysctl_values.get("kern.osproductversion", ""))
    _check_processor(sysctl_values, platform_machine)
    _check_macos(macos)
    memory_bytes = _integer(sysctl_values, "hw.memsize")
    if not memory_bytes:
        raise UnsupportedMachine(
            "macOS did not tell how much memory this Mac has",
            hint="run `/usr/sbin/sysctl hw.memsize` in Terminal; if that works, r1mac was started in a sandbox "
            "that forbids it",
        )
    chip = sysctl_values.get("machdep.cpu.brand_string") or "Apple silicon"
    virtual = chip.endswith("(Virtual)") or sysctl_values.get("hw.model", "").startswith("VirtualMac")
    facts = find_chip(chip, gpu_core_count, memory_bytes)
    wired_limit_bytes, source = _wired_limit(sysctl_values, memory_bytes, macos, virtual=virtual)
    return HardwareProfile(
        chip=chip,
        system="macos",
        macos=macos,
        gpu_core_count=gpu_core_count,
        memory_bytes=memory_bytes,
        wired_limit_bytes=wired_limit_bytes,
        wired_limit_source=source,
        memory_bandwidth_bytes_per_s=facts.memory_bandwidth_bytes_per_s if facts else None,
        virtual=virtual,
    )


def default_wired_limit_bytes(memory_bytes: int, macos_major: int) -> int:
    """Return what macOS lets the GPU hold while ``iogpu.wired_limit_mb`` is 0.

    Metal alone knows it for certain (``recommendedMaxWorkingSetSize``); this formula equals what was
    published of real Macs. default_wired_limit_source says where it was not checked.
    """
    if memory_bytes >= 256 * GIB:
        return memory_bytes - 48 * GIB
    numerator, denominator = _default_fraction(memory_bytes, macos_major)
    return -(-memory_bytes * numerator // (denominator * _GPU_PAGE_BYTES)) * _GPU_PAGE_BYTES


def starves_macos(hardware: HardwareProfile) -> bool:
    """Tell whether a Mac's limit is set to more than it can bear; macOS's own may be that much on the smallest."""
    bearable_bytes = hardware.memory_bytes - LEAST_FOR_MACOS_BYTES
    default_bytes = default_wired_limit_bytes(hardware.memory_bytes, (hardware.macos or (_FIRST_MACOS,))[0])
    return hardware.wired_limit_source == "override" and hardware.wired_limit_bytes > max(bearable_bytes, default_bytes)


def default_wired_limit_source(memory_bytes: int, macos_major: int) -> Literal["default", "estimated"]:
    """Return ``"default"`` where a published capture proves the formula for this memory and macOS."""
    if macos_major < _NEW_FRACTIONS_MACOS:
        proven_gib = _PROVEN_GIB_MACOS_15
    else:
        proven_gib = _PROVEN_GIB_MACOS_26 if macos_major == _NEW_FRACTIONS_MACOS else frozenset()
    gib, rest = divmod(memory_bytes, GIB)
    return "default" if rest == 0 and gib in proven_gib else "estimated"


def _default_fraction(memory_bytes: int, macos_major: int) -> tuple[int, int]:
    if macos_major < _NEW_FRACTIONS_MACOS:
        return (2, 3) if memory_bytes < 36 * GIB else (3, 4)
    steps = ((8, (2, 3)), (24, (74, 100)), (48, (78, 100)), (96, (81, 100)))
    return next((fraction for gib, fraction in steps if memory_bytes <= gib * GIB), (84, 100))


def _wired_limit(
    values: Mapping[str, str], memory_bytes: int, macos: tuple[int, ...] | None, *, virtual: bool
) -> tuple[int, Literal["override", "default", "estimated"]]:
    override_mib = _integer(values, WIRED_LIMIT_KEY)
    if override_mib:
        return override_mib * MIB, "override"  # Metal passes it on as it is, even above the memory
    if macos is None:  # the older fractions are the lower ones
        return default_wired_limit_bytes(memory_bytes, _FIRST_MACOS), "estimated"
    source = default_wired_limit_source(memory_bytes, macos[0])
    # A virtual Mac has another GPU driver, and no capture of one shows its limit.
    return default_wired_limit_bytes(memory_bytes, macos[0]), "estimated" if virtual else source


def _check_processor(values: Mapping[str, str], platform_machine: str) -> None:
    chip = values.get("machdep.cpu.brand_string", "")
    if is_translated(values, platform_machine):
        raise UnsupportedMachine(
            "this Python is built for Intel (x86_64) and runs under Rosetta; MLX needs one built for Apple silicon "
            "(arm64)",
            hint="install r1mac with an arm64 Python, such as the one from https://www.python.org/downloads/macos/, in "
            "a Terminal that does not itself run under Rosetta (`uname -m` must print arm64)",
        )
    if platform_machine == "x86_64" or chip.startswith("Intel"):
        raise UnsupportedMachine(
            f"this Mac has an Intel processor ({chip or platform_machine}); MLX needs Apple silicon",
            hint="use a Mac with an M1 or a later chip",
        )


def _check_macos(macos: tuple[int, ...] | None) -> None:
    if macos is not None and macos[0] < _FIRST_MACOS:
        raise UnsupportedMachine(
            f"this Mac runs macOS {'.'.join(map(str, macos))}; MLX needs macOS {_FIRST_MACOS} or later",
            hint="update macOS in System Settings > General > Software Update; from macOS 15 on, MLX can also keep "
            "a large model from being paged out",
        )


def _parse_version(text: str) -> tuple[int, ...] | None:
    match = re.match(r"[0-9]{1,4}(?:\.[0-9]{1,4})*", text)
    return tuple(int(number) for number in match[0].split(".")) if match else None


def _integer(values: Mapping[str, str], key: str) -> int | None:
    """Return a count, or None where the key is missing or its value is none."""
    text = values.get(key, "")
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
