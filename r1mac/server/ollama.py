"""Ollama's chat and generate: https://github.com/ollama/ollama/blob/main/docs/api.md.

A thought is in ``thinking`` unless ``think`` is false; a level bounds it as OpenAI's efforts do. A ``num_ctx`` up to
the context that there is needs nothing; a larger one has it grow where nobody chose a context (``server.contexts``).
Where an option is not followed, the last line says so in ``r1mac.notices``.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from r1mac.engine.events import ChosenToken, Event, Finished, TextDelta, ToolCalled
from r1mac.engine.request import AnswerFormat, Message, Sampling, ToolCall
from r1mac.errors import R1MacError
from r1mac.server import openai_asked
from r1mac.server.asked import Asked
from r1mac.server.fields import Fields
from r1mac.server.gathered import FINISH_REASONS, gather
from r1mac.server.openai_chat import token_logprob
from r1mac.server.sse import Chunk
from r1mac.server.wire_errors import Problem, problem_of
from r1mac.units import parse_seconds

# Ollama's names of the numbers of ``engine.request.Sampling``.
_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
# Options that would change the text, and that r1mac has no like of.
_UNHEARD = ("mirostat", "tfs_z", "typical_p", "repeat_last_n", "num_keep", "penalize_newline")
_EFFORTS = ("low", "medium", "high", "max")

Kind = Literal["chat", "generate"]


def parse_chat(body: Mapping[str, Any]) -> Asked:
    """Return what a request to ``/api/chat`` asks; without messages the model is only to be loaded.

    Raises:
        BadRequest: a field has a wrong type or a value that cannot be meant.
    """
    fields = Fields(body)
    messages = tuple(_message(item, index) for index, item in enumerate(fields.objects("messages")))
    return _asked(fields, messages=messages, tools=_tools(fields))


def parse_generate(body: Mapping[str, Any]) -> Asked:
    """Return what a request to ``/api/generate`` asks; without a prompt the model is only to be loaded.

    Raises:
        BadRequest: a field has a wrong type or a value that cannot be meant.
    """
    fields = Fields(body)
    _refuse_images(fields)
    for name, why in _REFUSED.items():
        if fields.values.get(name):
            raise fields.bad(name, why)
    prompt, system = fields.text("prompt") or "", fields.text("system") or ""
    if prompt and fields.boolean("raw"):
        return _asked(fields, raw_prompt=prompt)
    messages = [Message("system", system)] if system else []
    return _asked(fields, messages=(*messages, Message("user", prompt)) if prompt else ())


_REFUSED = {
    "template": "cannot be followed: a model is asked by its own template, or by none with «raw»",
    "suffix": "cannot be followed: R1 does not fill gaps",
    "context": "cannot be followed: send the conversation to /api/chat",
}


def unheard(body: Mapping[str, Any], context_tokens: int | None, longest_tokens: int | None = None) -> tuple[str, ...]:
    """Return what of the options is not followed, a sentence each.

    Args:
        body: the request.
        context_tokens: the context that the reply is written in.
        longest_tokens: the longest that would fit.
    """
    options = body.get("options")
    if not isinstance(options, dict):
        return ()
    said = [f"the option {name} is not followed" for name in _UNHEARD if options.get(name)]
    wanted = options.get("num_ctx")
    if context_tokens is not None and isinstance(wanted, int | float) and wanted > context_tokens:
        told = f"num_ctx is {wanted:,}, and memory is planned for {context_tokens:,} tokens"
        if longest_tokens is not None and longest_tokens > context_tokens:
            told += f"; {longest_tokens:,} would fit, and are chosen on the page or with POST /r1mac/context"
        said.append(told)
    return tuple(said)


def _asked(fields: Fields, **said: Any) -> Asked:
    options = fields.inner("options") or Fields({}, "options")
    think, think_tokens = _think(fields)
    logprobs = fields.integer("top_logprobs", least=0, most=openai_asked.MOST_LOGPROBS)
    stream = fields.boolean("stream")
    return Asked(
        model=fields.needed_text("model") or None,
        max_tokens=_max_tokens(options),
        sampling=_sampling(options),
        think=think,
        think_tokens=think_tokens,
        stop=openai_asked.stop(options),
        logprobs=(logprobs or 0) if fields.boolean("logprobs") else None,
        answer_format=_format(fields),
        stream=True if stream is None else stream,
        context_tokens=options.integer("num_ctx"),
        keep_loaded_seconds=_keep_alive(fields),
        **said,
    )


def _keep_alive(fields: Fields) -> float | None:
    """Return how long the model is to stay: a number of seconds or a duration such as ``5m``, below 0 for ever."""
    value = fields.values.get("keep_alive")
    if value is None:
        return None
    text = str(value).strip()
    if re.fullmatch(r"-\d.*", text):
        return math.inf
    if re.fullmatch(r"0+(\.0*)?(ns|us|µs|ms|s|m|h)?", text):
        return 0.0
    try:
        return parse_seconds(text)
    except ValueError:
        raise fields.bad("keep_alive", f"must be seconds, 5m, 0 or -1, and is {text[:40]}") from None


def _max_tokens(options: Fields) -> int | None:
    # -1 is without end, and -2 what the context has room for; both are as far as memory is planned.
    wanted = options.integer("num_predict", least=-2)
    if wanted == 0:
        raise options.bad("num_predict", "must be 1 or more, or -1 for no limit, and is 0")
    return wanted if wanted is not None and wanted > 0 else None


def _sampling(options: Fields) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for theirs, ours in _SAMPLING.items():
        value = options.number(theirs)
        if value is None:
            continue
        one: dict[str, Any] = {ours: value}
        try:
            Sampling(**one)
        except ValueError as error:
            raise options.bad(theirs, str(error).partition(" ")[2]) from error
        said |= one
    top_k = options.integer("top_k", least=-1)
    if top_k is not None:
        said["top_k"] = max(top_k, 0)
    seed = options.integer("seed", least=-1)
    if seed is not None and seed >= 0:
        said["seed"] = seed
    return said


def _think(fields: Fields) -> tuple[bool | None, int | None]:
    if isinstance(fields.values.get("think"), str):
        return openai_asked.thought(fields.choice("think", _EFFORTS), None, switch=None)
    return openai_asked.thought(None, None, switch=fields.boolean("think"))


def _format(fields: Fields) -> AnswerFormat | None:
    wanted = fields.values.get("format")
    if wanted is None or isinstance(wanted, str):
        word = fields.choice("format", ("", "json"))
        return AnswerFormat(kind="json_schema", text='{"type": "object"}') if word else None
    schema = fields.inner("format")
    assert schema is not None
    return AnswerFormat(kind="json_schema", text=json.dumps(schema.values, ensure_ascii=False))


def _tools(fields: Fields) -> tuple[dict[str, Any], ...]:
    functions = []
    for tool in fields.objects("tools"):
        function = tool.inner("function")
        if function is None:
            raise tool.bad("function", "is missing")
        functions.append(function)
    # Ollama lets nobody choose among them.
    return openai_asked.tools(functions, Fields({}))[0]


def _message(item: Fields, index: int) -> Message:
    _refuse_images(item)
    role = item.choice("role", ("system", "user", "assistant", "tool"))
    text = item.text("content") or ""
    match role:
        case "assistant":
            calls = enumerate(item.objects("tool_calls"))
            return Message("assistant", text, tuple(_call(call, f"call_{index}_{place}") for place, call in calls))
        case "tool":
            return Message("tool", text, tool_call_id=item.text("tool_call_id"))
        case "system" | "user":
            return Message("system" if role == "system" else "user", text)
    raise item.bad("role", "is missing")


def _call(call: Fields, call_id: str) -> ToolCall:
    function = call.inner("function")
    if function is None:
        raise call.bad("function", "is missing")
    arguments = function.inner("arguments")
    text = json.dumps(arguments.values if arguments else {}, ensure_ascii=False)
    return ToolCall(id=call.text("id") or call_id, name=function.needed_text("name"), arguments=text)


def _refuse_images(fields: Fields) -> None:
    if fields.items("images"):
        raise fields.bad("images", "cannot be read: r1mac's models read text only")


class Writer:
    """Says one reply, as ``/api/chat`` does or as ``/api/generate``."""

    def __init__(
        self,
        reply_id: str,  # noqa: ARG002 - Ollama's replies have no name
        asked: Asked,
        *,
        model: str,
        created_at_s: int,  # noqa: ARG002 - each line has its own time
        kind: Kind,
        begun_at_s: float,
        notices: Sequence[str] = (),
    ) -> None:
        """Begin a reply.

        Args:
            reply_id: not told.
            asked: what it is to be.
            model: its name, as the client said it.
            created_at_s: not told.
            kind: which API it is for.
            begun_at_s: when it was asked for, by the clock that measures.
            notices: what of the request is not followed.
        """
        self._model = model
        self._kind = kind
        self._notices = notices
        self._tells_logprobs = asked.logprobs is not None
        self._tokens: list[ChosenToken] = []
        self._begun_at_s = begun_at_s

    def begin(self) -> Iterator[Chunk]:
        """Yield nothing: Ollama's streams have no head."""
        yield from ()

    def event(self, event: Event) -> Iterator[Chunk]:
        """Yield what an event is in the stream."""
        match event:
            case TextDelta(channel="think", text=text):
                yield self._line(thinking=text)
            case TextDelta(text=text):
                yield self._line(text)
            case ToolCalled(call=call):
                yield self._line(tool_calls=[_told_call(call)])
            case ChosenToken():
                self._tokens.append(event)
            case Finished():
                yield Chunk({**self._said("", tokens=self._taken()), **self._ending(event)})
            case _:
                pass

    def failed(self, error: R1MacError) -> Iterator[Chunk]:
        """Yield the error in place of what would have come."""
        yield Chunk(error_body(problem_of(error)))

    def whole(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole reply."""
        reply = gather(events)
        extras: dict[str, Any] = {"thinking": reply.thought} if reply.thought else {}
        if reply.calls:
            extras["tool_calls"] = [_told_call(call) for call in reply.calls]
        return {**self._said(reply.answer, tokens=reply.tokens, **extras), **self._ending(reply.finished)}

    def _line(self, text: str = "", **extras: Any) -> Chunk:
        return Chunk({**self._said(text, tokens=self._taken(), **extras), "done": False})

    def _said(self, text: str, *, tokens: Sequence[ChosenToken], **extras: Any) -> dict[str, Any]:
        said: dict[str, Any] = {"model": self._model, "created_at": timestamp(time.time())}
        if self._kind == "chat":
            said["message"] = {"role": "assistant", "content": text, **extras}
        else:
            said |= {"response": text, **extras}
        if self._tells_logprobs and tokens:
            said["logprobs"] = [
                {**token_logprob(token.chosen), "top_logprobs": [token_logprob(other) for other in token.likeliest]}
                for token in tokens
            ]
        return said

    def _taken(self) -> list[ChosenToken]:
        taken, self._tokens = self._tokens, []
        return taken

    def _ending(self, finished: Finished) -> dict[str, Any]:
        stats = finished.stats
        total_seconds = time.perf_counter() - self._begun_at_s
        prefill_ns, decode_ns = (round(seconds * 1e9) for seconds in (stats.prefill_seconds, stats.decode_seconds))
        total_ns = max(round(total_seconds * 1e9), prefill_ns + decode_ns)
        ending: dict[str, Any] = {
            "done": True,
            "done_reason": FINISH_REASONS[finished.reason],
            "total_duration": total_ns,
            # What was waited for before: the queue, and the model if it had to be loaded.
            "load_duration": total_ns - prefill_ns - decode_ns,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": prefill_ns,
            "eval_count": stats.generated_tokens,
            "eval_duration": decode_ns,
        }
        return ending | ({"r1mac": {"notices": list(self._notices)}} if self._notices else {})


def loaded(kind: Kind, model: str, *, stays: bool) -> dict[str, Any]:
    """Return the reply to a request that asks for nothing but the model: that it is loaded, or no longer."""
    said = {"message": {"role": "assistant", "content": ""}} if kind == "chat" else {"response": ""}
    reason = "load" if stays else "unload"
    return {"model": model, "created_at": timestamp(time.time()), **said, "done": True, "done_reason": reason}


def timestamp(at_s: float) -> str:
    """Return a time since 1970 as Ollama writes it."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def error_body(problem: Problem) -> dict[str, Any]:
    """Return Ollama's error."""
    return {"error": problem.message}


def _told_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
