"""Fetch files of a Hub repository: room checked first, resumed after any stop, every byte verified.

The folder that is fetched into holds, until all is there:

* ``NAME``: a file that is whole and verified;
* ``.NAME.DIGEST.part``: the bytes so far of one that is not;
* ``.verified``: a line ``DIGEST NAME`` for each whole file, so that a second run need not read it again.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from r1mac.durable import folder_to_disk
from r1mac.errors import FREE_SOME_SPACE, PUT_MODELS_ELSEWHERE, DiskFull, DownloadFailed, writing_to
from r1mac.hub.remote import GO_ON_HINT
from r1mac.hub.repository import RepoFile, RepoListing, fetch_config, list_files, select_files
from r1mac.hub.transfer import Stopped, Tally, complete, digest_of
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
_JOURNAL = ".verified"


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
    job.tidy()


class _Job:
    """One download: a queue of files, a few threads that empty it, and a tally of what they have done."""

    def __init__(self, listing: RepoListing, files: Sequence[RepoFile], into: Path) -> None:
        assert all("/" not in file.name and not file.name.startswith(".") for file in files)
        self.listing = listing
        self.into = into
        self.total_bytes = sum(file.size_bytes for file in files)
        self._tally = Tally()
        self._todo: queue.SimpleQueue[RepoFile] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._journal_lock = threading.Lock()
        with writing_to(into):
            self._take_stock(files)

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

    def tidy(self) -> None:
        """Remove what only an unfinished download needs."""
        with writing_to(self.into):
            (self.into / _JOURNAL).unlink(missing_ok=True)
            folder_to_disk(self.into)

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

    def _take_stock(self, files: Sequence[RepoFile]) -> None:
        """Count what earlier runs left, drop what is of no use, and queue the rest."""
        journal = self.into / _JOURNAL
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
        verified = {line.partition(" ")[::2] for line in lines}
        parts = {self._part(file) for file in files}
        names = {file.name for file in files}
        # Files of an older revision would be taken for part of this one.
        old = {path for path in self.into.iterdir() if path.is_file() and path.name not in {*names, _JOURNAL}}
        for stale in old - parts:
            stale.unlink()
        for file in files:
            path, part = self.into / file.name, self._part(file)
            if path.is_file() and path.stat().st_size == file.size_bytes:
                if (file.digest, file.name) in verified:
                    self._tally.add(done_bytes=file.size_bytes, verified_bytes=file.size_bytes)
                    continue
                path.replace(part)
            path.unlink(missing_ok=True)
            if part.is_file() and part.stat().st_size > file.size_bytes:
                part.unlink()
            self._tally.add(done_bytes=part.stat().st_size if part.is_file() else 0)
            self._todo.put(file)

    def _work(self) -> None:
        try:
            while True:
                self._obtain(self._todo.get_nowait())
        except (queue.Empty, Stopped):
            self._ends.put(None)
        except BaseException as error:  # noqa: BLE001 - a thread's top: the generator raises it again
            self._ends.put(error)

    def _obtain(self, file: RepoFile) -> None:
        """Download and verify *file*; if its bytes are wrong, once more from the start."""
        part = self._part(file)
        found = ""
        for attempt in range(2):
            complete(part, file, repo=self.listing.repo, commit=self.listing.commit, tally=self._tally)
            found = digest_of(part, file, self._tally)
            if found == file.digest:
                with writing_to(self.into):
                    part.replace(self.into / file.name)
                    self._note(file)
                return
            part.unlink()
            self._tally.add(done_bytes=-file.size_bytes, verified_bytes=-file.size_bytes)
            if attempt == 0:
                self._tally.retry(file.name, "its bytes are not the right ones", 0.0)
        raise DownloadFailed(
            f"{file.name} of {self.listing.repo} arrived damaged twice: "
            f"its digest is {found}, and the Hub lists {file.digest}",
            hint=f"something between here and the Hub changes the bytes (a proxy?); {GO_ON_HINT}",
        )

    def _note(self, file: RepoFile) -> None:
        with self._journal_lock, (self.into / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"{file.digest} {file.name}\n")

    def _part(self, file: RepoFile) -> Path:
        # The digest keeps the bytes of one revision from being gone on with in another.
        return self.into / f".{file.name}.{file.digest[:16]}.part"
