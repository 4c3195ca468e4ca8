"""Conversations kept on this disk, so that ``r1mac run MODEL --continue`` goes on with yesterday's.

One folder each: ``chat.json``, whole or not at all; ``reply.journal`` while a reply is written
(``engine.kept.checkpoint``); and ``lock``, which the process that talks in it holds.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from r1mac import paths
from r1mac.durable import write_whole
from r1mac.engine.kept.checkpoint import SavedReply, load_checkpoint
from r1mac.engine.kept.json_values import from_json, to_json
from r1mac.engine.request import Sampling
from r1mac.errors import BadCheckpoint, NotWritable

logger = logging.getLogger(__name__)

# Raised when chat.json changes its meaning.
_FORMAT = 1
_KEPT_CHATS = 50
_RECORD_NAME, _REPLY_NAME, _LOCK_NAME = "chat.json", "reply.journal", "lock"
_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}")
# A folder without a record is one that a process is making, or that one left behind.
_EMPTY_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One turn. *text* is an assistant's answer alone; its *thought* is kept apart, and told to no model."""

    role: Literal["system", "user", "assistant"]
    text: str
    thought: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRecord:
    """What is known of a conversation.

    Attributes:
        model: what names its model, such as its folder in the store.
        messages: all turns, a system prompt first if there is one.
        sampling: how its tokens are chosen; None for the model's own way.
        think: whether the model may think.
        kv_bits: width of the cache that was asked for; None if none was.
        started_at_s: seconds since 1970, as is updated_at_s.
    """

    model: str
    messages: tuple[ChatMessage, ...] = ()
    sampling: Sampling | None = None
    think: bool = True
    kv_bits: int | None = None
    started_at_s: float
    updated_at_s: float


class KeptChat:
    """A conversation that this process talks in. No other process can, until it is closed.

    What cannot be written is told in a note, and the conversation goes on.

    Attributes:
        folder: where it is.
        record: what is known of it.
        unfinished: a reply that was cut off, or could not be kept.
    """

    def __init__(self, folder: Path, record: ChatRecord, lock: int | None, unfinished: SavedReply | None) -> None:
        self.folder = folder
        self.record = record
        self.unfinished = unfinished
        self._lock = lock

    def __enter__(self) -> Self:
        """Return it; it is closed at the end of the block."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def checkpoint_path(self) -> Path:
        """Where the reply at work is kept."""
        return self.folder / _REPLY_NAME

    def save(self, messages: tuple[ChatMessage, ...] | None = None, **changes: object) -> str | None:
        """Keep *messages*, and other *changes* of the record; return why that was not possible, or None."""
        if messages is not None:
            changes["messages"] = messages
        self.record = replace(self.record, updated_at_s=time.time(), **changes)  # type: ignore[arg-type]
        # Escaped, since what came through a pipe may hold halves of characters.
        text = json.dumps({"format": _FORMAT, **to_json(self.record)}, indent=1) + "\n"
        try:
            write_whole(self.folder / _RECORD_NAME, text, mode=0o600)
        except OSError as error:
            return f"this chat is not kept: {error.strerror or error}"
        return None

    def close(self) -> None:
        """Let other processes go on with it. One in which nothing was said leaves nothing."""
        if self._lock is None:
            return
        if not (self.folder / _RECORD_NAME).exists() and not self.checkpoint_path.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def delete(self) -> None:
        """Forget it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()


def new_chat(
    model: str,
    *,
    sampling: Sampling | None = None,
    think: bool = True,
    kv_bits: int | None = None,
    folder: Path | None = None,
) -> tuple[KeptChat, str | None]:
    """Return a new conversation with *model*, and why it cannot be kept, or None. Old ones make room for it."""
    folder = folder or paths.chats_dir()
    now = time.time()
    name = time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + "-" + secrets.token_hex(3)
    record = ChatRecord(
        model=model, sampling=sampling, think=think, kv_bits=kv_bits, started_at_s=now, updated_at_s=now
    )
    lock, note = None, None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _prune(folder, _KEPT_CHATS - 1)
        (folder / name).mkdir(mode=0o700)
        lock = _lock(folder / name)
    except OSError as error:
        note = f"this chat is not kept: {error.strerror or error}"
    return KeptChat(folder / name, record, lock, None), note


def latest_chat(
    model: str, *, folder: Path | None = None, on_note: Callable[[str], None] = logger.info
) -> KeptChat | None:
    """Return the conversation with *model* that was talked in last, or None where there is none.

    Args:
        model: as it was given to ``new_chat``.
        folder: where the conversations are.
        on_note: is told of files that are damaged and left out.

    Raises:
        NotWritable: another process talks in it, or it cannot be locked.
    """
    for path in _by_use(folder or paths.chats_dir()):
        record = _record(path, on_note)
        if record is None or record.model != model:
            continue
        try:
            lock = _lock(path)
        except BlockingIOError as error:
            raise NotWritable(
                f"the last chat with {model} is open in another r1mac{_holder(path)}",
                hint="leave it there first, or begin a new one without --continue",
            ) from error
        except OSError as error:
            raise NotWritable(
                f"cannot go on with {path}: {error.strerror}", hint="make that folder writable"
            ) from error
        # It may have gone on until a moment ago.
        record = _record(path, on_note) or record
        return KeptChat(path, record, lock, _unfinished(path / _REPLY_NAME, on_note))
    return None


def _by_use(folder: Path) -> Iterator[Path]:
    """Yield the folders of conversations, the last used first."""
    found = []
    with contextlib.suppress(OSError):
        for path in filter(_is_chat, folder.iterdir()):
            times = [at for name in (_RECORD_NAME, _REPLY_NAME) if (at := _changed_at(path / name)) is not None]
            if times:
                found.append((max(times), path))
    yield from (path for _, path in sorted(found, reverse=True))


def _is_chat(path: Path) -> bool:
    """Tell whether a folder has a name that only ``new_chat`` gives."""
    return _NAME.fullmatch(path.name) is not None and path.is_dir()


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _record(folder: Path, on_note: Callable[[str], None]) -> ChatRecord | None:
    path = folder / _RECORD_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.pop("format", None) != _FORMAT:
            raise ValueError(f"it is not of format {_FORMAT}")
        return from_json(ChatRecord, data)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        on_note(f"a kept chat is damaged and left out: {path} ({str(error).partition(chr(10))[0][:120]})")
        return None


def _unfinished(path: Path, on_note: Callable[[str], None]) -> SavedReply | None:
    try:
        return load_checkpoint(path)
    except FileNotFoundError:
        return None
    except (BadCheckpoint, OSError) as error:
        on_note(f"the reply that was cut off is lost: {error}")
        return None


def _lock(folder: Path) -> int:
    """Return a descriptor that keeps *folder* for this process until it is closed, however the process ends.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be locked.
    """
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _holder(folder: Path) -> str:
    try:
        return f" (process {int((folder / _LOCK_NAME).read_text(encoding='ascii'))})"
    except (OSError, ValueError):
        return ""


def _prune(folder: Path, keep: int) -> None:
    """Delete all but the *keep* conversations that were used last, and what other processes left without one."""
    used = list(_by_use(folder))
    abandoned_at_s = time.time() - _EMPTY_SECONDS
    empty = [path for path in filter(_is_chat, folder.iterdir()) if path not in used]
    for path in (*used[keep:], *(path for path in empty if path.stat().st_mtime < abandoned_at_s)):
        with contextlib.suppress(OSError):
            lock = _lock(path)
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
