"""One tensor of a layer's cache: values, or codes with the newest tokens wide.

A narrow tensor keeps its newest tokens as they came, up to a block of them. When the block is full its older part
becomes codes and leaves (the residual of KIVI, arXiv 2402.02750), so that codes are chosen for many tokens at once. How
many are codes follows from how many there are (``plan.memory.narrow_tokens``), but after a cut into the codes: what is
narrow stays narrow.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from r1mac.engine.layers.codes import to_codes
from r1mac.plan.memory import CACHE_BLOCK_TOKENS, kv_group_size, narrow_tokens

_DIMENSIONS = 4
# Tokens that are narrowed in one piece: choosing codes takes some copies of them in float32.
_NARROWED_AT_ONCE = 2 * CACHE_BLOCK_TOKENS
# What a stored tensor's arrays are called, by their number.
_SUFFIXES = {0: (), 1: ("",), 3: (".codes", ".scales", ".biases")}


def named(name: str, pieces: Sequence[mx.array]) -> dict[str, mx.array]:
    """Return what is stored of the tensor *name* under the names of its arrays."""
    return {name + suffix: piece for suffix, piece in zip(_SUFFIXES[len(pieces)], pieces, strict=True)}


def pieces_of(arrays: Mapping[str, mx.array], name: str) -> list[mx.array]:
    """Return the arrays of the tensor *name*, in order; none where that is not how one is stored."""
    for suffixes in (_SUFFIXES[1], _SUFFIXES[3]):
        if all(name + suffix in arrays for suffix in suffixes):
            return [arrays[name + suffix] for suffix in suffixes]
    return []


class Narrow(NamedTuple):
    """A tensor as it lies there: the older tokens as codes, the newest as values.

    Attributes:
        codes: with scales and biases, ``[1, heads, tokens, ...]``, at least one token.
        newest: values ``[1, heads, tokens, length]``.
        bits: width of the codes, and *group_size*, how many share a scale.
    """

    codes: tuple[mx.array, mx.array, mx.array]
    newest: mx.array
    bits: int
    group_size: int

    def scores(self, queries: mx.array) -> mx.array:
        """Return the products of *queries* ``[1, heads, queries, length]`` with each token."""
        old = self._multiply(queries, transpose=True)
        return mx.concatenate([old, queries @ self.newest.swapaxes(-1, -2)], axis=-1)

    def mix(self, shares: mx.array) -> mx.array:
        """Return the sum of all tokens, each times its share; *shares* are ``[1, heads, queries, tokens]``."""
        old, new = mx.split(shares, [self.codes[0].shape[2]], axis=-1)
        return self._multiply(old, transpose=False) + new @ self.newest

    def _multiply(self, left: mx.array, *, transpose: bool) -> mx.array:
        codes, scales, biases = self.codes
        return mx.quantized_matmul(
            left, codes, scales, biases, transpose=transpose, group_size=self.group_size, bits=self.bits
        )


class Rows:
    """A tensor ``[1, heads, tokens, length]`` that grows along its tokens.

    Attributes:
        bits: width of the codes, or of the values that stay wide.
        group_size: how many values share a scale; None where they are no codes.
        room_tokens: how many tokens fit, the newest included.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.group_size: int | None = None
        self.room_tokens = 0
        # Values; or codes, scales and biases, with room for all tokens, none before a block is full.
        self._parts: list[mx.array] = []
        # Of a narrow tensor the tokens that have no codes, from number _first on, in room for a block.
        self._newest: mx.array | None = None
        self._first = 0

    @property
    def arrays(self) -> list[mx.array]:
        """All that is held."""
        return self._parts if self._newest is None else [*self._parts, self._newest]

    def reserve(self, tokens: int, used: int) -> None:
        """Make room for *tokens*, in whole blocks, keeping the first *used*."""
        if tokens <= self.room_tokens:
            return
        self.room_tokens = _whole_blocks(tokens)
        for index, part in enumerate(self._parts):
            kept = part[..., :used, :]
            self._parts[index] = mx.pad(kept, [(0, 0), (0, 0), (0, self.room_tokens - kept.shape[2]), (0, 0)])
            # One at a time: left lazy, the copies of all layers would be alive beside their originals.
            mx.eval(self._parts[index])

    def write(self, start: int, rows: mx.array) -> None:
        """Put *rows* at the token *start*, which is the end or before it."""
        self._begin(start, rows)
        if self.group_size is None:
            self._store(start, [rows])
        elif start + rows.shape[2] - self._first <= CACHE_BLOCK_TOKENS:
            self._put_newest(start, rows)
        else:
            self._move_on(self._with_newest(start, rows))

    def extend(self, start: int, rows: mx.array) -> mx.array:
        """Do as ``write``, and return all there is as values; *rows* and the newest as they came."""
        self._begin(start, rows)
        end = start + rows.shape[2]
        if self.group_size is None:
            self._store(start, [rows])
            return self._parts[0][..., :end, :]
        old = self._first
        # Written first: codes that are read before others are written would have to be copied.
        if end - old <= CACHE_BLOCK_TOKENS:
            self._put_newest(start, rows)
            recent = self._wide(old, end)
        else:
            recent = self._with_newest(start, rows)
            self._move_on(recent)
            # Else the newest are stored when the model has come to its end, and what they come from is held until then.
            recent = mx.depends(recent, self._wide(self._first, end))
        if not old:
            return recent
        # There is room for codes of all, so that the newest can be put in their place: nothing is copied.
        # Codes of earlier steps depend on nothing of this one: MLX would take those of all layers apart at once.
        values = self._dequantized([mx.depends(part[..., :end, :], recent) for part in self._parts])
        values[..., old:, :] = recent
        return values

    def put(self, start: int, pieces: Sequence[mx.array], group_size: int | None) -> None:
        """Put what is stored of some rows at the token *start*."""
        end = start + pieces[0].shape[2]
        if not self.arrays:
            self.group_size = group_size
        self.reserve(end, start)
        if group_size is not None:
            # All are codes then. The first that follow are not: what they take is there from the beginning.
            if self._first < start:
                self._store(self._first, self._codes_of(self._wide(self._first, start)))
            self._first = end
            length = pieces[0].shape[3] * 32 // self.bits
            if self._newest is None:
                self._newest = _newest_like(mx.broadcast_to(pieces[1][..., :1], (*pieces[1].shape[:3], length)))
        self._store(start, pieces)

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
        if self.arrays and [_kind(piece) for piece in pieces] != [_kind(part) for part in self._kinds()]:
            raise ValueError("a layer's cache changes its type or shape")
        return group_size

    def stored(self, start: int, stop: int) -> tuple[mx.array, ...]:
        """Return the tokens from *start* to before *stop* as they are stored: codes also of the newest."""
        if self.group_size is None:
            return tuple(part[..., start:stop, :] for part in self._parts)
        first = min(self._first, stop)
        found = [tuple(part[..., start:first, :] for part in self._parts)] if start < first else []
        if stop > first:
            found.append(self._codes_of(self._wide(max(start, first), stop)))
        return tuple(mx.concatenate(list(parts), axis=2) for parts in zip(*found, strict=True)) if found else ()

    def has_codes(self, stop: int) -> bool:
        """Tell whether some of the tokens before *stop* are codes."""
        return self.group_size is not None and min(self._first, stop) > 0

    def narrow(self, stop: int) -> Narrow:
        """Return the tokens before *stop* as they lie there, where some are codes and the last is not."""
        assert self.group_size is not None
        codes, scales, biases = (part[..., : self._first, :] for part in self._parts)
        return Narrow((codes, scales, biases), self._wide(self._first, stop), self.bits, self.group_size)

    def requantize(self, bits: int, used: int) -> None:
        """Narrow to *bits*, but for the newest, and to the blocks that the first *used* tokens take."""
        if bits >= self.bits:
            return
        self.fit(used)
        if not self.arrays:
            self.bits = bits
            return
        group_size = kv_group_size(self.arrays[-1].shape[-1], bits) if self.group_size is None else self.group_size
        if group_size is None:
            return
        first, newest = self._first, self._newest
        if self.group_size is None:
            first = narrow_tokens(used)
            newest = _newest_like(self._parts[0])
            newest[..., : used - first, :] = self._parts[0][..., first:used, :]
            mx.eval(newest)
        pieces = []
        for start in range(0, self.room_tokens if first else 0, _NARROWED_AT_ONCE):
            rows = self._older(start, start + _NARROWED_AT_ONCE)
            pieces.append(to_codes(rows, bits=bits, group_size=group_size))
            mx.eval(pieces[-1])
        new = [mx.concatenate(list(parts), axis=2) for parts in zip(*pieces, strict=True)]
        mx.eval(new)
        self._parts, self._newest, self._first = new, newest, first
        self.bits, self.group_size = bits, group_size

    def fit(self, used: int) -> None:
        """Keep the blocks that the first *used* tokens take, and free the others."""
        if self.group_size is not None:
            self._first = min(self._first, used)
            if self._first == used:
                self._newest = None
        self.room_tokens = min(self.room_tokens, _whole_blocks(used))
        if not used or (self.group_size is not None and not self._first):
            self._parts = []
        for index, part in enumerate(self._parts):
            if part.shape[2] > self.room_tokens:
                self._parts[index] = mx.contiguous(part[..., : self.room_tokens, :])
                mx.eval(self._parts[index])
        if not self.arrays:
            self.group_size = None

    def fork(self) -> "Rows":
        """Return another tensor that shares these arrays until one of the two is written to."""
        fork = Rows(self.bits)
        # Another handle for each: an assignment to a part of an array changes what its handle stands for.
        fork._parts = [part[...] for part in self._parts]
        fork._newest = None if self._newest is None else self._newest[...]
        fork._first, fork.group_size, fork.room_tokens = self._first, self.group_size, self.room_tokens
        return fork

    def _begin(self, start: int, rows: mx.array) -> None:
        """Make room for *rows* at the token *start*, and forget what is behind it."""
        if not self.arrays:
            self.group_size = kv_group_size(rows.shape[-1], self.bits)
        self.reserve(start + rows.shape[2], start)
        self._first = min(self._first, start)
        if self.group_size is None:
            return
        if self._newest is None:
            self._newest = _newest_like(rows)
        if not self._parts and self.room_tokens > CACHE_BLOCK_TOKENS:
            # What a long prompt will take is there from its first step on.
            self._make_parts(self._codes_of(rows[..., :1, :]))

    def _move_on(self, recent: mx.array) -> None:
        """Let *recent* be the newest tokens; those for which there is no room become codes."""
        if recent.shape[2] > CACHE_BLOCK_TOKENS:
            leaving = narrow_tokens(self._first + recent.shape[2]) - self._first
            self._store(self._first, self._codes_of(recent[..., :leaving, :]))
            self._first, recent = self._first + leaving, recent[..., leaving:, :]
        self._put_newest(self._first, recent)

    def _put_newest(self, start: int, rows: mx.array) -> None:
        assert self._newest is not None
        first = start - self._first
        self._newest[..., first : first + rows.shape[2], :] = rows

    def _store(self, start: int, pieces: Sequence[mx.array]) -> None:
        if not self._parts:
            self._make_parts(pieces)
        for part, piece in zip(self._parts, pieces, strict=True):
            part[..., start : start + piece.shape[2], :] = piece

    def _make_parts(self, like: Sequence[mx.array]) -> None:
        room = self.room_tokens
        self._parts = [mx.zeros((*piece.shape[:2], room, piece.shape[3]), piece.dtype) for piece in like]

    def _codes_of(self, rows: mx.array) -> tuple[mx.array, ...]:
        assert self.group_size is not None
        return to_codes(rows, bits=self.bits, group_size=self.group_size)

    def _wide(self, start: int, stop: int) -> mx.array:
        """Return some of the newest tokens."""
        assert self._newest is not None
        return self._newest[..., start - self._first : stop - self._first, :]

    def _with_newest(self, start: int, rows: mx.array) -> mx.array:
        """Return the newest tokens before *start*, followed by *rows*."""
        return mx.concatenate([self._wide(self._first, start), rows], axis=2) if start > self._first else rows

    def _older(self, start: int, stop: int) -> mx.array:
        """Return tokens of the parts as values."""
        pieces = [part[..., start:stop, :] for part in self._parts]
        return pieces[0] if self.group_size is None else self._dequantized(pieces)

    def _dequantized(self, pieces: Sequence[mx.array]) -> mx.array:
        codes, scales, biases = pieces
        return mx.dequantize(codes, scales, biases, group_size=self.group_size, bits=self.bits)

    def _kinds(self) -> Sequence[mx.array]:
        """Return arrays of the types and shapes in which further tokens are stored."""
        if self._newest is None or self._parts:
            return self._parts
        return self._codes_of(self._newest)


def _newest_like(rows: mx.array) -> mx.array:
    return mx.zeros((*rows.shape[:2], CACHE_BLOCK_TOKENS, rows.shape[3]), rows.dtype)


def _whole_blocks(tokens: int) -> int:
    """Return the tokens of the blocks that *tokens* take."""
    return -(-tokens // CACHE_BLOCK_TOKENS) * CACHE_BLOCK_TOKENS


def _kind(array: mx.array) -> tuple[Any, ...]:
    """Return what two arrays share that may follow each other."""
    return (array.dtype, *array.shape[:2], array.shape[3])
