"""A generation's events on a terminal, in a pipe, or as JSON lines."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import click

from r1mac.engine.control import Control
from r1mac.engine.events import (
    Channel,
    ChosenToken,
    Event,
    Finished,
    GenerationStats,
    Notice,
    Pace,
    PrefillProgress,
    TextDelta,
)
from r1mac.ui import console
from r1mac.ui.screen import SEPARATOR, Screen
from r1mac.ui.steering import Steering, steered
from r1mac.units import format_about, format_memory, format_rate, format_seconds

# Shorter prompts are read before anybody wonders.
_SHOW_PREFILL_TOKENS = 1_000

_ENDINGS = {
    "length": "stopped at --max-tokens",
    "context": "stopped: the planned context is full",
    "cancelled": "stopped",
    "memory": "stopped: memory ran out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A reply that has been shown: its two texts and how it ended."""

    thought: str
    answer: str
    finished: Finished


def show(
    events: Iterable[Event],
    *,
    quiet: bool,
    as_json: bool,
    control: Control | None = None,
    go_on: str | None = None,
    seed: int | None = None,
) -> Shown:
    """Show *events* as they come, and return the reply when it has ended.

    The answer goes to stdout; thought (dim), progress, notices and statistics go to stderr. With *quiet* only the
    answer is shown; with *as_json* every event is one JSON object on stdout, and the last one has the notices, the
    probabilities and the *seed* too. At a terminal keys steer the reply through *control*, where there is one.

    Args:
        events: what Session.generate() yields.
        quiet: show the answer only; keys work all the same, and what they do is told.
        as_json: for programs.
        control: the one that was given to Session.generate().
        go_on: the command that goes on with a reply that was cut off; None where there is none.
        seed: the random numbers' seed, for the JSON.
    """
    written: dict[Channel, list[str]] = {"think": [], "answer": []}
    with contextlib.ExitStack() as held:
        display: _JsonLines | _Renderer
        if as_json:
            display = _JsonLines(seed)
        else:
            screen = held.enter_context(contextlib.closing(Screen()))
            steering = held.enter_context(steered(control, screen)) if control else None
            display = _Renderer(screen, steering, quiet=quiet, go_on=go_on)
        for event in events:
            display.take(event)
            if isinstance(event, TextDelta):
                written[event.channel].append(event.text)
            elif isinstance(event, Finished):
                return Shown(thought="".join(written["think"]), answer="".join(written["answer"]), finished=event)
    raise AssertionError("generation ended without Finished")


def format_stats(stats: GenerationStats) -> str:
    """Return one line: tokens, rates, memory."""
    parts = []
    if rate := stats.prefill_tokens_per_s:
        parts.append(f"prompt {stats.prompt_tokens} tokens at {rate:.1f}/s")
    else:
        parts.append(f"prompt {stats.prompt_tokens} tokens")
    if stats.cached_tokens:
        parts.append(f"{stats.cached_tokens} cached")
    written = f"wrote {stats.generated_tokens} tokens"
    if stats.think_tokens:
        written += f" ({stats.think_tokens} of thought)"
    if rate := stats.decode_tokens_per_s:
        written += f" at {rate:.1f}/s"
    parts.append(written)
    parts.append(f"{format_seconds(stats.prefill_seconds + stats.decode_seconds)}")
    parts.append(f"peak {format_memory(stats.peak_bytes)}")
    return " · ".join(parts)


def format_pace(pace: Pace, *, thinking: bool, keys: bool) -> str:
    """Return one line: how much has been written, how fast, the most time that is left, and the *keys*."""
    tokens = f"{pace.think_tokens if thinking else pace.written_tokens - pace.think_tokens:,} tokens"
    parts = ["thinking" if thinking else "answering"]
    if pace.tokens_per_s and pace.left_seconds is not None:
        parts += [f"{tokens} at {format_rate(pace.tokens_per_s)}/s", f"≤ {format_about(pace.left_seconds)} left"]
    else:
        parts.append(tokens)
    if keys:
        parts += ["a answer"] * thinking + ["p pause", "? keys"]
    return SEPARATOR.join(parts)


class _JsonLines:
    """Every event as one JSON object; the probabilities come together, in the last."""

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._notices: list[dict[str, Any]] = []
        self._logprobs: list[dict[str, Any]] = []

    def take(self, event: Event) -> None:
        fields = console.plain(event)
        match event:
            case ChosenToken():
                self._logprobs.append({name: value for name, value in fields.items() if name != "event"})
                return
            case Notice():
                self._notices.append({"kind": event.kind, "text": event.text})
            case Finished():
                fields |= {"seed": self._seed, "notices": self._notices}
                if self._logprobs:
                    fields["logprobs"] = self._logprobs
        click.echo(json.dumps(fields, ensure_ascii=False))


class _Renderer:
    """Shows a reply to a person."""

    def __init__(self, screen: Screen, steering: Steering | None, *, quiet: bool, go_on: str | None) -> None:
        self._screen = screen
        self._steering = steering
        self._quiet = quiet
        self._go_on = go_on
        self._channel: Channel | None = None
        self._answer_ends = "\n"

    def take(self, event: Event) -> None:
        match event:
            case TextDelta():
                self._text(event)
            case PrefillProgress():
                self._prefill(event)
            case Pace():
                self._pace(event)
            case Notice():
                self._notice(event)
            case Finished():
                self._finish(event)

    def _text(self, delta: TextDelta) -> None:
        if delta.channel != self._channel:
            self._turn_to(delta.channel)
        if delta.channel == "answer":
            self._answer_ends = delta.text[-1:]
            self._screen.answer(delta.text)
        elif not self._quiet:
            self._screen.thought(delta.text)

    def _turn_to(self, channel: Channel) -> None:
        if channel == "answer" or self._channel is None:
            self._screen.status("")
        if self._channel == "think" and not self._quiet:
            self._screen.gap()
        self._channel = channel
        if self._steering is not None:
            self._steering.enter(channel)

    def _prefill(self, event: PrefillProgress) -> None:
        if self._quiet or event.total_tokens < _SHOW_PREFILL_TOKENS:
            return
        done = event.done_tokens == event.total_tokens
        self._screen.status("" if done else f"reading the prompt: {event.done_tokens} of {event.total_tokens} tokens")

    def _pace(self, event: Pace) -> None:
        # An answer that can be read needs no line below it.
        if not self._quiet and (self._channel != "answer" or not self._screen.answer_in_sight):
            thinking = self._channel != "answer"
            self._screen.status(format_pace(event, thinking=thinking, keys=self._steering is not None))

    def _notice(self, event: Notice) -> None:
        # Who paused it at the keys has the line that says how to go on.
        if event.kind == "pause" and self._steering is not None:
            return
        if not self._quiet or event.kind in {"steering", "pause"}:
            self._screen.note(f"[{event.text}]")

    def _finish(self, event: Finished) -> None:
        self._screen.status("")
        if self._channel == "think" and not self._quiet:
            self._screen.gap()
        if self._channel == "answer" and self._answer_ends != "\n":
            self._screen.answer("\n")
        if event.reason in _ENDINGS and not (self._quiet and event.reason == "cancelled"):
            self._screen.note(f"[{self._ending(event)}]")
        if not self._quiet:
            self._screen.note(format_stats(event.stats))

    def _ending(self, event: Finished) -> str:
        ending = _ENDINGS[event.reason]
        match event.reason:
            case "context":
                return ending + (f"; `{self._go_on} --context N` goes on" if self._go_on else " (more with --context)")
            case "memory":
                return ending + (f"; `{self._go_on}` goes on" if self._go_on else "")
        return ending
