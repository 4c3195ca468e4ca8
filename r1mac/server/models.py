"""``/v1/models``: what can be asked for, with the fields of OpenAI's API and of Anthropic's, whose clients share it."""

from datetime import UTC, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.errors import UnknownModel
from r1mac.server.replies import error_response
from r1mac.server.state import ServedModel, WorkerLike
from r1mac.server.wire_errors import openai_body


def routes(worker: WorkerLike) -> list[Route]:
    """Return ``/v1/models`` and ``/v1/models/{model}``."""

    async def every(_: Request) -> Response:
        models = [describe(model) for model in await run_in_threadpool(worker.models)]
        ids = [model["id"] for model in models] or [None]
        return JSONResponse(
            {"object": "list", "data": models, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}
        )

    async def one(request: Request) -> Response:
        name = request.path_params["model"]
        found = next((model for model in await run_in_threadpool(worker.models) if model.name == name), None)
        if found is None:
            error = UnknownModel(f"no model is called «{name[:80]}» here", hint="GET /v1/models names those that are")
            return error_response(error, openai_body)
        return JSONResponse(describe(found))

    return [
        Route("/v1/models", every, methods=["GET"]),
        # A name may have a slash, as on the Hub.
        Route("/v1/models/{model:path}", one, methods=["GET"]),
    ]


def describe(model: ServedModel) -> dict[str, Any]:
    """Return a model as both APIs have it."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.stored_at_s),
        "owned_by": "r1mac",
        "type": "model",
        "display_name": model.title,
        "created_at": datetime.fromtimestamp(model.stored_at_s, UTC).isoformat(),
        # vLLM's name for it, which some clients read.
        "max_model_len": model.context_tokens,
        "r1mac": {"bits": model.bits, "size_bytes": model.size_bytes, "loaded": model.loaded},
    }
