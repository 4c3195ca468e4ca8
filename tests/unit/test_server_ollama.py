"""Ollama's API: what a request asks, and what a reply is on the wire, by the types of its own client."""

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ollama import ChatResponse, GenerateResponse

from r1mac.engine.events import (
    ChosenToken,
    Event,
    Finished,
    FinishReason,
    Notice,
    PrefillProgress,
    TextDelta,
    TokenLogprob,
    ToolCalled,
)
from r1mac.engine.request import AnswerFormat, Message, ToolCall
from r1mac.errors import DoesNotFit
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.ollama import Kind, Writer, error_body, loaded, parse_chat, parse_generate, unheard
from r1mac.server.wire_errors import Problem
from tests import replies

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object", "properties": {}}}}  # fmt: skip


def chat(**fields: Any) -> Asked:
    return parse_chat({"model": "r1", "messages": [HI], **fields})


def generate(**fields: Any) -> Asked:
    return parse_generate({"model": "r1", "prompt": "Hi", **fields})


COUNTS: dict[str, Any] = {
    "prompt_tokens": 12,
    "cached_tokens": 8,
    "generated_tokens": 5,
    "think_tokens": 2,
    "prefill_seconds": 0.25,
    "decode_seconds": 0.5,
}


def finished(reason: FinishReason = "stop") -> Finished:
    return replies.finished(reason, **COUNTS)


PREFILL = PrefillProgress(done_tokens=12, total_tokens=12, cached_tokens=8)
THOUGHT = [TextDelta(channel="think", text="Hm"), TextDelta(channel="think", text="m.")]
ANSWER = [TextDelta(channel="answer", text="Fo"), TextDelta(channel="answer", text="ur.")]
CALLED = ToolCalled(ToolCall(id="call_1", name="weather", arguments='{"place": "Oslo"}'))


def writer(kind: Kind = "chat", asked: Asked | None = None, **options: Any) -> Writer:
    return Writer(
        "x", asked or Asked(), model="r1", created_at_s=0, kind=kind, begun_at_s=time.perf_counter(), **options
    )


def streamed(
    events: list[Event], kind: Kind = "chat", asked: Asked | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Return the lines of a stream, each checked against the client's type."""
    says = writer(kind, asked, **options)
    chunks = [*says.begin(), *(chunk for event in events for chunk in says.event(event))]
    for chunk in chunks:
        (ChatResponse if kind == "chat" else GenerateResponse).model_validate(chunk.data)
    return [chunk.data for chunk in chunks]  # type: ignore[misc]


def test_a_conversation() -> None:
    """Turns of all roles, with the calls that a model made; a thought that comes back is left out."""
    got = chat(
        messages=[
            {"role": "system", "content": "Be brief."},
            HI,
            {"role": "assistant", "content": "", "thinking": "secret", "tool_calls": [{"function": {"name": "weather", "arguments": {"place": "Ålesund"}}}]},
            {"role": "tool", "content": "3", "tool_name": "weather"},
        ],
        tools=[TOOL],
    )  # fmt: skip

    assert got.messages == (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "", (ToolCall(id="call_2_0", name="weather", arguments='{"place": "Ålesund"}'),)),
        Message("tool", "3"),
    )
    assert got.tools == (TOOL,)


def test_a_prompt() -> None:
    """A prompt is asked by the model's template, with a system text or without; a raw one is continued as it stands."""
    assert generate().messages == (Message("user", "Hi"),)
    assert generate(system="Be brief.").messages == (Message("system", "Be brief."), Message("user", "Hi"))
    raw = generate(raw=True, system="Be brief.")
    assert (raw.messages, raw.raw_prompt) == ((), "Hi")


def test_without_a_question_there_is_nothing_to_write() -> None:
    """No messages, and no prompt, mean that the model is only to be loaded."""
    assert chat(messages=[]).messages == generate(prompt="").messages == ()
    assert chat(messages=None).raw_prompt is generate(prompt=None, raw=True).raw_prompt is None


def test_a_stream_is_what_comes_without_asking() -> None:
    """Ollama streams unless it is told not to."""
    assert (chat().stream, chat(stream=True).stream, generate(stream=False).stream) == (True, True, False)


@pytest.mark.parametrize(
    ("said", "think", "think_tokens"),
    [(None, None, None), (True, True, None), (False, False, None), ("low", True, 2048), ("medium", True, 8192), ("high", True, None)],
)  # fmt: skip
def test_think(said: bool | str | None, think: bool | None, think_tokens: int | None) -> None:
    """True, false or a level."""
    got = chat(think=said)

    assert (got.think, got.think_tokens) == (think, think_tokens)


