"""OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses.

Nothing is stored here, so the whole conversation comes with each request. The thought is an item of its own with its
whole text (``reasoning_text``): a local model's thoughts are no secret.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from r1mac.engine.events import ChosenToken, Event, Finished, FinishReason, GenerationStats, TextDelta, ToolCalled
from r1mac.engine.request import ToolCall
from r1mac.errors import R1MacError
from r1mac.server import openai_asked
from r1mac.server.asked import Asked
from r1mac.server.fields import Fields
from r1mac.server.openai_chat import token_logprob
from r1mac.server.openai_items import messages
from r1mac.server.sse import Chunk
from r1mac.server.wire_errors import problem_of

_NEEDS_A_STORE = ("previous_response_id", "conversation", "prompt")
_LOGPROBS = "message.output_text.logprobs"
# How a reply ended that did not come to its end; None is a cause that OpenAI has no word for.
_CUT_OFF: dict[FinishReason, str | None] = {
    "length": "max_output_tokens",
    "context": "max_output_tokens",
    "memory": None,
    "loop": None,
    "cancelled": None,
}


def parse(body: Mapping[str, Any]) -> Asked:
    """Return what a request asks.

    Raises:
        BadRequest: a field has a wrong type or a value that cannot be meant, or needs what was never stored.
    """
    fields = Fields(body)
    for name in _NEEDS_A_STORE:
        if fields.has(name):
            raise fields.bad(
                name, "is not supported: nothing is stored here, so send the whole conversation as «input»"
            )
    if fields.boolean("background"):
        raise fields.bad("background", "is not supported: nothing is stored here, so stay for the reply")
    reasoning = fields.inner("reasoning")
    effort = reasoning.choice("effort", tuple(openai_asked.EFFORTS)) if reasoning else None
    most_tokens = reasoning.integer("max_tokens", least=0) if reasoning else None
    think, think_tokens = openai_asked.thought(effort, most_tokens, switch=None)
    for tool in fields.objects("tools"):
        tool.choice("type", ("function",))
    tools, must_call = openai_asked.tools(list(fields.objects("tools")), fields)
    text = fields.inner("text")
    count = fields.integer("top_logprobs", least=0, most=openai_asked.MOST_LOGPROBS)
    extras = fields.inner("r1mac")
    return Asked(
        model=fields.text("model") or None,
        messages=tuple(messages(fields)),
        max_tokens=openai_asked.max_tokens(fields, "max_output_tokens"),
        sampling=openai_asked.sampling(fields),
        think=think,
        think_tokens=think_tokens,
        stop=openai_asked.stop(fields),
        logprobs=(count or 0) if count or _LOGPROBS in fields.texts("include") else None,
        answer_format=openai_asked.answer_format(text.inner("format") if text else None),
        tools=tools,
        must_call=must_call,
        one_call=fields.boolean("parallel_tool_calls") is False,
        stream=fields.boolean("stream") or False,
        tell_events=bool(extras and extras.boolean("events")),
    )


class Writer:
    """Says one reply: a list of items, each announced, told piece by piece and repeated whole."""

    def __init__(self, reply_id: str, asked: Asked, *, model: str, created_at_s: int) -> None:
        self._id, self._asked, self._model, self._created_at_s = reply_id, asked, model, created_at_s
        self._events = 0
        self._output: list[dict[str, Any]] = []
        self._tokens: list[ChosenToken] = []

    def begin(self) -> Iterator[Chunk]:
        """Yield that the reply is under way."""
        yield self._chunk("response.created", response=self._response("in_progress"))
        yield self._chunk("response.in_progress", response=self._response("in_progress"))

    def event(self, event: Event) -> Iterator[Chunk]:
        """Yield what an event is in the stream."""
        match event:
            case TextDelta(channel="think", text=text):
                yield from self._open("reasoning")
                yield self._add(text, "response.reasoning_text.delta")
            case TextDelta(text=text):
                yield from self._open("message")
                logprobs = self._logprobs()
                self._part["logprobs"] += logprobs
                yield self._add(text, "response.output_text.delta", logprobs=logprobs)
            case ToolCalled(call=call):
                yield from self._close("completed")
                yield from self._call(call)
            case ChosenToken(channel="answer"):
                self._tokens.append(event)
            case Finished():
                yield from self._end(event)
            case _:
                pass

    def failed(self, error: R1MacError) -> Iterator[Chunk]:
        """Yield that the reply came to nothing."""
        yield from self._close("incomplete")
        problem = problem_of(error)
        code = "server_error" if problem.status >= 500 else "invalid_prompt"  # noqa: PLR2004
        response = self._response("failed", error={"code": code, "message": problem.message})
        yield self._chunk("response.failed", response=response)

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole reply: what its stream would have ended with."""
        last = [chunk for event in events for chunk in self.event(event)][-1]
        assert isinstance(last.data, dict)
        response: dict[str, Any] = last.data["response"]
        return response

    def _end(self, finished: Finished) -> Iterator[Chunk]:
        status = "incomplete" if finished.reason in _CUT_OFF else "completed"
        yield from self._close(status)
        details = {"reason": _CUT_OFF[finished.reason]} if finished.reason in _CUT_OFF else None
        response = self._response(status, incomplete_details=details, usage=_usage(finished.stats))
        if self._asked.tell_events:
            response["r1mac"] = {"finish": {"reason": finished.reason}}
        yield self._chunk(f"response.{status}", response=response)

    @property
    def _open_item(self) -> dict[str, Any] | None:
        """The item that is being told."""
        return self._output[-1] if self._output and self._output[-1]["status"] == "in_progress" else None

    @property
    def _part(self) -> dict[str, Any]:
        """The text of the item that is being told."""
        part: dict[str, Any] = self._output[-1]["content"][0]
        return part

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1, "content_index": 0}

    def _open(self, kind: str) -> Iterator[Chunk]:
        """Begin an item of *kind*, unless the one that is being told is one."""
        if self._open_item is not None and self._open_item["type"] == kind:
            return
        yield from self._close("completed")
        item: dict[str, Any] = {"id": self._item_id(kind), "type": kind, "status": "in_progress", "content": []}
        if kind == "reasoning":
            item["summary"] = []
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item["role"] = "assistant"
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._item_added(item)
        item["content"].append(part)
        yield self._chunk("response.content_part.added", **self._place, part=dict(part))

    def _add(self, text: str, name: str, **more: Any) -> Chunk:
        self._part["text"] += text
        return self._chunk(name, **self._place, delta=text, **more)

    def _close(self, status: str) -> Iterator[Chunk]:
        """End the item that is being told, if there is one."""
        item = self._open_item
        if item is None:
            return
        part = self._part
        if item["type"] == "reasoning":
            yield self._chunk("response.reasoning_text.done", **self._place, text=part["text"])
        else:
            part["logprobs"] += self._logprobs()
            done = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._chunk("response.output_text.done", **self._place, **done)
        yield self._chunk("response.content_part.done", **self._place, part=part)
        item["status"] = status
        yield self._chunk("response.output_item.done", output_index=len(self._output) - 1, item=item)

    def _call(self, call: ToolCall) -> Iterator[Chunk]:
        """Tell a call of a function, which is known all at once."""
        item = {"id": self._item_id("function_call"), "type": "function_call", "status": "in_progress"}
        item |= {"call_id": call.id, "name": call.name, "arguments": ""}
        yield self._item_added(item)
        place = {"item_id": item["id"], "output_index": len(self._output) - 1}
        yield self._chunk("response.function_call_arguments.delta", **place, delta=call.arguments)
        item |= {"arguments": call.arguments, "status": "completed"}
        yield self._chunk("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        yield self._chunk("response.output_item.done", output_index=place["output_index"], item=item)

    def _item_added(self, item: dict[str, Any]) -> Chunk:
        self._output.append(item)
        # A copy: what is told now must not change with what comes.
        told = {**item, "content": []} if "content" in item else dict(item)
        return self._chunk("response.output_item.added", output_index=len(self._output) - 1, item=told)

    def _item_id(self, kind: str) -> str:
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        return f"{prefix}_{self._id.partition('_')[2]}_{len(self._output)}"

    def _logprobs(self) -> list[dict[str, Any]]:
        """Return the tokens that nothing has told yet. Bytes that are unknown are none, as the client's types want."""
        tokens, self._tokens = self._tokens, []
        said = []
        for token in tokens:
            one, *others = [
                {**told, "bytes": told["bytes"] or []} for told in map(token_logprob, (token.chosen, *token.likeliest))
            ]
            said.append({**one, "top_logprobs": others})
        return said

    def _chunk(self, kind: str, **fields: Any) -> Chunk:
        chunk = Chunk({"type": kind, "sequence_number": self._events, **fields}, event=kind)
        self._events += 1
        return chunk

    def _response(self, status: str, **fields: Any) -> dict[str, Any]:
        asked = self._asked
        answer_format = asked.answer_format
        text_format = (
            {"type": "text"}
            if answer_format is None
            else {"type": "json_schema", "name": "answer", "schema": json.loads(answer_format.text)}
        )
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created_at_s,
            "status": status,
            "model": self._model,
            "output": list(self._output),
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "max_output_tokens": asked.max_tokens,
            "metadata": {},
            "parallel_tool_calls": not asked.one_call,
            "previous_response_id": None,
            "reasoning": {"effort": "none" if asked.think is False else None, "summary": None},
            "store": False,
            "temperature": asked.sampling.get("temperature"),
            "text": {"format": text_format},
            "tool_choice": _tool_choice(asked),
            "tools": [{"type": "function", "strict": False, **tool["function"]} for tool in asked.tools],
            "top_p": asked.sampling.get("top_p"),
            "truncation": "disabled",
            "usage": None,
            **fields,
        }


def _tool_choice(asked: Asked) -> str | dict[str, str]:
    if isinstance(asked.must_call, str):
        return {"type": "function", "name": asked.must_call}
    return "required" if asked.must_call else "auto"


def _usage(stats: GenerationStats) -> dict[str, Any]:
    return {
        "input_tokens": stats.prompt_tokens,
        # What is kept of a prompt is kept anyway, and nobody pays for it.
        "input_tokens_details": {"cached_tokens": stats.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": stats.generated_tokens,
        "output_tokens_details": {"reasoning_tokens": stats.think_tokens},
        "total_tokens": stats.prompt_tokens + stats.generated_tokens,
    }
