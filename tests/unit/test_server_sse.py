"""Chunks to the bytes of a stream."""

import json

from r1mac.server.sse import KEEP_ALIVE, Chunk, as_event, as_line


def test_an_event_is_one_line_of_data():
    """Whatever breaks lines, in a text or in Unicode, is escaped or no line break to the protocol."""
    text = "a\nb\r\nc\u2028d\u0085e"
    event = as_event(Chunk({"text": text}))

    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    assert b"\r" not in event
    assert json.loads(event[len(b"data: ") :]) == {"text": text}


def test_an_event_has_its_name_where_the_api_has_them():
    """The name stands on a line before the data; a word is sent as it is."""
    assert as_event(Chunk({"a": 1}, event="start")) == b'event: start\ndata: {"a":1}\n\n'
    assert as_event(Chunk("[DONE]")) == b"data: [DONE]\n\n"


def test_a_line_is_one_object():
    """As Ollama streams."""
    assert as_line(Chunk({"a": "x\ny"})) == b'{"a":"x\\ny"}\n'


def test_a_sign_of_life_is_a_comment():
    """A line that begins with a colon is skipped by every reader of events, and ends a block of its own."""
    assert KEEP_ALIVE.startswith(b":")
    assert KEEP_ALIVE.endswith(b"\n\n")
