"""A record file that its process keeps locked while it lives.

The kernel drops the lock however a process ends, so an unlocked record is one of a process that is gone.
"""

import contextlib
import errno
import fcntl
import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path

from r1mac.durable import folder_to_disk, to_disk

SUFFIX = ".json"
# A path of 1,024 characters, twice, each of them escaped by JSON in six.
MAX_BYTES = 16_384
# A record may be replaced while it is opened; not again and again.
_TRIES = 5


class ProcessRecord:
    """A record of this process in *folder*.

    Args:
        folder: where it is; it must exist when the record is written.
        mode: who may read it.
        lasting: whether it is to be there after a power cut.
    """

    def __init__(self, folder: Path, *, mode: int, lasting: bool) -> None:
        self.path = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}{SUFFIX}"
        self._mode = mode
        self._lasting = lasting
        self._descriptor: int | None = None

    def write(self, content: bytes) -> None:
        """Give the record *content*, which takes the place of what it said before.

        Raises:
            OSError: the folder does not take it, or it is longer than MAX_BYTES.
        """
        if len(content) > MAX_BYTES:
            raise OSError(errno.EFBIG, f"a record of {len(content)} bytes is too long")
        # It gets its name when it is whole and locked: a reader would take it for that of a dead process.
        unnamed = self.path.with_suffix(".new")
        descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, self._mode)
        try:
            os.fchmod(descriptor, self._mode)  # whatever the umask takes away
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._lasting:
                to_disk(descriptor)
            unnamed.rename(self.path)
        except OSError:
            os.close(descriptor)
            unnamed.unlink(missing_ok=True)
            raise
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = descriptor
        if self._lasting:
            folder_to_disk(self.path.parent)

    def remove(self) -> None:
        """Take the record away; a folder that does not allow it keeps what is then that of a dead process."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRecord:
    """A record that some process wrote.

    Attributes:
        content: what it says.
        living: whether its process still lives.
        user_id: who owns the file.
    """

    content: bytes
    living: bool
    user_id: int


def read_record(path: Path) -> FoundRecord | None:
    """Return the record in *path*; None where there is none that can be read, or something else than a plain file."""
    for _ in range(_TRIES):
        try:
            # Opening a pipe would wait for its writer.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return None
            living = _is_locked(descriptor)
            # An unlocked file that is no longer the one of that name was replaced by its living process.
            if living or os.path.samestat(status, path.lstat()):
                content = os.read(descriptor, MAX_BYTES + 1)
                whole = len(content) <= MAX_BYTES
                return FoundRecord(content=content, living=living, user_id=status.st_uid) if whole else None
        except OSError:  # gone meanwhile
            return None
        finally:
            os.close(descriptor)
    return None


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
