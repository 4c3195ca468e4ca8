"""What has been written of one reply: its tokens, text, counts and times."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from r1mac.engine.events import Channel, Finished, FinishReason, GenerationStats, PrefillProgress, TextDelta
from r1mac.engine.landing import TAIL_CHARACTERS
from r1mac.engine.prompt import Prompt, PromptTemplate
from r1mac.engine.request import GenerateRequest
from r1mac.engine.sampling import Sampler
from r1mac.engine.stop import StopStrings
from r1mac.engine.think import ThinkSplitter
from r1mac.engine.tokenizer import Tokenizer
from r1mac.errors import PromptTooLong

if TYPE_CHECKING:
    from r1mac.engine.kept.checkpoint import Checkpoint

_PACE_SECONDS = 1.0


def prompt_of(request: GenerateRequest, template: PromptTemplate) -> Prompt:
    """Return what the model reads of *request* before it writes.

    Raises:
        BadCheckpoint: the template refuses this conversation.
    """
    if request.raw_prompt is not None:
        return Prompt(text=request.raw_prompt, in_thought=False)
    return template.render(request.messages, think=request.think, tools=request.tools, must_call=request.must_call)


def begin_reply(
    request: GenerateRequest,
    template: PromptTemplate,
    tokenizer: Tokenizer,
    *,
    context_tokens: int,
    prompt_ids: Sequence[int] | None = None,
) -> "Reply":
    """Return the reply to *request*, of which nothing is written.

    *prompt_ids* are the tokens of the prompt, if that was rendered before.

    Raises:
        PromptTooLong: the prompt alone fills the planned context.
    """
    prompt = prompt_of(request, template)
    prompt_ids = tokenizer.encode(prompt.text) if prompt_ids is None else list(prompt_ids)
    if len(prompt_ids) >= context_tokens:
        raise PromptTooLong(
            f"the conversation has {len(prompt_ids)} tokens and memory is planned for {context_tokens}",
            hint="shorten the prompt, or allow more with --context (in a chat, /reset begins anew)",
        )
    can_open = template.thinks and request.think and request.raw_prompt is None
    splitter = ThinkSplitter(in_thought=prompt.in_thought, can_open=can_open)
    room_tokens = context_tokens - len(prompt_ids)
    reply = Reply(request, prompt_ids, splitter=splitter, tokenizer=tokenizer, room_tokens=room_tokens)
    reply.answer_format = request.answer_format or prompt.answer_format
    return reply


class Reply:
    """One reply while it is written.

    Attributes:
        request: what was asked.
        answer_format: what its answer must look like.
        prompt_ids: the tokens that come before it.
        token_ids: its tokens so far, those included that were put into it.
        sampler: chooses its tokens.
        accepted_draft_tokens: how many of them were drafted.
        think_tokens: how many of them belong to the thought.
        room_tokens: how many tokens the planned context has for it.
        tokens_per_s: how fast it was of late; None while that is not known.
        ended: whether the model ended it; the end itself is no part of it.
        read_peak_bytes: tells the most that was held since it began.
        journal: what keeps its tokens on the disk as they come, if anything does.
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
        self.answer_format = request.answer_format
        self.prompt_ids = prompt_ids
        self.room_tokens = room_tokens
        self.read_peak_bytes: Callable[[], int] = mx.get_peak_memory
        self.token_ids: list[int] = []
        self.sampler = Sampler(request.sampling)
        self.accepted_draft_tokens = 0
        self.think_tokens = 0
        self.tokens_per_s: float | None = None
        self.ended = False
        self.journal: Checkpoint | None = None
        self._splitter = splitter
        self._tokenizer = tokenizer
        self._text = tokenizer.stream()
        self._stops = StopStrings(request.stop) if request.stop else None
        self._answer_start = 0 if splitter.channel == "answer" else None
        self._earlier_seconds = 0.0
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
    def all_ids(self) -> list[int]:
        """The tokens of the prompt and its own."""
        return self.prompt_ids + self.token_ids

    @property
    def last_id(self) -> int:
        """The last token of prompt and reply."""
        return self.token_ids[-1] if self.token_ids else self.prompt_ids[-1]

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
        self._prefill_peak_bytes = self.read_peak_bytes()
        return self.progress(len(self.prompt_ids) + self._earlier_tokens)

    def leave_out(self, seconds: float) -> None:
        """Note that nothing was computed for so long."""
        self._paused_seconds += seconds
        self._paced_at += seconds

    @property
    def stopped(self) -> bool:
        """Whether the answer has come to a stop text."""
        return self._stops is not None and self._stops.stopped

    @property
    def answer_ids(self) -> list[int]:
        """The tokens of the answer so far, without the tag that closed the thought."""
        return [] if self._answer_start is None else self.token_ids[self._answer_start :]

    @property
    def may_open_thought(self) -> bool:
        """Whether the model may still begin with a thought of its own."""
        return self._splitter.may_open

    @property
    def tail(self) -> str:
        """The end of its text, some hundred characters, tags included."""
        return self._tail

    @property
    def decode_seconds(self) -> float:
        """How long it is being written, pauses not counted, and what came before it was resumed."""
        if self._decode_started is None:
            return self._earlier_seconds
        return self._earlier_seconds + time.perf_counter() - self._decode_started - self._paused_seconds

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

    def take(self, token_id: int) -> Iterator[TextDelta]:
        """Add a token and yield the text that became certain."""
        self.token_ids.append(token_id)
        was_thinking = self.channel == "think"
        self.think_tokens += was_thinking
        if self.journal is not None:
            self.journal.append((token_id,), think_seconds=self.decode_seconds)
        if text := self._text.push(token_id):
            self._tail = (self._tail + text)[-TAIL_CHARACTERS:]
            yield from self._cut(self._splitter.feed(text))
        if was_thinking and self.channel == "answer":
            self._answer_start = len(self.token_ids)
        elif self.channel == "think":
            self._answer_start = None

    def put_in(self, text: str) -> Iterator[TextDelta]:
        """Add *text* as if the model had written it, and yield what became certain."""
        for token_id in self._tokenizer.encode(text):
            yield from self.take(token_id)

    def replay(self, token_ids: Sequence[int], *, seconds: float) -> Iterator[TextDelta]:
        """Take the tokens that were written before, in so many seconds, and yield their text."""
        journal, self.journal = self.journal, None
        for token_id in token_ids:
            yield from self.take(token_id)
        self.journal, self._earlier_seconds = journal, seconds

    def flush(self) -> Iterator[TextDelta]:
        """Yield the text that was held back; no token will follow."""
        if text := self._text.finish():
            yield from self._cut(self._splitter.feed(text))
        yield from self._cut(self._splitter.finish())
        if self._stops is not None and (text := self._stops.finish()):
            yield TextDelta(channel="answer", text=text)

    def _cut(self, deltas: Iterable[TextDelta]) -> Iterator[TextDelta]:
        """Yield what comes before a stop text; a thought has none."""
        for delta in deltas:
            if self._stops is None or delta.channel == "think":
                yield delta
            elif text := self._stops.feed(delta.text):
                yield TextDelta(channel="answer", text=text)

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
            stop=self._stops.met if self._stops is not None and reason == "stop" else None,
            stats=GenerationStats(
                prompt_tokens=len(self.prompt_ids),
                cached_tokens=self._cached_tokens,
                generated_tokens=len(self.token_ids) + self.ended,
                think_tokens=self.think_tokens,
                accepted_draft_tokens=self.accepted_draft_tokens,
                prefill_seconds=decode_started - self._prefill_started,
                decode_seconds=ended - decode_started - self._paused_seconds,
                prefill_peak_bytes=self._prefill_peak_bytes,
                peak_bytes=self.read_peak_bytes(),
                earlier_tokens=self._earlier_tokens,
            ),
        )
