"""MLX's affine quantisation on a CPU, in numpy: the bits of ``mx.quantize``, several widths from one pass.

``mx.quantize`` takes one value at a time on a CPU. Here a group is a column, so that every step is one operation over
thousands of groups, and widths with groups of one size share the groups' least and largest values. The formulas,
and their order, are those of MLX's CPU kernel (``mlx/backend/cpu/quantized.cpp``, ``quantize``). On a GPU
``mx.quantize`` itself is the measure, and is quicker than the disk.
"""

from collections.abc import Sequence
from functools import cache
from math import lcm
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.plan.memory import Quantization

# Groups that are worked on at once take about this many values: numpy's calls cost little then, and memory too.
VALUES_AT_ONCE = 2**19
_BITS = frozenset({2, 3, 4, 5, 6, 8})
# So many float32 go through one operation after another. A quarter of them would stay in a core's own cache, but then
# threads take the interpreter's lock from each other four times as often, which costs more (docs/lab.md).
_VALUES_A_STEP = 2**18
# The smallest step between two values that MLX allows.
_LEAST_STEP = np.float32(1e-7)
_WORD_BITS, _OCTET_BITS = 32, 8
# Octets that are worked on as one number.
_OCTETS = 8
_NONE = np.empty(0, np.intp)
# Rows of the transpose made at once: they stay in a core's own cache.
_ROWS_AT_ONCE = 256


