"""Answers that are cut, held to a format, looked at token by token, or go in circles; the thought stays free."""

import json
from collections.abc import Callable

import pytest

from r1mac.engine.events import ChosenToken, Event
from r1mac.engine.load import Engine
from r1mac.engine.request import AnswerFormat, Sampling
from tests.sessions import ScriptedModel, finished, notices, request, session_of, text, thinker


def _events(engine: Engine, thought: str, answer: str, **changes: object) -> list[Event]:
    model = thinker(engine.tokenizer.encode, thought, answer)
    return list(session_of(model, engine).generate(request(**{"max_tokens": 600, **changes})))


@pytest.mark.parametrize(
    ("stop", "answer"), [(("And",), "Four. "), ((".", "And"), "Four"), (("never",), "Four. And so on.")]
)
def test_a_stop_text_ends_the_answer(stop: tuple[str, ...], answer: str, engines: Callable[..., Engine]) -> None:
    """The answer ends before the stop text, which may stand in the thought."""
    events = _events(engines(), "And. never.</think>", "Four. And so on.", stop=stop)

    assert text(events, "think") == "And. never."
    assert text(events, "answer") == answer
    assert finished(events).reason == "stop"


@pytest.mark.parametrize("think", [True, False])
def test_an_answer_is_held_to_its_schema(think: bool, engines: Callable[..., Engine]) -> None:
    """Whatever the model wants to say, its answer is JSON of the schema, after a thought in its own words."""
    schema = {
        "type": "object",
        "properties": {"four": {"type": "boolean"}},
        "required": ["four"],
        "additionalProperties": False,
    }
    answer_format = AnswerFormat(kind="json_schema", text=json.dumps(schema))

    events = _events(engines(), "It is so.</think>", "Four, of course.", answer_format=answer_format, think=think)

    assert isinstance(json.loads(text(events, "answer"))["four"], bool)
    assert text(events, "think") == ("It is so." if think else "")
    assert finished(events).reason == "stop"


def test_a_landed_thought_is_followed_by_the_format(engines: Callable[..., Engine]) -> None:
    """A thought that had to be closed is followed by an answer in its format too."""
    answer_format = AnswerFormat(kind="regex", text="[0-9]{4}")

    events = _events(engines(), "Hm. ", "Four.", answer_format=answer_format, think_tokens=20)

    assert text(events, "answer").isdecimal()
    assert len(text(events, "answer")) == 4


def test_every_token_is_told_with_its_chances(engines: Callable[..., Engine]) -> None:
    """With logprobs there is an event for each token of the reply, in order, with as many alternatives."""
    events = _events(engines(), "So.</think>", "Four.", logprobs=2)

    told = [event for event in events if isinstance(event, ChosenToken)]
    assert "".join(event.chosen.text for event in told) == "So.</think>Four."
    assert {event.channel for event in told[:4]} == {"think"}
    assert all(len(event.likeliest) == 2 for event in told)
    assert all(event.chosen == event.likeliest[0] for event in told)
    assert all(-0.1 < event.chosen.logprob <= 0 for event in told)


def test_penalties_and_stops_do_not_change_a_seeds_text(engines: Callable[..., Engine]) -> None:
    """A reply that is written step by step has the text that the loop with look-ahead gives it."""
    sampling = Sampling(temperature=1.0, seed=11)
    engine = engines()
    plain = list(session_of(engine.model, engine).generate(request(max_tokens=60, sampling=sampling)))

    looked_at = list(session_of(engine.model, engine).generate(request(max_tokens=60, sampling=sampling, logprobs=0)))

    assert text(looked_at) == text(plain)


def test_a_thought_in_circles_is_landed(engines: Callable[..., Engine]) -> None:
    """A thought that says one thing for ever is closed, and the model answers."""
    events = _events(engines(), "Let me check this again, and once more. ", "Four.", max_tokens=3500)

    assert text(events, "answer") == "Four."
    ((kind, said),) = notices(events)
    assert kind == "loop"
    assert "went in circles" in said
    assert finished(events).stats.think_tokens < 1500


def test_an_answer_in_circles_ends(engines: Callable[..., Engine]) -> None:
    """An answer that says one thing for ever ends, and says why."""
    engine = engines()
    words = engine.tokenizer.encode("the same words come again and again, ")
    model = ScriptedModel(lambda ids: words[len(ids) % len(words)])

    events = list(session_of(model, engine).generate(request(max_tokens=3500, think=False)))

    assert finished(events).reason == "loop"
    assert [kind for kind, _ in notices(events)] == ["loop"]
    assert finished(events).stats.generated_tokens < 3000
