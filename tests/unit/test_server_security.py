"""Names and origins that are this server's own, bodies that are taken, and what health means: pure decisions."""

import pytest

from r1mac.server.asked import BadRequest
from r1mac.server.bodies import parse_object
from r1mac.server.health import judge
from r1mac.server.security import is_own_name, is_own_origin
from r1mac.server.state import WorkerState


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("page.localhost:80", True),
        ("127.0.0.1:11435", True),
        ("10.0.0.7", True),
        ("[fe80::1]:11435", True),
        ("host.docker.internal:11435", True),
        ("studio.local:11435", True),
        ("studio.local.", True),
        ("other.local", False),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("evil.example/localhost", False),
        ("127.1.evil", False),
        ("", False),
        (":80", False),
        ("[", False),
    ],
)
def test_own_names_are_addresses_and_what_was_named(host, own):
    """An address cannot be rebound and is always taken; a name only if it is this computer's."""
    assert is_own_name(host, {"studio.local"}) is own


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://localhost:11435", "localhost:11435", True),
        ("https://mac.example", "MAC.example", True),
        ("http://localhost", "localhost:11435", False),
        ("http://localhost:11435.evil.example", "localhost:11435", False),
        ("file://localhost", "localhost", False),
        ("null", "localhost", False),
        ("", "", False),
    ],
)
def test_an_own_origin_is_where_the_request_went(origin, host, own):
    """Scheme, name and port of the page must be those of the server."""
    assert is_own_origin(origin, host) is own


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'"x"', b"{", b'{"a": Infinity}', b'{"a":' * 100_000, b'{"a": "\\udfff"}', b"\xff"]
)
def test_a_body_that_no_text_can_hold_is_refused(body):
    """All that is no JSON object is a BadRequest, never another error."""
    with pytest.raises(BadRequest):
        parse_object(body)


def test_a_body_keeps_characters_of_every_plane():
    """A pair of halves is one character."""
    assert parse_object(b'{"a": "\\ud83d\\ude42 \xc3\xa9"}') == {"a": "🙂 é"}


@pytest.mark.parametrize(
    ("state", "status", "word"),
    [
        (WorkerState(), 200, "idle"),
        (WorkerState(phase="ready"), 200, "idle"),
        (WorkerState(phase="loading"), 200, "loading"),
        (WorkerState(phase="ready", running=1, progress_at_s=950.0), 200, "working"),
        (WorkerState(phase="ready", running=1, progress_at_s=939.0), 503, "stuck"),
        (WorkerState(phase="ready", progress_at_s=10.0), 200, "idle"),
        (WorkerState(phase="stopping", running=1, progress_at_s=999.0), 503, "stopping"),
    ],
)
def test_health_is_that_something_gets_on(state, status, word):
    """A server that has work and does none of it for a minute is not healthy, though its socket answers."""
    told_status, body = judge(state, now_s=1000.0)

    assert (told_status, body["status"]) == (status, word)
