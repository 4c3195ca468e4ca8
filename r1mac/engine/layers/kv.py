"""The cache of keys and values: one per layer, in the model's own type or quantised."""

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from mlx import nn

from r1mac import mlx_lm_api
from r1mac.engine.layers.codes import to_codes
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
        self._attends_codes = attends_codes
        self._gives_codes = False
        self._keys, self._values = _Rows(bits), _Rows(bits)

    @property
    def bits(self) -> int:
        """Width of the codes that were given last. mlx-lm takes a cache that has this attribute for one of codes."""
        if not self._gives_codes:
            raise AttributeError("this cache gave no codes")
        return self._keys.bits

    @property
    def group_size(self) -> int | None:
        """How many values share a scale; None if they are not quantised."""
        return self._keys.group_size

    @property
    def room_tokens(self) -> int:
        """How many tokens there is room for, those included that are there."""
        return min(self._keys.room_tokens, self._values.room_tokens)

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

    def requantize(self, bits: int) -> None:
        """Narrow what is there, and what will come, to *bits*; what is that narrow already, or cannot be, stays.

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
        ``keys.scales`` and ``keys.biases``. Nothing is computed.
        """
        return {
            f"{name}{suffix}": part[..., start:stop, :]
            for name, rows in (("keys", self._keys), ("values", self._values))
            for suffix, part in zip(_SUFFIXES[len(rows.parts)], rows.parts, strict=True)
        }

    def load(self, arrays: Mapping[str, mx.array]) -> None:
        """Append tokens that ``export`` gave of a cache of this width.

        Raises:
            ValueError: they are not of this cache's width, or not of its type and shape; nothing is appended.
        """
        keys, values = _pieces(arrays, "keys"), _pieces(arrays, "values")
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
        fork = LayerCache(attends_codes=self._attends_codes)
        fork._keys, fork._values = self._keys.fork(), self._values.fork()
        fork.offset = min(tokens, self.offset)
        return fork

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
        keys, values = self._keys, self._values
        # mlx-lm's attention takes both to be alike.
        return keys.group_size is not None and (keys.bits, keys.group_size) == (values.bits, values.group_size)


_DIMENSIONS = 4
# Tokens that are narrowed in one piece: choosing codes takes some copies of them in float32.
_NARROWED_AT_ONCE = 2 * CACHE_BLOCK_TOKENS
# What a stored tensor's arrays are called, by their number.
_SUFFIXES = {0: (), 1: ("",), 3: (".codes", ".scales", ".biases")}


def _pieces(arrays: Mapping[str, mx.array], name: str) -> list[mx.array]:
    """Return the arrays of the tensor *name*, in order; none where that is not how one is stored."""
    for suffixes in (_SUFFIXES[1], _SUFFIXES[3]):
        if all(name + suffix in arrays for suffix in suffixes):
            return [arrays[name + suffix] for suffix in suffixes]
    return []


