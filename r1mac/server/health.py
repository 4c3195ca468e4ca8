"""Whether the server lives: that its socket answers is not enough, what is at work must get on."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r1mac.server.state import WorkerLike, WorkerState

# Longer than any step of a prompt takes, and than the pause in which macOS compresses memory.
LONGEST_SILENCE_SECONDS = 60.0


def routes(worker: WorkerLike) -> list[Route]:
    """Return ``/health``."""

    async def health(_: Request) -> Response:
        status, body = judge(worker.state(), now_s=time.monotonic())
        return JSONResponse(body, status_code=status)

    return [Route("/health", health, methods=["GET"])]


def judge(state: WorkerState, *, now_s: float) -> tuple[int, dict[str, Any]]:
    """Return 200 if the worker is idle or got on lately, else 503; and why.

    Args:
        state: the worker's.
        now_s: the monotonic clock.
    """
    silent_seconds = None if state.progress_at_s is None else max(now_s - state.progress_at_s, 0.0)
    if state.phase == "stopping":
        status = "stopping"
    elif not state.running:
        status = "loading" if state.phase == "loading" else "idle"
    else:
        late = silent_seconds is not None and silent_seconds > LONGEST_SILENCE_SECONDS
        status = "stuck" if late else "working"
    body = {
        "status": status,
        "model": state.model,
        "running": state.running,
        "waiting": state.waiting,
        "seconds_since_progress": silent_seconds,
    }
    return (503 if status in {"stopping", "stuck"} else 200), body
