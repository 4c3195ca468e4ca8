"""Fetch files of a Hub repository: room checked first, resumed after any stop, every byte verified."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mac.errors import FREE_SOME_SPACE, PUT_MODELS_ELSEWHERE, DiskFull, writing_to
from r1mac.hub.landing import Landing
from r1mac.hub.repository import RepoFile, RepoListing, fetch_config, list_files, select_files
from r1mac.hub.transfer import Stopped, Tally
from r1mac.units import format_size

__all__ = [
    "DownloadEvent",
    "DownloadProgress",
    "RepoFile",
    "RepoListing",
    "Retrying",
    "VerifyProgress",
    "fetch",
    "fetch_config",
    "list_files",
    "select_files",
]

_TICK_SECONDS = 0.2
_FILES_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadProgress:
    """Bytes of all wanted files that are on the disk, those of earlier runs included."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyProgress:
    """Bytes of all wanted files whose digest has been computed. Runs beside the download, a file behind."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """The file *name* will be asked for again in *wait_seconds*, because of *reason*."""

    name: str
    reason: str
    wait_seconds: float


DownloadEvent = DownloadProgress | VerifyProgress | Retrying


def fetch(
    listing: RepoListing, files: Sequence[RepoFile], into: Path, *, free_disk_bytes: Callable[[Path], int]
) -> Iterator[DownloadEvent]:
    """Bring *files* of *listing* into the folder *into*, and yield events about five times a second.

    When the generator ends, each file is there with the digest that the Hub gave. When it is
    closed or raises, what has arrived stays for the next call to go on with. Nothing is asked
    of the network before the disk has room for what is missing and one percent more.

    Raises:
        DiskFull: there is not enough room.
        NotWritable: *into* cannot be written.
        Offline: no request was answered.
        DownloadFailed: the connection was lost too often, or a file arrived damaged twice.
        AccessDenied: the Hub wants a login or an accepted licence.
    """
    with writing_to(into):
        into.mkdir(parents=True, exist_ok=True)
    job = _Job(listing, files, into)
    job.check_room(free_disk_bytes(into))
    yield from job.run()
    job.landing.tidy()


class _Job:
    """One download: a queue of files, a few threads that empty it, and a tally of what they have done."""

    def __init__(self, listing: RepoListing, files: Sequence[RepoFile], into: Path) -> None:
        self.listing = listing
        self.into = into
        self.total_bytes = sum(file.size_bytes for file in files)
        self._tally = Tally()
        self.landing = Landing(into, listing)
        self._todo: queue.SimpleQueue[RepoFile] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        # Files of an older revision would be taken for part of this one.
        self.landing.clear_all_but(files)
        for file in self.landing.take_stock(files, self._tally):
            self._todo.put(file)

    def check_room(self, free_bytes: int) -> None:
        """Raise DiskFull unless *free_bytes* hold what is missing and one percent more."""
        done_bytes, _, _ = self._tally.read()
        missing_bytes = self.total_bytes - done_bytes
        needed_bytes = missing_bytes + missing_bytes // 100
        if needed_bytes > free_bytes:
            raise DiskFull(
                f"{self.listing.repo} needs {format_size(needed_bytes)} more on the disk of {self.into.parent}, "
                f"which has {format_size(free_bytes)} free",
                hint=f"{FREE_SOME_SPACE}, {PUT_MODELS_ELSEWHERE}",
            )

    def run(self) -> Iterator[DownloadEvent]:
        """Yield events until every file is there."""
        # Daemons, since one that waits for a silent server must not keep the program from ending.
        count = min(_FILES_AT_ONCE, self._todo.qsize())
        workers = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        seen = (-1, -1)
        try:
            for worker in workers:
                worker.start()
            while count:
                seen = yield from self._news(seen)
                try:
                    error = self._ends.get(timeout=_TICK_SECONDS)
                except queue.Empty:
                    continue
                if error is not None:
                    raise error
                count -= 1
            yield from self._news(seen)
        finally:
            self._tally.stop.set()
            for worker in workers:
                worker.join(timeout=0.25)

    def _news(self, seen: tuple[int, int]) -> Generator[DownloadEvent, None, tuple[int, int]]:
        """Yield what has changed since *seen*, and return what has been seen now."""
        done_bytes, verified_bytes, retries = self._tally.read()
        for name, reason, wait_seconds in retries:
            yield Retrying(name=name, reason=reason, wait_seconds=wait_seconds)
        if done_bytes != seen[0]:
            yield DownloadProgress(done_bytes=done_bytes, total_bytes=self.total_bytes)
        if verified_bytes != seen[1]:
            yield VerifyProgress(done_bytes=verified_bytes, total_bytes=self.total_bytes)
        return done_bytes, verified_bytes

    def _work(self) -> None:
        try:
            while True:
                self.landing.obtain(self._todo.get_nowait(), self._tally)
        except (queue.Empty, Stopped):
            self._ends.put(None)
        except BaseException as error:  # noqa: BLE001 - a thread's top: the generator raises it again
            self._ends.put(error)