def test_options_arrive_under_their_own_meaning() -> None:
    """Ollama's names of what is known by another name here, and its words for «no limit» and «any»."""
    got = chat(
        options={
            "num_predict": 7,
            "temperature": 0.2,
            "top_k": 40,
            "top_p": 0.8,
            "min_p": 0.1,
            "seed": 3,
            "stop": ["END"],
            "repeat_penalty": 1.2,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "num_gpu": 99,
        },
        keep_alive="5m",
    )

    assert got.max_tokens == 7
    assert got.stop == ("END",)
    assert got.sampling == {
        "temperature": 0.2,
        "top_k": 40,
        "top_p": 0.8,
        "min_p": 0.1,
        "seed": 3,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
    }
    free = chat(options={"num_predict": -1, "top_k": -1, "seed": -1, "stop": "x"})
    assert (free.max_tokens, free.sampling, free.stop) == (None, {"top_k": 0}, ("x",))
    assert chat(options={"num_predict": -2}).max_tokens is None


@pytest.mark.parametrize(
    ("said", "schema"),
    [(None, None), ("", None), ("json", {"type": "object"}), ({"type": "array"}, {"type": "array"})],
)
def test_format(said: object, schema: dict[str, Any] | None) -> None:
    """Nothing, any object, or a schema."""
    got = generate(format=said).answer_format

    assert got == (None if schema is None else AnswerFormat(kind="json_schema", text=json.dumps(schema)))


