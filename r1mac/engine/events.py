"""What generation says. The last event is always Finished."""

from dataclasses import dataclass
from typing import Literal

Channel = Literal["think", "answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    """The prompt is being read. *cached_tokens* of it were still in the cache."""

    done_tokens: int
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Text of the thought or of the answer, in order and without gaps."""

    channel: Channel
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """Counts and times of one request. A rate of zero time is None.

    Attributes:
        prefill_peak_bytes: the most memory that MLX held until the prompt was read.
        peak_bytes: the most that it held at all.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    think_tokens: int
    prefill_seconds: float
    decode_seconds: float
    prefill_peak_bytes: int
    peak_bytes: int

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens read for each second, without those that were in the cache."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens written for each second; the first one belongs to the prefill."""
        return _rate(self.generated_tokens - 1, self.decode_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Generation has ended.

    Attributes:
        reason: ``stop`` the model ended its answer, ``length`` max_tokens was reached, ``context`` the
            planned context is full, ``cancelled`` somebody stopped it.
    """

    reason: Literal["stop", "length", "context", "cancelled"]
    stats: GenerationStats


Event = PrefillProgress | TextDelta | Finished


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 and count > 0 else None
