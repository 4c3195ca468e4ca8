"""All routes as one application."""

from collections.abc import Collection
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.server import (
    anthropic,
    anthropic_routes,
    context_routes,
    health,
    metrics,
    models,
    ollama,
    ollama_routes,
    openai_chat,
    openai_completions,
    openai_responses,
    openapi,
    page,
    steering,
)
from r1mac.server.dialect import Dialect
from r1mac.server.limits import Limits
from r1mac.server.measures import Measures
from r1mac.server.replies import Replies
from r1mac.server.security import Security
from r1mac.server.state import WorkerLike
from r1mac.server.wire_errors import ErrorBody, Problem, openai_body, problem_of

OPENAI_CHAT = Dialect(id_prefix="chatcmpl-", parse=openai_chat.parse, writer=openai_chat.Writer, error_body=openai_body)
OPENAI_COMPLETIONS = replace(
    OPENAI_CHAT, id_prefix="cmpl-", parse=openai_completions.parse, writer=openai_completions.Writer
)
OPENAI_RESPONSES = replace(OPENAI_CHAT, id_prefix="resp_", parse=openai_responses.parse, writer=openai_responses.Writer)


def make_app(
    worker: WorkerLike,
    *,
    api_key: str | None = None,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    limits: Limits | None = None,
) -> Starlette:
    """Return the application that serves *worker*'s models.

    Args:
        worker: what writes the replies.
        api_key: what clients must say; None lets everybody in who reaches the socket.
        hosts: names by which clients may call this computer, beside its addresses and ``localhost``.
        origins: web pages of other servers that may call this one, such as ``http://localhost:3000``.
        limits: how much clients may send, and how long anybody waits.
    """
    limits = limits or Limits()
    measures = Measures()
    replies = Replies(worker, measures, limits)
    routes = [
        Route("/v1/chat/completions", replies.endpoint(OPENAI_CHAT), methods=["POST"]),
        Route("/v1/completions", replies.endpoint(OPENAI_COMPLETIONS), methods=["POST"]),
        Route("/v1/responses", replies.endpoint(OPENAI_RESPONSES), methods=["POST"]),
        *anthropic_routes.routes(replies),
        *ollama_routes.routes(replies),
        *models.routes(worker),
        *context_routes.routes(worker),
        *steering.routes(replies),
        *health.routes(worker),
        *metrics.routes(worker, measures),
        *page.routes(),
        openapi.route(),
    ]
    guard = Middleware(
        Security,
        api_key=api_key,
        hosts=frozenset(hosts),
        origins=frozenset(origins),
        limits=limits,
        error_body=_error_body,
    )
    handlers = {HTTPException: _refused, Exception: _broken}
    return Starlette(routes=routes, middleware=[guard], exception_handlers=handlers)


def _error_body(path: str) -> ErrorBody:
    """Return the shape that errors have below a path."""
    if path.startswith("/v1/messages"):
        return anthropic.error_body
    return ollama.error_body if path.startswith("/api/") else openai_body


async def _refused(request: Request, error: Exception) -> Response:
    """Say in the client's shape that there is no such route, or not with this method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}; GET /openapi.json lists what there is"
    problem = Problem(status=error.status_code, message=message, code="not_found")
    return JSONResponse(_error_body(request.url.path)(problem), status_code=error.status_code, headers=error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    """Say in the client's shape that something broke here; the server logs what."""
    return JSONResponse(_error_body(request.url.path)(problem_of(error)), status_code=500)
