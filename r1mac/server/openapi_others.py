"""What requests and replies of Anthropic's and Ollama's APIs look like here, as JSON Schema."""

from r1mac.server.openapi_openai import LONGEST_NUMBER, SAMPLING
from r1mac.server.openapi_words import Json, array, boolean, choice, integer, maybe, number, obj, one_of, string

_MOST = 2**63 - 1
_TEXT_BLOCK = obj(type=choice("text"), text=string())
_TEXTS = one_of(string(), array(_TEXT_BLOCK))
_USER_BLOCK = one_of(
    _TEXT_BLOCK,
    obj(type=choice("tool_result"), tool_use_id=string(), optional={"content": _TEXTS, "is_error": boolean()}),
)
_MODEL_BLOCK = one_of(
    _TEXT_BLOCK,
    obj(type=choice("tool_use"), id=string(), name=string(), optional={"input": {"type": "object"}}),
    obj(type=choice("thinking")),
)
_ANTHROPIC_SAMPLING = {name: SAMPLING[name] for name in ("temperature", "top_p", "top_k")}

_OLLAMA_OPTIONS = obj(
    optional={
        "num_ctx": integer(maximum=_MOST, minimum=-_MOST),
        "num_predict": one_of(integer(minimum=1, maximum=_MOST), {"enum": [-1, -2]}),
        "temperature": number(minimum=0, maximum=LONGEST_NUMBER),
        "top_p": number(exclusiveMinimum=0, maximum=1),
        "min_p": number(minimum=0, maximum=1),
        "top_k": integer(minimum=-1, maximum=_MOST),
        "seed": integer(minimum=-1, maximum=_MOST),
        "stop": one_of(string(), array(string(), maxItems=64)),
    }
)
_OLLAMA_COMMON = {
    "stream": boolean(),
    "think": one_of(boolean(), choice("low", "medium", "high")),
    "format": one_of(choice("", "json"), {"type": "object"}),
    "options": _OLLAMA_OPTIONS,
}
_OLLAMA_DONE = {"model": string(), "created_at": string(), "done": {"const": True}}
_LISTED = obj(name=string(), model=string(), size=integer(minimum=0), digest=string(), details={"type": "object"})

SCHEMAS: dict[str, Json] = {
    "MessagesRequest": obj(
        messages=array(
            one_of(
                obj(role=choice("user"), content=one_of(string(), array(_USER_BLOCK))),
                obj(role=choice("assistant"), content=one_of(string(), array(_MODEL_BLOCK))),
            ),
            minItems=1,
        ),
        optional={
            "model": string(),
            "max_tokens": integer(minimum=1, maximum=_MOST),
            "system": _TEXTS,
            "stream": boolean(),
            "stop_sequences": array(string()),
            "thinking": obj(
                optional={
                    "type": choice("enabled", "adaptive", "between_tools", "disabled"),
                    "budget_tokens": integer(minimum=1, maximum=_MOST),
                }
            ),
            "tools": array(
                obj(name=string(minLength=1), optional={"description": string(), "input_schema": {"type": "object"}})
            ),
            **_ANTHROPIC_SAMPLING,
        },
    ),
    "AnthropicMessage": obj(
        id=string(),
        type=choice("message"),
        role=choice("assistant"),
        model=string(),
        content=array(obj(type=choice("text", "thinking", "tool_use"))),
        stop_reason=maybe(string()),
        usage=obj(input_tokens=integer(minimum=0), output_tokens=integer(minimum=0)),
    ),
    "TokenCount": obj(input_tokens=integer(minimum=0)),
    "AnthropicError": obj(type=choice("error"), error=obj(type=string(), message=string())),
    "OllamaChatRequest": obj(
        model=string(),
        optional={
            "messages": array(obj(role=choice("system", "user", "assistant", "tool"), optional={"content": string()})),
            "tools": array(obj(function=obj(name=string(minLength=1)))),
            **_OLLAMA_COMMON,
        },
    ),
    "OllamaChatReply": obj(message=obj(role=choice("assistant"), content=string()), **_OLLAMA_DONE),
    "OllamaGenerateRequest": obj(
        model=string(), optional={"prompt": string(), "system": string(), "raw": boolean(), **_OLLAMA_COMMON}
    ),
    "OllamaGenerateReply": obj(response=string(), **_OLLAMA_DONE),
    "OllamaTags": obj(models=array(_LISTED)),
    "OllamaShowRequest": one_of(obj(model=string(minLength=1)), obj(name=string(minLength=1))),
    "OllamaShow": obj(details={"type": "object"}, model_info={"type": "object"}, capabilities=array(string())),
    "OllamaVersion": obj(version=string()),
    "OllamaError": obj(error=string()),
}
