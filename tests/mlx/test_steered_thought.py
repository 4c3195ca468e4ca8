"""A thought that is steered while it runs: answer now, a hint, more thought, a pause."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Pace, TextDelta
from r1mac.engine.load import Engine
from tests.sessions import finished, notices, request, session_of, text, thinker


def _events(
    engine: Engine, thought: str, *, wish: Callable[[Control], None], after: int = 12, **options: int
) -> Iterator[Event]:
    """Yield the events of a reply whose *wish* comes after so many tokens of the thought."""
    control, seen = Control(), 0
    session = session_of(thinker(engine.tokenizer.encode, thought, "Four."), engine)
    for event in session.generate(request(**{"max_tokens": 600, **options}), control):
        yield event
        seen += isinstance(event, TextDelta)
        if seen == after and isinstance(event, TextDelta):
            wish(control)


def test_answer_now_closes_the_thought(engines: Callable[..., Engine]) -> None:
    """The thought ends at once, and the model answers with what it has."""
    events = list(_events(engines(), "Hm. ", wish=Control.answer_now))

    thought, _, closing = text(events, "think").partition("The user wants the answer now.")
    assert thought.startswith("Hm. Hm. Hm. ")
    assert len(thought) <= 16
    assert closing
    assert text(events, "answer") == "Four."
    assert finished(events).reason == "stop"
    assert [kind for kind, _ in notices(events)] == ["landing"]


def test_a_hint_is_read_by_the_model(engines: Callable[..., Engine]) -> None:
    """A hint stands in the thought where it was given, and what follows comes after it."""
    events = list(_events(engines(), "Hm. ", wish=lambda control: control.hint("Try 4."), max_tokens=160))

    before, _, after = text(events, "think").partition("\n\nWait, the user adds: Try 4.\n")
    assert before.startswith("Hm. ")
    assert after
    assert finished(events).stats.generated_tokens == 160


@pytest.mark.parametrize("times", [1, 2])
def test_think_more_goes_on_where_the_thought_would_end(times: int, engines: Callable[..., Engine]) -> None:
    """The thought goes on once for each wish, and then ends by itself."""

    def wish(control: Control) -> None:
        for _ in range(times):
            control.think_more()

    events = list(_events(engines(), "So it is four.</think>", wish=wish, after=3))

    assert text(events, "think").count("Wait") == times
    assert "</think>" not in text(events)
    assert text(events, "answer") == "Four."


def test_a_pause_stops_the_work(engines: Callable[..., Engine]) -> None:
    """While paused nothing is written; resumed from another thread it goes on with the same text."""
    control = Control()
    thread = threading.Timer(0.6, control.resume)
    expected = text(_events(engines(), "Hm. ", wish=Control.answer_now, after=40))

    def wish(running: Control) -> None:
        nonlocal control
        control = running
        control.pause()
        control.answer_now()
        thread.function = control.resume
        thread.start()

    started = time.perf_counter()
    events = list(_events(engines(), "Hm. ", wish=wish, after=40))

    thread.join()
    assert text(events) == expected
    assert time.perf_counter() - started >= 0.6
    assert [what for _, what in notices(events)][:2] == ["paused", "going on"]
    assert finished(events).stats.decode_seconds < time.perf_counter() - started - 0.5


def test_a_paused_reply_can_be_cancelled(engines: Callable[..., Engine]) -> None:
    """Cancelling ends a pause and the reply."""

    def wish(control: Control) -> None:
        control.pause()
        threading.Timer(0.1, control.cancel).start()

    events = list(_events(engines(), "Hm. ", wish=wish))

    assert finished(events).reason == "cancelled"


@pytest.mark.parametrize("wish", [Control.answer_now, Control.think_more, lambda control: control.hint("x")])
def test_an_answer_is_not_steered(wish: Callable[[Control], None], engines: Callable[..., Engine]) -> None:
    """A wish that comes when the answer has begun changes nothing and is answered with a word."""
    events = list(_events(engines(), "ok</think>", wish=wish, after=5))

    assert text(events) == "okFour."
    assert [kind for kind, _ in notices(events)] == ["steering"]


def test_the_pace_is_told(engines: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long reply says from time to time how far it is and how much is left at most."""
    monkeypatch.setattr("r1mac.engine.reply._PACE_SECONDS", 0.05)
    control = Control()
    session = session_of(thinker(engines().tokenizer.encode, "Hm. ", "Four."), engines())
    paces = []
    for event in session.generate(request(max_tokens=3500), control):
        if isinstance(event, Pace):
            paces.append(event)
            if len(paces) == 2:
                control.cancel()

    first, second = paces
    assert 0 < first.written_tokens < second.written_tokens
    # A quarter is kept for the answer, and what closing the thought takes.
    assert 0 < 3500 * 3 // 4 - second.written_tokens - second.left_tokens < 200
    assert second.think_tokens == second.written_tokens
    assert second.left_seconds
