"""What has been written of one reply: its tokens, text, counts and times."""

import time
from collections.abc import Iterator

import mlx.core as mx

from r1mac.engine.events import Channel, Event, Finished, FinishReason, GenerationStats, Pace
from r1mac.engine.request import GenerateRequest
from r1mac.engine.sampling import Sampler
from r1mac.engine.think import ThinkSplitter
from r1mac.engine.tokenizer import Tokenizer

_PACE_SECONDS = 1.0


class Reply:
    """One reply while it is written.

    Attributes:
        request: what was asked.
        prompt_ids: the tokens that come before it.
        token_ids: its tokens so far, those included that were put into it.
        sampler: chooses its tokens.
        accepted_draft_tokens: how many of them were drafted.
        think_tokens: how many of them belong to the thought.
        ended: whether the model ended it; the end itself is no part of it.
    """

    def __init__(
        self,
        request: GenerateRequest,
        prompt_ids: list[int],
        *,
        splitter: ThinkSplitter,
        tokenizer: Tokenizer,
    ) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.token_ids: list[int] = []
        self.sampler = Sampler(request.sampling)
        self.accepted_draft_tokens = 0
        self.think_tokens = 0
        self.ended = False
        self._splitter = splitter
        self._text = tokenizer.stream()
        self._cached_tokens = self._prefill_peak_bytes = self._earlier_tokens = 0
        self._prefill_started = time.perf_counter()
        self._decode_started: float | None = None
        self._paused_seconds = 0.0
        self._paced_at, self._paced_tokens = self._prefill_started, 0

    @property
    def channel(self) -> Channel:
        """Where the token that comes next belongs."""
        return self._splitter.channel

    def begin_prefill(self, cached_tokens: int) -> None:
        """Note that the prompt is being read, but for *cached_tokens* of it."""
        self._cached_tokens = cached_tokens

    def begin_decode(self) -> int:
        """Note that the first new token has come, and return how many of the prompt's were in the cache."""
        self._earlier_tokens = len(self.token_ids)
        self._decode_started = self._paced_at = time.perf_counter()
        self._paced_tokens = len(self.token_ids)
        self._prefill_peak_bytes = mx.get_peak_memory()
        return self._cached_tokens

    def leave_out(self, seconds: float) -> None:
        """Note that nothing was computed for so long."""
        self._paused_seconds += seconds
        self._paced_at += seconds

    @property
    def decoding(self) -> bool:
        """Whether the first new token has come."""
        return self._decode_started is not None

    def take(self, token_id: int) -> Iterator[Event]:
        """Add a token and yield the text that became certain."""
        self.token_ids.append(token_id)
        if self.channel == "think":
            self.think_tokens += 1
        if text := self._text.push(token_id):
            yield from self._splitter.feed(text)

    def flush(self) -> Iterator[Event]:
        """Yield the text that was held back; no token will follow."""
        if text := self._text.finish():
            yield from self._splitter.feed(text)
        yield from self._splitter.finish()

    def pace(self, left_tokens: int) -> Iterator[Pace]:
        """Yield how far it is, about once a second."""
        now = time.perf_counter()
        if now - self._paced_at < _PACE_SECONDS:
            return
        rate = (len(self.token_ids) - self._paced_tokens) / (now - self._paced_at)
        self._paced_at, self._paced_tokens = now, len(self.token_ids)
        yield Pace(
            written_tokens=len(self.token_ids),
            think_tokens=self.think_tokens,
            tokens_per_s=rate or None,
            left_tokens=left_tokens,
        )

    def finish(self, reason: FinishReason) -> Finished:
        """Return the last event."""
        ended = time.perf_counter()
        decode_started = ended if self._decode_started is None else self._decode_started
        return Finished(
            reason=reason,
            stats=GenerationStats(
                prompt_tokens=len(self.prompt_ids),
                cached_tokens=self._cached_tokens,
                generated_tokens=len(self.token_ids) + self.ended,
                think_tokens=self.think_tokens,
                accepted_draft_tokens=self.accepted_draft_tokens,
                prefill_seconds=decode_started - self._prefill_started,
                decode_seconds=ended - decode_started - self._paused_seconds,
                prefill_peak_bytes=self._prefill_peak_bytes,
                peak_bytes=mx.get_peak_memory(),
            ),
        )
