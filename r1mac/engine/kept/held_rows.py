"""What rows of a batch have read, put aside as mlx-lm's own caches: those are what a batch can be made of."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from r1mac.plan.memory import WIDE_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldRow:
    """Tokens that were read, with their cache.

    Attributes:
        layers: a ``KVCache`` of mlx-lm for each; nobody writes to them.
    """

    token_ids: tuple[int, ...]
    layers: tuple[Any, ...]
    kv_bits: int = WIDE_BITS

    @property
    def nbytes(self) -> int:
        """What the cache takes."""
        return sum(layer.nbytes for layer in self.layers)

    def fork(self, tokens: int) -> list[Any]:
        """Return caches of the first *tokens*, to be merged into a batch, which copies them."""
        return [_cut(layer, tokens) for layer in self.layers]


def hold_row(layers: Sequence[Any], token_ids: Sequence[int], tokens: int) -> HeldRow:
    """Return the first *tokens* of a row's caches, in memory of their own: what they were cut from may go."""
    held = []
    for layer in layers:
        own = _cut(layer, tokens)
        own.keys, own.values = mx.contiguous(own.keys), mx.contiguous(own.values)
        # One layer at a time: left lazy, the copies of all would be alive beside the whole batch.
        mx.eval(own.keys, own.values)
        held.append(own)
    return HeldRow(token_ids=tuple(token_ids[:tokens]), layers=tuple(held))


def _cut(layer: Any, tokens: int) -> Any:
    part = copy.copy(layer)
    part.keys, part.values, part.offset = layer.keys[..., :tokens, :], layer.values[..., :tokens, :], tokens
    return part
