"""The one thread that owns the model: takes jobs, lets them in, has them written, and hands over what happens.

First come, first served: nobody overtakes, neither a short request a long one nor one for the loaded model one that
waits for another model. So no request waits for ever. With several slots a request begins as soon as one is free,
however long the others still write; with one it waits until the reply before it has ended. A context that somebody
chose comes before them all: nobody begins until the replies at work have ended and it is in force.
"""

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Generator, Iterable

from r1mac.engine.events import Finished
from r1mac.prepare.files import PrepareEvent
from r1mac.server.admission import Refused, require_place, require_room
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.job import Job, forget_frames, hand_over
from r1mac.server.lanes import Lane, Outcome
from r1mac.server.line import Line, Waiting
from r1mac.server.room import Room
from r1mac.server.stage import Stage, stopping
from r1mac.server.state import Contexts, ServedModel, WorkerState
from r1mac.server.tally import Tally

logger = logging.getLogger(__name__)


class Worker:
    """Writes replies on a thread of its own.

    Args:
        room: the models.
        queue_limit: how many requests may wait beside those that are written.
        parallel: how many may be written at once.
        idle_seconds: after so long without work a model is unloaded, unless a request says otherwise; None keeps it.
        opens_first: whether a model is loaded at the start, without a request.
    """

    def __init__(
        self,
        room: Room,
        *,
        queue_limit: int,
        parallel: int = 1,
        idle_seconds: float | None = None,
        opens_first: bool = False,
    ) -> None:
        self._room = room
        self._queue_limit = queue_limit
        self._parallel = parallel
        self._usual_idle_seconds = self._idle_seconds = idle_seconds
        self._opens_first = opens_first
        self._thread = threading.Thread(target=self._run, name="model")
        self._line = Line(self._look, self._fail)
        # The line's lock guards the wishes to stop and for another context, too: other threads say them.
        self._changed = self._line.changed
        self._stop_at: float | None = None
        self._opening: queue.SimpleQueue[PrepareEvent | BaseException | None] = queue.SimpleQueue()
        # The worker thread's alone; others read them.
        self._running: dict[int, Job] = {}
        self._stage = Stage(room, self._changed, must_stop=lambda: self._stop_at is not None)
        self._worked_at = time.monotonic()
        self._tally = Tally()

    def start(self) -> None:
        """Start the thread; with *opens_first* ``opening`` tells how its first model gets on."""
        self._line.start()
        self._thread.start()

    def opening(self) -> Generator[PrepareEvent, None, None]:
        """Yield how the loading of the first model gets on, until it is there.

        Raises:
            R1MacError: it could not be loaded; the thread has ended.
        """
        while (event := self._opening.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event

    def stop(self, *, patience_seconds: float) -> None:
        """Take nothing more, let replies at work end for so long, then cancel them and let go of the model.

        Returns at once; ``join`` waits for the end. Said again, the shorter patience counts. Any thread.
        """
        with self._changed:
            stop_at = time.monotonic() + patience_seconds
            self._stop_at = stop_at if self._stop_at is None else min(self._stop_at, stop_at)
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until the thread has ended. Any thread but its own."""
        if self._thread.ident is not None:
            self._thread.join()
        self._line.join()

    def submit(self, job: Job) -> None:
        """Take a job; its events come to it. Any thread.

        Raises:
            Refused: the queue is full, or the server stops.
        """
        with self._changed:
            if self._stop_at is not None or (self._thread.ident is not None and not self._thread.is_alive()):
                raise stopping()
            self._line.forget_cancelled()
            require_place(
                waiting=len(self._line),
                free_slots=max(self._slots - len(self._running), 0),
                queue_limit=self._queue_limit,
                parallel=self._slots,
                reply_seconds=self._tally.reply_seconds,
            )
            self._line.add(job)

    def cancel(self, job: Job) -> None:
        """End a job: at once if it waits, else after the token or prompt step at work. Any thread."""
        job.control.cancel()
        self._line.forget_cancelled()

    def state(self) -> WorkerState:
        """Return what the worker does now. Any thread, without waiting."""
        loaded, running = self._stage.loaded, list(self._running.values())
        state = WorkerState(
            phase="stopping" if self._stop_at is not None else "loading" if self._stage.loading else "empty",
            parallel=self._slots,
            running=len(running),
            waiting=len(self._line.jobs()),
            queue_limit=self._queue_limit,
            # A reply that somebody paused makes no progress, and is not stuck.
            progress_at_s=time.monotonic() if any(job.control.paused for job in running) else self._tally.progress_at_s,
            next_context_tokens=self._stage.next_context,
            **self._tally.counts(),
        )
        return state if loaded is None else loaded.told_in(state)

    def models(self) -> tuple[ServedModel, ...]:
        """Return the models that can be asked for, the loaded one first. Any thread; reads the disk."""
        return self._room.models(self._stage.loaded)

    def contexts(self, model: str | None) -> Contexts:
        """Return how long conversations with a model may be. Any thread; reads the disk.

        Args:
            model: as a client calls it; None for the one that there is.

        Raises:
            R1MacError: it is not here, or its files are damaged.
        """
        return self._stage.contexts(self._room.find(model))

    def choose_context(self, model: str | None, context_tokens: int) -> Contexts:
        """Have a model planned with another context, from when the replies at work have ended; as ``contexts``.

        Raises:
            DoesNotFit: there is no memory for it; the former one goes on.
            Refused: the server stops.
        """
        name = self._room.find(model)
        self._room.choose_context(name, context_tokens)
        with self._changed:
            if self._stop_at is not None:
                raise stopping()
            self._stage.wish_context(name, context_tokens)
        return self.contexts(name)

    async def count_tokens(self, asked: Asked) -> int:
        """Return how many tokens the prompt of *asked* has, by its model's own template and tokenizer.

        Raises:
            UnknownModel: the model is not here.
            BadRequest: a value is outside what it can mean.
        """
        return await asyncio.to_thread(self._count, asked)

    def _count(self, asked: Asked) -> int:
        name, loaded = self._room.find(asked.model), self._stage.loaded
        if loaded is not None and loaded.name == name:
            return loaded.count(loaded.request(asked))
        return self._room.count(name, asked)

    def _run(self) -> None:
        try:
            if self._opens_first:
                self._open_first()
            while self._work():
                pass
        except BaseException as error:
            # Whatever it was: who waits must hear of it, and the model must not be left behind.
            logger.exception("the server's worker ends")
            self._fail_all(error)
            raise
        finally:
            with self._changed:
                self._stop_at = time.monotonic()
            self._line.close()
            self._stage.close()
            self._fail_all(stopping())

    def _open_first(self) -> None:
        try:
            self._stage.open(self._room.find(None), self._opening.put)
            self._worked_at = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - it is raised where the progress is read
            self.stop(patience_seconds=0)
            self._opening.put(error)
        else:
            self._opening.put(None)

    def _work(self) -> bool:
        """Do one round of work, or wait for some; return whether to go on."""
        self._change_context()
        self._begin()
        if self._stage.lane is not None and self._running:
            self._step(self._stage.lane)
        if self._stop_at is not None:
            return self._wind_up()
        if self._idle_for_too_long():
            assert self._stage.loaded is not None
            logger.info("unloading %s, which nobody asks for", self._stage.loaded.name)
            self._stage.close()
        return True

    def _idle_for_too_long(self) -> bool:
        """Wait until there is work; return whether to unload the model instead."""
        with self._changed:
            if self._running or self._line.first() is not None or self._stop_at is not None:
                return False
            if self._stage.next_context is not None:
                return False
            if len(self._line) or self._stage.loaded is None or self._idle_seconds is None:
                self._changed.wait()
                return False
            left_seconds = self._worked_at + self._idle_seconds - time.monotonic()
            return left_seconds <= 0 or not self._changed.wait(left_seconds)

    def _wind_up(self) -> bool:
        """Go on until the replies at work have ended, and cancel them when patience does."""
        self._fail_waiting(stopping())
        if self._stop_at is not None and time.monotonic() >= self._stop_at:
            for job in self._running.values():
                job.control.cancel()
        return bool(self._running)

    def _look(self, job: Job) -> Waiting:
        return self._looked_at(Waiting(job, self._room.find(job.asked.model)))

    def _looked_at(self, waiting: Waiting) -> Waiting:
        """Return a job with its prompt's length, if its model is loaded and it can be answered. Any thread.

        Raises:
            R1MacError: it cannot.
            BadRequest: it says something that cannot be meant.
        """
        loaded, asked = self._stage.loaded, waiting.job.asked
        if loaded is None or loaded.name != waiting.model:
            return waiting
        request = loaded.request(asked)
        prompt_tokens = loaded.count(request)
        # It may yet become longer before the job begins; then it is looked at once more.
        context_tokens = max(loaded.context_for(asked), self._stage.next_context or 0)
        require_room(prompt_tokens, context_tokens=context_tokens, max_tokens=request.max_tokens)
        return waiting._replace(prompt_tokens=prompt_tokens)

    def _begin(self) -> None:
        """Begin the jobs that come next, as far as there are slots."""
        # Not before a context that was chosen is in force.
        while (
            self._stop_at is None and self._stage.next_context is None and (waiting := self._line.first()) is not None
        ):
            if not self._stage.has(waiting.model):
                if self._running:
                    return
                self._change_model(waiting)
                continue
            if self._stage.lane is None or len(self._stage.lane) >= self._stage.lane.slots:
                return
            if self._running and self._stage.grown_for(waiting.job.asked) is not None:
                return
            if self._line.take(waiting):
                self._submit(waiting)

    def _submit(self, waiting: Waiting) -> None:
        job = waiting.job
        try:
            if not self._running and (context_tokens := self._stage.grown_for(job.asked)) is not None:
                self._stage.grow(context_tokens)
            self._running[self._entered(waiting)] = job
            if (seconds := job.asked.keep_loaded_seconds) is not None:
                self._idle_seconds = None if math.isinf(seconds) else seconds
        except Exception as error:  # noqa: BLE001 - it is the job's
            self._fail(job, error)
        self._tally.begin()

    def _entered(self, waiting: Waiting) -> int:
        """Hand a job over to the lane, and return its ticket there.

        Raises:
            R1MacError: it cannot be answered, in the context that there is now.
        """
        loaded, lane = self._stage.loaded, self._stage.lane
        assert loaded is not None
        assert lane is not None
        request, counted = loaded.request(waiting.job.asked), waiting.prompt_tokens
        prompt_tokens = loaded.count(request) if counted is None else counted
        require_room(prompt_tokens, context_tokens=loaded.context_tokens, max_tokens=request.max_tokens)
        return lane.submit(request, waiting.job.control)

    def _change_context(self) -> None:
        """Have the context come into force that was chosen, if the model has another and nothing is written."""
        if not self._running and self._stop_at is None and self._stage.next_context is not None:
            self._stage.change_context()
            self._worked_at = time.monotonic()

    def _step(self, lane: Lane) -> None:
        try:
            outcomes = list(lane.step())
        except Exception as error:
            logger.exception("a step of all replies failed")
            self._fail_running(error)
            self._stage.replace_lane()
            return
        self._worked_at = time.monotonic()
        self._deliver(outcomes)

    def _deliver(self, outcomes: Iterable[tuple[int, Outcome]]) -> None:
        """Hand over what came of a step, and forget the jobs that have ended."""
        items = []
        for ticket, outcome in outcomes:
            job = self._running.get(ticket)
            if job is None:
                continue
            self._tally.note(ticket, outcome, job.submitted_at_s)
            if isinstance(outcome, Finished):
                if self._stage.loaded is not None:
                    self._stage.loaded.learn(outcome.stats)
                del self._running[ticket]
            elif isinstance(outcome, Exception):
                del self._running[ticket]
                forget_frames(outcome)
            items.append((job, outcome))
        hand_over(items)

    @property
    def _slots(self) -> int:
        """How many replies may be written at once."""
        lane = self._stage.lane
        return self._parallel if lane is None else lane.slots

    def _change_model(self, waiting: Waiting) -> None:
        """Load the model of the job that comes next; if that cannot be, it fails, and the former model answers on."""
        try:
            self._room.check(waiting.model)
            self._stage.close()
            self._stage.open(waiting.model)
            self._idle_seconds, self._worked_at = self._usual_idle_seconds, time.monotonic()
        except Exception as error:  # noqa: BLE001 - it is the job's
            if self._line.take(waiting):
                self._fail(waiting.job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        self._fail_each([job], error)

    def _fail_each(self, jobs: Iterable[Job], error: Exception) -> None:
        if not isinstance(error, BadRequest):
            logger.debug("a request came to nothing", exc_info=error)
        forget_frames(error)
        for job in jobs:
            self._tally.fail()
            job.fail(error)

    def _fail_waiting(self, error: Exception) -> None:
        self._fail_each(self._line.clear(), error)

    def _fail_running(self, error: Exception) -> None:
        self._fail_each(self._dropped(), error)

    def _fail_all(self, error: BaseException) -> None:
        sayable = error if isinstance(error, Exception) else Refused("the server is stopping", retry_after_seconds=1)
        self._fail_each([*self._dropped(), *self._line.clear()], sayable)

    def _dropped(self) -> list[Job]:
        """Forget the jobs at work, and return them."""
        jobs = list(self._running.values())
        self._running.clear()
        self._tally.forget_paces()
        return jobs
