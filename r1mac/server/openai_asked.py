"""What OpenAI's three APIs ask in the same words: sampling, thought, tools, formats, messages.

The fields are those of https://platform.openai.com/docs/api-reference, with those that vLLM, llama.cpp, DeepSeek and
OpenRouter added: ``top_k``, ``min_p``, ``repetition_penalty``, ``thinking`` and ``reasoning.max_tokens``.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from r1mac.engine.request import AnswerFormat, Message, Sampling, ToolCall
from r1mac.server.asked import BadRequest
from r1mac.server.fields import Fields

# Tokens of thought for each effort; None is as many as there is room for.
EFFORTS: dict[str, int | None] = {
    "none": 0,
    "minimal": 512,
    "low": 2_048,
    "medium": 8_192,
    "high": None,
    "xhigh": None,
    "max": None,
}
MOST_REPLIES = 16
MOST_LOGPROBS = 20
MOST_STOPS = 64
BIASED_PATTERN = "0|[1-9][0-9]{0,9}"


def sampling(fields: Fields) -> dict[str, Any]:
    """Return what is said of ``engine.request.Sampling``."""
    numbers = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    said: dict[str, Any] = {name: value for name in numbers if (value := fields.number(name)) is not None}
    top_k = fields.integer("top_k", least=-1)
    if top_k is not None:
        # -1 is how vLLM says «all».
        said["top_k"] = max(top_k, 0)
    seed = fields.integer("seed")
    if seed is not None:
        said["seed"] = seed % 2**63
    bias = fields.inner("logit_bias")
    if bias is not None:
        said["logit_bias"] = tuple(_biases(bias))
    try:
        Sampling(**said)
    except ValueError as error:
        name = str(error).split()[0]
        raise BadRequest(str(error), field=fields.where(name if name in said else "logit_bias")) from error
    return said


def _biases(bias: Fields) -> Iterator[tuple[int, float]]:
    for name in bias.values:
        # The name of a JSON field is text; ten digits are more than any vocabulary has, and «01» would be 1 again.
        if not re.fullmatch(BIASED_PATTERN, name):
            raise bias.bad(name[:40], "must be named by the number of a token")
        value = bias.number(name)
        if value is not None:
            yield int(name), value


def thought(effort: str | None, most_tokens: int | None, *, switch: bool | None) -> tuple[bool | None, int | None]:
    """Return whether to think, and the most tokens of it; None leaves it to the model.

    Args:
        effort: one of EFFORTS.
        most_tokens: a budget, which binds more than an effort.
        switch: whether thinking was turned on or off in so many words.
    """
    if switch is False or effort == "none" or most_tokens == 0:
        return False, None
    tokens = most_tokens if most_tokens is not None else EFFORTS.get(effort or "")
    return (True if switch or effort is not None or tokens is not None else None), tokens


def said_thought(fields: Fields) -> tuple[bool | None, int | None]:
    """Return what ``reasoning_effort``, ``reasoning`` and DeepSeek's ``thinking`` say, as `thought` does."""
    efforts = tuple(EFFORTS)
    effort, most_tokens, switch = fields.choice("reasoning_effort", efforts), None, None
    reasoning = fields.inner("reasoning")
    if reasoning is not None:
        effort = reasoning.choice("effort", efforts) or effort
        most_tokens = reasoning.integer("max_tokens", least=0)
        switch = reasoning.boolean("enabled")
    thinking = fields.inner("thinking")
    if thinking is not None:
        kind = thinking.choice("type", ("enabled", "disabled", "auto"))
        switch = None if kind in {None, "auto"} else kind == "enabled"
    return thought(effort, most_tokens, switch=switch)


def max_tokens(fields: Fields, *names: str) -> int | None:
    """Return the first of the limits *names* that is said; -1 is how llama.cpp says «no limit»."""
    for name in names:
        value = fields.integer(name, least=-1)
        if value == 0:
            raise fields.bad(name, "must be 1 or more, and is 0")
        if value is not None:
            return None if value < 0 else value
    return None


def stop(fields: Fields) -> tuple[str, ...]:
    """Return the texts that end the answer."""
    value = fields.values.get("stop")
    if isinstance(value, list) and len(value) > MOST_STOPS:
        raise fields.bad("stop", f"may have {MOST_STOPS} texts, and has {len(value)}")
    return fields.texts("stop")


def replies(fields: Fields) -> int:
    """Return how many replies are wanted."""
    return fields.integer("n", least=1, most=MOST_REPLIES) or 1


