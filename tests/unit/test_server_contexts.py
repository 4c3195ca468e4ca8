"""How long conversations may be: what is offered, what a wish becomes, and when a choice comes into force."""

import asyncio
import weakref
from dataclasses import replace

import pytest

from r1mac.errors import DoesNotFit, PromptTooLong, UnknownModel
from r1mac.machine.fake import M4_MAX_128
from r1mac.prepare.planning import Judgement, judge
from r1mac.prepare.target import resolve
from r1mac.server.asked import BadRequest
from r1mac.server.contexts import ContextChoices, grown, steps
from r1mac.server.worker import Worker
from r1mac.settings import Settings
from tests.serving import GatedLane, RecitingRoom, asked, text, told
from tests.working import ask, until, working_with_model


@pytest.mark.parametrize(
    ("wanted", "context", "longest", "becomes"),
    [
        (100, 4096, 65_536, 4096),
        (4096, 4096, 65_536, 4096),
        (4097, 4096, 65_536, 8192),
        (300, 256, 65_536, 4096),
        (40_000, 4096, 50_000, 50_000),
        (50_001, 4096, 50_000, 4096),
        (10**18, 4096, 65_536, 4096),
    ],
)
def test_a_wish_has_the_context_grow_by_doublings_as_far_as_it_fits(
    wanted: int, context: int, longest: int, becomes: int
) -> None:
    assert grown(wanted, context_tokens=context, longest_tokens=longest) == becomes


@pytest.mark.parametrize(
    ("model", "others", "offered"),
    [
        (131_072, (), (4096, 8192, 16_384, 32_768, 65_536, 131_072)),
        (10_000, (5120,), (4096, 5120, 8192, 10_000)),
        (4096, (512, 100, 5000), (512, 4096)),
        (2048, (), (2048,)),
    ],
)
def test_doublings_are_offered_up_to_what_the_model_knows(
    model: int, others: tuple[int, ...], offered: tuple[int, ...]
) -> None:
    assert steps(model, *others) == offered


def _judge(_: str) -> Judgement:
    """R1 70B at 8 bits on a Mac with 128 GB: there is room for some context, and not for all that it knows."""
    settings = Settings(bits=8)
    return judge(resolve("70b", settings), settings, M4_MAX_128)


def test_what_is_offered_says_what_it_needs_and_whether_it_fits() -> None:
    contexts = ContextChoices(_judge).told("70b", None)

    sizes = [offer.total_bytes for offer in contexts.offers]
    assert sizes == sorted(sizes)
    assert 8192 < contexts.longest_context_tokens < contexts.model_context_tokens == contexts.offers[-1].context_tokens
    for offer in contexts.offers:
        assert offer.fits == (offer.context_tokens <= contexts.longest_context_tokens)
        assert offer.fits == (offer.total_bytes <= contexts.budget_bytes)
    assert contexts.context_tokens in {offer.context_tokens for offer in contexts.offers}


def test_what_does_not_fit_is_refused_with_the_numbers_and_changes_nothing() -> None:
    choices = ContextChoices(_judge)
    longest = choices.told("70b", None).longest_context_tokens

    with pytest.raises(DoesNotFit, match="GiB with 131072 tokens of context") as refused:
        choices.choose("70b", 131_072)
    assert f"the longest that fits is {longest} tokens" in str(refused.value.hint)
    assert "--kv-bits 8" in str(refused.value.hint)
    with pytest.raises(DoesNotFit, match="knows contexts of at most 131072") as refused:
        choices.choose("70b", 200_000)
    assert "kv-bits" not in str(refused.value.hint)
    assert choices.judgement("70b") is None
    choices.choose("70b", longest)
    planned = choices.judgement("70b")
    assert planned is not None
    assert planned.plan.context_tokens == longest


def test_no_request_changes_what_a_person_chose() -> None:
    choices = ContextChoices(_judge)
    assert choices.may_grow("70b", free=True)
    assert not choices.may_grow("70b", free=False)
    choices.choose("70b", 8192, of_request=True)
    assert choices.may_grow("70b", free=True)
    choices.choose("70b", 4096)
    assert not choices.may_grow("70b", free=True)
    choices.choose("70b", 8192, of_request=True)

    assert choices.told("70b", 4096).context_tokens == 4096
    assert choices.told("70b", 4096).chosen


def test_a_choice_that_cannot_be_carried_out_is_taken_back() -> None:
    choices = ContextChoices(_judge)
    choices.choose("70b", 4096)
    choices.undo("70b", 4096)
    assert choices.judgement("70b") is None
    choices.choose("70b", 4096)
    choices.settle("70b", 4096)
    choices.choose("70b", 8192)
    choices.undo("70b", 16_384)  # another one, long since replaced
    assert choices.told("70b", None).context_tokens == 8192
    choices.undo("70b", 8192)
    assert choices.told("70b", None).context_tokens == 4096


