"""The loop that writes a reply: read what is not in the cache, decode, mind what is wished, and go on."""

import contextlib
import time
from collections.abc import Generator, Iterator

from r1mac.engine.control import Control
from r1mac.engine.decode import decode, decode_stepwise
from r1mac.engine.events import Event, FinishReason, Notice, PrefillProgress
from r1mac.engine.guidance import Guide
from r1mac.engine.reply import Reply
from r1mac.engine.tokenizer import Tokenizer
from r1mac.engine.transcript import Transcript

_PAUSE_LOOK_SECONDS = 0.2


class Writing:
    """One reply at work. Lives on the thread that loaded the model.

    Tokens are the truth and the cache is a cache: whatever has to be put into the text or changed under way, the
    decoding ends, and begins again after the tokens that there are then.
    """

    def __init__(
        self, reply: Reply, transcript: Transcript, tokenizer: Tokenizer, control: Control, *, context_tokens: int
    ) -> None:
        self._reply = reply
        self._transcript = transcript
        self._tokenizer = tokenizer
        self._control = control
        self._room_tokens = context_tokens - len(reply.prompt_ids)
        self._guide = Guide(reply, tokenizer, control)

    def events(self) -> Iterator[Event]:
        """Yield what happens; the last is Finished."""
        reason = yield from self._prefill()
        while reason is None:
            reason = yield from self._decode()
            if reason is None:
                reason = yield from self._prefill()
        yield from self._reply.flush()
        yield self._reply.finish(reason)

    def _prefill(self) -> Generator[Event, None, FinishReason | None]:
        """Read what the cache lacks of prompt and reply, but for the last token."""
        reply, transcript = self._reply, self._transcript
        token_ids = reply.prompt_ids + reply.token_ids
        cached_tokens = transcript.rewind_to(token_ids)
        if not reply.decoding:
            reply.begin_prefill(min(cached_tokens, len(reply.prompt_ids)))
        for done_tokens in transcript.prefill(token_ids[cached_tokens:-1]):
            if not reply.decoding:
                yield self._progress(cached_tokens + done_tokens, cached_tokens)
            if self._control.cancelled:
                return "cancelled"
        return None

    def _progress(self, done_tokens: int, cached_tokens: int) -> PrefillProgress:
        total_tokens = len(self._reply.prompt_ids) + len(self._reply.token_ids)
        return PrefillProgress(done_tokens=done_tokens, total_tokens=total_tokens, cached_tokens=cached_tokens)

    def _decode(self) -> Generator[Event, None, FinishReason | None]:
        """Write tokens until the reply ends, for a reason, or something was put into it, for None."""
        reply = self._reply
        if self._left_tokens <= 0:
            return self._full
        last_id = (reply.prompt_ids + reply.token_ids)[-1]
        steps = decode_stepwise if reply.sampler.needs_history else decode
        tokens = steps(self._transcript, last_id, reply.sampler, reply.token_ids, self._left_tokens)
        with contextlib.closing(tokens):
            for token_id in tokens:
                if not reply.decoding:
                    yield self._progress(len(reply.prompt_ids) + len(reply.token_ids), reply.begin_decode())
                if token_id in self._tokenizer.end_ids:
                    reply.ended = True
                    return "stop"
                insertion = self._guide.in_place_of(token_id)
                if insertion is None:
                    yield from reply.take(token_id)
                    if self._control.cancelled:
                        return "cancelled"
                    yield from reply.pace(self._left_tokens)
                    if self._control.paused:
                        yield from self._wait()
                    insertion = yield from self._guide.after_token()
                if insertion is not None:
                    yield from self._insert(insertion)
                    return None
        return self._full

    @property
    def _left_tokens(self) -> int:
        """How many tokens may still be written."""
        return min(self._reply.request.max_tokens, self._room_tokens) - len(self._reply.token_ids)

    @property
    def _full(self) -> FinishReason:
        """Why nothing more may be written."""
        return "length" if self._reply.request.max_tokens <= self._room_tokens else "context"

    def _wait(self) -> Iterator[Event]:
        """Wait until somebody resumes or cancels."""
        yield Notice(kind="steering", text="paused")
        started = time.perf_counter()
        while not self._control.wait(_PAUSE_LOOK_SECONDS):
            pass
        self._reply.leave_out(time.perf_counter() - started)
        if not self._control.cancelled:
            yield Notice(kind="steering", text="going on")

    def _insert(self, text: str) -> Iterator[Event]:
        """Put *text* into the reply, as if the model had written it."""
        for token_id in self._tokenizer.encode(text):
            yield from self._reply.take(token_id)
