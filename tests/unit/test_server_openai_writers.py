"""Replies in OpenAI's shapes, checked by the types of the openai package, which its users' programs are written against."""

import json
import math
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from r1mac.engine.events import (
    ChosenToken,
    Finished,
    FinishReason,
    Notice,
    PrefillProgress,
    TextDelta,
    TokenLogprob,
    ToolCalled,
)
from r1mac.engine.request import ToolCall
from r1mac.errors import DoesNotFit
from r1mac.server import openai_chat, openai_completions, openai_responses
from r1mac.server.asked import Asked
from tests import replies

CALL = ToolCall(id="call_1", name="weather", arguments='{"city": "Bonn"}')
THOUGHT, ANSWER = TextDelta(channel="think", text="hm"), TextDelta(channel="answer", text="four")
READ = PrefillProgress(done_tokens=3, total_tokens=3, cached_tokens=1)


COUNTS: dict[str, Any] = {
    "prompt_tokens": 10,
    "cached_tokens": 4,
    "generated_tokens": 7,
    "think_tokens": 5,
    "prefill_seconds": 1.0,
    "decode_seconds": 2.0,
}


def _finished(reason: FinishReason = "stop") -> Finished:
    return replies.finished(reason, **COUNTS)


def _token(text: str, channel: str = "answer") -> ChosenToken:
    return ChosenToken(
        channel=channel,
        chosen=TokenLogprob(1, text, -0.1),
        likeliest=(TokenLogprob(1, text, -0.1), TokenLogprob(2, "\ufffd", -3.0)),
    )


def _writer(module, **asked):
    return module.Writer("x_1", Asked(**asked), model="r1", created_at_s=5)


def _streamed(module, events, **asked):
    """Return all chunks of a stream but the last word, and whether there was one."""
    writer = _writer(module, **asked)
    chunks = [*writer.begin(), *(chunk for event in events for chunk in writer.event(event))]
    done = chunks[-1] == openai_chat.DONE
    return [chunk.data for chunk in (chunks[:-1] if done else chunks)], done


def test_a_chat_is_what_the_package_reads():
    """Whole and in pieces, with a thought, a call and counts, a chat is what the openai package's types say."""
    events = [READ, THOUGHT, ANSWER, ToolCalled(CALL), _finished()]
    whole = ChatCompletion.model_validate(_writer(openai_chat).whole(events))
    pieces, done = _streamed(openai_chat, events, tell_usage=True)
    chunks = [ChatCompletionChunk.model_validate(piece) for piece in pieces]

    choice = whole.choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.reasoning) == ("tool_calls", "four", "hm")
    assert choice.message.tool_calls[0].function.arguments == CALL.arguments
    assert whole.usage == chunks[-1].usage
    assert (whole.usage.prompt_tokens_details.cached_tokens, whole.usage.total_tokens) == (4, 17)
    assert whole.usage.completion_tokens_details.reasoning_tokens == 5
    told = [chunk.choices[0].delta.tool_calls[0] for chunk in chunks[:-1] if chunk.choices[0].delta.tool_calls]
    assert [(call.index, call.id, call.function.name) for call in told] == [(0, "call_1", "weather")]
    assert done


@pytest.mark.parametrize(
    ("reason", "told"),
    [("stop", "stop"), ("cancelled", "stop"), ("length", "length"), ("context", "length"), ("memory", "length")],
)
def test_what_was_cut_off_is_length(reason, told):
    """A program must see that a reply is not whole, whatever cut it off."""
    pieces, _ = _streamed(openai_chat, [ANSWER, _finished(reason)])

    assert pieces[-1]["choices"][0]["finish_reason"] == told
    assert _writer(openai_chat).whole([ANSWER, _finished(reason)])["choices"][0]["finish_reason"] == told


def test_probabilities_come_with_their_text():
    """Each token is told once, with the text that it led to; a part of a character has no bytes."""
    events = [_token("h", "think"), THOUGHT, _token("fo"), _token("ur"), ANSWER, _token(""), _finished()]
    pieces, _ = _streamed(openai_chat, events, logprobs=2)
    whole = ChatCompletion.model_validate(_writer(openai_chat, logprobs=2).whole(events))

    chunks = [ChatCompletionChunk.model_validate(piece) for piece in pieces]
    told = [
        [token.token for token in chunk.choices[0].logprobs.content] for chunk in chunks if chunk.choices[0].logprobs
    ]
    assert told == [[], ["fo", "ur"], [""]]
    tokens = whole.choices[0].logprobs.content
    assert [token.token for token in tokens] == ["fo", "ur", ""]
    assert tokens[0].bytes == list(b"fo")
    assert tokens[0].top_logprobs[1].bytes is None
    assert [token["token"] for token in whole.choices[0].logprobs.model_dump()["reasoning_content"]] == ["h"]


