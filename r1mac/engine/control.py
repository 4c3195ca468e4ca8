"""Steering a running generation from any thread or signal handler."""

import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants of the thought at work: ``answer`` now, think ``more``, or mind the ``hint`` *text*."""

    kind: Literal["answer", "more", "hint"]
    text: str = ""


class Control:
    """What is asked for from anywhere and seen by the loop between two tokens.

    Setting a flag is all that a caller does, so that a signal handler may do it too.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._running = threading.Event()
        self._running.set()
        self._wishes: deque[Wish] = deque()

    def cancel(self) -> None:
        """Ask the generation to end after the token or prefill step at work, paused or not."""
        self._cancelled.set()
        self._running.set()

    def pause(self) -> None:
        """Ask the generation to wait; what it holds in memory stays there."""
        if not self.cancelled:
            self._running.clear()

    def resume(self) -> None:
        """Let a paused generation go on."""
        self._running.set()

    def answer_now(self) -> None:
        """Ask for the thought to be closed, so that the answer begins."""
        self._wishes.append(Wish("answer"))

    def think_more(self) -> None:
        """Ask for the thought to go on once more where it would close by itself."""
        self._wishes.append(Wish("more"))

    def hint(self, text: str) -> None:
        """Put *text* into the thought, as if the model had thought of it."""
        self._wishes.append(Wish("hint", text))

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the end."""
        return self._cancelled.is_set()

    @property
    def paused(self) -> bool:
        """Whether the generation is to wait."""
        return not self._running.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait while paused, at most *seconds*; return whether it may go on."""
        return self._running.wait(seconds)

    def take(self) -> Wish | None:
        """Return the next wish, in the order in which they came."""
        return self._wishes.popleft() if self._wishes else None
