"""A reply at work on the disk: what was asked, then its tokens as they come.

The file is only ever added to. Each line has a checksum, so that a process killed at any byte, or a disk that is
full, costs what came last and no more. The model's state is no part of it: tokens are the truth (``prompt_cache`` has
what makes reading them fast), and random numbers depend on the seed and on a token's place alone.
"""

import contextlib
import json
import logging
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from r1mac import durable
from r1mac.engine.events import FinishReason
from r1mac.engine.kept.json_values import from_json, to_json
from r1mac.engine.request import GenerateRequest
from r1mac.errors import BadCheckpoint

logger = logging.getLogger(__name__)

# Raised when the lines change.
_FORMAT = 1
_FLUSH_SECONDS = 1.0
_FLUSH_TOKENS = 64
# What the system holds survives the process; only a crash of the computer takes it, and costs so much of the thought.
_SYNC_SECONDS = 10.0
_CHECKSUM_CHARS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    """What a reply was begun with.

    Attributes:
        model: fingerprint of the model (``engine.kept.fingerprint``).
        request: what was asked, with the seed that is used.
        prompt_ids: the conversation as tokens.
        kv_bits: width of the cache at the beginning.
        context_tokens: the context that memory was planned for.
        started_at_s: seconds since 1970.
    """

    model: str
    request: GenerateRequest
    prompt_ids: tuple[int, ...]
    kv_bits: int
    context_tokens: int
    started_at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedReply:
    """A reply as a file has it.

    Attributes:
        token_ids: what was written, with all that was put into it.
        kv_bits: width of the cache at the end.
        think_seconds: how long it had been thinking.
        finished: how it ended; None if it did not.
        whole_bytes: how much of the file is undamaged.
    """

    path: Path
    header: CheckpointHeader
    token_ids: tuple[int, ...]
    kv_bits: int
    think_seconds: float
    finished: FinishReason | None
    whole_bytes: int


class Checkpoint:
    """Writes the file of one reply. What goes wrong stops no reply: it is in ``problem``.

    Attributes:
        path: the file; it is readable for this user alone.
        problem: why the last tokens are not on the disk, as part of a sentence; None while they are.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self._descriptor: int | None = None
        self._whole_bytes = 0
        self._pending: list[int] = []
        self._think_seconds: float | None = None
        self._flushed_at = self._synced_at = time.monotonic()

    @classmethod
    def write(cls, path: Path, header: CheckpointHeader) -> Self:
        """Begin the file of a reply; one that is there is replaced."""
        self = cls(path)
        line = _line({"format": _FORMAT, **to_json(header)})
        try:
            durable.write_whole(path, line.decode(), mode=0o600)
            self._open(len(line))
        except OSError as error:
            self._fail(error)
        return self

    @classmethod
    def resume(cls, saved: SavedReply) -> Self:
        """Go on with a reply's file, without what of it is damaged."""
        self = cls(saved.path)
        try:
            self._open(saved.whole_bytes)
        except OSError as error:
            self._fail(error)
        return self

    def append(self, token_ids: Sequence[int], *, think_seconds: float | None = None) -> None:
        """Add tokens. They are written about once a second, together.

        Args:
            token_ids: the next ones of the reply.
            think_seconds: how long it has been thinking in all.
        """
        self._pending.extend(token_ids)
        if think_seconds is not None:
            self._think_seconds = think_seconds
        waited = time.monotonic() - self._flushed_at
        # After a failure it is tried again when there is news, and not at every token.
        if waited >= _FLUSH_SECONDS or (len(self._pending) >= _FLUSH_TOKENS and self.problem is None):
            self.flush()

    def narrow(self, kv_bits: int) -> None:
        """Note that the cache has another width from here on."""
        self.flush()
        self._add(_Entry(kv_bits=kv_bits))

    def flush(self, *, lasting: bool = False) -> None:
        """Write what was added; where *lasting*, wait until a crash of the computer would not take it."""
        if self._pending:
            seconds = None if self._think_seconds is None else round(self._think_seconds, 1)
            if self._add(_Entry(token_ids=tuple(self._pending), think_seconds=seconds)):
                self._pending = []
        now = time.monotonic()
        self._flushed_at = now
        if self._descriptor is not None and (lasting or now - self._synced_at >= _SYNC_SECONDS):
            self._synced_at = now
            with contextlib.suppress(OSError):
                os.fsync(self._descriptor)

    def finish(self, reason: FinishReason) -> None:
        """Note how the reply ended, and close the file."""
        self.flush()
        # An end after a gap would make a whole reply of a part of one.
        if not self._pending:
            self._add(_Entry(finished=reason))
        self.close()

    def close(self) -> None:
        """Write what was added and close the file, which can be resumed."""
        if self._pending:
            self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def discard(self) -> None:
        """Delete the file: the reply is kept elsewhere, or not wanted."""
        self._pending = []
        self.close()
        with contextlib.suppress(OSError):
            durable.remove(self.path)

    def _open(self, whole_bytes: int) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, whole_bytes)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._whole_bytes = descriptor, whole_bytes

    def _add(self, entry: "_Entry") -> bool:
        """Add one line, all of it or nothing, and tell whether that was possible."""
        if self._descriptor is None:
            return False
        line = _line({name: value for name, value in to_json(entry).items() if value})
        try:
            if os.write(self._descriptor, line) < len(line):
                raise OSError(0, "the disk is full")
        except OSError as error:
            self._fail(error)
            # Half a line would hide those that may follow it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._whole_bytes)
            return False
        self.problem = None
        self._whole_bytes += len(line)
        return True

    def _fail(self, error: OSError) -> None:
        if self.problem is None:
            logger.info("the checkpoint %s was not written: %s", self.path, error)
        self.problem = f"{self.path} was not written: {error.strerror or error}"