class _Rows:
    """A tensor ``[1, heads, tokens, length]`` that grows along its tokens: values, or codes, scales and biases.

    Attributes:
        parts: its arrays, with room for further tokens; none before the first.
        bits: width of the codes, or of the values that stay wide.
        group_size: how many values share a scale; None where they are no codes.
        room_tokens: how many tokens fit.
    """

    def __init__(self, bits: int) -> None:
        self.parts: list[mx.array] = []
        self.bits = bits
        self.group_size: int | None = None
        self.room_tokens = 0

    def reserve(self, tokens: int, used: int) -> None:
        """Make room for *tokens*, in whole blocks, keeping the first *used*."""
        if tokens <= self.room_tokens:
            return
        self.room_tokens = _whole_blocks(tokens)
        for index in range(len(self.parts)):
            self.parts[index] = mx.pad(
                self.parts[index][..., :used, :], [(0, 0), (0, 0), (0, self.room_tokens - used), (0, 0)]
            )
            # One at a time: left lazy, the copies of all layers would be alive beside their originals.
            mx.eval(self.parts[index])

    def write(self, start: int, rows: mx.array) -> None:
        """Put *rows* at the token *start*, which is the end or before it."""
        group_size = self.group_size if self.parts else kv_group_size(rows.shape[-1], self.bits)
        new = [rows]
        if group_size is not None:
            new = list(to_codes(rows, bits=self.bits, group_size=group_size))
        self.put(start, new, group_size)

    def put(self, start: int, pieces: Sequence[mx.array], group_size: int | None) -> None:
        """Put what is stored of some rows at the token *start*."""
        end = start + pieces[0].shape[2]
        self.reserve(end, start)
        if not self.parts:
            self.group_size = group_size
            self.parts = [
                mx.zeros((*piece.shape[:2], self.room_tokens, piece.shape[3]), piece.dtype) for piece in pieces
            ]
        for part, piece in zip(self.parts, pieces, strict=True):
            part[..., start:end, :] = piece

    def checked(self, pieces: Sequence[mx.array]) -> int | None:
        """Return the group size of stored rows.

        Raises:
            ValueError: they are not what this tensor would hold.
        """
        if not pieces or any(piece.ndim != _DIMENSIONS for piece in pieces):
            raise ValueError("a layer's cache lacks keys or values")
        length = pieces[0].shape[-1] if len(pieces) == 1 else pieces[0].shape[-1] * 32 // self.bits
        group_size = kv_group_size(length, self.bits)
        shared = [] if group_size is None else [length // group_size] * 2
        if [piece.shape[-1] for piece in pieces[1:]] != shared:
            raise ValueError(f"vectors of {length} values are not stored like that at {self.bits} bits")
        if self.parts and [_kind(piece) for piece in pieces] != [_kind(part) for part in self.parts]:
            raise ValueError("a layer's cache changes its type or shape")
        return group_size

    def requantize(self, bits: int, used: int) -> None:
        """Narrow to *bits* and to the blocks that the first *used* tokens take."""
        if bits >= self.bits:
            return
        if not self.parts:
            self.bits = bits
            return
        self.fit(used)
        if not self.parts:
            self.bits = bits
            return
        group_size = kv_group_size(self.values(1).shape[-1], bits)
        if group_size is None:
            return
        pieces = []
        for start in range(0, self.room_tokens, _NARROWED_AT_ONCE):
            rows = self.values(start + _NARROWED_AT_ONCE, start)
            pieces.append(to_codes(rows, bits=bits, group_size=group_size))
            mx.eval(pieces[-1])
        new = [mx.concatenate(list(parts), axis=2) for parts in zip(*pieces, strict=True)]
        mx.eval(new)
        self.parts, self.bits, self.group_size = new, bits, group_size

    def fit(self, used: int) -> None:
        """Keep the blocks that the first *used* tokens take, and free the others."""
        room = _whole_blocks(used)
        if room >= self.room_tokens:
            return
        self.room_tokens = room
        if not room:
            self.parts, self.group_size = [], None
        for index in range(len(self.parts)):
            self.parts[index] = mx.contiguous(self.parts[index][..., :room, :])
            mx.eval(self.parts[index])

    def fork(self) -> "_Rows":
        """Return another tensor that shares these arrays until one of the two is written to."""
        fork = _Rows(self.bits)
        # Another handle for each: an assignment to a part of an array changes what its handle stands for.
        fork.parts = [part[...] for part in self.parts]
        fork.group_size, fork.room_tokens = self.group_size, self.room_tokens
        return fork

    def codes(self, stop: int, start: int = 0) -> tuple[mx.array, ...]:
        """Return the tokens from *start* to before *stop* as they are stored."""
        return tuple(part[..., start:stop, :] for part in self.parts)

    def values(self, stop: int, start: int = 0) -> mx.array:
        """Return the tokens from *start* to before *stop* in the type in which they came."""
        first, *rest = self.codes(stop, start)
        if self.group_size is None:
            return first
        scales, biases = rest
        return mx.dequantize(first, scales, biases, group_size=self.group_size, bits=self.bits)


def _whole_blocks(tokens: int) -> int:
    """Return the tokens of the blocks that *tokens* take."""
    return -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS


def _kind(array: mx.array) -> tuple[Any, ...]:
    """Return what two arrays share that may follow each other."""
    return (array.dtype, *array.shape[:2], array.shape[3])
