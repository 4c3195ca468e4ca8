"""Replies side by side: the text of each is what it would be alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from mlx import nn

from r1mac.engine.batch import Batch
from r1mac.engine.control import Control
from r1mac.engine.events import Event, PrefillProgress, TextDelta
from r1mac.engine.load import Engine
from r1mac.engine.request import GenerateRequest, Message, Sampling
from r1mac.errors import DoesNotFit
from tests.checkpoints import CONFIGS
from tests.sessions import finished, notices, request, session_of, text, thinker

TEXTS = (
    "Why is the sky blue?",
    "Hi",
    "Name a colour, any colour at all, and then say why it is the best of them.",
    "2+2",
)


@contextmanager
def _batch(engine: Engine, *, parallel: int, model: nn.Module | None = None) -> Iterator[Batch]:
    batch = Batch(
        model or engine.model,
        engine.tokenizer,
        engine.template,
        parallel=parallel,
        context_tokens=2000,
        prefill_step_tokens=16,
    )
    yield batch
    batch.close()


def _requests(**changes: object) -> list[GenerateRequest]:
    return [request((Message("user", said),), **changes) for said in TEXTS]


def _run(batch: Batch, events: dict[int, list[Event]] | None = None) -> dict[int, list[Event]]:
    """Return the events of each reply, by ticket."""
    found: dict[int, list[Event]] = {} if events is None else events
    while len(batch):
        for ticket, event in batch.step():
            found.setdefault(ticket, []).append(event)
    return found


def _alone(engine: Engine, asked: GenerateRequest) -> str:
    return text(session_of(engine.model, engine, prefill_step_tokens=16).generate(asked))


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("kind", CONFIGS)
def test_each_reply_is_what_it_is_alone(kind: str, parallel: int, engines: Callable[..., Engine]) -> None:
    """Prompts of different lengths, more than may run at once, greedy: the texts are those of single sessions."""
    asked = _requests(max_tokens=16)

    with _batch(engines(kind), parallel=parallel) as batch:
        tickets = [batch.submit(one) for one in asked]
        events = _run(batch)

    assert [text(events[ticket]) for ticket in tickets] == [_alone(engines(kind), one) for one in asked]
    assert all(finished(events[ticket]).reason == "length" for ticket in tickets)


def test_seeds_and_lengths_are_each_replys_own(engines: Callable[..., Engine]) -> None:
    """Every reply has its own seed, sampling and length."""
    asked = [
        request((Message("user", said),), max_tokens=count, sampling=Sampling(temperature=1.0, top_p=0.9, seed=count))
        for said, count in zip(TEXTS, (3, 20, 11, 1), strict=True)
    ]

    with _batch(engines(), parallel=4) as batch:
        tickets = [batch.submit(one) for one in asked]
        events = _run(batch)

    assert [text(events[ticket]) for ticket in tickets] == [_alone(engines(), one) for one in asked]
    assert [finished(events[ticket]).stats.generated_tokens for ticket in tickets] == [3, 20, 11, 1]


def test_a_penalty_reads_its_own_replys_history(engines: Callable[..., Engine]) -> None:
    """A sampler that needs the tokens before gets those of its own reply, as in a session."""
    plain = request(max_tokens=24)
    asked = request(max_tokens=24, sampling=Sampling(temperature=0, frequency_penalty=1.5))

    with _batch(engines(), parallel=2) as batch:
        tickets = [batch.submit(one) for one in (plain, asked)]
        events = _run(batch)

    assert text(events[tickets[0]]) == _alone(engines(), plain)
    assert text(events[tickets[1]]) == _alone(engines(), asked) != _alone(engines(), plain)


def test_one_joins_while_others_write(engines: Callable[..., Engine]) -> None:
    """A request that comes later is read and written beside those at work, and changes none of them."""
    early, late = request(max_tokens=40), request((Message("user", TEXTS[2] * 3),), max_tokens=10)
    events: dict[int, list[Event]] = {}

    with _batch(engines(), parallel=2) as batch:
        first = batch.submit(early)
        while sum(isinstance(event, TextDelta) for event in events.get(first, ())) < 5:
            for ticket, event in batch.step():
                events.setdefault(ticket, []).append(event)
        second = batch.submit(late)
        _run(batch, events)

    assert text(events[first]) == _alone(engines(), early)
    assert text(events[second]) == _alone(engines(), late)
    steps = [event.done_tokens for event in events[second] if isinstance(event, PrefillProgress)]
    assert len(steps) > 3
    assert steps == sorted(steps)


def test_a_prompt_beyond_the_context_is_refused_alone(engines: Callable[..., Engine]) -> None:
    """A prompt that does not fit is refused when it is submitted; the others go on."""
    with _batch(engines(), parallel=2) as batch:
        ticket = batch.submit(request())
        with pytest.raises(DoesNotFit, match="memory is planned for 2000"):
            batch.submit(request((Message("user", "x" * 3000),)))
        events = _run(batch)

    assert text(events[ticket]) == _alone(engines(), request())


@pytest.mark.parametrize("after", [0, 3])
def test_one_is_cancelled(after: int, engines: Callable[..., Engine]) -> None:
    """A cancelled reply ends with what it has, before its prompt is read or later; the others are not touched."""
    control = Control()
    events: dict[int, list[Event]] = {}

    with _batch(engines(), parallel=4) as batch:
        tickets = [batch.submit(one, control if at == 1 else None) for at, one in enumerate(_requests())]
        for _ in range(after):
            for ticket, event in batch.step():
                events.setdefault(ticket, []).append(event)
        control.cancel()
        _run(batch, events)

    assert finished(events[tickets[1]]).reason == "cancelled"
    for ticket, asked in zip(tickets, _requests(), strict=True):
        if ticket != tickets[1]:
            assert text(events[ticket]) == _alone(engines(), asked)


def test_a_pause_lets_the_others_go_on(engines: Callable[..., Engine]) -> None:
    """A paused reply takes no part until it is resumed, and then goes on with the same text."""
    control = Control()
    events: dict[int, list[Event]] = {}

    with _batch(engines(), parallel=2) as batch:
        paused, other = batch.submit(request(max_tokens=30), control), batch.submit(_requests()[2])
        for _ in range(12):
            for ticket, event in batch.step():
                events.setdefault(ticket, []).append(event)
        control.pause()
        while len(batch) == 2:
            for ticket, event in batch.step():
                events.setdefault(ticket, []).append(event)
        assert "paused" in [said for _, said in notices(events[paused])]
        control.resume()
        _run(batch, events)

    assert text(events[paused]) == _alone(engines(), request(max_tokens=30))
    assert text(events[other]) == _alone(engines(), _requests()[2])


def test_thoughts_are_steered_one_by_one(engines: Callable[..., Engine]) -> None:
    """Answer now, a hint and more thought reach the reply that they are meant for."""
    engine = engines()
    model = thinker(engine.tokenizer.encode, "So it is four.</think>", "Four.")
    endless = thinker(engine.tokenizer.encode, "Hm. ", "Four.")
    controls = [Control() for _ in range(3)]

    with _batch(engine, parallel=3, model=model) as batch:
        tickets = [batch.submit(request(max_tokens=200), control) for control in controls]
        controls[1].think_more()
        controls[2].hint("Mind the sign.")
        events = _run(batch)
    with _batch(engine, parallel=2, model=endless) as batch:
        closing = Control()
        ends, goes_on = batch.submit(request(max_tokens=300), closing), batch.submit(request(max_tokens=90))
        closing.answer_now()
        others = _run(batch)

    assert text(events[tickets[0]]) == "So it is four.Four."
    assert text(events[tickets[1]], "think").count("Wait") == 1
    assert "Mind the sign." in text(events[tickets[2]], "think")
    assert text(others[ends], "answer") == "Four."
    assert text(others[goes_on], "answer") == ""
    assert finished(others[goes_on]).reason == "length"
