"""Anthropic's Messages: https://docs.anthropic.com/en/api/messages.

A request that does not mention ``thinking`` gets a model that thinks, since R1 is little without its thought, and an
answer alone, since its program expects none. With ``thinking`` of type ``enabled`` or ``adaptive`` the thought comes in
a ``thinking`` block; ``budget_tokens`` binds, and ``output_config.effort`` where there is no budget. Thoughts that come
back with a conversation are left out, as R1's own template does: what followed from them stands in the answers.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from r1mac.engine.events import (
    Event,
    Finished,
    FinishReason,
    GenerationStats,
    PrefillProgress,
    TextDelta,
    ToolCalled,
)
from r1mac.engine.request import AnswerFormat, Message, ToolCall
from r1mac.errors import R1MacError
from r1mac.server import openai_asked
from r1mac.server.asked import Asked
from r1mac.server.fields import Fields
from r1mac.server.gathered import gather
from r1mac.server.sse import Chunk
from r1mac.server.wire_errors import Problem, problem_of

_THINKING = ("enabled", "adaptive", "between_tools", "disabled")
# An opaque value of the API's; nothing that comes back with it is checked, since thoughts are not read again.
_SIGNATURE = "r1mac"

_STOP_REASONS: dict[FinishReason, str] = {
    "stop": "end_turn",
    "cancelled": "end_turn",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "memory": "max_tokens",
    "loop": "max_tokens",
}


def parse(body: Mapping[str, Any]) -> Asked:
    """Return what a request asks.

    Raises:
        BadRequest: a field has a wrong type or a value that cannot be meant.
    """
    fields = Fields(body)
    if fields.items("mcp_servers"):
        raise fields.bad("mcp_servers", "is not offered: the client has to call its tools itself")
    think, think_tokens = _thinking(fields)
    config = fields.inner("output_config")
    tools, must_call = _tools(fields)
    return Asked(
        model=fields.text("model") or None,
        messages=_conversation(fields),
        max_tokens=fields.integer("max_tokens", least=1),
        sampling=openai_asked.sampling(fields),
        think=think,
        think_tokens=think_tokens,
        thought=_shown(fields),
        stop=fields.texts("stop_sequences"),
        answer_format=_format(config.inner("format") if config else None),
        tools=tools,
        must_call=must_call,
        one_call=_wants_one_call(fields.inner("tool_choice")),
        stream=fields.boolean("stream") or False,
    )


def _thinking(fields: Fields) -> tuple[bool | None, int | None]:
    """Return whether to think, and the most tokens of it."""
    thinking, config = fields.inner("thinking"), fields.inner("output_config")
    effort = config.choice("effort", tuple(openai_asked.EFFORTS)) if config else None
    budget = thinking.integer("budget_tokens", least=1) if thinking else None
    kind = thinking.choice("type", _THINKING) if thinking else None
    return openai_asked.thought(effort, budget, switch=None if kind is None else kind != "disabled")


def _shown(fields: Fields) -> Literal["all", "sign", "none"]:
    """Return what is sent of the thought."""
    thinking = fields.inner("thinking")
    if thinking is None or thinking.text("type") in {None, "disabled"}:
        return "none"
    return "sign" if thinking.choice("display", ("summarized", "omitted")) == "omitted" else "all"


def _format(said: Fields | None) -> AnswerFormat | None:
    if said is None or said.choice("type", ("json_schema",)) is None:
        return None
    schema = said.inner("schema")
    if schema is None:
        raise said.bad("schema", "is missing")
    return AnswerFormat(kind="json_schema", text=json.dumps(schema.values, ensure_ascii=False))


def _tools(fields: Fields) -> tuple[tuple[dict[str, Any], ...], bool | str]:
    """Return the functions in OpenAI's shape, and which must be called."""
    offered = {tool["function"]["name"]: tool for tool in map(_tool, fields.objects("tools"))}
    choice = fields.inner("tool_choice")
    kind = choice.choice("type", ("auto", "any", "tool", "none")) if choice else "auto"
    if choice is None or kind in {None, "auto"}:
        return tuple(offered.values()), False
    if kind == "none":
        return (), False
    if not offered:
        raise choice.bad("type", f"is «{kind}», and there are no tools")
    if kind == "any":
        return tuple(offered.values()), True
    name = choice.needed_text("name")
    if name not in offered:
        raise choice.bad("name", f"is «{name[:40]}», which is not among the tools")
    return (offered[name],), name


