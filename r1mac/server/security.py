"""What is turned away before any route sees it: other names, other pages, no key, too much.

A page of any site that a browser here shows may send requests to this computer. What it may not do is to say another
``Origin`` or ``Host`` than its own: https://fetch.spec.whatwg.org/#forbidden-request-header.
"""

import asyncio
import hmac
import ipaddress
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from r1mac.server.limits import Limits
from r1mac.server.sender import REPLY_ID_HEADER
from r1mac.server.wire_errors import ErrorBody, Problem, TurnedAway

# Docker's name for the computer that it runs on; .internal belongs to nobody on the internet (ICANN, 2024-07-29).
_OWN_NAMES = frozenset({"localhost", "host.docker.internal"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# What a person's browser asks for before it has a key, and what says nothing of anybody.
_OPEN_PATHS = frozenset({"/", "/health", "/favicon.ico"})
_OPEN_FOLDERS = ("/r1mac/web/",)


class Security:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        hosts: frozenset[str],
        origins: frozenset[str],
        limits: Limits,
        error_body: Callable[[str], ErrorBody],
    ) -> None:
        """Make it; *error_body* tells by a path which shape an error has there."""
        self._app = app
        self._error_body = error_body
        self._limits = limits
        self._key = api_key.encode() if api_key else None
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        named = origin if origin in self._origins else None
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                told = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in (_OWN_HEADERS | _cors(named)).items():
                    told.setdefault(name, value)
            await send(message)

        problem = self._problem(scope["method"], scope["path"], headers)
        if problem is None and scope["method"] == "OPTIONS" and named is not None:
            await Response(status_code=204, headers=_beforehand(headers))(scope, receive, guarded)
            return
        try:
            if problem is not None:
                raise TurnedAway(problem)
            await self._app(scope, _Body(receive, self._limits).receive, guarded)
        except ClientDisconnect:
            # It went in the middle of its request: there is nobody to answer.
            return
        except TurnedAway as refused:
            if begun:
                raise
            await _refusal(refused.problem, self._error_body(scope["path"]))(scope, receive, guarded)

    def _problem(self, method: str, path: str, headers: Headers) -> Problem | None:
        """Return why a request is turned away, or None."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_own_name(host, self._hosts):
            message = f"this server is not called «{host[:80]}»: allow that with `r1mac serve --allow-host NAME`"
            return Problem(status=403, message=message, code="wrong_host")
        named = origin in self._origins
        foreign = _is_foreign_form(headers) if origin is None else not is_own_origin(origin, host) and not named
        if foreign and method not in _SAFE_METHODS:
            message = f"pages of other sites may not call this server: `r1mac serve --allow-origin {origin}` allows one"
            return Problem(status=403, message=message, code="wrong_origin")
        # A browser asks without a key whether it may ask.
        needs_key = not _is_open(path) and not (method == "OPTIONS" and named)
        if self._key is not None and needs_key and not _has_key(headers, self._key):
            return Problem(status=401, message="the API key is missing or wrong", code="invalid_api_key")
        if _declared_bytes(headers) > self._limits.body_bytes:
            return _too_large(self._limits)
        return None


def is_own_name(host: str, names: Iterable[str]) -> bool:
    """Return whether the header ``Host`` calls this computer: by an address, or a name that no stranger can own.

    A page that rebinds a name of its own to this computer says that name. An address cannot be rebound.

    Args:
        host: the header, with a port or without.
        names: the names that were given to this server.
    """
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in _OWN_NAMES or name.endswith(".localhost") or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_own_origin(origin: str, host: str) -> bool:
    """Return whether a page of this server sent a request: its origin is where the request went."""
    parts = origin.partition("://")
    return parts[0] in {"http", "https"} and parts[2].lower() == host.lower()


def _is_foreign_form(headers: Headers) -> bool:
    """Return whether a browser that says no origin says that another site sent a request."""
    return headers.get("sec-fetch-site") in {"cross-site", "same-site"}


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)


def _has_key(headers: Headers, key: bytes) -> bool:
    """Compare in a time that does not depend on how much is right."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    said = [headers.get("x-api-key", "")] + ([token.strip()] if scheme.lower() == "bearer" else [])
    return any(hmac.compare_digest(text.encode("latin-1"), key) for text in said)


def _declared_bytes(headers: Headers) -> int:
    text = headers.get("content-length", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0  # noqa: PLR2004


class _Body:
    """Hands a body on, and counts it."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._bytes = 0
        self._complete = False

    async def receive(self) -> Message:
        """Return the next piece."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._limits.piece_seconds):
                message = await self._receive()
        except TimeoutError as error:
            slow = f"the request's body stopped for {self._limits.piece_seconds:g} seconds"
            raise TurnedAway(Problem(status=408, message=slow, code="timeout")) from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
        if self._bytes > self._limits.body_bytes:
            raise TurnedAway(_too_large(self._limits))
        return message


def _too_large(limits: Limits) -> Problem:
    message = f"the request's body is longer than {limits.body_bytes:,} bytes"
    return Problem(status=413, message=message, code="request_too_large")


def _refusal(problem: Problem, error_body: ErrorBody) -> Response:
    headers = dict(problem.headers)
    if problem.status == 401:  # noqa: PLR2004
        headers["WWW-Authenticate"] = "Bearer"
    if problem.status in {408, 413}:
        # What is left of the body is not read.
        headers["Connection"] = "close"
    return JSONResponse(error_body(problem), status_code=problem.status, headers=headers)


# An answer is what it says it is, and no part of a page of another site.
_OWN_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}


def _cors(origin: str | None) -> dict[str, str]:
    """Return the headers that let a page of *origin* read the answer."""
    if origin is None:
        return {}
    exposed = f"{REPLY_ID_HEADER}, Retry-After"
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": exposed, "Vary": "Origin"}


def _beforehand(headers: Headers) -> dict[str, str]:
    """Return the answer to a browser that asks whether a page may ask.

    https://fetch.spec.whatwg.org/#cors-preflight-fetch, https://wicg.github.io/private-network-access
    """
    return {
        "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "content-type"),
        "Access-Control-Allow-Private-Network": "true",
    }
