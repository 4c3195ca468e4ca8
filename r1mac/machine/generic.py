"""Any computer but a Mac: plans, conversions, tests and slow runs on the processor."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from r1mac.machine.base import HardwareProfile, Machine
from r1mac.machine.disk import existing_parent, free_disk_bytes
from r1mac.units import GIB, KIB

if TYPE_CHECKING:
    from r1mac.machine.readings import Boot, Disk, MemoryState, Panic, Readings, StartupSetting


class Memory(NamedTuple):
    """A computer's memory, all of it and what is free or can be freed at once."""

    total_bytes: int
    available_bytes: int


def read_memory() -> Memory:
    """Return the memory of a computer that has no /proc/meminfo."""
    import psutil

    memory = psutil.virtual_memory()
    return Memory(total_bytes=int(memory.total), available_bytes=int(memory.available))


class GenericMachine(Machine):
    """This computer. Files of the system are looked for below *root*; *memory* is asked where they are missing."""

    def __init__(self, *, root: Path = Path("/"), memory: Callable[[], Memory] = read_memory) -> None:
        self._root = root
        self._memory = memory

    def profile(self) -> HardwareProfile:
        """Return the facts of this computer, with a container's memory where that is less."""
        memory_bytes = self._container_memory().total_bytes
        return HardwareProfile(
            chip=self._chip(),
            system="other",
            macos=None,
            gpu_core_count=None,
            memory_bytes=memory_bytes,
            wired_limit_bytes=usable_memory_bytes(memory_bytes),
            wired_limit_source="memory",
            memory_bandwidth_bytes_per_s=None,
        )

    def hush(self) -> None:
        """Log nothing, as ever."""

    def free_disk_bytes(self, path: Path) -> int:
        """Return the room left on the disk that holds *path* or its nearest existing parent."""
        return free_disk_bytes(path)

    def available_memory_bytes(self) -> int:
        """Return the memory that could be used right now, in the container and in the computer around it."""
        return self._container_memory().available_bytes

    def readings(self) -> "Readings":
        """Return the state of this computer, of which swap is all that is asked for."""
        from r1mac.machine.readings import Readings

        return Readings(memory=self.memory_state())

    def memory_state(self) -> "MemoryState":
        """Return the use of swap; Linux has no verdict on pressure that compares with a Mac's."""
        from r1mac.machine.generic_readings import parse_swap

        return parse_swap(_read(self._root / "proc/meminfo"))

    def thermal(self) -> None:
        """Return nothing: the names of the levels are a Mac's."""

    def boot(self) -> "Boot":
        """Return which start of this computer it is."""
        from r1mac.machine.generic_readings import parse_boot

        return parse_boot(_read(self._root / "proc/sys/kernel/random/boot_id"), _read(self._root / "proc/stat"))

    def thunderbolt(self) -> None:
        """Return nothing: only Macs are joined by it."""

    def disk(self, path: Path) -> "Disk":
        """Return whether the volume of *path* is on a network."""
        from r1mac.machine.generic_readings import parse_mounts

        return parse_mounts(_read(self._root / "proc/self/mounts"), existing_parent(path))

    def panics(self, *, since_s: float) -> "tuple[Panic, ...]":  # noqa: ARG002
        """Return nothing: other computers leave no reports of theirs."""
        return ()

    def startup_settings(self) -> "tuple[StartupSetting, ...]":
        """Return nothing: the keys are a Mac's."""
        return ()

    def _container_memory(self) -> Memory:
        # What psutil reads on Linux, without the 40 ms of importing it (measured 2026-11, two cores of an EPYC).
        memory = parse_meminfo(_read(self._root / "proc/meminfo")) or self._memory()
        group = self._root / "sys/fs/cgroup"
        limit_bytes = parse_cgroup_bytes(_read(group / "memory.max"))
        if limit_bytes is None or limit_bytes >= memory.total_bytes:
            return memory
        held_bytes = parse_cgroup_bytes(_read(group / "memory.current")) or 0
        cache_bytes = parse_file_cache_bytes(_read(group / "memory.stat"))
        free_bytes = limit_bytes - max(0, held_bytes - cache_bytes)
        return Memory(total_bytes=limit_bytes, available_bytes=max(0, min(memory.available_bytes, free_bytes)))

    def _chip(self) -> str:
        match = re.search(r"^model name\s*:\s*(\S.*?)\s*$", _read(self._root / "proc/cpuinfo"), re.MULTILINE)
        if match:
            return match[1]
        import platform

        return platform.processor() or platform.machine() or "unknown processor"


def usable_memory_bytes(memory_bytes: int) -> int:
    """Return what programs can use of *memory_bytes*: all but 2 GiB or a tenth, and at least half."""
    return max(memory_bytes // 2, memory_bytes - max(2 * GIB, memory_bytes // 10))


def parse_meminfo(text: str) -> Memory | None:
    """Return the memory that Linux's /proc/meminfo tells, or None where *text* lacks a part of it."""
    kib = kib_values(text)
    if not kib.get("MemTotal") or "MemAvailable" not in kib:
        return None
    return Memory(total_bytes=kib["MemTotal"] * KIB, available_bytes=kib["MemAvailable"] * KIB)


def kib_values(text: str) -> dict[str, int]:
    """Return the lines of Linux's /proc/meminfo as numbers of KiB."""
    return {key: int(count) for key, count in re.findall(r"^(\w+):\s*([0-9]{1,15}) kB$", text, re.MULTILINE)}


def parse_cgroup_bytes(text: str) -> int | None:
    """Return the number in a file of cgroup v2, or None for ``max``, nothing and nonsense."""
    match = re.fullmatch(r"\s*([0-9]{1,19})\s*", text)
    return int(match[1]) or None if match else None


def parse_file_cache_bytes(text: str) -> int:
    """Return how much of a container's memory is cached files, from the text of its memory.stat.

    Reading a large model fills a container with them; they are given back when memory is needed.
    """
    counts = re.findall(r"^(?:in)?active_file ([0-9]{1,19})$", text, re.MULTILINE)
    return sum(int(count) for count in counts)


def _read(path: Path) -> str:
    """Return a small text file of the system, or nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
