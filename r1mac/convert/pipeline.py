"""A source and a recipe become an MLX model's folder, a block of rows at a time."""

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from r1mac.convert.block_writing import BlockWriting, PendingBlock
from r1mac.convert.blocks import DEFAULT_BLOCK_BYTES, piece_blocks
from r1mac.convert.calibrated_fit import CalibratedFit
from r1mac.convert.destination import Destination
from r1mac.convert.device import cache_limited
from r1mac.convert.encode import Encoder
from r1mac.convert.layout import Piece
from r1mac.convert.recipe import Recipe
from r1mac.convert.schedule import Step, steps
from r1mac.convert.sources import Source
from r1mac.convert.writer import MAX_SHARD_BYTES
from r1mac.errors import FREE_SOME_SPACE, DiskFull, writing_to
from r1mac.units import format_size

logger = logging.getLogger(__name__)

# Freed buffers that MLX may keep for the next blocks, in blocks.
_CACHED_BLOCKS = 2
# Two: blocks differ, and the threads that work on them would wait for the next one.
_BLOCKS_AHEAD = 2


class Target(NamedTuple):
    """A model to make: its recipe and the folder to make it in, which exists."""

    recipe: Recipe
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionStarted:
    """The first event, before anything is read or written: what is going to be done.

    Attributes:
        total_bytes: the source's.
        done_bytes: those of them that an earlier run has converted.
        output_bytes: of all models.
        missing_output_bytes: those of them in weight files that are not whole yet.
        whole_files: weight files that are whole.
        all_files: weight files of all models.
        unquantized_names: matrices that stay wide because the group size does not divide their rows.
        reasons: why what an earlier run left is not used; empty where it is, or where nothing was left.
        steps: what is going to be made of which of the source's files, in order.
    """

    total_bytes: int
    done_bytes: int
    output_bytes: int
    missing_output_bytes: int
    whole_files: int
    all_files: int
    unquantized_names: tuple[str, ...]
    reasons: tuple[str, ...]
    steps: tuple[Step[Piece], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarting:
    """These files of the source are read from here on, up to the next :class:`StepDone`."""

    files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone:
    """What was made is on the disk and in the journal; these files of the source are not read any more."""

    unneeded_files: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorWritten:
    """A tensor, or one expert of it, is written. *done_bytes* counts the source's bytes."""

    name: str
    done_bytes: int
    total_bytes: int


ConvertEvent = ConversionStarted | StepStarting | TensorWritten | StepDone


def convert(
    source: Source,
    recipe: Recipe,
    into: Path,
    *,
    free_disk_bytes: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    restart: bool = False,
    by_source_file: bool = False,
    statistics: Path | None = None,
) -> Iterator[ConvertEvent]:
    """Write the MLX model of *source* into the folder *into*: :func:`convert_all` for one recipe."""
    yield from convert_all(
        source,
        [Target(recipe, into)],
        free_disk_bytes=free_disk_bytes,
        max_shard_bytes=max_shard_bytes,
        block_bytes=block_bytes,
        restart=restart,
        by_source_file=by_source_file,
        statistics=statistics,
    )


def convert_all(
    source: Source,
    targets: Sequence[Target],
    *,
    free_disk_bytes: int | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    restart: bool = False,
    by_source_file: bool = False,
    statistics: Path | None = None,
) -> Iterator[ConvertEvent]:
    """Write the MLX models of *source* into the folders of *targets*, reading each tensor once.

    Peak memory is a few blocks of rows: it depends neither on the model's size nor on the largest tensor.
    The caller gives the folders their names when this has ended; until then they are no models. What a run that
    was killed, or failed, has brought to the disk is gone on with, and the result is the same to the byte.

    Args:
        source: what to convert.
        targets: at least one.
        free_disk_bytes: nothing is written unless the results and one percent more have room.
        max_shard_bytes: limit of one weight file.
        block_bytes: rows read at once, as float32.
        restart: use nothing that an earlier run left.
        by_source_file: follow the order of the source's files, of which those of one step have to be there at a time.
        statistics: folder of what ``convert.calibration`` measured of the source; None rounds.

    Raises:
        BadCheckpoint: a tensor is missing, too many, of the wrong shape, or not finite.
        BadRecipe: the recipe cannot be applied to this model.
        DiskFull, NotWritable: as they say.
    """
    fit = None if statistics is None else CalibratedFit(statistics)
    made = [
        Destination(source, *target, max_shard_bytes=max_shard_bytes, restart=restart, fit=fit) for target in targets
    ]
    conversion = _Conversion(source, made, block_bytes=block_bytes, by_source_file=by_source_file)
    missing_bytes = sum(destination.missing_bytes for destination in made)
    _check_room(targets[0].folder, missing_bytes, free_disk_bytes)
    logger.info("converting %s to %d models", source.description, len(targets))
    yield conversion.started(missing_bytes)
    with contextlib.ExitStack() as stack:
        for destination in made:
            stack.enter_context(writing_to(destination.folder, needed_bytes=missing_bytes))
        stack.enter_context(_closing(made))
        stack.enter_context(cache_limited(_CACHED_BLOCKS * block_bytes))
        yield from conversion.run()
        for destination in made:
            destination.finish(source)


class _Conversion:
    def __init__(
        self, source: Source, destinations: Sequence[Destination], *, block_bytes: int, by_source_file: bool
    ) -> None:
        self._source, self._destinations, self._block_bytes = source, destinations, block_bytes
        pieces = [piece for tensor in destinations[0].layout.tensors for piece in tensor.pieces()]
        self._total_bytes = sum(self._size_bytes(piece) for piece in pieces)
        todo = [piece for piece in pieces if not all(made.is_done(piece) for made in destinations)]
        self._done_bytes = self._total_bytes - sum(self._size_bytes(piece) for piece in todo)
        self._unneeded: tuple[str, ...] = ()
        if by_source_file:
            files_of = {piece: self._files(piece) for piece in pieces}
            self._steps = tuple(steps({piece: files_of[piece] for piece in todo}))
            needed = {file for step in self._steps for file in step.files}
            self._unneeded = tuple(sorted(frozenset().union(*files_of.values()) - needed))
        else:
            self._steps = tuple(self._by_shard(todo))

    def started(self, missing_bytes: int) -> ConversionStarted:
        made = self._destinations
        return ConversionStarted(
            total_bytes=self._total_bytes,
            done_bytes=self._done_bytes,
            output_bytes=sum(destination.layout.output_bytes for destination in made),
            missing_output_bytes=missing_bytes,
            whole_files=sum(destination.whole_count for destination in made),
            all_files=sum(destination.shard_count for destination in made),
            unquantized_names=made[0].layout.unquantized_names,
            reasons=tuple(dict.fromkeys(reason for destination in made for reason in destination.reasons)),
            steps=self._steps,
        )

    def run(self) -> Iterator[ConvertEvent]:
        for destination in self._destinations:
            destination.open()
        if self._unneeded:
            yield StepDone(unneeded_files=self._unneeded)
        with Encoder() as encoder, BlockWriting() as writing:
            for step in self._steps:
                yield StepStarting(files=step.files)
                yield from self._make(step.pieces, encoder, writing)
                for destination in self._destinations:
                    destination.commit(step.pieces)
                yield StepDone(unneeded_files=step.unneeded_files)

    def _make(self, pieces: Sequence[Piece], encoder: Encoder, writing: BlockWriting) -> Iterator[ConvertEvent]:
        """Write *pieces*. While blocks are worked on, the one before them is written and the next one is read."""
        pending: deque[PendingBlock] = deque()
        for piece in pieces:
            tensor = self._destinations[0].tensor(piece)
            todo = tuple(made for made in self._destinations if not made.is_done(piece))
            for block in piece_blocks(self._source, tensor, piece.number, block_bytes=self._block_bytes):
                forms = [made.form(piece, block.first_row) for made in todo]
                encoding = encoder.begin(self._source_name(piece), block.values, forms)
                pending.append(PendingBlock(piece, block.first_row, todo, encoding))
                if len(pending) > _BLOCKS_AHEAD:
                    writing.begin(pending.popleft())
            self._done_bytes += self._size_bytes(piece)
            yield TensorWritten(name=piece.tensor, done_bytes=self._done_bytes, total_bytes=self._total_bytes)
        for one in pending:
            writing.begin(one)
        writing.wait()

    def _by_shard(self, pieces: Sequence[Piece]) -> Iterator[Step[Piece]]:
        """Cut *pieces* where a weight file of any destination is whole."""
        begin = 0
        for end, piece in enumerate(pieces, start=1):
            if end == len(pieces) or any(made.ends_shard(piece) for made in self._destinations):
                yield Step(pieces=tuple(pieces[begin:end]), files=(), unneeded_files=())
                begin = end

    def _size_bytes(self, piece: Piece) -> int:
        return self._source.size_bytes(self._source_name(piece))

    def _files(self, piece: Piece) -> frozenset[str]:
        return frozenset(self._source.files(self._source_name(piece)))

    def _source_name(self, piece: Piece) -> str:
        return self._destinations[0].tensor(piece).sourcing.names[piece.number]


def _check_room(folder: Path, missing_bytes: int, free_disk_bytes: int | None) -> None:
    needed_bytes = missing_bytes + missing_bytes // 100
    if free_disk_bytes is not None and free_disk_bytes < needed_bytes:
        raise DiskFull(
            f"the converted model needs {format_size(needed_bytes)} on the disk of {folder.parent}, which has "
            f"{format_size(free_disk_bytes)} free",
            hint=f"{FREE_SOME_SPACE}, or use fewer --bits",
        )


@contextlib.contextmanager
def _closing(destinations: Sequence[Destination]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for destination in destinations:
            destination.close(failed=True)
        raise
    for destination in destinations:
        destination.close(failed=False)
