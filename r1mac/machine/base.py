"""What r1mac knows of a computer, and the three verbs it has for one."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from r1mac.errors import UnsupportedMachine

if TYPE_CHECKING:
    # Seven generated classes, 15 ms of a start that reads nothing.
    from r1mac.machine.launch_agent import LaunchAgent
    from r1mac.machine.readings import Boot, Disk, MemoryState, Panic, Readings, StartupSetting, Thermal, Thunderbolt
    from r1mac.machine.wired_limit import WiredLimit

# macOS's own name of the limit, which it counts in MiB; 0 is macOS's own limit.
WIRED_LIMIT_KEY = "iogpu.wired_limit_mb"
_LIMIT_SOURCES = {
    "override": f"set by {WIRED_LIMIT_KEY}",
    "default": "macOS's default",
    "estimated": "macOS's default, estimated",
    "memory": "memory of this machine",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareProfile:
    """The facts of one computer that plans are made from.

    Attributes:
        chip: the processor's own name, such as ``"Apple M2 Ultra"``.
        system: ``"macos"`` or ``"other"``.
        macos: version as integers, such as ``(26, 1)``; None elsewhere.
        gpu_core_count: None where it is not known.
        memory_bytes: physical memory.
        wired_limit_bytes: most that the GPU may hold at once. On a Mac the kernel's limit (set or
            default); elsewhere the memory that programs can use.
        wired_limit_source: where that number comes from: the kernel's ``iogpu.wired_limit_mb``
            («override»), a formula that matches published captures («default»), the same formula
            where no capture proves it («estimated»), or plain memory («memory»).
        memory_bandwidth_bytes_per_s: None for a chip that is not in the table.
        virtual: True inside a virtual machine.
    """

    chip: str
    system: Literal["macos", "other"]
    macos: tuple[int, ...] | None
    gpu_core_count: int | None
    memory_bytes: int
    wired_limit_bytes: int
    wired_limit_source: Literal["override", "default", "estimated", "memory"]
    memory_bandwidth_bytes_per_s: int | None
    virtual: bool = False

    @property
    def wired_limit_origin(self) -> str:
        """Where the limit comes from, for a person."""
        return _LIMIT_SOURCES[self.wired_limit_source]

    @property
    def fused_attention(self) -> bool:
        """Whether attention runs without a score matrix in memory: Metal's kernels do, the CPU's do not."""
        return self.system == "macos"


class Machine(Protocol):
    """A computer. Implementations: ``darwin``, ``generic`` and ``fake``."""

    def profile(self) -> HardwareProfile:
        """Return the facts of this computer.

        Raises:
            UnsupportedMachine: a Mac that MLX cannot run on (Intel, Rosetta, macOS before 14).
        """
        ...

    def hush(self) -> None:
        """Log no warning about what the caller shows by itself."""
        ...

    def free_disk_bytes(self, path: Path) -> int:
        """Return the room left on the disk that holds *path* or its nearest existing parent."""
        ...

    def available_memory_bytes(self) -> int:
        """Return the memory that could be used right now without pushing other programs out."""
        ...

    def readings(self) -> "Readings":
        """Return the state of this computer; what it does not tell is None."""
        ...

    def memory_state(self) -> "MemoryState":
        """Return how short memory is, cheaply enough to be asked again and again."""
        ...

    def thermal(self) -> "Thermal | None":
        """Return how far the system has slowed down to cool, as cheaply."""
        ...

    def boot(self) -> "Boot":
        """Return which start of this computer it is."""
        ...

    def thunderbolt(self) -> "Thunderbolt | None":
        """Return the Thunderbolt ports, or None for a computer that is not asked for them; may be slow."""
        ...

    def disk(self, path: Path) -> "Disk":
        """Return the kind of the volume of *path*, or of its nearest existing parent; may be slow."""
        ...

    def panics(self, *, since_s: float) -> "tuple[Panic, ...] | None":
        """Return the crashes of this whole computer since then, the latest first; None if they may not be read.

        *since_s* is in seconds since 1970.
        """
        ...

    def startup_settings(self) -> "tuple[StartupSetting, ...]":
        """Return what would set the GPU's memory when this computer starts."""
        ...

    def wired_limit(self) -> "WiredLimit":
        """Return the limit of what the GPU may hold, to read and to set.

        Raises:
            UnsupportedMachine: this computer has none.
        """
        raise UnsupportedMachine(
            "only a Mac has a limit of what its GPU may hold", hint="`r1mac plan` shows what fits this computer"
        )

    def launch_agent(self) -> "LaunchAgent":
        """Return what starts a program at each login.

        Raises:
            UnsupportedMachine: this computer has no launchd.
        """
        raise UnsupportedMachine(
            "only a Mac has launchd, which starts a service at each login", hint="start `r1mac serve` by hand"
        )