def _context(worker: Worker) -> int | None:
    return worker.state().context_tokens


LONG = "word " * 3000


def test_another_context_waits_for_the_replies_at_work_and_comes_before_those_that_wait() -> None:
    """What was too long is answered in it, though it was asked for before it was in force; no reply is disturbed."""
    lanes = [GatedLane(2, most=3), GatedLane(2, most=3)]

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=iter(lanes).__next__)
        async with working_with_model(room, parallel=2) as worker:
            with pytest.raises(PromptTooLong, match="1000"):
                await told(ask(worker, asked(LONG)))
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            answer = worker.choose_context(None, 8192)
            assert (answer.context_tokens, answer.next_context_tokens, answer.chosen) == (1000, 8192, True)
            waiting = ask(worker, asked(LONG))
            await until(lambda: worker.state().waiting == 1)
            assert (_context(worker), worker.state().next_context_tokens) == (1000, 8192)
            assert lanes[0].submitted == ["why?"]  # there is a slot, and it is kept free
            for lane in lanes:
                lane.gate.set()
            assert text(await told(running)) == text(await told(waiting)) == "word word word "
            state = worker.state()
            assert (state.context_tokens, state.next_context_tokens, state.safe_tokens) == (8192, None, 4096)
            assert room.opened == ["small", "small:8192"]
            assert lanes[0].closed

    asyncio.run(run())


def test_the_latest_choice_counts() -> None:
    lane = GatedLane(1)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane)
        async with working_with_model(room) as worker:
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            for tokens in (4096, 65_536, 8192):
                worker.choose_context("small", tokens)
            worker.cancel(running)
            await until(lambda: _context(worker) == 8192)
            assert room.opened == ["small", "small:8192"]

    asyncio.run(run())


def test_who_waits_with_a_prompt_that_a_shorter_context_has_no_room_for_is_told_so() -> None:
    lane = GatedLane(1)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane, context_tokens=8192)
        async with working_with_model(room) as worker:
            running, waiting = ask(worker), ask(worker, asked(LONG))
            await until(lambda: worker.state().running == 1)
            worker.choose_context(None, 2048)
            worker.cancel(running)
            with pytest.raises(PromptTooLong, match=r"3000.*2048"):
                await told(waiting)
            assert (worker.state().running, worker.state().waiting) == (0, 0)

    asyncio.run(run())


def test_a_choice_that_does_not_fit_is_refused_and_the_former_context_goes_on() -> None:
    async def run() -> None:
        async with working_with_model(RecitingRoom({"small": ["one"]})) as worker:
            with pytest.raises(DoesNotFit, match="131072"):
                worker.choose_context(None, 131_072)
            with pytest.raises(UnknownModel):
                worker.choose_context("nobody", 4096)
            assert worker.contexts(None).context_tokens == 1000
            assert worker.state().next_context_tokens is None
            assert text(await told(ask(worker))) == "one"

    asyncio.run(run())


def test_a_choice_that_turns_out_not_to_fit_is_told_and_the_former_context_goes_on() -> None:
    """Another process took the memory meanwhile. The next choice has nothing to do with that."""

    async def run() -> None:
        room = RecitingRoom({"small": ["one", "two"]}, full=DoesNotFit("another r1mac holds it all", hint="end it"))
        async with working_with_model(room) as worker:
            worker.choose_context(None, 4096)
            await until(lambda: worker.contexts(None).problem)
            contexts = worker.contexts(None)
            assert contexts.problem == "another r1mac holds it all (end it)"
            assert (contexts.context_tokens, contexts.next_context_tokens) == (1000, None)
            assert text(await told(ask(worker))) == "one"
            room.full = None
            worker.choose_context(None, 8192)
            await until(lambda: _context(worker) == 8192)
            assert worker.contexts(None).problem is None
            assert text(await told(ask(worker))) == "two"

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_weights_that_have_to_be_loaded_anew_are_and_come_back_as_they_were_where_that_fails(fails: bool) -> None:
    class Room(RecitingRoom):
        def open(self, name: str):  # type: ignore[no-untyped-def]
            if fails and self.chosen.get(name) == 4096:
                raise DoesNotFit("another r1mac was quicker")
            return (yield from super().open(name))

    async def run() -> None:
        room = Room({"small": ["one"]}, reloads=True)
        async with working_with_model(room, idle_seconds=3600) as worker:
            worker.choose_context(None, 4096)
            await until(lambda: room.opened == ["small", "-small", "small"])
            assert text(await told(ask(worker))) == "one"
            assert _context(worker) == (1000 if fails else 4096)
            assert (worker.contexts(None).problem is not None) == fails

    asyncio.run(run())


