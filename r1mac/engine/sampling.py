"""Logits to a token.

The order is vLLM's: bias and penalties on the model's own logits; then temperature; then min-p, top-k and top-p, each
among what the one before it left. DeepSeek's own evaluations divide by the temperature before they cut, too.
"""

import math
from collections import Counter
from collections.abc import Sequence

import mlx.core as mx

from r1mac.engine.layers.compute import on_gpu
from r1mac.engine.request import Sampling

# With less, float32 knows no difference between all and all but the likeliest.
_LEAST_TOP_P = 1e-6
# From 16 nats of range to 4e-6, which is the distance of two float32 logits.
_HALVINGS = 22
_BLOCK = 128
# On the CPU, 22 sums over so many tokens or more take less than sorting them; half of it at 129,280. On a GPU sorting
# is no dearer than what mlx-lm does there.
_HALVE_FROM = 16_384
# What is less divides logits into infinities; it takes the likeliest token, as 0 does. vLLM draws the same line.
_GREEDY_BELOW_TEMPERATURE = 1e-5


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
        self._greedy = sampling.temperature < _GREEDY_BELOW_TEMPERATURE
        self._history = _History()
        self.seed = _fresh_seed() if sampling.seed is None else sampling.seed
        self.needs_history = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty != 0 or sampling.frequency_penalty != 0
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self._greedy

    def choose(self, logits: mx.array, position: int, history: Sequence[int] = ()) -> mx.array:
        """Return tokens ``[n]`` for *logits* ``[n, vocabulary]``. Nothing is computed yet.

        Args:
            logits: of n tokens that follow each other; of one if ``needs_history``.
            position: of the first of them in the reply, counted from 0.
            history: the tokens of the reply before it, if ``needs_history``.

        Raises:
            ValueError: the bias names a token that the vocabulary does not have.
        """
        logits = self._with_bias(logits)
        if self.needs_history and history:
            logits = self._with_penalties(logits, history)
        if self._greedy:
            return mx.argmax(logits, axis=-1)
        logits = logits.astype(mx.float32) * (1 / self._sampling.temperature)
        logits = cut(logits, top_k=self._sampling.top_k, top_p=self._sampling.top_p, min_p=self._sampling.min_p)
        rows = [
            mx.random.categorical(logits[row : row + 1], key=_key(self.seed, position + row))
            for row in range(logits.shape[0])
        ]
        return rows[0] if len(rows) == 1 else mx.concatenate(rows)

    def _with_bias(self, logits: mx.array) -> mx.array:
        if not self._sampling.logit_bias:
            return logits
        token_ids, values = zip(*self._sampling.logit_bias, strict=True)
        if max(token_ids) >= logits.shape[-1]:
            raise ValueError(f"logit_bias names token {max(token_ids)}, and the vocabulary has {logits.shape[-1]}")
        return logits.astype(mx.float32).at[:, mx.array(token_ids)].add(mx.array(values, dtype=mx.float32))

    def _with_penalties(self, logits: mx.array, history: Sequence[int]) -> mx.array:
        written = self._history.count(history)
        token_ids = mx.array(list(written))[None]
        counts = mx.array(list(written.values()), dtype=mx.float32)
        logits = logits.astype(mx.float32)
        theirs = mx.take_along_axis(logits, token_ids, axis=-1)
        factor = self._sampling.repetition_penalty
        theirs = mx.where(theirs > 0, theirs / factor, theirs * factor)
        theirs = theirs - self._sampling.frequency_penalty * counts - self._sampling.presence_penalty
        return mx.put_along_axis(logits, token_ids, theirs, axis=-1)


class _History:
    """How often each token was written, without counting a long reply anew for every token of it."""

    def __init__(self) -> None:
        self._counted: list[int] = []
        self._counts: Counter[int] = Counter()

    def count(self, history: Sequence[int]) -> Counter[int]:
        known = len(self._counted)
        if list(history[:known]) != self._counted:
            self._counted, self._counts, known = [], Counter(), 0
        self._counted.extend(history[known:])
        self._counts.update(history[known:])
        return self._counts