class Groups(NamedTuple):
    """Groups as a file holds them.

    Attributes:
        codes: uint32 ``[groups, group_size * bits / 32]``: the codes as one stream of bits, the first ones lowest.
        scales: ``[groups]``, of the values' type (bfloat16 as uint16).
        biases: as *scales*.
    """

    codes: Array
    scales: Array
    biases: Array

    @classmethod
    def empty(cls, count: int, width: Quantization, dtype: "np.dtype[Any]") -> "Groups":
        """Return room for *count* groups."""
        words = np.empty((count, width.group_size * width.bits // _WORD_BITS), np.uint32)
        return cls(words, np.empty(count, dtype), np.empty(count, dtype))

    def part(self, start: int, stop: int) -> "Groups":
        """Return groups *start* to *stop*, in the same memory."""
        return Groups(*(array[start:stop] for array in self))


@cache
def is_exact(width: Quantization, dtype: mx.Dtype) -> bool:
    """Tell whether this MLX quantises as :func:`quantize_groups` does: asked once, on values that try its edges."""
    if width.mode != "affine" or width.bits not in _BITS:
        return False
    edges = [0, -0.0, 1e-7, 5e-8, -3e-8, 1, -1, 1.5, 2, 1e-3, 1 + 2**-7, -255, 1e4, -6e4, 3, 7.5, -0.5, 63, 2.5, 1e-5]
    count = width.group_size
    ladder = np.linspace(-1, 1, count)
    rows = [ladder * scale for scale in (1, 1e-3, 3e-6, 1e-7, 5e4)]
    rows += [ladder + shift for shift in (0.999, 5, -40, 1000)] + [np.full(count, value) for value in edges]
    rows += [np.resize(edges[start:], count) for start in range(len(edges) - 1)] + [np.rint(ladder * 8) / 2]
    values = mx.array(np.array(rows, np.float32)).astype(dtype)
    theirs = mx.quantize(values, group_size=count, bits=width.bits, stream=mx.cpu)
    groups = as_numpy(values)
    ours = Groups.empty(len(groups), width, groups.dtype)
    quantize_groups(groups, [width], [ours])
    return all(
        np.array_equal(one.view(np.uint8).reshape(-1), as_numpy(two).reshape(-1).view(np.uint8))
        for one, two in zip(ours, theirs, strict=True)
    )


def quantize_groups(groups: Array, widths: Sequence[Quantization], into: Sequence[Groups]) -> None:
    """Quantise groups of values to each of *widths*, all of one group size.

    Args:
        groups: ``[groups, group_size]``, finite, of float32, float16, or bfloat16 as uint16.
        widths: what to quantise to.
        into: one for each width, for as many groups.
    """
    with np.errstate(all="ignore"):
        values = _columns(groups)
        least, most = values.min(axis=0), values.max(axis=0)
        edge = np.where(np.abs(least) > np.abs(most), least, most)
        span, sign = most - least, np.where(edge == most, np.float32(-1), np.float32(1))
        grids = [_grid(span, edge, sign, np.float32(2**width.bits - 1)) for width in widths]
        # The values of groups whose zero is not their end are kept: they are few, and not the same at all widths.
        odd = [_NONE if bias is edge else np.flatnonzero(bias != edge) for _, bias in grids]
        kept = [values[:, columns] for columns in odd]
        np.subtract(values, edge, out=values)
        shared = _narrowed(edge, groups.dtype)
        for width, (scale, bias), columns, plain, made in zip(widths, grids, odd, kept, into, strict=True):
            octets = _octets(values, (scale, bias), columns, plain, width.bits)
            for place, words in enumerate(_packed(octets, width.bits, len(groups))):
                made.codes[:, place] = words
            made.scales[:] = _narrowed(scale, groups.dtype)
            made.biases[:] = shared if bias is edge else _narrowed(bias, groups.dtype)


def _octets(above: Array, grid: tuple[Array, Array], odd: Array, plain: Array, bits: int) -> Array:
    """Return the codes as uint8 ``[group_size, groups]``, some groups that mean nothing added.

    Args:
        above: the values less the end that is on a step, ``[group_size, groups]``.
        grid: steps and zeros.
        odd: numbers of the groups whose zero is not that end.
        plain: their values as they are.
        bits: of a code.
    """
    (scale, bias), (size, count) = grid, above.shape
    octets = np.empty((size, -(-count // _OCTETS) * _OCTETS), np.uint8)
    rows = max(_VALUES_A_STEP // count, 1)
    buffer = np.empty((rows, count), np.float32)
    # Steps are rounded so that zero is one of them, and a code may be one too large by it: it is lowered once it is an
    # octet, where it fits into one. numpy compares with an array much faster than with a number.
    fits = bits < _OCTET_BITS
    largest = np.full((rows, count), 2**bits - 1, np.uint8 if fits else np.float32)
    for start in range(0, size, rows):
        steps, codes = buffer[: size - start], octets[start : start + rows, :count]
        np.divide(above[start : start + rows], scale, out=steps)
        if odd.size:
            steps[:, odd] = (plain[start : start + rows] - bias[odd]) / scale[odd]
        np.rint(steps, out=steps)
        if not fits:
            np.minimum(steps, largest[: len(steps)], out=steps)
        np.copyto(codes, steps, casting="unsafe")
        if fits:
            np.minimum(codes, largest[: len(codes)], out=codes)
    return octets


def _grid(span: Array, edge: Array, sign: Array, largest: np.float32) -> tuple[Array, Array]:
    """Return the step and the zero of each group: one end of its values, and zero, fall on steps.

    The zero is *edge* itself where no group is without steps to it.

    Args:
        span: from the least to the most value.
        edge: the end that is farther from zero.
        sign: of a step from there to the other end.
        largest: code.
    """
    step = np.maximum(span / largest, _LEAST_STEP)
    step *= sign
    count = np.rint(edge / step)
    reached = count != 0
    if reached.all():
        return np.divide(edge, count, out=step), edge
    np.divide(edge, count, out=step, where=reached)
    return step, np.where(reached, edge, np.float32(0))


def _columns(groups: Array) -> Array:
    """Return ``[group_size, groups]`` as float32."""
    if groups.dtype == np.uint16:
        # bfloat16 is the upper half of a float32. Turned two at a time, the first one is the lower half of both.
        both = _turned(groups.view(np.uint32))
        halves = np.empty((2 * len(both), both.shape[1]), np.uint32)
        np.left_shift(both, 16, out=halves[0::2])
        np.bitwise_and(both, 0xFFFF0000, out=halves[1::2])
        return halves.view(np.float32)
    return _turned(groups).astype(np.float32, copy=False)


def _turned(rows: Array) -> Array:
    columns = np.empty(rows.shape[::-1], rows.dtype)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        columns[:, start : start + _ROWS_AT_ONCE] = rows[start : start + _ROWS_AT_ONCE].T
    return columns


def _packed(octets: Array, bits: int, count: int) -> Array:
    """Return ``[words, count]`` uint32 of the codes of the first *count* groups, as :func:`_octets` gives them."""
    per_octet = _OCTET_BITS // bits
    together = octets.view(np.uint64)
    joined = together[per_octet - 1 :: per_octet]
    for place in reversed(range(per_octet - 1)):
        joined = joined << np.uint64(bits)
        joined |= together[place::per_octet]
    pieces: Array = joined.view(np.uint8)[:, :count]
    piece_bits = per_octet * bits
    for wider in (np.uint16, np.uint32):
        upper: Array = pieces[1::2].astype(wider)
        upper <<= wider(piece_bits)
        upper |= pieces[0::2]
        pieces, piece_bits = upper, 2 * piece_bits
    return pieces if piece_bits == _WORD_BITS else _words(pieces, piece_bits)


def _words(pieces: Array, bits: int) -> Array:
    """Return the stream of *pieces* ``[count, groups]``, of *bits* each, cut into words of 32 bits."""
    stream_bits = lcm(bits, _WORD_BITS)
    cycle, per_cycle = stream_bits // bits, stream_bits // _WORD_BITS
    words = np.zeros((len(pieces) * bits // _WORD_BITS, pieces.shape[1]), np.uint32)
    for word in range(per_cycle):
        for piece in range(cycle):
            shift = bits * piece - _WORD_BITS * word
            if -bits < shift < _WORD_BITS:
                moved = np.left_shift if shift >= 0 else np.right_shift
                words[word::per_cycle] |= moved(pieces[piece::cycle], np.uint32(abs(shift)))
    return words


def _narrowed(values: Array, dtype: "np.dtype[Any]") -> Array:
    """Return float32 *values* in the type of a file; bfloat16 (as uint16) rounded to nearest, ties to even."""
    if dtype != np.uint16:
        return values.astype(dtype)
    bits = values.view(np.uint32)
    rounded: Array = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    rounded >>= 16
    return rounded
