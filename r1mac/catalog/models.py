"""The models that r1mac knows by name."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from r1mac import paths
from r1mac.catalog.arch import ArchSpec, parse_arch

# What R1 of January 2025 writes for a question of AIME, thought and answer together, by its makers' notes on 0528.
TYPICAL_ANSWER_TOKENS = 12_000


class PackagedFile(NamedTuple):
    """A model file inside an installed Python package, found through its metadata and never imported."""

    package: str
    version: str
    file_name: str


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model of the catalog.

    Attributes:
        key: its own name, which is also its folder's in the store.
        title: the name that its makers gave it.
        aliases: what a person may type; the first is the one that r1mac shows.
        source_repo: Hub repository of the original weights; None where r1mac itself has them.
        source_bytes: what the tensors there weigh.
        source_format: ``bf16`` or ``fp8``.
        licence: names every licence that binds the user.
        mlx_repos: ready MLX repositories by bits, group size 64.
        typical_answer_tokens: what it writes for a hard question, thought and answer together.
        packaged: the same model inside a Python package, if there is one.
        shipped: the folder inside r1mac's own package that has the original weights, if there is one.
    """

    key: str
    title: str
    aliases: tuple[str, ...]
    source_repo: str | None
    source_bytes: int
    source_format: str
    licence: str
    arch: ArchSpec
    default_max_tokens: int
    default_bits: int = 4
    default_group_size: int = 64
    typical_answer_tokens: int = TYPICAL_ANSWER_TOKENS
    mlx_repos: Mapping[int, str] = field(default_factory=dict)
    packaged: PackagedFile | None = None
    shipped: str | None = None

    @property
    def is_member(self) -> bool:
        """Whether it is one of the R1 family, and not there to try r1mac with."""
        return self.packaged is None and self.shipped is None

    @property
    def alias(self) -> str:
        """The name to show in a command."""
        return self.aliases[0] if self.aliases else self.key


@cache
def all_models() -> tuple[ModelSpec, ...]:
    """Return every model of the catalog, smallest first, those to try r1mac with last.

    Raises:
        ValueError: models.toml has a wrong entry; the text names it.
    """
    data = tomllib.loads(paths.shipped("catalog", "models.toml").read_text(encoding="utf-8"))
    return parse_models(data)


def parse_models(data: Mapping[str, Any]) -> tuple[ModelSpec, ...]:
    """Build and check the catalog from the contents of models.toml.

    Raises:
        ValueError: an entry lacks a field, has one too many, or claims a name that another has.
    """
    models = tuple(_parse_model(key, table) for key, table in data.items())
    owners: dict[str, str] = {}
    for model in models:
        for name in (model.key, *model.aliases):
            if owners.setdefault(name, model.key) != model.key:
                raise ValueError(f"the name {name!r} belongs to both {owners[name]} and {model.key}")
    return models


def find(name: str) -> ModelSpec | None:
    """Return the model that *name* means: a key, an alias or a title.

    Case does not matter, and Ollama's spelling ``deepseek-r1:70b`` is understood.
    """
    wanted = name.strip().lower()
    for prefix in ("deepseek-r1:", "r1:", "deepseek-r1-"):
        wanted = wanted.removeprefix(prefix)
    for model in all_models():
        names = {model.key, model.title.lower(), *model.aliases}
        if wanted in names or name.strip().lower() in names:
            return model
    return None


def find_by_repo(repo: str) -> tuple[ModelSpec, int | None] | None:
    """Return the model whose source or ready MLX repository *repo* is, and the latter's bits."""
    for model in all_models():
        if model.source_repo is not None and repo.lower() == model.source_repo.lower():
            return model, None
        for bits, mlx_repo in model.mlx_repos.items():
            if repo.lower() == mlx_repo.lower():
                return model, bits
    return None


def nearest_names(name: str) -> list[str]:
    """Return up to three names of the catalog that *name* may be a slip of, best first."""
    import difflib

    names = [alias for model in all_models() for alias in (*model.aliases, model.key)]
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    sizes = re.findall(r"\d+(?:\.\d+)?(?=b)", name.lower())
    same_size = [alias for alias in names if any(alias.startswith(f"{size}b") for size in sizes)]
    return list(dict.fromkeys([*same_size, *close]))[:3]


_REQUIRED = {"title", "aliases", "source_bytes", "source_format", "licence", "default_max_tokens", "config"}
_OPTIONAL = {"default_bits", "default_group_size", "typical_answer_tokens", "mlx"}
_OPTIONAL |= {"source", "shipped", "package", "package_version", "package_file"}


def _parse_model(key: str, table: Mapping[str, Any]) -> ModelSpec:
    if not isinstance(table, Mapping):
        raise ValueError(f"model {key} is {table!r}, not a table")  # noqa: TRY004 - one class for every wrong entry
    if missing := _REQUIRED - table.keys():
        raise ValueError(f"model {key} lacks {', '.join(sorted(missing))}")
    if unknown := table.keys() - _REQUIRED - _OPTIONAL:
        raise ValueError(f"model {key} has unknown fields {', '.join(sorted(unknown))}")
    if ("source" in table) == ("shipped" in table):
        raise ValueError(f"model {key} needs either source or shipped")
    if "package" in table and (missing := {"package_version", "package_file"} - table.keys()):
        raise ValueError(f"model {key} has a package and lacks {', '.join(sorted(missing))}")
    if not isinstance(table["aliases"], list):
        raise ValueError(f"model {key}: aliases is {table['aliases']!r}, not a list")  # noqa: TRY004
    try:
        arch = parse_arch(table["config"])
        mlx_repos = {int(bits): repo for bits, repo in table.get("mlx", {}).items()}
    except (AttributeError, KeyError, ValueError) as error:
        raise ValueError(f"model {key}: config or mlx: {error}") from error
    return ModelSpec(
        key=key,
        title=table["title"],
        aliases=tuple(table["aliases"]),
        source_repo=table.get("source"),
        source_bytes=table["source_bytes"],
        source_format=table["source_format"],
        licence=table["licence"],
        arch=arch,
        default_max_tokens=table["default_max_tokens"],
        default_bits=table.get("default_bits", 4),
        default_group_size=table.get("default_group_size", 64),
        typical_answer_tokens=table.get("typical_answer_tokens", TYPICAL_ANSWER_TOKENS),
        mlx_repos=mlx_repos,
        packaged=_parse_packaged(table),
        shipped=table.get("shipped"),
    )


def _parse_packaged(table: Mapping[str, Any]) -> PackagedFile | None:
    if "package" not in table:
        return None
    return PackagedFile(package=table["package"], version=table["package_version"], file_name=table["package_file"])
