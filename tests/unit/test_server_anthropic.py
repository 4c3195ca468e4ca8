"""Anthropic's Messages: what a request asks, and what a reply is on the wire, by the types of its own client."""

import json
from typing import Any

import pytest
from anthropic import types
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from r1mac.engine.events import (
    Event,
    Finished,
    FinishReason,
    Notice,
    PrefillProgress,
    TextDelta,
    ToolCalled,
)
from r1mac.engine.request import AnswerFormat, Message, ToolCall
from r1mac.errors import DoesNotFit
from r1mac.server.anthropic import Writer, error_body, parse
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.wire_errors import Problem
from tests import replies

HI = {"role": "user", "content": "Hi"}
TOOL = {"name": "weather", "description": "Tells it.", "input_schema": {"type": "object", "properties": {"place": {"type": "string"}}}}  # fmt: skip
EVENTS = TypeAdapter(types.RawMessageStreamEvent)
SHOWN = Asked(thought="all")


def asked(**fields: Any) -> Asked:
    return parse({"model": "r1", "max_tokens": 100, "messages": [HI], **fields})


COUNTS: dict[str, Any] = {
    "prompt_tokens": 12,
    "cached_tokens": 8,
    "generated_tokens": 5,
    "think_tokens": 2,
    "prefill_seconds": 0.1,
    "decode_seconds": 0.2,
}


def finished(reason: FinishReason = "stop", stop: str | None = None) -> Finished:
    return replies.finished(reason, stop=stop, **COUNTS)


PREFILL = PrefillProgress(done_tokens=12, total_tokens=12, cached_tokens=8)
THOUGHT = [TextDelta(channel="think", text="Hm"), TextDelta(channel="think", text="m.")]
ANSWER = [TextDelta(channel="answer", text="Fo"), TextDelta(channel="answer", text="ur.")]
CALLED = ToolCalled(ToolCall(id="call_12ab", name="weather", arguments='{"place": "Oslo"}'))


def streamed(events: list[Event], of: Asked = SHOWN) -> list[dict[str, Any]]:
    """Return the chunks of a stream, each checked against the client's type and its event's name."""
    writer = Writer("msg_1", of, model="r1", created_at_s=0)
    chunks = [*writer.begin(), *(chunk for event in events for chunk in writer.event(event))]
    for chunk in chunks:
        assert isinstance(chunk.data, dict)
        assert chunk.event == chunk.data["type"]
        if chunk.event != "ping":
            EVENTS.validate_python(chunk.data, strict=True)
    return [chunk.data for chunk in chunks if chunk.event != "ping"]  # type: ignore[misc]


def whole(events: list[Event], of: Asked = SHOWN) -> dict[str, Any]:
    body = Writer("msg_1", of, model="r1", created_at_s=0).whole(events)
    types.Message.model_validate(body, strict=True)
    return body


def test_a_conversation() -> None:
    """System text as a string or blocks, turns as strings or blocks, turns of one side in a row as one."""
    plain = asked(
        system="Be brief.", messages=[HI, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "2+2?"}]
    )
    blocks = asked(
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}]},
            {"role": "user", "content": [{"type": "text", "text": "2+2?"}]},
        ],
    )  # fmt: skip

    assert plain.messages == blocks.messages
    assert plain.messages == (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "2+2?"))  # fmt: skip
    assert asked(messages=[HI, HI]).messages == (Message("user", "Hi\n\nHi"),)


def test_calls_results_and_thoughts_of_the_past() -> None:
    """Calls and results become the engine's; thoughts that come back are left out; a failed call says so."""
    turn = [
        {"type": "thinking", "thinking": "secret", "signature": "r1mac"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"place": "Ålesund"}},
        {"type": "tool_use", "id": "toolu_2", "name": "weather", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "3"}]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no place", "is_error": True},
        {"type": "text", "text": "Well?"},
    ]

    messages = asked(
        tools=[TOOL], messages=[HI, {"role": "assistant", "content": turn}, {"role": "user", "content": results}]
    ).messages

    calls = (
        ToolCall(id="toolu_1", name="weather", arguments='{"place": "Ålesund"}'),
        ToolCall(id="toolu_2", name="weather", arguments="{}"),
    )
    assert messages[1:] == (
        Message("assistant", "Let me see.", calls),
        Message("tool", "3", tool_call_id="toolu_1"),
        Message("tool", "error: no place", tool_call_id="toolu_2"),
        Message("user", "Well?"),
    )


