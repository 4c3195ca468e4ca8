"""Models made from one original, each with its size and how far it is from it."""

from pathlib import Path
from typing import NamedTuple

from r1mac.formats.quality import Divergence, load_quality


class Standing(NamedTuple):
    """One model among others.

    Attributes:
        name: of its folder.
        size_bytes: of its weights.
        kl_nats: its divergence from the original.
    """

    name: str
    size_bytes: int
    kl_nats: float


def standings_beside(folder: Path, measured: Divergence) -> list[Standing]:
    """Return the models in the same folder as *folder*, itself too, that were compared with the same original.

    Only divergences on the same text and as many tokens of it as *measured* can be compared. The smallest comes first.
    """
    found = []
    for path in sorted(folder.parent.iterdir()):
        quality = load_quality(path) if path.is_dir() else None
        known = quality.divergence if quality else None
        if known is not None and _basis(known) == _basis(measured):
            size_bytes = sum(file.stat().st_size for file in path.glob("*.safetensors"))
            found.append(Standing(path.name, size_bytes, known.kl_nats))
    return sorted(found, key=lambda standing: standing.size_bytes)


def _basis(known: Divergence) -> tuple[str, str, int]:
    return known.reference, known.text_sha256, known.tokens
