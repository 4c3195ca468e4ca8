"""What a model's answers hang on: a random gradient whose second moments are those of the divergence.

Logits that are off by a small ``d`` change the distribution of the next token by a divergence of ``d F d / 2``, where
``F = diag(p) - p p^T`` is the Fisher information of the shares ``p``. A vector ``v`` with ``E[v v^T] = F`` that is
carried back through the model, as any gradient is, meets every product in it with the second moments of the
divergence there. Signs ``s`` drawn at random make one: ``v_i = sqrt(p_i) s_i - p_i sum_j(sqrt(p_j) s_j)``. Unlike the
gradient of a token drawn by its share, it is hardly ever far longer than on average.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array
from r1mac.convert.streamed_model import StreamedModel


class AnswerGradient(NamedTuple):
    """Where the answers to one sequence come from.

    Attributes:
        at_states: the gradient at what the head is given, float32 ``[tokens, hidden]``.
        at_logits: how long it is at each token's logits, on average, ``[tokens]``.
    """

    at_states: mx.array
    at_logits: mx.array


def answer_gradient(model: StreamedModel, states: Sequence[mx.array]) -> list[AnswerGradient]:
    """Return a random gradient of the answers to each of *states*; of the head, a block of rows is in memory at a time.

    The rows are read twice: shares are known only when all logits are. The signs are the same in every run. numpy does
    it all, since MLX's exponential takes twenty times as long on a CPU, and a GPU has nothing else to do meanwhile.

    Args:
        model: whose head it is.
        states: what the head is given, float32 ``[tokens, hidden]``, one for each sequence.
    """
    given = [np.asarray(state) for state in states]
    sums = [_Sums.nothing(len(state)) for state in given]
    for number, _, logits, signs in _logits(model, given):
        sums[number] = sums[number].with_logits(logits, signs)
    found = [np.zeros_like(state) for state in given]
    for number, rows, logits, signs in _logits(model, given):
        found[number] += sums[number].gradient(logits, signs) @ rows
    return [AnswerGradient(mx.array(each), mx.array(its.length())) for each, its in zip(found, sums, strict=True)]


def _logits(model: StreamedModel, states: Sequence[Array]) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yield a sequence's number, rows of the head, the sequence's logits of these, and signs for them."""
    for first_row, block in model.row_blocks(model.head_path):
        rows = np.array(block.astype(mx.float32))
        for number, state in enumerate(states):
            logits = state @ rows.T
            yield number, rows, logits, _signs(logits.shape, first_row, number)


class _Sums(NamedTuple):
    """Sums over the logits so far, each ``[tokens, 1]``: all scaled by the largest, which may grow.

    Attributes:
        largest: logit.
        shares: sum of ``exp(logit - largest)``.
        squares: of the squares of these.
        signed: of their roots, with the signs.
    """

    largest: Array
    shares: Array
    squares: Array
    signed: Array

    @classmethod
    def nothing(cls, tokens: int) -> "_Sums":
        zeros = np.zeros((tokens, 1), np.float32)
        return cls(np.full_like(zeros, -np.inf), zeros, zeros, zeros)

    def with_logits(self, logits: Array, signs: Array) -> "_Sums":
        """Return the sums with *logits* ``[tokens, rows]``, which are overwritten."""
        largest = np.maximum(self.largest, logits.max(axis=1, keepdims=True))
        shrunk = np.exp(self.largest - largest)
        roots = _roots(logits, largest)
        signed = np.einsum("tr,tr->t", roots, signs)[:, None]
        shares = np.square(roots, out=roots)
        return _Sums(
            largest,
            self.shares * shrunk + shares.sum(axis=1, keepdims=True),
            self.squares * shrunk * shrunk + np.einsum("tr,tr->t", shares, shares)[:, None],
            self.signed * np.sqrt(shrunk) + signed,
        )

    def gradient(self, logits: Array, signs: Array) -> Array:
        """Return ``v`` at *logits* ``[tokens, rows]``, which are overwritten; the sums are of all rows."""
        roots = _roots(logits, self.largest)
        roots /= np.sqrt(self.shares)
        signs -= roots * (self.signed / np.sqrt(self.shares))
        signs *= roots
        return signs

    def length(self) -> Array:
        """Return the root of ``E[sum(v ** 2)]``, which is the trace of ``F``, ``[tokens]``."""
        length: Array = np.sqrt(np.maximum(1 - self.squares / np.square(self.shares), 0))[:, 0]
        return length


def _roots(logits: Array, largest: Array) -> Array:
    logits -= largest
    logits *= 0.5
    return np.exp(logits, out=logits)


def _signs(shape: tuple[int, ...], first_row: int, number: int) -> Array:
    """Return random signs for the logits of the rows from *first_row* on, of the sequence *number*."""
    tokens, rows = shape
    drawn = np.random.default_rng((first_row, number)).integers(0, 256, (tokens, -(-rows // 8)), np.uint8)
    signs = np.unpackbits(drawn, axis=1, count=rows).astype(np.float32)
    signs *= -2
    signs += 1
    return signs