def answer_format(fields: Fields | None, *, holder: str | None = None) -> AnswerFormat | None:
    """Return the format that an answer must have.

    Args:
        fields: what ``response_format`` or ``text.format`` says.
        holder: the field in which a schema stands there; None where it stands beside the type.
    """
    if fields is None:
        return None
    if not fields.has("type"):
        raise fields.bad("type", "is missing")
    kind = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        return AnswerFormat(kind="json_schema", text='{"type": "object"}')
    if kind != "json_schema":
        return None
    held = fields if holder is None else fields.inner(holder)
    if held is None:
        raise fields.bad(holder or "schema", "is missing")
    schema = held.inner("schema")
    if schema is None:
        raise held.bad("schema", "is missing")
    return AnswerFormat(kind="json_schema", text=json.dumps(schema.values, ensure_ascii=False))


def tools(functions: Sequence[Fields], fields: Fields) -> tuple[tuple[dict[str, Any], ...], bool | str]:
    """Return the functions that may be called, in OpenAI's shape, and which one must be.

    Args:
        functions: the objects that name and describe each.
        fields: where ``tool_choice`` stands.
    """
    offered = {}
    for function in functions:
        name = function.needed_text("name")
        if not name:
            raise function.bad("name", "is empty")
        parameters = function.inner("parameters")
        offered[name] = {
            "type": "function",
            "function": {
                "name": name,
                "description": function.text("description") or "",
                "parameters": parameters.values if parameters is not None else {"type": "object", "properties": {}},
            },
        }
    names, must_call = _choice(fields, tuple(offered))
    return tuple(offered[name] for name in names), must_call


def _choice(fields: Fields, offered: tuple[str, ...]) -> tuple[tuple[str, ...], bool | str]:
    """Return which of the *offered* functions may be called, and which one must be."""
    choice = fields.values.get("tool_choice")
    if choice is None or isinstance(choice, str):
        word = fields.choice("tool_choice", ("none", "auto", "required"))
        if word == "required" and not offered:
            raise fields.bad("tool_choice", "wants a function to be called, and there are no tools")
        return (() if word == "none" else offered), word == "required"
    said = fields.inner("tool_choice")
    assert said is not None
    if not said.has("type"):
        raise said.bad("type", "is missing")
    if said.choice("type", ("function", "allowed_tools")) == "allowed_tools":
        said = said.inner("allowed_tools") or said
        allowed = tuple(_function_name(tool) for tool in said.objects("tools"))
        _check_offered(said, "tools", allowed, offered)
        return allowed, said.choice("mode", ("auto", "required")) == "required"
    name = _function_name(said)
    _check_offered(said, "name", (name,), offered)
    return (name,), name


def _function_name(tool: Fields) -> str:
    """Return the name, which Chat Completions puts one object deeper than Responses."""
    return (tool.inner("function") or tool).needed_text("name")


def _check_offered(fields: Fields, field: str, names: Sequence[str], offered: Sequence[str]) -> None:
    missing = next((name for name in names if name not in offered), None)
    if missing is not None:
        raise fields.bad(field, f"names the function «{missing[:40]}», which is not among the tools")


def content(message: Fields, name: str = "content") -> str | None:
    """Return the text of a message: a string, or a list of parts of text; None if there is none.

    Raises:
        BadRequest: a part is no text.
    """
    value = message.values.get(name)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise message.bad(name, "must be a string or a list of parts")
    return "".join(_part(part) for part in message.objects(name))


_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text", "reasoning_text")


def _part(part: Fields) -> str:
    kind = part.needed_text("type")
    if kind == "refusal":
        return part.needed_text("refusal")
    if kind not in _TEXT_PARTS:
        raise part.bad("type", f"is «{kind[:40]}», and r1mac's models read text only")
    return part.needed_text("text")


_ROLES = ("system", "developer", "user", "assistant", "tool")


def message(fields: Fields) -> Message:
    """Return one message of a conversation. A thought of an earlier turn is left out, as R1's template does."""
    role = fields.choice("role", _ROLES)
    text = content(fields)
    calls = tuple(_call(call) for call in fields.objects("tool_calls")) if role == "assistant" else ()
    if text is None and not calls:
        raise fields.bad("content", "is missing")
    match role:
        case "developer" | "system":
            return Message("system", text or "")
        case "assistant":
            return Message("assistant", text or "", tool_calls=calls)
        case "tool":
            return Message("tool", text or "", tool_call_id=fields.text("tool_call_id"))
        case "user":
            return Message("user", text or "")
    raise fields.bad("role", "is missing")


def _call(call: Fields) -> ToolCall:
    function = call.inner("function")
    if function is None:
        raise call.bad("function", "is missing")
    return ToolCall(
        id=call.text("id") or "", name=function.needed_text("name"), arguments=function.text("arguments") or "{}"
    )
