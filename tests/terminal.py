"""A terminal that remembers: what a person would see, with all that has scrolled away."""

import io
from itertools import chain

import pyte


class Terminal:
    """A screen of so many columns and lines that understands control sequences."""

    def __init__(self, columns: int, lines: int) -> None:
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000)
        self._stream = pyte.Stream(self._screen)

    def feed(self, text: str) -> None:
        """Show *text*, whose line breaks go to the beginning of the next line as a terminal driver has it."""
        self._stream.feed(text.replace("\n", "\r\n"))

    @property
    def lines(self) -> list[str]:
        """All lines so far, without spaces at their ends and empty ones at the end."""
        rows = chain(self._screen.history.top, (self._screen.buffer[row] for row in range(self._screen.lines)))
        lines = ["".join(row[column].data for column in range(self._screen.columns)).rstrip() for row in rows]
        while lines and not lines[-1]:
            lines.pop()
        return lines


class TerminalStream(io.StringIO):
    """A stream that is a terminal and shows on *terminal* what is written."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def write(self, text: str) -> int:
        self._terminal.feed(text)
        return super().write(text)

    def isatty(self) -> bool:
        return True
