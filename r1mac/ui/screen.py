"""The terminal while a reply streams: text that grows, and one line below it that never gets into it.

A status line is drawn below the text's last line, and is wiped before more text comes: no scroll region is set, so
nothing is left to repair after a crash or a new window size. The one thing that must be known for it is whether
the cursor waits behind the last column (wiping there would take a letter), so columns are counted.
"""

import os
import sys
import threading
import unicodedata
from typing import Literal

import click

from r1mac.ui import console

Part = Literal["thought", "answer", "note", "gap"]

# Between the parts of a status.
SEPARATOR = " · "

_DEFAULT_COLUMNS = 80
_WIPE_BELOW, _WIPE_LINE = "\x1b[J", "\r\x1b[2K"
# Index and up make room below without leaving the column; then down, write, and back to where the text stands.
_GO_BELOW, _GO_BACK = "\x1bD\x1b[A\x1b7\r\n", "\x1b8"
_UP, _DOWN = "\x1b[A", "\x1b[B\r"
_TAB = 8
# A model's text may hold control characters, by which a prompt from a file could speak to the terminal.
_HARMLESS: dict[int, int | None] = {
    **{code: 0x2400 + code for code in range(32) if code not in b"\t\n\r"},
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    0x0D: None,
    0x7F: 0x2421,
}


class Screen:
    """Shows a reply's parts: the answer on stdout, all else on stderr. Any thread may use it.

    A status is shown only where stderr is a terminal.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._answer_in_sight = sys.stdout.isatty()
        self._terminal = is_capable(sys.stderr.isatty())
        self._one_place = self._answer_in_sight and sys.stderr.isatty()
        # Where the cursor stands, and the terminal's width when that was counted.
        self._column, self._columns = 0, self.columns()
        self._status = self._banner = ""
        self._drawn = False
        self._away = False
        # Whether the line was ended where the text would have wrapped.
        self._wrapped = False
        # Whether something stands in the middle of the thought's last line.
        self._broken = False
        self._held: list[tuple[Part, str]] | None = None

    @property
    def answer_in_sight(self) -> bool:
        """Whether the answer goes to a terminal."""
        return self._answer_in_sight

    def thought(self, text: str) -> None:
        """Add to the thought."""
        self._show("thought", text)

    def answer(self, text: str) -> None:
        """Add to the answer."""
        self._show("answer", text)

    def note(self, text: str) -> None:
        """Say something on lines of its own."""
        self._show("note", text)

    def gap(self) -> None:
        """End the thought's last line and leave one empty."""
        self._show("gap", "")

    def status(self, text: str) -> None:
        """Set the line below the text; an empty one takes it away."""
        with self._lock:
            if text != self._status:
                self._status = text
                self._redraw()

    def banner(self, text: str) -> None:
        """Set a line that is shown in place of the status, until an empty one takes it away."""
        with self._lock:
            if text != self._banner:
                self._banner = text
                self._redraw()

    def hold(self) -> None:
        """Keep back all that comes until release(), and begin a line for edit()."""
        with self._lock:
            if self._held is None:
                self._broken = self._broken or self._column > 0
                self._write(self._wiped() + ("\n" if self._column else ""))
                self._column = 0
                self._held = []

    def edit(self, line: str) -> None:
        """Draw *line*, control characters and all, in place of the one that is being typed."""
        with self._lock:
            if self._held is not None and not self._away:
                self._write(_WIPE_LINE + line)

    def release(self) -> None:
        """Take away the line that was typed and show what was kept back."""
        with self._lock:
            if self._held is None:
                return
            held, self._held = self._held, None
            self._write(_WIPE_LINE)
            for part, text in held:
                self._show(part, text)
            self._redraw()

    def leave(self) -> None:
        """Draw nothing below the text: the terminal belongs to another program for now."""
        with self._lock:
            self._write(self._wiped())
            self._away = True

    def come_back(self) -> None:
        """Draw again; the other program left the cursor at the beginning of a line."""
        with self._lock:
            self._away = self._drawn = self._wrapped = False
            self._broken = self._broken or self._column > 0
            self._column = 0
            self._redraw()

    def close(self) -> None:
        """Take away all that is not text, and end the line."""
        with self._lock:
            self.release()
            self._status = self._banner = ""
            self._write(self._wiped() + ("\n" if self._column else ""))
            self._column = 0

    def columns(self) -> int:
        """Return the terminal's width."""
        try:
            return os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
        except (OSError, ValueError):
            return _DEFAULT_COLUMNS

    def _show(self, part: Part, text: str) -> None:
        with self._lock:
            if self._held is not None:
                self._held.append((part, text))
                return
            if not text and part in {"thought", "answer"}:
                return
            wiped = self._wiped()
            if self._wrapped and text.startswith("\n") and part in {"thought", "answer"}:
                # The text's own line break is the one that has been written already.
                wiped += _UP
            self._wrapped = False
            if part == "answer":
                self._write(wiped)
                text = text.translate(_HARMLESS) if self._answer_in_sight else text
                click.echo(text, nl=False, color=True)
                sys.stdout.flush()
                if self._one_place:
                    self._advance(text)
                self._write(self._drawing())
                return
            if part == "gap":
                text = "\n\n" if self._column else "\n"
            elif part == "note":
                self._broken = self._broken or self._column > 0
                text = ("\n" if self._column else "") + text + "\n"
            elif self._broken:
                # A word that goes on behind a note begins its line.
                text, self._broken = text.lstrip(" ") if self._terminal else text, False
            text = text.translate(_HARMLESS) if sys.stderr.isatty() else text
            self._advance(text)
            self._write(wiped + self._dim(text) + self._drawing())

    def _advance(self, text: str) -> None:
        self._columns = self.columns()
        self._column = column_after(self._column, text, self._columns)

    def _redraw(self) -> None:
        self._write(self._wiped() + self._drawing())

    def _wiped(self) -> str:
        """Return what takes the status away; the cursor is where the text ends."""
        if not self._drawn:
            return ""
        self._drawn = False
        if self._column and self.columns() != self._columns:
            # The terminal has wrapped the text anew, and nobody knows where its end stands: leave that line.
            self._column, self._broken = 0, True
            return _DOWN + _WIPE_BELOW
        return _WIPE_BELOW

    def _drawing(self) -> str:
        """Return what draws the status, if there is one to be drawn."""
        status = self._banner or self._status
        if not status or not self._terminal or self._away or self._held is not None:
            return ""
        self._drawn, begin = True, ""
        before, self._columns = self._columns, self.columns()
        if self._column >= self._columns or (self._column and before != self._columns):
            # Behind the last column, where the next letter would begin a line anyhow; or in a new kind of window.
            self._wrapped = before == self._columns
            begin, self._column = "\r\n", 0
        line = self._dim(fitting(status, self._columns - 1))
        return begin + (_GO_BELOW + line + _GO_BACK if self._column else line + "\r")

    def _dim(self, text: str) -> str:
        return click.style(text, dim=True) if self._terminal and console.color() is None else text

    def _write(self, text: str) -> None:
        if text:
            click.echo(text, nl=False, err=True, color=True)


