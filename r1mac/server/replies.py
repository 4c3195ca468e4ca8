"""Replies at work for HTTP requests: streamed or whole, in any dialect; a client that goes takes its reply with it."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from r1mac.engine.events import Event, Finished, Pace, PrefillProgress, TextDelta
from r1mac.errors import R1MacError
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.bodies import read_object
from r1mac.server.dialect import Dialect, SeveralWriter, Writer
from r1mac.server.job import Job, Mailbox
from r1mac.server.limits import Limits
from r1mac.server.measures import Measures
from r1mac.server.sender import Gone, Sender
from r1mac.server.sse import Chunk
from r1mac.server.state import WorkerLike
from r1mac.server.wire_errors import ErrorBody, problem_of

_LOG = logging.getLogger(__name__)

# So many events at most are sent in one piece.
_MOST_EVENTS = 256


class Running:
    """A reply at work, for those who steer it.

    Attributes:
        id: what clients call it.
        jobs: one, or several to the same request.
        channel: what is being written; None until something is.
        prefill: how far the prompt is read.
        pace: how far the reply is, about once a second.
    """

    def __init__(self, reply_id: str, jobs: Sequence[Job]) -> None:
        self.id, self.jobs = reply_id, jobs
        self.begun_at_s = time.monotonic()
        self.channel: str | None = None
        self.prefill: PrefillProgress | None = None
        self.pace: Pace | None = None
        self._spoken: set[int] = set()

    def first_text(self, job: Job, event: Event) -> bool:
        """Return whether *event* is the first text of a job; asked once for each event."""
        if not isinstance(event, TextDelta) or job.index in self._spoken:
            return False
        self._spoken.add(job.index)
        return True

    def note(self, event: Event) -> None:
        """Remember what *event* says of where the reply is."""
        match event:
            case TextDelta(channel=channel):
                self.channel = channel
            case PrefillProgress():
                self.prefill = event
            case Pace():
                self.pace = event
            case _:
                pass


class Replies:
    """All replies at work, of all dialects. Lives on the event loop."""

    def __init__(self, worker: WorkerLike, measures: Measures, limits: Limits) -> None:
        self.worker = worker
        self.measures = measures
        self.limits = limits
        self._running: dict[str, Running] = {}

    def find(self, reply_id: str) -> Running | None:
        """Return a reply that is at work."""
        return self._running.get(reply_id)

    def all(self) -> Iterable[Running]:
        """Return the replies at work, the oldest first."""
        return tuple(self._running.values())

    def endpoint(self, dialect: Dialect) -> Callable[[Request], Any]:
        """Return the route function that answers in *dialect*."""

        async def answer(request: Request) -> Response:
            try:
                body = await read_object(request, any_type=dialect.any_content_type)
                return self.answer(dialect.parse(body), dialect)
            except (BadRequest, R1MacError) as error:
                return error_response(error, dialect.error_body)

        return answer

    def answer(self, asked: Asked, dialect: Dialect) -> Response:
        """Return the response that says the reply to *asked*.

        Raises:
            R1MacError: the worker does not take it.
        """
        reply_id = f"{dialect.id_prefix}{secrets.token_hex(12)}"
        mailbox: Mailbox = asyncio.Queue()
        jobs: list[Job] = []
        running = Running(reply_id, jobs)
        try:
            for index in range(asked.replies):
                job_id = f"{reply_id}.{index}" if index else reply_id
                job = Job(job_id, _one_of(asked, index), index=index, mailbox=mailbox)
                self.worker.submit(job)
                jobs.append(job)
        except BaseException:
            self.cancel(running)
            raise
        self._running[reply_id] = running
        return _ReplyResponse(running, mailbox, dialect, self)

    def cancel(self, running: Running) -> None:
        """Stop the work; what has ended is left alone."""
        for job in running.jobs:
            self.worker.cancel(job)

    def ended(self, running: Running) -> None:
        """Forget a reply; if it is still at work, nobody wants it any more."""
        self.cancel(running)
        self._running.pop(running.id, None)


def error_response(error: Exception, body: ErrorBody) -> Response:
    """Return what a client is told of *error*; one that is nobody's doing but ours is logged."""
    problem = problem_of(error)
    if problem.status == 500:  # noqa: PLR2004
        _LOG.error("a request failed", exc_info=error)
    return JSONResponse(body(problem), status_code=problem.status, headers=problem.headers)


def _one_of(asked: Asked, index: int) -> Asked:
    """Return what the reply *index* is asked for: the same seed would make all of them the same."""
    seed = asked.sampling.get("seed")
    if not index or seed is None:
        return asked
    return replace(asked, sampling={**asked.sampling, "seed": seed + index})


