"""A model of this disk to the Hub: which, whether it is whole, and what goes where."""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from r1mac.errors import UnknownModel
from r1mac.machine.base import Machine
from r1mac.prepare.files import PrepareEvent
from r1mac.prepare.target import described, find_stored, resolve, typed_name
from r1mac.settings import Settings
from r1mac.units import format_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """What is going to be uploaded.

    Attributes:
        folder: the model's.
        files: names and sizes of what goes.
        repo: where it goes.
        visibility: of the repository as it is, or None where there is none yet.
        public: whether a new one is to be public.
    """

    folder: Path
    files: tuple[tuple[str, int], ...]
    repo: str
    visibility: str | None
    public: bool

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size_bytes for _, size_bytes in self.files)

    def __str__(self) -> str:
        kind = self.visibility or ("public" if self.public else "private")
        state = "the" if self.visibility else "the new"
        count = f"{len(self.files)} files" if len(self.files) > 1 else "1 file"
        return f"{count}, {format_size(self.total_bytes)}, of {self.folder} to {state} {kind} repository {self.repo}"


def plan_push(repo: str, model: str, settings: Settings, *, public: bool) -> Push:
    """Return what pushing *model* (a folder, a stored model, or whatever it is run as) to *repo* means.

    Raises:
        UnknownModel: there is no such model on this disk.
        BadCheckpoint: it is not r1mac's, or not whole.
        R1MacError: as the Hub refuses.
    """
    from r1mac.convert.journal import RECORD_NAME
    from r1mac.hub.upload import check_folder, visibility_of

    folder = _folder_of(model, settings)
    # The record of the conversion names files and folders of this computer, and nobody else needs it.
    files = tuple((name, size_bytes) for name, size_bytes in check_folder(folder) if name != RECORD_NAME)
    return Push(folder=folder, files=files, repo=repo, visibility=visibility_of(repo), public=public)


def verified(push: Push, machine: Machine) -> Generator[PrepareEvent, None, None]:
    """Check every file that the record of a conversion has a checksum of, and yield progress.

    A model that was fetched has no record: its files were checked when they came.

    Raises:
        BadCheckpoint: a file is another one than when it was made.
    """
    from r1mac.convert.journal import RECORD_NAME
    from r1mac.prepare.verification import verify_folder

    if (push.folder / RECORD_NAME).is_file():
        yield from verify_folder(push.folder, machine, smoke=False)


def _folder_of(model: str, settings: Settings) -> Path:
    target = resolve(model, settings)
    if target.folder is not None:
        return target.folder
    stored = find_stored(target, settings)
    if stored is None:
        bits = f" --bits {target.bits}" if target.bits else ""
        raise UnknownModel(
            f"{described(target)} is not on this disk",
            hint=f"`r1mac pull {typed_name(target)}{bits}` brings or makes it; `r1mac list` shows what is here",
        )
    return stored.path
