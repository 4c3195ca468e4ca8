"""The server over real HTTP, with a model that recites: replies, steering, refusals, what is measured."""

import threading
from collections.abc import Iterator

import pytest

from r1mac.engine.request import GenerateRequest
from r1mac.errors import PromptTooLong
from r1mac.server.limits import Limits
from tests.http_server import Reciter, Served, served
from tests.http_talk import ask, chunks, eventually, streamed

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "What is 2+2?"}]}
ANSWER = "Two and two.\n</think>\n\nIt is four."
# Longer than any test waits at the pace of a slow reciter.
LONG = "on and " * 20_000


def _said(request: GenerateRequest) -> str | Exception:
    """What the model says is what the last message asks for."""
    text = request.messages[-1].text if request.messages else request.raw_prompt or ""
    if text == "too much":
        return PromptTooLong("the conversation has 9 tokens and memory is planned for 8", hint="shorten the prompt")
    if text == "defect":
        return RuntimeError("secret detail")
    return f"{LONG}</think>\n\nfour" if text.startswith("long") else ANSWER


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    limits = Limits(keep_alive_seconds=0.05, whole_silence_seconds=0.1)
    with served(Reciter(_said, words_per_s=500), limits=limits) as server:
        yield server


def _asked(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 50_000, **more}


def test_a_whole_reply_has_the_answer_the_thought_and_the_counts(server):
    """The thought is under both names that clients read, and the reply's id is in the body and in a header."""
    answer = ask(server.port, CHAT, QUESTION)

    body = answer.json()
    message = body["choices"][0]["message"]
    assert message["content"] == "It is four."
    assert message["reasoning_content"] == message["reasoning"] == "Two and two.\n"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert answer.headers["x-r1mac-reply-id"] == body["id"]
    assert body["model"] == "reciter"


def test_a_stream_has_the_same_texts_piece_by_piece(server):
    """The first chunk says whose turn it is, the last one why it ended; the counts come only where they are asked for."""
    with streamed(server.port, CHAT, QUESTION) as answer:
        *pieces, done = chunks(answer)

    deltas = [piece["choices"][0]["delta"] for piece in pieces]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "It is four."
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Two and two.\n"
    assert [delta.get("reasoning") for delta in deltas] == [delta.get("reasoning_content") for delta in deltas]
    assert [piece["choices"][0]["finish_reason"] for piece in pieces if piece["choices"][0]["finish_reason"]] == [
        "stop"
    ]
    assert done == "[DONE]"
    assert all("usage" not in piece for piece in pieces)


