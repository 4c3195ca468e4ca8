"""A computer made of numbers, for tests and demonstrations."""

from pathlib import Path

from r1mac.machine.base import HardwareProfile, Machine
from r1mac.machine.generic import usable_memory_bytes
from r1mac.machine.imagined import mac
from r1mac.machine.readings import Boot, Disk, MemoryState, Panic, Readings, StartupSetting, Thermal, Thunderbolt
from r1mac.units import GIB, TB


class FakeMachine(Machine):
    """A computer that answers with what it was made of."""

    def __init__(
        self,
        profile: HardwareProfile,
        *,
        free_disk_bytes: int = TB,
        available_memory_bytes: int | None = None,
        readings: Readings | None = None,
        boot: Boot | None = None,
        thunderbolt: Thunderbolt | None = None,
        disk: Disk | None = None,
        panics: tuple[Panic, ...] | None = (),
        startup_settings: tuple[StartupSetting, ...] = (),
    ) -> None:
        self._profile = profile
        self._free_disk_bytes = free_disk_bytes
        self._available_memory_bytes = available_memory_bytes
        self._readings = readings or Readings()
        self._boot = boot or Boot()
        self._thunderbolt = thunderbolt
        self._disk = disk or Disk()
        self._panics = panics
        self._startup_settings = startup_settings

    def profile(self) -> HardwareProfile:
        """Return the profile that it was made of."""
        return self._profile

    def hush(self) -> None:
        """Log nothing, as ever."""

    def free_disk_bytes(self, path: Path) -> int:  # noqa: ARG002
        """Return the same room for every path."""
        return self._free_disk_bytes

    def available_memory_bytes(self) -> int:
        """Return the available memory that it was made of; all memory if nothing was said."""
        return self._profile.memory_bytes if self._available_memory_bytes is None else self._available_memory_bytes

    def readings(self) -> Readings:
        """Return the state that it was made of."""
        return self._readings

    def memory_state(self) -> MemoryState:
        """Return the memory of that state."""
        return self._readings.memory

    def thermal(self) -> Thermal | None:
        """Return how hot it is in that state."""
        return self._readings.thermal

    def boot(self) -> Boot:
        """Return the start that it was made of."""
        return self._boot

    def thunderbolt(self) -> Thunderbolt | None:
        """Return the ports that it was made of."""
        return self._thunderbolt

    def disk(self, path: Path) -> Disk:  # noqa: ARG002
        """Return the same volume for every path."""
        return self._disk

    def panics(self, *, since_s: float) -> tuple[Panic, ...] | None:
        """Return those of its panics that are not older."""
        return None if self._panics is None else tuple(panic for panic in self._panics if panic.at_s >= since_s)

    def startup_settings(self) -> tuple[StartupSetting, ...]:
        """Return the settings that it was made of."""
        return self._startup_settings


def other(chip: str = "AMD EPYC", *, memory_gib: int) -> HardwareProfile:
    """Return the profile that a computer which is no Mac would have."""
    return HardwareProfile(
        chip=chip,
        system="other",
        macos=None,
        gpu_core_count=None,
        memory_bytes=memory_gib * GIB,
        wired_limit_bytes=usable_memory_bytes(memory_gib * GIB),
        wired_limit_source="memory",
        memory_bandwidth_bytes_per_s=None,
    )


# macOS 26 where the name does not say another.
M1_8 = mac("Apple M1", memory_gib=8, gpu_core_count=8)
M4_16 = mac("Apple M4", memory_gib=16, gpu_core_count=10)
M3_MAX_36 = mac("Apple M3 Max", memory_gib=36, gpu_core_count=30)
M3_MAX_36_MACOS15 = mac("Apple M3 Max", memory_gib=36, gpu_core_count=30, macos="15.7.7")
M4_PRO_48 = mac("Apple M4 Pro", memory_gib=48, gpu_core_count=20)
M5_PRO_64 = mac("Apple M5 Pro", memory_gib=64, gpu_core_count=20)
M2_MAX_96 = mac("Apple M2 Max", memory_gib=96, gpu_core_count=38)
M4_MAX_128 = mac("Apple M4 Max", memory_gib=128, gpu_core_count=40)
M2_ULTRA_192 = mac("Apple M2 Ultra", memory_gib=192, gpu_core_count=76)
M5_ULTRA_256 = mac("Apple M5 Ultra", memory_gib=256, gpu_core_count=80)
M3_ULTRA_512 = mac("Apple M3 Ultra", memory_gib=512, gpu_core_count=80)
M6_32_MACOS27 = mac("Apple M6", memory_gib=32, gpu_core_count=12, macos="27.0.1")
VIRTUAL_MAC_7 = mac("Apple M1 (Virtual)", memory_gib=7)
LINUX_64 = other(memory_gib=64)
