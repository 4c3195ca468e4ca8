"""A real session that is offered functions: what the model reads of them, and the calls that it writes."""

import json
from collections.abc import Callable

from r1mac.engine.events import ToolCalled
from r1mac.engine.load import Engine
from r1mac.engine.request import Message
from r1mac.engine.tool_calls import ToolCallEvents
from tests.sessions import finished, request, session_of, text, thinker

TOOL = json.dumps({"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}})
CALL = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"place": "Ålesund"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
)


def test_a_call_after_a_thought(engines: Callable[..., Engine]) -> None:
    """A call inside the thought is a thought; the one in the answer is a call, and its marks are in no text."""
    engine = engines()
    session = session_of(thinker(engine.tokenizer.encode, f"{CALL} hm</think>", f"Look. {CALL}"), engine)
    calls = ToolCallEvents()

    events = [out for event in session.generate(request(max_tokens=1500, tools=(TOOL,))) for out in calls.event(event)]

    assert finished(events).reason == "stop"
    assert text(events, "think") == f"{CALL} hm"
    assert text(events, "answer") == "Look."
    (called,) = [event.call for event in events if isinstance(event, ToolCalled)]
    assert (called.name, json.loads(called.arguments)) == ("weather", {"place": "Ålesund"})


def test_functions_and_results_are_read_as_part_of_the_prompt(engines: Callable[..., Engine]) -> None:
    """The prompt is longer by what is told of functions, and the next turn reads only what is new."""
    engine = engines()
    session = session_of(thinker(engine.tokenizer.encode, "hm</think>", CALL), engine)
    question = Message("user", "Warm?")

    plain = finished(list(session.generate(request((question,), max_tokens=1500))))
    events = list(session.generate(request((question,), max_tokens=1500, tools=(TOOL,))))
    cutter = ToolCallEvents()
    (called,) = [out.call for event in events for out in cutter.event(event) if isinstance(out, ToolCalled)]
    turn = (question, Message("assistant", "", (called,)), Message("tool", "3", tool_call_id=called.id))
    last = finished(list(session.generate(request(turn, max_tokens=20, tools=(TOOL,)))))

    first = finished(events).stats
    assert first.prompt_tokens > plain.stats.prompt_tokens + len(TOOL) // 2
    # R1's thought is in no later prompt: what is shared ends where the thought began.
    assert last.stats.cached_tokens >= first.prompt_tokens - len("<think>\n")