def test_what_follows_calls_does_not_swallow_them() -> None:
    """Two turns of the model's in a row are one only where the first called nothing."""
    called = {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}]}

    messages = asked(messages=[HI, called, {"role": "assistant", "content": "Hm."}, HI]).messages

    assert [len(message.tool_calls) for message in messages] == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("fields", "think", "think_tokens", "thought"),
    [
        ({}, None, None, "none"),
        ({"thinking": {"type": "disabled"}}, False, None, "none"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, True, 2000, "all"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000, "display": "omitted"}}, True, 2000, "sign"),
        ({"thinking": {"type": "adaptive"}}, True, None, "all"),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}, True, 2048, "all"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}, "output_config": {"effort": "low"}}, True, 9, "all"),
        ({"output_config": {"effort": "max"}}, True, None, "none"),
    ],
)
def test_thinking(fields: dict[str, Any], think: bool | None, think_tokens: int | None, thought: str) -> None:
    """Whether the model thinks, how much, and what of it is sent."""
    got = asked(**fields)

    assert (got.think, got.think_tokens, got.thought) == (think, think_tokens, thought)


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        (None, ["weather", "time"], False),
        ({"type": "auto"}, ["weather", "time"], False),
        ({"type": "any"}, ["weather", "time"], True),
        ({"type": "tool", "name": "time"}, ["time"], "time"),
        ({"type": "none"}, [], False),
    ],
)
def test_tools(choice: dict[str, Any] | None, names: list[str], must_call: bool | str) -> None:
    """Functions are told in OpenAI's shape; the choice says which may be called and which must."""
    got = asked(tools=[TOOL, {"name": "time", "input_schema": {"type": "object"}}], tool_choice=choice)

    assert [tool["function"]["name"] for tool in got.tools] == names
    assert got.must_call == must_call
    if "weather" in names:
        assert got.tools[0]["function"]["parameters"] == TOOL["input_schema"]


