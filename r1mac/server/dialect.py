"""What one API is made of: how it asks, how it says a reply, how it says an error."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from r1mac.engine.events import Event
from r1mac.errors import R1MacError
from r1mac.server.asked import Asked
from r1mac.server.sse import KEEP_ALIVE, Chunk, as_event
from r1mac.server.wire_errors import ErrorBody


class Writer(Protocol):
    """Says one reply in a dialect."""

    def begin(self) -> Iterator[Chunk]:
        """Yield what a stream begins with."""

    def event(self, event: Event) -> Iterator[Chunk]:
        """Yield what an event is in a stream."""

    def failed(self, error: R1MacError) -> Iterator[Chunk]:
        """Yield what a stream ends with that came to nothing."""

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole reply."""


class SeveralWriter(Protocol):
    """A writer that can also say several replies to one request."""

    def event(self, event: Event, index: int = 0) -> Iterator[Chunk]:
        """Yield what an event of the reply *index* is in a stream."""

    def whole(self, *replies: Sequence[Event]) -> dict[str, Any]:
        """Return all replies."""


class WriterMaker(Protocol):
    """Makes the writer of one reply."""

    def __call__(self, reply_id: str, asked: Asked, *, model: str, created_at_s: int) -> Writer:
        """Return it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one API is spoken.

    Attributes:
        id_prefix: what the ids of its replies begin with.
        parse: a request's body to what is asked.
        writer: what says a reply.
        error_body: an error's body.
        frame: a chunk to the bytes of a stream.
        media_type: the stream's.
        keep_alive: bytes that a stream may have between two chunks and that mean nothing.
        any_content_type: whether a body may come with another type than JSON's, from programs that are no browsers.
    """

    id_prefix: str
    parse: Callable[[Mapping[str, Any]], Asked]
    writer: WriterMaker
    error_body: ErrorBody
    frame: Callable[[Chunk], bytes] = as_event
    media_type: str = "text/event-stream"
    keep_alive: bytes = KEEP_ALIVE
    any_content_type: bool = False
