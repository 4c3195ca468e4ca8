"""Routes that look at replies at work and steer them, whatever dialect asked for them."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.engine.control import Control
from r1mac.server.asked import BadRequest
from r1mac.server.bodies import read_object
from r1mac.server.fields import Fields
from r1mac.server.openai_chat import pace
from r1mac.server.replies import Replies, Running, error_response
from r1mac.server.wire_errors import Problem, openai_body

_LONGEST_HINT_CHARACTERS = 20_000

WISHES: Mapping[str, Callable[[Control], None]] = {
    "answer-now": Control.answer_now,
    "think-more": Control.think_more,
    "pause": Control.pause,
    "resume": Control.resume,
}


def routes(replies: Replies) -> list[Route]:
    """Return ``/r1mac/replies`` and what is below it."""

    async def every(_: Request) -> Response:
        return JSONResponse({"replies": [describe(running) for running in replies.all()]})

    async def one(request: Request) -> Response:
        running = replies.find(request.path_params["reply"])
        return _missing() if running is None else JSONResponse(describe(running))

    async def wish(request: Request) -> Response:
        running = replies.find(request.path_params["reply"])
        carry_out = WISHES.get(request.path_params["wish"])
        return _missing() if running is None or carry_out is None else _told(running, carry_out)

    async def cancel(request: Request) -> Response:
        running = replies.find(request.path_params["reply"])
        if running is not None:
            replies.cancel(running)
        return _missing() if running is None else _told(running, Control.cancel)

    async def hint(request: Request) -> Response:
        try:
            text = _hint(Fields(await read_object(request)))
        except BadRequest as error:
            return error_response(error, openai_body)
        running = replies.find(request.path_params["reply"])
        return _missing() if running is None else _told(running, lambda control: control.hint(text))

    return [
        Route("/r1mac/replies", every, methods=["GET"]),
        Route("/r1mac/replies/{reply}", one, methods=["GET"]),
        Route("/r1mac/replies/{reply}/hint", hint, methods=["POST"]),
        Route("/r1mac/replies/{reply}/cancel", cancel, methods=["POST"]),
        Route("/r1mac/replies/{reply}/{wish}", wish, methods=["POST"]),
    ]


def _told(running: Running, carry_out: Callable[[Control], None]) -> Response:
    """Tell all that are written for one request, and return where they are."""
    for job in running.jobs:
        carry_out(job.control)
    return JSONResponse(describe(running), status_code=202)


def describe(running: Running) -> dict[str, Any]:
    """Return where a reply is."""
    prefill = running.prefill
    return {
        "id": running.id,
        "state": _state(running),
        "seconds": time.monotonic() - running.begun_at_s,
        "prompt_tokens": prefill.total_tokens if prefill else None,
        "prompt_tokens_read": prefill.done_tokens if prefill else 0,
        "pace": pace(running.pace) if running.pace else None,
    }


def _state(running: Running) -> str:
    if any(job.control.cancelled for job in running.jobs):
        return "ending"
    if all(job.control.paused for job in running.jobs):
        return "paused"
    if running.channel is not None:
        return "thinking" if running.channel == "think" else "answering"
    return "waiting" if running.prefill is None else "reading"


def _hint(fields: Fields) -> str:
    text = fields.needed_text("text").strip()
    if not text:
        raise fields.bad("text", "is empty")
    if len(text) > _LONGEST_HINT_CHARACTERS:
        raise fields.bad("text", f"may have {_LONGEST_HINT_CHARACTERS:,} characters, and has {len(text):,}")
    return text


def _missing() -> Response:
    problem = Problem(
        status=404, message="no reply with that id is at work, or none can be told that", code="not_found"
    )
    return JSONResponse(openai_body(problem), status_code=404)
