"""What a computer that is no Mac says of its state. Parsers of Linux's files; pure functions of their text."""

import re
from pathlib import Path

from r1mac.machine.generic import kib_values
from r1mac.machine.readings import Boot, Disk, MemoryState
from r1mac.units import KIB

_NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "9p", "fuse.sshfs", "fuse.rclone"}


def parse_boot(boot_id: str, stat: str) -> Boot:
    """Return which start of the computer it is, from the texts of /proc/sys/kernel/random/boot_id and /proc/stat."""
    started = re.search(r"^btime ([0-9]{1,12})$", stat, re.MULTILINE)
    return Boot(session=boot_id.strip().upper() or None, started_at_s=int(started[1]) if started else None)


def parse_swap(text: str) -> MemoryState:
    """Return the use of swap that Linux's /proc/meminfo tells."""
    kib = kib_values(text)
    if not {"SwapTotal", "SwapFree"} <= kib.keys():
        return MemoryState()
    used_kib = max(0, kib["SwapTotal"] - kib["SwapFree"])
    return MemoryState(swap_used_bytes=used_kib * KIB, swap_total_bytes=kib["SwapTotal"] * KIB)


def parse_mounts(text: str, path: Path) -> Disk:
    """Return the volume of *path*, which exists and has no links in it, from Linux's /proc/self/mounts."""
    best: tuple[int, str, str] | None = None
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) < 3:  # noqa: PLR2004
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[1]))
        # A later line covers an earlier one at the same place.
        if path.is_relative_to(mount) and (best is None or len(mount.parts) >= best[0]):
            best = (len(mount.parts), words[0], words[2])
    if best is None:
        return Disk()
    _, device, file_system = best
    return Disk(
        kind="network" if file_system in _NETWORK_FILE_SYSTEMS else None, file_system=file_system, connection=device
    )
