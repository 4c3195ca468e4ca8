"""The thought told from the answer, while the text is still arriving."""

from collections.abc import Iterator

from r1mac.engine.events import Channel, TextDelta

THINK_START, THINK_END = "<think>", "</think>"


class ThinkSplitter:
    """Cuts a stream of text at R1's tags. Text in, deltas out; it does not matter where the pieces break.

    The state at the beginning comes from the prompt: a template may have opened the thought already. A model
    may also open it itself, but only before anything else is said; the first closing tag ends it, and any
    later tag is text. The line breaks around the tags belong to neither side.
    """

    def __init__(self, *, in_thought: bool, can_open: bool = True) -> None:
        self._channel: Channel = "think" if in_thought else "answer"
        self._may_open = can_open and not in_thought
        self._pending = ""
        self._at_start = True

    @property
    def channel(self) -> Channel:
        """Where the text that arrives next belongs, as far as is known."""
        return self._channel

    @property
    def may_open(self) -> bool:
        """Whether the model may still open a thought of its own."""
        return self._may_open and self._at_start

    def feed(self, text: str) -> Iterator[TextDelta]:
        """Take more text and yield what is certain of it."""
        self._pending += text
        while self._pending:
            if self._at_start and not self._skip_start():
                return
            if self._channel == "answer":
                yield from self._release(len(self._pending))
                return
            cut = self._pending.find(THINK_END)
            if cut < 0:
                yield from self._release(len(self._pending) - tag_overlap(self._pending, THINK_END))
                return
            yield from self._release(cut)
            self._pending = self._pending[len(THINK_END) :]
            self._channel, self._at_start, self._may_open = "answer", True, False

    def finish(self) -> Iterator[TextDelta]:
        """Yield what was held back; nothing more will arrive."""
        if self._at_start:
            self._pending = self._pending.lstrip("\r\n")
        yield from self._release(len(self._pending))

    def _skip_start(self) -> bool:
        """Drop leading line breaks and an opening tag. Return False while more text is needed to decide."""
        if self._may_open:
            stripped = self._pending.lstrip()
            if stripped.startswith(THINK_START):
                self._pending = stripped[len(THINK_START) :]
                self._channel, self._may_open = "think", False
            elif THINK_START.startswith(stripped):
                return False
        self._pending = self._pending.lstrip("\r\n")
        self._at_start = not self._pending
        return bool(self._pending)

    def _release(self, length: int) -> Iterator[TextDelta]:
        text, self._pending = self._pending[:length], self._pending[length:]
        if text:
            yield TextDelta(channel=self._channel, text=text)


def tag_overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of *text* may be the beginning of *tag*."""
    for length in range(min(len(text), len(tag) - 1), 0, -1):
        if tag.startswith(text[-length:]):
            return length
    return 0
