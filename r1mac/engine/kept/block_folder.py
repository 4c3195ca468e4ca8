"""The folder of a prompt cache's blocks: bounded, the least recently used go first, any number of processes at once."""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from r1mac.engine.kept.blocks import (
    SUFFIX,
    UNFINISHED_SUFFIX,
    Block,
    block_name,
    name_prefix,
    read_block,
    read_token_ids,
    write_block,
)
from r1mac.errors import BadCheckpoint
from r1mac.machine.disk import free_disk_bytes

logger = logging.getLogger(__name__)

# Without a word of the user's: a small share of what is free, and never more than a large model's long conversation.
_FREE_SHARE = 0.05
_MOST_BYTES = 20 * 10**9
# Writing a block takes a second. What is older was left by a process that is gone.
_ABANDONED_SECONDS = 600


class _Entry(NamedTuple):
    used_at_ns: int
    size_bytes: int
    path: Path


class BlockFolder:
    """Blocks of all models and conversations in one folder, for this user alone.

    Args:
        path: the folder; it is made when the first block is written.
        limit_bytes: the most that all files may take; None for a twentieth of what is free, up to 20 GB.
    """

    def __init__(self, path: Path, *, limit_bytes: int | None = None) -> None:
        self.path = path
        self._limit_bytes = limit_bytes

    def has(self, parent: str, token_ids: Sequence[int]) -> bool:
        """Tell whether the block of *token_ids* after *parent* seems to be there."""
        return self._path(parent, token_ids).is_file()

    def read(self, parent: str, token_ids: Sequence[int]) -> Block | None:
        """Return the block of *token_ids* after *parent*; one that is damaged is deleted, and None returned."""
        path = self._path(parent, token_ids)
        try:
            return read_block(path)
        except FileNotFoundError:
            return None
        except (BadCheckpoint, OSError) as error:
            logger.info("a block of the prompt cache is dropped: %s", error)
            self.drop(parent, token_ids)
            return None

    def drop(self, parent: str, token_ids: Sequence[int]) -> None:
        """Delete the block of *token_ids* after *parent*."""
        with contextlib.suppress(OSError):
            self._path(parent, token_ids).unlink(missing_ok=True)

    def following(self, parent: str) -> list[tuple[int, ...]]:
        """Return the tokens of every block after *parent*, unchecked."""
        found = []
        for path in self._paths(name_prefix(parent)):
            try:
                token_ids = read_token_ids(path)
                if path.name != block_name(parent, token_ids):
                    raise BadCheckpoint(f"{path.name} holds a block that has another name")
            except BadCheckpoint as error:
                logger.info("a block of the prompt cache is dropped: %s", error)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            except OSError:  # gone meanwhile
                pass
            else:
                found.append(token_ids)
        return found

    def write(self, block: Block) -> int:
        """Write *block*, for which there is to be room, and return its file's bytes.

        Raises:
            OSError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        return write_block(self.path, block)

    def make_room(self, needed_bytes: int, spare: Collection[str]) -> int:
        """Delete what was not used for the longest time, and return how much of *needed_bytes* may be written.

        Args:
            needed_bytes: what is to be written.
            spare: file names of blocks that may not be deleted for it, such as those before it.
        """
        entries = sorted(self._entries())
        used_bytes = sum(entry.size_bytes for entry in entries)
        limit_bytes = self._limit(used_bytes)
        spared_bytes = sum(entry.size_bytes for entry in entries if entry.path.name in spare)
        granted_bytes = max(0, min(needed_bytes, limit_bytes - spared_bytes))
        abandoned_ns = time.time_ns() - _ABANDONED_SECONDS * 10**9
        for entry in entries:
            unfinished = entry.path.suffix == UNFINISHED_SUFFIX
            full = used_bytes + granted_bytes > limit_bytes and entry.path.name not in spare
            if entry.used_at_ns < abandoned_ns if unfinished else full:
                with contextlib.suppress(OSError):
                    entry.path.unlink(missing_ok=True)
                    used_bytes -= entry.size_bytes
        return max(0, min(granted_bytes, limit_bytes - used_bytes))

    def touch(self, names: Sequence[str]) -> None:
        """Note that a chain's blocks were used: the first as the last, so that a chain is given up from its end."""
        now_ns = time.time_ns()
        for index, name in enumerate(names):
            used_at_ns = now_ns + len(names) - index
            with contextlib.suppress(OSError):
                os.utime(self.path / name, ns=(used_at_ns, used_at_ns))

    @property
    def size_bytes(self) -> int:
        """What all files take."""
        return sum(entry.size_bytes for entry in self._entries())

    @property
    def limit_bytes(self) -> int:
        """The most that all files may take now."""
        return self._limit(self.size_bytes)

    def _limit(self, used_bytes: int) -> int:
        if self._limit_bytes is not None:
            return self._limit_bytes
        with contextlib.suppress(OSError):
            return min(_MOST_BYTES, round(_FREE_SHARE * (free_disk_bytes(self.path) + used_bytes)))
        return 0

    def _entries(self) -> Iterator[_Entry]:
        for path in self._paths(""):
            with contextlib.suppress(OSError):  # gone meanwhile
                status = path.lstat()
                yield _Entry(status.st_mtime_ns, status.st_size, path)

    def _paths(self, prefix: str) -> list[Path]:
        """Return r1mac's files whose names begin with *prefix*; nothing else in the folder is looked at."""
        with contextlib.suppress(OSError):
            names = os.listdir(self.path)  # noqa: PTH208 - thousands of names, of which few become paths
            suffixes = (SUFFIX, UNFINISHED_SUFFIX) if not prefix else (SUFFIX,)
            return [self.path / name for name in names if name.startswith(prefix) and name.endswith(suffixes)]
        return []

    def _path(self, parent: str, token_ids: Sequence[int]) -> Path:
        return self.path / block_name(parent, token_ids)
