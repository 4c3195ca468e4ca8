"""The tour with the real ``ollama`` client: everything that programs do with it, against a model that recites."""

import json
from collections.abc import Iterator

import ollama
import pytest

from r1mac.server.limits import Limits
from tests.http_server import CONTEXT_TOKENS, MODEL, Reciter, Served, served
from tests.http_talk import ask, eventually
from tests.touring import ANSWER, ASKS_WEATHER, PLACE, QUESTION, THOUGHT, Place, said, url_of


def weather(place: str) -> str:
    """Tell the weather of a place.

    Args:
        place: where.

    """
    return {"Oslo": "3", "Rome": "22"}[place]


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    with served(Reciter(said), limits=Limits(keep_alive_seconds=0.05)) as server:
        yield server


@pytest.fixture(name="llama", scope="module")
def _llama(server: Served) -> Iterator[ollama.Client]:
    client = ollama.Client(host=url_of(server))
    yield client
    client.close()


def test_chat(llama):
    """Answer and thought, the counts, and times that add up."""
    reply = llama.chat(MODEL, QUESTION)

    assert (reply.message.content, reply.message.thinking) == (ANSWER, THOUGHT)
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert reply.total_duration >= reply.prompt_eval_duration + reply.eval_duration
    assert reply.eval_count > 0


def test_chat_streamed(llama):
    """The same, line by line."""
    lines = list(llama.chat(MODEL, QUESTION, stream=True))

    assert "".join(line.message.content for line in lines) == ANSWER
    assert "".join(line.message.thinking or "" for line in lines) == THOUGHT
    assert [line.done for line in lines].index(True) == len(lines) - 1


def test_without_a_thought(llama, server):
    """think=False asks the model to answer at once; options arrive."""
    reply = llama.chat(MODEL, QUESTION, think=False, options={"temperature": 0, "num_predict": 50, "seed": 7})

    assert (reply.message.content, reply.message.thinking) == (ANSWER, None)
    sent = server.reciter.requests[-1]
    assert (sent.think, sent.max_tokens, sent.sampling.temperature, sent.sampling.seed) == (False, 50, 0, 7)


def test_a_context_within_the_one_that_there_is(llama):
    """Most clients send one with every request: nothing is to be said of it."""
    for wanted in (2048, CONTEXT_TOKENS):
        reply = llama.chat(MODEL, QUESTION, options={"num_ctx": wanted})
        assert reply.message.content == ANSWER
        assert not hasattr(reply, "r1mac")
    assert llama.ps().models[0].context_length == CONTEXT_TOKENS


def test_a_longer_context_is_had_as_far_as_it_fits_and_stays(llama):
    """As with Ollama, but never back: clients that alternate have it changed once."""
    with served(Reciter(said)) as server:
        server.room.context_tokens = 1000
        client = ollama.Client(host=url_of(server))
        long = [{"role": "user", "content": f"{'North ' * 2000} What is 2+2?"}]
        with pytest.raises(ollama.ResponseError, match="planned for 1000"):
            client.chat(MODEL, long)
        for wanted in (6000, 2048, 8000):
            reply = client.chat(MODEL, long, options={"num_ctx": wanted})
            assert not hasattr(reply, "r1mac")
        assert client.ps().models[0].context_length == 8192
        assert server.room.opened == [MODEL, f"{MODEL}:8192"]
        # A request without a question may ask for it, too.
        assert client.generate(MODEL, options={"num_ctx": 30_000}).done_reason == "load"
        assert client.ps().models[0].context_length == 32_768
        with pytest.raises(ollama.ResponseError, match="num_ctx must be a whole number"):
            client.chat(MODEL, QUESTION, options={"num_ctx": 4096.5})
        client.close()


def test_a_context_that_there_is_no_memory_for(llama, server):
    """What cannot be followed is told beside the answer, where the client does not stumble over it."""
    options = {"num_ctx": 1_000_000}

    reply = llama.chat(MODEL, QUESTION, options=options)
    # As curl sends it: without a content type of JSON.
    body = json.dumps({"model": MODEL, "messages": QUESTION, "options": options, "stream": False}).encode()
    told = ask(server.port, "/api/chat", body, headers={"Content-Type": "application/x-www-form-urlencoded"}).json()

    assert reply.message.content == told["message"]["content"] == ANSWER
    assert "num_ctx is 1,000,000" in told["r1mac"]["notices"][0]


