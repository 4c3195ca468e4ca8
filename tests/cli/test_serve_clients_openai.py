"""The tour with the real ``openai`` client: everything that programs do with it, against a model that recites."""

import json
from collections.abc import Iterator

import openai
import pytest

from r1mac.server.limits import Limits
from tests.http_server import MODEL, Reciter, Served, served
from tests.touring import (
    ANSWER,
    ASKS_WEATHER,
    FUNCTION,
    KEY,
    OPENAI_TOOL,
    PLACE,
    QUESTION,
    SCHEMA,
    THOUGHT,
    Place,
    said,
    url_of,
)


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    with served(Reciter(said), limits=Limits(keep_alive_seconds=0.05)) as server:
        yield server


@pytest.fixture(name="locked", scope="module")
def _locked() -> Iterator[Served]:
    with served(Reciter(said), api_key=KEY) as server:
        yield server


@pytest.fixture(name="gpt", scope="module")
def _gpt(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url_of(server)}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat(gpt):
    """The answer, the thought beside it, why it ended and the counts."""
    reply = gpt.chat.completions.create(model=MODEL, messages=QUESTION)

    message = reply.choices[0].message
    assert (message.content, message.reasoning_content) == (ANSWER, THOUGHT)
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0
    assert reply.usage.prompt_tokens_details.cached_tokens == 0


def test_chat_streamed(gpt):
    """The same, piece by piece, with the counts at the end."""
    chunks = list(
        gpt.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True})
    )

    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == THOUGHT
    assert chunks[-1].usage.total_tokens > 0


def test_effort(gpt, server):
    """reasoning_effort bounds the thought, or leaves it out."""
    message = gpt.chat.completions.create(model=MODEL, messages=QUESTION, reasoning_effort="none").choices[0].message
    assert message.content == ANSWER
    assert not server.reciter.requests[-1].think

    gpt.chat.completions.create(model=MODEL, messages=QUESTION, reasoning_effort="low")
    assert server.reciter.requests[-1].think_tokens == 2048


def test_tools(gpt, server):
    """Two calls at once, their results sent back, and the answer that follows from them."""
    first = gpt.chat.completions.create(model=MODEL, messages=ASKS_WEATHER, tools=[OPENAI_TOOL])
    message = first.choices[0].message
    assert (message.content, first.choices[0].finish_reason) == ("Let me look.", "tool_calls")
    places = [json.loads(call.function.arguments)["place"] for call in message.tool_calls]
    assert places == ["Oslo", "Rome"]

    results = [
        {"role": "tool", "tool_call_id": call.id, "content": warm}
        for call, warm in zip(message.tool_calls, ("3", "22"), strict=True)
    ]
    conversation = [*ASKS_WEATHER, message.model_dump(exclude_none=True), *results]
    last = gpt.chat.completions.create(model=MODEL, messages=conversation, tools=[OPENAI_TOOL])

    assert last.choices[0].message.content == "Oslo 3, Rome 22."
    sent = server.reciter.requests[-1]
    assert [message.role for message in sent.messages] == ["user", "assistant", "tool", "tool"]
    assert [call.id for call in sent.messages[1].tool_calls] == [call.id for call in message.tool_calls]
    assert json.loads(sent.tools[0])["function"]["parameters"] == SCHEMA


def test_tools_streamed(gpt):
    """The client's own gathering of a stream finds the same calls."""
    with gpt.chat.completions.stream(model=MODEL, messages=ASKS_WEATHER, tools=[OPENAI_TOOL]) as stream:
        message = stream.get_final_completion().choices[0].message

    assert [call.function.name for call in message.tool_calls] == ["weather", "weather"]
    assert json.loads(message.tool_calls[1].function.arguments) == {"place": "Rome"}


def test_one_call_at_a_time(gpt):
    """A program that takes one call at a time gets one."""
    reply = gpt.chat.completions.create(
        model=MODEL, messages=ASKS_WEATHER, tools=[OPENAI_TOOL], parallel_tool_calls=False
    )

    (called,) = reply.choices[0].message.tool_calls
    assert json.loads(called.function.arguments) == {"place": "Oslo"}


def test_structured_output(gpt, server):
    """A class of the program's comes back as an object of it, and the engine was held to its schema."""
    reply = gpt.chat.completions.parse(model=MODEL, messages=QUESTION, response_format=Place)

    assert reply.choices[0].message.parsed == PLACE
    assert json.loads(server.reciter.requests[-1].answer_format.text)["properties"].keys() == {"place", "degrees"}


def test_several_replies(gpt):
    """n replies, each with its index."""
    reply = gpt.chat.completions.create(model=MODEL, messages=QUESTION, n=3)

    assert [(choice.index, choice.message.content) for choice in reply.choices] == [(i, ANSWER) for i in range(3)]


def test_completions(gpt):
    """A text is continued as it stands, whole and streamed."""
    whole = gpt.completions.create(model=MODEL, prompt="2+2 is")
    pieces = gpt.completions.create(model=MODEL, prompt="2+2 is", stream=True)

    assert whole.choices[0].text == ANSWER
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == ANSWER


def test_responses(gpt):
    """The newer API: text, reasoning item and calls."""
    reply = gpt.responses.create(model=MODEL, input="What is 2+2?")
    called = gpt.responses.create(
        model=MODEL, input="How warm is it in Oslo and in Rome?", tools=[{"type": "function", **FUNCTION}]
    )

    assert reply.output_text == ANSWER
    assert reply.status == "completed"
    assert [item.name for item in called.output if item.type == "function_call"] == ["weather", "weather"]


def test_responses_streamed(gpt):
    """The client's own gathering of a stream ends with the whole response."""
    with gpt.responses.stream(model=MODEL, input="What is 2+2?") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == ANSWER


def test_models(gpt):
    """Models are listed, and found by name."""
    assert [model.id for model in gpt.models.list()] == [MODEL]
    assert gpt.models.retrieve(MODEL).id == MODEL


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "gpt-9"),
        ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ({"messages": [{"role": "user", "content": "too long"}]}, openai.BadRequestError, "4,096"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(gpt, request_, error, words, stream):
    """What is wrong is an exception of the client's own, with our sentence in it."""
    with pytest.raises(error, match=words):
        gpt.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "stream": stream, **request_})


def test_a_wrong_key(locked):
    """Without the key nobody is let in."""
    with openai.OpenAI(base_url=f"{url_of(locked)}/v1", api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == MODEL
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
