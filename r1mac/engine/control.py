"""Stopping a running generation from any thread or signal handler."""

import threading


class Control:
    """A request to stop, asked for from anywhere and seen by the loop between two tokens."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ask the generation to end after the token or prefill step at work."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked."""
        return self._cancelled.is_set()
