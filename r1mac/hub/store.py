"""The models on this disk: one folder each, directly below the store's root.

====================  ==========================================================
name below the root   what it is
====================  ==========================================================
``NAME/``             a model, if it holds ``r1mac.json``
``.NAME.partial/``    a model in the making: a download to go on with, or a conversion
``.NAME.trash-HEX/``  a model on its way out
``.NAME.lock``        held by the process that makes or removes NAME; empty, and left there
====================  ==========================================================

A model appears and disappears by one rename, so a process that is killed at any moment leaves
either a whole model or hidden folders that :meth:`Store.sweep` clears.
"""

import contextlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from r1mac.durable import folder_to_disk
from r1mac.errors import NotWritable, UnknownModel, writing_to
from r1mac.hub.manifest import MANIFEST_NAME, Manifest, load_manifest

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_LEFTOVER = re.compile(rf"\.(?P<name>{_NAME.pattern})\.(?P<kind>partial|trash)(?:-[0-9a-f]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A whole model on this disk.

    Attributes:
        name: its folder's name.
        path: its folder.
        size_bytes: what its files weigh now.
        manifest: what it was when it was stored.
    """

    name: str
    path: Path
    size_bytes: int
    manifest: Manifest

    def missing_files(self) -> tuple[str, ...]:
        """Return the files of the manifest that are no longer there, or not in their stored size."""
        return missing_files(self.path, self.manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A hidden folder that no process works on: an unfinished model, or one that was being deleted."""

    name: str
    path: Path
    kind: Literal["partial", "trash"]
    size_bytes: int


class Store:
    """The folder of models. Any number of processes may use one at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str) -> Path:
        """Return where the model *name* is or would be; a Hub id ``org/repo`` becomes ``org--repo``.

        Raises:
            UnknownModel: *name* could not be a folder's name below the root.
        """
        parts = name.split("/")
        plain = "--".join(parts)
        if len(parts) > 2 or not all(map(_NAME.fullmatch, parts)) or not _NAME.fullmatch(plain):  # noqa: PLR2004
            raise UnknownModel(
                f"{name!r} cannot be the name of a model",
                hint="a name has letters, digits, '.', '_' and '-', and starts with a letter or digit",
            )
        return self.root / plain

    def list(self) -> tuple[StoredModel, ...]:
        """Return every whole model by name; an absent root is an empty store."""
        if not self.root.is_dir():
            return ()
        with writing_to(self.root):  # a root that may not even be read is one that cannot be used
            names = sorted(path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name))
        return tuple(model for name in names if (model := self.get(name)))

    def get(self, name: str) -> StoredModel | None:
        """Return the model *name*, or None if it is not there or not whole."""
        path = self.folder(name)
        manifest = load_manifest(path)
        if manifest is None:
            return None
        return StoredModel(name=path.name, path=path, size_bytes=_size_bytes(path), manifest=manifest)

    def remove(self, name: str) -> int:
        """Delete the model *name*, whole or not, and what an unfinished download of it left; return the freed bytes.

        Raises:
            UnknownModel: there is no such model.
            NotWritable: it is in use, a link to somewhere else, or cannot be deleted.
        """
        path = self.folder(name)
        if path.is_symlink():
            raise NotWritable(
                f"{path} is a link to {path.resolve()}, and r1mac deletes nothing outside {self.root}",
                hint=f"delete the link yourself: rm '{path}'",
            )
        partial = _partial(path)
        # A manifest that cannot be read any more still says that the folder is r1mac's.
        there = [path] if (path / MANIFEST_NAME).is_file() else []
        there += [partial] if partial.is_dir() else []
        if not there:
            raise UnknownModel(f"there is no model {path.name!r} in {self.root}", hint="`r1mac list` shows the models")
        with _lock(path, wait_seconds=0):
            return sum(map(self._discard, there))

    def has_remains(self, name: str) -> bool:
        """Tell whether anything of the model *name* is there, whole or not."""
        path = self.folder(name)
        return (path / MANIFEST_NAME).is_file() or _partial(path).is_dir()

    def leftovers(self) -> tuple[Leftover, ...]:
        """Return the hidden folders that no living process holds."""
        found = []
        for leftover in self._hidden_folders():
            with contextlib.suppress(NotWritable), _lock(self.root / leftover.name, wait_seconds=0):
                found.append(leftover)
        return tuple(found)

    def sweep_trash(self) -> int:
        """Delete what a kill in the middle of a deletion left, and return the freed bytes."""
        freed_bytes = 0
        for leftover in self._hidden_folders():
            if leftover.kind == "trash":
                with contextlib.suppress(NotWritable), _lock(self.root / leftover.name, wait_seconds=0):
                    freed_bytes += self._discard(leftover.path)
        return freed_bytes

    def building(
        self,
        name: str,
        *,
        keep_partial: bool = False,
        on_wait: Callable[[str], None] | None = None,
        wait_seconds: float = -1,
    ) -> contextlib.AbstractContextManager[Path]:
        """Return :func:`building` for the model *name* of this store.

        Raises:
            UnknownModel: *name* could not be a folder's name below the root.
        """
        return building(self.folder(name), keep_partial=keep_partial, on_wait=on_wait, wait_seconds=wait_seconds)

    def _discard(self, path: Path) -> int:
        """Delete the folder *path* below the root, and return what its files weighed."""
        assert path.parent == self.root
        size_bytes = _size_bytes(path)
        with writing_to(path):
            trash = path if path.name.startswith(".") else _to_trash(path)
            shutil.rmtree(trash)
        return size_bytes

    def _hidden_folders(self) -> Iterator[Leftover]:
        for path in sorted(self.root.glob(".*")) if self.root.is_dir() else ():
            match = _LEFTOVER.fullmatch(path.name)
            if match and path.is_dir() and not path.is_symlink():
                kind: Literal["partial", "trash"] = "partial" if match["kind"] == "partial" else "trash"
                yield Leftover(name=match["name"], path=path, kind=kind, size_bytes=_size_bytes(path))


@contextlib.contextmanager
def building(
    path: Path,
    *,
    keep_partial: bool = False,
    on_wait: Callable[[str], None] | None = None,
    wait_seconds: float = -1,
) -> Iterator[Path]:
    """Yield the hidden folder to make the model *path* in, and publish it when the block ends well.

    Only one process is inside at a time. A block that finds the model made already (by the process it
    waited for) leaves without writing a manifest, and the model stays as it is. An older model at *path* is
    replaced in the end, and so is an empty folder.

    Args:
        path: the model's folder, which need not exist.
        keep_partial: go on with what an earlier block left, and leave it after an exception; otherwise the
            folder is empty at first and gone after an exception.
        on_wait: called once with the name if another process is at work on it.
        wait_seconds: longest wait for that process; negative is for ever.

    Raises:
        NotWritable: the folder cannot be written, or the wait was too long.
        DiskFull: there is no room.
    """
    partial = _partial(path)
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path, wait_seconds=wait_seconds, on_wait=on_wait):
        with writing_to(partial):
            if not keep_partial and partial.is_dir():
                shutil.rmtree(partial)
            partial.mkdir(exist_ok=True)
            # One left by a kill just before the rename would make a half changed folder look whole.
            (partial / MANIFEST_NAME).unlink(missing_ok=True)
        try:
            yield partial
            if load_manifest(partial) is not None:
                _publish(partial, path)
        except BaseException:
            if not keep_partial:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            # Still there and empty only if the block made nothing.
            with contextlib.suppress(OSError):
                partial.rmdir()


def _publish(partial: Path, path: Path) -> None:
    with writing_to(path.parent):
        old = _to_trash(path) if path.is_dir() and not path.is_symlink() else None
        partial.replace(path)
        folder_to_disk(path.parent)
        if old is not None:
            shutil.rmtree(old)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _to_trash(path: Path) -> Path:
    trash = path.with_name(f".{path.name}.trash-{secrets.token_hex(4)}")
    path.replace(trash)
    folder_to_disk(path.parent)
    return trash


@contextlib.contextmanager
def _lock(path: Path, *, wait_seconds: float, on_wait: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock of the model folder *path*."""
    import filelock

    lock_file = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(lock_file)
    try:
        with writing_to(path.parent):
            lock_file.touch()  # filelock tries for ever in a folder that takes no files and does not say so (/proc)
            lock.acquire(timeout=0)
    except FileNotFoundError as error:
        raise NotWritable(f"no file can be made in {path.parent}", hint="name another folder") from error
    except filelock.Timeout:
        if on_wait is not None:
            on_wait(path.name)
        try:
            lock.acquire(timeout=wait_seconds, poll_interval=0.2)
        except filelock.Timeout as error:
            raise NotWritable(
                f"another r1mac is at work on {path.name!r} in {path.parent}",
                hint="wait until it has finished, or stop it",
            ) from error
    try:
        yield
    finally:
        # Unlinked while it is held: a process that waits on the old file notices, and opens the new one.
        with contextlib.suppress(OSError):
            lock_file.unlink()
        lock.release()


def _size_bytes(folder: Path) -> int:
    """Return what the files below *folder* weigh; a file that vanishes meanwhile weighs nothing."""
    total_bytes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total_bytes += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
    return total_bytes


def missing_files(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Return the files of *manifest* that are not in *folder*, or not in their stored size."""
    return tuple(file.name for file in manifest.files if not _has_size(folder / file.name, file.size_bytes))


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size_bytes
    except OSError:
        return False
