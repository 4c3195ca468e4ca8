"""What a model's name means."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from r1mac import paths
from r1mac.catalog.models import ModelSpec, all_models, find, find_by_repo, nearest_names
from r1mac.errors import UnknownModel
from r1mac.formats.quality import Quality, load_quality
from r1mac.settings import CHOICES, Settings

if TYPE_CHECKING:
    from r1mac.hub.store import Store, StoredModel


_LONGEST_NAME = 250
_MODEL_FIRST = 'the model comes first: r1mac run MODEL "PROMPT"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a model's name means.

    Attributes:
        title: for a person.
        store_name: its folder in the store; None for a folder of the user's own.
        spec: its catalog entry, if it has one.
        repo: the Hub repository to fetch, if there is one.
        folder: the user's own folder.
        convert_from: the Hub repository whose weights have to be converted, where none is ready; None too where they
            are r1mac's own.
        bits: width of the weights; None for «as they come».
    """

    title: str
    store_name: str | None = None
    spec: ModelSpec | None = None
    repo: str | None = None
    folder: Path | None = None
    convert_from: str | None = None
    bits: int | None = None


def resolve(name: str, settings: Settings) -> Target:
    """Return what *name* means: a folder, a model of the catalog, or a Hub repository.

    Raises:
        UnknownModel: none of them; the nearest names are suggested.
    """
    if len(name) > _LONGEST_NAME or "\n" in name:
        raise UnknownModel(f"there is no model {name[:40] + '…'!r}", hint=_MODEL_FIRST)
    path = paths.expanded(Path(name))
    is_path = name.startswith((".", "/", "~"))
    if path.is_dir() and (is_path or "/" in name or (path / "config.json").exists()):
        return Target(title=path.resolve().name, folder=path.resolve())
    if is_path and not path.exists():
        raise UnknownModel(f"there is no folder {path}", hint="check the path")
    if spec := find(name):
        return _catalog_target(spec, settings.for_model(spec.key, *spec.aliases).bits or spec.default_bits)
    if path.is_file():
        import shlex

        raise UnknownModel(
            f"{name} is a file, and a model to run is a folder",
            hint=f"make one with `r1mac convert {shlex.quote(name)} -o {shlex.quote(path.stem)} --bits 4`",
        )
    if found := find_by_repo(name):
        spec, bits = found
        wanted = bits or settings.bits
        return _catalog_target(spec, wanted) if wanted else repo_target(spec.source_repo or name)
    if _stored(name, settings) is not None:
        return Target(title=name, store_name=name)
    if looks_like_repo(name):
        return repo_target(name, None if _is_stored_quantized(name, settings) else settings.bits)
    raise UnknownModel(f"there is no model {name!r}", hint=_suggestion(name))


def described(target: Target) -> str:
    """Return the name of *target* for a sentence, with its width."""
    return f"{target.title} at {target.bits} bits" if target.bits else target.title


def typed_name(target: Target) -> str:
    """Return what to type in a command for *target*."""
    if target.spec is not None:
        return target.spec.alias
    if target.folder is not None:
        import shlex

        return shlex.quote(str(target.folder))
    return target.repo or target.convert_from or target.title


def settings_names(target: Target) -> tuple[str, ...]:
    """Return the names that *target*'s own table in config.toml may have; the first is the one to write."""
    if target.spec is not None:
        return target.spec.key, *target.spec.aliases
    return (target.store_name or str(target.folder),)


def _is_stored_quantized(repo: str, settings: Settings) -> bool:
    """Tell whether a repository is here already and of a width of its own, which --bits does not change."""
    from r1mac.formats.folder import read_config

    stored = _stored(repo.replace("/", "--"), settings)
    return stored is not None and not stored.missing_files() and "quantization" in read_config(stored.path)


def find_stored(target: Target, settings: Settings) -> "StoredModel | None":
    """Return the stored model that *target* means, if it is there with all of its files."""
    stored = _stored(target.store_name, settings) if target.store_name else None
    return stored if stored is not None and not stored.missing_files() else None


def stored_target(store_name: str) -> Target:
    """Return the target of a model that the store has under that name; no folder elsewhere is looked at."""
    for spec in all_models():
        for bits in CHOICES["bits"]:
            if store_name == f"{spec.key}-{bits}bit":
                return _catalog_target(spec, bits)
    return Target(title=store_name, store_name=store_name)


