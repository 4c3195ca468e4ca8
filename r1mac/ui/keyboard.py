"""Single keys from the terminal on stdin, read while something else runs.

The terminal is put back in every case: at the end, after an error, where the process is stopped (Ctrl-Z) or killed
by Ctrl and a backslash). Keys that nobody read are dropped then, so that none reaches the shell or the next prompt.
"""

import codecs
import contextlib
import os
import re
import select
import signal
import sys
import termios
import threading
import time
from types import TracebackType
from typing import Any, Protocol, Self

from r1mac.ui.screen import is_capable

# How often it is looked whether the shell has given the terminal to another program, or back.
_LOOK_SECONDS = 0.25
# A lone Escape is the key; an arrow sends more right behind it.
_ESCAPE_SECONDS = 0.05
# After the signal the process stops within microseconds; the thread that sent it must not go on before.
_STOP_SECONDS = 0.1

# Where in the list of termios they stand.
_LOCAL_FLAGS, _CHARACTERS = 3, 6
_KEY = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1bO.|\x1b[^\x1b]|.", re.DOTALL)


class Listener(Protocol):
    """Who is told of keys. Called on the keyboard's thread."""

    @property
    def patience_seconds(self) -> float:
        """How long to wait for another key before those that came are handed over."""

    def take(self, keys: list[str]) -> None:
        """Act on keys that came together; an arrow and its like are one key, of several characters."""

    def leave(self) -> None:
        """The terminal now belongs to another program."""

    def come_back(self) -> None:
        """The terminal belongs to this one again."""


class Keyboard:
    """Gives the keys to *listener* while the block lasts. Signals (Ctrl-C) work as elsewhere."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._descriptor = sys.stdin.fileno()
        self._lock = threading.Lock()
        self._ended = False
        self._mine = False
        self._original: list[Any] | None = None
        self._wake_read, self._wake_write = os.pipe()
        self._thread = threading.Thread(target=self._run, name="keyboard", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._look()
            self._thread.start()
        except BaseException:
            self._give_back()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # First of all, for a second Ctrl-C may end this function anywhere.
        self._ended = True
        self._give_back()
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _run(self) -> None:
        # Signals are for the main thread. Reading in the background is then an error and does not stop the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        with contextlib.suppress(OSError, termios.error):  # the terminal is gone: there are no keys any more
            while not self._ended:
                self._look()
                awaited = [self._wake_read, self._descriptor] if self._mine else [self._wake_read]
                ready = select.select(awaited, [], [], _LOOK_SECONDS)[0]
                if self._wake_read in ready:
                    return
                if self._descriptor in ready:
                    data = self._read()
                    if not data:
                        return
                    self._give(_KEY.findall(decoder.decode(data)))

    def _read(self) -> bytes:
        """Return what has come, and what follows so soon that it belongs to it."""
        data = b""
        patience_seconds = 0.0
        while select.select([self._descriptor], [], [], patience_seconds)[0]:
            more = os.read(self._descriptor, 4096)
            if not more:
                break
            data += more
            patience_seconds = max(self._listener.patience_seconds, _ESCAPE_SECONDS * data.endswith(b"\x1b"))
        return data

    def _give(self, keys: list[str]) -> None:
        """Hand over keys, but for those by which a terminal speaks to the process."""
        plain = []
        for key in keys:
            if key == self._character(termios.VSUSP):
                self._stop(signal.SIGTSTP)
            elif key == self._character(termios.VQUIT):
                self._stop(signal.SIGQUIT)
            else:
                plain.append(key)
        if plain and not self._ended:
            self._listener.take(plain)

    def _character(self, name: int) -> str | None:
        """Return the key that the person's terminal has for a signal."""
        assert self._original is not None
        character = bytes(self._original[_CHARACTERS][name])
        return None if character == self._no_character else character.decode("latin-1")

    @property
    def _no_character(self) -> bytes:
        return bytes([os.fpathconf(self._descriptor, "PC_VDISABLE") & 0xFF])

    def _stop(self, number: signal.Signals) -> None:
        """Give the terminal back and send the signal that the terminal would have sent.

        That is done here and not in a handler, for the main thread may be in the middle of a long step.
        """
        self._listener.leave()
        self._give_back()
        os.kill(0, number)
        time.sleep(_STOP_SECONDS)

    def _look(self) -> None:
        """Take the terminal where it is this program's and is not in the right mode; note where it is another's."""
        with self._lock:
            if self._ended:
                return
            was_mine, self._mine = self._mine, self._in_foreground()
            if was_mine and not self._mine:
                self._listener.leave()
            if not self._mine:
                return
            mode = termios.tcgetattr(self._descriptor)
            if not mode[_LOCAL_FLAGS] & (termios.ICANON | termios.ECHO):
                return
            first = self._original is None
            self._original = self._original or mode
            termios.tcsetattr(self._descriptor, termios.TCSANOW, self._key_mode(mode))
            termios.tcflush(self._descriptor, termios.TCIFLUSH)
        if not first:
            self._listener.come_back()

    def _key_mode(self, mode: list[Any]) -> list[Any]:
        """Return *mode* without lines and echo. Ctrl-C stays a signal; the other two come as keys."""
        changed = [*mode[:_CHARACTERS], [*mode[_CHARACTERS]]]
        changed[_LOCAL_FLAGS] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        changed[_CHARACTERS][termios.VSUSP] = changed[_CHARACTERS][termios.VQUIT] = self._no_character
        # A read never waits: select() tells when there is something.
        changed[_CHARACTERS][termios.VMIN] = changed[_CHARACTERS][termios.VTIME] = 0
        return changed

    def _in_foreground(self) -> bool:
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:
            return False

    def _give_back(self) -> None:
        with self._lock:
            if self._original is None or not self._in_foreground():
                return
            with contextlib.suppress(termios.error):
                # Not TCSAFLUSH, which waits for a terminal that Ctrl-S has stopped.
                termios.tcsetattr(self._descriptor, termios.TCSANOW, self._original)
                termios.tcflush(self._descriptor, termios.TCIFLUSH)


def has_keys() -> bool:
    """Return whether a person sits at a terminal that can be read key by key."""
    return sys.stdin.isatty() and is_capable(sys.stderr.isatty())
