"""What the keys do while a reply is written."""

import contextlib
import time
from collections.abc import Iterator
from typing import Literal

from r1mac.engine.control import Control
from r1mac.ui.hint_line import HintLine
from r1mac.ui.screen import SEPARATOR, Screen

Phase = Literal["reading", "think", "answer"]

KEYS = """\
  a, Enter   end the thought: answer now
  m          think more: go on where the thought would end
  h          put a hint into the thought
  p, space   pause, and go on
  Ctrl-C     stop"""

_ENTER, _PAUSE = ("\n", "\r"), (" ", "p")
_KNOWN = {*_ENTER, *_PAUSE, "a", "m", "h", "?"}
_OF_THOUGHT = {*_ENTER, "a", "m", "h"}
# A person may type the next question while the model writes, and its first letter must not end a thought of twenty
# minutes: a key counts when no other has come so soon after it, or after a letter that means nothing.
_ALONE_SECONDS, _TYPING_SECONDS = 0.25, 1.0


class Steering:
    """Turns keys into what *control* offers, and says on *screen* what the model cannot say.

    A thought waits while a hint is being typed, so that the hint is not late.
    """

    def __init__(self, control: Control, screen: Screen) -> None:
        self._control = control
        self._screen = screen
        self._phase: Phase = "reading"
        self._thinks: bool | None = None
        self._line: HintLine | None = None
        self._was_paused = False
        self._typed_at = float("-inf")
        self._told: set[str] = set()

    @property
    def patience_seconds(self) -> float:
        """How long to wait for another key: not at all while a line is typed."""
        return _ALONE_SECONDS if self._line is None else 0.0

    def enter(self, phase: Phase) -> None:
        """Note what the model does from now on."""
        self._thinks = phase == "think" if self._thinks is None else self._thinks
        self._phase = phase

    def take(self, keys: list[str]) -> None:
        """Act on keys that came together."""
        if self._line is None and len(keys) > 1 and any(key.isprintable() and key not in _KNOWN for key in keys):
            self._heard_typing()
            return
        for index, key in enumerate(keys):
            if self._line is not None:
                # A line break inside of pasted text does not send the half of it.
                pasted = key in _ENTER and index < len(keys) - 1
                self._edit(" " if pasted else key)
            else:
                self._press(key.lower())

    def leave(self) -> None:
        """Draw nothing: the terminal belongs to another program."""
        self._screen.leave()

    def come_back(self) -> None:
        """Draw again what stood there."""
        self._screen.come_back()
        self._draw_line()

    def _press(self, key: str) -> None:
        if time.monotonic() - self._typed_at < _TYPING_SECONDS:
            self._typed_at = time.monotonic()
        elif key not in _KNOWN:
            if key.isprintable():
                self._heard_typing()
        elif key == "?":
            self._screen.note(KEYS)
        elif key in _PAUSE:
            self._pause_or_go_on()
        elif key in _OF_THOUGHT and self._phase == "answer":
            self._tell_once(
                "the thought is over" if self._thinks else "the model answers without a thought",
                "there is nothing to steer",
            )
        elif key == "m":
            self._control.think_more()
            self._tell_if_later()
        elif key == "h":
            self._begin_hint()
        else:
            self._control.answer_now()
            self._go_on()
            self._tell_if_later()

    def _heard_typing(self) -> None:
        self._typed_at = time.monotonic()
        self._tell_once("what is typed while the model writes is not kept", "? shows the keys")

    def _pause_or_go_on(self) -> None:
        if self._control.paused:
            self._go_on()
        else:
            self._control.pause()
            self._show_pause()

    def _show_pause(self) -> None:
        thought = [] if self._phase == "answer" else ["a answer", "h hint"]
        self._screen.banner(SEPARATOR.join(["paused", "p goes on", *thought, "Ctrl-C stops", "? keys"]))

    def _go_on(self) -> None:
        self._control.resume()
        self._screen.banner("")

    def _begin_hint(self) -> None:
        self._was_paused = self._control.paused
        self._control.pause()
        self._line = HintLine()
        self._screen.hold()
        self._draw_line()

    def _edit(self, key: str) -> None:
        line = self._line
        assert line is not None
        end = line.press(key)
        if end is None:
            self._draw_line()
            return
        self._line = None
        if end == "send":
            self._control.hint(line.text)
        if not self._was_paused:
            self._control.resume()
        self._screen.release()
        if end == "send":
            self._tell_if_later()

    def _draw_line(self) -> None:
        if self._line is not None:
            self._screen.edit(self._line.shown(self._screen.columns()))

    def _tell_if_later(self) -> None:
        """Say that a wish was heard where the model cannot do it at once."""
        if self._phase == "reading" or self._control.paused:
            self._screen.note("[heard; it counts as soon as the model thinks]")

    def _tell_once(self, what: str, then: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._screen.note(f"[{what}; {then}]")


@contextlib.contextmanager
def steered(control: Control, screen: Screen) -> Iterator[Steering | None]:
    """Let the person's keys steer a reply inside the block, where there is a person; else yield None."""
    from r1mac.ui import keyboard

    if not keyboard.has_keys():
        yield None
        return
    steering = Steering(control, screen)
    with keyboard.Keyboard(steering):
        yield steering
