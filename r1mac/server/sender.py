"""One response, sent piece by piece."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Message, Send

REPLY_ID_HEADER = "X-R1mac-Reply-Id"


class Gone(Exception):
    """The client takes nothing any more."""


class Sender:
    """Sends one response piece by piece; a client that takes nothing for long is given up."""

    def __init__(self, send: Send, *, stuck_seconds: float) -> None:
        self._send, self._stuck_seconds = send, stuck_seconds
        self.begun = False
        self._sent_at_s = time.monotonic()

    @property
    def silent_seconds(self) -> float:
        """How long nothing was sent."""
        return time.monotonic() - self._sent_at_s

    async def begin(
        self, media_type: str, reply_id: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the head, once."""
        if self.begun:
            return
        self.begun = True
        fields = {
            "content-type": media_type,
            "cache-control": "no-store",
            "x-accel-buffering": "no",
            REPLY_ID_HEADER.lower(): reply_id,
        } | {name.lower(): value for name, value in (headers or {}).items()}
        pairs = [(name.encode(), value.encode()) for name, value in fields.items()]
        await self._patiently({"type": "http.response.start", "status": status, "headers": pairs})

    async def send(self, body: bytes) -> None:
        """Send some of the body."""
        if body:
            await self._patiently({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        """Say that the body is complete."""
        await self._patiently({"type": "http.response.body", "body": b"", "more_body": False})

    async def json(
        self, value: Mapping[str, Any], reply_id: str, *, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send the whole body."""
        body = bytes(JSONResponse(value).body)
        length = {"content-length": str(len(body))}
        await self.begin("application/json", reply_id, status=status, headers={**length, **(headers or {})})
        await self.send(body)
        await self.end()

    async def _patiently(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._stuck_seconds):
                await self._send(message)
                self._sent_at_s = time.monotonic()
        except (TimeoutError, OSError) as error:
            raise Gone from error
