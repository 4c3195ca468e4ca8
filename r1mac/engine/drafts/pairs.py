"""Which model drafts for which: a much smaller one of the same family, whose tokens are the same text."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1mac.catalog.arch import ArchSpec
from r1mac.errors import UnknownModel
from r1mac.formats.folder import read_json

# A draft model reads at most this share of what the larger one reads for a token; else its drafts cost what they save.
_MOST_SHARE = 0.25
# Matrices are padded to a round number of rows: two models of one vocabulary may differ by that many.
_MOST_PADDING = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCandidate:
    """A model that could draft.

    Attributes:
        name: what a person calls it.
        arch: its shape.
        size_bytes: what its weights weigh as they are.
    """

    name: str
    arch: ArchSpec
    size_bytes: int


def choose_draft(arch: ArchSpec, candidates: Iterable[DraftCandidate]) -> DraftCandidate | None:
    """Return the lightest of *candidates* that can draft for a model of shape *arch*, or None.

    Whether the vocabularies are really the same is for ``require_same_vocabulary`` to say.
    """
    fitting = [candidate for candidate in candidates if can_draft(candidate.arch, arch)]
    return min(fitting, key=lambda candidate: candidate.size_bytes, default=None)


def can_draft(draft: ArchSpec, target: ArchSpec) -> bool:
    """Whether a model of shape *draft* is of the family of *target*, and small enough beside it."""
    return (
        draft.model_type == target.model_type
        and abs(draft.vocab_size - target.vocab_size) <= _MOST_PADDING
        and draft.active_parameter_count <= _MOST_SHARE * target.active_parameter_count
    )


def require_same_vocabulary(draft: Path, target: Path) -> None:
    """Check that each token id is the same text in both models' tokenizer.json.

    Raises:
        UnknownModel: they differ; the text names the first token that does.
        BadCheckpoint: a tokenizer.json is missing or damaged.
    """
    difference = _difference(_texts(draft / "tokenizer.json"), _texts(target / "tokenizer.json"))
    if difference is None:
        return
    token_id, one, other = difference
    raise UnknownModel(
        f"{draft.name} cannot draft for {target.name}: "
        f"token {token_id} is {_shown(one)} there and {_shown(other)} here",
        hint="use `--draft auto`, which takes a smaller model of the same family, or `--draft off`",
    )


def _difference(one: dict[int, str], other: dict[int, str]) -> tuple[int, str | None, str | None] | None:
    if one == other:
        return None
    token_id = min(token_id for token_id in one.keys() | other.keys() if one.get(token_id) != other.get(token_id))
    return token_id, one.get(token_id), other.get(token_id)


def _texts(path: Path) -> dict[int, str]:
    """Return the text of every token id in a tokenizer.json, added tokens included."""
    data = read_json(path)
    vocabulary: Any = (data.get("model") or {}).get("vocab", {})
    pairs = (
        vocabulary.items() if isinstance(vocabulary, dict) else ((entry[0], at) for at, entry in enumerate(vocabulary))
    )
    texts = {int(token_id): str(text) for text, token_id in pairs}
    return texts | {int(added["id"]): str(added["content"]) for added in data.get("added_tokens") or ()}


def _shown(text: str | None) -> str:
    return "nothing" if text is None else repr(text)
