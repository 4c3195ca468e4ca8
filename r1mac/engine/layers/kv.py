"""The cache of keys and values: one per layer, in the model's own type or quantised."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.layers.kv_rows import Narrow, Rows, named, pieces_of
from r1mac.plan.memory import WIDE_BITS


def make_kv_cache(model: nn.Module, *, kv_bits: int = WIDE_BITS) -> list["LayerCache"]:
    """Return an empty cache for every layer of *model*.

    Args:
        model: a model of mlx-lm.
        kv_bits: 16 keeps keys and values as they are computed, 8 and 4 quantise them.
    """
    return [LayerCache(bits=kv_bits) for _ in model.layers]


class LayerCache:
    """Keys and values of one layer, with the methods that mlx-lm's models ask of a cache.

    Quantised, its newest tokens stay wide, 129 to 256 of them once there are as many. It gives a prompt's step the
    whole layer as values: that costs one layer's keys and values, and the fused attention then needs no score matrix.
    The attention to a single token (``narrow_attention``) takes the codes as they are, and reads fewer bytes.
    """

    def __init__(self, *, bits: int = WIDE_BITS) -> None:
        self.offset = 0
        self._keys, self._values = Rows(bits), Rows(bits)

    @property
    def room_tokens(self) -> int:
        """How many tokens there is room for, those included that are there."""
        return min(self._keys.room_tokens, self._values.room_tokens)

    def reserve(self, tokens: int) -> None:
        """Make room for *tokens* in all, so that a long prompt is not copied again at every step."""
        self._keys.reserve(tokens, self.offset)
        self._values.reserve(tokens, self.offset)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows and return all there are as values.

        Args:
            keys: ``[1, heads, tokens, length]``.
            values: the same, of another length maybe.
        """
        start, self.offset = self.offset, self.offset + keys.shape[2]
        return self._keys.extend(start, keys), self._values.extend(start, values)

    @property
    def has_codes(self) -> bool:
        """Whether some tokens are codes, of keys and values alike."""
        return self._keys.has_codes(self.offset) and self._values.has_codes(self.offset)

    def append(self, keys: mx.array, values: mx.array) -> tuple[Narrow, Narrow]:
        """Append rows where ``has_codes``, and return all there are as they lie there.

        Args:
            keys: as for ``update_and_fetch``.
            values: likewise.
        """
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys.write(start, keys)
        self._values.write(start, values)
        return self._keys.narrow(self.offset), self._values.narrow(self.offset)

    def requantize(self, bits: int) -> None:
        """Narrow all but the newest, and what will come, to *bits*; what is that narrow already, or cannot be, stays.

        The room for further tokens is given up. Beside the cache there are never more than one tensor of this layer
        in its old width and in its new one, and what choosing codes for some hundred tokens takes.
        """
        for rows in (self._keys, self._values):
            rows.requantize(bits, self.offset)

    def fit(self) -> None:
        """Give up the room for further tokens, but for the block that was begun."""
        for rows in (self._keys, self._values):
            rows.fit(self.offset)

    def export(self, start: int, stop: int) -> dict[str, mx.array]:
        """Return the tokens from *start* to before *stop* as they are stored.

        Named ``keys`` and ``values``, ``[1, heads, tokens, length]``; or, quantised, each as ``keys.codes``,
        ``keys.scales`` and ``keys.biases``: also the newest, as the codes that they will become.
        """
        return named("keys", self._keys.stored(start, stop)) | named("values", self._values.stored(start, stop))

    def load(self, arrays: Mapping[str, mx.array]) -> None:
        """Append tokens that ``export`` gave of a cache of this width. They stay codes.

        Raises:
            ValueError: they are not of this cache's width, or not of its type and shape; nothing is appended.
        """
        keys, values = pieces_of(arrays, "keys"), pieces_of(arrays, "values")
        if len(keys) + len(values) != len(arrays):
            raise ValueError(f"a layer's cache is not made of {', '.join(sorted(arrays))}")
        group_sizes = self._keys.checked(keys), self._values.checked(values)
        counts = {piece.shape[2] for piece in (*keys, *values)}
        if len(counts) != 1:
            raise ValueError("the parts of a layer's cache have different numbers of tokens")
        self._keys.put(self.offset, keys, group_sizes[0])
        self._values.put(self.offset, values, group_sizes[1])
        self.offset += counts.pop()

    def fork(self, tokens: int) -> "LayerCache":
        """Return a cache of the first *tokens*. Both share their memory until one of them is written to."""
        fork = LayerCache()
        fork._keys, fork._values = self._keys.fork(), self._values.fork()
        fork.offset = min(tokens, self.offset)
        return fork

    @property
    def state(self) -> list[mx.array]:
        """Every array, to be evaluated."""
        return [*self._keys.arrays, *self._values.arrays]

    @property
    def nbytes(self) -> int:
        """What it takes, the room for further tokens included."""
        return sum(part.nbytes for part in self.state)

    def is_trimmable(self) -> bool:
        """Rows do not depend on each other."""
        return True

    def trim(self, count: int) -> int:
        """Forget the last *count* tokens, and return how many those were."""
        count = min(self.offset, count)
        self.offset -= count
        return count

    def make_mask(self, count: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """Return what the next *count* tokens may see, as mlx-lm's models want it."""
        return mlx_lm_api.create_attention_mask(count, self.offset, return_array, window_size)
