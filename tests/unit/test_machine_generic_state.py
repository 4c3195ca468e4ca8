"""The state of a computer that is no Mac, from Linux's own files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1mac.machine.generic import GenericMachine
from r1mac.machine.generic_readings import parse_mounts, parse_swap
from r1mac.machine.readings import Boot, Disk, MemoryState, Readings
from r1mac.units import KIB

MEMINFO = "MemTotal:       65536000 kB\nSwapCached:            0 kB\nSwapTotal:       8388604 kB\nSwapFree:        8000000 kB\n"
MOUNTS = """\
overlay / overlay rw,relatime 0 0
proc /proc proc rw 0 0
/dev/nvme0n1p2 /home ext4 rw 0 0
nas:/export/models /home/me/models nfs4 rw,vers=4.2 0 0
//nas/share /mnt/my\\040share cifs rw 0 0
me@host:/ /mnt/ssh fuse.sshfs rw 0 0
/dev/sdb1 /mnt/ssh/covered ext4 rw 0 0
nonsense
"""


def linux(root: Path, **files: str) -> GenericMachine:
    """Build a computer whose files below /proc are *files*; ``__`` is a folder's slash."""
    for name, text in files.items():
        path = root / "proc" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return GenericMachine(root=root)


def test_state_of_a_linux_computer(tmp_path):
    """Swap is told; pressure is left unknown, since Linux has no verdict of a Mac's kind."""
    machine = linux(tmp_path, meminfo=MEMINFO)

    assert machine.memory_state() == MemoryState(swap_used_bytes=388_604 * KIB, swap_total_bytes=8_388_604 * KIB)
    assert machine.readings() == Readings(memory=machine.memory_state())


def test_start_of_a_linux_computer(tmp_path):
    """The kernel names each start and tells its time."""
    machine = linux(
        tmp_path,
        stat="cpu  1 2 3\nbtime 1762000000\nprocesses 5\n",
        sys__kernel__random__boot_id="0a6d1c1e-6b1f-4c7c-9f0e-1b8f3f6b2f11\n",
    )

    assert machine.boot() == Boot(session="0A6D1C1E-6B1F-4C7C-9F0E-1B8F3F6B2F11", started_at_s=1_762_000_000)


def test_a_computer_that_tells_nothing(tmp_path):
    """What is not there is unknown, and nothing is claimed of a Mac's things."""
    machine = GenericMachine(root=tmp_path)

    assert machine.readings() == Readings()
    assert machine.boot() == Boot()
    assert machine.disk(tmp_path) == Disk()
    assert (machine.thunderbolt(), machine.panics(since_s=0), machine.startup_settings()) == (None, (), ())


@pytest.mark.parametrize(
    ("path", "kind", "file_system"),
    [
        ("/home/me", None, "ext4"),
        ("/home/me/models", "network", "nfs4"),
        ("/home/me/models/r1", "network", "nfs4"),
        ("/home/me/models2", None, "ext4"),
        ("/mnt/my share/x", "network", "cifs"),
        ("/mnt/ssh", "network", "fuse.sshfs"),
        ("/mnt/ssh/covered/x", None, "ext4"),
        ("/opt", None, "overlay"),
    ],
)
def test_the_nearest_volume_counts(path, kind, file_system):
    """A path lies on the volume that is mounted nearest above it, spaces in its name included."""
    disk = parse_mounts(MOUNTS, Path(path))

    assert (disk.kind, disk.file_system) == (kind, file_system)


def test_this_computer_has_a_state(tmp_path):
    """The real files of whatever computer runs the tests are understood."""
    machine = GenericMachine()

    assert machine.boot().is_same_as(machine.boot())
    assert machine.disk(tmp_path / "not yet").kind in {None, "network"}


@given(st.text())
def test_parsers_survive_any_text(text):
    """No content of a system's file stops r1mac."""
    swap = parse_swap(text)
    disk = parse_mounts(text, Path("/home"))

    assert swap.swap_used_bytes is None or swap.swap_used_bytes >= 0
    assert disk.kind in {None, "network"}
