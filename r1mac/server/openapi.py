"""``/openapi.json``: the routes in OpenAPI 3.1, for programs that write clients and for tests that try everything.

https://spec.openapis.org/oas/v3.1.1.html
"""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac import __version__
from r1mac.server import openapi_openai, openapi_others
from r1mac.server.contexts import LEAST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS
from r1mac.server.openapi_words import Json, array, boolean, choice, integer, maybe, number, obj, ref, string

_EVERYWHERE = (401, 403, 500)


def route() -> Route:
    """Return ``/openapi.json``."""
    body = document()

    async def openapi(_: Request) -> Response:
        return JSONResponse(body)

    return Route("/openapi.json", openapi, methods=["GET"])


def document() -> Json:
    """Return the whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "r1mac",
            "version": __version__,
            "description": "DeepSeek-R1 on this Mac, over the APIs of OpenAI, Anthropic and Ollama.",
        },
        # A server without a key asks for none.
        "security": [{"bearer": []}, {}],
        "paths": _paths(),
        "components": {
            "schemas": {**openapi_openai.SCHEMAS, **openapi_others.SCHEMAS, **_SCHEMAS},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }


def _paths() -> Json:
    return {
        "/v1/chat/completions": {"post": _reply("chat", "ChatRequest", "ChatCompletion", "One turn of a conversation")},
        "/v1/completions": {"post": _reply("complete", "CompletionRequest", "Completion", "A text continued")},
        "/v1/responses": {"post": _reply("respond", "ResponseRequest", "Response", "One turn, as a list of items")},
        "/v1/messages": {
            "post": _reply("message", "MessagesRequest", "AnthropicMessage", "One turn", error="AnthropicError")
        },
        "/v1/messages/count_tokens": {
            "post": _post("count", "MessagesRequest", "TokenCount", "A prompt's tokens", 404, error="AnthropicError")
        },
        "/api/chat": {"post": _ollama("ollamaChat", "OllamaChatRequest", "OllamaChatReply", "One turn")},
        "/api/generate": {"post": _ollama("generate", "OllamaGenerateRequest", "OllamaGenerateReply", "One text")},
        "/api/tags": {"get": _get("tags", "OllamaTags", "The models", error="OllamaError")},
        "/api/ps": {"get": _get("ps", "OllamaTags", "The model in memory", error="OllamaError")},
        "/api/version": {"get": _get("version", "OllamaVersion", "The API's version", error="OllamaError")},
        "/api/show": {
            "post": _post("show", "OllamaShowRequest", "OllamaShow", "About a model", 404, error="OllamaError")
        },
        "/v1/models": {"get": _get("models", "ModelList", "The models that can be asked for")},
        "/v1/models/{model}": {"get": _get("model", "Model", "One of them", parameter="model")},
        "/r1mac/state": {"get": _get("state", "State", "What the server does now")},
        "/r1mac/context": {"get": _context(), "post": _choose_context()},
        "/r1mac/replies": {"get": _get("replies", "Replies", "The replies at work")},
        "/r1mac/replies/{reply}": {"get": _get("reply", "Reply", "One of them", parameter="reply")},
        **{f"/r1mac/replies/{{reply}}/{wish}": {"post": _wish(wish, text)} for wish, text in _WISHES.items()},
        "/r1mac/replies/{reply}/hint": {"post": _hint()},
        "/r1mac/markup": {"post": _post("markup", "Markup", "Markdown", "Markdown and TeX as safe HTML")},
        "/health": {"get": _health()},
        "/metrics": {"get": _metrics()},
    }


_WISHES = {
    "answer-now": "Close the thought; the answer follows",
    "think-more": "Let the thought go on once more where it would end",
    "pause": "Wait",
    "resume": "Go on",
    "cancel": "End the reply",
}


def _reply(
    name: str, request: str, response: str, text: str, *, error: str = "Error", stream: str = "text/event-stream"
) -> Json:
    pieces = {"schema": ref("StreamEvent") if stream == "text/event-stream" else string()}
    return {
        "operationId": name,
        "summary": text,
        "requestBody": _body(request),
        "responses": {
            "200": _answer(ref(response), "The reply, or its pieces if «stream» is true", **{stream: pieces}),
            **_errors(400, 404, 413, 415, 503, schema=error),
        },
    }


def _ollama(name: str, request: str, response: str, text: str) -> Json:
    return _reply(name, request, response, text, error="OllamaError", stream="application/x-ndjson")


def _post(name: str, request: str, response: str, text: str, *statuses: int, error: str = "Error") -> Json:
    return {
        "operationId": name,
        "summary": text,
        "requestBody": _body(request),
        "responses": {"200": _answer(ref(response), text), **_errors(400, 413, 415, *statuses, schema=error)},
    }


def _get(name: str, schema: str, text: str, *, parameter: str | None = None, error: str = "Error") -> Json:
    return {
        "operationId": name,
        "summary": text,
        **({"parameters": [_in_path(parameter)]} if parameter else {}),
        "responses": {"200": _answer(ref(schema), text), **_errors(*((404,) if parameter else ()), schema=error)},
    }


def _wish(name: str, text: str) -> Json:
    return {
        "operationId": name,
        "summary": text,
        "parameters": [_in_path("reply")],
        "responses": {"202": _answer(ref("Reply"), "Where the reply is"), **_errors(404, 413)},
    }


def _hint() -> Json:
    return {
        "operationId": "hint",
        "summary": "Put a hint into the thought",
        "parameters": [_in_path("reply")],
        "requestBody": _body("Hint"),
        "responses": {"202": _answer(ref("Reply"), "Where the reply is"), **_errors(400, 404, 413, 415)},
    }


def _context() -> Json:
    return {
        "operationId": "context",
        "summary": "How long conversations with a model may be",
        "parameters": [{"name": "model", "in": "query", "required": False, "schema": string()}],
        "responses": {"200": _answer(ref("Context"), "What is planned, and what may be"), **_errors(404)},
    }


def _choose_context() -> Json:
    return {
        "operationId": "chooseContext",
        "summary": "Choose another context; it comes into force when the replies at work have ended",
        "requestBody": _body("ContextChoice"),
        "responses": {"202": _answer(ref("Context"), "It fits"), **_errors(400, 404, 413, 415, 503)},
    }


def _health() -> Json:
    described = _answer(ref("Health"), "Idle, or getting on")
    stuck = _answer(ref("Health"), "Nothing was written for a minute, or the server is stopping")
    return {
        "operationId": "health",
        "summary": "Whether the server lives",
        "responses": {"200": described, "503": stuck, **_errors()},
    }


def _metrics() -> Json:
    return {
        "operationId": "metrics",
        "summary": "Counts for Prometheus",
        "responses": {
            "200": {"description": "Prometheus' text format", "content": {"text/plain": {"schema": string()}}},
            **_errors(),
        },
    }


def _body(schema: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": ref(schema)}}}


def _answer(schema: Json, text: str, **more: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}, **more}}


def _errors(*statuses: int, schema: str = "Error") -> dict[str, Json]:
    return {str(status): _answer(ref(schema), _STATUSES[status]) for status in (*statuses, *_EVERYWHERE)}


_STATUSES = {
    400: "Something in the request cannot be meant",
    401: "The server has an API key, and the request has not",
    403: "The Host or Origin header is not this server's",
    404: "There is no such model or reply",
    413: "The request is too long",
    415: "The body is not said to be JSON",
    500: "Something broke",
    503: "Too much is asked for now; Retry-After says when to try again",
}


def _in_path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": string(minLength=1)}


_COUNT = integer(minimum=0)
_SCHEMAS: dict[str, Json] = {
    # https://html.spec.whatwg.org/multipage/server-sent-events.html
    "StreamEvent": obj(data=string(), optional={"event": string()}),
    "ModelList": obj(object=choice("list"), data=array(ref("Model"))),
    "Model": obj(
        id=string(),
        object=choice("model"),
        created=integer(),
        owned_by=string(),
        max_model_len=maybe(_COUNT),
        r1mac=obj(bits=maybe(_COUNT), size_bytes=_COUNT, loaded=boolean()),
    ),
    "State": obj(
        phase=choice("empty", "loading", "ready", "stopping"),
        model=maybe(string()),
        running=_COUNT,
        waiting=_COUNT,
        safe_tokens=maybe(integer()),
        context_tokens=maybe(_COUNT),
        next_context_tokens=maybe(_COUNT),
        longest_context_tokens=maybe(_COUNT),
    ),
    "Context": obj(
        model=string(),
        loaded=boolean(),
        context_tokens=_COUNT,
        next_context_tokens=maybe(_COUNT),
        chosen=boolean(),
        model_context_tokens=_COUNT,
        longest_context_tokens=_COUNT,
        kv_bits=_COUNT,
        budget_bytes=integer(),
        problem=maybe(string()),
        offers=array(obj(context_tokens=_COUNT, total_bytes=_COUNT, fits=boolean())),
    ),
    "ContextChoice": obj(
        context_tokens=integer(minimum=LEAST_CONTEXT_TOKENS, maximum=MOST_CONTEXT_TOKENS),
        optional={"model": string()},
    ),
    "Replies": obj(replies=array(ref("Reply"))),
    "Reply": obj(
        id=string(),
        state=choice("waiting", "reading", "thinking", "answering", "paused", "ending"),
        seconds=number(),
        prompt_tokens=maybe(_COUNT),
        prompt_tokens_read=_COUNT,
        pace=maybe(obj(tokens=_COUNT, tokens_per_s=maybe(number()), left_seconds=maybe(number()))),
    ),
    "Hint": obj(text=string(minLength=1)),
    "Markup": obj(text=string()),
    "Markdown": obj(html=string(), settled_html=string(), settled_lines=_COUNT, open_html=string()),
    "Health": obj(
        status=choice("idle", "loading", "working", "stuck", "stopping"),
        model=maybe(string()),
        running=_COUNT,
        waiting=_COUNT,
        seconds_since_progress=maybe(number()),
    ),
    "Error": obj(
        error=obj(message=string(), type=string(), param=maybe(string()), code=maybe(string())),
    ),
}