@pytest.mark.parametrize(
    ("parse", "fields", "field"),
    [
        (chat, {"model": None}, "model"),
        (chat, {"messages": "Hi"}, "messages"),
        (chat, {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (chat, {"messages": [{"content": "x"}]}, "messages[0].role"),
        (chat, {"messages": [{**HI, "images": ["aGk="]}]}, "messages[0].images"),
        (chat, {"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function"),
        (chat, {"think": "sometimes"}, "think"),
        (chat, {"think": 1}, "think"),
        (chat, {"format": "xml"}, "format"),
        (chat, {"format": 3}, "format"),
        (chat, {"tools": [{"type": "function"}]}, "tools[0].function"),
        (chat, {"options": {"num_predict": 0}}, "options.num_predict"),
        (chat, {"options": {"top_p": 3}}, "options.top_p"),
        (chat, {"options": {"repeat_penalty": -1}}, "options.repeat_penalty"),
        (chat, {"options": {"temperature": "hot"}}, "options.temperature"),
        (chat, {"options": []}, "options"),
        (generate, {"prompt": 3}, "prompt"),
        (generate, {"images": ["aGk="]}, "images"),
        (generate, {"template": "{{ .Prompt }}"}, "template"),
        (generate, {"suffix": "}"}, "suffix"),
        (generate, {"context": [1, 2]}, "context"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_named(parse: Any, fields: dict[str, Any], field: str) -> None:
    """An error says which field it is about, as the client wrote it."""
    with pytest.raises(BadRequest) as caught:
        parse(**fields)

    assert caught.value.field == field
    assert field in caught.value.problem


def test_what_is_not_followed_is_told() -> None:
    """A context that memory is not planned for, and options without a like here; nothing where all is followed."""
    long, other = unheard({"options": {"num_ctx": 9000, "mirostat": 2}}, 4096, 8192)[::-1]

    assert long.startswith("num_ctx is 9,000, and memory is planned for 4,096 tokens; 8,192 would fit")
    assert "mirostat" in other
    assert unheard({"options": {"num_ctx": 4096, "mirostat": 0, "temperature": 1}}, 4096) == ()
    assert unheard({"options": {"num_ctx": 9000}}, None) == unheard({}, 4096) == unheard({"options": 3}, 4096) == ()


@pytest.mark.parametrize("kind", ["chat", "generate"])
def test_a_stream_and_a_whole_reply_say_the_same(kind: Kind) -> None:
    """Thought and answer are apart; the last line has the counts, and times in nanoseconds."""
    events = [PREFILL, *THOUGHT, Notice(kind="memory", text="less"), *ANSWER, finished()]
    lines = streamed(events, kind)
    whole = writer(kind).whole(events)

    answer, places = ("content", [line["message"] for line in lines]) if kind == "chat" else ("response", lines)
    last = whole["message"] if kind == "chat" else whole
    assert "".join(place[answer] for place in places) == last[answer] == "Four."
    assert "".join(place.get("thinking", "") for place in places) == last["thinking"] == "Hmm."
    assert [line["done"] for line in lines] == [False, False, False, False, True]
    for end in (lines[-1], whole):
        assert (end["done"], end["done_reason"], end["prompt_eval_count"], end["eval_count"]) == (True, "stop", 12, 5)
        assert (end["prompt_eval_duration"], end["eval_duration"]) == (250_000_000, 500_000_000)
        assert end["total_duration"] == end["load_duration"] + 750_000_000


def test_calls() -> None:
    """A call's arguments are an object, in a line of its own or in the whole message."""
    (line, _) = streamed([CALLED, finished()])
    whole = writer().whole([CALLED, finished()])

    for message in (line["message"], whole["message"]):
        (called,) = message["tool_calls"]
        assert called["function"] == {"name": "weather", "arguments": {"place": "Oslo"}}


@pytest.mark.parametrize(
    ("reason", "said"),
    [("stop", "stop"), ("length", "length"), ("context", "length"), ("cancelled", "stop"), ("memory", "length"), ("loop", "length")],
)  # fmt: skip
def test_how_a_reply_ended(reason: FinishReason, said: str) -> None:
    """Ollama knows two ends."""
    assert streamed([*ANSWER, finished(reason)])[-1]["done_reason"] == said


def test_logprobs_come_with_the_text_that_they_are_of() -> None:
    """Each token is told once, with its alternatives."""
    token = ChosenToken(channel="answer", chosen=TokenLogprob(1, "Fo", -0.5), likeliest=(TokenLogprob(2, "Fi", -1.0),))
    events = [token, ANSWER[0], ANSWER[1], finished()]

    lines = streamed(events, asked=Asked(logprobs=1))

    assert lines[0]["logprobs"][0]["token"] == "Fo"
    assert lines[0]["logprobs"][0]["top_logprobs"][0]["logprob"] == -1.0
    assert "logprobs" not in lines[1]
    assert writer(asked=Asked(logprobs=1)).whole(events)["logprobs"] == lines[0]["logprobs"]
    assert "logprobs" not in streamed([*ANSWER, finished()])[0]


def test_notices_are_in_the_last_line() -> None:
    """What is not followed stands beside Ollama's own fields."""
    line, last = streamed([ANSWER[0], finished()], notices=("num_ctx is too much",))

    assert last["r1mac"] == {"notices": ["num_ctx is too much"]}
    assert "r1mac" not in line


def test_errors_are_a_sentence() -> None:
    """Under way as before, an error is one field."""
    (chunk,) = writer().failed(DoesNotFit("41 are needed", hint="ask for less"))

    assert chunk.data == {"error": "41 are needed (ask for less)"}
    assert error_body(Problem(status=404, message="no such model", code="x")) == {"error": "no such model"}


def test_a_model_that_is_only_loaded() -> None:
    """The answer to no question is empty and done."""
    assert ChatResponse.model_validate(loaded("chat", "r1", stays=True)).done_reason == "load"
    assert GenerateResponse.model_validate(loaded("generate", "r1", stays=False)).done_reason == "unload"
    assert GenerateResponse.model_validate(loaded("generate", "r1", stays=True)).response == ""


@pytest.mark.parametrize(
    ("said", "seconds"),
    [(None, None), (0, 0), ("0m", 0), (-1, math.inf), ("-1s", math.inf), (90, 90), (1.5, 1.5), ("1h30m", 5400)],
)
def test_how_long_a_model_is_to_stay(said: object, seconds: float | None) -> None:
    """As Ollama has it: seconds or a duration; 0 not at all, below 0 for ever."""
    asked = parse_chat({"model": "r1", "messages": [HI], **({} if said is None else {"keep_alive": said})})

    assert asked.keep_loaded_seconds == seconds


@pytest.mark.parametrize("said", ["soon", True, "", [5], "--1"])
def test_a_stay_that_nobody_understands(said: object) -> None:
    with pytest.raises(BadRequest, match="keep_alive"):
        parse_chat({"model": "r1", "messages": [HI], "keep_alive": said})


_WORDS = ["role", "user", "assistant", "tool", "content", "function", "name", "arguments", "parameters", "tool_calls", "num_predict", "seed", "stop", "top_k", "json", "low", "images"]  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)
_FIELDS = ["messages", "prompt", "system", "options", "tools", "think", "format", "stream", "logprobs", "top_logprobs", "raw", "keep_alive"]  # fmt: skip


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(_FIELDS), _JSON))
def test_any_body_is_understood_or_refused(fields: dict[str, Any]) -> None:
    """Whatever JSON comes, it is a request or a BadRequest, and nothing else."""
    for parse in (chat, generate):
        try:
            got = parse(**fields)
        except BadRequest:
            continue
        assert got.model == "r1"
        unheard(fields, 4096)
