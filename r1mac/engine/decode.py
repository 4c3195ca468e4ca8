"""The loops that write token after token. Each leaves the transcript with no token that it did not yield."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from r1mac.engine.sampling import Sampler
from r1mac.engine.transcript import Transcript

# MLX keeps freed buffers; over a long thought the growing cache leaves many of odd sizes.
CLEAR_EVERY_TOKENS = 256


def decode(
    transcript: Transcript, last_id: int, sampler: Sampler, written: Sequence[int], limit: int
) -> Generator[int]:
    """Read *last_id* and yield at most *limit* tokens that follow.

    The next one is already being computed while the caller has this one.

    Args:
        transcript: what was read, up to the token before *last_id*.
        last_id: the last token of prompt or reply.
        sampler: chooses.
        written: the tokens of the reply so far; the caller adds to it what it is given.
        limit: most tokens to yield.
    """
    begin, position = len(transcript), len(written)
    delivered = 0
    try:
        token = _step(transcript, mx.array([last_id]), sampler, position)
        transcript.commit([last_id])
        for count in range(1, limit + 1):
            following = _step(transcript, token, sampler, position + count) if count < limit else None
            token_id = int(token.item())  # type: ignore[arg-type]
            if following is not None:
                transcript.commit([token_id])
                token = following
            delivered = count
            yield token_id
            if count % CLEAR_EVERY_TOKENS == 0:
                mx.clear_cache()
    finally:
        transcript.keep(min(len(transcript), begin + 1 + delivered))


def _step(transcript: Transcript, token: mx.array, sampler: Sampler, position: int) -> mx.array:
    following = sampler.choose(transcript.feed(token)[-1:], position)
    mx.async_eval(following)  # type: ignore[no-untyped-call]
    return following


@dataclass(slots=True)
class Trace:
    """What the model said of the token that was yielded last.

    Attributes:
        logits: its own, ``[vocabulary]``, before mask, penalties and temperature; None before the first token.
    """

    logits: mx.array | None = None


def decode_stepwise(
    transcript: Transcript,
    last_id: int,
    sampler: Sampler,
    written: Sequence[int],
    limit: int,
    *,
    mask: Callable[[mx.array], mx.array] | None = None,
    trace: Trace | None = None,
) -> Generator[int]:
    """Do as ``decode`` does, but compute a token only when the caller has taken all before it.

    Args:
        transcript: as for ``decode``, like all up to *limit*.
        last_id: likewise.
        sampler: likewise; it may need the history.
        written: likewise.
        limit: likewise.
        mask: is given the logits ``[1, vocabulary]`` of the next token and returns those to choose from.
        trace: is told what each token was chosen from.
    """
    for _ in range(limit):
        logits = transcript.feed(mx.array([last_id]))[-1:]
        token = sampler.choose(logits if mask is None else mask(logits), len(written), written)
        last_fed, last_id = last_id, int(token.item())  # type: ignore[arg-type]
        transcript.commit([last_fed])
        if trace is not None:
            trace.logits = logits[0]
        yield last_id
        if len(written) % CLEAR_EVERY_TOKENS == 0:
            mx.clear_cache()
