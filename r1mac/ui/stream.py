"""A generation's events on a terminal, in a pipe, or as JSON lines."""

import json
import sys
from collections.abc import Iterable

import click

from r1mac.engine.events import Event, Finished, GenerationStats, PrefillProgress, TextDelta
from r1mac.ui import console
from r1mac.units import format_memory, format_seconds

# Shorter prompts are read before anybody wonders.
_SHOW_PREFILL_TOKENS = 1_000

_ENDINGS = {
    "length": "stopped at --max-tokens",
    "context": "stopped: the planned context is full (more with --context)",
    "cancelled": "stopped",
}


def show(events: Iterable[Event], *, quiet: bool, as_json: bool) -> tuple[str, Finished]:
    """Show *events* as they come, and return the answer's text and how it ended.

    The answer goes to stdout; thought (dim), progress and statistics go to stderr. With *quiet* only the
    answer is shown; with *as_json* every event is one JSON object on stdout.
    """
    renderer = _Renderer(quiet=quiet, as_json=as_json)
    for event in events:
        if as_json:
            click.echo(json.dumps(console.plain(event), ensure_ascii=False))
        match event:
            case TextDelta():
                renderer.text(event)
            case PrefillProgress():
                renderer.prefill(event)
            case Finished():
                renderer.finish(event)
                return renderer.answer, event
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


class _Renderer:
    """Where on the terminal the text stands."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self._silent = as_json
        self._quiet = quiet
        self._pieces: list[str] = []
        self._in_thought = False
        self._prefill_shown = False

    @property
    def answer(self) -> str:
        return "".join(self._pieces)

    def text(self, delta: TextDelta) -> None:
        self._end_prefill()
        if delta.channel == "answer":
            self._pieces.append(delta.text)
        if self._silent:
            return
        if delta.channel == "think":
            if not self._quiet:
                self._in_thought = True
                console.dim(delta.text)
            return
        self._end_thought()
        click.echo(delta.text, nl=False)
        sys.stdout.flush()

    def prefill(self, event: PrefillProgress) -> None:
        if self._silent or self._quiet or event.total_tokens < _SHOW_PREFILL_TOKENS or not sys.stderr.isatty():
            return
        if event.done_tokens == event.total_tokens:
            self._end_prefill()
            return
        self._prefill_shown = True
        console.dim(f"\rreading the prompt: {event.done_tokens} of {event.total_tokens} tokens")

    def finish(self, event: Finished) -> None:
        self._end_prefill()
        if self._silent:
            return
        self._end_thought()
        if self.answer and not self.answer.endswith("\n"):
            click.echo()
        if event.reason in _ENDINGS and not (self._quiet and event.reason == "cancelled"):
            console.note(f"[{_ENDINGS[event.reason]}]")
        if not self._quiet:
            console.note(format_stats(event.stats))

    def _end_prefill(self) -> None:
        if self._prefill_shown:
            click.echo("\r\x1b[2K", nl=False, err=True)
            self._prefill_shown = False

    def _end_thought(self) -> None:
        if self._in_thought:
            click.echo("\n", err=True)
            self._in_thought = False