def test_nobody_names_a_model_any_more_when_another_takes_its_place() -> None:
    """What is still named keeps its memory, and the next one is loaded beside it."""
    alive: list[object] = []

    class Room(RecitingRoom):
        def close(self) -> None:
            session = weakref.ref(self._session) if self._session is not None else lambda: None
            super().close()
            alive.append(session())

    async def run() -> None:
        room = Room({"small": ["one", "two"], "large": ["three"]}, reloads=True)
        async with working_with_model(room) as worker:
            worker.choose_context(None, 2048)
            assert text(await told(ask(worker))) == "one"
            refused = ask(worker, asked(sampling={"logit_bias": ((100, 1.0),)}, model="large"))
            other = ask(worker, asked(model="small", context_tokens=3000))
            with pytest.raises(BadRequest):
                await told(refused)
            assert text(await told(other)) == "one"
            assert room.opened == ["small", "-small", "small", "-small", "large", "-large", "small"]
        room = Room({"small": ["one"]}, reloads=True)
        async with working_with_model(room) as worker:
            assert text(await told(ask(worker, asked(context_tokens=3000)))) == "one"
            assert room.opened == ["small", "-small", "small"]

    asyncio.run(run())
    assert alive == [None] * len(alive)
    assert len(alive) == 6


def test_a_choice_is_kept_when_the_model_goes_and_comes_back_and_may_be_made_before_it_comes() -> None:
    async def run() -> None:
        room = RecitingRoom({"small": ["one"], "large": ["two"]})
        async with working_with_model(room) as worker:
            worker.choose_context(None, 4096)
            ahead = worker.choose_context("large", 8192)
            assert (ahead.loaded, ahead.context_tokens, ahead.next_context_tokens) == (False, 8192, None)
            await told(ask(worker, asked(keep_loaded_seconds=0.0)))
            await until(lambda: worker.state().phase == "empty")
            assert worker.contexts("small").context_tokens == 4096
            await told(ask(worker, asked(model="large")))
            assert _context(worker) == 8192
            await told(ask(worker, asked(model="small")))
            assert _context(worker) == 4096
            assert room.opened == ["small", "-small", "large", "-large", "small"]

    asyncio.run(run())


def test_requests_have_the_context_grow_and_do_not_turn_it_to_and_fro() -> None:
    """Two clients with different wishes: it grows once, with nobody at work, and stays."""
    lane = GatedLane(2, most=3)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane)
        async with working_with_model(room, parallel=2) as worker:
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            grows = ask(worker, asked(LONG, context_tokens=6000))
            await until(lambda: worker.state().waiting == 1)
            assert (_context(worker), len(lane.submitted)) == (1000, 1)
            lane.gate.set()
            assert text(await told(running)) == text(await told(grows)) == "word word word "
            for wish in (500, 6000, 2048, 8000, 2_000_000):
                assert text(await told(ask(worker, asked(context_tokens=wish)))) == "word word word "
            assert (_context(worker), worker.contexts(None).chosen) == (8192, False)
            assert room.opened == ["small", "small:8192"]
            worker.choose_context(None, 2048)
            await told(ask(worker, asked(context_tokens=8000)))
            assert _context(worker) == 2048

    asyncio.run(run())


def test_a_wish_that_there_is_no_memory_for_now_is_answered_in_the_context_that_there_is() -> None:
    async def run() -> None:
        room = RecitingRoom({"small": ["one", "two"]}, full=DoesNotFit("another r1mac holds it all"))
        async with working_with_model(room) as worker:
            assert text(await told(ask(worker, asked(context_tokens=6000)))) == "one"
            with pytest.raises(PromptTooLong, match="planned for 1000"):
                await told(ask(worker, asked(LONG, context_tokens=6000)))
            assert text(await told(ask(worker))) == "two"
            assert (_context(worker), worker.state().running) == (1000, 0)

    asyncio.run(run())


def test_a_server_that_stops_waits_for_no_choice() -> None:
    lane = GatedLane(1, most=3)

    async def run() -> None:
        room = RecitingRoom({"small": []}, make_lane=lambda: lane)
        async with working_with_model(room) as worker:
            running = ask(worker)
            await until(lambda: worker.state().running == 1)
            worker.choose_context(None, 4096)
            worker.stop(patience_seconds=20)
            lane.gate.set()
            assert text(await told(running)) == "word word word "
            await asyncio.to_thread(worker.join)
            assert room.opened == ["small", "-small"]

    asyncio.run(run())


def test_a_lane_that_can_goes_on_with_what_it_has_read() -> None:
    lane, fitted = GatedLane(1), []

    class Room(RecitingRoom):
        def resize(self):  # type: ignore[no-untyped-def]
            resized = super().resize()
            return None if resized is None else replace(resized, refit_lane=fitted.append)

    async def run() -> None:
        async with working_with_model(Room({"small": []}, make_lane=lambda: lane)) as worker:
            worker.choose_context(None, 4096)
            await until(lambda: _context(worker) == 4096)
            await until(lambda: fitted == [lane])
            assert not lane.closed

    asyncio.run(run())