@pytest.mark.parametrize("module", [openai_chat, openai_completions, openai_responses])
@pytest.mark.parametrize("logprob", [-math.inf, math.nan])
def test_a_token_that_was_ruled_out_is_still_json(module, logprob):
    """JSON has no infinity: such a token has OpenAI's -9999."""
    token = TokenLogprob(1, "a", logprob)
    events = [ChosenToken(channel="answer", chosen=token, likeliest=(token,)), ANSWER, _finished()]
    pieces, _ = _streamed(module, events, logprobs=1)

    text = json.dumps([pieces, _writer(module, logprobs=1).whole(events)], allow_nan=False)
    assert text.count("-9999.0") >= 4


def test_what_r1mac_did_is_told_where_it_is_asked_for():
    """Notices and the end's own reason are beside OpenAI's fields, and only for who wants them."""
    events = [Notice(kind="landing", text="closed"), ANSWER, _finished("memory")]
    wanted, _ = _streamed(openai_chat, events, tell_events=True)
    plain, _ = _streamed(openai_chat, events)

    assert [piece["r1mac"] for piece in wanted if "notice" in piece.get("r1mac", {})] == [
        {"notice": {"kind": "landing", "text": "closed"}}
    ]
    assert wanted[-1]["r1mac"]["finish"]["reason"] == "memory"
    assert not any("r1mac" in piece for piece in plain)


@pytest.mark.parametrize("module", [openai_chat, openai_completions, openai_responses])
def test_a_stream_that_fails_says_why(module):
    """The error is the last thing that comes, with its hint."""
    chunks = list(_writer(module).failed(DoesNotFit("41 GiB are needed", hint="ask for less")))

    assert "41 GiB are needed (ask for less)" in str([chunk.data for chunk in chunks])
    assert (chunks[-1].event or chunks[-1].data) in {"[DONE]", "response.failed"}


def test_a_completion_is_what_the_package_reads():
    """Whole and in pieces, with the four lists of its probabilities."""
    events = [_token("fo"), _token("ur"), ANSWER, _finished("length")]
    whole = Completion.model_validate(_writer(openai_completions, logprobs=2).whole(events))
    pieces, done = _streamed(openai_completions, events, logprobs=2)
    last = Completion.model_validate(pieces[-1])

    assert (whole.choices[0].text, whole.choices[0].finish_reason, done) == ("four", "length", True)
    # OpenAI's API sends null until the end, which the package's own type does not know.
    assert [piece["choices"][0]["finish_reason"] for piece in pieces] == [None, "length"]
    assert (last.choices[0].text, "".join(piece["choices"][0]["text"] for piece in pieces)) == ("", "four")
    assert whole.choices[0].logprobs.model_dump() == pieces[0]["choices"][0]["logprobs"]
    assert whole.choices[0].logprobs.text_offset == [0, 2]
    assert whole.choices[0].logprobs.top_logprobs[0] == {"fo": -0.1, "\ufffd": -3.0}


def test_a_response_is_what_the_package_reads():
    """Every event of a stream has its type's shape, and what was told piece by piece is the same as what is sent whole."""
    events = [READ, THOUGHT, _token("four"), ANSWER, ToolCalled(CALL), _finished()]
    reader = TypeAdapter(ResponseStreamEvent)
    pieces, _ = _streamed(openai_responses, events, logprobs=2)
    whole = _writer(openai_responses, logprobs=2).whole(events)

    kinds = [reader.validate_python(piece).type for piece in pieces]
    assert Response.model_validate(whole).output_text == "four"
    assert pieces[-1]["response"] == whole
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    assert {item["status"] for item in whole["output"]} == {"completed"}
    assert [kind for kind in kinds if kind.endswith("added")].count("response.output_item.added") == 3
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert pieces[0]["response"]["output"] == []
    texts = [piece["delta"] for piece in pieces if piece["type"] == "response.output_text.delta"]
    assert texts == ["four"]
    assert whole["output"][1]["content"][0]["logprobs"][0]["token"] == "four"


@pytest.mark.parametrize(
    ("reason", "status", "cause"),
    [("length", "incomplete", "max_output_tokens"), ("memory", "incomplete", None), ("stop", "completed", None)],
)
def test_a_response_says_whether_it_is_whole(reason, status, cause):
    """What was cut off is incomplete, down to the item that was being told."""
    whole = _writer(openai_responses).whole([ANSWER, _finished(reason)])

    assert (whole["status"], whole["output"][-1]["status"]) == (status, status)
    assert (whole["incomplete_details"] or {}).get("reason") == cause
