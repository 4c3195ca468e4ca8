"""Which weights a name means to somebody who wants to convert them."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac import paths
from r1mac.catalog.models import ModelSpec, all_models, find, find_by_repo, nearest_names
from r1mac.errors import BadCheckpoint, UnknownModel
from r1mac.machine.base import Machine
from r1mac.prepare.conversion import Manner, Output, Provenance, check_output, convert_to_folders
from r1mac.prepare.files import PrepareEvent, installed_name, installed_weights
from r1mac.prepare.remote_source import Origin, from_hub
from r1mac.prepare.target import looks_like_repo
from r1mac.settings import Settings

if TYPE_CHECKING:
    from r1mac.convert.sources import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Where weights are: on this disk, or on the Hub.

    Attributes:
        path: a folder or file of the user's own.
        repo: the Hub repository, where there is no *path*.
        spec: the catalog's entry, if it has one.
    """

    path: Path | None = None
    repo: str | None = None
    spec: ModelSpec | None = None

    @property
    def title(self) -> str:
        """The name for a person."""
        return self.spec.title if self.spec else self.repo or (self.path or Path()).name

    @property
    def are_the_users_own(self) -> bool:
        """Whether they are a folder or file that the user named, of which the store knows nothing."""
        return self.path is not None and self.spec is None

    def store_name(self, label: str) -> str:
        """Return the folder's name in the store of what they become, such as ``r1-distill-llama-70b-4bit``.

        Args:
            label: what was made of them: ``4bit``, or a recipe's name.
        """
        assert self.spec is not None or self.repo is not None
        name = self.spec.key if self.spec else str(self.repo).replace("/", "--")
        return label if label.startswith(f"{name}-") else f"{name}-{label}"


def find_weights(name: str) -> Weights:
    """Return the weights that *name* means: a path, a model of the catalog, or a Hub repository.

    Of a model of the catalog those that it was published with, even where a ready MLX model exists.

    Raises:
        BadCheckpoint: a path that is not there.
        UnknownModel: none of them; the nearest names are suggested.
    """
    path = paths.expanded(Path(name))
    is_path = name.startswith((".", "/", "~"))
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise BadCheckpoint(
            f"{path} is neither a file nor a folder: weights are read at any place, and a pipe has only its end",
            hint="write it into a file first",
        )
    if path.exists() and (is_path or "/" in name or path.is_file() or (path / "config.json").exists()):
        return Weights(path=path)
    if is_path or path.suffix in {".gguf", ".safetensors"}:
        raise BadCheckpoint(f"there is nothing at {path}", hint="check the path")
    if spec := find(name):
        installed = installed_weights(spec)
        return Weights(path=installed, repo=None if installed else spec.source_repo, spec=spec)
    if looks_like_repo(name):
        found = find_by_repo(name)
        return Weights(repo=name, spec=found[0] if found and found[0].source_repo == name else None)
    if close := nearest_names(name):
        hint = "did you mean " + " or ".join(f"`{alias}`" for alias in close) + "?"
    else:
        known = ", ".join(spec.alias for spec in all_models())
        hint = f"name a folder, a GGUF file, a Hub repository (org/name), or one of {known}"
    raise UnknownModel(f"there is no model, folder or file {name!r}", hint=hint)


def convert_weights(
    weights: Weights,
    outputs: Sequence[Output],
    settings: Settings,
    machine: Machine,
    manner: Manner,
    *,
    adapters: Sequence[Path] = (),
    keep_source: bool = False,
    prediction: bool = True,
    on_wait: Callable[[str], None] | None = None,
) -> Generator[PrepareEvent, None, tuple[Path, ...]]:
    """Convert *weights*, wherever they are, into a new folder for each of *outputs*, and return the folders.

    Args:
        weights: what to convert.
        outputs: recipes and folders.
        settings: where the store is.
        machine: this computer.
        manner: how.
        adapters: folders of adapters to merge, in their order.
        keep_source: weights from the Hub stay in the store.
        prediction: convert layers behind the last one (MTP) too, into files of their own.
        on_wait: called with a model's name while another r1mac is at work on it.

    Raises:
        NotWritable: an output would cost the user something.
        R1MacError: as ``convert_to_folders`` and ``from_hub`` do.
    """
    from r1mac.convert.sources import open_source

    inside = weights.path.resolve() if weights.path else None
    for output in outputs:
        check_output(output.folder, inside, replace=manner.replace)
    if weights.path is not None:
        card = weights.path / "README.md" if weights.path.is_dir() else None
        source = open_source(weights.path, adapters, prediction=prediction)
        described = installed_name(weights.spec) if weights.spec else source.description
        provenance = Provenance(title=weights.title, source=described, source_card=card)
        return (yield from convert_to_folders(source, outputs, provenance, machine, manner, on_wait=on_wait))

    def use(origin: Origin) -> Generator[PrepareEvent, None, tuple[Path, ...]]:
        source = open_origin(origin, adapters, prediction=prediction)
        provenance = provenance_of(origin, title=weights.title)
        return (yield from convert_to_folders(source, outputs, provenance, machine, manner, on_wait=on_wait))

    assert weights.repo is not None
    return (yield from from_hub(weights.repo, use, settings, machine, keep_source=keep_source, on_wait=on_wait))


def open_origin(origin: Origin, adapters: Sequence[Path] = (), *, prediction: bool = True) -> "Source":
    """Open the weights of a Hub repository, named as such and not by the hidden folder that they come to."""
    from r1mac.convert.sources import open_source

    source = open_source(origin.folder, adapters, prediction=prediction)
    source.description = " + ".join([origin.repo, *map(str, adapters)])
    return source


def provenance_of(origin: Origin, *, title: str) -> Provenance:
    """Return where weights from the Hub come from."""
    return Provenance(
        title=title,
        source=origin.repo,
        revision=origin.revision,
        feed=origin.feed,
        repo=origin.repo,
        source_card=origin.folder / "README.md",
    )
