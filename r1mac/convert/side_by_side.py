"""Works side by side on one computer: what they give out to threads goes on while the others are at their own part.

A work is a generator. What it does itself, with MLX, it does on the thread that asks for it; of what numpy can do
alone it yields tasks, and is sent their results. One core would do the same in the same order, so that no result
depends on how threads take turns.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import SimpleQueue
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

# Each holds blocks of its own.
_MOST_THREADS = 4

_Result = TypeVar("_Result")
Task = Callable[[], Any]
Work = Generator[Sequence[Task], Sequence[Any], _Result]


def thread_count() -> int:
    """Return how many tasks are done at once."""
    return min(os.cpu_count() or 1, _MOST_THREADS)


class Threads:
    """Does works' tasks, in threads of its own until it is left."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_count(), thread_name_prefix="multiply")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being done, and end the threads."""
        self._pool.shutdown(cancel_futures=True)

    def done(self, works: Sequence[Work[_Result]], *, at_once: int) -> list[_Result]:
        """Return what *works* return, of which so many are begun and not ended at a time.

        An error of a work or of a task ends them all.
        """
        results: dict[int, _Result] = {}
        waiting, ready = deque(range(len(works))), SimpleQueue[int]()
        batches: dict[int, Sequence[Future[Any]]] = {}
        try:
            while len(results) < len(works):
                if waiting and len(batches) < at_once:
                    index, given = waiting.popleft(), None
                else:
                    index = ready.get()
                    given = [future.result() for future in batches.pop(index)]
                try:
                    # A generator that begins is sent None.
                    tasks = works[index].send(given)  # type: ignore[arg-type]
                except StopIteration as end:
                    results[index] = end.value
                else:
                    batches[index] = self._begun(tasks, index, ready)
        finally:
            for futures in batches.values():
                for future in futures:
                    future.cancel()
                wait(futures)
            for work in works:
                work.close()
        return [results[index] for index in range(len(works))]

    def results(self, tasks: Sequence[Task]) -> Sequence[Any]:
        """Return what *tasks* give."""

        def work() -> Work[Sequence[Any]]:
            return (yield tasks)

        return self.done([work()], at_once=1)[0]

    def _begun(self, tasks: Sequence[Task], index: int, ready: "SimpleQueue[int]") -> Sequence[Future[Any]]:
        """Return the futures of *tasks*, the last of which puts *index* into *ready*."""
        left, lock = len(tasks), Lock()

        def count(_: Future[Any]) -> None:
            nonlocal left
            with lock:
                left -= 1
                is_last = not left
            if is_last:
                ready.put(index)

        futures = [self._pool.submit(task) for task in tasks]
        for future in futures:
            future.add_done_callback(count)
        if not futures:
            ready.put(index)
        return futures


def done_alone(work: Work[_Result]) -> _Result:
    """Return what *work* returns, all of it done here."""
    given: Any = None
    try:
        while True:
            given = [task() for task in work.send(given)]
    except StopIteration as end:
        result: _Result = end.value
        return result
