"""HTTP as a client speaks it: requests with the standard library, and bytes on a socket for what no library sends."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

PATIENCE_SECONDS = 30.0


class Answer(NamedTuple):
    """A whole answer. *headers* have lower-case names."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int, path: str, body: object = None, *, method: str | None = None, headers: dict[str, str] | None = None
) -> Answer:
    """Send one request; *body* is sent as JSON unless it is bytes."""
    with connection(port) as talk:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        kind = {} if data is None else {"Content-Type": "application/json"}
        talk.request(method or ("GET" if data is None else "POST"), path, data, {**kind, **(headers or {})})
        answer = talk.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


@contextlib.contextmanager
def connection(port: int) -> Iterator[http.client.HTTPConnection]:
    talk = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    try:
        yield talk
    finally:
        talk.close()


@contextlib.contextmanager
def streamed(port: int, path: str, body: dict[str, Any]) -> Iterator[http.client.HTTPResponse]:
    """Send a request for a stream, and yield its answer once its head is there."""
    with connection(port) as talk:
        talk.request("POST", path, json.dumps({**body, "stream": True}), {"Content-Type": "application/json"})
        answer = talk.getresponse()
        try:
            yield answer
        finally:
            answer.close()


def chunks(lines: http.client.HTTPResponse) -> Iterator[Any]:
    """Yield the data of each event; a word such as [DONE] as it is."""
    for line in lines:
        if line.startswith(b"data: "):
            text = line[len(b"data: ") :].decode().rstrip("\n")
            yield json.loads(text) if text.startswith("{") else text


def raw(port: int, data: bytes) -> socket.socket:
    """Send bytes, and return the socket."""
    talk = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
    talk.sendall(data)
    return talk


def head(path: str, body: bytes, *, method: str = "POST", host: str = "localhost", **headers: str) -> bytes:
    """Return a request as it stands on the wire."""
    fields = {"Host": host, "Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def eventually(holds: Callable[[], bool], *, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait until *holds* does; fail after *seconds*."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"did not come true within {seconds:g} s"
        time.sleep(0.005)
