"""Logits to a token. The order is that of DeepSeek's own evaluations: temperature first, then the nucleus."""

from collections.abc import Callable

import mlx.core as mx

from r1mac.engine.request import Sampling

Sampler = Callable[[mx.array], mx.array]


def make_sampler(sampling: Sampling) -> Sampler:
    """Return a function from logits ``[1, vocabulary]`` to a token ``[1]``.

    Each sampler has random numbers of its own, so a seed gives the same answer whatever else runs.
    """
    if sampling.temperature == 0:
        return greedy
    seed = _fresh_seed() if sampling.seed is None else sampling.seed
    keys = _Keys(mx.random.key(seed % 2**64))
    scale = 1 / sampling.temperature

    def sample(logits: mx.array) -> mx.array:
        logits = logits.astype(mx.float32) * scale
        if 0 < sampling.top_p < 1:
            logits = nucleus(logits, sampling.top_p)
        return mx.random.categorical(logits, key=keys.next())

    return sample


def greedy(logits: mx.array) -> mx.array:
    """Return the likeliest token."""
    return mx.argmax(logits, axis=-1)


def nucleus(logits: mx.array, top_p: float) -> mx.array:
    """Return *logits* with all but the nucleus at minus infinity.

    The nucleus is the smallest set of likeliest tokens whose probabilities reach *top_p*. It always
    holds the likeliest one.
    """
    probabilities = mx.softmax(logits, axis=-1)
    descending = -mx.sort(-probabilities, axis=-1)
    before = mx.cumsum(descending, axis=-1) - descending
    # The smallest probability that is still inside; ties with it stay inside too.
    threshold = mx.min(mx.where(before < top_p, descending, mx.inf), axis=-1, keepdims=True)
    return mx.where(probabilities >= threshold, logits, -mx.inf)


class _Keys:
    """A chain of random keys."""

    def __init__(self, key: mx.array) -> None:
        self._key = key

    def next(self) -> mx.array:
        self._key, key = mx.random.split(self._key)
        return key


def _fresh_seed() -> int:
    import secrets

    return secrets.randbits(63)