@pytest.mark.parametrize("stream", [False, True])
def test_tools(llama, stream):
    """A Python function is offered, called twice, and its results answered."""
    messages = list(ASKS_WEATHER)
    reply = llama.chat(MODEL, messages, tools=[weather], stream=stream)
    calls = [call for line in (reply if stream else [reply]) for call in line.message.tool_calls or ()]
    assert [call.function.arguments for call in calls] == [{"place": "Oslo"}, {"place": "Rome"}]

    messages.append({"role": "assistant", "tool_calls": calls})
    messages += [
        {"role": "tool", "tool_name": call.function.name, "content": weather(**call.function.arguments)}
        for call in calls
    ]

    assert llama.chat(MODEL, messages, tools=[weather]).message.content == "Oslo 3, Rome 22."


def test_structured_output(llama):
    """A schema, and «json»."""
    for wanted in (Place.model_json_schema(), "json"):
        reply = llama.chat(MODEL, QUESTION, format=wanted)
        assert Place.model_validate_json(reply.message.content) == PLACE


def test_generate(llama, server):
    """A prompt with a system text, streamed, and a raw one."""
    whole = llama.generate(MODEL, "What is 2+2?", system="Be brief.")
    lines = list(llama.generate(MODEL, "What is 2+2?", stream=True))
    raw = llama.generate(MODEL, "2+2 is", raw=True)

    assert (whole.response, whole.thinking) == (ANSWER, THOUGHT)
    assert "".join(line.response for line in lines) == ANSWER
    assert raw.response == ANSWER
    assert server.reciter.requests[-1].raw_prompt == "2+2 is"


def test_loading(llama, server):
    """A request without a question loads the model."""
    assert llama.chat(MODEL).done_reason == "load"
    assert llama.generate(MODEL).done_reason == "load"
    assert server.worker.state().model == MODEL


def test_how_long_a_model_stays(llama, server):
    """A client that says so has the model unloaded behind its request, or keeps it; the next request loads it again."""
    kept = llama.chat(MODEL, QUESTION, keep_alive=-1)
    assert server.worker.state().model == MODEL

    last = llama.chat(MODEL, QUESTION, keep_alive=0)
    eventually(lambda: server.worker.state().model is None)
    assert kept.message.content == last.message.content == ANSWER

    assert llama.generate(MODEL, keep_alive=0).done_reason == "unload"
    assert server.worker.state().model is None
    assert llama.generate(MODEL).done_reason == "load"
    assert llama.generate(MODEL, keep_alive="0s").done_reason == "unload"
    eventually(lambda: server.worker.state().model is None)


def test_models(llama):
    """Models are listed, described, and shown to be loaded."""
    llama.generate(MODEL)

    (listed,) = llama.list().models
    (running,) = llama.ps().models
    shown = llama.show(MODEL)
    assert (listed.model, running.model) == (MODEL, MODEL)
    assert running.context_length == CONTEXT_TOKENS
    assert shown.modelinfo["r1mac.context_length"] == CONTEXT_TOKENS
    assert "tools" in shown.capabilities


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"model": "llama9"}, 404, "llama9"),
        ({"model": "llama9", "messages": []}, 404, "llama9"),
        ({"options": {"top_p": 7}}, 400, "options.top_p"),
        ({"messages": [{"role": "user", "content": "too long"}]}, 400, "4,096"),
        ({"messages": [{"role": "user", "content": "x", "images": [b"\x89PNG"]}]}, 400, "text only"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(llama, request_, status, words, stream):
    """What is wrong is an exception of the client's own, with our sentence in it."""
    with pytest.raises(ollama.ResponseError, match=words) as caught:
        list(llama.chat(**{"model": MODEL, "messages": QUESTION, "stream": stream, **request_}))

    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("call", "command"),
    [
        (lambda client: client.pull("x"), "r1mac pull"),
        (lambda client: client.delete("x"), "r1mac rm"),
        (lambda client: client.create("x", from_="y"), "r1mac convert"),
        (lambda client: client.embed("x", "y"), "no embeddings"),
    ],
)
def test_what_is_done_elsewhere(llama, call, command):
    """What these routes do not do names the command that does it."""
    with pytest.raises(ollama.ResponseError, match=command) as caught:
        call(llama)

    assert caught.value.status_code == 501
