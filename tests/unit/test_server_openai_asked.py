"""OpenAI's requests to what is asked: every field, and what is wrong by its name."""

import json

import pytest

from r1mac.engine.request import GenerateRequest, Message, ToolCall
from r1mac.server import openai_chat, openai_completions, openai_responses
from r1mac.server.asked import BadRequest

USER = {"role": "user", "content": "x"}
WEATHER = {"name": "weather", "description": "tells it", "parameters": {"type": "object", "properties": {"city": {}}}}
TOOL = {"type": "function", "function": WEATHER}


def _chat(**fields):
    return openai_chat.parse({"messages": [USER], **fields})


def test_a_bare_request_leaves_everything_to_the_server():
    """Without more than a message nothing but the conversation is said."""
    asked = _chat()

    assert asked.messages == (Message("user", "x"),)
    defaults = GenerateRequest(messages=(), max_tokens=77)
    assert asked.request(defaults) == GenerateRequest(messages=asked.messages, max_tokens=77)
    assert (asked.stream, asked.replies, asked.model, asked.logprobs) == (False, 1, None, None)


def test_null_is_a_field_that_was_left_out():
    """Clients send null for what they do not set."""
    names = (
        "temperature",
        "tools",
        "tool_choice",
        "stop",
        "n",
        "seed",
        "response_format",
        "stream",
        "logit_bias",
        "reasoning",
    )

    assert _chat(**dict.fromkeys(names)) == _chat()


def test_sampling_arrives_whole():
    """Each number has its place; -1 means all of the likeliest, and a negative seed is one too."""
    asked = _chat(
        temperature=1, top_p=0.5, top_k=-1, min_p=0.2, repetition_penalty=1.1, seed=-3, logit_bias={"7": -100}
    )

    assert asked.sampling == {
        "temperature": 1,
        "top_p": 0.5,
        "min_p": 0.2,
        "repetition_penalty": 1.1,
        "top_k": 0,
        "seed": 2**63 - 3,
        "logit_bias": ((7, -100),),
    }


@pytest.mark.parametrize(
    ("said", "think", "tokens"),
    [
        ({"reasoning_effort": "none"}, False, None),
        ({"reasoning_effort": "minimal"}, True, 512),
        ({"reasoning_effort": "low"}, True, 2048),
        ({"reasoning_effort": "medium"}, True, 8192),
        ({"reasoning_effort": "high"}, True, None),
        ({"reasoning_effort": "xhigh"}, True, None),
        ({"reasoning": {"effort": "low"}}, True, 2048),
        ({"reasoning": {"max_tokens": 300}}, True, 300),
        ({"reasoning": {"effort": "high", "max_tokens": 300}}, True, 300),
        ({"reasoning": {"max_tokens": 0}}, False, None),
        ({"reasoning": {"enabled": False}}, False, None),
        ({"thinking": {"type": "disabled"}}, False, None),
        ({"thinking": {"type": "enabled"}}, True, None),
        ({}, None, None),
    ],
)
def test_effort_is_a_budget_of_thought(said, think, tokens):
    """Each client's way to say how long to think is the same budget; nothing said leaves it to the model."""
    asked = _chat(**said)

    assert (asked.think, asked.think_tokens) == (think, tokens)


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 3.0}, 3),
    ],
)
def test_the_newer_limit_counts(said, most):
    """max_completion_tokens is max_tokens' newer name, and -1 is no limit."""
    assert _chat(**said).max_tokens == most


def test_a_conversation_keeps_roles_parts_calls_and_results():
    """Developers are systems, parts are joined, calls stay with their turn, and thoughts are left out."""
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    asked = openai_chat.parse(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "How is "}, {"type": "text", "text": "Bonn?"}]},
                {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            ]
        }
    )

    assert asked.messages == (
        Message("system", "Be brief."),
        Message("user", "How is Bonn?"),
        Message("assistant", "", tool_calls=(ToolCall(id="call_1", name="weather", arguments='{"city": "Bonn"}'),)),
        Message("tool", "rain", tool_call_id="call_1"),
    )


@pytest.mark.parametrize(
    ("choice", "offered", "must_call"),
    [
        (None, ["weather", "time"], False),
        ("auto", ["weather", "time"], False),
        ("none", [], False),
        ("required", ["weather", "time"], True),
        ({"type": "function", "function": {"name": "time"}}, ["time"], "time"),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "time"}}]}},
            ["time"],
            True,
        ),
    ],
)
def test_a_choice_of_functions_narrows_the_offer(choice, offered, must_call):
    """What may be called and what must be follows tool_choice; a function without parameters takes an empty object."""
    asked = _chat(tools=[TOOL, {"type": "function", "function": {"name": "time"}}], tool_choice=choice)

    assert [tool["function"]["name"] for tool in asked.tools] == offered
    assert asked.must_call == must_call
    assert all(tool["function"]["parameters"]["type"] == "object" for tool in asked.tools)


@pytest.mark.parametrize(
    ("said", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "array"}}}, {"type": "array"}),
    ],
)
def test_a_format_is_a_schema(said, schema):
    """JSON mode is the schema of any object."""
    answer_format = _chat(response_format=said).answer_format

    assert (None if answer_format is None else json.loads(answer_format.text)) == schema


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
        ({"model": 3}, "model"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"seed": "7"}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"07": 1}}, "logit_bias.07"),
        ({"logit_bias": {"7": 101}}, "logit_bias"),
        ({"stop": [3]}, "stop[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {}}, "response_format.type"),
        ({"tools": [TOOL], "tool_choice": {"name": "weather"}}, "tool_choice.type"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "time"}}}, "tool_choice.name"),
    ],
)
def test_what_is_wrong_is_named(fields, name):
    """A wrong type or value is refused by its field's name, in a sentence."""
    with pytest.raises(BadRequest) as caught:
        _chat(**fields)

    assert caught.value.field == name
    assert name in caught.value.problem


def test_a_completion_is_a_raw_prompt():
    """The older API's text goes to the model as it stands; what r1mac has not is refused."""
    asked = openai_completions.parse({"prompt": ["Once"], "logprobs": 2, "best_of": 1})

    assert (asked.raw_prompt, asked.messages, asked.think, asked.logprobs) == ("Once", (), False, 2)
    for fields in ({}, {"prompt": ""}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {"prompt": "x", "echo": True}):
        with pytest.raises(BadRequest):
            openai_completions.parse(fields)


def test_items_of_a_response_are_a_conversation():
    """Calls and texts of one turn are joined, thoughts skipped, and instructions come first."""
    asked = openai_responses.parse(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Bonn?"}]},
                {"type": "reasoning", "summary": []},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
                {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
                {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            ],
            "tools": [{"type": "function", **WEATHER}],
            "tool_choice": {"type": "function", "name": "weather"},
            "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_object"}},
        }
    )

    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "tool"]
    turn = asked.messages[2]
    assert (turn.text, [call.id for call in turn.tool_calls]) == ("I look.", ["c1", "c2"])
    assert (asked.must_call, asked.think_tokens, asked.messages[3].tool_call_id) == ("weather", 2048, "c1")
    assert asked.answer_format is not None


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output"),
    ],
)
def test_what_needs_a_store_is_refused(fields, name):
    """Nothing is kept between requests, and the refusal says so by the field's name."""
    with pytest.raises(BadRequest) as caught:
        openai_responses.parse({"input": "x", **fields})

    assert caught.value.field == name