def test_a_stream_tells_counts_and_notices_where_that_is_asked_for(server):
    """With include_usage the last chunk has the counts and no choice; with r1mac.events there is what r1mac did."""
    wanted = {"stream_options": {"include_usage": True}, "r1mac": {"events": True}}
    with streamed(server.port, CHAT, {**QUESTION, **wanted}) as answer:
        *pieces, last, done = chunks(answer)

    assert (last["choices"], done) == ([], "[DONE]")
    assert last["usage"]["prompt_tokens"] == 3
    assert all(piece["usage"] is None for piece in pieces)
    assert [piece["r1mac"]["prefill"]["total"] for piece in pieces if "prefill" in piece.get("r1mac", {})] == [3]
    assert pieces[-1]["r1mac"]["finish"]["reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_several_replies_come_with_their_index_and_a_seed_each(server, stream):
    """With n = 3 each choice is whole; a seed gives three different replies, the same ones every time."""
    asked = {**QUESTION, "n": 3, "seed": 7}
    if stream:
        texts = {0: "", 1: "", 2: ""}
        with streamed(server.port, CHAT, asked) as answer:
            for piece in chunks(answer):
                for choice in piece["choices"] if piece != "[DONE]" else ():
                    texts[choice["index"]] += choice["delta"].get("content", "")
    else:
        texts = {item["index"]: item["message"]["content"] for item in ask(server.port, CHAT, asked).json()["choices"]}

    assert texts == dict.fromkeys(range(3), "It is four.")
    assert sorted(request.sampling.seed for request in server.reciter.requests[-3:]) == [7, 8, 9]


def test_what_is_asked_reaches_the_model(server):
    """Sampling, budget, stops and a closed thought arrive as they were said."""
    asked = {
        "temperature": 0.3,
        "min_p": 0.1,
        "stop": "four",
        "max_tokens": 99,
        "reasoning_effort": "low",
        "model": "reciter",
    }
    ask(server.port, CHAT, {**QUESTION, **asked})
    low = server.reciter.requests[-1]
    ask(server.port, CHAT, {**QUESTION, "reasoning_effort": "none"})
    none = server.reciter.requests[-1]

    assert (low.sampling.temperature, low.sampling.min_p, low.stop, low.max_tokens) == (0.3, 0.1, ("four",), 99)
    assert (low.think, low.think_tokens) == (True, 2048)
    assert none.think is False


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "status", "param", "sentence"),
    [
        (_asked("x", temperature="hot"), 400, "temperature", "must be a number, and is a string"),
        (_asked("x", top_p=7), 400, "top_p", "from 0 to 1"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            400,
            "messages[0].content[0].type",
            "text",
        ),
        (_asked("x", logit_bias={"5000": 1}), 400, "logit_bias", "5000"),
        (_asked("x", model="gpt-4o"), 404, None, "gpt-4o"),
        (_asked("too much"), 400, None, "memory is planned for 8 (shorten the prompt)"),
        (_asked("defect"), 500, None, "something broke"),
    ],
)
def test_what_cannot_be_answered_has_a_status_and_a_sentence(server, stream, asked, status, param, sentence):
    """Streamed or not, an error at the beginning has its own status and OpenAI's body; a defect tells no detail."""
    answer = ask(server.port, CHAT, {**asked, "stream": stream})

    error = answer.json()["error"]
    assert (answer.status, error["param"]) == (status, param)
    assert sentence in error["message"]
    assert "secret" not in error["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"[" * 200_000, 400),
        (b'{"messages": NaN}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b"\xff\xfe\x00", 400),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(server, body, status):
    """Neither depth nor length nor half a character brings more than a clear no."""
    answer = ask(server.port, CHAT, body)

    assert answer.status == status
    assert answer.json()["error"]["message"]


def test_a_form_is_no_request(server):
    """What a page of another site can send without asking, a form, is not taken."""
    answer = ask(server.port, CHAT, b"{}", headers={"Content-Type": "text/plain"})

    assert answer.status == 415


def test_an_older_completion_goes_on_from_a_text(server):
    """The prompt reaches the model as it stands, and all that it writes is the text."""
    whole = ask(server.port, "/v1/completions", {"prompt": "Once upon"}).json()
    with streamed(server.port, "/v1/completions", {"prompt": "Once upon"}) as answer:
        *pieces, done = chunks(answer)

    assert server.reciter.requests[-1].raw_prompt == "Once upon"
    assert whole["choices"][0]["text"] == "".join(piece["choices"][0]["text"] for piece in pieces) == ANSWER
    assert done == "[DONE]"


def test_a_response_is_made_of_items(server):
    """The thought is an item before the message; the stream ends with the same response that is sent whole."""
    asked = {"input": "What is 2+2?", "instructions": "Be brief."}
    whole = ask(server.port, "/v1/responses", asked).json()
    with streamed(server.port, "/v1/responses", asked) as answer:
        events = list(chunks(answer))

    assert [(item["type"], item["content"][0]["text"]) for item in whole["output"]] == [
        ("reasoning", "Two and two.\n"),
        ("message", "It is four."),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["type"] == "response.completed"
    assert [item["content"] for item in events[-1]["response"]["output"]] == [
        item["content"] for item in whole["output"]
    ]
    assert [message.role for message in server.reciter.requests[-1].messages] == ["system", "user"]


def test_the_models_are_listed(server):
    """A model is found by its name; another name is none."""
    listed = ask(server.port, "/v1/models").json()
    one = ask(server.port, "/v1/models/reciter").json()

    assert listed["data"] == [one]
    assert (one["id"], one["object"], one["r1mac"]["loaded"]) == ("reciter", "model", True)
    assert ask(server.port, "/v1/models/other").status == 404


@pytest.mark.parametrize("pieces", [False, True])
def test_a_silent_reply_keeps_its_connection_alive(server, pieces, monkeypatch):
    """While nothing is said a stream has comments, and a reply that is sent whole has blanks before its JSON."""
    silence = threading.Event()
    monkeypatch.setattr(server.reciter, "answer", lambda request: silence.wait(30) and ANSWER)
    if pieces:
        with streamed(server.port, CHAT, QUESTION) as answer:
            seen = [answer.readline() for _ in range(5)]
            silence.set()
            texts = [piece["choices"][0]["delta"].get("content", "") for piece in chunks(answer) if piece != "[DONE]"]
        assert b": still at work\n" in seen
        assert "".join(texts) == "It is four."
    else:
        threading.Timer(0.4, silence.set).start()
        answer = ask(server.port, CHAT, QUESTION)
        assert answer.body.startswith(b" ")
        assert answer.json()["choices"][0]["message"]["content"] == "It is four."


def test_a_thought_is_steered_over_http(server):
    """While it thinks, a reply is listed, takes a hint, waits, goes on, and answers when it is told to."""
    with streamed(server.port, CHAT, _asked("long", r1mac={"events": True})) as answer:
        pieces = chunks(answer)
        reply = f"/r1mac/replies/{next(pieces)['id']}"
        eventually(lambda: ask(server.port, reply).json()["state"] == "thinking")
        assert [item["id"] for item in ask(server.port, "/r1mac/replies").json()["replies"]] == [
            reply.rpartition("/")[2]
        ]
        ask(server.port, f"{reply}/pause", b"")
        assert ask(server.port, reply).json()["state"] == "paused"
        ask(server.port, f"{reply}/hint", {"text": "mind the carry"})
        ask(server.port, f"{reply}/resume", b"")
        assert ask(server.port, f"{reply}/answer-now", b"").status == 202
        told = [piece for piece in pieces if piece != "[DONE]"]

    choices = [piece["choices"][0]["delta"] for piece in told if piece["choices"]]
    assert "mind the carry" in "".join(delta.get("reasoning", "") for delta in choices)
    assert "".join(delta.get("content", "") for delta in choices) == "four"
    notices = [piece["r1mac"]["notice"]["kind"] for piece in told if "notice" in piece.get("r1mac", {})]
    assert notices == ["pause", "pause", "steering", "steering"]
    assert ask(server.port, reply).status == 404


def test_a_reply_that_is_cancelled_ends_in_order(server):
    """Cancelled over HTTP, a stream says its end; so does one that waited for its turn."""
    with streamed(server.port, CHAT, _asked("long")) as first, streamed(server.port, CHAT, _asked("long")) as second:
        ids = [next(chunks(answer))["id"] for answer in (first, second)]
        for reply_id in reversed(ids):
            assert ask(server.port, f"/r1mac/replies/{reply_id}/cancel", b"").status == 202
        ends = [list(chunks(answer))[-2:] for answer in (first, second)]

    assert [(last["choices"][0]["finish_reason"], done) for last, done in ends] == [("stop", "[DONE]")] * 2
    eventually(lambda: server.worker.state().running == 0)


@pytest.mark.parametrize("body", [{}, {"text": 3}, {"text": "  "}])
def test_a_hint_must_say_something(server, body):
    """A hint without text is refused by its field, whether or not the reply is at work."""
    answer = ask(server.port, "/r1mac/replies/none/hint", body)

    assert (answer.status, answer.json()["error"]["param"]) == (400, "text")


def test_what_happened_is_measured(server):
    """Prometheus finds the counts of what was written, and programs the state with the length that is safe."""
    ask(server.port, CHAT, QUESTION)
    metrics = ask(server.port, "/metrics").body.decode()
    state = ask(server.port, "/r1mac/state").json()

    counts = dict(line.split(" ") for line in metrics.splitlines() if not line.startswith("#") and "{" not in line)
    assert float(counts["r1mac_written_tokens_total"]) == state["written_tokens"] > 0
    assert float(counts["r1mac_reply_seconds_count"]) > 0
    assert 'r1mac_replies_ended_total{reason="stop"}' in metrics
    assert (state["phase"], state["model"], state["safe_tokens"]) == ("ready", "reciter", 50_000)
    assert ask(server.port, "/health").json()["status"] == "idle"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", CHAT, 405), ("PUT", "/health", 405)]
)
def test_what_is_not_there_is_said_in_json(server, method, path, status):
    """A wrong path or method has OpenAI's body too."""
    answer = ask(server.port, path, method=method)

    assert answer.status == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
