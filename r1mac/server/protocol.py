"""HTTP on one connection, as uvicorn speaks it, with an end to the patience for a head that does not come."""

import asyncio
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _PatientProtocol(H11Protocol):
    """Lets go of a client that opens a connection, or begins a request, and does not come to the end of its head.

    uvicorn itself waits for ever, so a few thousand such clients would take all file descriptors of the process.
    """

    head_seconds: ClassVar[float]
    _giving_up: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._giving_up = self.loop.call_later(self.head_seconds, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if not begun:
            self._wait_no_more()
        elif self._giving_up is None:
            self._giving_up = self.loop.call_later(self.head_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        super().connection_lost(exc)

    def _wait_no_more(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        # Who sent nothing at all, as a browser that connects ahead of need, is only let go.
        if self.conn.trailing_data[0]:
            self.transport.write(_TOO_LATE)
        self.transport.close()


def protocol(*, head_seconds: float) -> type[H11Protocol]:
    """Return what uvicorn makes for each connection.

    Args:
        head_seconds: how long a client may take for the head of a request, from its first byte to its last.
    """

    class Protocol(_PatientProtocol):
        pass

    Protocol.head_seconds = head_seconds
    return Protocol
