"""``r1mac-conversion.json``: what a conversion is making and what of it is on the disk for good.

While the conversion goes on it is the journal to resume from; in the finished model it is the record that
``r1mac convert --verify`` checks against. It is replaced in one step, so a kill leaves the old or the new one.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from r1mac import __version__
from r1mac.convert.abilities import NO_PREDICTION, identity
from r1mac.durable import folder_to_disk
from r1mac.errors import BadCheckpoint
from r1mac.formats.safetensors import TensorLayout

if TYPE_CHECKING:
    from r1mac.convert.recipe import Recipe
    from r1mac.convert.sources import Source

RECORD_NAME = "r1mac-conversion.json"
PARTIAL_SUFFIX = ".partial"
# Raised when the bytes that a conversion makes of the same source and recipe change.
_FORMAT = 1


class FileDigest(NamedTuple):
    """One file that is whole."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionPlan:
    """What decides every byte of a conversion's result.

    Attributes:
        source: what it is made from, for a person.
        identity: what tells the source from another: a file or aspect, and its state.
        recipe: the recipe's fields.
        layout: digest of every output tensor's name, type, shape and file.
    """

    source: str
    identity: Mapping[str, str]
    recipe: Mapping[str, Any]
    layout: str

    def differences(self, other: "ConversionPlan") -> list[str]:
        """Return what *other* has otherwise, in words."""
        changed = sorted(
            (name for name in {*self.identity, *other.identity} if self.identity.get(name) != other.identity.get(name)),
            # What somebody asked for says more than what follows from it.
            key=lambda name: (name != NO_PREDICTION, name),
        )
        found = []
        if changed:
            rest = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            found.append(f"the source changed ({changed[0]}{rest})")
        if self.recipe != other.recipe:
            fields = sorted(
                key for key in {*self.recipe, *other.recipe} if self.recipe.get(key) != other.recipe.get(key)
            )
            found.append(f"the recipe changed ({', '.join(fields)})")
        if not found and self.layout != other.layout:
            found.append("the files are cut otherwise")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """The state of one conversion.

    Attributes:
        plan: what is being made.
        made_with: versions of the programs that began it.
        shards: output files that are whole, under their final names.
        pieces: which pieces of a tensor are on the disk in a shard that is not whole yet.
        files: the other files of the model, once all is done.
    """

    plan: ConversionPlan
    made_with: Mapping[str, str]
    shards: dict[str, FileDigest] = field(default_factory=dict)
    pieces: dict[str, list[int]] = field(default_factory=dict)
    files: dict[str, FileDigest] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether the conversion has come to its end."""
        return bool(self.files)

    def save(self, folder: Path) -> None:
        """Write it into *folder*: whole and on the disk, or not at all."""
        data = {
            "format": _FORMAT,
            "source": self.plan.source,
            "identity": dict(self.plan.identity),
            "recipe": self.plan.recipe,
            "layout": self.plan.layout,
            "made_with": dict(self.made_with),
            "shards": {name: digest._asdict() for name, digest in sorted(self.shards.items())},
            "pieces": self.pieces,
            "files": {name: digest._asdict() for name, digest in sorted(self.files.items())},
        }
        temporary = folder / f".{RECORD_NAME}.new"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / RECORD_NAME)
        folder_to_disk(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Return the journal in *folder*.

        Raises:
            BadCheckpoint: there is none, or it cannot be read, or it is of another format.
        """
        path = folder / RECORD_NAME
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise BadCheckpoint(
                    f"{path} is of format {data['format']}, and this r1mac knows {_FORMAT}",
                    hint="convert the model again",
                )
            plan = ConversionPlan(
                source=data["source"], identity=data["identity"], recipe=data["recipe"], layout=data["layout"]
            )
            return cls(
                plan=plan,
                made_with=data["made_with"],
                shards=_parse_digests(data["shards"]),
                pieces={str(name): [int(index) for index in indices] for name, indices in data["pieces"].items()},
                files=_parse_digests(data["files"]),
            )
        except FileNotFoundError as error:
            raise BadCheckpoint(
                f"{folder} has no {RECORD_NAME}, which every model that r1mac converts has",
                hint="only the result of `r1mac convert` can be verified",
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise BadCheckpoint(f"{path} cannot be read: {error!r}", hint="convert the model again") from error


def plan_of(source: "Source", recipe: "Recipe", shards: Mapping[str, Iterable[TensorLayout]]) -> ConversionPlan:
    """Return the plan that makes the weight files *shards* of *source* by *recipe*."""
    texts = (f"{name} {tensor}" for name, tensors in shards.items() for tensor in tensors)
    # Through JSON, so that what is read back is equal.
    fields = json.loads(json.dumps(asdict(recipe)))
    return ConversionPlan(source=source.description, identity=identity(source), recipe=fields, layout=digest_of(texts))


def resume(folder: Path, plan: ConversionPlan, *, restart: bool) -> tuple[Journal, list[str]]:
    """Return the journal in *folder* if it is of *plan*, else a new one, and why what was there is not used."""
    new = Journal(plan=plan, made_with=made_with())
    if not (folder / RECORD_NAME).exists():
        return new, []
    try:
        old = Journal.load(folder)
    except BadCheckpoint as error:
        return new, [error.problem]
    if not old.shards and not old.pieces:
        return new, []
    if restart:
        return new, ["--restart was given"]
    reasons = old.plan.differences(plan)
    return (new, reasons) if reasons else (old, [])


def made_with() -> dict[str, str]:
    """Return the versions of the programs that decide what a conversion makes, and what is measured of it."""
    return {"r1mac": __version__, "mlx": metadata.version("mlx")}


def digest_of(texts: Iterable[str]) -> str:
    """Return one sha256 over *texts* in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def digest_file(path: Path, *, chunk_bytes: int = 4 * 2**20) -> FileDigest:
    """Return size and sha256 of a file."""
    digest, size_bytes = hashlib.sha256(), 0
    buffer = memoryview(bytearray(chunk_bytes))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
            size_bytes += count
    return FileDigest(size_bytes, digest.hexdigest())


def _parse_digests(data: Mapping[str, Any]) -> dict[str, FileDigest]:
    return {name: FileDigest(int(fields["size_bytes"]), str(fields["sha256"])) for name, fields in data.items()}
