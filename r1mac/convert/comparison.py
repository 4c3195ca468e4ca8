"""Models side by side on one text: how likely each finds it, and how far their distributions are from the first's.

Every model reads each of its blocks once, the first one once for all the others; logits come for some words of the
vocabulary at a time and are summed up as they come.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array
from r1mac.convert.device import cache_limited
from r1mac.convert.passage import Passage, models_at_once
from r1mac.convert.products import quietly
from r1mac.convert.side_by_side import Threads, thread_count
from r1mac.errors import BadCheckpoint

# exp of more would be too large for a float.
_MOST_NATS = 700.0
_LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one model takes a text.

    Attributes:
        tokens: that were read.
        perplexity: of each sequence's tokens but its first.
        kl_nats: mean Kullback-Leibler divergence of its distributions from the reference's; None without one.
        kl_p99_nats: what 99 of 100 tokens' divergences do not exceed.
        same_top: share of tokens after which it and the reference think the same token likeliest.
    """

    tokens: int
    perplexity: float
    kl_nats: float | None = None
    kl_p99_nats: float | None = None
    same_top: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """So many blocks of all models have been gone through; *readings*, one a model, are there in the end."""

    done: int
    total: int
    readings: tuple[Reading, ...] = ()


def compare_passages(
    passages: Sequence[Passage], sequences: Sequence[Sequence[int]], *, with_reference: bool, room_bytes: int
) -> Iterator[Compared]:
    """Yield after each block of the models; the last event has their readings.

    Args:
        passages: models of one vocabulary; where *with_reference* the first is what the others are compared with.
        sequences: token ids, all of one length.
        with_reference: whether there is something to compare with.
        room_bytes: for the tokens' states and what becomes of them on the way; the more, the more models go through
            a block at once. One at a time does so in any case.

    Raises:
        BadCheckpoint: the vocabularies differ, or a model computes no numbers.
    """
    _check_alike(passages)
    with cache_limited(max(passage.block_bytes for passage in passages)):
        yield from _compared(passages, sequences, with_reference=with_reference, room_bytes=room_bytes)


def _compared(
    passages: Sequence[Passage], sequences: Sequence[Sequence[int]], *, with_reference: bool, room_bytes: int
) -> Iterator[Compared]:
    tokens = sum(map(len, sequences))
    at_once = min(models_at_once(passage.arch, tokens, len(passages), room_bytes) for passage in passages)
    counts = [passage.arch.layer_count for passage in passages]
    # The head takes about as long as a block.
    total = max(counts) + 1
    with Threads() as threads:
        states = dict(enumerate(threads.done([one.embedded(sequences) for one in passages], at_once=len(passages))))
        yield Compared(done=0, total=total)
        for number in range(max(counts)):
            going = [index for index, count in enumerate(counts) if number < count]
            works = [passages[index].through(number, states.pop(index)) for index in going]
            states |= zip(going, threads.done(works, at_once=at_once), strict=True)
            yield Compared(done=number + 1, total=total)
        normed = [passage.normed(states.pop(index)) for index, passage in enumerate(passages)]
        sums = _sums(passages, normed, np.array(sequences, np.int64), threads, with_reference=with_reference)
    readings = tuple(_reading(own, passage) for own, passage in zip(sums, passages, strict=True))
    yield Compared(done=total, total=total, readings=readings)


def _check_alike(passages: Sequence[Passage]) -> None:
    one, *others = passages
    for other in others:
        if other.vocab_size != one.vocab_size:
            raise BadCheckpoint(
                f"{other.description} has {other.vocab_size} tokens and {one.description} {one.vocab_size}: their "
                "distributions cannot be compared",
                hint="compare a model with what it was made from",
            )


