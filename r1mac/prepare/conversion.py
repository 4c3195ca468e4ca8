"""Conversions: from opened weights to folders that have their names, with everything that is checked on the way."""

import contextlib
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from r1mac import paths
from r1mac.errors import BadRecipe, NotWritable, R1MacError, writing_to
from r1mac.machine.base import Machine
from r1mac.prepare.calibrating import STATISTICS_NAME, Quality, statistics_for
from r1mac.prepare.conversion_memory import block_bytes_for, measuring_room
from r1mac.prepare.files import Note, PrepareEvent, Progress

if TYPE_CHECKING:
    from r1mac.convert.pipeline import ConversionStarted, Target
    from r1mac.convert.schedule import Step
    from r1mac.convert.sources import Source
    from r1mac.formats.quality import Quality as MeasuredQuality
    from r1mac.plan.recipe import Recipe

# Codes of more bits lose so little that it is not worth weighing them.
_MOST_MIXED_BITS = 4
# Bytes that a token reads, of those with one width: from here on it is said.
_NOTED_SLOWER = 1.02


class Feed(Protocol):
    """Brings a source's files to this disk when they are needed, and takes them away when they are used up."""

    def begin(self, steps: "Sequence[Step[Any]]", missing_result_bytes: int, into: Path) -> Iterator[PrepareEvent]:
        """Learn what is going to be done, before anything is written."""
        ...

    def ready(self, names: Sequence[str]) -> Iterator[PrepareEvent]:
        """Yield until the files *names* are there."""
        ...

    def release(self, names: Sequence[str]) -> None:
        """Learn that the files *names* are not needed any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How a conversion is done; but for *quality* none of it changes a byte of the result but the size of the files.

    Attributes:
        memory_bytes: the most that the process should take; None for little.
        max_shard_bytes: limit of one weight file; None for mlx-lm's 5 GiB.
        restart: use nothing that an earlier run left.
        replace: an output may be a model already.
        smoke: generate a few tokens with each result before it gets its name.
        quality: choose scales and codes by what the matrices are given; None rounds.
        measures: compare each result with its source on a short text, for its card.
    """

    memory_bytes: int | None = None
    max_shard_bytes: int | None = None
    restart: bool = False
    replace: bool = False
    smoke: bool = False
    quality: Quality | None = None
    measures: bool = False