def find_in_store(name: str, settings: Settings) -> "StoredModel | None":
    """Return the whole stored model that *name* means to a client of the server; None if there is none.

    That is its name in the store, its Hub repository, or a name of the catalog; of several widths the one that the
    settings ask for, else the widest. It is never a path.
    """
    spec, of_repo = find(name), find_by_repo(name)
    names = [name]
    if spec is not None:
        first = settings.for_model(spec.key, *spec.aliases).bits or spec.default_bits
        names += [f"{spec.key}-{bits}bit" for bits in (first, *sorted(CHOICES["bits"], reverse=True))]
    elif of_repo is not None:
        names += [f"{of_repo[0].key}-{of_repo[1]}bit"]
    for candidate in names:
        stored = _stored_under(candidate, settings)
        if stored is not None and not stored.missing_files():
            return stored
    return None


def _stored_under(name: str, settings: Settings) -> "StoredModel | None":
    try:
        return store_of(settings).get(name)
    except UnknownModel:
        return None


def quality_of(target: Target, settings: Settings) -> Quality | None:
    """Return what was measured of the model that *target* means, if it is here and anything was."""
    stored = find_stored(target, settings)
    folder = stored.path if stored else target.folder
    return None if folder is None else load_quality(folder)


def store_of(settings: Settings) -> "Store":
    """Return the model store."""
    from r1mac.hub.store import Store

    return Store(settings.models_dir)


def repo_target(repo: str, bits: int | None = None) -> Target:
    """Return the target of a Hub repository, converted where *bits* are asked for."""
    store_name = repo.replace("/", "--")
    if bits is None:
        return Target(title=repo, store_name=store_name, repo=repo)
    return Target(title=repo, store_name=f"{store_name}-{bits}bit", convert_from=repo, bits=bits)


def _catalog_target(spec: ModelSpec, bits: int) -> Target:
    ready = spec.mlx_repos.get(bits)
    return Target(
        title=spec.title,
        store_name=f"{spec.key}-{bits}bit",
        spec=spec,
        repo=ready,
        convert_from=None if ready else spec.source_repo,
        bits=bits,
    )


def looks_like_repo(name: str) -> bool:
    """Tell whether *name* could be the id of a Hub repository."""
    owner, slash, repo = name.partition("/")
    return bool(slash and owner and repo) and "/" not in repo and not name.startswith((".", "~")) and " " not in name


def _suggestion(name: str) -> str:
    if " " in name.strip():
        return _MODEL_FIRST
    if close := nearest_names(name):
        return "did you mean " + " or ".join(f"`{alias}`" for alias in close) + "?"
    known = ", ".join(spec.alias for spec in all_models())
    return f"known models: {known}; or name a Hub repository (org/name) or a folder (./name)"


def _stored(name: str, settings: Settings) -> "StoredModel | None":
    # Asked first, since most names are not stored and the store costs 30 ms to import.
    if not (settings.models_dir / name).is_dir():
        return None
    try:
        return store_of(settings).get(name)
    except UnknownModel:
        return None


def find_removable(name: str, settings: Settings) -> str:
    """Return the store's name of the model, whole or unfinished, that *name* means to somebody who wants it deleted.

    Raises:
        UnknownModel: nothing in the store has that name, or more than one model does.
    """
    if _has_remains(name, settings):
        return name.replace("/", "--")
    spec = find(name)
    if spec is not None and settings.bits is None:
        widths = (f"{spec.key}-{bits}bit" for bits in CHOICES["bits"])
        family = [width for width in widths if _has_remains(width, settings)]
        if len(family) > 1:
            raise UnknownModel(f"{name!r} is stored in several widths: {', '.join(family)}", hint="name one of them")
        if family:
            return family[0]
    target = resolve(name, settings)
    if target.folder is not None:
        raise UnknownModel(
            f"{target.folder} is a folder of your own, which r1mac does not delete", hint="delete it yourself"
        )
    assert target.store_name is not None
    if not _has_remains(target.store_name, settings):
        raise UnknownModel(f"{described(target)} is not on this disk", hint="`r1mac list` shows the models")
    return target.store_name


def _has_remains(name: str, settings: Settings) -> bool:
    try:
        return store_of(settings).has_remains(name)
    except (UnknownModel, OSError):
        return False
