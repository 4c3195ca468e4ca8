"""What the worker counts."""

import threading
import time
from collections import Counter
from typing import Any

from r1mac.engine.events import Finished, GenerationStats, Pace, PrefillProgress, TextDelta
from r1mac.server.lanes import Outcome

# Of the time that a reply takes, how much the last one counts.
_LATEST_SHARE = 0.2


class Tally:
    """Counts replies and tokens. Written on the worker's thread, but for ``fail``; any thread may read.

    Attributes:
        progress_at_s: when something was last written or read, by the monotonic clock.
        reply_seconds: what a reply took lately, from when it was asked for; None before the first.
    """

    def __init__(self) -> None:
        self.progress_at_s: float | None = None
        self.reply_seconds: float | None = None
        self._paces: dict[int, float] = {}
        self._finished: Counter[str] = Counter()
        self._failed = 0
        self._failing = threading.Lock()
        self._prompt_tokens = self._cached_tokens = self._written_tokens = self._think_tokens = 0

    def begin(self) -> None:
        """Note that a reply begins: nothing was to be expected before."""
        self.progress_at_s = time.monotonic()

    def fail(self) -> None:
        """Count a request that came to nothing. Any thread."""
        with self._failing:
            self._failed += 1

    def note(self, ticket: int, outcome: Outcome, asked_at_s: float) -> None:
        """Count what came of a step of a reply that was asked for at *asked_at_s*."""
        now = time.monotonic()
        match outcome:
            case TextDelta() | PrefillProgress():
                self.progress_at_s = now
            case Pace(tokens_per_s=float(rate)):
                self._paces[ticket] = rate
            case Finished(reason=reason, stats=stats):
                self._paces.pop(ticket, None)
                self._finished[reason] += 1
                self._count(stats)
                seconds = now - asked_at_s
                share = 1.0 if self.reply_seconds is None else _LATEST_SHARE
                self.reply_seconds = (1 - share) * (self.reply_seconds or 0.0) + share * seconds
            case Exception():
                self._paces.pop(ticket, None)
                self.fail()

    def forget_paces(self) -> None:
        """Note that nothing is at work any more."""
        self._paces.clear()

    def counts(self) -> dict[str, Any]:
        """Return what a WorkerState says of it, by its names."""
        rate = sum(self._paces.copy().values())
        return {
            "tokens_per_s": rate or None,
            "prompt_tokens": self._prompt_tokens,
            "cached_tokens": self._cached_tokens,
            "written_tokens": self._written_tokens,
            "think_tokens": self._think_tokens,
            "finished": dict(self._finished),
            "failed": self._failed,
        }

    def _count(self, stats: GenerationStats) -> None:
        self._prompt_tokens += stats.prompt_tokens
        self._cached_tokens += stats.cached_tokens
        self._written_tokens += stats.generated_tokens
        self._think_tokens += stats.think_tokens


def never_begun() -> Finished:
    """Return the end of a reply that was cancelled while it waited."""
    nothing = GenerationStats(
        prompt_tokens=0,
        cached_tokens=0,
        generated_tokens=0,
        think_tokens=0,
        prefill_seconds=0.0,
        decode_seconds=0.0,
        prefill_peak_bytes=0,
        peak_bytes=0,
    )
    return Finished(reason="cancelled", stats=nothing)
