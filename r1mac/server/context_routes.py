"""``/r1mac/context``: how long conversations may be, and another length of them."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.errors import DoesNotFit, R1MacError
from r1mac.server.asked import BadRequest
from r1mac.server.bodies import read_object
from r1mac.server.contexts import LEAST_CONTEXT_TOKENS, MOST_CONTEXT_TOKENS
from r1mac.server.fields import Fields
from r1mac.server.replies import error_response
from r1mac.server.state import Contexts, WorkerLike
from r1mac.server.wire_errors import Problem, openai_body, problem_of


def routes(worker: WorkerLike) -> list[Route]:
    """Return ``/r1mac/context``."""

    async def show(request: Request) -> Response:
        return await _told(200, worker.contexts, request.query_params.get("model") or None)

    async def choose(request: Request) -> Response:
        try:
            fields = Fields(await read_object(request))
            model = fields.text("model") or None
            tokens = fields.integer("context_tokens", least=LEAST_CONTEXT_TOKENS, most=MOST_CONTEXT_TOKENS)
            if tokens is None:
                raise fields.bad("context_tokens", "is missing")
        except BadRequest as error:
            return error_response(error, openai_body)
        return await _told(202, worker.choose_context, model, tokens)

    return [
        Route("/r1mac/context", show, methods=["GET"]),
        Route("/r1mac/context", choose, methods=["POST"]),
    ]


async def _told(status: int, ask: Callable[..., Contexts], *said: Any) -> Response:
    try:
        return JSONResponse(asdict(await run_in_threadpool(ask, *said)), status_code=status)
    except DoesNotFit as error:
        # Not now and not later: the number is to be another.
        problem = Problem(status=400, message=problem_of(error).message, code="does_not_fit", field="context_tokens")
        return JSONResponse(openai_body(problem), status_code=problem.status)
    except R1MacError as error:
        return error_response(error, openai_body)
