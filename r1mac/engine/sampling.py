"""Logits to a token. The order is that of DeepSeek's own evaluations: temperature first, then the nucleus."""

from collections.abc import Sequence

import mlx.core as mx

from r1mac.engine.request import Sampling


class Sampler:
    """Chooses the tokens of one reply.

    The random numbers of a token depend on the seed and on the token's place in the reply alone: the same seed gives
    the same text whatever else runs, after a restart, and when several tokens are tried at once.

    Attributes:
        seed: the one that was asked for, or a fresh one.
        needs_history: whether a token can only be chosen when all before it are known.
    """

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self.seed = _fresh_seed() if sampling.seed is None else sampling.seed
        self.needs_history = False

    def choose(self, logits: mx.array, position: int, history: Sequence[int] = ()) -> mx.array:
        """Return tokens ``[n]`` for *logits* ``[n, vocabulary]``.

        Args:
            logits: of n tokens that follow each other; of one if ``needs_history``.
            position: of the first of them in the reply, counted from 0.
            history: the tokens of the reply before it, if ``needs_history``.
        """
        if self._sampling.temperature == 0:
            return mx.argmax(logits, axis=-1)
        logits = logits.astype(mx.float32) * (1 / self._sampling.temperature)
        if 0 < self._sampling.top_p < 1:
            logits = nucleus(logits, self._sampling.top_p)
        rows = [
            mx.random.categorical(logits[row : row + 1], key=_key(self.seed, position + row))
            for row in range(logits.shape[0])
        ]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows)


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


def _key(seed: int, position: int) -> mx.array:
    """Return the random key of one token: SplitMix64's output number *position* for *seed*."""
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return mx.random.key(state ^ (state >> 31))


def _fresh_seed() -> int:
    import secrets

    return secrets.randbits(63)
