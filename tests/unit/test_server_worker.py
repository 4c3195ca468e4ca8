"""The worker: who is let in, in which order replies are written, and what ends with what."""

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest

from r1mac.engine.events import Finished, TextDelta
from r1mac.engine.request import GenerateRequest
from r1mac.errors import DoesNotFit, PromptTooLong, R1MacError, UnknownModel
from r1mac.server.admission import Refused
from r1mac.server.asked import Asked, BadRequest
from r1mac.server.worker import Worker
from tests.serving import GatedLane, RecitingRoom, asked, text, told
from tests.working import ask, until, working, working_with_model


def test_replies_come_in_the_order_in_which_they_were_asked_for() -> None:
    async def run() -> None:
        async with working(RecitingRoom({"small": ["one", "two", "three"]})) as worker:
            jobs = [ask(worker) for _ in range(3)]
            assert [text(await told(job)) for job in jobs] == ["one", "two", "three"]
            assert worker.state().finished == {"stop": 3}
            assert worker.state().written_tokens == 3

    asyncio.run(run())


def test_one_reply_that_fails_fails_alone() -> None:
    async def run() -> None:
        answers = ["one", RuntimeError("a bug"), DoesNotFit("too long"), "four"]
        async with working(RecitingRoom({"small": answers})) as worker:
            jobs = [ask(worker) for _ in answers]
            assert text(await told(jobs[0])) == "one"
            with pytest.raises(RuntimeError, match="a bug"):
                await told(jobs[1])
            with pytest.raises(DoesNotFit, match="too long"):
                await told(jobs[2])
            assert text(await told(jobs[3])) == "four"
            assert worker.state().failed == 2

    asyncio.run(run())


def test_what_fails_for_all_replies_fails_those_at_work_and_no_other() -> None:
    lanes: list[GatedLane] = []

    def make_lane() -> GatedLane:
        lanes.append(GatedLane(2, most=3))
        lanes[-1].gate.set()
        return lanes[-1]

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=make_lane)
        async with working_with_model(room, parallel=2) as worker:
            lanes[0].failing.set()
            failing = [ask(worker), ask(worker)]
            for job in failing:
                with pytest.raises(RuntimeError, match="GPU"):
                    await told(job)
            assert text(await told(ask(worker))) == "word word word "
            assert len(lanes) == 2
            assert lanes[0].closed

    asyncio.run(run())


def test_a_full_queue_says_when_to_come_back() -> None:
    lane = GatedLane(2)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane)
        async with working(room, queue_limit=3, parallel=2) as worker:
            jobs = [ask(worker, asked(str(number))) for number in range(5)]
            await until(lambda: worker.state().running == 2)
            assert worker.state().waiting == 3
            with pytest.raises(Refused, match="3 requests wait") as refused:
                ask(worker)
            assert refused.value.retry_after_seconds >= 1
            # A waiting job that is cancelled leaves its place at once, whatever the model is doing.
            worker.cancel(jobs[3])
            assert worker.state().waiting == 2
            assert [type(event) for event in await told(jobs[3])] == [Finished]
            ask(worker, asked("late"))
            for job in jobs[:2]:
                worker.cancel(job)
            await until(lambda: len(lane.submitted) == 4)
            assert lane.submitted == ["0", "1", "2", "4"]

    asyncio.run(run())


def test_another_model_waits_for_its_turn_and_nobody_overtakes() -> None:
    lane = GatedLane(2)

    async def run() -> None:
        room = RecitingRoom({"small": [], "large": []}, make_lane=lambda: lane)
        async with working(room, parallel=2) as worker:
            first = ask(worker, asked("first", model="small"))
            await until(lambda: worker.state().running == 1)
            other = ask(worker, asked("other", model="large"))
            last = ask(worker, asked("last", model="small"))
            await until(lambda: worker.state().waiting == 2)
            assert room.opened == ["small"]
            worker.cancel(first)
            await until(lambda: worker.state().model == "large" and worker.state().running == 1)
            worker.cancel(other)
            await until(lambda: worker.state().model == "small" and worker.state().running == 1)
            worker.cancel(last)
            assert (await told(last))[-1].reason == "cancelled"  # type: ignore[union-attr]
            assert room.opened == ["small", "-small", "large", "-large", "small"]
            assert lane.submitted == ["first", "other", "last"]

    asyncio.run(run())


def test_a_model_that_does_not_fit_leaves_the_former_one_answering() -> None:
    async def run() -> None:
        room = RecitingRoom({"small": ["one", "two"]}, broken={"huge": DoesNotFit("huge needs 400 GiB")})
        async with working(room) as worker:
            assert text(await told(ask(worker))) == "one"
            with pytest.raises(DoesNotFit, match="400 GiB"):
                await told(ask(worker, asked(model="huge")))
            assert text(await told(ask(worker))) == "two"
            assert room.opened == ["small"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("what", "error"),
    [
        (asked(model="nobody"), UnknownModel),
        (asked("word " * 999), PromptTooLong),
        (asked(sampling={"logit_bias": ((100, 1.0),)}), BadRequest),
        (asked(sampling={"top_p": 2.0}), BadRequest),
    ],
)
def test_what_cannot_be_answered_is_refused_before_its_turn(what: Asked, error: type[Exception]) -> None:
    lane = GatedLane(1)

    async def run() -> None:
        async with working(RecitingRoom({"small": []}, make_lane=lambda: lane)) as worker:
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            with pytest.raises(error):
                await told(ask(worker, what))
            assert worker.state().running == 1
            worker.cancel(running)
            assert lane.submitted == ["why?"]

    asyncio.run(run())


