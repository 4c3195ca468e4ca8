"""The page for people: its files, and the HTML of what the model wrote."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac import paths
from r1mac.server.asked import BadRequest
from r1mac.server.bodies import read_object
from r1mac.server.markup import render
from r1mac.server.wire_errors import Problem, openai_body, problem_of

FILES_PATH = "/r1mac/web"
MARKUP_PATH = "/r1mac/markup"
# Longer than any reply: a thought of a hundred thousand tokens is half of it.
MOST_TEXT_BYTES = 1024**2

# Nothing from anywhere else, nothing written into the page itself: a text that got through as HTML could do nothing.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Asked for every time, sent only if it has changed: an r1mac that was updated has no old page.
    "Cache-Control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    tag: str


def routes() -> list[Route]:
    """Return the routes of the page: ``/`` and its files, which hold no secret, and what renders a text for it."""
    # One text at a time: rendering is Python, and would take its turns from the thread that writes the next token.
    turn = asyncio.Lock()

    async def markup(request: Request) -> Response:
        try:
            text = (await read_object(request)).get("text")
            if not isinstance(text, str):
                raise BadRequest("text must be a string", field="text")
        except BadRequest as error:
            return _refused(problem_of(error))
        size_bytes = len(text.encode())
        if size_bytes > MOST_TEXT_BYTES:
            sentence = f"the text has {size_bytes:,} bytes, and at most {MOST_TEXT_BYTES:,} are rendered"
            return _refused(Problem(status=413, message=sentence, code="too_large", field="text"))
        async with turn:
            rendered = await run_in_threadpool(render, text)
        return JSONResponse(
            {
                "html": rendered.html,
                "settled_html": rendered.settled_html,
                "settled_lines": rendered.settled_lines,
                "open_html": rendered.open_html,
            },
            headers={"Cache-Control": "no-store"},
        )

    return [
        Route("/", _file("index.html"), methods=["GET"]),
        *(Route(f"{FILES_PATH}/{name}", _file(name), methods=["GET"]) for name in _files() if name != "index.html"),
        Route(MARKUP_PATH, markup, methods=["POST"]),
    ]


@cache
def _files() -> dict[str, _File]:
    """Read the page's files once; no request names a path."""
    files = {}
    for path in sorted(paths.shipped("server", "web").iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            files[path.name] = _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return files


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        file = _files()[name]
        headers = {**_HEADERS, "ETag": file.tag}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return send


def _refused(problem: Problem) -> Response:
    return JSONResponse(openai_body(problem), status_code=problem.status)
