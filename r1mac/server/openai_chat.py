"""OpenAI's Chat Completions: https://platform.openai.com/docs/api-reference/chat.

The thought is in ``reasoning_content``, as DeepSeek's API and most servers have it, and in ``reasoning``, as OpenRouter
and newer ones do: clients read the one or the other. What r1mac has to say beside OpenAI's fields is in ``r1mac``, and
only where the request says ``"r1mac": {"events": true}``.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from r1mac import __version__
from r1mac.engine.events import (
    ChosenToken,
    Event,
    Finished,
    GenerationStats,
    Notice,
    Pace,
    PrefillProgress,
    TextDelta,
    TokenLogprob,
    ToolCalled,
)
from r1mac.engine.request import ToolCall
from r1mac.errors import R1MacError
from r1mac.server import openai_asked
from r1mac.server.asked import Asked
from r1mac.server.fields import Fields
from r1mac.server.gathered import FINISH_REASONS, gather
from r1mac.server.sse import Chunk
from r1mac.server.wire_errors import openai_body, problem_of

DONE = Chunk("[DONE]")
_RULED_OUT = -9999.0
FINGERPRINT = f"r1mac-{__version__}"


def parse(body: Mapping[str, Any]) -> Asked:
    """Return what a request asks.

    Raises:
        BadRequest: a field has a wrong type or a value that cannot be meant.
    """
    fields = Fields(body)
    messages = tuple(openai_asked.message(item) for item in fields.objects("messages"))
    if not messages:
        raise fields.bad("messages", "must have at least one message")
    think, think_tokens = openai_asked.said_thought(fields)
    tools, must_call = openai_asked.tools(list(_functions(fields)), fields)
    options = fields.inner("stream_options")
    extras = fields.inner("r1mac")
    return Asked(
        model=fields.text("model") or None,
        messages=messages,
        max_tokens=openai_asked.max_tokens(fields, "max_completion_tokens", "max_tokens"),
        sampling=openai_asked.sampling(fields),
        think=think,
        think_tokens=think_tokens,
        stop=openai_asked.stop(fields),
        logprobs=_logprobs(fields),
        answer_format=openai_asked.answer_format(fields.inner("response_format"), holder="json_schema"),
        tools=tools,
        must_call=must_call,
        one_call=fields.boolean("parallel_tool_calls") is False,
        stream=fields.boolean("stream") or False,
        replies=openai_asked.replies(fields),
        tell_usage=bool(options and options.boolean("include_usage")),
        tell_events=bool(extras and extras.boolean("events")),
    )


def _functions(fields: Fields) -> Iterator[Fields]:
    for tool in fields.objects("tools"):
        tool.choice("type", ("function",))
        function = tool.inner("function")
        if function is None:
            raise tool.bad("function", "is missing")
        yield function


def _logprobs(fields: Fields) -> int | None:
    wanted = fields.boolean("logprobs")
    count = fields.integer("top_logprobs", least=0, most=openai_asked.MOST_LOGPROBS)
    if count is not None and not wanted:
        raise fields.bad("top_logprobs", "needs «logprobs»: true")
    return (count or 0) if wanted else None


class Writer:
    """Says one reply, or several to the same request."""

    def __init__(self, reply_id: str, asked: Asked, *, model: str, created_at_s: int) -> None:
        self._asked = asked
        self._head = {"id": reply_id, "created": created_at_s, "model": model, "system_fingerprint": FINGERPRINT}
        self._choices = [_Choice() for _ in range(asked.replies)]

    def begin(self) -> Iterator[Chunk]:
        """Yield whose turn it is."""
        for index in range(len(self._choices)):
            yield self._delta(index, {"role": "assistant", "content": ""})

    def event(self, event: Event, index: int = 0) -> Iterator[Chunk]:
        """Yield what an event of the reply *index* is in the stream."""
        choice = self._choices[index]
        match event:
            case TextDelta(channel="think", text=text):
                yield self._delta(index, {"reasoning_content": text, "reasoning": text}, logprobs=choice.take_tokens())
            case TextDelta(text=text):
                yield self._delta(index, {"content": text}, logprobs=choice.take_tokens())
            case ToolCalled(call=call):
                said = {"index": choice.calls, **tool_call(call)}
                choice.calls += 1
                yield self._delta(index, {"tool_calls": [said]}, logprobs=choice.take_tokens())
            case ChosenToken():
                choice.tokens.append(event)
            case Finished():
                yield from self._finished(event, index)
            case Notice() | Pace() | PrefillProgress() if self._asked.tell_events:
                yield self._chunk([], r1mac=extra(event, index))

    def failed(self, error: R1MacError) -> Iterator[Chunk]:
        """Yield the error in place of what would have come."""
        yield Chunk(openai_body(problem_of(error)))
        yield DONE

    def whole(self, *replies: Sequence[Event]) -> dict[str, Any]:
        """Return the reply, or all replies."""
        gathered = [gather(events) for events in replies]
        choices = []
        for index, one in enumerate(gathered):
            message: dict[str, Any] = {"role": "assistant", "content": one.answer, "refusal": None}
            if one.thought:
                message |= {"reasoning_content": one.thought, "reasoning": one.thought}
            if one.calls:
                message |= {"content": one.answer or None, "tool_calls": [tool_call(call) for call in one.calls]}
            reason = finish_reason(one.finished, calls=len(one.calls))
            choices.append(
                {"index": index, "message": message, "logprobs": self._logprobs(one.tokens), "finish_reason": reason}
            )
        body = {"object": "chat.completion", **self._head, "choices": choices}
        body["usage"] = usage([one.finished.stats for one in gathered])
        if self._asked.tell_events:
            body["r1mac"] = {"replies": [ending(one.finished, one.notices) for one in gathered]}
        return body

    def _finished(self, event: Finished, index: int) -> Iterator[Chunk]:
        choice = self._choices[index]
        choice.finished = event
        reason = finish_reason(event, calls=choice.calls)
        extras = {"r1mac": ending(event)} if self._asked.tell_events else {}
        yield self._delta(index, {}, logprobs=choice.take_tokens(), finish_reason=reason, **extras)
        ended = [choice.finished.stats for choice in self._choices if choice.finished]
        if len(ended) == len(self._choices):
            if self._asked.tell_usage:
                yield self._chunk([], usage=usage(ended))
            yield DONE

    def _delta(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Sequence[ChosenToken] = (),
        finish_reason: str | None = None,
        **extras: Any,
    ) -> Chunk:
        said = self._logprobs(logprobs) if logprobs else None
        return self._chunk(
            [{"index": index, "delta": delta, "logprobs": said, "finish_reason": finish_reason}], **extras
        )

    def _chunk(self, choices: list[dict[str, Any]], **extras: Any) -> Chunk:
        body = {"object": "chat.completion.chunk", **self._head, "choices": choices}
        if self._asked.tell_usage:
            body["usage"] = None
        return Chunk(body | extras)

    def _logprobs(self, tokens: Iterable[ChosenToken]) -> dict[str, Any] | None:
        """Return the tokens of the answer, and those of the thought where DeepSeek's API has them."""
        if self._asked.logprobs is None:
            return None
        said: dict[str, list[Any]] = {"think": [], "answer": []}
        for token in tokens:
            said[token.channel].append(
                {**token_logprob(token.chosen), "top_logprobs": [token_logprob(other) for other in token.likeliest]}
            )
        return {"content": said["answer"], "refusal": None, "reasoning_content": said["think"]}


