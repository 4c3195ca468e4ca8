"""Whatever is sent: the routes do what /openapi.json says, and none of them breaks.

R1MAC_FUZZ_EXAMPLES=200 tries more of everything.
"""

import json
import os
import random
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from r1mac.server import openapi
from r1mac.server.app import make_app
from tests.http_server import Reciter, Served, served
from tests.http_talk import ask, eventually

EXAMPLES = int(os.environ.get("R1MAC_FUZZ_EXAMPLES", "3"))
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
)
# Ollama's routes for what r1mac does at the command line say so with 501; the page's files are no API.
UNDESCRIBED = ("/", "/openapi.json", "/r1mac/web/", "/r1mac/replies/{reply}/{wish}")


_TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "rain"}]},
    {"role": "user", "content": "x"},
]
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}}
_SAID = {
    "model": "reciter",
    "stream": True,
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 3,
    "stop": ["a"],
    "max_tokens": 9,
}
BODIES = {
    "/v1/chat/completions": {
        **_SAID,
        "messages": _TALK,
        "tools": [{"type": "function", "function": _FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "logit_bias": {"5": 1},
        "reasoning": {"effort": "low"},
        "stream_options": {"include_usage": True},
        "n": 2,
        "logprobs": True,
    },
    "/v1/completions": {**_SAID, "prompt": "x", "logprobs": 2, "seed": 3},
    "/v1/responses": {
        "model": "reciter",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}, {"type": "reasoning"}],
        "text": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "reasoning": {"effort": "none"},
    },
    "/v1/messages": {
        **_SAID,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    },
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "x"}], "system": "y"},
    "/api/chat": {
        "model": "reciter",
        "messages": [{"role": "user", "content": "x", "images": []}],
        "options": {"temperature": 0.1, "num_predict": 3, "stop": ["x"], "num_ctx": 4096},
        "format": "json",
        "think": "low",
    },
    "/api/generate": {"model": "reciter", "prompt": "x", "system": "y", "stream": False, "options": {"seed": 1}},
    "/r1mac/markup": {"text": "# x $y$"},
    "/r1mac/context": {"model": "reciter", "context_tokens": 4096},
}
JUNK = (
    *(None, True, 0, -1, 1.5, 1e308, -(2**70), 10**400, "", "x", "\x00", "🙂" * 50, "</think>", "\u2028"),
    *([], {}, [[]], [None], {"": {}}, {"type": 3}, {"type": "text"}, [{"role": []}], "9" * 5000, list(range(500))),
)


@pytest.fixture(name="server", scope="module")
def _server() -> Iterator[Served]:
    with served(Reciter(lambda _: "hm\n</think>\n\nfour")) as server:
        yield server


_SCHEMA = schemathesis.openapi.from_dict(openapi.document())
_OPERATIONS = {operation.ok().label: operation.ok() for operation in _SCHEMA.get_all_operations()}
# A request without a body has nothing that could be wrong.
_TRIES = [
    (label, mode)
    for label, operation in _OPERATIONS.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or operation.body
]


@pytest.mark.parametrize(("label", "mode"), _TRIES)
def test_every_route_does_what_the_document_says(server, label, mode):
    """Requests that fit the document and requests that do not get an answer that fits it, and never a 5xx."""

    @given(case=_OPERATIONS[label].as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    def every(case):
        case.call_and_validate(base_url=f"http://127.0.0.1:{server.port}", checks=CHECKS, timeout=30)

    every()


@pytest.mark.parametrize("path", BODIES)
def test_a_broken_body_breaks_nothing(server, path):
    """Bodies with anything in any place, and bodies with wrong bytes, get an answer below 500 and leave nothing behind."""
    dice = random.Random(path)
    for _ in range(50 * EXAMPLES):
        value = json.dumps(_broken(BODIES[path], dice, places=dice.randint(1, 3))).encode()
        body = bytearray(value)
        for _ in range(dice.choice((0, 0, 1, 5))):
            body[dice.randrange(len(body))] = dice.randrange(256)
        answer = ask(server.port, path, bytes(body))
        assert answer.status < 500, (bytes(body), answer)

    eventually(lambda: server.is_idle)


def _broken(value: object, dice: random.Random, *, places: int) -> object:
    """Return *value* with junk in some places, a field less, or one more level around it."""
    value = json.loads(json.dumps(value))
    for _ in range(places):
        place: object = value
        while isinstance(place, dict | list) and place:
            key = dice.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if not isinstance(place[key], dict | list) or not place[key] or dice.random() < 0.4:
                if isinstance(place, dict) and dice.random() < 0.2:
                    del place[key]
                else:
                    place[key] = json.loads(json.dumps(dice.choice((*JUNK, [place[key]] * 3, {"type": place[key]}))))
                break
            place = place[key]
    return value


def test_every_route_is_in_the_document(server):
    """What is served is described, and what is described is served."""
    routes = {
        (method, route.path.replace(":path", ""))
        for route in make_app(server.worker).routes
        for method in route.methods - {"HEAD"}
        if not route.path.startswith(UNDESCRIBED[2]) and route.path not in UNDESCRIBED
    }
    elsewhere = {
        (method, path) for method, path in routes if ask(server.port, path, method=method, body=b"").status == 501
    }
    paths = openapi.document()["paths"]
    described = {(method.upper(), path) for path, operations in paths.items() for method in operations}

    assert {path.rpartition("/")[0] for method, path in described - routes} <= {"/r1mac/replies/{reply}"}
    assert routes - described == elsewhere