class Output(NamedTuple):
    """A model to make: its recipe and its folder, which need not exist."""

    recipe: "Recipe"
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where weights come from.

    Attributes:
        title: for a person.
        source: the Hub repository, or a path.
        revision: its commit; None for anything but a repository.
        feed: brings the weights, where they are not all there.
        repo: the Hub repository; None for a path.
        source_card: README.md of the source, which need not exist.
    """

    title: str
    source: str
    revision: str | None = None
    feed: Feed | None = None
    repo: str | None = None
    source_card: Path | None = None


def outputs_of(output: Path, widths: Sequence[str]) -> list[Path]:
    """Return the folder for each of *widths* ("4", "mxfp4"): ``{bits}`` in *output* is replaced, or the width added."""
    folder = paths.expanded(output).absolute()
    if "{bits}" in str(folder):
        return [Path(str(folder).replace("{bits}", width)) for width in widths]
    if len(widths) == 1:
        return [folder]
    return [folder.with_name(f"{folder.name}-{width}{'bit' if width.isdecimal() else ''}") for width in widths]


def convert_to_folders(
    source: "Source",
    outputs: Sequence[Output],
    provenance: Provenance,
    machine: Machine,
    manner: Manner,
    *,
    on_wait: Callable[[str], None] | None = None,
) -> Generator[PrepareEvent, None, tuple[Path, ...]]:
    """Convert *source* into a new folder for each of *outputs* with one pass over it, and return the folders.

    A folder gets its name when it is complete. Until then it is hidden, and what was made of it is gone on with.
    What is lost by the conversion is said.

    Raises:
        BadCheckpoint, BadRecipe, DiskFull, NotWritable: as the converter does; the text says what is kept.
    """
    from r1mac.convert.adapter import AdaptedSource
    from r1mac.convert.adapter_effect import measure_effect
    from r1mac.hub.store import building

    yield from _warnings(source, outputs)
    folders = tuple(output.folder for output in outputs)
    with contextlib.ExitStack() as stack:
        # In the order of their names, so that two runs with the same outputs do not wait for each other for ever.
        works = {
            folder: stack.enter_context(building(folder, keep_partial=True, on_wait=on_wait))
            for folder in sorted(folders)
        }
        yield from convert_into(
            source, [(output.recipe, works[output.folder]) for output in outputs], provenance, machine, manner
        )
    if isinstance(source, AdaptedSource):
        for folder in folders:
            yield Note(f"{folder.name}: {measure_effect(source, folder).sentence()}")
    return folders


def _warnings(source: "Source", outputs: Sequence[Output]) -> Iterator[PrepareEvent]:
    """Say what is lost by converting *source*.

    Raises:
        BadRecipe: an output would only be larger.
    """
    from r1mac.convert.adapter import AdaptedSource
    from r1mac.convert.sources import requantization_note

    for recipe, _ in outputs:
        if note := requantization_note(source, bits=min(width.bits for width in recipe.widths)):
            yield Note(note)
    if isinstance(source, AdaptedSource):
        for text in source.notes():
            yield Note(text)


def convert_into(
    source: "Source",
    works: "Sequence[tuple[Recipe, Path]]",
    provenance: Provenance,
    machine: Machine,
    manner: Manner,
) -> Iterator[PrepareEvent]:
    """Convert *source* into folders that are hidden yet, check the results and mark them as models.

    Raises:
        BadCheckpoint, BadRecipe, DiskFull, NotWritable: as ``convert.pipeline.convert_all`` does.
    """
    from r1mac.convert.journal import RECORD_NAME
    from r1mac.convert.pipeline import Target
    from r1mac.hub.manifest import describe, write_manifest

    targets = [Target(recipe, folder) for recipe, folder in works]
    measured = targets[0].folder / STATISTICS_NAME
    try:
        statistics = None
        if manner.quality is not None:
            _check_can_measure(provenance, manner.quality)
            statistics = yield from statistics_for(
                source, manner.quality, targets[0].folder, machine, title=provenance.title
            )
            # Weights that come file by file and go cannot be read once more to weigh them.
            if manner.quality.mixes and provenance.feed is None:
                targets = yield from _mixed(source, targets, statistics, machine, title=provenance.title)
        yield from _converted(source, targets, provenance, machine, manner, statistics)
        shutil.rmtree(measured, ignore_errors=True)
        for _, folder in targets:
            yield from _checked(folder, machine, smoke=manner.smoke)
        qualities = yield from _qualities(source, targets, provenance, manner)
        for (recipe, folder), quality in zip(targets, qualities, strict=True):
            yield from _write_card(folder, provenance, quality)
            bits = recipe.nominal_bits
            write_manifest(folder, describe(folder, source=provenance.source, revision=provenance.revision, bits=bits))
    except R1MacError as error:
        if kept := [str(folder) for _, folder in targets if (folder / RECORD_NAME).exists()]:
            error.problem += f"; what is converted is kept in {', '.join(kept)}, and the same command goes on with it"
        raise


def _mixed(
    source: "Source", targets: "Sequence[Target]", statistics: Path, machine: Machine, *, title: str
) -> "Generator[PrepareEvent, None, list[Target]]":
    """Return *targets* with recipes that spend the bytes of one width where they save most, and say what they are."""
    from r1mac.catalog.arch import parse_arch
    from r1mac.convert.pipeline import Target
    from r1mac.plan.recipe import read_bytes_per_token
    from r1mac.prepare.budget import Budget, choose_within

    arch, mixed = parse_arch(source.config), []
    for recipe, folder in targets:
        width = recipe.default
        if recipe.overrides or width.mode != "affine" or width.bits > _MOST_MIXED_BITS:
            mixed.append(Target(recipe, folder))
            continue
        budget = Budget(uniform=width, dtype=recipe.dtype)
        chosen = yield from choose_within(source, budget, statistics, machine, title=title)
        mixed.append(Target(replace(chosen.recipe, nominal_bits=width.bits), folder))
        # Of experts a token reads a few: bits that go from them to the rest make no larger file, but a slower model.
        slower = read_bytes_per_token(arch, chosen.recipe) / read_bytes_per_token(arch, recipe)
        reads = f"; for a token it reads {slower:.2f} times the bytes" if slower > _NOTED_SLOWER else ""
        yield Note(f"{width.bits} bits: {chosen.recipe.summary}{reads}")
    return mixed


def _check_can_measure(provenance: Provenance, quality: Quality) -> None:
    """Refuse to measure weights that come file by file and go: they would have to come twice.

    Raises:
        BadRecipe: saying how to have them here.
    """
    if provenance.feed is not None and quality.statistics is None:
        raise BadRecipe(
            f"--quality reads the weights twice, and those of {provenance.title} are fetched file by file",
            hint=f"fetch them whole with `hf download {provenance.repo} --local-dir FOLDER`, and convert that folder",
        )


def _converted(
    source: "Source",
    targets: "Sequence[Target]",
    provenance: Provenance,
    machine: Machine,
    manner: Manner,
    statistics: Path | None,
) -> Iterator[PrepareEvent]:
    from r1mac.convert.pipeline import ConversionStarted, StepDone, StepStarting, TensorWritten, convert_all
    from r1mac.convert.writer import MAX_SHARD_BYTES

    feed, folder = provenance.feed, targets[0].folder
    for event in convert_all(
        source,
        targets,
        free_disk_bytes=None if feed is not None else machine.free_disk_bytes(folder),
        max_shard_bytes=manner.max_shard_bytes or MAX_SHARD_BYTES,
        block_bytes=block_bytes_for(manner.memory_bytes, [target.recipe for target in targets]),
        restart=manner.restart,
        by_source_file=feed is not None,
        statistics=statistics,
    ):
        match event:
            case ConversionStarted():
                yield from _announced(event, targets)
                if feed is not None:
                    yield from feed.begin(event.steps, event.missing_output_bytes, folder)
                yield Progress(task="convert", title=provenance.title, done=event.done_bytes, total=event.total_bytes)
            case StepStarting(files=names) if feed is not None:
                yield from feed.ready(names)
            case StepDone(unneeded_files=names) if feed is not None:
                feed.release(names)
            case TensorWritten():
                yield Progress(task="convert", title=provenance.title, done=event.done_bytes, total=event.total_bytes)


def _qualities(
    source: "Source", targets: "Sequence[Target]", provenance: Provenance, manner: Manner
) -> "Generator[PrepareEvent, None, Sequence[MeasuredQuality | None]]":
    """Return what is measured of each result beside the source, where that is asked for.

    Weights that came file by file are gone by now: their results are read alone.
    """
    if not manner.measures:
        return [None] * len(targets)
    from r1mac.prepare.measuring import measure_results

    base, *adapters = (Path(part).name for part in source.description.split(" + "))
    return (
        yield from measure_results(
            source if provenance.feed is None else None,
            [target.folder for target in targets],
            title=provenance.title,
            reference=" + ".join([provenance.repo or base, *adapters]),
            revision=provenance.revision,
            room=measuring_room(manner.memory_bytes, [target.recipe for target in targets]),
        )
    )


def _write_card(folder: Path, provenance: Provenance, quality: "MeasuredQuality | None") -> Iterator[PrepareEvent]:
    """Write README.md and, where it was measured, quality.json, and say what was measured."""
    from r1mac.convert.card import write_card
    from r1mac.formats.quality import save_quality, summary

    title = folder.name.removeprefix(".").removesuffix(".partial")
    write_card(
        folder,
        title=title,
        repo=provenance.repo,
        revision=provenance.revision,
        source_card=provenance.source_card,
        quality=quality,
    )
    if quality is not None:
        with writing_to(folder):
            save_quality(folder, quality)
        yield Note(f"{title}: {summary(quality)}")


def _announced(event: "ConversionStarted", targets: "Sequence[Target]") -> Iterator[PrepareEvent]:
    if event.reasons:
        yield Note(f"starting over, not going on with what is in {targets[0].folder}: {'; '.join(event.reasons)}")
    elif event.done_bytes:
        yield Note(
            f"going on: {event.whole_files} of {event.all_files} files are whole, "
            f"{event.done_bytes / max(event.total_bytes, 1):.0%} of the source is converted"
        )
    if names := event.unquantized_names:
        yield Note(
            f"{len(names)} matrices stay at 16 bits, since the group size does not divide their rows "
            f"(the first is {names[0]})"
        )


def _checked(folder: Path, machine: Machine, *, smoke: bool) -> Iterator[PrepareEvent]:
    """Read the headers back and, where *smoke*, generate with the model.

    Raises:
        BadCheckpoint: something is wrong with the result.
    """
    from r1mac.formats import folder as model_folder
    from r1mac.prepare.smoke import smoke_test

    model_folder.read_tensors(folder)
    if smoke:
        yield from smoke_test(folder, machine)


def check_output(output: Path, source: Path | None, *, replace: bool) -> None:
    """Refuse an output that would cost the user anything but a model that r1mac made.

    Raises:
        NotWritable: saying what is there.
    """
    real = output.resolve()
    if source is not None and (source == real or real in source.parents):
        raise NotWritable(f"{output} is or holds the source", hint="name another -o FOLDER")
    if real == Path.cwd() or real in Path.cwd().parents:
        raise NotWritable(f"{output} is or holds the folder that you are in", hint="name another -o FOLDER")
    if output.is_symlink():
        raise NotWritable(f"{output} is a link to {real}", hint="name the folder itself, or another -o FOLDER")
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not _is_ours(output):
        raise NotWritable(f"{output} is there already, and is no model that r1mac made", hint="name another -o FOLDER")
    if not replace:
        raise NotWritable(f"{output} is a model already", hint="replace it with --force, or name another -o FOLDER")


def _is_ours(folder: Path) -> bool:
    """Tell whether a folder holds a model that r1mac made, and nothing else."""
    from r1mac.formats.quality import QUALITY_NAME
    from r1mac.hub.manifest import MANIFEST_NAME, load_manifest

    if (manifest := load_manifest(folder)) is None:
        return False
    known = {MANIFEST_NAME, QUALITY_NAME, ".DS_Store", *(file.name for file in manifest.files)}
    return all(path.is_file() and path.name in known for path in folder.iterdir())
