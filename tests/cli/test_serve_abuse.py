"""What clients do to a server beside asking: they vanish, stall, send half of something, come from elsewhere, or too many."""

import contextlib
import json
import random
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from r1mac.engine.request import GenerateRequest
from r1mac.server.limits import Limits
from tests.http_server import Reciter, Served, served
from tests.http_talk import ask, chunks, eventually, head, raw, streamed

CHAT = "/v1/chat/completions"
KEY = "a key of one's own"
ANSWER = "hm\n</think>\n\nfour"
MANY_CLIENTS = 200
# It takes milliseconds; a test machine may be busy.
SOON_SECONDS = 5
# More than the sockets between server and client hold.
MUCH_WORDS = 1500
MUCH = f"{'word' * 800} " * MUCH_WORDS


def _said(request: GenerateRequest) -> str:
    text = request.messages[-1].text
    if text == "much":
        return MUCH
    return "on and " * 20_000 if text == "long" else ANSWER


def _asked(text: str = "x", **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 50_000, **more}


def _sent(text: str = "x", **more: object) -> bytes:
    return head(CHAT, json.dumps(_asked(text, **more)).encode())


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    limits = Limits(body_bytes=100_000, piece_seconds=0.3, keep_alive_seconds=0.1)
    with served(Reciter(_said, words_per_s=1000), queue_limit=4 * MANY_CLIENTS, limits=limits) as server:
        yield server


@pytest.fixture(name="locked", scope="module")
def _locked() -> Iterator[Served]:
    with served(Reciter(_said), api_key=KEY, hosts=("mac.example",), origins=("http://friend.example:3000",)) as server:
        yield server


def _vanish(talk: socket.socket) -> None:
    """Go as a program does that is killed: with a reset."""
    talk.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    talk.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_takes_its_reply_with_it(server, stream):
    """Streamed or not, running or waiting for its turn: what nobody reads any more is not written."""
    first = raw(server.port, _sent("long", stream=stream))
    eventually(lambda: server.worker.state().running == 1)
    second = raw(server.port, _sent("long", stream=stream))
    eventually(lambda: server.worker.state().waiting == 1)

    _vanish(second)
    eventually(lambda: server.worker.state().waiting == 0, seconds=SOON_SECONDS)
    first.close()
    eventually(lambda: server.is_idle, seconds=SOON_SECONDS)


def test_many_clients_vanish_at_random_moments(server):
    """Whenever they go, all that they held is free at once, and the next answer is right."""
    dice = random.Random(1)
    talks = []
    for _ in range(MANY_CLIENTS):
        whole = _sent("long", stream=dice.random() < 0.5)
        talks.append(raw(server.port, whole[: dice.randint(1, len(whole))] if dice.random() < 0.3 else whole))
        if dice.random() < 0.5:
            _vanish(talks.pop(dice.randrange(len(talks))))
    for talk in talks:
        _vanish(talk)

    eventually(lambda: server.is_idle, seconds=SOON_SECONDS)
    assert ask(server.port, "/r1mac/replies").json() == {"replies": []}
    assert ask(server.port, CHAT, _asked()).json()["choices"][0]["message"]["content"] == "four"


def test_a_slow_reader_keeps_nobody_waiting(server):
    """Who reads nothing holds no place: its reply is written to the end, others are answered, and it misses no word."""
    server.reciter.words_per_s = None
    try:
        with streamed(server.port, CHAT, _asked("much")) as slow:
            written = server.worker.state().written_tokens
            eventually(lambda: server.worker.state().written_tokens >= written + MUCH_WORDS)
            assert ask(server.port, CHAT, _asked()).status == 200
            text = "".join(
                piece["choices"][0]["delta"].get("reasoning", "") for piece in chunks(slow) if piece != "[DONE]"
            )
    finally:
        server.reciter.words_per_s = 1000
    assert text == MUCH


def test_half_of_a_request_is_waited_for_only_so_long(server):
    """Requests that stop in their head or in their body hold up nobody; they are answered with 408 and let go."""
    whole = _sent()
    with contextlib.ExitStack() as stack:
        talks = {
            length: [stack.enter_context(raw(server.port, whole[:length])) for _ in range(20)]
            for length in (0, 1, 30, len(whole) - 5)
        }
        assert ask(server.port, CHAT, _asked()).status == 200
        answers = {length: {_to_the_end(talk)[:13] for talk in several} for length, several in talks.items()}

    assert answers == {0: {b""}, **{length: {b"HTTP/1.1 408 "} for length in (1, 30, len(whole) - 5)}}


def test_a_second_request_on_a_connection_is_waited_for_only_so_long(server):
    """A head may come in pieces, and behind an answer; one that stops is not waited for."""
    whole = head("/health", b"", method="GET")
    with raw(server.port, whole[:20]) as talk:
        talk.sendall(whole[20:])
        first = talk.recv(65536)
        talk.sendall(whole[:30])
        second = _to_the_end(talk)

    assert first.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1 408 " in second


def _to_the_end(talk: socket.socket) -> bytes:
    return b"".join(iter(lambda: talk.recv(65536), b""))


