"""What rows of a batch have read is kept for those that begin alike, within its bound."""

from collections.abc import Callable

import pytest

from r1mac.engine.batch import Batch
from r1mac.engine.control import Control
from r1mac.engine.events import Event, PrefillProgress
from r1mac.engine.load import Engine
from r1mac.engine.request import Message
from r1mac.units import MIB
from tests.sessions import finished, request, session_of, text

LONG = "A word or two of what was said before, at some length. " * 8


def _batch(engine: Engine, *, kept_prompts_bytes: int = 64 * MIB, parallel: int = 4) -> Batch:
    return Batch(
        engine.model,
        engine.tokenizer,
        engine.template,
        parallel=parallel,
        context_tokens=2000,
        prefill_step_tokens=128,
        kept_prompts_bytes=kept_prompts_bytes,
    )


def _reply(batch: Batch, messages: tuple[Message, ...], **changes: object) -> list[Event]:
    ticket = batch.submit(request(messages, **changes))
    events: list[Event] = []
    while len(batch):
        events += [event for one, event in batch.step() if one == ticket]  # type: ignore[misc]
    return events


@pytest.mark.parametrize("kind", ["llama", "deepseek_v3"])
def test_a_next_turn_reads_only_what_is_new(kind: str, engines: Callable[..., Engine]) -> None:
    """The next turn of a conversation takes over what was read of the one before, and says what it says alone."""
    engine = engines(kind)
    first = (Message("user", LONG),)
    following = (*first, Message("assistant", "Yes."), Message("user", "And then?"))
    batch = _batch(engine)

    opened = _reply(batch, first)
    events = _reply(batch, following)

    assert finished(opened).stats.cached_tokens == 0
    prompt_tokens = finished(opened).stats.prompt_tokens
    # All but the tokens that open the reply.
    assert prompt_tokens - 20 < finished(events).stats.cached_tokens <= prompt_tokens
    progress = [event for event in events if isinstance(event, PrefillProgress)]
    assert progress[-1].done_tokens == progress[-1].total_tokens
    assert all(event.cached_tokens == finished(events).stats.cached_tokens for event in progress)
    assert text(events) == text(session_of(engine.model, engine).generate(request(following)))


def test_rows_at_once_share_what_was_read_and_nothing_else(engines: Callable[..., Engine]) -> None:
    """Several replies that begin alike take over the same prefix at once; none disturbs another."""
    engine = engines()
    asked = [request((Message("user", LONG + end),), max_tokens=16) for end in ("One?", "Two?", "Three?")]
    batch = _batch(engine)
    _reply(batch, (Message("user", LONG),))

    tickets = [batch.submit(one) for one in asked]
    events: dict[int, list[Event]] = {ticket: [] for ticket in tickets}
    while len(batch):
        for ticket, event in batch.step():
            events[ticket].append(event)  # type: ignore[arg-type]

    for ticket, one in zip(tickets, asked, strict=True):
        assert finished(events[ticket]).stats.cached_tokens > 300
        assert text(events[ticket]) == text(session_of(engine.model, engine).generate(one))


@pytest.mark.parametrize("after", [1, 4])
def test_a_cancelled_reply_leaves_what_it_read(after: int, engines: Callable[..., Engine]) -> None:
    """Who asks again after a time-out does not wait for the same prompt twice."""
    engine = engines()
    batch, control = _batch(engine), Control()
    batch.submit(request((Message("user", LONG),)), control)
    for _ in range(after):
        list(batch.step())
    control.cancel()
    list(batch.step())
    assert len(batch) == 0

    events = _reply(batch, (Message("user", LONG),))

    assert finished(events).stats.cached_tokens >= 128
    assert text(events) == text(session_of(engine.model, engine).generate(request((Message("user", LONG),))))


def test_the_bound_holds_under_load(engines: Callable[..., Engine]) -> None:
    """Conversations of which only some fit at once: the bound is never passed, and every answer is right."""
    engine = engines()
    one_bytes = 0
    batch = _batch(engine)
    _reply(batch, (Message("user", LONG),), max_tokens=2)
    one_bytes = batch.kept_bytes
    assert one_bytes > 0
    batch = _batch(engine, kept_prompts_bytes=int(2.5 * one_bytes))
    asked = [request((Message("user", f"{number} {LONG}"),), max_tokens=3) for number in range(6)]
    expected = [text(session_of(engine.model, engine).generate(one)) for one in asked]

    for _ in range(2):
        tickets = [batch.submit(one) for one in asked]
        events: dict[int, list[Event]] = {ticket: [] for ticket in tickets}
        while len(batch):
            for ticket, event in batch.step():
                events[ticket].append(event)  # type: ignore[arg-type]
            assert batch.kept_bytes <= 2.5 * one_bytes
        assert [text(events[ticket]) for ticket in tickets] == expected
    assert batch.kept_bytes > one_bytes
    batch.close()
    assert batch.kept_bytes == 0


def test_nothing_is_kept_without_memory_for_it(engines: Callable[..., Engine]) -> None:
    """A batch of which no memory was planned for prompts keeps none."""
    batch = _batch(engines(), kept_prompts_bytes=0)
    _reply(batch, (Message("user", LONG),))

    assert batch.kept_bytes == 0
    assert finished(_reply(batch, (Message("user", LONG),))).stats.cached_tokens == 0
