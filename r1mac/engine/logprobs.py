"""What the model itself said of a token: before bias, penalties, temperature and whatever an answer must look like."""

import math

import mlx.core as mx

from r1mac.engine.events import Channel, ChosenToken, TokenLogprob
from r1mac.engine.tokenizer import Tokenizer


def chosen_token(logits: mx.array, token_id: int, count: int, *, channel: Channel, tokenizer: Tokenizer) -> ChosenToken:
    """Return the event for a token that was chosen from *logits* ``[vocabulary]``, with *count* alternatives."""
    logprob, likeliest = logprobs(logits, token_id, count)
    return ChosenToken(
        channel=channel,
        chosen=TokenLogprob(token_id, tokenizer.decode([token_id]), logprob),
        likeliest=tuple(TokenLogprob(other, tokenizer.decode([other]), value) for other, value in likeliest),
    )


def logprobs(logits: mx.array, token_id: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Return a token's log-probability in nats, and the *count* likeliest tokens with theirs, the likeliest first.

    Args:
        logits: the model's own, ``[vocabulary]``.
        token_id: the token that was chosen.
        count: how many alternatives; 0 for none. Tokens that the model rules out altogether are left out.
    """
    logits = logits.astype(mx.float32)
    total = mx.logsumexp(logits)
    chosen = _number(logits[token_id] - total)
    count = min(count, logits.shape[-1])
    if not count:
        return chosen, []
    token_ids = mx.argpartition(-logits, count - 1)[:count]
    values = logits[token_ids] - total
    # The partition orders nothing; of equals the first in the vocabulary comes first.
    pairs: list[tuple[int, float]] = sorted(
        zip(token_ids.tolist(), values.tolist(), strict=True),  # type: ignore[arg-type]
        key=lambda pair: (-pair[1], pair[0]),
    )
    return chosen, [(other, value) for other, value in pairs if value > -math.inf]


def entropy_nats(logits: mx.array) -> float:
    """Return the entropy of the model's own distribution: 0 where it is sure, log(vocabulary) at most.

    Args:
        logits: the model's own, ``[vocabulary]``.
    """
    logits = logits.astype(mx.float32)
    surprise = mx.logsumexp(logits) - logits
    # A token that is ruled out has probability 0, and 0 x infinity adds nothing.
    terms = mx.where(mx.isinf(surprise), 0, mx.exp(-surprise) * surprise)
    return max(_number(mx.sum(terms)), 0.0)


def _number(value: mx.array) -> float:
    return float(value.item())  # type: ignore[arg-type]
