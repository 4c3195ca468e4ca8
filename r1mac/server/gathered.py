"""The events of a reply that has ended, as its parts."""

from collections.abc import Iterable
from dataclasses import dataclass

from r1mac.engine.events import ChosenToken, Event, Finished, FinishReason, Notice, TextDelta, ToolCalled
from r1mac.engine.request import ToolCall

# OpenAI and Ollama know two ends of a text. What was cut off before its end is «length», whatever the cause.
FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "cancelled": "stop",
    "length": "length",
    "context": "length",
    "memory": "length",
    "loop": "length",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """One whole reply."""

    thought: str
    answer: str
    calls: tuple[ToolCall, ...]
    tokens: tuple[ChosenToken, ...]
    notices: tuple[Notice, ...]
    finished: Finished


def gather(events: Iterable[Event]) -> Gathered:
    """Return the parts of a reply whose last event is Finished."""
    texts: dict[str, list[str]] = {"think": [], "answer": []}
    calls: list[ToolCall] = []
    tokens: list[ChosenToken] = []
    notices: list[Notice] = []
    finished: Finished | None = None
    for event in events:
        match event:
            case TextDelta(channel=channel, text=text):
                texts[channel].append(text)
            case ToolCalled(call=call):
                calls.append(call)
            case ChosenToken():
                tokens.append(event)
            case Notice():
                notices.append(event)
            case Finished():
                finished = event
            case _:
                pass
    assert finished is not None
    return Gathered(
        thought="".join(texts["think"]),
        answer="".join(texts["answer"]),
        calls=tuple(calls),
        tokens=tuple(tokens),
        notices=tuple(notices),
        finished=finished,
    )
