"""Causal attention over whole sequences that are read once: no cache."""

from functools import partial

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.products import Products, quietly
from r1mac.convert.side_by_side import Work

_VALUE_BYTES = 4


def heads_apart(x: mx.array, length: int, heads: int) -> mx.array:
    """Return *x* ``[sequences x length, heads x columns]`` as ``[sequences, heads, length, columns]``."""
    return x.reshape(-1, length, heads, x.shape[-1] // heads).swapaxes(1, 2)


def attend(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float, products: Products) -> Work[mx.array]:
    """Return what attention gives, ``[sequences x length, heads x columns]``.

    Args:
        queries: ``[sequences, heads, length, columns]``.
        keys: of as many heads, or of fewer that several queries share in their order.
        values: of as many heads as *keys*.
        scale: what scores are multiplied with.
        products: who does it on a CPU.
    """
    if not on_cpu():
        return _by_mlx(queries, keys, values, scale)
    mx.eval(queries, keys, values)
    task = partial(_by_numpy, as_numpy(queries), as_numpy(keys), as_numpy(values), scale, products.block_bytes)
    (made,) = yield from products.results([task], [])
    return mx.array(made)


def _by_mlx(queries: mx.array, keys: mx.array, values: mx.array, scale: float) -> mx.array:
    """Do it; scores of one sequence are in memory at a time."""
    count, heads, length, columns = queries.shape
    shared = keys.shape[1]
    mask = mx.where(mx.tril(mx.ones((length, length), dtype=mx.bool_)), 0.0, -mx.inf)
    results = []
    for number in range(count):
        # The queries of one key's group, one below the other: one product for them.
        grouped = queries[number].reshape(shared, heads // shared * length, columns)
        scores = (grouped @ keys[number].swapaxes(-1, -2)).reshape(heads, length, length)
        shares = mx.softmax(scores * scale + mask, axis=-1)
        mixed = (shares.reshape(shared, -1, length) @ values[number]).reshape(heads, length, -1)
        results.append(mixed.swapaxes(0, 1).reshape(length, -1))
        mx.eval(results[-1])
    return mx.concatenate(results)


def _by_numpy(queries: Array, keys: Array, values: Array, scale: float, block_bytes: int) -> Array:
    """Do it; scores of some heads of one sequence are in memory at a time: MLX takes ten times as long for them."""
    count, heads, length, columns = queries.shape
    shared = keys.shape[1]
    mask = np.where(np.tri(length, dtype=np.bool_), np.float32(0), np.float32(-np.inf))
    made = np.empty((count, length, shared, heads // shared, values.shape[-1]), np.float32)
    step = max(block_bytes // (_VALUE_BYTES * heads // shared * length * length), 1)
    for number in range(count):
        grouped = queries[number].reshape(shared, heads // shared * length, columns)
        for first in range(0, shared, step):
            some = slice(first, first + step)
            with quietly():
                scores = np.matmul(grouped[some], keys[number, some].swapaxes(-1, -2))
                scores *= np.float32(scale)
                shares = _softmax(scores.reshape(-1, length, length), mask).reshape(scores.shape)
                mixed = np.matmul(shares, values[number, some])
            made[number, :, some] = mixed.reshape(len(mixed), -1, length, values.shape[-1]).transpose(2, 0, 1, 3)
    return made.reshape(count * length, -1)


def _softmax(scores: Array, mask: Array) -> Array:
    """Return the softmax of *scores* and a *mask* of the last two axes; *scores* are overwritten."""
    scores += mask
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
