"""The tour with the real ``anthropic`` client: everything that programs do with it, against a model that recites."""

from collections.abc import Iterator

import anthropic
import pytest

from r1mac.server.limits import Limits
from tests.http_server import MODEL, Reciter, Served, served
from tests.touring import ANSWER, ANTHROPIC_TOOL, ASKS_WEATHER, KEY, PLACE, QUESTION, THOUGHT, Place, said, url_of

ASK = {"model": MODEL, "max_tokens": 1000, "messages": QUESTION}
THINK = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    with served(Reciter(said), limits=Limits(keep_alive_seconds=0.05)) as server:
        yield server


@pytest.fixture(name="locked", scope="module")
def _locked() -> Iterator[Served]:
    with served(Reciter(said), api_key=KEY) as server:
        yield server


@pytest.fixture(name="claude", scope="module")
def _claude(server: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=url_of(server), api_key="none", max_retries=0) as client:
        yield client


ASK = {"model": MODEL, "max_tokens": 1000, "messages": QUESTION}
THINK = {"type": "enabled", "budget_tokens": 1024}


def test_message(claude):
    """The answer alone, where nobody asked for a thought."""
    reply = claude.messages.create(**ASK)

    assert [(block.type, block.text) for block in reply.content] == [("text", ANSWER)]
    assert reply.stop_reason == "end_turn"
    assert reply.usage.input_tokens > 0
    assert reply.usage.output_tokens_details.thinking_tokens > 0


def test_message_with_its_thought(claude, server):
    """A thinking block before the text, as much as was allowed."""
    reply = claude.messages.create(**ASK, thinking=THINK, system="Be brief.")

    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert reply.content[0].thinking == THOUGHT
    assert server.reciter.requests[-1].think_tokens == 1024
    assert server.reciter.requests[-1].messages[0].text == "Be brief."


def test_message_streamed(claude):
    """The client's own gathering of a stream has the same blocks and counts."""
    with claude.messages.stream(**ASK, thinking=THINK) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()

    assert text == ANSWER
    assert [getattr(block, "thinking", None) or block.text for block in message.content] == [THOUGHT, ANSWER]
    assert (message.stop_reason, message.usage.output_tokens > 0) == ("end_turn", True)


@pytest.mark.parametrize("stream", [False, True])
def test_tools(claude, server, stream):
    """Calls, their results sent back with the thought, and the answer that follows from them."""
    ask = {**ASK, "messages": ASKS_WEATHER, "tools": [ANTHROPIC_TOOL], "thinking": THINK}
    if stream:
        with claude.messages.stream(**ask) as talk:
            reply = talk.get_final_message()
    else:
        reply = claude.messages.create(**ask)
    assert reply.stop_reason == "tool_use"
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
    calls = [block for block in reply.content if block.type == "tool_use"]
    assert [call.input for call in calls] == [{"place": "Oslo"}, {"place": "Rome"}]

    results = [
        {"type": "tool_result", "tool_use_id": call.id, "content": warm}
        for call, warm in zip(calls, ("3", "22"), strict=True)
    ]
    ask["messages"] = [*ASKS_WEATHER, reply.to_param(), {"role": "user", "content": results}]
    last = claude.messages.create(**ask)

    assert last.content[-1].text == "Oslo 3, Rome 22."
    sent = server.reciter.requests[-1].messages
    assert [message.role for message in sent] == ["user", "assistant", "tool", "tool"]
    assert "I have to look" not in sent[1].text


def test_the_choice_among_tools(claude, server):
    """One call at a time, a certain function, or none at all."""
    ask = {**ASK, "messages": ASKS_WEATHER, "tools": [ANTHROPIC_TOOL]}

    one = claude.messages.create(**ask, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.input["place"] for block in one.content if block.type == "tool_use"] == ["Oslo"]

    claude.messages.create(**ask, tool_choice={"type": "tool", "name": "weather"})
    assert server.reciter.requests[-1].must_call == "weather"

    none = claude.messages.create(**ask, tool_choice={"type": "none"})
    assert none.stop_reason == "end_turn"
    assert server.reciter.requests[-1].tools == ()


def test_structured_output(claude):
    """A class of the program's comes back as an object of it."""
    reply = claude.messages.parse(**ASK, output_format=Place)

    assert reply.parsed_output == PLACE


def test_count_tokens(claude):
    """How long a prompt is, before it is sent."""
    counted = claude.messages.count_tokens(model=MODEL, messages=QUESTION, system="Be brief.")

    assert counted.input_tokens == 5


def test_models(claude):
    """The same list serves this client."""
    (model,) = claude.models.list()

    assert (model.id, model.display_name) == (MODEL, MODEL)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"model": "claude-9"}, anthropic.NotFoundError, "claude-9"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://x"}}]}]}, anthropic.BadRequestError, "text only"),
        ({"messages": [{"role": "user", "content": "too long"}]}, anthropic.BadRequestError, "4,096"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_errors(claude, request_, error, words, stream):
    """What is wrong is an exception of the client's own, with our sentence in it."""
    with pytest.raises(error, match=words) as caught:
        claude.messages.create(**{**ASK, "stream": stream, **request_})

    assert caught.value.body["type"] == "error"


def test_a_wrong_key(locked):
    """The key is taken in the header that this client has for it."""
    with anthropic.Anthropic(base_url=url_of(locked), api_key=KEY, max_retries=0) as client:
        assert client.messages.create(**ASK).content[0].text == ANSWER
        with pytest.raises(anthropic.AuthenticationError):
            client.with_options(api_key="wrong").messages.create(**ASK)
