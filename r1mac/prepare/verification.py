"""``r1mac convert --verify``: a converted model against the checksums of its conversion."""

from collections.abc import Generator
from pathlib import Path

from r1mac.errors import BadCheckpoint
from r1mac.formats import folder as model_folder
from r1mac.machine.base import Machine
from r1mac.prepare.files import PrepareEvent, Progress


def verify_folder(folder: Path, machine: Machine, *, smoke: bool) -> Generator[PrepareEvent, None, None]:
    """Check every file of the model in *folder* against the record of its conversion, its headers, and that it runs.

    Raises:
        BadCheckpoint: a file is missing, was changed, or does not belong there; the text names it.
    """
    from r1mac.convert.journal import Journal, digest_file
    from r1mac.prepare.smoke import smoke_test

    if not folder.is_dir():
        raise BadCheckpoint(f"there is no folder {folder}", hint="check the path")
    record = Journal.load(folder)
    if not record.is_complete:
        raise BadCheckpoint(f"the conversion in {folder} has not ended", hint="run its command again: it goes on")
    expected = {**record.shards, **record.files}
    total_bytes, done_bytes = sum(digest.size_bytes for digest in expected.values()), 0
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            raise BadCheckpoint(f"{name} is missing in {folder}", hint="convert the model again")
        size_bytes = path.stat().st_size
        if size_bytes != digest.size_bytes:
            raise BadCheckpoint(
                f"{name} in {folder} has {size_bytes} bytes and was written with {digest.size_bytes}",
                hint="convert the model again",
            )
        yield Progress(task="verify", title=folder.name, done=done_bytes, total=total_bytes)
        if digest_file(path) != digest:
            raise BadCheckpoint(
                f"{name} in {folder} was changed after it was written: its checksum is another",
                hint="convert the model again; if this happens twice, check the disk",
            )
        done_bytes += size_bytes
    if strangers := sorted(path.name for path in model_folder.weight_files(folder) if path.name not in record.shards):
        raise BadCheckpoint(f"{strangers[0]} in {folder} is not of this conversion", hint="delete it")
    model_folder.read_tensors(folder)
    yield Progress(task="verify", title=folder.name, done=total_bytes, total=total_bytes)
    if smoke:
        yield from smoke_test(folder, machine)
