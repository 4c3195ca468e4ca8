"""Conversations put aside in memory: bounded in bytes, the least recently used go first."""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from r1mac.engine.prefix import shared_prefix


class Held(Protocol):
    """What was read, and what it takes."""

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens."""

    @property
    def kv_bits(self) -> int:
        """The width that their cache was asked for."""

    @property
    def nbytes(self) -> int:
        """What their cache takes."""


_Held = TypeVar("_Held", bound=Held)


class HeldPrefixes(Generic[_Held]):
    """What transcripts have read, kept for those that take turns with one model.

    Args:
        limit_bytes: the most that all may take; what alone takes more is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._held: list[_Held] = []

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._held)

    @property
    def nbytes(self) -> int:
        """What all take; memory that two share counts twice."""
        return sum(held.nbytes for held in self._held)

    def put(self, held: _Held) -> None:
        """Keep *held*, and give up what was not used for the longest time."""
        held = next((other for other in self._held if _covers(other, held)), held)
        self._held = [*(other for other in self._held if not _covers(held, other)), held]
        self.shrink(self.limit_bytes)

    def shrink(self, limit_bytes: int) -> None:
        """Give up the least recently used until all take at most *limit_bytes*."""
        while self._held and self.nbytes > limit_bytes:
            del self._held[0]

    def limit(self, limit_bytes: int) -> None:
        """Have all take at most *limit_bytes* from now on."""
        self.limit_bytes = limit_bytes
        self.shrink(limit_bytes)

    def longest(self, token_ids: Sequence[int]) -> tuple[_Held | None, int]:
        """Return what has the most tokens in common with *token_ids*, and how many those are."""
        shared = [shared_prefix(held.token_ids, token_ids) for held in self._held]
        most = max(shared, default=0)
        return (self._held[shared.index(most)], most) if most else (None, 0)

    def take(self, held: _Held, shared: int, *, losing_at_most: int) -> _Held:
        """Return *held* for a transcript that goes on after its first *shared* tokens.

        It leaves if it loses at most that many tokens by it; else it stays, and its memory is shared until the
        transcript writes.
        """
        self._held.remove(held)
        if len(held.token_ids) - shared > losing_at_most:
            self._held.append(held)
        return held


def _covers(held: Held, other: Held) -> bool:
    """Tell whether *held* holds all that *other* does."""
    return held.kv_bits == other.kv_bits and held.token_ids[: len(other.token_ids)] == other.token_ids
