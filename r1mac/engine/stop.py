"""Texts that end an answer where they begin."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a text at the first place where one of *stops* begins. Pieces in, what is certain out.

    It does not matter where the pieces break. What may still become the beginning of a stop is held back, and where
    two overlap the one that begins first cuts.

    Attributes:
        met: the stop that was met; nothing is released any more.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Begin a text.

        Raises:
            ValueError: one of *stops* is empty, which would be met everywhere.
        """
        if not all(stops):
            raise ValueError("a stop text must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.met: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a stop was met."""
        return self.met is not None

    def feed(self, text: str) -> str:
        """Take more text and return what is certain not to belong to a stop."""
        if self.stopped:
            return ""
        self._held += text
        met, hoped = self._first_met(), self._first_hoped()
        if met is not None and (hoped is None or met <= hoped):
            return self._stop(met)
        # A stop that was met waits for one that began before it and may still come true.
        return self._release(len(self._held) if hoped is None else hoped)

    def finish(self) -> str:
        """Return what was held back and is text after all; nothing more will arrive."""
        met = None if self.stopped else self._first_met()
        return self._release(len(self._held)) if met is None else self._stop(met)

    def _first_met(self) -> int | None:
        """Return where the first whole stop in the text that is held begins."""
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        return min(places, default=None)

    def _first_hoped(self) -> int | None:
        """Return where the longest end of the text that is held begins that a stop may go on from."""
        longest = max(map(len, self._stops), default=0)
        for place in range(max(len(self._held) - longest + 1, 0), len(self._held)):
            end = self._held[place:]
            if any(stop.startswith(end) and stop != end for stop in self._stops):
                return place
        return None

    def _stop(self, place: int) -> str:
        # Of two that begin there, the longer one says more.
        self.met = max((stop for stop in self._stops if self._held.startswith(stop, place)), key=len)
        text, self._held = self._held[:place], ""
        return text

    def _release(self, length: int) -> str:
        text, self._held = self._held[:length], self._held[length:]
        return text
