"""Which r1mac processes hold this computer's memory: each tells the others in a file that it keeps locked.

The kernel drops the lock however a process ends, so what is left of a killed one is known to be left.
"""

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from r1mac import paths
from r1mac.errors import DoesNotFit
from r1mac.units import format_memory

_MAX_RECORD_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """One running r1mac process with a model.

    Attributes:
        pid: its process.
        title: the model, for a person.
        planned_bytes: what its plan says that it needs.
        wired_limit_bytes: the machine's limit when it started, which it keeps until it ends.
        started_at_s: seconds since 1970.
    """

    pid: int
    title: str
    planned_bytes: int
    wired_limit_bytes: int
    started_at_s: float


def holders(folder: Path | None = None) -> tuple[Holder, ...]:
    """Return the processes that hold a model on this computer now, the oldest first."""
    folder = folder or paths.occupancy_dir()
    found = [holder for path in folder.glob("*.json") if (holder := _living(path)) is not None]
    return tuple(sorted(found, key=lambda holder: holder.started_at_s))


@contextlib.contextmanager
def occupy(
    title: str,
    *,
    planned_bytes: int,
    budget_bytes: int,
    wired_limit_bytes: int,
    force: bool = False,
    folder: Path | None = None,
) -> Iterator[None]:
    """Hold *planned_bytes* of this computer's memory until the block ends.

    Raises:
        DoesNotFit: with what other r1mac processes hold it would be more than *budget_bytes*; *force* goes on.
    """
    folder = folder or paths.occupancy_dir()
    _make_shared(folder)
    with _one_at_a_time(folder):
        others = holders(folder)
        if not force:
            _require_room(title, planned_bytes, budget_bytes, others)
        holder = Holder(
            pid=os.getpid(),
            title=title,
            planned_bytes=planned_bytes,
            wired_limit_bytes=wired_limit_bytes,
            started_at_s=time.time(),
        )
        path, descriptor = _write(folder, holder)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _require_room(title: str, planned_bytes: int, budget_bytes: int, others: tuple[Holder, ...]) -> None:
    held = sum(other.planned_bytes for other in others)
    if not others or held + planned_bytes <= budget_bytes:
        return
    who = ", ".join(f"{format_memory(other.planned_bytes)} for {other.title} (process {other.pid})" for other in others)
    raise DoesNotFit(
        f"{title} needs {format_memory(planned_bytes)} of {format_memory(budget_bytes)}, and r1mac already holds {who}",
        hint=f"stop that one first (`kill {others[0].pid}` lets it end in order), or go on knowingly with --force",
    )


def _make_shared(folder: Path) -> None:
    """Make the folder for every user of this computer; like /tmp, nobody deletes another's file."""
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(PermissionError):  # somebody else made it at the same moment
            folder.chmod(0o1777)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Keep two processes from both seeing room for one."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(folder: Path, holder: Holder) -> tuple[Path, int]:
    """Write the record and return its path and the open, locked file."""
    # It gets its name when it is locked: a reader would take it for the record of a dead process.
    path = folder / f"{holder.pid}-{uuid.uuid4().hex[:8]}.json"
    unnamed = path.with_suffix(".new")
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, json.dumps(asdict(holder)).encode()[:_MAX_RECORD_BYTES])
    unnamed.rename(path)
    return path, descriptor


def _living(path: Path) -> Holder | None:
    """Return the record in *path*, or None if its process has ended (then the file goes) or it is no record."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _parsed(os.read(descriptor, _MAX_RECORD_BYTES))
    else:
        with contextlib.suppress(OSError):  # another user's
            path.unlink()
        return None
    finally:
        os.close(descriptor)


def _parsed(record: bytes) -> Holder | None:
    try:
        data = json.loads(record)
        return Holder(
            pid=int(data["pid"]),
            title=str(data["title"]),
            planned_bytes=int(data["planned_bytes"]),
            wired_limit_bytes=int(data["wired_limit_bytes"]),
            started_at_s=float(data["started_at_s"]),
        )
    except (ValueError, LookupError, TypeError):
        return None
