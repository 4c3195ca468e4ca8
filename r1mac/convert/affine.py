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
# So many float32 stay in a core's own cache from one operation to the next.
_VALUES_IN_CACHE = 2**16
# The smallest step between two values that MLX allows.
_LEAST_STEP = np.float32(1e-7)
_WORD_BITS, _OCTET_BITS = 32, 8
# Octets that are worked on as one number, and the lowest bit of each.
_OCTETS = 8
_LOWEST_OF_EACH = np.uint64(0x0101010101010101)
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
        grids = [_grid(least, most, edge, np.float32(2**width.bits - 1)) for width in widths]
        # The values of groups whose zero is not their end are kept: they are few, and not the same at all widths.
        odd = [np.flatnonzero(bias != edge) for _, bias in grids]
        kept = [values[:, columns] for columns in odd]
        np.subtract(values, edge, out=values)
        for width, grid, columns, plain, made in zip(widths, grids, odd, kept, into, strict=True):
            octets = _octets(values, grid, columns, plain, width.bits)
            made.codes[:] = _packed(octets, width.bits, len(groups)).T
            for array, part in zip(made[1:], grid, strict=True):
                array[:] = _narrowed(part, array.dtype)


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
    rows = max(_VALUES_IN_CACHE // count, 1)
    buffer = np.empty((rows, count), np.float32)
    for start in range(0, size, rows):
        part = above[start : start + rows]
        steps = buffer[: len(part)]
        np.divide(part, scale, out=steps)
        if odd.size:
            steps[:, odd] = (plain[start : start + rows] - bias[odd]) / scale[odd]
        np.rint(steps, out=steps)
        if bits == _OCTET_BITS:
            np.minimum(steps, np.float32(2**bits - 1), out=steps)
        np.copyto(octets[start : start + rows, :count], steps, casting="unsafe")
    if bits < _OCTET_BITS:
        # Steps are rounded so that zero is one of them, and a code may be one too large by it.
        together = octets.view(np.uint64)
        together -= (together >> np.uint64(bits)) & _LOWEST_OF_EACH
    return octets


def _grid(least: Array, most: Array, edge: Array, largest: np.float32) -> tuple[Array, Array]:
    """Return the step and the zero of each group: one end of its values, and zero, fall on steps."""
    step = np.maximum((most - least) / largest, _LEAST_STEP)
    step = np.where(edge == most, -step, step)
    count = np.rint(edge / step)
    reached = count != 0
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
    joined = together[0::per_octet]
    for place in range(1, per_octet):
        joined = joined | (together[place::per_octet] << np.uint64(place * bits))
    filled = joined.view(np.uint8)[:, :count]
    words = filled[3::4].astype(np.uint32)
    for place in (2, 1, 0):
        words <<= np.uint32(per_octet * bits)
        words |= filled[place::4]
    return words if per_octet * bits == _OCTET_BITS else _words(words, 4 * per_octet * bits)


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
    return (bits + ((bits >> 16) & 1) + 0x7FFF) >> 16
