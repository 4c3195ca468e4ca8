"""Weights on the Hub as the source of a conversion: fetched file by file, and deleted as they are used up."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from r1mac.errors import FREE_SOME_SPACE, DiskFull, writing_to
from r1mac.machine.base import Machine
from r1mac.machine.disk import existing_parent
from r1mac.prepare.files import Note, PrepareEvent, Progress, ensure_files
from r1mac.prepare.target import find_stored, repo_target, store_of
from r1mac.settings import Settings
from r1mac.units import format_size

if TYPE_CHECKING:
    from r1mac.convert.schedule import Step
    from r1mac.hub.download import DownloadEvent
    from r1mac.hub.repository import RepoFile, RepoListing
    from r1mac.hub.shards import ShardStream

_Result = TypeVar("_Result")

# How many weight files are on the disk at a time, where the source's own layout does not want more: one that is
# converted, and two that come meanwhile.
FILES_AT_ONCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a conversion of weights that come file by file takes on the disk.

    Attributes:
        result_bytes: what is still to be written of the result, and one percent more.
        least_source_bytes: what the source's files take more than now, where each comes when it is needed.
        wished_source_bytes: what they take more than now where the next ones come meanwhile.
    """

    result_bytes: int
    least_source_bytes: int
    wished_source_bytes: int


