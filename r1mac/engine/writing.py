"""The loop that writes a reply: read what is not in the cache, decode, mind what is wished, and go on."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple

import mlx.core as mx

from r1mac.engine.constraint import Constraint
from r1mac.engine.control import Control
from r1mac.engine.decode import Trace, decode, decode_stepwise
from r1mac.engine.drafts.speculation import Speculation
from r1mac.engine.events import Event, FinishReason, Notice
from r1mac.engine.guidance import Guide
from r1mac.engine.logprobs import chosen_token, entropy_nats
from r1mac.engine.loops import Loop
from r1mac.engine.memory.governor import Stop
from r1mac.engine.memory.supervision import CHECK_TOKENS, Supervisor
from r1mac.engine.reply import Reply
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.transcript import Transcript

_PAUSE_LOOK_SECONDS = 0.2
# Written tokens between two times that what was read is put on the disk, beginning with the first: what a crash costs
# is read again, which takes a tenth of the time that writing it did.
KEEP_TOKENS = 1_024


class Writing:
    """One reply at work. Lives on the thread that loaded the model.

    Tokens are the truth and the cache is a cache: whatever has to be put into the text or changed under way, the
    decoding ends, and begins again after the tokens that there are then.
    """

    def __init__(
        self,
        reply: Reply,
        transcript: Transcript,
        tokenizer: Tokenizer,
        control: Control,
        *,
        supervisor: Supervisor | None = None,
        speculation: Speculation | None = None,
        constraint: Constraint | None = None,
        keep: Callable[[], Iterator[Event]] | None = None,
    ) -> None:
        """Write *reply*.

        Args:
            reply: what there is of it.
            transcript: what the model has read.
            tokenizer: the model's.
            control: what is wished of it.
            supervisor: minds its memory.
            speculation: drafts tokens.
            constraint: what its answer must look like.
            keep: puts what was read on the disk, from time to time.
        """
        self._reply = reply
        self._transcript = transcript
        self._tokenizer = tokenizer
        self._control = control
        self._guide = Guide(reply, tokenizer, control)
        self._supervisor = supervisor
        self._speculation = speculation
        self._constraint = constraint
        self._keep = keep
        self._trace = Trace()
        self._stepwise = False

    def events(self) -> Generator[Event, None, FinishReason]:
        """Yield what happens, and return why it ended."""
        reason = yield from self._prefill()
        while reason is None:
            reason = yield from self._decode()
            if reason is None:
                reason = yield from self._prefill()
        yield from self._reply.flush()
        return reason

    def _prefill(self) -> Generator[Event, None, FinishReason | None]:
        """Read what the cache lacks of prompt and reply, but for the last token."""
        reply, transcript = self._reply, self._transcript
        token_ids = reply.all_ids
        cached_tokens = transcript.rewind_to(token_ids)
        if not reply.decoding:
            reply.begin_prefill(cached_tokens)
        missing_ids = token_ids[cached_tokens:-1]
        if (yield from self._mind_prefill(len(missing_ids))):
            return "memory"
        for done_tokens in transcript.prefill(missing_ids):
            if not reply.decoding:
                yield reply.progress(cached_tokens + done_tokens)
            reason = yield from self._between_steps(len(missing_ids) - done_tokens)
            if reason is not None:
                return reason
        if self._speculation is not None:
            for _ in self._speculation.prefill(token_ids):
                if self._control.cancelled:
                    return "cancelled"
        return None

    def _between_steps(self, left_tokens: int) -> Generator[Event, None, FinishReason | None]:
        """Mind wishes and memory, *left_tokens* before the end of what has to be read."""
        if self._control.paused:
            yield from self._wait()
        if self._control.cancelled:
            return "cancelled"
        return "memory" if (yield from self._mind_prefill(left_tokens)) else None

    def _mind_prefill(self, left_tokens: int) -> Generator[Event, None, bool]:
        """Give memory back where that is due before the next step; return whether the reply has to be put down."""
        if self._supervisor is None or not left_tokens:
            return False
        answer_tokens = self._guide.answer_tokens
        asked = self._supervisor.check("prefill", prompt_left_tokens=left_tokens, answer_tokens=answer_tokens)
        return isinstance((yield from asked), Stop)

    def _decode(self) -> Generator[Event, None, FinishReason | None]:
        """Write tokens until the reply ends, for a reason, or decoding has to begin again, for None."""
        reply = self._reply
        if reply.left_tokens <= 0:
            return reply.full
        self._stepwise = self._must_step()
        with contextlib.closing(self._tokens()) as tokens:
            for token_id in tokens:
                if not reply.decoding:
                    yield reply.begin_decode()
                if token_id in self._tokenizer.end_ids:
                    reply.ended = True
                    return "stop"
                following = yield from self._take(token_id)
                if following is not None:
                    yield from reply.put_in(following.insertion)
                    return following.reason
        return reply.full

    def _tokens(self) -> Generator[int]:
        """Return the loop that suits what is asked of the tokens."""
        reply, transcript = self._reply, self._transcript
        arguments = (transcript, reply.last_id, reply.sampler, reply.token_ids, reply.left_tokens)
        if self._stepwise:
            return decode_stepwise(
                *arguments, mask=self._mask if self._constraint is not None else None, trace=self._trace
            )
        return decode(*arguments) if self._speculation is None else self._speculation.decode(*arguments)

    def _must_step(self) -> bool:
        """Whether each token has to be known before the next one is computed, or looked at more closely."""
        asks = self._reply.sampler.needs_history or self._reply.request.logprobs is not None
        return asks or self._guide.wants_entropy or self._constrains

    @property
    def _constrains(self) -> bool:
        return self._constraint is not None and self._reply.channel == "answer"

    def _mask(self, logits: mx.array) -> mx.array:
        # A thought may end under way, and its answer is held from its first token on.
        if self._constraint is None or not self._constrains:
            return logits
        reply = self._reply
        return self._constraint.mask(logits, reply.answer_ids, may_think=reply.may_open_thought)

    def _take(self, token_id: int) -> Generator[Event, None, "_Following | None"]:
        """Add a token to the reply; return what is to come of it but the next token."""
        reply = self._reply
        insertion = self._guide.in_place_of(token_id)
        if insertion is not None:
            return _Following(insertion)
        channel, entropy = reply.channel, None
        yield from reply.take(token_id)
        if self._stepwise and self._trace.logits is not None:
            if self._guide.wants_entropy:
                entropy = entropy_nats(self._trace.logits)
            if (count := reply.request.logprobs) is not None:
                yield chosen_token(self._trace.logits, token_id, count, channel=channel, tokenizer=self._tokenizer)
        if self._control.cancelled:
            return _Following(reason="cancelled")
        if reply.stopped or (self._constrains and self._constraint and self._constraint.finished(reply.answer_ids)):
            return _Following(reason="stop")
        return (yield from self._after_token(entropy))

    def _after_token(self, entropy: float | None) -> Generator[Event, None, "_Following | None"]:
        """Do what is due from time to time."""
        reply = self._reply
        if reply.pace():
            yield self._guide.pace()
        if self._control.paused:
            yield from self._wait()
        due = yield from self._guide.after_token(entropy)
        if isinstance(due, Loop):
            return _Following(reason="loop")
        if due is not None:
            return _Following(due)
        if self._supervisor is not None and len(reply.token_ids) % CHECK_TOKENS == 0:
            landing = yield from self._supervisor.check("decode", answer_tokens=self._guide.answer_tokens)
            if isinstance(landing, Stop):
                return _Following(reason="memory")
            if landing is not None:
                return _Following((yield from self._guide.land(landing)))
        if self._keep is not None and len(reply.token_ids) % KEEP_TOKENS == 1:
            yield from self._keep()
        return None if self._must_step() == self._stepwise else _Following()

    def _wait(self) -> Iterator[Event]:
        """Wait until somebody resumes or cancels."""
        yield Notice(kind="pause", text="paused")
        started = time.perf_counter()
        while not self._control.wait(_PAUSE_LOOK_SECONDS):
            pass
        self._reply.leave_out(time.perf_counter() - started)
        if not self._control.cancelled:
            yield Notice(kind="pause", text="going on")


class _Following(NamedTuple):
    """What comes after a token: text that is put in, or the end."""

    insertion: str = ""
    reason: FinishReason | None = None
