"""The loop that writes a reply: read what is not in the cache, decode, mind what is wished, and go on."""

import contextlib
import time
from collections.abc import Generator, Iterator

from r1mac.engine.control import Control
from r1mac.engine.decode import decode, decode_stepwise
from r1mac.engine.events import Event, FinishReason, Notice
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

    def __init__(self, reply: Reply, transcript: Transcript, tokenizer: Tokenizer, control: Control) -> None:
        self._reply = reply
        self._transcript = transcript
        self._tokenizer = tokenizer
        self._control = control
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
            reply.begin_prefill(cached_tokens)
        for done_tokens in transcript.prefill(token_ids[cached_tokens:-1]):
            if not reply.decoding:
                yield reply.progress(cached_tokens + done_tokens)
            if self._control.cancelled:
                return "cancelled"
        return None

    def _decode(self) -> Generator[Event, None, FinishReason | None]:
        """Write tokens until the reply ends, for a reason, or something was put into it, for None."""
        reply = self._reply
        if reply.left_tokens <= 0:
            return reply.full
        last_id = (reply.prompt_ids + reply.token_ids)[-1]
        steps = decode_stepwise if reply.sampler.needs_history else decode
        tokens = steps(self._transcript, last_id, reply.sampler, reply.token_ids, reply.left_tokens)
        with contextlib.closing(tokens):
            for token_id in tokens:
                if not reply.decoding:
                    yield reply.begin_decode()
                if token_id in self._tokenizer.end_ids:
                    reply.ended = True
                    return "stop"
                insertion = self._guide.in_place_of(token_id)
                if insertion is None:
                    yield from reply.take(token_id)
                    if self._control.cancelled:
                        return "cancelled"
                    if reply.pace():
                        yield self._guide.pace()
                    if self._control.paused:
                        yield from self._wait()
                    insertion = yield from self._guide.after_token()
                if insertion is not None:
                    yield from self._insert(insertion)
                    return None
        return reply.full

    def _wait(self) -> Iterator[Event]:
        """Wait until somebody resumes or cancels."""
        yield Notice(kind="pause", text="paused")
        started = time.perf_counter()
        while not self._control.wait(_PAUSE_LOOK_SECONDS):
            pass
        self._reply.leave_out(time.perf_counter() - started)
        if not self._control.cancelled:
            yield Notice(kind="pause", text="going on")

    def _insert(self, text: str) -> Iterator[Event]:
        """Put *text* into the reply, as if the model had written it."""
        for token_id in self._tokenizer.encode(text):
            yield from self._reply.take(token_id)