class _ReplyResponse(Response):
    """Sends a reply while it is written. Its end, however it comes, ends the work."""

    def __init__(self, running: Running, mailbox: Mailbox, dialect: Dialect, replies: Replies) -> None:
        super().__init__()
        self._running, self._mailbox, self._dialect, self._replies = running, mailbox, dialect, replies
        self._asked = running.jobs[0].asked
        self._left = len(running.jobs)
        self._created_at_s = int(time.time())

    @cached_property
    def _writer(self) -> Writer:
        """What says the reply. Not made before something happens: only then is it known which model answers."""
        model = self._asked.model or self._replies.worker.state().model or ""
        return self._dialect.writer(self._running.id, self._asked, model=model, created_at_s=self._created_at_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 (ASGI)
        """Send the reply, or stop it when the client goes."""
        sender = Sender(send, stuck_seconds=self._replies.limits.stuck_seconds)
        talk = asyncio.create_task(self._stream(sender) if self._asked.stream else self._whole(sender))
        watch = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({talk, watch}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._replies.ended(self._running)
            # Done or not: cancelling a task that has ended does nothing.
            talk.cancel()
            watch.cancel()
            await asyncio.gather(talk, watch, return_exceptions=True)
        if not talk.cancelled() and (error := talk.exception()) is not None and not isinstance(error, Gone):
            raise error

    async def _stream(self, sender: Sender) -> None:
        seconds = self._replies.limits.keep_alive_seconds
        # Nothing is sent before the first word, so that what fails at once has its own status.
        items = await self._items(seconds)
        if items and isinstance(items[0][1], Exception):
            await self._refuse(sender, items[0][1])
            return
        await sender.begin(self._dialect.media_type, self._running.id)
        await sender.send(self._framed(self._writer.begin()))
        while True:
            said = self._said(items)
            if not said and sender.silent_seconds >= seconds:
                said = self._dialect.keep_alive
            await sender.send(said)
            if self._left == 0:
                break
            items = await self._items(seconds)
        await sender.end()

    async def _whole(self, sender: Sender) -> None:
        limits = self._replies.limits
        replies: list[list[Event]] = [[] for _ in self._running.jobs]
        while self._left:
            seconds = limits.keep_alive_seconds if sender.begun else limits.whole_silence_seconds
            for job, item in await self._items(seconds):
                if isinstance(item, Exception):
                    await self._refuse(sender, item)
                    return
                self._take(job, item)
                if not isinstance(item, PrefillProgress | Pace):
                    replies[job.index].append(item)
            if self._left and sender.silent_seconds >= seconds:
                await sender.begin("application/json", self._running.id)
                await sender.send(b" ")
        writer = cast("SeveralWriter", self._writer)
        await sender.json(writer.whole(*replies), self._running.id)

    def _said(self, items: "list[tuple[Job, Event | Exception]]") -> bytes:
        """Return what *items* are in the stream; after an error nothing follows."""
        said = bytearray()
        for job, item in items:
            if isinstance(item, Exception):
                self._left = 0
                self._replies.cancel(self._running)
                return bytes(said + self._framed(self._writer.failed(_told(item))))
            self._take(job, item)
            if job.index == 0:
                said += self._framed(self._writer.event(item))
            else:
                said += self._framed(cast("SeveralWriter", self._writer).event(item, job.index))
        return bytes(said)

    def _take(self, job: Job, event: Event) -> None:
        self._running.note(event)
        seconds = time.monotonic() - job.submitted_at_s
        if self._running.first_text(job, event):
            self._replies.measures.began(seconds)
        if isinstance(event, Finished):
            self._left -= 1
            self._replies.measures.ended(seconds, event.stats)

    async def _items(self, seconds: float) -> "list[tuple[Job, Event | Exception]]":
        """Return what the jobs have said since; wait for it up to *seconds*."""
        items: list[tuple[Job, Event | Exception]] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                items.append(await self._mailbox.get())
        while not self._mailbox.empty() and len(items) < _MOST_EVENTS:
            items.append(self._mailbox.get_nowait())
        return items

    async def _refuse(self, sender: Sender, error: Exception) -> None:
        self._replies.cancel(self._running)
        problem = problem_of(error)
        if problem.status == 500:  # noqa: PLR2004
            _LOG.error("the reply %s failed", self._running.id, exc_info=error)
        await sender.json(
            self._dialect.error_body(problem), self._running.id, status=problem.status, headers=problem.headers
        )

    def _framed(self, chunks: Iterable[Chunk]) -> bytes:
        return b"".join(self._dialect.frame(chunk) for chunk in chunks)


async def _gone(receive: Receive) -> None:
    """Return when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _told(error: Exception) -> R1MacError:
    """Return *error* as one that may be told; of a defect only that there is one."""
    if isinstance(error, R1MacError):
        return error
    problem = problem_of(error)
    if problem.status == 500:  # noqa: PLR2004
        _LOG.error("a reply failed", exc_info=error)
    return R1MacError(problem.message)