def load_checkpoint(path: Path) -> SavedReply:
    """Return the reply in *path*, up to its first damage.

    Raises:
        BadCheckpoint: its beginning is damaged, or of another version of r1mac.
        OSError: it cannot be read, or is not there.
    """
    raw = path.read_bytes()
    first, whole_bytes = _next_line(raw, 0)
    if first is None:
        raise BadCheckpoint(f"{path} is damaged: it does not begin as a checkpoint does")
    if first.pop("format", None) != _FORMAT:
        raise BadCheckpoint(f"{path} is not a checkpoint of format {_FORMAT}")
    try:
        header = from_json(CheckpointHeader, first)
    except ValueError as error:
        raise BadCheckpoint(f"{path} is not a checkpoint of this version of r1mac: {error}") from error
    token_ids: list[int] = []
    last = _Entry(kv_bits=header.kv_bits, think_seconds=0.0)
    for entry, end in _entries(raw, whole_bytes):
        token_ids += entry.token_ids
        news = {field.name: value for field in fields(entry) if (value := getattr(entry, field.name)) is not None}
        last, whole_bytes = replace(last, **news), end
    return SavedReply(
        path=path,
        header=header,
        token_ids=tuple(token_ids),
        kv_bits=last.kv_bits or header.kv_bits,
        think_seconds=last.think_seconds or 0.0,
        finished=last.finished,
        whole_bytes=whole_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One line after the first: what came since the line before it."""

    token_ids: tuple[int, ...] = ()
    think_seconds: float | None = None
    kv_bits: int | None = None
    finished: FinishReason | None = None


def _entries(raw: bytes, start: int) -> Iterator[tuple[_Entry, int]]:
    """Yield the lines from *start* on, each with its end, up to the first that is not whole."""
    while True:
        data, start = _next_line(raw, start)
        if data is None:
            return
        try:
            entry = from_json(_Entry, data)
        except ValueError:
            return
        yield entry, start


def _line(entry: dict[str, Any]) -> bytes:
    return _checked(json.dumps(entry, separators=(",", ":")).encode()) + b"\n"


def _checked(text: bytes) -> bytes:
    """Return *text* behind its checksum."""
    return b"%0*x %s" % (_CHECKSUM_CHARS, zlib.crc32(text), text)


def _next_line(raw: bytes, start: int) -> tuple[dict[str, Any] | None, int]:
    """Return the line that begins at *start* and where it ends; None where none is whole."""
    end = raw.find(b"\n", start)
    line = raw[start:end]
    text = line[_CHECKSUM_CHARS + 1 :]
    if end < 0 or line != _checked(text):
        return None, start
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None, start
    return (entry, end + 1) if isinstance(entry, dict) else (None, start)
