"""Chunks to the bytes of a stream: server-sent events, or a line of JSON each."""

import json
from typing import Any, NamedTuple

# A line that begins with a colon is a comment, which clients skip: it keeps the connection alive.
# https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
KEEP_ALIVE = b": still at work\n\n"

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Chunk(NamedTuple):
    """One piece of a streamed reply: JSON, or a word such as ``[DONE]``; and the event's name where there is one."""

    data: dict[str, Any] | str
    event: str | None = None


def as_event(chunk: Chunk) -> bytes:
    """Return a server-sent event."""
    name = f"event: {chunk.event}\n" if chunk.event is not None else ""
    return f"{name}data: {_text(chunk)}\n\n".encode()


def as_line(chunk: Chunk) -> bytes:
    """Return a line of JSON, as Ollama streams."""
    return f"{_text(chunk)}\n".encode()


def _text(chunk: Chunk) -> str:
    # Line breaks are escaped in JSON, so that a chunk is one line.
    return chunk.data if isinstance(chunk.data, str) else _ENCODER.encode(chunk.data)
