"""One file of a repository from the Hub to the disk: as many requests as it takes, never a byte twice.

huggingface_hub 2.4 gives each attempt at a file a temporary file of its own and deletes it when the
attempt fails (``file_download._download_to_tmp_and_move``), so a killed process would begin a
shard of 5 GB again. Hence this module asks for the bytes itself, through the library's session,
addresses, login and error classes, and keeps what has arrived.
"""

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import IO, Any

from r1mac.errors import writing_to
from r1mac.hub import remote
from r1mac.hub.repository import RepoFile, file_url, headers

# A server that drips this slowly, for longer than one and a half time-outs, is as good as silent.
_LEAST_BYTES_PER_S = 1_000
# So many bytes since the last failure make it a new failure, not the next of a row.
_FRESH_START_BYTES = 2**18
_HASH_BLOCK_BYTES = 2**20


class Stopped(Exception):
    """The download was called off while this file was under way."""


class Tally:
    """What all files of one download have done so far. Any thread may call it.

    Attributes:
        stop: set to call the download off.
        answered: whether the Hub has answered any request of this download.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.answered = False
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._verified_bytes = 0
        self._retries: list[tuple[str, str, float]] = []

    def add(self, *, done_bytes: int = 0, verified_bytes: int = 0) -> None:
        """Count bytes that are on the disk, or checked; negative when they were thrown away."""
        with self._lock:
            self._done_bytes += done_bytes
            self._verified_bytes += verified_bytes

    def retry(self, name: str, reason: str, wait_seconds: float) -> None:
        """Note that the file *name* is asked for again after a pause, and why."""
        with self._lock:
            self._retries.append((name, reason, wait_seconds))

    def read(self) -> tuple[int, int, list[tuple[str, str, float]]]:
        """Return the bytes done, the bytes verified, and the retries noted since the last call."""
        with self._lock:
            retries, self._retries = self._retries, []
            return self._done_bytes, self._verified_bytes, retries


def complete(part: Path, file: RepoFile, *, repo: str, commit: str, tally: Tally) -> None:
    """Bring *part* to the full size of *file*, going on behind the bytes that it has.

    Raises:
        Stopped: the tally's stop was set.
        DownloadFailed: the connection was lost too often, or the Hub answered wrongly.
        R1MacError: as for :func:`remote.error_of`; DiskFull and NotWritable.
    """
    import httpx2

    url = file_url(repo, file.name, commit)
    with writing_to(part), part.open("ab"):
        pass  # an empty file needs no request, and is there
    failures, mark_bytes = 0, part.stat().st_size
    while (have_bytes := part.stat().st_size) < file.size_bytes:
        if have_bytes - mark_bytes >= _FRESH_START_BYTES:
            failures = 0
        mark_bytes = have_bytes
        try:
            _stream(url, part, file, tally)
        except httpx2.HTTPError as error:
            failures += 1
            if failures == remote.ATTEMPT_COUNT or not remote.may_pass(error):
                ending = remote.cut_off if tally.answered else remote.error_of
                raise ending(error, repo, file=file.name) from error
            pause_seconds = remote.wait_seconds(failures - 1)
            tally.retry(file.name, remote.reason_of(error), pause_seconds)
            if tally.stop.wait(pause_seconds):
                raise Stopped from error


def digest_of(path: Path, file: RepoFile, tally: Tally) -> str:
    """Return the digest of the bytes at *path*, of the kind that the Hub gave for *file*.

    Raises:
        Stopped: the tally's stop was set.
    """
    if file.sha256 is not None:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while block := content.read(_HASH_BLOCK_BYTES):
            if tally.stop.is_set():
                raise Stopped
            digest.update(block)
            tally.add(verified_bytes=len(block))
    return digest.hexdigest()


def _stream(url: str, part: Path, file: RepoFile, tally: Tally) -> None:
    """Append what one request brings; what arrived before a failure stays.

    Raises:
        httpx2.HTTPError: the connection was lost, too slow, or ended before the file did.
    """
    import httpx2
    from huggingface_hub.utils import get_session, hf_raise_for_status

    timeout = remote.timeout_seconds()
    have_bytes = part.stat().st_size
    request_headers = headers() | ({"Range": f"bytes={have_bytes}-"} if have_bytes else {})
    with get_session().stream("GET", url, headers=request_headers, timeout=timeout) as response:
        tally.answered = True
        hf_raise_for_status(response)
        if tally.stop.is_set():
            raise Stopped
        with writing_to(part, needed_bytes=file.size_bytes), part.open("r+b") as output:
            if response.status_code != httpx2.codes.PARTIAL_CONTENT and have_bytes:
                output.truncate(0)  # the server sends all of it again
                tally.add(done_bytes=-have_bytes)
                have_bytes = 0
            output.seek(have_bytes)
            _append(response, output, file.size_bytes - have_bytes, tally)
            output.flush()
            os.fsync(output.fileno())


def _append(response: Any, output: IO[bytes], missing_bytes: int, tally: Tally) -> None:
    import httpx2

    window_seconds = 1.5 * remote.timeout_seconds()
    window_start, window_bytes = time.monotonic(), 0
    for piece in response.iter_bytes():
        if tally.stop.is_set():
            raise Stopped
        wanted = piece[:missing_bytes]
        output.write(wanted)
        missing_bytes -= len(wanted)
        tally.add(done_bytes=len(wanted))
        window_bytes += len(wanted)
        if missing_bytes == 0:
            return
        seconds = time.monotonic() - window_start
        if seconds > window_seconds:
            if window_bytes < _LEAST_BYTES_PER_S * seconds:
                raise httpx2.ReadError(f"only {window_bytes} bytes came in {seconds:.0f} s")
            window_start, window_bytes = time.monotonic(), 0
    raise httpx2.RemoteProtocolError(f"the Hub ended the connection {missing_bytes} bytes early")
