"""Ctrl-C: the first stops the answer, a second leaves."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from r1mac.engine.control import Control


@contextmanager
def stops(control: Control) -> Iterator[None]:
    """Let the first Ctrl-C inside the block cancel *control*, and the next raise KeyboardInterrupt."""

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        if control.cancelled:
            raise KeyboardInterrupt
        control.cancel()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
