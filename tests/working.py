"""A server's worker at work in a room whose models recite: asked, and waited for."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from r1mac.server.asked import Asked
from r1mac.server.job import Job
from r1mac.server.worker import Worker
from tests.serving import RecitingRoom, asked


@asynccontextmanager
async def working(room: RecitingRoom, **options: object) -> AsyncIterator[Worker]:
    """Let a worker work until the block ends."""
    worker = Worker(room, **{"queue_limit": 8, **options})  # type: ignore[arg-type]
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(patience_seconds=0)
        await asyncio.to_thread(worker.join)


@asynccontextmanager
async def working_with_model(room: RecitingRoom, **options: object) -> AsyncIterator[Worker]:
    """Let a worker work that has opened its first model, until the block ends."""
    async with working(room, opens_first=True, **options) as worker:
        await asyncio.to_thread(lambda: list(worker.opening()))
        yield worker


def ask(worker: Worker, what: Asked | None = None) -> Job:
    """Ask for a reply; return it at once."""
    job = Job("reply", what or asked())
    worker.submit(job)
    return job


async def until(condition: Callable[[], object]) -> None:
    """Wait for what must come within 20 seconds."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
