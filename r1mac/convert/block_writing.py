"""Blocks are written on a thread of their own, while the next ones are read and worked on."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple, Self

from r1mac.convert.destination import Destination
from r1mac.convert.encode import Encoded, Encoding
from r1mac.convert.layout import Piece


class PendingBlock(NamedTuple):
    """A block that is being worked on, and where it goes."""

    piece: Piece
    first_row: int
    destinations: tuple[Destination, ...]
    encoding: Encoding


class BlockWriting:
    """Writes blocks one after another. One at most is held: the next one waits for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._last: Future[None] | None = None

    def begin(self, block: PendingBlock) -> None:
        """Wait until a block is worked out and the one before it is written, and begin to write it.

        Raises:
            BadCheckpoint: it holds values that are not finite.
            OSError: the one before it could not be written.
        """
        arrays = block.encoding.wait()  # here: MLX's arrays are for the thread that made them
        self.wait()
        self._last = self._pool.submit(_write, block, arrays)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            OSError: it could not be.
        """
        if self._last is not None:
            self._last.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _write(block: PendingBlock, arrays: Sequence[Encoded]) -> None:
    for made, own in zip(block.destinations, arrays, strict=True):
        made.write(block.piece, block.first_row, own)
