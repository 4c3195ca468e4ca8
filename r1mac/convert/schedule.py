"""The order of work when a source's files come one after another: each is used up before the next. Pure."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

PieceT = TypeVar("PieceT", bound=Hashable)


class Step(NamedTuple, Generic[PieceT]):
    """Work that needs the same few files of a source.

    Attributes:
        pieces: what to make, in the model's order.
        files: what must be on this disk meanwhile, by name.
        unneeded_files: what no later step needs.
    """

    pieces: tuple[PieceT, ...]
    files: tuple[str, ...]
    unneeded_files: tuple[str, ...]


def steps(files_of: Mapping[PieceT, frozenset[str]]) -> list[Step[PieceT]]:
    """Return the steps that make every piece, in the order of the source's files.

    A piece is made as soon as the last of its files has come, so a file is kept only for what it shares with a
    later one (an FP8 matrix whose scale fell into the next file). What needs no file comes first.

    Args:
        files_of: the names of the files that each piece is read from, in the model's order. Sorted names are the
            order in which the files come.
    """
    pieces_by_last: dict[str, list[PieceT]] = {}
    last_use: dict[str, str] = {}
    for piece, files in files_of.items():
        last = max(files, default="")
        pieces_by_last.setdefault(last, []).append(piece)
        for file in files:
            last_use[file] = max(last_use.get(file, last), last)
    unneeded: dict[str, list[str]] = {}
    for file, last in last_use.items():
        unneeded.setdefault(last, []).append(file)
    return [
        Step(
            pieces=tuple(pieces),
            files=tuple(sorted(frozenset().union(*(files_of[piece] for piece in pieces)))),
            unneeded_files=tuple(sorted(unneeded.get(last, ()))),
        )
        for last, pieces in sorted(pieces_by_last.items())
    ]


def most_bytes_at_once(
    order: Sequence[Step[PieceT]], size_bytes: Mapping[str, int], *, here: Mapping[str, int] | None = None
) -> int:
    """Return the most that the files of *order* take where each comes at its first step and goes after its last.

    Args:
        order: the steps, as they are going to be done.
        size_bytes: of each file by name.
        here: bytes of the files that have come already, whole or in part; they are not counted.
    """
    live = dict(here or {})
    before_bytes = sum(live.values())
    most_bytes = 0
    for step in order:
        live |= {file: size_bytes[file] for file in step.files}
        most_bytes = max(most_bytes, sum(live.values()) - before_bytes)
        for file in step.unneeded_files:
            live.pop(file, None)
    return most_bytes
