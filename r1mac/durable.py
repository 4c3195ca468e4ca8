"""Small files that are on the disk whole or not at all, however the program or the computer ends.

macOS's fsync leaves out what the drive itself has not written yet; F_FULLFSYNC does not, and takes all earlier
writes along. So weights are synced plainly, and the small file that makes them a model comes last, through here.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in the file *path*; an empty one where the file is missing, damaged or something else."""
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    import json

    try:
        data = json.loads(text)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return {}
    return data if isinstance(data, dict) else {}


def write_whole(path: Path, text: str, *, mode: int | None = None) -> None:
    """Give the file *path* the contents *text*, in one step and for good; missing folders are made.

    A link keeps pointing to its file, and a file keeps its permissions unless *mode* says what they are to be. Of two
    processes that write at once one is the last, and neither's text is mixed with the other's.

    Raises:
        OSError: that is not possible; the file is as it was.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = _new_name(path)
    descriptor = _opened_alone(new)
    try:
        try:
            if mode is not None:
                os.fchmod(descriptor, mode)
            with open(descriptor, "w", encoding="utf-8", newline="", closefd=False) as file:
                file.write(text)
            to_disk(descriptor)
            if mode is None:
                with contextlib.suppress(FileNotFoundError):
                    os.fchmod(descriptor, path.stat().st_mode & 0o777)
            new.replace(path)
        except OSError:
            new.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)
    folder_to_disk(path.parent)


def remove(path: Path) -> None:
    """Remove the file *path*, if it is there, and what a crash may have left beside it.

    Raises:
        OSError: that is not possible.
    """
    path = path.resolve()
    path.unlink(missing_ok=True)
    _new_name(path).unlink(missing_ok=True)
    if path.parent.is_dir():
        folder_to_disk(path.parent)


def to_disk(descriptor: int) -> None:
    """Bring an open file, or folder, past the drive's own cache.

    Raises:
        OSError: the disk did not take it.
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with contextlib.suppress(OSError):  # a network volume has no such cache to ask
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def folder_to_disk(folder: Path) -> None:
    """Bring the names in *folder* to the disk, so that a power cut does not undo a rename.

    Raises:
        OSError: the disk did not take it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        to_disk(descriptor)
    finally:
        os.close(descriptor)


def _new_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _opened_alone(path: Path) -> int:
    """Open *path* for writing, empty, when no other process writes there."""
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):  # a network volume without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        # Whoever held the lock has given the file its name meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                os.ftruncate(descriptor, 0)
                return descriptor
        os.close(descriptor)
