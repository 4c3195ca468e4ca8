"""What r1mac knows of a computer, and the three verbs it has for one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


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

    def free_disk_bytes(self, path: Path) -> int:
        """Return the room left on the disk that holds *path* or its nearest existing parent."""
        ...

    def available_memory_bytes(self) -> int:
        """Return the memory that could be used right now without pushing other programs out."""
        ...
