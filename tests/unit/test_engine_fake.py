"""engine.fake: a recital behaves as a session does, for whoever looks at its events."""

import threading

import pytest

from r1mac.engine.control import Control
from r1mac.engine.events import Event, Finished, Notice, Pace, TextDelta
from r1mac.engine.fake import RecitingSession
from r1mac.engine.request import GenerateRequest, Message
from r1mac.ui import stream

REQUEST = GenerateRequest(messages=(Message("user", "2+2?"),), max_tokens=100)
TURN = "one two three four</think>\n\nFive. Six."


def _texts(events: list[Event]) -> tuple[str, str]:
    deltas = [event for event in events if isinstance(event, TextDelta)]
    thought, answer = (
        "".join(delta.text for delta in deltas if delta.channel == channel) for channel in ("think", "answer")
    )
    return thought, answer


def _steered(wish, *, after: int = 2, **options: float) -> list[Event]:
    """Return the events of a turn whose *wish* comes after so many pieces of text."""
    control, events, seen = Control(), [], 0
    for event in RecitingSession([TURN], **options).generate(REQUEST, control):
        events.append(event)
        seen += isinstance(event, TextDelta)
        if isinstance(event, TextDelta) and seen == after:
            wish(control)
    return events


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("2+2 is\n4</think>\n\nFour. It is.", "2+2 is\n4", "Four. It is."),
        ("no end", "no end", ""),
        ("</think>a  b", "", "a  b"),
    ],
)
def test_what_is_recited_is_what_is_shown(
    text: str, thought: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """RecitingSession says a text as a model would, thought and answer apart, word by word."""
    shown = stream.show(RecitingSession([text]).generate(REQUEST), quiet=False, as_json=False)

    out, err = capsys.readouterr()
    assert shown.answer == out.removesuffix("\n") == answer
    assert err.startswith(thought)
    assert shown.finished.stats.generated_tokens == len(text.split())


def test_a_recital_can_be_limited_and_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """RecitingSession keeps to max_tokens and to Control as a real session does."""
    session, control = RecitingSession(["a b c d", "a b c d"], in_thought=False), Control()
    control.cancel()
    limited = stream.show(
        session.generate(GenerateRequest(messages=REQUEST.messages, max_tokens=2)), quiet=True, as_json=False
    )
    stopped = stream.show(session.generate(REQUEST, control), quiet=True, as_json=False)

    assert (limited.answer, limited.finished.reason) == ("a b", "length")
    assert (stopped.answer, stopped.finished.reason) == ("a", "cancelled")
    assert [request.max_tokens for request in session.requests] == [2, 100]


def test_answer_now_leaves_out_the_rest_of_the_thought() -> None:
    """The answer is the same; the thought ends where it was."""
    events = _steered(Control.answer_now)

    assert _texts(events) == ("one two", "Five. Six.")
    assert [event.kind for event in events if isinstance(event, Notice)] == ["steering"]


def test_a_hint_is_part_of_the_thought() -> None:
    """It stands where the thought was when it came."""
    thought, answer = _texts(_steered(lambda control: control.hint("try 5")))

    assert thought.index("two") < thought.index("try 5") < thought.index("three")
    assert answer == "Five. Six."


def test_think_more_says_the_thought_again() -> None:
    """The thought ends once, later."""
    thought, answer = _texts(_steered(Control.think_more))

    assert thought.count("three") == 2
    assert answer == "Five. Six."


def test_a_wish_in_the_answer_is_refused() -> None:
    """There is nothing to steer any more, and that is said."""
    events = _steered(lambda control: control.hint("try 5"), after=5)

    assert _texts(events) == ("one two three four", "Five. Six.")
    assert "no thought" in next(event.text for event in events if isinstance(event, Notice))


@pytest.mark.parametrize(("way", "reason"), [(Control.resume, "stop"), (Control.cancel, "cancelled")])
def test_a_pause_lasts_until_somebody_ends_it(way, reason: str) -> None:
    """A paused recital waits for resume or cancel from another thread."""
    resumed = threading.Event()

    def wish(control: Control) -> None:
        def end() -> None:
            resumed.set()
            way(control)

        control.pause()
        threading.Timer(0.2, end).start()

    events = _steered(wish)

    assert resumed.is_set()
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == reason


def test_a_recital_with_a_pace_tells_it() -> None:
    """At five words a second there is a Pace every five words, with what is left."""
    paces = [event for event in _steered(lambda _: None, words_per_s=5) if isinstance(event, Pace)]

    assert [(pace.written_tokens, pace.think_tokens, pace.left_tokens) for pace in paces] == [(5, 4, 95)]