def _wants_one_call(choice: Fields | None) -> bool:
    return choice is not None and choice.boolean("disable_parallel_tool_use") is True


def _tool(tool: Fields) -> dict[str, Any]:
    kind = tool.text("type")
    if kind not in {None, "custom"}:
        raise tool.bad("type", f"is «{kind[:40]}», a tool of Anthropic's own servers; r1mac offers none of them")
    schema = tool.inner("input_schema")
    name = tool.needed_text("name")
    if not name:
        raise tool.bad("name", "is empty")
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": tool.text("description") or "",
            "parameters": schema.values if schema is not None else {"type": "object", "properties": {}},
        },
    }


def _conversation(fields: Fields) -> tuple[Message, ...]:
    system = _texts(fields, "system")
    messages = [Message("system", system)] if system else []
    for item in fields.objects("messages"):
        role = item.choice("role", ("user", "assistant", "system"))
        if role is None:
            raise item.bad("role", "is missing")
        if role == "system":
            told = [Message("system", _texts(item, "content"))]
        else:
            told = _turn(item) if role == "assistant" else _asked(item)
        for message in told:
            _add(messages, message)
    if not messages or messages[-1].role in {"assistant", "system"}:
        raise fields.bad("messages", "must end with a message of the user: r1mac does not go on with an answer's text")
    return tuple(messages)


def _add(messages: list[Message], message: Message) -> None:
    """Add a message; turns of the same one in a row are one, as the API has it."""
    last = messages[-1] if messages else None
    if last is None or last.role != message.role or message.role == "tool" or last.tool_calls:
        messages.append(message)
    else:
        text = "\n\n".join(part for part in (last.text, message.text) if part)
        messages[-1] = Message(message.role, text, message.tool_calls)


def _asked(item: Fields) -> list[Message]:
    """Return a user's turn: results of functions, and what is said."""
    results: list[Message] = []
    texts: list[str] = []
    for block in _blocks(item, "content"):
        if block.text("type") == "tool_result":
            text = _texts(block, "content")
            failed = "error: " if block.boolean("is_error") else ""
            results.append(Message("tool", failed + text, tool_call_id=block.needed_text("tool_use_id")))
        else:
            texts.append(_text(block))
    said = [Message("user", "\n\n".join(texts))] if texts or not results else []
    return [*results, *said]


def _turn(item: Fields) -> list[Message]:
    """Return a turn of the model's, without its thoughts."""
    texts: list[str] = []
    calls: list[ToolCall] = []
    for block in _blocks(item, "content"):
        kind = block.text("type")
        if kind in {"thinking", "redacted_thinking"}:
            continue
        if kind == "tool_use":
            given = block.inner("input")
            arguments = json.dumps(given.values if given else {}, ensure_ascii=False)
            calls.append(ToolCall(id=block.needed_text("id"), name=block.needed_text("name"), arguments=arguments))
        else:
            texts.append(_text(block))
    return [Message("assistant", "\n\n".join(texts), tuple(calls))]


def _texts(fields: Fields, name: str) -> str:
    return "\n\n".join(map(_text, _blocks(fields, name)))


def _blocks(fields: Fields, name: str) -> Iterator[Fields]:
    """Yield the blocks of a content; a string is one of text."""
    value = fields.values.get(name)
    if isinstance(value, str):
        if value:
            yield Fields({"type": "text", "text": value}, fields.where(name))
        return
    yield from fields.objects(name)


def _text(block: Fields) -> str:
    kind = block.needed_text("type")
    source = block.inner("source") if kind == "document" else None
    if source is not None and source.text("type") == "text":
        return source.needed_text("data")
    if kind != "text":
        raise block.bad("type", f"is «{kind[:40]}», and r1mac's models read text only")
    return block.needed_text("text")


