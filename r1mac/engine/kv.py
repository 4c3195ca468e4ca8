"""The cache of keys and values: one per layer, in the model's own type or quantised."""

from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.plan.memory import CACHE_BLOCK_TOKENS, WIDE_BITS, kv_group_size


def make_kv_cache(model: nn.Module, *, kv_bits: int = WIDE_BITS) -> list["LayerCache"]:
    """Return an empty cache for every layer of *model*.

    Args:
        model: a model of mlx-lm.
        kv_bits: 16 keeps keys and values as they are computed, 8 and 4 quantise them.
    """
    # MLA computes with the cached latent itself; the others hand keys and values to mlx-lm's attention.
    latent = getattr(getattr(model, "args", None), "kv_lora_rank", None) is not None
    return [LayerCache(bits=kv_bits, attends_codes=not latent) for _ in model.layers]


class LayerCache:
    """Keys and values of one layer, with the methods that mlx-lm's models ask of a cache.

    Quantised, it gives a prompt's step the whole layer dequantised: that costs one layer's keys and values,
    and the fused attention then needs no score matrix. A single token is given the codes where the attention
    can multiply by them (*attends_codes*), so that decoding reads fewer bytes.
    """

    def __init__(self, *, bits: int = WIDE_BITS, attends_codes: bool = True) -> None:
        self.offset = 0
        self._bits = bits
        self._attends_codes = attends_codes
        self._gives_codes = False
        self._keys, self._values = _Rows(bits), _Rows(bits)

    @property
    def bits(self) -> int:
        """Width of the codes that were given last. mlx-lm takes a cache that has this attribute for one of codes."""
        if not self._gives_codes:
            raise AttributeError("this cache gave no codes")
        return self._bits

    @property
    def group_size(self) -> int | None:
        """How many values share a scale; None if they are not quantised."""
        return self._keys.group_size

    def reserve(self, tokens: int) -> None:
        """Make room for *tokens* in all, so that a long prompt is not copied again at every step."""
        self._keys.reserve(tokens, self.offset)
        self._values.reserve(tokens, self.offset)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        """Append rows and return all there are.

        Args:
            keys: ``[1, heads, tokens, length]``.
            values: the same, of another length maybe.
        """
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self._keys.write(start, keys)
        self._values.write(start, values)
        self._gives_codes = self._attends_codes and keys.shape[2] == 1 and self._is_quantized
        if self._gives_codes:
            return self._keys.codes(self.offset), self._values.codes(self.offset)
        return self._keys.values(self.offset), self._values.values(self.offset)

    @property
    def state(self) -> list[mx.array]:
        """Every array, to be evaluated."""
        return [*self._keys.parts, *self._values.parts]

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

    @property
    def _is_quantized(self) -> bool:
        return self._keys.group_size is not None and self._values.group_size is not None


class _Rows:
    """A tensor ``[1, heads, tokens, length]`` that grows along its tokens: values, or codes, scales and biases."""

    def __init__(self, bits: int) -> None:
        self.parts: list[mx.array] = []
        self.group_size: int | None = None
        self._bits = bits
        self._room = 0

    def reserve(self, tokens: int, used: int) -> None:
        """Make room for *tokens*, in whole blocks, keeping the first *used*."""
        if tokens <= self._room:
            return
        self._room = -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS
        for index in range(len(self.parts)):
            self.parts[index] = mx.pad(
                self.parts[index][..., :used, :], [(0, 0), (0, 0), (0, self._room - used), (0, 0)]
            )
            # One at a time: left lazy, the copies of all layers would be alive beside their originals.
            mx.eval(self.parts[index])

    def write(self, start: int, rows: mx.array) -> None:
        """Put *rows* at the token *start*, which is the end or before it."""
        end = start + rows.shape[2]
        self.reserve(end, start)
        if not self.parts:
            self.group_size = kv_group_size(rows.shape[-1], self._bits)
        new = [rows]
        if self.group_size is not None:
            new = list(mx.quantize(rows, group_size=self.group_size, bits=self._bits))
        if not self.parts:
            self.parts = [mx.zeros((*piece.shape[:2], self._room, piece.shape[3]), piece.dtype) for piece in new]
        for part, piece in zip(self.parts, new, strict=True):
            part[..., start:end, :] = piece

    def codes(self, count: int) -> tuple[mx.array, ...]:
        """Return the first *count* tokens as they are stored."""
        return tuple(part[..., :count, :] for part in self.parts)

    def values(self, count: int) -> mx.array:
        """Return the first *count* tokens in the type in which they came."""
        first, *rest = self.codes(count)
        if self.group_size is None:
            return first
        scales, biases = rest
        return mx.dequantize(first, scales, biases, group_size=self.group_size, bits=self._bits)
