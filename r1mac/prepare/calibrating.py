"""``r1mac calibrate``: a model's weights and a text become statistics of what its matrices are given."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac.errors import FREE_SOME_SPACE, BadCheckpoint, DiskFull, DoesNotFit, NotWritable, writing_to
from r1mac.machine.base import Machine
from r1mac.prepare.files import PrepareEvent, Progress
from r1mac.prepare.tokens import encode_texts, read_text
from r1mac.units import MIB, format_memory, format_size

if TYPE_CHECKING:
    from r1mac.convert.sources import Source

# A text that is shorter than this says too little about any channel.
_LEAST_TOKENS = 256
# In the folder of a model in the making; a converter leaves hidden names alone.
STATISTICS_NAME = ".statistics"
# Python, MLX, mlx-lm and the tokenizer.
_FIXED_BYTES = 500 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How scales and codes are chosen by what a model's matrices are given.

    Attributes:
        statistics: folder that ``r1mac calibrate`` made; None to measure now, and to delete what was measured.
        text_file: what to measure with; None for the text that r1mac has.
        mixes: whether the bytes of one width for all may be spent on widths of their own, where less is lost so.
    """

    statistics: Path | None = None
    text_file: Path | None = None
    mixes: bool = False


def statistics_for(
    source: "Source", quality: Quality, work: Path, machine: Machine, *, title: str
) -> Generator[PrepareEvent, None, Path]:
    """Return the folder of statistics to convert *source* with; what is measured for it goes below *work*.

    Raises:
        BadCheckpoint: the folder named holds none, or none that are whole.
        R1MacError: as :func:`calibrate_source` does.
    """
    if (folder := quality.statistics) is not None:
        if not is_whole(folder):
            raise BadCheckpoint(
                f"{folder} holds no statistics that are whole",
                hint=f"make them with `r1mac calibrate MODEL -o {folder}`",
            )
        return folder
    folder = work / STATISTICS_NAME
    yield from calibrate_source(source, folder, machine, title=title, text_file=quality.text_file)
    return folder


def is_whole(folder: Path) -> bool:
    """Tell whether *folder* holds statistics that are whole."""
    from r1mac.convert.calibration import is_complete

    return is_complete(folder)


def calibrate_source(
    source: "Source", folder: Path, machine: Machine, *, title: str, text_file: Path | None = None
) -> Iterator[PrepareEvent]:
    """Write the statistics of *source*'s matrices into *folder*, which is made; an unfinished run is gone on with.

    Args:
        source: the model.
        folder: for the statistics alone.
        machine: this computer.
        title: the model's name for a person.
        text_file: what to calibrate with; None for the text that r1mac has.

    Raises:
        BadCheckpoint: the model has no tokenizer, its weights make no model, or the text is too short or no text.
        NotWritable: there is something else in the folder.
        DiskFull: there is no room.
        DoesNotFit: the memory does not hold one block of the model.
    """
    from r1mac.convert.calibration import calibrate, needs

    sequences = sequences_of(source, text_file)
    _check_folder(folder)
    needed = needs(source, sum(map(len, sequences)))
    _check_memory(needed.memory_bytes, machine)
    _check_disk(needed.disk_bytes, folder, machine)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for event in calibrate(source, sequences, folder):
            yield Progress(task="calibrate", title=title, done=event.done, total=event.total)


def calibrate_path(
    path: Path, folder: Path, machine: Machine, *, text_file: Path | None = None
) -> Generator[PrepareEvent, None, Path]:
    """Calibrate the model at *path*, a folder or file, and return the folder of statistics.

    Raises:
        R1MacError: as :func:`calibrate_source` does.
    """
    from r1mac.convert.sources import open_source

    yield from calibrate_source(open_source(path), folder, machine, title=path.name, text_file=text_file)
    return folder


def sequences_of(source: "Source", text_file: Path | None) -> list[list[int]]:
    """Return the tokens of the calibration text, in pieces of one length.

    Raises:
        BadCheckpoint: there is no tokenizer, it is not the model's, or the text is too short or no text.
    """
    from r1mac.convert.calibration import cut_into_sequences, is_known, shipped_parts

    parts = shipped_parts() if text_file is None else (read_text(text_file, "the calibration text"),)
    encoded = encode_texts(source, parts)
    # Languages come first, and the rest is cut at its end.
    token_ids: list[int] = []
    for part, ids in zip(parts[1:], encoded.texts[1:], strict=True):
        token_ids += ids if is_known(part, len(ids)) else []
    token_ids += encoded.texts[0]
    if len(token_ids) < _LEAST_TOKENS:
        raise BadCheckpoint(
            f"the calibration text has {len(token_ids)} tokens, and at least {_LEAST_TOKENS} are needed",
            hint="use a longer text, or leave out --calibration",
        )
    return cut_into_sequences(token_ids, first_id=encoded.first_id)


def _check_memory(needed_bytes: int, machine: Machine) -> None:
    needed_bytes += _FIXED_BYTES
    if needed_bytes > (free_bytes := machine.available_memory_bytes()):
        raise DoesNotFit(
            f"one block of this model and what is measured of it take {format_memory(needed_bytes)} of memory, and "
            f"{format_memory(free_bytes)} are free",
            hint="close other programs, or calibrate on a computer with more memory and copy the folder",
        )


def _check_disk(needed_bytes: int, folder: Path, machine: Machine) -> None:
    """Refuse what has no room; what a run that was stopped left in *folder* is part of it.

    Raises:
        DiskFull: with the numbers.
    """
    kept_bytes = sum(path.stat().st_size for path in folder.glob("*") if path.is_file())
    free_bytes = machine.free_disk_bytes(folder)
    if needed_bytes - kept_bytes > free_bytes:
        raise DiskFull(
            f"calibrating takes {format_size(needed_bytes - kept_bytes)} for what goes through this model, nearly all "
            f"of it only until it is done, and the disk of {folder.parent} has {format_size(free_bytes)} free",
            hint=f"{FREE_SOME_SPACE}, or name a folder on another disk with `r1mac calibrate MODEL -o FOLDER`",
        )


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but statistics.

    Raises:
        NotWritable: naming it.
    """
    from r1mac.convert.input_statistics import RECORD_NAME

    if folder.exists() and not folder.is_dir():
        raise NotWritable(f"{folder} is a file", hint="name another -o FOLDER")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD_NAME).exists():
        raise NotWritable(f"{folder} holds something else than statistics", hint="name another -o FOLDER")