def is_capable(terminal: bool) -> bool:
    """Return whether a *terminal* understands control sequences."""
    return terminal and os.environ.get("TERM", "dumb") != "dumb"


def column_after(column: int, text: str, columns: int) -> int:
    """Return where the cursor stands when *text* was written at *column* of a terminal of so many columns.

    *columns* itself is a place too: behind the last column, until the next letter begins a line.
    """
    before, found, line = text.rpartition("\n")
    column = 0 if found or before else column
    for char in line:
        if char == "\t":
            column = max(column, min((column // _TAB + 1) * _TAB, columns - 1))
            continue
        width = char_width(char)
        column = width if column + width > columns else column + width
    return column


def fitting(status: str, columns: int) -> str:
    """Return a status without those of its parts that do not fit; the first and the last stay longest."""
    parts = status.split(SEPARATOR)
    while len(parts) > 1 and text_width(SEPARATOR.join(parts)) > columns:
        del parts[max(len(parts) - 2, 1)]
    status = SEPARATOR.join(parts)
    while text_width(status) > columns:
        status = status[:-1]
    return status


def text_width(text: str) -> int:
    """Return how many columns a text without line breaks takes."""
    return sum(map(char_width, text))


def char_width(char: str) -> int:
    """Return how many columns a character takes."""
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me", "Cf", "Cc"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