def test_bytes_that_are_no_request_are_refused(server):
    """What is no HTTP, and a head without end, gets a 400 and not a hang."""
    for data in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 8 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000,
    ):
        with raw(server.port, data) as talk, contextlib.suppress(ConnectionResetError):
            assert talk.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(server.port, "/health").status == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_long_is_refused(server, declared):
    """Whether its length was said beforehand or not, it is not read to the end."""
    if declared:
        answer = ask(server.port, CHAT, b" " * 100_001)
        assert (answer.status, answer.json()["error"]["code"]) == (413, "request_too_large")
    else:
        with raw(
            server.port, head(CHAT, b"", **{"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
        ) as talk:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(11):
                    talk.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
            assert talk.recv(100).startswith(b"HTTP/1.1 413 ")


def test_a_full_queue_says_when_to_come_again():
    """What finds no place is refused with 503, the numbers and Retry-After, and what waited is answered."""
    gate = threading.Event()

    def said(request: GenerateRequest) -> str:
        assert gate.wait(30)
        return ANSWER

    with (
        served(Reciter(said), queue_limit=1) as server,
        raw(server.port, _sent()) as first,
        raw(server.port, _sent()) as second,
    ):
        eventually(lambda: (server.worker.state().running, server.worker.state().waiting) == (1, 1))
        answer = ask(server.port, CHAT, _asked())
        gate.set()
        ends = [talk.recv(12) for talk in (first, second)]

    assert (answer.status, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert ends == [b"HTTP/1.1 200"] * 2


def test_a_server_that_stops_takes_nothing_more_and_ends_what_runs():
    """While it stops, a stream comes to its end in order, a new request gets 503, and health says so."""
    with served(Reciter(_said, words_per_s=500)) as server, streamed(server.port, CHAT, _asked("long")) as answer:
        pieces = chunks(answer)
        next(pieces)
        eventually(lambda: server.worker.state().running == 1)
        server.worker.stop(patience_seconds=60)
        eventually(lambda: server.worker.state().phase == "stopping")
        refused, health = ask(server.port, CHAT, _asked()), ask(server.port, "/health")
        server.worker.stop(patience_seconds=0)
        *_, last, done = pieces

    assert (refused.status, health.status, health.json()["status"]) == (503, 503, "stopping")
    assert (last["choices"][0]["finish_reason"], done) == ("stop", "[DONE]")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:11435", 200),
        ("127.0.0.1", 200),
        ("[::1]:11435", 200),
        ("192.168.1.20", 200),
        ("MAC.example.", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:11435", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_name_that_is_not_this_computer_s_is_refused(locked, host, status):
    """A page whose own name was bound to this computer (DNS rebinding) reaches neither the API nor the page."""
    for path in ("/", "/v1/models"):
        with raw(locked.port, head(path, b"", method="GET", host=host, Authorization=f"Bearer {KEY}")) as talk:
            assert talk.recv(12) == f"HTTP/1.1 {status}".encode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost"}, 200),
        ({"Origin": "http://friend.example:3000"}, 200),
        ({"Origin": "http://friend.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://localhost:9"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_a_page_of_another_site_cannot_ask(locked, headers, status):
    """Only the server's own page, and pages that were named, may ask; no other is told that it may read the answer."""
    body = json.dumps(_asked()).encode()
    with raw(locked.port, head(CHAT, body, Authorization=f"Bearer {KEY}", Connection="close", **headers)) as talk:
        answer = _to_the_end(talk)

    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert (b"access-control-allow-origin" in answer.lower()) == ("friend.example:3000" in headers.get("Origin", ""))


def test_a_page_that_was_named_may_ask_first(locked):
    """A browser's question beforehand is answered for a page that was named, without a key; for others not."""
    wanted = {"Access-Control-Request-Method": "POST", "Host": "localhost"}
    named = ask(locked.port, CHAT, method="OPTIONS", headers={"Origin": "http://friend.example:3000", **wanted})
    other = ask(locked.port, CHAT, method="OPTIONS", headers={"Origin": "http://evil.example", **wanted})

    assert (named.status, named.headers["access-control-allow-origin"]) == (204, "http://friend.example:3000")
    assert other.status == 401
    assert not any(name.startswith("access-control") for name in other.headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": KEY}, 200),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"x-api-key": ""}, 401),
        ({"x-api-key": "\xe9"}, 401),
        ({"x-api-key": KEY + "x"}, 401),
    ],
)
def test_the_key_opens_everything_but_the_page(locked, headers, status):
    """Without the right key there is the page and whether the server lives, and nothing else."""
    paths = ("/v1/models", "/r1mac/state", "/r1mac/replies", "/metrics", "/openapi.json")
    answers = [ask(locked.port, path, headers=headers) for path in paths]
    answers.append(ask(locked.port, CHAT, _asked(), headers=headers))
    answers.append(ask(locked.port, "/r1mac/markup", {"text": "x"}, headers=headers))

    assert [answer.status for answer in answers] == [status] * len(answers)
    assert ask(locked.port, "/health", headers=headers).status == 200
    assert ask(locked.port, "/", headers=headers).status == 200
