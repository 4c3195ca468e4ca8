"""The text that quality is measured on: held apart from the one that ``convert --quality`` learns from."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

TEXT_FOLDER = Path(__file__).parent / "evaluation_text"
TEXT_NAME = "r1mac's evaluation text"
# The parts in the order in which a short measurement takes them.
_PARTS = ("reasoning", "prose", "code", "languages")


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationText:
    """A text to measure on.

    Attributes:
        name: for a person.
        parts: pieces of different kinds; some of each are read.
    """

    name: str
    parts: tuple[str, ...]

    @classmethod
    def shipped(cls) -> Self:
        """Return the text that r1mac has: reasoning in R1's format, prose, code, many languages."""
        texts = tuple((TEXT_FOLDER / f"{part}.txt").read_text(encoding="utf-8") for part in _PARTS)
        return cls(name=TEXT_NAME, parts=texts)

    @property
    def sha256(self) -> str:
        """Digest of all parts."""
        return hashlib.sha256("\0".join(self.parts).encode()).hexdigest()


def cut_sequences(
    parts: Sequence[Sequence[int]], *, tokens: int, length: int, first_id: int | None = None
) -> list[list[int]]:
    """Return sequences of one length from all *parts* in turn, about *tokens* in all.

    Args:
        parts: token ids.
        tokens: how many to read at most.
        length: of a sequence; less where no part has so many.
        first_id: the token that begins every sequence, where the model is used to one.
    """
    begin = [] if first_id is None else [first_id]
    length = min(length, tokens, len(begin) + max(map(len, parts)))
    inner = length - len(begin)
    pieces = [[part[at : at + inner] for at in range(0, len(part) - inner + 1, inner)] for part in parts]
    turns = [piece for turn in range(max(map(len, pieces))) for own in pieces for piece in own[turn : turn + 1]]
    return [[*begin, *piece] for piece in turns[: max(tokens // length, 1)]]
