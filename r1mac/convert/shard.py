"""One weight file in the making: laid out first, filled in any order, checksummed while it fills."""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import Executor, Future
from pathlib import Path

from r1mac.convert.journal import PARTIAL_SUFFIX, FileDigest
from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import TensorEntry, TensorLayout, lay_out, read_header

_CHUNK_BYTES = 2**18
# What is written is brought to the disk this often, so that the end of a file need not wait for all of it.
_SYNC_BYTES = 128 * 2**20


class Shard:
    """A weight file that gets its header and its full length at once, under a name that says it is not whole.

    Its checksum is computed on a thread of *executor*, which follows what has been filled from the file's
    beginning. Nothing is opened before the first write.

    Args:
        path: the file's final path.
        tensors: what it holds.
        kept_bytes: of each tensor, the bytes that an earlier run has brought to the disk.
        executor: has one thread.
    """

    def __init__(
        self, path: Path, tensors: Iterable[TensorLayout], kept_bytes: dict[str, int], executor: Executor
    ) -> None:
        self._header, self._entries = lay_out(tensors, {"format": "mlx"})
        self._path = path
        self._kept = kept_bytes
        self._filled = {name: kept_bytes.get(name, 0) for name in self._entries}
        self._executor = executor
        self._descriptor: int | None = None
        self._follow: Future[None] | None = None
        self._hash = hashlib.sha256()
        self._hashed_bytes = self._synced_bytes = 0
        self._frontier_bytes = 0
        self._waiting = iter(sorted(self._entries.values(), key=lambda entry: entry.start))
        self._next: TensorEntry | None = next(self._waiting, None)
        self.size_bytes = max((entry.stop for entry in self._entries.values()), default=len(self._header))

    @property
    def partial_path(self) -> Path:
        """Where the file is until it is whole."""
        return partial_path(self._path)

    @property
    def is_open(self) -> bool:
        """Whether anything has been written to it in this run."""
        return self._descriptor is not None

    def missing(self) -> str | None:
        """Return what is missing in words, or None if every tensor is filled."""
        for name, entry in self._entries.items():
            if self._filled[name] != entry.size_bytes:
                return f"{name} has {self._filled[name]} of {entry.size_bytes} bytes"
        return None

    def open(self) -> None:
        """Make the file in its full length, or open the one that an earlier run left.

        Raises:
            OSError: there is no room.
        """
        if self._descriptor is not None:
            return
        kept = bool(self._kept) and self.partial_path.is_file()
        flags = os.O_RDWR | os.O_CREAT | (0 if kept else os.O_TRUNC) | getattr(os, "O_CLOEXEC", 0)
        self._descriptor = os.open(self.partial_path, flags, 0o666)
        _write_all(self._descriptor, memoryview(self._header), 0)
        os.ftruncate(self._descriptor, self.size_bytes)
        self._advance()

    def entry(self, name: str) -> TensorEntry:
        """Return where the tensor *name* goes."""
        return self._entries[name]

    def write(self, name: str, offset: int, data: memoryview) -> None:
        """Write bytes of a tensor at *offset* from its own beginning.

        Raises:
            ValueError: they pass its end.
            OSError: there is no room, or the disk failed.
        """
        entry = self._entries[name]
        if offset + len(data) > entry.size_bytes or self._filled[name] + len(data) > entry.size_bytes:
            raise ValueError(f"{name} was given more bytes than its shape {entry.shape} has")
        self.open()
        assert self._descriptor is not None
        _write_all(self._descriptor, data, entry.start + offset)
        self._filled[name] += len(data)
        if self._next is not None and name == self._next.name and self._filled[name] == entry.size_bytes:
            self._advance()

    def settle(self) -> None:
        """Bring all that was written to the disk."""
        if self._descriptor is not None:
            self._join()
            os.fsync(self._descriptor)

    def seal(self) -> FileDigest:
        """Bring the whole file to the disk, and return its size and checksum; every tensor must be filled.

        It keeps its first name until :func:`publish`, so that the journal can know it before: a kill between the two
        would else leave a whole file that nobody knows, and pieces that are journalled in a file that is gone.

        Raises:
            BadCheckpoint: what is on the disk is not what was laid out.
        """
        self.open()
        self._join()
        assert self._descriptor is not None
        assert self._hashed_bytes == self.size_bytes, "a tensor is not filled"
        os.fsync(self._descriptor)
        self.close()
        read_header(self.partial_path)
        return FileDigest(self.size_bytes, self._hash.hexdigest())

    def close(self) -> None:
        """Let go of the file as it is."""
        if self._descriptor is not None:
            if self._follow is not None and not self._follow.cancel():
                self._follow.exception()  # waits: the thread reads from the descriptor
            os.close(self._descriptor)
            self._descriptor = None

    def _advance(self) -> None:
        """Let the checksum follow up to the first tensor that is not filled."""
        while self._next is not None and self._filled[self._next.name] == self._next.size_bytes:
            self._frontier_bytes = self._next.stop
            self._next = next(self._waiting, None)
        if self._next is None:
            self._frontier_bytes = self.size_bytes
        frontier_bytes, before = self._frontier_bytes, self._follow
        self._follow = self._executor.submit(self._hash_up_to, frontier_bytes, before)

    def _hash_up_to(self, stop: int, before: "Future[None] | None") -> None:
        if before is not None:
            before.result()  # one thread: it has ended, and its failure is this one's
        assert self._descriptor is not None
        while self._hashed_bytes < stop:
            chunk = os.pread(self._descriptor, min(_CHUNK_BYTES, stop - self._hashed_bytes), self._hashed_bytes)
            if not chunk:
                raise BadCheckpoint(
                    f"{self.partial_path.name} is truncated: somebody else changed it while it was written",
                    hint="run the same command again",
                )
            self._hash.update(chunk)
            self._hashed_bytes += len(chunk)
        if stop - self._synced_bytes >= _SYNC_BYTES:
            os.fsync(self._descriptor)
            self._synced_bytes = stop

    def _join(self) -> None:
        if self._follow is not None:
            self._follow.result()


def partial_path(path: Path) -> Path:
    """Return where the weight file *path* is until it is whole, and the journal knows it."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def publish(path: Path) -> None:
    """Give a sealed weight file its final name *path*, unless it has it."""
    with contextlib.suppress(FileNotFoundError):
        partial_path(path).replace(path)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
