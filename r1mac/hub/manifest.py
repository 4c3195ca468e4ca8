"""``r1mac.json``: what a stored model is, where it came from and which files it has.

A folder is a model only while it holds this file, so it is written last and in one step.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from r1mac.durable import write_whole
from r1mac.errors import BadCheckpoint, writing_to
from r1mac.formats.quality import QUALITY_NAME

MANIFEST_NAME = "r1mac.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a stored model, with its size when it was stored."""

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a stored model is.

    Attributes:
        source: what it was made from, in words a person understands: ``"org/repo"``, or a path.
        revision: commit of the Hub repository; None for anything else.
        bits: width of its weights; None where that is not known.
        created: ISO date and time in UTC.
        files: every file of the folder but the manifest itself, by name.
    """

    source: str
    revision: str | None
    bits: int | None
    created: str
    files: tuple[StoredFile, ...]


def describe(folder: Path, *, source: str, revision: str | None, bits: int | None) -> Manifest:
    """Return the manifest of *folder* as it is now.

    Hidden files are not part of a model, nor is quality.json, which is written anew whenever something is measured.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder) for path in paths]
    files = tuple(
        StoredFile(name=name.as_posix(), size_bytes=(folder / name).stat().st_size)
        for name in names
        if name.as_posix() not in {MANIFEST_NAME, QUALITY_NAME} and not any(part.startswith(".") for part in name.parts)
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Manifest(source=source, revision=revision, bits=bits, created=now, files=files)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write *manifest* into *folder*: whole and on the disk, or not at all.

    Raises:
        DiskFull: there is no room for it.
        NotWritable: the folder cannot be written.
    """
    with writing_to(folder):
        write_whole(folder / MANIFEST_NAME, format_manifest(manifest))


def load_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of *folder*, or None where there is none that can be read."""
    try:
        return parse_manifest((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, BadCheckpoint):
        return None


def format_manifest(manifest: Manifest) -> str:
    """Return *manifest* as JSON that a person can read."""
    data = {
        "format": _FORMAT,
        "source": manifest.source,
        "revision": manifest.revision,
        "bits": manifest.bits,
        "created": manifest.created,
        "files": {file.name: file.size_bytes for file in manifest.files},
    }
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def parse_manifest(text: str) -> Manifest:
    """Return the manifest that *text* holds.

    Raises:
        BadCheckpoint: it is not JSON, of a later format, or a field is absent or of the wrong type.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadCheckpoint(f"{MANIFEST_NAME} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        raise BadCheckpoint(f"{MANIFEST_NAME} is not of format {_FORMAT}")
    files = _field(data, "files", dict)
    if not all(type(size) is int and size >= 0 for size in files.values()):
        raise BadCheckpoint(f"{MANIFEST_NAME} has a file size that is not a number of bytes")
    return Manifest(
        source=_field(data, "source", str),
        revision=_field(data, "revision", str, type(None)),
        bits=_field(data, "bits", int, type(None)),
        created=_field(data, "created", str),
        files=tuple(StoredFile(name=name, size_bytes=size) for name, size in files.items()),
    )


def _field(data: dict[str, Any], name: str, *kinds: type) -> Any:
    if name not in data or type(data[name]) not in kinds:
        raise BadCheckpoint(f"{MANIFEST_NAME} has no proper {name!r}")
    return data[name]
