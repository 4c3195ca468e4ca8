"""``/r1mac/context``: how long conversations may be, chosen while the server runs."""

import json
from collections.abc import Iterator

import pytest

from r1mac.engine.request import GenerateRequest
from r1mac.errors import DoesNotFit
from tests.http_server import CONTEXT_TOKENS, MODEL, Reciter, Served, served
from tests.http_talk import ask, chunks, eventually, streamed

CONTEXT, CHAT = "/r1mac/context", "/v1/chat/completions"
KEY = "sesame"
AUTHORISED = {"Authorization": f"Bearer {KEY}"}


def _said(request: GenerateRequest) -> str:
    return "Hm.</think>" + ("on and " * 20_000 if request.messages[-1].text == "long" else "Yes.")


@pytest.fixture(name="server")
def _server() -> Iterator[Served]:
    with served(Reciter(_said, words_per_s=500), models=(MODEL, "other")) as server:
        assert ask(server.port, CHAT, _question("Hi")).status == 200
        yield server


def _question(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **more}


def test_a_context_is_chosen_and_everything_tells_it(server):
    """What was too long is answered; every route and measure tells the context that is in use."""
    long = _question("word " * 110_000 + "long?")
    refused = ask(server.port, CHAT, long)
    assert (refused.status, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "POST /r1mac/context" in refused.json()["error"]["message"]
    server.room.longest_tokens = 131_072

    chosen = ask(server.port, CONTEXT, {"context_tokens": 120_000})

    assert chosen.status == 202
    eventually(lambda: server.worker.state().context_tokens == 120_000)
    assert ask(server.port, CHAT, long).json()["choices"][0]["message"]["content"] == "Yes."
    told = ask(server.port, CONTEXT).json()
    assert (told["model"], told["context_tokens"], told["next_context_tokens"]) == (MODEL, 120_000, None)
    assert (told["chosen"], told["loaded"], told["problem"]) == (True, True, None)
    assert 120_000 in [offer["context_tokens"] for offer in told["offers"]]
    state = ask(server.port, "/r1mac/state").json()
    assert (state["context_tokens"], state["safe_tokens"]) == (120_000, 60_000)
    assert ask(server.port, "/api/ps").json()["models"][0]["context_length"] == 120_000
    assert b"r1mac_context_tokens 120000.0" in ask(server.port, "/metrics").body
    assert ask(server.port, "/health").json()["status"] == "idle"


def test_a_reply_at_work_is_not_disturbed(server):
    with streamed(server.port, CHAT, _question("long", r1mac={"events": True})) as reply:
        told = chunks(reply)
        next(told)
        chosen = ask(server.port, CONTEXT, {"context_tokens": 4096, "model": MODEL}).json()
        assert (chosen["context_tokens"], chosen["next_context_tokens"]) == (CONTEXT_TOKENS, 4096)
        assert ask(server.port, "/r1mac/state").json()["next_context_tokens"] == 4096
        assert next(told)["choices"] is not None
    # The client went; that ended its reply.
    eventually(lambda: server.worker.state().context_tokens == 4096)
    assert ask(server.port, CHAT, _question("Hi")).status == 200
    eventually(lambda: server.is_idle)


def test_a_context_of_a_model_that_is_not_loaded_is_for_when_it_is(server):
    chosen = ask(server.port, CONTEXT, {"context_tokens": 8192, "model": "other"}).json()
    assert (chosen["model"], chosen["loaded"], chosen["context_tokens"]) == ("other", False, 8192)
    assert ask(server.port, f"{CONTEXT}?model=other").json() == chosen
    assert ask(server.port, CONTEXT).json()["model"] == MODEL
    ask(server.port, CHAT, _question("Hi", model="other"))
    assert server.worker.state().context_tokens == 8192


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"context_tokens": 131_072}, 400, "context_tokens", "the longest that fits is 100000 tokens"),
        ({"context_tokens": 255}, 400, "context_tokens", "from 256"),
        ({"context_tokens": 2**40}, 400, "context_tokens", "from 256"),
        ({"context_tokens": 4096.5}, 400, "context_tokens", "whole number"),
        ({"context_tokens": "4096"}, 400, "context_tokens", "must be a number"),
        ({}, 400, "context_tokens", "is missing"),
        ({"context_tokens": 4096, "model": 7}, 400, "model", "must be a string"),
        ({"context_tokens": 4096, "model": "../nobody"}, 404, None, "nobody"),
        ([4096], 400, None, "JSON object"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_changes_nothing(server, body, status, param, words):
    refused = ask(server.port, CONTEXT, json.dumps(body).encode())

    assert refused.status == status
    error = refused.json()["error"]
    assert error["param"] == param
    assert words in error["message"]
    assert server.worker.contexts(None).context_tokens == CONTEXT_TOKENS
    assert server.room.opened == [MODEL]


def test_what_fails_later_is_told_and_the_former_context_goes_on(server):
    server.room.full = DoesNotFit("another r1mac holds 30 GiB", hint="stop that one")
    assert ask(server.port, CONTEXT, {"context_tokens": 4096}).status == 202
    eventually(lambda: ask(server.port, CONTEXT).json()["problem"] == "another r1mac holds 30 GiB (stop that one)")
    assert ask(server.port, CONTEXT).json()["context_tokens"] == CONTEXT_TOKENS
    assert ask(server.port, CHAT, _question("Hi")).status == 200


def test_it_is_guarded_like_all_other_routes():
    """By the key, the Host and the Origin; and only JSON is read, which no foreign page may send unasked."""
    body = {"context_tokens": 4096}
    with served(Reciter(_said), api_key=KEY) as server:
        assert ask(server.port, CONTEXT).status == ask(server.port, CONTEXT, body).status == 401
        foreign = ({"Host": "evil.example"}, {"Origin": "https://evil.example"})
        assert [ask(server.port, CONTEXT, body, headers={**AUTHORISED, **head}).status for head in foreign] == [
            403,
            403,
        ]
        plain = {**AUTHORISED, "Content-Type": "text/plain"}
        assert ask(server.port, CONTEXT, body, headers=plain).status == 415
        assert server.worker.contexts(None).chosen is False
        assert ask(server.port, CONTEXT, body, headers=AUTHORISED).status == 202
        assert ask(server.port, CONTEXT, headers=AUTHORISED).json()["chosen"] is True
