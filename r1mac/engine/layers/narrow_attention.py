"""Attention of a single token to a narrow cache: the codes of older tokens are multiplied as they are, the newest wide.

mlx-lm's attention takes a cache that is all codes or none. Scores of both kinds of tokens go into one softmax here.
"""

from functools import cache
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.layers.kv import LayerCache
from r1mac.engine.layers.kv_rows import Narrow


def install_narrow_attention(model: nn.Module) -> None:
    """Give every ordinary attention of *model* this way to read codes; weights, names and all else stay."""
    for layer in model.layers:
        kind: Any = type(layer.self_attn)
        if mlx_lm_api.is_grouped_attention(kind):
            layer.self_attn.__class__ = _narrow(kind)


def attend(queries: mx.array, keys: Narrow, values: Narrow, scale: float) -> mx.array:
    """Return what the heads of one token take from all tokens, ``[1, heads, 1, length]``.

    Args:
        queries: ``[1, heads, 1, length]``, heads that share keys next to each other.
        keys: of all tokens.
        values: likewise.
        scale: of the scores.
    """
    grouped = queries.reshape(1, keys.newest.shape[1], -1, queries.shape[3])
    shares = mx.softmax(keys.scores(grouped * scale), axis=-1, precise=True)
    return values.mix(shares).reshape(*queries.shape[:3], -1)


class _NarrowAttention:
    """What is put before mlx-lm's attention of a kind."""

    def __call__(self: Any, x: mx.array, mask: Any = None, cache: Any = None) -> mx.array:
        """Return the heads' outputs put together, of the shape of *x* ``[rows, tokens, hidden]``."""
        if x.shape[1] != 1 or not isinstance(cache, LayerCache) or not cache.has_codes:
            return super().__call__(x, mask, cache)  # type: ignore[misc,no-any-return]
        queries = self.q_proj(x).reshape(1, 1, self.n_heads, -1)
        keys = self.k_proj(x).reshape(1, 1, self.n_kv_heads, -1)
        values = self.v_proj(x).reshape(1, 1, self.n_kv_heads, -1)
        if "q_norm" in self:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = (self.rope(rows.transpose(0, 2, 1, 3), offset=cache.offset) for rows in (queries, keys))
        output = attend(queries, *cache.append(keys, values.transpose(0, 2, 1, 3)), self.scale)
        return self.o_proj(output.transpose(0, 2, 1, 3).flatten(2))  # type: ignore[no-any-return]


@cache
def _narrow(kind: Any) -> Any:
    return type(f"Narrow{kind.__name__}", (_NarrowAttention, kind), {})
