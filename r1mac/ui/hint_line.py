"""A line that is being typed: its text, its cursor, and how it looks."""

from typing import Literal

from r1mac.ui.screen import char_width, text_width

_PROMPT = "hint: "
_LEFT, _RIGHT = {"\x1b[D", "\x1bOD", "\x02"}, {"\x1b[C", "\x1bOC", "\x06"}
_HOME, _END = {"\x1b[H", "\x1bOH", "\x1b[1~", "\x01"}, {"\x1b[F", "\x1bOF", "\x1b[4~", "\x05"}


class HintLine:
    """One line, edited key by key."""

    def __init__(self) -> None:
        self._before = self._after = ""

    @property
    def text(self) -> str:
        """What has been typed."""
        return (self._before + self._after).strip()

    def press(self, key: str) -> Literal["send", "drop"] | None:
        """Take one key and return what is to become of the line, or None while it is being typed."""
        if key in {"\n", "\r"}:
            return "send" if self.text else "drop"
        if key == "\x1b":
            return "drop"
        if key in {"\x7f", "\x08"}:
            self._before = self._before[:-1]
        elif key == "\x15":  # Ctrl-U
            self._before = ""
        elif key == "\x17":  # Ctrl-W
            self._before = self._before.rstrip()
            self._before = self._before[: self._before.rfind(" ") + 1]
        else:
            self._move(key)
            if key.isprintable():
                self._before += key
        return None

    def shown(self, columns: int) -> str:
        """Return the prompt, as much around the cursor as fits, and what puts the cursor into its place."""
        room = max(columns - len(_PROMPT) - 1, 1)
        before = _fitting(self._before, room)
        used = text_width(before)
        after = ""
        for char in self._after:
            used += char_width(char)
            if used > room:
                break
            after += char
        back = text_width(after)
        return _PROMPT + before + after + (f"\x1b[{back}D" if back else "")

    def _move(self, key: str) -> None:
        text, at = self._before + self._after, len(self._before)
        if key in _LEFT:
            at = max(at - 1, 0)
        elif key in _RIGHT:
            at += 1
        elif key in _HOME:
            at = 0
        elif key in _END:
            at = len(text)
        self._before, self._after = text[:at], text[at:]


def _fitting(text: str, columns: int) -> str:
    """Return as much of the end of *text* as fits."""
    taken = 0
    for index in range(len(text) - 1, -1, -1):
        taken += char_width(text[index])
        if taken > columns:
            return text[index + 1 :]
    return text
