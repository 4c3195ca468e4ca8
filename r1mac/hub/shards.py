"""A repository whose weight files come one after another and go when they are used: little room on the disk.

The folder looks like the whole repository to whoever reads headers: beside the small files it has the header of each
weight file (``formats.folder.header_path``), and for a while the file itself.
"""

import json
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

from r1mac.durable import write_whole
from r1mac.errors import BadCheckpoint, writing_to
from r1mac.formats.folder import DIGESTS_NAME, header_path
from r1mac.formats.safetensors import read_header
from r1mac.hub.download import DownloadEvent, DownloadProgress, Retrying
from r1mac.hub.landing import Landing
from r1mac.hub.repository import RepoFile, RepoListing, fetch_beginning
from r1mac.hub.transfer import Stopped, Tally

_TICK_SECONDS = 0.2
_FETCHED_AT_ONCE = 2
_HEADERS_AT_ONCE = 8
# Most headers are shorter: one request brings them.
_FIRST_BYTES = 2**18
_MOST_HEADER_BYTES = 10**8
_LENGTH_BYTES = 8


def weight_files(files: Iterable[RepoFile]) -> tuple[RepoFile, ...]:
    """Return those of a repository's *files* that hold weights."""
    return tuple(file for file in files if file.name.endswith(".safetensors"))