def test_a_prompt_that_takes_long_to_count_holds_up_nobody_who_is_written() -> None:
    """A reply at work goes on while megabytes are looked at; so does the going of the client who sent them."""
    lane, counted = GatedLane(2, most=3), threading.Event()

    class Room(RecitingRoom):
        def open(self, name: str):  # type: ignore[no-untyped-def]
            loaded = yield from super().open(name)

            def count(request: GenerateRequest) -> int:
                assert request.messages[-1].text != "long" or counted.wait(20)
                return 1

            return replace(loaded, count=count)

    async def run() -> None:
        room = Room({"small": []}, make_lane=lambda: lane)
        async with working_with_model(room, parallel=2) as worker:
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            long, gone, late = (ask(worker, asked(text)) for text in ("long", "gone", "late"))
            worker.cancel(gone)
            assert [type(event) for event in await told(gone)] == [Finished]
            lane.gate.set()
            assert text(await told(running)) == "word word word "
            assert worker.state().waiting == 2
            counted.set()
            assert text(await told(long)) == text(await told(late)) == "word word word "
            assert lane.submitted == ["why?", "long", "late"]

    asyncio.run(run())


def test_an_idle_model_is_unloaded_and_comes_back() -> None:
    async def run() -> None:
        room = RecitingRoom({"small": ["one"]})
        async with working(room, idle_seconds=0.05) as worker:
            assert text(await told(ask(worker))) == "one"
            await until(lambda: worker.state().phase == "empty")
            assert room.opened == ["small", "-small"]
            assert text(await told(ask(worker))) == "one"
            assert room.opened[2] == "small"

    asyncio.run(run())


@pytest.mark.parametrize("patience_seconds", [0.0, 20.0])
def test_stopping_lets_replies_end_as_long_as_patience_lasts(patience_seconds: float) -> None:
    lane = GatedLane(1, most=3)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane)
        async with working(room) as worker:
            running, waiting = ask(worker), ask(worker)
            await until(lambda: worker.state().running == 1 and worker.state().waiting == 1)
            worker.stop(patience_seconds=patience_seconds)
            with pytest.raises(Refused, match="stopping"):
                ask(worker)
            with pytest.raises(Refused, match="stopping"):
                await told(waiting)
            if patience_seconds:
                lane.gate.set()
            events = await told(running)
            assert events[-1].reason == ("stop" if patience_seconds else "cancelled")  # type: ignore[union-attr]
            await asyncio.to_thread(worker.join)
            assert room.opened == ["small", "-small"]
            assert lane.closed

    asyncio.run(run())


def test_a_second_wish_to_stop_is_heard() -> None:
    lane = GatedLane(1)

    async def run() -> None:
        async with working(RecitingRoom({"small": []}, make_lane=lambda: lane)) as worker:
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            worker.stop(patience_seconds=3600)
            assert worker.state().phase == "stopping"
            worker.stop(patience_seconds=0)
            assert (await told(running))[-1].reason == "cancelled"  # type: ignore[union-attr]

    asyncio.run(run())


def test_the_first_model_tells_how_it_gets_on() -> None:
    async def run() -> None:
        async with working(RecitingRoom({"small": []}), opens_first=True) as worker:
            events = await asyncio.to_thread(lambda: list(worker.opening()))
            assert [event.title for event in events] == ["small"]  # type: ignore[union-attr]
            assert worker.state().phase == "ready"

    asyncio.run(run())


def test_a_first_model_that_cannot_be_loaded_ends_the_worker() -> None:
    class Broken(RecitingRoom):
        def open(self, name: str) -> object:  # type: ignore[override]
            raise DoesNotFit("another r1mac holds it all")
            yield

    async def run() -> None:
        worker = Worker(Broken({"small": []}), queue_limit=1, opens_first=True)
        worker.start()
        with pytest.raises(R1MacError, match="holds it all"):
            await asyncio.to_thread(lambda: list(worker.opening()))
        await asyncio.to_thread(worker.join)
        with pytest.raises(Refused):
            ask(worker)

    asyncio.run(run())


def test_clients_that_vanish_free_every_slot() -> None:
    """Fifty clients go at any moment, waiting or not; nothing of them is left, and the next answer is right."""
    lane = GatedLane(4, most=200)
    lane.gate.set()

    async def leave(worker: Worker, number: int) -> None:
        job = ask(worker, asked(str(number)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.002 * (number % 17)):
                async for event in job.events():
                    if isinstance(event, TextDelta) and number % 5 == 0:
                        break
        worker.cancel(job)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane)
        async with working(room, parallel=4, queue_limit=64) as worker:
            await asyncio.gather(*(leave(worker, number) for number in range(50)))
            await until(lambda: (worker.state().running, worker.state().waiting) == (0, 0))
            assert text(await told(ask(worker))) == "word " * 200
            assert len(lane) == 0

    asyncio.run(run())


def test_counting_needs_no_turn() -> None:
    lane = GatedLane(1)

    async def run() -> None:
        async with working(RecitingRoom({"small": [], "large": []}, make_lane=lambda: lane)) as worker:
            ask(worker)
            await until(lambda: worker.state().running == 1)
            assert await worker.count_tokens(asked("one two three")) == 3
            assert await worker.count_tokens(asked("one two", model="large")) == 2
            with pytest.raises(UnknownModel):
                await worker.count_tokens(asked(model="nobody"))

    asyncio.run(run())
