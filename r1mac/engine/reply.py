"""What has been written of one reply: its tokens, text, counts and times."""

import time
from collections.abc import Iterator

import mlx.core as mx

from r1mac.engine.events import Channel, Event, Finished, FinishReason, GenerationStats, PrefillProgress
from r1mac.engine.prompt import PromptTemplate
from r1mac.engine.request import GenerateRequest
from r1mac.engine.sampling import Sampler
from r1mac.engine.think import ThinkSplitter
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import DoesNotFit

_PACE_SECONDS = 1.0
_TAIL_CHARACTERS = 400


def begin_reply(
    request: GenerateRequest, template: PromptTemplate, tokenizer: Tokenizer, *, context_tokens: int
) -> "Reply":
    """Return the reply to *request*, of which nothing is written.

    Raises:
        DoesNotFit: the prompt alone fills the planned context.
    """
    prompt = template.render(request.messages, think=request.think)
    prompt_ids = tokenizer.encode(prompt.text)
    if len(prompt_ids) >= context_tokens:
        raise DoesNotFit(
            f"the conversation has {len(prompt_ids)} tokens and memory is planned for {context_tokens}",
            hint="shorten the prompt, or allow more with --context (in a chat, /reset begins anew)",
        )
    splitter = ThinkSplitter(in_thought=prompt.in_thought, can_open=template.thinks and request.think)
    room_tokens = context_tokens - len(prompt_ids)
    return Reply(request, prompt_ids, splitter=splitter, tokenizer=tokenizer, room_tokens=room_tokens)


class Reply:
    """One reply while it is written.

    Attributes:
        request: what was asked.
        prompt_ids: the tokens that come before it.
        token_ids: its tokens so far, those included that were put into it.
        sampler: chooses its tokens.
        accepted_draft_tokens: how many of them were drafted.
        think_tokens: how many of them belong to the thought.
        room_tokens: how many tokens the planned context has for it.
        tokens_per_s: how fast it was of late; None while that is not known.
        ended: whether the model ended it; the end itself is no part of it.
    """

    def __init__(
        self,
        request: GenerateRequest,
        prompt_ids: list[int],
        *,
        splitter: ThinkSplitter,
        tokenizer: Tokenizer,
        room_tokens: int,
    ) -> None:
        self.request = request
        self.prompt_ids = prompt_ids
        self.room_tokens = room_tokens
        self.token_ids: list[int] = []
        self.sampler = Sampler(request.sampling)
        self.accepted_draft_tokens = 0
        self.think_tokens = 0
        self.tokens_per_s: float | None = None
        self.ended = False
        self._splitter = splitter
        self._text = tokenizer.stream()
        self._cached_tokens = self._prefill_peak_bytes = self._earlier_tokens = 0
        self._prefill_started = time.perf_counter()
        self._decode_started: float | None = None
        self._paused_seconds = 0.0
        self._paced_at, self._paced_tokens = self._prefill_started, 0
        self._tail = ""

    @property
    def channel(self) -> Channel:
        """Where the token that comes next belongs."""
        return self._splitter.channel

    @property
    def left_tokens(self) -> int:
        """How many tokens may still be written."""
        return min(self.request.max_tokens, self.room_tokens) - len(self.token_ids)

    @property
    def full(self) -> FinishReason:
        """Why nothing more may be written."""
        return "length" if self.request.max_tokens <= self.room_tokens else "context"

    def begin_prefill(self, cached_tokens: int) -> None:
        """Note that prompt, and reply so far, are being read, but for *cached_tokens* of them."""
        self._cached_tokens, self._earlier_tokens = cached_tokens, len(self.token_ids)

    def begin_decode(self) -> PrefillProgress:
        """Note that the first new token has come: the whole prompt is read."""
        self._decode_started = self._paced_at = time.perf_counter()
        self._paced_tokens = len(self.token_ids)
        self._prefill_peak_bytes = mx.get_peak_memory()
        return self.progress(len(self.prompt_ids) + self._earlier_tokens)

    def leave_out(self, seconds: float) -> None:
        """Note that nothing was computed for so long."""
        self._paused_seconds += seconds
        self._paced_at += seconds

    @property
    def tail(self) -> str:
        """The end of its text, some hundred characters, tags included."""
        return self._tail

    @property
    def decode_seconds(self) -> float:
        """How long it is being written, pauses not counted."""
        if self._decode_started is None:
            return 0.0
        return time.perf_counter() - self._decode_started - self._paused_seconds

    @property
    def decoding(self) -> bool:
        """Whether the first new token has come."""
        return self._decode_started is not None

    def progress(self, done_tokens: int) -> PrefillProgress:
        """Return how much of the prompt is read; what the reply had already counts to it."""
        return PrefillProgress(
            done_tokens=done_tokens,
            total_tokens=len(self.prompt_ids) + self._earlier_tokens,
            cached_tokens=self._cached_tokens,
        )

    def take(self, token_id: int) -> Iterator[Event]:
        """Add a token and yield the text that became certain."""
        self.token_ids.append(token_id)
        if self.channel == "think":
            self.think_tokens += 1
        if text := self._text.push(token_id):
            self._tail = (self._tail + text)[-_TAIL_CHARACTERS:]
            yield from self._splitter.feed(text)

    def flush(self) -> Iterator[Event]:
        """Yield the text that was held back; no token will follow."""
        if text := self._text.finish():
            yield from self._splitter.feed(text)
        yield from self._splitter.finish()

    def pace(self) -> bool:
        """Measure how fast it is, about once a second; return whether it was measured now."""
        now = time.perf_counter()
        if now - self._paced_at < _PACE_SECONDS:
            return False
        self.tokens_per_s = (len(self.token_ids) - self._paced_tokens) / (now - self._paced_at) or None
        self._paced_at, self._paced_tokens = now, len(self.token_ids)
        return True

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