def cut(logits: mx.array, *, top_k: int, top_p: float, min_p: float) -> mx.array:
    """Return *logits* ``[n, vocabulary]`` with all tokens at minus infinity that may not be chosen.

    What is left are the tokens at least *min_p* times as likely as the likeliest; of these the *top_k* likeliest; of
    these the nucleus: the smallest set of likeliest ones whose share reaches *top_p*. The likeliest token always is
    left, and tokens of equal probability stay or go together. 0 for top_k and min_p, and 1 for top_p, cut nothing.
    """
    cuts_k, cuts_p = 0 < top_k < logits.shape[-1], top_p < 1
    if not cuts_k and not cuts_p and min_p <= 0:
        return logits
    # The k likeliest need a partition only, and the rest is done on them alone.
    among = mx.topk(logits, top_k, axis=-1) if cuts_k else logits
    likeliest = mx.max(among, axis=-1, keepdims=True)
    floor = likeliest + math.log(min_p) if min_p > 0 else None
    if cuts_p:
        sorts = on_gpu() or among.shape[-1] < _HALVE_FROM
        find = _threshold_by_sorting if sorts else _threshold_by_halving
        threshold = find(among, likeliest, floor, max(top_p, _LEAST_TOP_P))
    else:
        threshold = mx.min(among, axis=-1, keepdims=True) if cuts_k else likeliest
        if floor is not None:
            threshold = mx.maximum(threshold, floor) if cuts_k else floor
    return mx.where(logits >= threshold, logits, -mx.inf)


def _threshold_by_sorting(logits: mx.array, likeliest: mx.array, floor: mx.array | None, top_p: float) -> mx.array:
    """Return the least logit ``[n, 1]`` in the nucleus of those in *logits* that are not below *floor*."""
    ascending = mx.sort(logits, axis=-1)
    # From the unlikely ones upwards: from the top, 100,000 small numbers added to a large one are off by 5e-4.
    share = mx.cumsum(_weights(ascending, likeliest, floor), axis=-1)
    inside = share > (1 - top_p) * share[:, -1:]
    return mx.min(mx.where(inside, ascending, mx.inf), axis=-1, keepdims=True)


def _threshold_by_halving(logits: mx.array, likeliest: mx.array, floor: mx.array | None, top_p: float) -> mx.array:
    """Return a logit ``[n, 1]`` that parts the nucleus from the rest, as exactly as float32 has logits."""
    # In blocks: one long sum of unlike numbers is off by 2e-4.
    rows, columns = logits.shape
    blocks = mx.pad(logits, [(0, 0), (0, -columns % _BLOCK)], constant_values=-mx.inf).reshape(rows, -1, _BLOCK)
    weights = _weights(blocks, likeliest[:, :, None], None if floor is None else floor[:, :, None])
    wanted = top_p * _sum(weights)
    # All tokens below this together weigh less than what the nucleus may leave out.
    width = math.log(columns / max(1 - top_p, _LEAST_TOP_P))
    low = likeliest[:, :, None] - width
    for _ in range(_HALVINGS):
        width /= 2
        middle = low + width
        low = mx.where(_sum(weights * (blocks >= middle)) >= wanted, middle, low)
    return low[:, :, 0]


def _sum(blocks: mx.array) -> mx.array:
    return mx.sum(mx.sum(blocks, axis=2, keepdims=True), axis=1, keepdims=True)


def _weights(logits: mx.array, likeliest: mx.array, floor: mx.array | None) -> mx.array:
    """Return probabilities, but for a factor: MLX's softmax on the CPU adds up to 1.0002 for 129,280 tokens."""
    weights = mx.exp(logits - likeliest)
    return weights if floor is None else mx.where(logits >= floor, weights, 0)


def _key(seed: int, position: int) -> mx.array:
    """Return the random key of one token: SplitMix64's output number *position* for *seed*."""
    state = (seed + (position + 1) * 0x9E3779B97F4A7C15) % 2**64
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    key: mx.array = mx.random.key(state ^ (state >> 31))
    return key


def _fresh_seed() -> int:
    import secrets

    return secrets.randbits(63)
