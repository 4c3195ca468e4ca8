"""What a computer says of its state at one moment. A field of None is one that it did not tell."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Pressure = Literal["normal", "warn", "critical"]
PowerMode = Literal["low", "automatic", "high"]
PowerSource = Literal["mains", "battery"]
Thermal = Literal["nominal", "moderate", "heavy", "trapping", "sleeping"]

# The kernel's start may move by this much when the clock is set; no computer starts again within it.
_CLOCK_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryState:
    """How short memory is. Cheap enough to be asked between two tokens.

    Attributes:
        pressure: the kernel's own verdict; free memory alone says nothing on a Mac.
        swap_used_bytes: memory that lies on disk.
        swap_total_bytes: what the system has set aside on disk for it.
    """

    pressure: Pressure | None = None
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """Which start of the computer this is.

    Attributes:
        session: the kernel's own name for it.
        started_at_s: seconds since 1970.
    """

    session: str | None = None
    started_at_s: int | None = None

    def is_same_as(self, other: "Boot") -> bool:
        """Tell whether both are one start of the computer; what is unknown counts as the same."""
        if self.session and other.session:
            return self.session == other.session
        if self.started_at_s is None or other.started_at_s is None:
            return True
        return abs(self.started_at_s - other.started_at_s) <= _CLOCK_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """The state of a computer.

    Attributes:
        model: Apple's name for the computer, such as ``"Mac16,5"``.
        translated: whether this Python was built for Intel and runs under Rosetta.
        wired_bytes: memory that cannot be moved to disk: the kernel's, and what the GPU holds.
        compressed_bytes: memory that holds compressed pages.
        thermal: how far the system has slowed down to cool.
    """

    memory: MemoryState = field(default_factory=MemoryState)
    model: str | None = None
    translated: bool | None = None
    wired_bytes: int | None = None
    compressed_bytes: int | None = None
    power_source: PowerSource | None = None
    power_mode: PowerMode | None = None
    thermal: Thermal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A Thunderbolt port.

    Attributes:
        name: the number of its receptacle.
        gbit_per_s: what it can do while nothing is connected, else what the connection runs at.
        peer: the computer at the other end; None for no cable and for anything that is no computer.
    """

    name: str
    gbit_per_s: int | None
    peer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thunderbolt:
    """The Thunderbolt ports, and whether memory can be shared over them (RDMA, macOS 26.2, Thunderbolt 5).

    Attributes:
        ports: by receptacle.
        rdma: None where this macOS knows nothing of it.
        rdma_devices: such as ``"rdma_en2"``; empty also where RDMA is enabled and no port can do it.
    """

    ports: tuple[Port, ...] = ()
    rdma: Literal["enabled", "disabled"] | None = None
    rdma_devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The volume that a path lies on.

    Attributes:
        kind: where it is.
        file_system: as the system calls it, such as ``"APFS"``.
        connection: such as ``"Apple Fabric"`` or ``"USB"``.
    """

    kind: Literal["internal", "external", "network"] | None = None
    file_system: str | None = None
    connection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panic:
    """A crash of the whole computer.

    Attributes:
        path: its report.
        at_s: seconds since 1970.
        reason: the first line of what the kernel said.
        cause: ``"gpu"`` is the GPU driver's memory accounting, ``"starved"`` a system that got no
            memory or time for a minute and a half.
        task: the program that ran, such as ``"python3.12"``.
        session: which start of the computer it ended.
    """

    path: Path
    at_s: float
    reason: str
    cause: Literal["gpu", "starved", "other"]
    task: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupSetting:
    """A line in a system file that means to set a key of the GPU's memory whenever the computer starts.

    Attributes:
        path: a launchd plist, or /etc/sysctl.conf, which macOS does not read.
        key: such as ``"iogpu.wired_limit_mb"``.
        value: what the key is to become.
    """

    path: Path
    key: str
    value: int
