"""Causal attention over whole sequences that are read once: no cache."""

import mlx.core as mx

from r1mac.convert.products import product


def heads_apart(x: mx.array, length: int, heads: int) -> mx.array:
    """Return *x* ``[sequences x length, heads x columns]`` as ``[sequences, heads, length, columns]``."""
    return x.reshape(-1, length, heads, x.shape[-1] // heads).swapaxes(1, 2)


def attend(queries: mx.array, keys: mx.array, values: mx.array, *, scale: float) -> mx.array:
    """Return what attention gives, ``[sequences x length, heads x columns]``.

    Scores of one sequence are in memory at a time.

    Args:
        queries: ``[sequences, heads, length, columns]``.
        keys: of as many heads, or of fewer that several queries share in their order.
        values: of as many heads as *keys*.
        scale: what scores are multiplied with.
    """
    count, heads, length, columns = queries.shape
    shared = keys.shape[1]
    mask = mx.where(mx.tril(mx.ones((length, length), dtype=mx.bool_)), 0.0, -mx.inf)
    results = []
    for number in range(count):
        # The queries of one key's group, one below the other: one product for them.
        grouped = queries[number].reshape(shared, heads // shared * length, columns)
        scores = product(grouped, keys[number].swapaxes(-1, -2)).reshape(heads, length, length)
        shares = mx.softmax(scores * scale + mask, axis=-1)
        mixed = product(shares.reshape(shared, -1, length), values[number]).reshape(heads, length, -1)
        results.append(mixed.swapaxes(0, 1).reshape(length, -1))
        mx.eval(results[-1])
    return mx.concatenate(results)
