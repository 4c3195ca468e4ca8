"""What generation says. The last event is always Finished."""

from dataclasses import dataclass
from typing import Literal

from r1mac.engine.request import ToolCall

Channel = Literal["think", "answer"]
FinishReason = Literal["stop", "length", "context", "cancelled", "memory", "loop"]
# A reply that ended so is not over: it can be resumed.
RESUMABLE: frozenset[FinishReason] = frozenset({"cancelled", "memory"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillProgress:
    """The prompt is being read. *cached_tokens* of it were still in the cache."""

    done_tokens: int
    total_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's text and the logarithm of its probability, before temperature and penalties."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenToken:
    """One token of the reply with its probability, and the likeliest ones in its place. Only where it was asked for."""

    channel: Channel
    chosen: TokenLogprob
    likeliest: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """Text of the thought or of the answer, in order and without gaps."""

    channel: Channel
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How far a reply is, about once a second.

    Attributes:
        written_tokens: tokens of thought and answer so far.
        think_tokens: those of the thought.
        tokens_per_s: at which they came lately; None while that is not known.
        left_tokens: how many more the thought, or the answer after it, may take.
    """

    written_tokens: int
    think_tokens: int
    tokens_per_s: float | None
    left_tokens: int

    @property
    def left_seconds(self) -> float | None:
        """The most that is left at this pace."""
        return self.left_tokens / self.tokens_per_s if self.tokens_per_s else None


NoticeKind = Literal["landing", "loop", "memory", "steering", "pause", "cache"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that r1mac did with a running reply and that the person should know, as one sentence.

    Attributes:
        kind: ``landing`` the thought was closed, ``loop`` because it went in circles, ``memory`` the governor gave
            memory back, ``steering`` a wish was carried out, ``pause`` it was paused or goes on, ``cache`` what
            is kept on the disk was damaged, or could not be kept.
    """

    kind: NoticeKind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationStats:
    """Counts and times of one request. A rate of zero time is None.

    Attributes:
        prefill_peak_bytes: the most memory that MLX held until the prompt was read.
        peak_bytes: the most that it held at all.
        earlier_tokens: those of the reply that were written before it was resumed.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    think_tokens: int
    accepted_draft_tokens: int = 0
    prefill_seconds: float
    decode_seconds: float
    prefill_peak_bytes: int
    peak_bytes: int
    earlier_tokens: int = 0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens read for each second, without those that were in the cache."""
        return _rate(self.prompt_tokens - self.cached_tokens, self.prefill_seconds)

    @property
    def decode_tokens_per_s(self) -> float | None:
        """Tokens written for each second; the first one belongs to the prefill."""
        return _rate(self.generated_tokens - self.earlier_tokens - 1, self.decode_seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """Generation has ended.

    Attributes:
        reason: ``stop`` the model ended its answer or came to a stop text, ``length`` max_tokens was reached,
            ``context`` the planned context is full, ``cancelled`` somebody stopped it, ``memory`` it was put down
            because memory ran out, and can be resumed, ``loop`` the answer went in circles.
        stop: the stop text that the answer came to, if one ended it.
    """

    reason: FinishReason
    stats: GenerationStats
    stop: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model called a function. What it wrote for that is in no TextDelta."""

    call: ToolCall


Event = PrefillProgress | TextDelta | ToolCalled | ChosenToken | Pace | Notice | Finished


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 and count > 0 else None