class Writer:
    """Says one reply."""

    def __init__(self, reply_id: str, asked: Asked, *, model: str, created_at_s: int) -> None:  # noqa: ARG002 (no date)
        self._shown = asked.thought
        self._head = {"id": reply_id, "type": "message", "role": "assistant", "model": model}
        self._begun = False
        self._kind: str | None = None
        self._index = -1
        self._calls = 0

    def begin(self) -> Iterator[Chunk]:
        """Yield nothing: a stream begins with how long the prompt is, which the first event tells."""
        yield from ()

    def event(self, event: Event) -> Iterator[Chunk]:
        """Yield what an event is in the stream."""
        if not self._begun:
            self._begun = True
            yield from self._start(event)
        match event:
            case TextDelta(channel="think", text=text):
                yield from self._thought(text)
            case TextDelta(text=text):
                yield from self._open("text", {"type": "text", "text": ""})
                yield self._delta({"type": "text_delta", "text": text})
            case ToolCalled(call=call):
                self._calls += 1
                yield from self._open("tool_use", {**_tool_use(call), "input": {}})
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
                yield from self._close()
            case Finished():
                yield from self._close()
                delta = {"container": None, **_ending(event, calls=self._calls)}
                yield _chunk("message_delta", delta=delta, usage=_usage(event.stats))
                yield _chunk("message_stop")
            case _:
                pass

    def failed(self, error: R1MacError) -> Iterator[Chunk]:
        """Yield the error in place of what would have come."""
        yield Chunk(error_body(problem_of(error)), "error")

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole reply."""
        reply = gather(events)
        content: list[dict[str, Any]] = []
        if reply.thought and self._shown != "none":
            thought = reply.thought if self._shown == "all" else ""
            content.append({"type": "thinking", "thinking": thought, "signature": _SIGNATURE})
        if reply.answer:
            content.append({"type": "text", "text": reply.answer, "citations": None})
        content += [{**_tool_use(call), "input": json.loads(call.arguments)} for call in reply.calls]
        ending = _ending(reply.finished, calls=len(reply.calls))
        return {**self._head, "content": content, **ending, "usage": _usage(reply.finished.stats)}

    def _start(self, first: Event) -> Iterator[Chunk]:
        total, cached = 0, 0
        if isinstance(first, PrefillProgress):
            total, cached = first.total_tokens, first.cached_tokens
        usage = {**_input_usage(total, cached), "output_tokens": 0}
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        yield _chunk("message_start", message=message)
        yield PING

    def _thought(self, text: str) -> Iterator[Chunk]:
        if self._shown == "none":
            return
        yield from self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if self._shown == "all":
            yield self._delta({"type": "thinking_delta", "thinking": text})

    def _open(self, kind: str, block: dict[str, Any]) -> Iterator[Chunk]:
        """Begin a block, unless one of its kind is open."""
        if self._kind == kind:
            return
        yield from self._close()
        self._kind = kind
        self._index += 1
        yield _chunk("content_block_start", index=self._index, content_block=block)

    def _close(self) -> Iterator[Chunk]:
        """End the block that is open."""
        if self._kind is None:
            return
        if self._kind == "thinking":
            yield self._delta({"type": "signature_delta", "signature": _SIGNATURE})
        yield _chunk("content_block_stop", index=self._index)
        self._kind = None

    def _delta(self, delta: dict[str, Any]) -> Chunk:
        return _chunk("content_block_delta", index=self._index, delta=delta)


def _chunk(kind: str, **fields: Any) -> Chunk:
    return Chunk({"type": kind, **fields}, kind)


PING = _chunk("ping")


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{call.id.removeprefix('call_')}", "name": call.name}


def _ending(finished: Finished, *, calls: int) -> dict[str, Any]:
    reason = _STOP_REASONS[finished.reason]
    if finished.reason == "stop" and finished.stop is not None:
        reason = "stop_sequence"
    elif finished.reason == "stop" and calls:
        reason = "tool_use"
    return {"stop_reason": reason, "stop_sequence": finished.stop}


def _usage(stats: GenerationStats) -> dict[str, Any]:
    """Return the counts; the prompt is counted in what was read now and what was in a cache."""
    return {
        **_input_usage(stats.prompt_tokens, stats.cached_tokens),
        "output_tokens": stats.generated_tokens,
        "output_tokens_details": {"thinking_tokens": stats.think_tokens},
    }


def _input_usage(total_tokens: int, cached_tokens: int) -> dict[str, int]:
    return {
        "input_tokens": total_tokens - cached_tokens,
        "cache_read_input_tokens": cached_tokens,
        "cache_creation_input_tokens": 0,
    }


_ERROR_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(problem: Problem) -> dict[str, Any]:
    """Return Anthropic's error: https://docs.anthropic.com/en/api/errors."""
    kind = _ERROR_TYPES.get(problem.status, "api_error" if problem.status >= 500 else "invalid_request_error")  # noqa: PLR2004
    return {"type": "error", "error": {"type": kind, "message": problem.message}}