class _Choice:
    """Where one of the replies is."""

    def __init__(self) -> None:
        self.calls = 0
        self.finished: Finished | None = None
        self.tokens: list[ChosenToken] = []

    def take_tokens(self) -> list[ChosenToken]:
        """Return the tokens that no chunk has told yet."""
        taken, self.tokens = self.tokens, []
        return taken


def tool_call(call: ToolCall) -> dict[str, Any]:
    """Return a call of a function as a message has it."""
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def token_logprob(token: TokenLogprob) -> dict[str, Any]:
    """Return a token with its probability; its bytes are unknown where it is a part of a character."""
    part = "\N{REPLACEMENT CHARACTER}" in token.text
    logprob = finite_logprob(token.logprob)
    return {"token": token.text, "logprob": logprob, "bytes": None if part else list(token.text.encode())}


def finite_logprob(value: float) -> float:
    """Return a log-probability as JSON can have it: OpenAI's -9999 is what the model rules out."""
    # In this order what is no number counts as ruled out too.
    return max(_RULED_OUT, value)


def finish_reason(finished: Finished, *, calls: int) -> str:
    """Return OpenAI's word for how a reply ended."""
    reason = FINISH_REASONS[finished.reason]
    return "tool_calls" if calls and reason == "stop" else reason


def usage(stats: Sequence[GenerationStats]) -> dict[str, Any]:
    """Return the counts of the replies to one request; they share a prompt."""
    written = sum(one.generated_tokens for one in stats)
    return {
        "prompt_tokens": stats[0].prompt_tokens,
        "completion_tokens": written,
        "total_tokens": stats[0].prompt_tokens + written,
        "prompt_tokens_details": {"cached_tokens": stats[0].cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(one.think_tokens for one in stats)},
    }


def extra(event: Notice | Pace | PrefillProgress, index: int) -> dict[str, Any]:
    """Return what a chunk's ``r1mac`` says of an event of the reply *index*."""
    said: dict[str, Any]
    match event:
        case Notice(kind=kind, text=text):
            said = {"notice": {"kind": kind, "text": text}}
        case Pace():
            said = {"pace": pace(event)}
        case PrefillProgress(done_tokens=done, total_tokens=total, cached_tokens=cached):
            said = {"prefill": {"done": done, "total": total, "cached": cached}}
    return said | ({"index": index} if index else {})


def pace(event: Pace) -> dict[str, Any]:
    """Return how far a reply is."""
    return {
        "tokens": event.written_tokens,
        "think_tokens": event.think_tokens,
        "tokens_per_s": event.tokens_per_s,
        "left_tokens": event.left_tokens,
        "left_seconds": event.left_seconds,
    }


def ending(finished: Finished, notices: Iterable[Notice] = ()) -> dict[str, Any]:
    """Return how a reply ended in r1mac's own words."""
    stats = finished.stats
    return {
        "finish": {
            "reason": finished.reason,
            "prefill_seconds": stats.prefill_seconds,
            "decode_seconds": stats.decode_seconds,
            "tokens_per_s": stats.decode_tokens_per_s,
            "peak_bytes": stats.peak_bytes,
        },
        **({"notices": [{"kind": notice.kind, "text": notice.text} for notice in notices]} if notices else {}),
    }
