"""The server over real HTTP in this process, with a model that recites.

``python -m tests.http_server PORT [WORDS_PER_S]`` serves until Ctrl-C, to look at the page or to try a client.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator

import uvicorn

from r1mac.engine.control import Control
from r1mac.engine.events import Event
from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest
from r1mac.server.app import make_app
from r1mac.server.lanes import Solo
from r1mac.server.limits import Limits
from r1mac.server.protocol import protocol
from r1mac.server.worker import Worker
from tests.serving import RecitingRoom

MODEL = "reciter"
CONTEXT_TOKENS = 100_000


class Reciter:
    """A session that says what *answer* tells for each request.

    Attributes:
        requests: what was asked.
        words_per_s: how fast it speaks; None for at once.
    """

    def __init__(
        self, answer: Callable[[GenerateRequest], str | Exception], *, words_per_s: float | None = None
    ) -> None:
        self.answer = answer
        self.words_per_s = words_per_s
        self.requests: list[GenerateRequest] = []

    def generate(self, request: GenerateRequest, control: Control | None = None) -> Iterator[Event]:
        self.requests.append(request)
        yield from RecitingSession([self.answer(request)], words_per_s=self.words_per_s).generate(request, control)


class Served:
    """A server at work."""

    def __init__(self, reciter: Reciter, room: RecitingRoom, worker: Worker, port: int) -> None:
        self.reciter, self.room, self.worker, self.port = reciter, room, worker, port

    @property
    def is_idle(self) -> bool:
        """Whether nothing is written and nobody waits."""
        state = self.worker.state()
        return state.running == state.waiting == 0


@contextlib.contextmanager
def served(
    reciter: Reciter, *, queue_limit: int = 64, port: int = 0, models: tuple[str, ...] = (MODEL,), **settings
) -> Iterator[Served]:
    """Serve *reciter* with the *settings* of ``make_app`` until the end of the block; it speaks for all *models*."""
    room = RecitingRoom(dict.fromkeys(models, ()), make_lane=lambda: Solo(reciter), context_tokens=CONTEXT_TOKENS)
    worker = Worker(room, queue_limit=queue_limit)
    http = protocol(head_seconds=settings.get("limits", Limits()).piece_seconds)
    server = _Server(
        uvicorn.Config(make_app(worker, **settings), port=port, log_level="error", http=http, ws="none", lifespan="off")
    )
    thread = threading.Thread(target=server.run, name="http")
    worker.start()
    thread.start()
    try:
        assert server.listens.wait(30)
        yield Served(reciter, room, worker, server.servers[0].sockets[0].getsockname()[1])
    finally:
        worker.stop(patience_seconds=0)
        worker.join()
        server.should_exit = True
        thread.join(30)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        self.listens.set()


_SAMPLE = """Let me think about $x^2 = 4$. It has two solutions.
</think>

The solutions of $x^2 = 4$ are **2** and **-2**, since

$$(-2)^2 = 2^2 = 4$$

| x | x² |
|---|---|
| 2 | 4 |

```python
print(2**2)
```
"""


def _main() -> None:
    port, rate = int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 10.0
    with served(Reciter(lambda _: _SAMPLE, words_per_s=rate), port=port) as server:
        print(f"http://127.0.0.1:{server.port}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    _main()
