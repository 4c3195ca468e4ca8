"""Which r1mac processes hold this computer's memory: each tells the others in a file that it keeps locked.

All users of the computer share the folder, so what stands there is somebody's word and no more. A folder that
cannot be used stops no run.
"""

import contextlib
import fcntl
import json
import logging
import math
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mac import paths
from r1mac.errors import DoesNotFit
from r1mac.machine.process_records import SUFFIX, ProcessRecord, read_record
from r1mac.units import format_memory

logger = logging.getLogger(__name__)

_MAX_TITLE_CHARS = 120
_MAX_PID = 2**31 - 1
_FOLDER_MODE, _LOCK_MODE = 0o1777, 0o666  # like /tmp, where nobody deletes another's file
# Whoever has the lock needs it for milliseconds.
_LOCK_WAIT_SECONDS = 3.0
_LOCK_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One running r1mac process with a model.

    Attributes:
        pid: its process.
        user_id: whose it is.
        title: the model, for a person; printable and not long.
        planned_bytes: what its plan says that it needs.
        wired_limit_bytes: the machine's limit when it started, which it keeps until it ends.
        started_at_s: seconds since 1970.
    """

    pid: int
    user_id: int
    title: str
    planned_bytes: int
    wired_limit_bytes: int
    started_at_s: float

    @property
    def is_own(self) -> bool:
        """Whether it is this user's to end."""
        return self.user_id == os.getuid()


def holders(folder: Path | None = None) -> tuple[Holder, ...]:
    """Return the processes that hold a model on this computer now, the oldest first."""
    return _holders(folder or paths.occupancy_dir())


def _holders(folder: Path, *, beside: Path | None = None) -> tuple[Holder, ...]:
    """Return who holds a model, but for the record *beside* which others are looked for."""
    if folder.is_symlink():  # another user may have laid it over a folder of this one's
        return ()
    records = (path for path in folder.glob(f"*{SUFFIX}") if path != beside)
    found = [holder for path in records if (holder := _living(path)) is not None]
    return tuple(sorted(found, key=lambda holder: holder.started_at_s))


def held_by(others: tuple[Holder, ...]) -> str:
    """Return who holds how much, such as ``"40.0 GiB for R1 70B (process 4711)"``."""
    return ", ".join(
        f"{format_memory(other.planned_bytes)} for {other.title} (process {other.pid})" for other in others
    )


class Occupied:
    """What this process holds of the computer's memory for one model."""

    def __init__(self, title: str, folder: Path) -> None:
        self._title = title
        self._folder = folder
        self._record = ProcessRecord(folder, mode=0o644, lasting=False)

    def hold(
        self,
        *,
        planned_bytes: int,
        budget_bytes: int,
        wired_limit_bytes: int,
        force: bool = False,
        on_others: Callable[[tuple[Holder, ...]], None] | None = None,
    ) -> None:
        """Hold *planned_bytes*, in place of what was held before; as ``occupy``.

        Raises:
            DoesNotFit: with what others hold it would be too much; what was held before still is.
        """
        with _one_at_a_time(self._folder) as shared:
            others = _holders(self._folder, beside=self._record.path)
            if others and sum(other.planned_bytes for other in others) + planned_bytes > budget_bytes:
                if not force:
                    raise _no_room(self._title, planned_bytes, budget_bytes, others)
                if on_others is not None:
                    on_others(others)
            content = {
                "pid": os.getpid(),
                "title": _plain(self._title),
                "planned_bytes": planned_bytes,
                "wired_limit_bytes": wired_limit_bytes,
                "started_at_s": time.time(),
            }
            if shared:
                _tell(self._record, content)

    def end(self) -> None:
        """Hold nothing any more."""
        self._record.remove()


