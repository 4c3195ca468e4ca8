"""The routes of Ollama's API."""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac import __version__
from r1mac.errors import R1MacError, UnknownModel
from r1mac.server import ollama
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.bodies import read_object
from r1mac.server.dialect import Dialect, WriterMaker
from r1mac.server.fields import Fields
from r1mac.server.job import Job
from r1mac.server.replies import Replies, error_response
from r1mac.server.sse import as_line
from r1mac.server.state import ServedModel
from r1mac.server.wire_errors import Problem

# Some programs speak to no Ollama older than what they need; this is the one whose API these routes have.
_API_VERSION = "0.12.0"

# What Ollama does and these routes do not, with what does it.
_ELSEWHERE = {
    "pull": "a model is fetched with `r1mac pull MODEL`",
    "push": "a model is uploaded with `r1mac push MODEL REPO`",
    "create": "a model is made with `r1mac convert SOURCE`",
    "copy": "models have one name each; `r1mac list` shows them",
    "delete": "a model is deleted with `r1mac rm MODEL`",
    "embed": "R1's models write text and give no embeddings",
    "embeddings": "R1's models write text and give no embeddings",
    "blobs/{digest:path}": "a model is made with `r1mac convert SOURCE`",
}


@dataclass(frozen=True, slots=True)
class _Api:
    """One of the two APIs that have a model write."""

    kind: ollama.Kind
    parse: Callable[[Mapping[str, Any]], Asked]


_CHAT, _GENERATE = _Api("chat", ollama.parse_chat), _Api("generate", ollama.parse_generate)


def routes(replies: Replies) -> list[Route]:
    """Return the routes that answer with *replies*."""
    worker = replies.worker

    def context_of(model: ServedModel) -> int | None:
        return worker.state().context_tokens if model.loaded else model.context_tokens

    async def tags(_: Request) -> Response:
        return JSONResponse({"models": [_listed(model) for model in await run_in_threadpool(worker.models)]})

    async def running(_: Request) -> Response:
        models = await run_in_threadpool(worker.models)
        return JSONResponse({"models": [_running(model, context_of(model)) for model in models if model.loaded]})

    async def show(request: Request) -> Response:
        try:
            fields = Fields(await read_object(request, any_type=True))
            name = fields.text("model") or fields.needed_text("name")
            found, *_ = await _named(replies, name)
            return JSONResponse(_shown(found, context_of(found)))
        except (BadRequest, R1MacError) as error:
            return error_response(error, ollama.error_body)

    return [
        Route("/api/chat", _endpoint(replies, _CHAT), methods=["POST"]),
        Route("/api/generate", _endpoint(replies, _GENERATE), methods=["POST"]),
        Route("/api/tags", tags, methods=["GET"]),
        Route("/api/ps", running, methods=["GET"]),
        Route("/api/show", show, methods=["POST"]),
        Route("/api/version", _version, methods=["GET"]),
        *(Route(f"/api/{path}", _elsewhere(why), methods=["POST", "DELETE"]) for path, why in _ELSEWHERE.items()),
    ]


def _endpoint(replies: Replies, api: _Api) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        begun_at_s = time.perf_counter()
        try:
            body = await read_object(request, any_type=True)
            asked = api.parse(body)
            if not asked.messages and asked.raw_prompt is None:
                return await _load(replies, api, asked)

            def writer(reply_id: str, asked: Asked, **said: Any) -> ollama.Writer:
                # Made when the reply begins: the context may have grown for it.
                state = replies.worker.state()
                notices = ollama.unheard(body, state.context_tokens, state.longest_context_tokens)
                return ollama.Writer(reply_id, asked, **said, kind=api.kind, begun_at_s=begun_at_s, notices=notices)

            return replies.answer(asked, _dialect(api, writer))
        except (BadRequest, R1MacError) as error:
            return error_response(error, ollama.error_body)

    return answer


def _dialect(api: _Api, writer: WriterMaker) -> Dialect:
    return Dialect(
        id_prefix="ollama-",
        parse=api.parse,
        writer=writer,
        error_body=ollama.error_body,
        frame=as_line,
        media_type="application/x-ndjson",
        # A blank before a line of JSON; an empty line is more than Ollama's own client reads.
        keep_alive=b" ",
        any_content_type=True,
    )


async def _load(replies: Replies, api: _Api, asked: Asked) -> Response:
    """Load the model that a request without a question names, by having it write one token, and let go of it again."""
    kept = asked.keep_loaded_seconds
    stays = kept != 0
    said = JSONResponse(ollama.loaded(api.kind, asked.model or "", stays=stays))
    if not stays and not any(model.loaded for model in await _named(replies, asked.model)):
        return said
    wanted = Asked(
        model=asked.model,
        raw_prompt="Hi",
        max_tokens=1,
        context_tokens=asked.context_tokens,
        keep_loaded_seconds=kept,
    )
    job = Job(f"ollama-load-{secrets.token_hex(8)}", wanted)
    replies.worker.submit(job)
    try:
        async for _ in job.events():
            pass
    finally:
        replies.worker.cancel(job)
    return said


async def _named(replies: Replies, name: str | None) -> list[ServedModel]:
    models = await run_in_threadpool(replies.worker.models)
    found = [model for model in models if model.name == name]
    if not found:
        raise UnknownModel(f"no model is called «{(name or '')[:80]}» here", hint="GET /api/tags names those that are")
    return found


def _elsewhere(why: str) -> Callable[[Request], Any]:
    problem = Problem(status=501, message=f"not over HTTP: {why}", code="not_here")

    async def answer(_: Request) -> Response:
        return JSONResponse(ollama.error_body(problem), status_code=problem.status)

    return answer


async def _version(_: Request) -> Response:
    return JSONResponse({"version": _API_VERSION, "r1mac": __version__})


def _listed(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": ollama.timestamp(model.stored_at_s),
        "size": model.size_bytes,
        # Programs tell models apart by it; of r1mac's, the name does.
        "digest": hashlib.sha256(model.name.encode()).hexdigest(),
        "details": _details(model),
    }


def _running(model: ServedModel, context_tokens: int | None) -> dict[str, Any]:
    listed = _listed(model)
    del listed["modified_at"]
    return {**listed, "size_vram": model.size_bytes, "context_length": context_tokens}


def _shown(model: ServedModel, context_tokens: int | None) -> dict[str, Any]:
    length = {} if context_tokens is None else {"r1mac.context_length": context_tokens}
    return {
        "modified_at": ollama.timestamp(model.stored_at_s),
        "details": _details(model),
        "model_info": {"general.architecture": "r1mac", "general.name": model.title, **length},
        "capabilities": ["completion", "tools", "thinking"],
    }


def _details(model: ServedModel) -> dict[str, Any]:
    width = {} if model.bits is None else {"quantization_level": f"{model.bits}-bit"}
    return {"parent_model": "", "format": "safetensors", "family": "r1mac", "families": ["r1mac"], **width}