def fetch_outline(listing: RepoListing, files: Sequence[RepoFile], into: Path) -> Iterator[DownloadEvent]:
    """Bring all of *files* but the weights into the folder *into*: the small files, and the header of each weight file.

    What *into* holds of another revision is deleted; what it holds of this one stays. The digests of all files are
    written down beside them (``formats.folder.DIGESTS_NAME``).

    Raises:
        BadCheckpoint: a file's header is not one, or does not describe as many bytes as the file has.
        R1MacError: as for :func:`download.fetch`.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    with writing_to(into):
        into.mkdir(parents=True, exist_ok=True)
    weights = weight_files(files)
    _clear_old(listing, files, into)
    small = [file for file in files if file not in weights]
    with ShardStream(listing, small, into) as stream:
        yield from (event for event in stream.ready([file.name for file in small]) if isinstance(event, Retrying))
    absent = [file for file in weights if not header_path(into / file.name).is_file()]
    pool = ThreadPoolExecutor(max_workers=_HEADERS_AT_ONCE)
    try:
        for answer in as_completed([pool.submit(_fetch_header, listing, file, into) for file in absent]):
            answer.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class ShardStream:
    """Weight files of a repository, fetched ahead of their use and deleted after it.

    Args:
        listing: the repository at one commit.
        order: the files in the order in which they are going to be used first.
        into: the folder that they come to.

    Attributes:
        most_bytes: room for files on the disk; files are fetched ahead only as far as it goes. A file that
            :meth:`ready` waits for is fetched in any case.

    A thread or two fetch what comes next while there is room; :meth:`ready` waits, :meth:`release` deletes.
    """

    def __init__(self, listing: RepoListing, order: Sequence[RepoFile], into: Path) -> None:
        self.most_bytes = 0
        self._files = {file.name: file for file in order}
        self._landing = Landing(into, listing)
        self._tally = Tally()
        self._change = threading.Condition()
        absent = {file.name for file in self._landing.take_stock(order, self._tally)}
        self._ready = self._files.keys() - absent
        self._todo = [file.name for file in order if file.name in absent]
        self._under_way: set[str] = set()
        self._urgent: set[str] = set()
        self._failure: BaseException | None = None
        self._workers: list[threading.Thread] = []

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def here_bytes(self) -> dict[str, int]:
        """Return how much of each file is on the disk."""
        return {name: size for name, file in self._files.items() if (size := self._landing.here_bytes(file))}

    def ready(self, names: Sequence[str]) -> Iterator[DownloadEvent]:
        """Yield events until the files *names* are whole on this disk.

        The bytes of an event are those of the files that have come or are under way, of all that were ever wanted.

        Raises:
            R1MacError: as for :func:`download.fetch`, DiskFull included.
        """
        self._start()
        with self._change:
            self._urgent = set(names) - self._ready
            # What was released and is wanted once more.
            self._todo[:0] = [name for name in names if name not in self._ready | self._under_way | {*self._todo}]
            self._change.notify_all()
        seen_bytes = -1
        while True:
            seen_bytes = yield from self._news(seen_bytes)
            with self._change:
                if self._failure is not None:
                    raise self._failure
                self._urgent = set(names) - self._ready
                if not self._urgent:
                    return
                self._change.wait(_TICK_SECONDS)

    def release(self, name: str) -> None:
        """Delete the file *name*; if it was to come, it is not fetched any more."""
        with self._change:
            self._todo = [other for other in self._todo if other != name]
            while name in self._under_way and self._failure is None:
                self._change.wait(_TICK_SECONDS)
            self._landing.discard(self._files[name])
            self._ready.discard(name)
            self._change.notify_all()

    def close(self) -> None:
        """Stop fetching; what has arrived stays for the next time."""
        self._tally.stop.set()
        with self._change:
            self._change.notify_all()
        for worker in self._workers:
            worker.join(timeout=0.25)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self._workers:
            return
        # Daemons, since one that waits for a silent server must not keep the program from ending.
        self._workers = [threading.Thread(target=self._work, daemon=True) for _ in range(_FETCHED_AT_ONCE)]
        for worker in self._workers:
            worker.start()

    def _work(self) -> None:
        try:
            while (file := self._next()) is not None:
                self._landing.obtain(file, self._tally)
                with self._change:
                    self._under_way.discard(file.name)
                    self._ready.add(file.name)
                    self._change.notify_all()
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - a thread's top: ready() raises it again
            with self._change:
                self._failure = error
                self._tally.stop.set()
                self._change.notify_all()

    def _next(self) -> RepoFile | None:
        """Wait for a file that may be fetched now, and return it; None at the end."""
        with self._change:
            while not self._tally.stop.is_set():
                if name := self._may_fetch():
                    self._todo.remove(name)
                    self._under_way.add(name)
                    return self._files[name]
                self._change.wait(_TICK_SECONDS)
        return None

    def _may_fetch(self) -> str | None:
        for name in self._todo:
            if name in self._urgent:
                return name
        if self._urgent - self._under_way or not self._todo:
            return None
        here_bytes = sum(self._files[name].size_bytes for name in self._ready | self._under_way)
        name = self._todo[0]
        return name if here_bytes + self._files[name].size_bytes <= self.most_bytes else None

    def _news(self, seen_bytes: int) -> Generator[DownloadEvent, None, int]:
        done_bytes, _, retries = self._tally.read()
        for name, reason, wait_seconds in retries:
            yield Retrying(name=name, reason=reason, wait_seconds=wait_seconds)
        if done_bytes != seen_bytes:
            total_bytes = sum(file.size_bytes for file in self._files.values())
            yield DownloadProgress(done_bytes=done_bytes, total_bytes=total_bytes)
        return done_bytes


def _clear_old(listing: RepoListing, files: Sequence[RepoFile], into: Path) -> None:
    """Delete what *into* holds of another revision, and write down the digests of this one."""
    digests = json.dumps({file.name: file.digest for file in files}, indent=1)
    listed = into / DIGESTS_NAME
    same = listed.is_file() and listed.read_text(encoding="utf-8") == digests
    headers = [header_path(into / file.name).name for file in weight_files(files)] if same else []
    landing = Landing(into, listing)
    landing.clear_all_but(files, kept_names=[DIGESTS_NAME, *headers])
    # A whole file of the old revision may have the name of a new one.
    landing.take_stock(weight_files(files), Tally())
    if not same:
        with writing_to(into):
            write_whole(listed, digests)


def _fetch_header(listing: RepoListing, file: RepoFile, into: Path) -> None:
    first = fetch_beginning(listing, file, min(_FIRST_BYTES, file.size_bytes))
    length = int.from_bytes(first[:_LENGTH_BYTES], "little")
    if length > min(file.size_bytes - _LENGTH_BYTES, _MOST_HEADER_BYTES):
        raise _damaged(listing, file, f"its header would be {length} bytes in a file of {file.size_bytes}")
    header_bytes = _LENGTH_BYTES + length
    content = first if header_bytes <= len(first) else fetch_beginning(listing, file, header_bytes)
    path = header_path(into / file.name)
    temporary = path.with_name(f"{path.name}.new")
    with writing_to(into):
        temporary.write_bytes(content[:header_bytes])
    end_bytes = max((entry.stop for entry in read_header(temporary, header_only=True).values()), default=header_bytes)
    if end_bytes != file.size_bytes:
        raise _damaged(listing, file, f"its header describes {end_bytes} bytes, and it has {file.size_bytes}")
    with writing_to(into):
        temporary.replace(path)


def _damaged(listing: RepoListing, file: RepoFile, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{file.name} of {listing.repo} is damaged: {why}",
        hint="choose another repository, and report this one to its owner",
    )
