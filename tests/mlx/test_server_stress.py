"""Clients that come, go, steer and ask for much at any moment: nothing of them stays, and the next answer is right.

``R1MAC_CLIENTS=2000 pytest tests/mlx/test_server_stress.py`` for many of them.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from r1mac.engine.events import Event, Finished, PrefillProgress, TextDelta
from r1mac.engine.load import Engine
from r1mac.engine.request import AnswerFormat, GenerateRequest, Message, Sampling
from r1mac.server.admission import Refused
from r1mac.server.asked import Asked
from r1mac.server.job import Job
from r1mac.server.lanes import Lane, Solo
from r1mac.server.worker import Worker
from tests.serving import RecitingRoom, told
from tests.sessions import text
from tests.working import working

if TYPE_CHECKING:
    from r1mac.server.room import Loaded

CLIENTS = int(os.environ.get("R1MAC_CLIENTS", "16"))
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
QUESTION = Asked(messages=(Message("user", "What is 2+2?"),), max_tokens=12, sampling={"temperature": 0.0})


class _Room(RecitingRoom):
    """One small model, whatever is asked for; prompts are kept within less than the clients' together."""

    engine: Engine
    slots: int
    lane: Lane | None = None

    def open(self, name: str):  # type: ignore[no-untyped-def]
        loaded: Loaded = yield from super().open(name)
        return replace(
            loaded,
            make_lane=self.new_lane,
            vocab_size=320,
            context_tokens=400,
            count=lambda request: len(request.messages),
        )

    def new_lane(self) -> Lane:
        session = lambda: Solo(self.engine.session())  # noqa: E731
        self.lane = session() if self.slots == 1 else self.engine.batch(self.slots, kept_prompts_bytes=600_000)
        return self.lane


@asynccontextmanager
async def _worker(engine: Engine, slots: int) -> AsyncIterator[tuple[Worker, _Room]]:
    room = _Room({"small": []})
    room.engine, room.slots = engine, slots
    async with working(room, parallel=slots) as worker:
        yield worker, room


def _any_request(chance: random.Random) -> Asked:
    """Return a request that some client might make: few begin alike, some are long, some are held to a format."""
    said = f"{chance.choice(WORDS)} " + " ".join(chance.choices(WORDS, k=chance.randrange(1, 40)))
    return Asked(
        messages=(Message("user", said),),
        max_tokens=chance.randrange(1, 60),
        sampling={"temperature": chance.choice([0.0, 1.0]), "frequency_penalty": chance.choice([0.0, 0.5])},
        think=chance.choice([True, False]),
        stop=chance.choice([(), ("e",)]),
        logprobs=chance.choice([None, None, 1]),
        answer_format=chance.choice([None, None, AnswerFormat(kind="regex", text="[0-9]{3}")]),
    )


async def _client(worker: Worker, chance: random.Random) -> None:
    """Ask, and at some moment steer, pause or go."""
    job = Job("reply", _any_request(chance))
    while True:
        try:
            worker.submit(job)
            break
        except Refused:
            await asyncio.sleep(0.01)
    leaves_after, events = chance.choice([0, 1, 3, 10, 10**6]), 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(chance.choice([0.001, 0.02, 60, 60])):
            async for event in job.events():
                events += isinstance(event, TextDelta | PrefillProgress)
                if events > leaves_after:
                    break
                if chance.random() < 0.05:
                    chance.choice([job.control.answer_now, job.control.think_more, job.control.pause])()
                    asyncio.get_running_loop().call_later(0.01, job.control.resume)
    worker.cancel(job)


@pytest.mark.parametrize("slots", [1, 4])
def test_whatever_clients_do_the_next_answer_is_right(slots: int, engines: Callable[..., Engine]) -> None:
    """The prompt cache is at its bound meanwhile; all slots are free within a second of the last client's going."""

    async def answer(worker: Worker) -> list[Event]:
        job = Job("last", QUESTION)
        worker.submit(job)
        return await told(job)

    async def run() -> None:
        engine = await asyncio.to_thread(engines)
        chance = random.Random(slots)
        async with _worker(engine, slots) as (worker, room):
            right = text(await answer(worker))
            async with asyncio.timeout(60 + 2 * CLIENTS):
                clients = [asyncio.create_task(_client(worker, chance)) for _ in range(CLIENTS)]
                await asyncio.gather(*clients)
                while worker.state().running or worker.state().waiting:  # noqa: ASYNC110 - another thread changes it
                    await asyncio.sleep(0.005)
            last = await answer(worker)
            assert isinstance(last[-1], Finished)
            assert text(last) == right
            assert worker.state().running == worker.state().waiting == 0
            assert worker.state().failed == 0
            assert room.lane is not None
            assert len(room.lane) == 0
            assert slots == 1 or 0 < room.lane.kept_bytes <= 600_000  # type: ignore[attr-defined]

    asyncio.run(run())


def test_the_right_answer_is_a_sessions(engines: Callable[..., Engine]) -> None:
    engine = engines()
    request = GenerateRequest(messages=QUESTION.messages, max_tokens=12, sampling=Sampling(temperature=0))
    expected = text(engine.session().generate(request))

    async def run() -> None:
        async with _worker(engine, 4) as (worker, _):
            jobs = [Job(str(number), QUESTION) for number in range(6)]
            for job in jobs:
                worker.submit(job)
            assert [text(await told(job)) for job in jobs] == [expected] * 6

    asyncio.run(run())