def room_for(
    steps: "Sequence[Step[Any]]", sizes: Mapping[str, int], here: Mapping[str, int], *, missing_result_bytes: int
) -> Room:
    """Return the room that *steps* take.

    Args:
        steps: what is still to be done.
        sizes: bytes of the source's files that the steps need, by name.
        here: how much of each is on the disk already.
        missing_result_bytes: what is still to be written of the result.
    """
    from r1mac.convert.schedule import most_bytes_at_once

    least_bytes = most_bytes_at_once(steps, sizes, here=here)
    ahead_bytes = min(FILES_AT_ONCE * max(sizes.values(), default=0), sum(sizes.values()))
    return Room(
        result_bytes=missing_result_bytes + missing_result_bytes // 100,
        least_source_bytes=least_bytes,
        wished_source_bytes=max(least_bytes, ahead_bytes - sum(here.values())),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where weights to convert are.

    Attributes:
        folder: the repository's files, or all but the weights where there is a *feed*.
        repo: the Hub repository.
        revision: its commit; None where that is not known.
        feed: brings the weights and takes them away; None where they are there.
    """

    folder: Path
    repo: str
    revision: str | None
    feed: "HubFeed | None"


def from_hub(
    repo: str,
    use: Callable[[Origin], Generator[PrepareEvent, None, _Result]],
    settings: Settings,
    machine: Machine,
    *,
    keep_source: bool = False,
    on_wait: Callable[[str], None] | None = None,
) -> Generator[PrepareEvent, None, _Result]:
    """Hand the weights of the Hub repository *repo* to *use*, and return what that returns.

    Weights that are in the store stay there and are used from there; so are they with *keep_source*. Otherwise they
    come file by file, and nothing of them is left when *use* ends well. When it does not, what has come stays, and
    the next call goes on.

    Raises:
        R1MacError: as ``hub.download.fetch`` and *use* do.
    """
    from r1mac.hub import download, shards

    source = repo_target(repo)
    if keep_source or find_stored(source, settings) is not None:
        folder = yield from ensure_files(source, settings, machine, on_wait=on_wait)
        return (yield from use(_stored_origin(repo, folder)))
    listing = download.list_files(repo)
    files = download.select_files(listing)
    assert source.store_name is not None
    with store_of(settings).building(source.store_name, keep_partial=True, on_wait=on_wait) as folder:
        if (stored := find_stored(source, settings)) is not None:
            return (yield from use(_stored_origin(repo, stored.path)))
        for event in shards.fetch_outline(listing, files, folder):
            yield from _told(event, repo)
        feed = HubFeed(listing, files, folder, machine)
        try:
            result = yield from use(Origin(folder=folder, repo=repo, revision=listing.commit, feed=feed))
        finally:
            feed.close()
        with writing_to(folder):
            for path in folder.iterdir():
                if path.is_file():
                    path.unlink()
    return result


class HubFeed:
    """The weight files of a repository, brought and deleted as a conversion goes on (``convert.schedule``)."""

    def __init__(self, listing: "RepoListing", files: "Sequence[RepoFile]", folder: Path, machine: Machine) -> None:
        self._listing = listing
        self._files = {file.name: file for file in files}
        self._folder = folder
        self._machine = machine
        self._stream: ShardStream | None = None

    def begin(self, steps: "Sequence[Step[Any]]", missing_result_bytes: int, into: Path) -> Iterator[PrepareEvent]:
        """Say what room the conversion of *steps* takes, and begin to fetch.

        Args:
            steps: what is still to be done.
            missing_result_bytes: what is still to be written of the result.
            into: the folder that the result goes to.

        Raises:
            DiskFull: there is not enough; nothing has been fetched.
        """
        from r1mac.hub.shards import ShardStream

        order = [self._files[name] for name in dict.fromkeys(name for step in steps for name in step.files)]
        if not order:
            return
        self._stream = ShardStream(self._listing, order, self._folder)
        sizes, here = {file.name: file.size_bytes for file in order}, self._stream.here_bytes()
        room = room_for(steps, sizes, here, missing_result_bytes=missing_result_bytes)
        more_bytes = min(room.wished_source_bytes, self._free_source_bytes(room, into))
        self._stream.most_bytes = sum(here.values()) + more_bytes
        yield Note(
            f"fetching {format_size(sum(sizes.values()) - sum(here.values()))} of {self._listing.repo} file by file; "
            f"on the disk that takes {format_size(room.result_bytes)} for the result and at most "
            f"{format_size(self._stream.most_bytes)} for source files at work"
        )

    def ready(self, names: Sequence[str]) -> Iterator[PrepareEvent]:
        """Yield progress until the files *names* are there.

        Raises:
            R1MacError: as ``hub.download.fetch`` does.
        """
        if not names:
            return
        assert self._stream is not None
        for event in self._stream.ready(names):
            yield from _told(event, self._listing.repo)

    def release(self, names: Sequence[str]) -> None:
        """Delete the files *names*, which nothing needs any more."""
        from r1mac.hub.landing import Landing

        landing = Landing(self._folder, self._listing)
        for name in names:
            if self._stream is not None and name in self._stream:
                self._stream.release(name)
            elif name in self._files:
                landing.discard(self._files[name])

    def close(self) -> None:
        """Stop fetching; what has arrived stays."""
        if self._stream is not None:
            self._stream.close()

    def _free_source_bytes(self, room: Room, into: Path) -> int:
        """Return what the source's files may still take where they go, once the result has its place.

        Raises:
            DiskFull: it is less than they need.
        """
        source_free_bytes = self._machine.free_disk_bytes(self._folder)
        result_free_bytes = self._machine.free_disk_bytes(into)
        one_disk = _device(self._folder) == _device(into)
        needed_bytes = room.result_bytes + (room.least_source_bytes if one_disk else 0)
        if needed_bytes > result_free_bytes:
            parts = f" ({format_size(room.least_source_bytes)} of it for the source's files)" if one_disk else ""
            raise DiskFull(
                f"the conversion needs {format_size(needed_bytes)}{parts} on the disk of {into.parent}, which has "
                f"{format_size(result_free_bytes)} free",
                hint=f"{FREE_SOME_SPACE}, or use fewer --bits",
            )
        if not one_disk and room.least_source_bytes > source_free_bytes:
            raise DiskFull(
                f"the source's files need {format_size(room.least_source_bytes)} at a time on the disk of "
                f"{self._folder.parent}, which has {format_size(source_free_bytes)} free",
                hint=FREE_SOME_SPACE,
            )
        return source_free_bytes - (room.result_bytes if one_disk else 0)


def _device(path: Path) -> int:
    return existing_parent(path).stat().st_dev


def _stored_origin(repo: str, folder: Path) -> Origin:
    from r1mac.hub.manifest import load_manifest

    manifest = load_manifest(folder)
    return Origin(folder=folder, repo=repo, revision=manifest.revision if manifest else None, feed=None)


def _told(event: "DownloadEvent", repo: str) -> Iterator[PrepareEvent]:
    from r1mac.hub import download

    match event:
        case download.DownloadProgress():
            yield Progress(task="download", title=repo, done=event.done_bytes, total=event.total_bytes)
        case download.Retrying():
            yield Note(f"{event.name}: {event.reason}; trying again in {event.wait_seconds:.0f} s")