@contextlib.contextmanager
def occupy(
    title: str,
    *,
    planned_bytes: int,
    budget_bytes: int,
    wired_limit_bytes: int,
    force: bool = False,
    on_others: Callable[[tuple[Holder, ...]], None] | None = None,
    folder: Path | None = None,
) -> Iterator[Occupied]:
    """Hold *planned_bytes* of this computer's memory until the block ends.

    Args:
        title: the model, for a person.
        planned_bytes: what it needs.
        budget_bytes: what all together may use.
        wired_limit_bytes: the machine's limit now.
        force: go on where it is too much.
        on_others: called with the other processes where *force* goes past them.
        folder: where the processes tell each other.

    Raises:
        DoesNotFit: with what other r1mac processes hold it would be more than *budget_bytes*; *force* goes on.
    """
    occupied = Occupied(title, folder or paths.occupancy_dir())
    occupied.hold(
        planned_bytes=planned_bytes,
        budget_bytes=budget_bytes,
        wired_limit_bytes=wired_limit_bytes,
        force=force,
        on_others=on_others,
    )
    try:
        yield occupied
    finally:
        occupied.end()


def _tell(record: ProcessRecord, content: dict[str, Any]) -> None:
    try:
        record.write(json.dumps(content).encode())
    except OSError as error:
        logger.warning("other r1mac processes are not told of this one: %s", error)


def _no_room(title: str, planned_bytes: int, budget_bytes: int, others: tuple[Holder, ...]) -> DoesNotFit:
    end = (
        f"stop that one first (`kill {others[0].pid}` lets it end in order)"
        if others[0].is_own
        else "another user of this computer runs it and would have to end it first"
    )
    return DoesNotFit(
        f"{title} needs {format_memory(planned_bytes)} of {format_memory(budget_bytes)}, and r1mac already holds "
        f"{held_by(others)}",
        hint=f"{end}, or go on knowingly with --force",
    )


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[bool]:
    """Keep two processes from both seeing room for one, and yield whether the folder can be used for that."""
    descriptor, shared = None, False
    try:
        _make_shared(folder)
        descriptor = _open_lock(folder / "lock")
        shared = True
        if not _locked(descriptor):
            logger.warning("another process has kept %s locked for too long; going on without it", folder / "lock")
    except OSError as error:
        logger.warning("other r1mac processes and this one do not see each other: %s", error)
    try:
        yield shared
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _make_shared(folder: Path) -> None:
    """Make the folder for every user of this computer; it appears with its mode, whenever this process ends."""
    if not os.path.lexists(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
        new.mkdir()
        try:
            new.chmod(_FOLDER_MODE)
            new.rename(folder)
        except OSError:
            new.rmdir()
            if not folder.is_dir():  # else somebody made it at the same moment
                raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) != _FOLDER_MODE:
            os.fchmod(descriptor, _FOLDER_MODE)
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        # In a folder like /tmp, Linux lets nobody open another's file with O_CREAT.
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        descriptor = os.open(path, flags | os.O_CREAT, _LOCK_MODE)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, _LOCK_MODE)
    return descriptor


def _locked(descriptor: int) -> bool:
    """Wait a little for the lock, and tell whether it came."""
    deadline = time.monotonic() + _LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOCK_POLL_SECONDS)
        else:
            return True


def _living(path: Path) -> Holder | None:
    """Return the record in *path*, or None if its process has ended (then the file goes) or it is no record."""
    record = read_record(path)
    if record is None:
        return None
    holder = _parsed(record.content, record.user_id)
    # Nothing is deleted but what an r1mac wrote.
    if holder is not None and not record.living:
        with contextlib.suppress(OSError):  # another user's
            path.unlink()
        return None
    return holder if record.living else None


def _parsed(content: bytes, user_id: int) -> Holder | None:
    try:
        data: Any = json.loads(content)
        holder = Holder(
            pid=data["pid"],
            user_id=user_id,
            title=_plain(str(data["title"])),
            planned_bytes=data["planned_bytes"],
            wired_limit_bytes=data["wired_limit_bytes"],
            started_at_s=float(data["started_at_s"]),
        )
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return None
    sizes = (holder.planned_bytes, holder.wired_limit_bytes)
    sound = type(holder.pid) is int and all(type(size) is int and size >= 0 for size in sizes)
    # kill takes 1 and what is below it for the system, or for all that one has.
    return holder if sound and 1 < holder.pid <= _MAX_PID and math.isfinite(holder.started_at_s) else None


def _plain(title: str) -> str:
    """Return *title* in one short line that steers no terminal."""
    printable = "".join(char if char.isprintable() else " " for char in title)
    short = len(printable) <= _MAX_TITLE_CHARS
    return printable if short else f"{printable[: _MAX_TITLE_CHARS - 1]}…"
