"""A thought that comes near one of its limits is closed, and the model answers."""

from collections.abc import Callable
from typing import Any

import pytest

from r1mac.engine.events import Event
from r1mac.engine.load import Engine
from tests.sessions import finished, notices, request, session_of, text, thinker


def _events(engine: Engine, *, context_tokens: int = 4000, **changes: Any) -> list[Event]:
    """Return the events of a model that never stops thinking unless its thought is closed."""
    model = thinker(engine.tokenizer.encode, "Hm. ", "The answer is four.")
    session = session_of(model, engine, context_tokens=context_tokens)
    return list(session.generate(request(**{"max_tokens": 2000, **changes})))


@pytest.mark.parametrize("think_tokens", [1, 7, 50, 300])
def test_think_tokens_end_the_thought(think_tokens: int, engines: Callable[..., Engine]) -> None:
    """The thought has as many tokens as were allowed, before the words that close it, and the answer is whole."""
    events = _events(engines(), think_tokens=think_tokens)

    thought, _, _ = text(events, "think").partition("\n\nI have thought long enough")
    assert thought == ("Hm. " * 80)[:think_tokens]
    assert text(events, "answer") == "The answer is four."
    assert finished(events).reason == "stop"
    ((kind, said),) = notices(events)
    assert kind == "landing"
    assert f"--think-tokens {think_tokens}" in said


def test_think_seconds_end_the_thought(engines: Callable[..., Engine]) -> None:
    """A thought whose time is over is closed, at the token at work."""
    events = _events(engines(), think_seconds=0.05)

    assert text(events, "answer") == "The answer is four."
    assert "time for thinking is up" in text(events, "think")


@pytest.mark.parametrize("limit", ["max_tokens", "context_tokens"])
def test_room_for_the_answer_is_kept(limit: str, engines: Callable[..., Engine]) -> None:
    """Where the reply's length or the planned context ends, there was an answer before."""
    events = _events(engines(), **{limit: 900})

    assert text(events, "answer") == "The answer is four."
    assert finished(events).reason == "stop"
    assert [kind for kind, _ in notices(events)] == ["landing"]


def test_a_thought_that_ends_in_time_is_left_alone(engines: Callable[..., Engine]) -> None:
    """A limit that is not met changes nothing."""
    model = thinker(engines().tokenizer.encode, "Four.</think>", "Four.")
    session = session_of(model, engines())

    events = list(session.generate(request(max_tokens=900, think_tokens=100, think_seconds=60)))

    assert text(events, "think") == "Four."
    assert text(events, "answer") == "Four."
    assert notices(events) == []
