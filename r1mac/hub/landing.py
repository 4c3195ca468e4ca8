"""The folder that a repository's files arrive in.

It holds, until all is there:

* ``NAME``: a file that is whole and verified;
* ``.NAME.DIGEST.part``: the bytes so far of one that is not;
* ``.verified``: a line ``DIGEST NAME`` for each whole file, so that a second run need not read it again.
"""

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from r1mac.durable import folder_to_disk
from r1mac.errors import DownloadFailed, writing_to
from r1mac.hub.remote import GO_ON_HINT
from r1mac.hub.repository import RepoFile, RepoListing
from r1mac.hub.transfer import Tally, complete, digest_of

_JOURNAL = ".verified"


class Landing:
    """What has arrived of one revision of a repository. Any thread may bring a file."""

    def __init__(self, folder: Path, listing: RepoListing) -> None:
        self.folder = folder
        self.listing = listing
        self._journal_lock = threading.Lock()

    def clear_all_but(self, files: Iterable[RepoFile], *, kept_names: Iterable[str] = ()) -> None:
        """Delete what is neither one of *files*, whole or in part, nor one of *kept_names*."""
        known = {_JOURNAL, *kept_names}
        for file in files:
            known |= {file.name, self._part(file).name}
        with writing_to(self.folder):
            for path in self.folder.iterdir():
                if path.is_file() and path.name not in known:
                    path.unlink()

    def take_stock(self, files: Sequence[RepoFile], tally: Tally) -> list[RepoFile]:
        """Count in *tally* what earlier runs left of *files*, and return those that are not whole and verified."""
        with writing_to(self.folder):
            verified = self._verified()
            return [file for file in files if not self._is_whole(file, verified, tally)]

    def obtain(self, file: RepoFile, tally: Tally) -> None:
        """Download and verify *file*; if its bytes are wrong, once more from the start.

        Raises:
            Stopped: the tally's stop was set.
            DownloadFailed: the connection was lost too often, or the file arrived damaged twice.
            R1MacError: as for :func:`transfer.complete`.
        """
        assert "/" not in file.name
        assert not file.name.startswith(".")
        part = self._part(file)
        found = ""
        for attempt in range(2):
            complete(part, file, repo=self.listing.repo, commit=self.listing.commit, tally=tally)
            found = digest_of(part, file, tally)
            if found == file.digest:
                with writing_to(self.folder):
                    part.replace(self.folder / file.name)
                    self._note(file)
                return
            part.unlink()
            tally.add(done_bytes=-file.size_bytes, verified_bytes=-file.size_bytes)
            if attempt == 0:
                tally.retry(file.name, "its bytes are not the right ones", 0.0)
        raise DownloadFailed(
            f"{file.name} of {self.listing.repo} arrived damaged twice: "
            f"its digest is {found}, and the Hub lists {file.digest}",
            hint=f"something between here and the Hub changes the bytes (a proxy?); {GO_ON_HINT}",
        )

    def here_bytes(self, file: RepoFile) -> int:
        """Return how much of *file* is on the disk, whole or in part."""
        sizes = [path.stat().st_size for path in (self.folder / file.name, self._part(file)) if path.is_file()]
        return max(sizes, default=0)

    def discard(self, file: RepoFile) -> None:
        """Delete *file*, whole or in part."""
        with writing_to(self.folder):
            (self.folder / file.name).unlink(missing_ok=True)
            self._part(file).unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what only an unfinished download needs."""
        with writing_to(self.folder):
            (self.folder / _JOURNAL).unlink(missing_ok=True)
            folder_to_disk(self.folder)

    def _verified(self) -> set[tuple[str, str]]:
        journal = self.folder / _JOURNAL
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else []
        return {(digest, name) for digest, _, name in (line.partition(" ") for line in lines)}

    def _is_whole(self, file: RepoFile, verified: set[tuple[str, str]], tally: Tally) -> bool:
        path, part = self.folder / file.name, self._part(file)
        if path.is_file() and path.stat().st_size == file.size_bytes:
            if (file.digest, file.name) in verified:
                tally.add(done_bytes=file.size_bytes, verified_bytes=file.size_bytes)
                return True
            path.replace(part)
        path.unlink(missing_ok=True)
        if part.is_file() and part.stat().st_size > file.size_bytes:
            part.unlink()
        tally.add(done_bytes=part.stat().st_size if part.is_file() else 0)
        return False

    def _note(self, file: RepoFile) -> None:
        with self._journal_lock, (self.folder / _JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(f"{file.digest} {file.name}\n")

    def _part(self, file: RepoFile) -> Path:
        # The digest keeps the bytes of one revision from being gone on with in another.
        return self.folder / f".{file.name}.{file.digest[:16]}.part"
