"""One reply at work: asked for on the event loop, written on the thread that owns the model."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import TypeAlias

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished
from r1mac.engine.tool_calls import ToolCallEvents
from r1mac.server.asked import Asked

# What jobs say: which one, and what. Its length is bounded by the longest reply: a slow reader keeps nobody waiting.
Mailbox: TypeAlias = asyncio.Queue["tuple[Job, Event | Exception]"]


class Job:
    """Carries the events of one reply from the worker's thread to the coroutine that made it.

    Attributes:
        id: what clients call the reply.
        asked: what it is to be.
        index: which of several replies to the same request it is.
        control: steers it from any thread.
        submitted_at_s: when it was asked for, by the monotonic clock.
    """

    def __init__(self, reply_id: str, asked: Asked, *, index: int = 0, mailbox: Mailbox | None = None) -> None:
        """Make a job whose events are read on the loop that runs now, from *mailbox* if several share one."""
        self.id = reply_id
        self.asked = asked
        self.index = index
        self.control = Control()
        self.submitted_at_s = time.monotonic()
        self._calls = ToolCallEvents(one_call=asked.one_call) if asked.tools else None
        self._loop = asyncio.get_running_loop()
        self._mailbox: Mailbox = asyncio.Queue() if mailbox is None else mailbox

    def put(self, event: Event) -> None:
        """Hand over an event. Any thread, but one after the other: calls of functions are cut out of the answer."""
        hand_over([(self, event)])

    def fail(self, error: Exception) -> None:
        """Say that the reply came to nothing; no event follows. Any thread."""
        hand_over([(self, error)])

    async def events(self) -> AsyncIterator[Event]:
        """Yield what happens, if no mailbox is shared; the last event is Finished.

        Raises:
            R1MacError: the reply came to nothing.
            BadRequest: what was asked cannot be meant.
        """
        while True:
            _, item = await self._mailbox.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Finished):
                return

    def pieces(self, item: Event | Exception) -> Iterable[Event | Exception]:
        """Return what the reader is given for *item*."""
        return [item] if self._calls is None or isinstance(item, Exception) else self._calls.event(item)


def hand_over(items: Sequence[tuple[Job, Event | Exception]]) -> None:
    """Hand what happened to the coroutines that read it, of all jobs of one loop at once. Any thread.

    Waking a loop costs more than what it is woken for.
    """
    pieces = [(job, piece) for job, item in items for piece in job.pieces(item)]
    if not pieces:
        return
    try:
        pieces[0][0]._loop.call_soon_threadsafe(_put_all, pieces)  # noqa: SLF001 - a job's own module
    except RuntimeError:
        # The loop is closed: the server has gone, and nobody reads any more.
        for job, _ in items:
            job.control.cancel()


def forget_frames(error: BaseException | None) -> None:
    """Let go of what the functions named that *error* came through, a model for one, before others are given it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _put_all(items: Sequence[tuple[Job, Event | Exception]]) -> None:
    for job, item in items:
        job._mailbox.put_nowait((job, item))  # noqa: SLF001 - a job's own module
