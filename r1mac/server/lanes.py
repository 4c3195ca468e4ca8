"""How replies are written: one after the other by a Session, or side by side by a Batch."""

import itertools
import logging
from collections.abc import Generator, Iterable, Iterator
from typing import Protocol, TypeAlias

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished
from r1mac.engine.request import GenerateRequest
from r1mac.errors import R1MacError

logger = logging.getLogger(__name__)

# What became of a reply at a step: something happened, or it came to nothing and nothing follows.
Outcome: TypeAlias = Event | Exception


class Lane(Protocol):
    """Writes replies. Lives on the thread that loaded the model."""

    @property
    def slots(self) -> int:
        """How many replies may be at work at once."""

    def __len__(self) -> int:
        """Return how many are."""

    def submit(self, request: GenerateRequest, control: Control) -> int:
        """Take a request and return its ticket.

        Raises:
            R1MacError: it cannot be answered.
        """

    def step(self) -> Iterable[tuple[int, Outcome]]:
        """Do some work, and yield what came of it, by ticket. What is raised concerns all replies at work."""

    def close(self) -> None:
        """Drop whatever is at work."""


class Generates(Protocol):
    """A Session, or what does as one."""

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        """Yield the events of one reply; the last is Finished."""


class Solo:
    """One reply at a time, with all that a session has: drafts, its memory minded, what was read kept on the SSD.

    A reply that is paused keeps its place, and its memory: the others wait.

    Attributes:
        session: what writes them.
    """

    slots = 1

    def __init__(self, session: Generates) -> None:
        self.session = session
        self._tickets = itertools.count()
        self._ticket = 0
        self._events: Iterator[Event] | None = None

    def __len__(self) -> int:
        """Return whether a reply is at work."""
        return int(self._events is not None)

    def submit(self, request: GenerateRequest, control: Control) -> int:
        """Take a request and return its ticket; what is wrong with it is known at its first step."""
        assert self._events is None
        self._events, self._ticket = self.session.generate(request, control), next(self._tickets)
        return self._ticket

    def step(self) -> Iterator[tuple[int, Outcome]]:
        """Go on until something happens, and yield it."""
        if self._events is None:
            return
        try:
            event = next(self._events)
            if isinstance(event, Finished):
                # What the session held for the reply is let go of before the next one begins.
                self.close()
            yield self._ticket, event
        except R1MacError as error:
            self._events = None
            yield self._ticket, error
        except Exception as error:
            # The session has forgotten what it read; the next reply begins anew.
            logger.exception("a reply failed")
            self._events = None
            yield self._ticket, error

    def close(self) -> None:
        """Drop the reply at work."""
        events, self._events = self._events, None
        if isinstance(events, Generator):
            events.close()
