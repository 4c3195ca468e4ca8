"""Who waits: requests in the order in which they came, each looked at on a thread of the line's own.

Counting the tokens of a prompt takes seconds where somebody sends megabytes; what is being written goes on meanwhile.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from r1mac.server.job import Job
from r1mac.server.tally import never_begun


class Waiting(NamedTuple):
    """A job that has not begun. Its prompt's length is known once it was looked at with its model loaded."""

    job: Job
    model: str
    prompt_tokens: int | None = None


class Line:
    """The jobs that wait. Of any thread, but for what is said otherwise.

    Attributes:
        changed: guards the line, and wakes who waits for it; whoever watches more than the line holds it meanwhile.

    Args:
        look: finds the model that a job asks for, and its prompt's length; what it raises is the job's. On the line's
            thread.
        fail: tells a job what became of it.
    """

    def __init__(self, look: Callable[[Job], Waiting], fail: Callable[[Job, Exception], None]) -> None:
        self.changed = threading.Condition()
        self._look, self._fail = look, fail
        self._arrived: deque[Job] = deque()
        self._ready: deque[Waiting] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._look_at_all, name="line")

    def __len__(self) -> int:
        """How many wait, those included that are cancelled and not yet gone."""
        return len(self._arrived) + len(self._ready)

    def start(self) -> None:
        """Begin to look at what comes."""
        self._thread.start()

    def close(self) -> None:
        """Look at nothing more."""
        with self.changed:
            self._closed = True
            self.changed.notify_all()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.ident is not None:
            self._thread.join()

    def add(self, job: Job) -> None:
        """Put a job at the end."""
        with self.changed:
            self._arrived.append(job)
            self.changed.notify_all()

    def first(self) -> Waiting | None:
        """Return the job that comes next, if it was looked at."""
        with self.changed:
            return self._ready[0] if self._ready else None

    def take(self, waiting: Waiting) -> bool:
        """Take the job that comes next out of the line; return False if it was cancelled meanwhile."""
        with self.changed:
            if not self._ready or self._ready[0] is not waiting:
                return False
            self._ready.popleft()
            return True

    def jobs(self) -> list[Job]:
        """Return all that wait and are wanted."""
        with self.changed:
            return [job for job in self._all() if not job.control.cancelled]

    def forget_cancelled(self) -> None:
        """Let go of jobs that nobody wants any more, and tell them so."""
        with self.changed:
            gone = [job for job in self._all() if job.control.cancelled]
            if gone:
                self._arrived = deque(job for job in self._arrived if not job.control.cancelled)
                self._ready = deque(waiting for waiting in self._ready if not waiting.job.control.cancelled)
                self.changed.notify_all()
        for job in gone:
            job.put(never_begun())

    def clear(self) -> list[Job]:
        """Let go of all; return them."""
        with self.changed:
            jobs = self._all()
            self._arrived.clear()
            self._ready.clear()
            return jobs

    def _all(self) -> list[Job]:
        return [*(waiting.job for waiting in self._ready), *self._arrived]

    def _look_at_all(self) -> None:
        while (job := self._next_arrived()) is not None:
            seen: Waiting | Exception
            try:
                seen = self._look(job)
            except Exception as error:  # noqa: BLE001 - it is the job's
                seen = error
            with self.changed:
                if not self._arrived or self._arrived[0] is not job:  # it was cancelled meanwhile, or all were let go
                    continue
                self._arrived.popleft()
                if isinstance(seen, Waiting):
                    self._ready.append(seen)
                self.changed.notify_all()
            if isinstance(seen, Exception):
                self._fail(job, seen)

    def _next_arrived(self) -> Job | None:
        """Wait for a job; return None at the end."""
        with self.changed:
            while not self._arrived and not self._closed:
                self.changed.wait()
            return None if self._closed else self._arrived[0]
