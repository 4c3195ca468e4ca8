"""What requests and replies of OpenAI's APIs look like here, as JSON Schema."""

from r1mac.server.openai_asked import BIASED_PATTERN, EFFORTS, MOST_LOGPROBS, MOST_REPLIES, MOST_STOPS
from r1mac.server.openapi_words import Json, array, boolean, choice, integer, maybe, number, obj, one_of, ref, string

_MOST = 2**63 - 1
# OpenAI has no limit for it, and no number needs to be longer.
LONGEST_NUMBER = 2**53

_TEXT_PART = obj(type=choice("text", "input_text", "output_text"), text=string())
_CONTENT = one_of(string(), array(_TEXT_PART))
_CALLS = array(
    obj(function=obj(name=string(), optional={"arguments": string()}), optional={"id": string()}), minItems=1
)
SAMPLING = {
    "temperature": number(minimum=0, maximum=LONGEST_NUMBER),
    "top_p": number(exclusiveMinimum=0, maximum=1),
    "top_k": integer(minimum=-1, maximum=_MOST),
    "min_p": number(minimum=0, maximum=1),
    "repetition_penalty": number(exclusiveMinimum=0, maximum=10),
    "presence_penalty": number(minimum=-2, maximum=2),
    "frequency_penalty": number(minimum=-2, maximum=2),
    "seed": integer(minimum=-_MOST, maximum=_MOST),
    "logit_bias": {
        "type": "object",
        "propertyNames": {"pattern": f"^({BIASED_PATTERN})$"},
        "additionalProperties": maybe(number(minimum=-100, maximum=100)),
    },
}
_LIMIT = one_of(integer(minimum=1, maximum=_MOST), {"const": -1})
_STOP = one_of(string(), array(string(), maxItems=MOST_STOPS))
_EFFORT = choice(*EFFORTS)
_FORMAT = one_of(
    obj(type=choice("text", "json_object")),
    obj(type=choice("json_schema"), json_schema=obj(schema={"type": "object"})),
)
_FUNCTION = obj(name=string(minLength=1), optional={"description": string(), "parameters": {"type": "object"}})
_TOOLS = array(obj(type=choice("function"), function=_FUNCTION))
_TOOL_CHOICE = one_of(choice("none", "auto", "required"), obj(type=choice("function"), function=obj(name=string())))
_COMMON = {
    "model": string(),
    "stream": boolean(),
    "stream_options": obj(optional={"include_usage": boolean()}),
    "stop": _STOP,
    "r1mac": obj(optional={"events": boolean()}),
    **SAMPLING,
}
_USAGE = obj(prompt_tokens=integer(), completion_tokens=integer(), total_tokens=integer())
_FINISH = choice("stop", "length", "tool_calls")

SCHEMAS: dict[str, Json] = {
    "Message": one_of(
        obj(role=choice("system", "developer", "user"), content=_CONTENT),
        obj(role=choice("tool"), content=_CONTENT, optional={"tool_call_id": string()}),
        obj(role=choice("assistant"), content=_CONTENT, optional={"tool_calls": _CALLS}),
        obj(role=choice("assistant"), tool_calls=_CALLS, optional={"content": _CONTENT}),
    ),
    "ChatRequest": obj(
        messages=array(ref("Message"), minItems=1),
        optional={
            **_COMMON,
            "n": integer(minimum=1, maximum=MOST_REPLIES),
            "max_tokens": _LIMIT,
            "max_completion_tokens": _LIMIT,
            "logprobs": boolean(),
            "top_logprobs": integer(minimum=0, maximum=MOST_LOGPROBS),
            "response_format": _FORMAT,
            "tools": _TOOLS,
            "tool_choice": _TOOL_CHOICE,
            "reasoning_effort": _EFFORT,
            "reasoning": obj(
                optional={"effort": _EFFORT, "max_tokens": integer(minimum=0, maximum=_MOST), "enabled": boolean()}
            ),
            "thinking": obj(optional={"type": choice("enabled", "disabled", "auto")}),
        },
    ),
    "ChatCompletion": obj(
        id=string(),
        object=choice("chat.completion"),
        created=integer(),
        model=string(),
        choices=array(
            obj(
                index=integer(),
                finish_reason=_FINISH,
                message=obj(
                    role=choice("assistant"),
                    content=maybe(string()),
                    optional={"reasoning_content": string(), "reasoning": string(), "tool_calls": _CALLS},
                ),
            )
        ),
        usage=_USAGE,
    ),
    "CompletionRequest": obj(
        prompt=one_of(string(minLength=1), array(string(minLength=1), minItems=1, maxItems=1)),
        optional={
            **_COMMON,
            "n": integer(minimum=1, maximum=MOST_REPLIES),
            "max_tokens": _LIMIT,
            "logprobs": integer(minimum=0, maximum=MOST_LOGPROBS),
            "response_format": _FORMAT,
            "echo": {"const": False},
        },
    ),
    "Completion": obj(
        id=string(),
        object=choice("text_completion"),
        created=integer(),
        model=string(),
        choices=array(obj(index=integer(), finish_reason=_FINISH, text=string())),
        usage=_USAGE,
    ),
    "ResponseRequest": obj(
        input=one_of(string(), array(ref("Item"), minItems=1)),
        optional={
            **{name: schema for name, schema in _COMMON.items() if name != "stream_options"},
            "instructions": string(),
            "max_output_tokens": _LIMIT,
            "top_logprobs": integer(minimum=0, maximum=MOST_LOGPROBS),
            "include": one_of(string(), array(string())),
            "reasoning": obj(optional={"effort": _EFFORT, "max_tokens": integer(minimum=0, maximum=_MOST)}),
            "text": obj(
                optional={
                    "format": one_of(
                        obj(type=choice("text", "json_object")),
                        obj(type=choice("json_schema"), schema={"type": "object"}),
                    )
                }
            ),
            "tools": array(
                obj(
                    type=choice("function"),
                    name=string(minLength=1),
                    optional={"description": string(), "parameters": {"type": "object"}},
                )
            ),
            "tool_choice": one_of(
                choice("none", "auto", "required"), obj(type=choice("function"), name=string(minLength=1))
            ),
        },
    ),
    "Item": one_of(
        obj(
            role=choice("system", "developer", "user", "assistant"),
            content=_CONTENT,
            optional={"type": choice("message")},
        ),
        obj(type=choice("function_call"), call_id=string(), name=string(), optional={"arguments": string()}),
        obj(type=choice("function_call_output"), call_id=string(), output=_CONTENT),
        obj(type=choice("reasoning")),
    ),
    "Response": obj(
        id=string(),
        object=choice("response"),
        created_at=integer(),
        status=choice("completed", "incomplete", "failed", "in_progress"),
        model=string(),
        output=array(obj(type=choice("message", "reasoning", "function_call"), id=string())),
        usage=maybe(obj(input_tokens=integer(), output_tokens=integer(), total_tokens=integer())),
    ),
}