class _Sums:
    """What is known of one model's distributions once some of their logits are; all ``[tokens]``.

    With m the largest logit so far, *total* is the sum of exp(logit - m), and of the reference *differences* that of
    exp(logit - m) times its logit less each other model's.
    """

    def __init__(self, following: Array, others: int) -> None:
        self._following = following
        tokens = following.size
        self.largest = np.full(tokens, -np.inf)
        self.total = np.zeros(tokens)
        self.top = np.full(tokens, -1)
        self.following_logit = np.zeros(tokens)
        self.differences = np.zeros((others, tokens))
        self.kl_nats: Array | None = None
        self.same_top: Array | None = None

    def add(self, logits: Array, first: int, others: Sequence[Array]) -> None:
        """Take the logits ``[tokens, words]`` of the words from *first* on, and those of the *others*."""
        with quietly():
            self._add(logits, first, others)

    def _add(self, logits: Array, first: int, others: Sequence[Array]) -> None:
        top = logits.argmax(axis=-1)
        highest = np.take_along_axis(logits, top[:, None], axis=-1)[:, 0].astype(np.float64)
        larger = highest > self.largest
        self.top[larger] = first + top[larger]
        before, self.largest = self.largest, np.maximum(self.largest, highest)
        shares = np.exp(logits - self.largest.astype(np.float32)[:, None])
        shrunk = np.exp(before - self.largest)
        self.total = self.total * shrunk + shares.sum(axis=-1, dtype=np.float64)
        for index, other in enumerate(others):
            more = np.einsum("tw,tw->t", shares, logits - other)
            self.differences[index] = self.differences[index] * shrunk + more
        place = self._following - first
        here = np.nonzero((place >= 0) & (place < logits.shape[1]))[0]
        self.following_logit[here] = logits[here, place[here]]

    @property
    def log_total(self) -> Array:
        """The logarithm of the sum of all logits' exponentials."""
        result: Array = self.largest + np.log(self.total)
        return result

    def losses(self) -> Array:
        """Return what each token that follows another one costs, in nats."""
        found: Array = (self.log_total - self.following_logit)[self._following >= 0]
        return found


def _sums(
    passages: Sequence[Passage], normed: Sequence[mx.array], ids: Array, threads: Threads, *, with_reference: bool
) -> Sequence[_Sums]:
    following = np.full(ids.shape, -1)
    following[:, :-1] = ids[:, 1:]
    others = len(passages) - 1 if with_reference else 0
    sums = [_Sums(following.reshape(-1), others if index == 0 else 0) for index in range(len(passages))]
    step = int(np.lcm.reduce([passage.head_step for passage in passages]))
    columns = max(normed[0].shape[1], ids.size)
    # Each thread has a block's exponentials, and all have them in one block's room.
    rows = max(passages[0].block_bytes // thread_count() // (_LOGIT_BYTES * columns) // step, 1) * step
    vocab_size = passages[0].vocab_size
    for first in range(0, vocab_size, rows):
        stop = min(first + rows, vocab_size)
        works = [passage.logits(state, first, stop) for passage, state in zip(passages, normed, strict=True)]
        logits = threads.done(works, at_once=len(works))
        tasks = [
            partial(own.add, logits[index], first, logits[1:] if with_reference and not index else ())
            for index, own in enumerate(sums)
        ]
        threads.results(tasks)
    if with_reference:
        wanted = sums[0]
        for index, own in enumerate(sums[1:]):
            with quietly():
                divergence = wanted.differences[index] / wanted.total - wanted.log_total + own.log_total
            own.kl_nats, own.same_top = np.maximum(divergence, 0.0), own.top == wanted.top
    return sums


def _reading(sums: _Sums, passage: Passage) -> Reading:
    losses: Any = sums.losses()
    if not np.isfinite(sums.log_total).all() or not np.isfinite(losses).all():
        raise BadCheckpoint(
            f"{passage.description} does not compute: its logits are not finite", hint="fetch or convert it again"
        )
    perplexity = exp(min(float(losses.mean()), _MOST_NATS)) if losses.size else 1.0
    if sums.kl_nats is None or sums.same_top is None:
        return Reading(tokens=sums.top.size, perplexity=perplexity)
    return Reading(
        tokens=sums.top.size,
        perplexity=perplexity,
        kl_nats=float(sums.kl_nats.mean()),
        kl_p99_nats=float(np.percentile(sums.kl_nats, 99)),
        same_top=float(sums.same_top.mean()),
    )
