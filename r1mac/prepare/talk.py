"""A session whose conversation is kept on the disk, and goes on from there."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from r1mac.engine.control import Control
from r1mac.engine.events import RESUMABLE, Channel, Event, Finished, Notice, TextDelta
from r1mac.engine.request import GenerateRequest, Message
from r1mac.prepare.chats import ChatMessage, KeptChat

if TYPE_CHECKING:
    from r1mac.engine.generate import Session


class Talk:
    """Generates as a session does, and keeps each turn: the question before it is answered, the reply as it is written.

    Attributes:
        kept: the conversation on the disk; None keeps nothing.
    """

    def __init__(self, session: "Session", kept: KeptChat | None) -> None:
        self.kept = kept
        self._session = session

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said so far, with the system prompt if there is one, and without thoughts."""
        kept = () if self.kept is None else self.kept.record.messages
        return tuple(Message(message.role, message.text) for message in kept)

    @property
    def has_unfinished_reply(self) -> bool:
        """Whether the last reply was cut off, and can be gone on with."""
        return self.kept is not None and self.kept.unfinished is not None

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield the events of ``Session.generate``, and keep the turn.

        Where the same was asked before and the reply was cut off, that one is gone on with.
        """
        if self.kept is None:
            yield from self._session.generate(request, control)
            return
        if self.has_unfinished_reply and request.messages == self.messages:
            yield from self.resume(control)
            return
        note = self.kept.save(self._with_thoughts(request.messages), sampling=request.sampling, think=request.think)
        self.kept.unfinished = None
        if note is not None:
            yield Notice(kind="cache", text=note)
        yield from self._kept(self.kept, self._session.generate(request, control, kept_at=self.kept.checkpoint_path))

    def resume(self, control: Control | None = None) -> Iterator[Event]:
        """Yield the events of the reply that was cut off, from its beginning, and keep the turn."""
        assert self.kept is not None
        assert self.kept.unfinished is not None
        saved, self.kept.unfinished = self.kept.unfinished, None
        yield from self._kept(self.kept, self._session.resume(saved, control))

    def _kept(self, kept: KeptChat, events: Iterator[Event]) -> Iterator[Event]:
        written: dict[Channel, list[str]] = {"think": [], "answer": []}
        asked = kept.record.messages
        for event in events:
            if isinstance(event, TextDelta):
                written[event.channel].append(event.text)
            if isinstance(event, Finished) and event.reason not in RESUMABLE:
                reply = ChatMessage(
                    role="assistant", text="".join(written["answer"]), thought="".join(written["think"])
                )
                if note := kept.save((*asked, reply)):
                    yield Notice(kind="cache", text=note)
                else:
                    kept.checkpoint_path.unlink(missing_ok=True)
            yield event

    def _with_thoughts(self, messages: Sequence[Message]) -> tuple[ChatMessage, ...]:
        """Return *messages* as they are kept: replies with the thoughts that are known of them."""
        known = () if self.kept is None else self.kept.record.messages
        # At a terminal no function is called.
        found = [ChatMessage(role=message.role, text=message.text) for message in messages if message.role != "tool"]
        for index, (old, new) in enumerate(zip(known, found, strict=False)):
            if (old.role, old.text) != (new.role, new.text):
                break
            found[index] = replace(new, thought=old.thought)
        return tuple(found)
