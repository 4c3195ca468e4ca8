"""`r1mac serve` as a process: it starts, refuses what it must, changes models, and ends in order."""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r1mac.hub.manifest import describe, write_manifest
from tests.checkpoints import CONFIGS, write_checkpoint
from tests.cli.conftest import COMMAND, R1mac

STORY = {"messages": [{"role": "user", "content": "Go on and on."}], "max_tokens": 3000, "stream": True}


class Serving:
    """A server process, and what it has said."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *arguments, "--port", "0"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self._open = contextlib.ExitStack()
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        assert self._ready.wait(200), self.said

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if "curl" in line:
                self._ready.set()
        self._ready.set()

    @property
    def port(self) -> int:
        found = re.search(r"127\.0\.0\.1:(\d+)", "".join(self.said))
        assert found, self.said
        return int(found[1])

    def ask(self, path: str, body: object = None, *, key: str | None = None) -> http.client.HTTPResponse:
        """Return the answer to a request, of which nothing but the head is read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        head = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        content = None if body is None else json.dumps(body)
        self._open.callback(connection.close)
        connection.request("GET" if body is None else "POST", path, body=content, headers=head)
        return self._open.enter_context(connection.getresponse())

    def state(self) -> dict[str, object]:
        state: dict[str, object] = json.load(self.ask("/r1mac/state"))
        return state

    def chat(self, said: str, **fields: object) -> dict[str, object]:
        body = {"messages": [{"role": "user", "content": said}], "max_tokens": 4, **fields}
        answer: dict[str, object] = json.load(self.ask("/v1/chat/completions", body))
        assert "error" not in answer, (answer, self.said)
        return answer

    def ended(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(60)
        self._reader.join()
        self._open.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture(name="serve")
def _serve(environment: dict[str, str]) -> Iterator[Callable[..., Serving]]:
    """Return a function that starts a server; what is left at the end is ended."""
    started: list[Serving] = []

    def start(*arguments: str, **variables: str) -> Serving:
        started.append(Serving({**environment, **variables}, *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGINT)
        one.ended()


def test_it_serves_until_it_is_told_to_stop_and_replies_end(
    tiny: Path, serve: Callable[..., Serving], r1mac: R1mac, tmp_path: Path
) -> None:
    """SIGTERM: new requests are refused for now, the reply at work is finished, the process ends well."""
    server = serve(str(tiny), "--context", "4096", "--queue", "1", "--draft", "off")
    assert len(json.load(server.ask("/v1/models"))["data"]) == 1
    assert server.chat("Hi")["usage"]["completion_tokens"] > 0  # type: ignore[index]

    # The port is taken, which another server says at once and in one sentence.
    second = r1mac("serve", str(tiny), "--port", str(server.port))
    assert second.returncode == 10
    assert f"port {server.port} of 127.0.0.1 is taken" in second.stderr
    assert f"--port {server.port + 1}" in second.stderr

    story = server.ask("/v1/chat/completions", STORY)
    assert story.readline().startswith(b"data: ")
    server.process.send_signal(signal.SIGTERM)
    while server.state()["phase"] != "stopping":
        pass
    refused = server.ask("/v1/chat/completions", STORY)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) > 0
    chunks = [line for line in story.read().splitlines() if line.startswith(b"data: ")]
    assert chunks[-1] == b"data: [DONE]"
    assert json.loads(chunks[-2][6:])["choices"][0]["finish_reason"] in {"stop", "length"}
    assert server.ended() == 0
    # Nothing is told of a run that did not end in order.
    assert not list((tmp_path / "r1mac-home").rglob("runs/*.json"))


def test_a_second_interrupt_cancels_the_reply_at_work(tiny: Path, serve: Callable[..., Serving]) -> None:
    """Ctrl-C twice: the stream ends as one that was cut off, with an end that clients can read."""
    server = serve(str(tiny), "--context", "4096", "--patience", "1h", "--parallel", "2")
    streams = [server.ask("/v1/chat/completions", {**STORY, "logit_bias": {"1": -100}}) for _ in range(2)]
    for stream in streams:
        assert stream.readline().startswith(b"data: ")
    server.process.send_signal(signal.SIGINT)
    while server.state()["phase"] != "stopping":
        pass
    server.process.send_signal(signal.SIGINT)

    for stream in streams:
        assert stream.read().rstrip().endswith(b"data: [DONE]")
    assert server.ended() == 0


def test_models_of_the_store_are_loaded_when_they_are_asked_for(
    serve: Callable[..., Serving], tmp_path: Path, environment: dict[str, str]
) -> None:
    """Without MODEL the store's models come one at a time; one that is not there is 404, and nothing is fetched."""
    for name, kind in (("one", "llama"), ("two", "qwen2")):
        folder = tmp_path / "store" / name
        write_checkpoint(folder, CONFIGS[kind])
        write_manifest(folder, describe(folder, source="a test", revision=None, bits=16))
    server = serve("--context", "1024", R1MAC_MODELS_DIR=str(tmp_path / "store"))
    assert server.state()["phase"] == "empty"

    assert server.ask("/v1/chat/completions", STORY).status == 404  # which one?
    for name in ("one", "two", "one"):
        assert server.chat("Hi", model=name)["model"] == name
        assert server.state()["model"] == name
    missing = server.ask("/v1/chat/completions", {**STORY, "model": "70b"})
    assert missing.status == 404
    shutil.rmtree(tmp_path / "store" / "two")
    assert server.ask("/v1/chat/completions", {**STORY, "model": "two"}).status == 404
    assert server.chat("Hi")["model"] == "one"


def test_another_context_is_chosen_while_a_reply_is_written(tiny: Path, serve: Callable[..., Serving]) -> None:
    """The reply ends in order; what was too long for the former context is answered in the new one, by a real model."""
    server = serve(str(tiny), "--context", "512")
    long = {"messages": [{"role": "user", "content": "North " * 400}], "max_tokens": 4}
    refused = json.load(server.ask("/v1/chat/completions", long))["error"]
    assert (refused["code"], "planned for 512" in refused["message"]) == ("context_length_exceeded", True)
    planned_bytes = server.state()["cache_bytes"]
    story = server.ask("/v1/chat/completions", {**STORY, "logit_bias": {"1": -100}})
    assert story.readline().startswith(b"data: ")

    too_much = server.ask("/r1mac/context", {"context_tokens": 1_000_000})
    assert (too_much.status, json.load(too_much)["error"]["param"]) == (400, "context_tokens")
    assert server.ask("/r1mac/context", {"context_tokens": 4096}).status == 202

    answer: dict[str, Any] = json.load(server.ask("/v1/chat/completions", long))
    assert answer["usage"]["prompt_tokens"] > 512
    assert story.read().rstrip().endswith(b"data: [DONE]")
    state = server.state()
    assert (state["context_tokens"], state["next_context_tokens"]) == (4096, None)
    assert state["cache_bytes"] > planned_bytes  # type: ignore[operator]
    assert json.load(server.ask("/api/ps"))["models"][0]["context_length"] == 4096


def test_only_those_with_the_key_are_answered(tiny: Path, serve: Callable[..., Serving], r1mac: R1mac) -> None:
    """Other computers are let in only with a key; without one the server does not start there."""
    refused = r1mac("serve", str(tiny), "--host", "0.0.0.0")
    assert refused.returncode == 2
    assert "--api-key" in refused.stderr

    server = serve(str(tiny), "--context", "512", "--api-key", "sesame")
    assert server.ask("/v1/models").status == 401
    assert server.ask("/v1/models", key="sesame").status == 200
    assert "sesame" not in "".join(server.said)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--host", "no-such-name.invalid", "--api-key", "x"), "is no address"),
        (("--host", "192.0.2.7", "--api-key", "x"), "cannot be listened to"),
        (("--idle-unload", "soon"), "soon"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], sentence: str, r1mac: R1mac) -> None:
    done = r1mac("serve", *arguments)

    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_does_not_fit_is_refused_before_the_port_opens(tiny: Path, r1mac: R1mac) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    done = r1mac("serve", str(tiny), "--context", "999999", "--port", str(port))

    assert done.returncode == 4
    assert "999999" in done.stderr
