"""One reply at work: asked for on the event loop, written on the thread that owns the model."""

import asyncio
import time
from collections.abc import AsyncIterator

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished
from r1mac.server.asked import Asked


class Job:
    """Carries the events of one reply from the worker's thread to the coroutine that made it.

    Attributes:
        id: what clients call the reply.
        asked: what it is to be.
        control: steers it from any thread.
        submitted_at_s: when it was asked for, by the monotonic clock.
    """

    def __init__(self, reply_id: str, asked: Asked) -> None:
        """Make a job whose events are read on the loop that runs now."""
        self.id = reply_id
        self.asked = asked
        self.control = Control()
        self.submitted_at_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        # Its length is bounded by the longest reply: a reader that is slow keeps nobody else waiting.
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Hand over an event. Any thread."""
        self._hand_over(event)

    def fail(self, error: Exception) -> None:
        """Say that the reply came to nothing; no event follows. Any thread."""
        self._hand_over(error)

    async def events(self) -> AsyncIterator[Event]:
        """Yield what happens; the last event is Finished.

        Raises:
            R1MacError: the reply came to nothing.
            BadRequest: what was asked cannot be meant.
        """
        while True:
            item = await self._events.get()
            if isinstance(item, Exception):
                raise item
            yield item
            if isinstance(item, Finished):
                return

    def _hand_over(self, item: Event | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, item)
        except RuntimeError:
            # The loop is closed: the server has gone, and nobody reads any more.
            self.control.cancel()