def test_the_other_fields() -> None:
    """Limits, sampling, stops, streaming and a format arrive under their own meaning."""
    schema = {"type": "object", "properties": {"é": {"type": "integer"}}}
    got = asked(
        temperature=0.3,
        top_p=0.9,
        top_k=5,
        stop_sequences=["END", "\n\n"],
        stream=True,
        metadata={"user_id": "me"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )

    assert got.model == "r1"
    assert got.max_tokens == 100
    assert got.sampling == {"temperature": 0.3, "top_p": 0.9, "top_k": 5}
    assert got.stop == ("END", "\n\n")
    assert got.stream
    assert got.answer_format == AnswerFormat(kind="json_schema", text=json.dumps(schema, ensure_ascii=False))


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [HI, {"role": "assistant", "content": "The answer is ("}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, "thinking.budget_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "time"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"stop_sequences": [1]}, "stop_sequences[0]"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(fields: dict[str, Any], field: str) -> None:
    """An error says which field it is about, as the client wrote it."""
    with pytest.raises(BadRequest) as caught:
        asked(**fields)

    assert caught.value.field == field
    assert field in caught.value.problem


def test_a_stream_of_thought_answer_and_calls() -> None:
    """Blocks come one after the other, numbered, each with its beginning and end; the counts frame them."""
    chunks = streamed([PREFILL, *THOUGHT, *ANSWER, CALLED, CALLED, finished()])

    kinds = [(chunk["type"], chunk.get("index")) for chunk in chunks]
    assert kinds[0] == ("message_start", None)
    assert chunks[0]["message"]["usage"] == {
        "input_tokens": 4,
        "cache_read_input_tokens": 8,
        "cache_creation_input_tokens": 0,
        "output_tokens": 0,
    }
    starts = [
        (chunk["index"], chunk["content_block"]["type"]) for chunk in chunks if chunk["type"] == "content_block_start"
    ]
    assert starts == [(0, "thinking"), (1, "text"), (2, "tool_use"), (3, "tool_use")]
    for index, _ in starts:
        mine = [kind for kind, at in kinds if at == index]
        assert (mine[0], mine[-1], mine.count("content_block_stop")) == ("content_block_start", "content_block_stop", 1)
    assert [index for _, index in kinds if index is not None] == sorted(
        index for _, index in kinds if index is not None
    )
    deltas = [chunk["delta"] for chunk in chunks if chunk["type"] == "content_block_delta"]
    assert [delta.get("thinking") or delta.get("text") for delta in deltas[:2]] == ["Hm", "m."]
    assert deltas[2]["type"] == "signature_delta"
    assert "".join(delta.get("text", "") for delta in deltas) == "Four."
    assert json.loads(deltas[-1]["partial_json"]) == {"place": "Oslo"}
    assert kinds[-2:] == [("message_delta", None), ("message_stop", None)]
    assert chunks[-2]["delta"]["stop_reason"] == "tool_use"
    assert chunks[-2]["usage"]["output_tokens"] == 5
    assert chunks[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_a_whole_reply_has_the_same() -> None:
    """Not streamed, the blocks stand in a list; arguments are an object."""
    body = whole([PREFILL, *THOUGHT, *ANSWER, CALLED, finished()])

    thinking, text, called = body["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "Hmm.")
    assert (text["type"], text["text"]) == ("text", "Four.")
    assert (called["name"], called["input"]) == ("weather", {"place": "Oslo"})
    assert called["id"].startswith("toolu_")
    assert body["usage"]["input_tokens"] + body["usage"]["cache_read_input_tokens"] == 12


@pytest.mark.parametrize(("thought", "said"), [("all", "Hmm."), ("sign", ""), ("none", None)])
def test_what_is_sent_of_a_thought(thought: Any, said: str | None) -> None:
    """All of it, an empty block, or nothing; streamed or not."""
    events = [PREFILL, *THOUGHT, *ANSWER, finished()]
    blocks = [block for block in whole(events, Asked(thought=thought))["content"] if block["type"] == "thinking"]
    chunks = streamed(events, Asked(thought=thought))

    assert [block["thinking"] for block in blocks] == ([] if said is None else [said])
    assert "".join(
        chunk["delta"].get("thinking", "") for chunk in chunks if chunk["type"] == "content_block_delta"
    ) == (said or "")
    assert any(chunk.get("content_block", {}).get("type") == "thinking" for chunk in chunks) == (said is not None)


@pytest.mark.parametrize(
    ("end", "reason", "stop"),
    [
        (finished(), "end_turn", None),
        (finished("length"), "max_tokens", None),
        (finished("context"), "model_context_window_exceeded", None),
        (finished("stop", "END"), "stop_sequence", "END"),
        (finished("cancelled"), "end_turn", None),
        (finished("memory"), "max_tokens", None),
        (finished("loop"), "max_tokens", None),
    ],
)
def test_how_a_reply_ended(end: Finished, reason: str, stop: str | None) -> None:
    """Each end has the API's word; a stop text is told."""
    body = whole([*ANSWER, end])
    last = streamed([*ANSWER, end])[-2]["delta"]

    assert (
        (body["stop_reason"], body["stop_sequence"]) == (last["stop_reason"], last["stop_sequence"]) == (reason, stop)
    )


def test_notices_and_an_empty_answer_break_nothing() -> None:
    """A reply without a word has no blocks; what r1mac has to say beside it is no part of the API."""
    events = [Notice(kind="memory", text="less"), finished("cancelled")]

    assert whole(events)["content"] == []
    assert [chunk["type"] for chunk in streamed(events)] == ["message_start", "message_delta", "message_stop"]


def test_an_error_in_a_stream() -> None:
    """What fails under way ends the stream with the API's error."""
    (chunk,) = Writer("msg_1", SHOWN, model="r1", created_at_s=0).failed(
        DoesNotFit("41 are needed", hint="ask for less")
    )

    assert chunk.event == "error"
    assert chunk.data["error"] == {"type": "overloaded_error", "message": "41 are needed (ask for less)"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (415, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_errors_have_the_apis_types(status: int, kind: str) -> None:
    """Each status has its type."""
    body = error_body(Problem(status=status, message="a sentence", code="x"))

    assert body == {"type": "error", "error": {"type": kind, "message": "a sentence"}}


_WORDS = ["role", "user", "assistant", "content", "type", "text", "tool_use", "tool_result", "tool_use_id", "id", "name", "input", "thinking", "enabled", "budget_tokens", "source", "schema", "format", "any"]  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = ["messages", "system", "thinking", "output_config", "tools", "tool_choice", "max_tokens", "stop_sequences", "temperature", "stream"]  # fmt: skip


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON))
def test_any_body_is_understood_or_refused(fields: dict[str, Any]) -> None:
    """Whatever JSON comes, it is a request or a BadRequest, and nothing else."""
    try:
        got = asked(**fields)
    except BadRequest:
        return
    assert got.messages[-1].role in {"user", "tool"}
