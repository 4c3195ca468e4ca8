"""MLX's affine quantisation on a CPU, in numpy: the bits of ``mx.quantize``, several widths from one pass.

``mx.quantize`` takes one value at a time on a CPU. Here a group is a column, so that every step is one operation over
thousands of groups, and widths with groups of one size share the groups' least and largest values. The formulas,
and their order, are those of MLX's CPU kernel (``mlx/backend/cpu/quantized.cpp``, ``quantize``). On a GPU
``mx.quantize`` itself is the measure, and is quicker than the disk.
"""

from collections.abc import Sequence
from functools import cache, reduce
from math import lcm
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.plan.memory import Quantization

# Groups that are worked on at once take about this many values: numpy's calls cost little then, and memory too. Fewer
# would stay in a core's own cache, but threads would take the interpreter's lock from each other more often, which
# costs more (docs/lab.md).
VALUES_AT_ONCE = 2**19
# The smallest step between two values that MLX allows.
_LEAST_STEP = np.float32(1e-7)
_WORD_BITS = 32
# A few codes of a group are put together by one product with these, by bits: their sum has 24 bits at the most, and
# float32 holds it exactly. It takes fewer calls than moving octets, and a third less time.
_PLACES = {
    bits: np.exp2(bits * np.arange(count, dtype=np.float32))
    for bits, count in ((2, 8), (3, 8), (4, 4), (5, 4), (6, 4), (8, 2))
}
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
    if width.mode != "affine" or width.bits not in _PLACES:
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
        # One for each group: numpy compares with an array much faster than with a number.
        largest = np.array([[2**width.bits - 1] for width in widths], np.float32).repeat(len(groups), axis=1)
        scales, biases = _grids(span, edge, sign, largest)
        # Groups whose zero is not their end are few, and not the same at all widths.
        odd = biases != edge
        apart = [_apart(values, *one) for one in zip(scales, biases, odd, strict=True)] if odd.any() else []
        np.subtract(values, edge, out=values)
        narrow_scales, narrow_biases = _narrowed(scales, groups.dtype), _narrowed(biases, groups.dtype)
        spare = np.empty_like(values)
        for index, (width, made) in enumerate(zip(widths, into, strict=True)):
            made.scales[:], made.biases[:] = narrow_scales[index], narrow_biases[index]
            is_last = index == len(widths) - 1
            steps = np.divide(values, scales[index], out=values if is_last else spare)
            if apart:
                columns, plain = apart[index]
                steps[:, columns] = plain
            np.rint(steps, out=steps)
            # Steps are rounded so that zero is one of them, and a code may be one too large by it.
            np.minimum(steps, largest[index], out=steps)
            _pack(steps, width.bits, made.codes.T)


def _grids(span: Array, edge: Array, sign: Array, largest: Array) -> tuple[Array, Array]:
    """Return the step and the zero of each group at each width: one end of its values, and zero, fall on steps.

    The zero is *edge* where a group has steps to it.

    Args:
        span: from the least to the most value.
        edge: the end that is farther from zero.
        sign: of a step from there to the other end.
        largest: code of each width, ``[widths, groups]``.
    """
    step = np.maximum(span / largest, _LEAST_STEP)
    step *= sign
    count = np.rint(edge / step)
    reached = count != 0
    if reached.all():
        return np.divide(edge, count, out=step), np.broadcast_to(edge, step.shape)
    np.divide(edge, count, out=step, where=reached)
    return step, np.where(reached, edge, np.float32(0))


def _apart(values: Array, scale: Array, bias: Array, odd: Array) -> tuple[Array, Array]:
    """Return the numbers of the *odd* groups, and how many steps their values are above their zeros."""
    columns = np.flatnonzero(odd)
    return columns, (values[:, columns] - bias[columns]) / scale[columns]


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


def _pack(codes: Array, bits: int, words: Array) -> None:
    """Put *codes* ``[group_size, groups]``, whole numbers of so many bits, one after another into *words* of 32 bits.

    Args:
        codes: float32.
        bits: of a code.
        words: ``[words, groups]``, the first codes lowest.
    """
    places, count = _PLACES[bits], codes.shape[1]
    pieces = np.matmul(places, codes.reshape(-1, len(places), count)).astype(np.int32).view(np.uint32)
    piece_bits = len(places) * bits
    stream_bits = lcm(piece_bits, _WORD_BITS)
    cycle, per_cycle = stream_bits // piece_bits, stream_bits // _WORD_BITS
    for word in range(per_cycle):
        ups = ((piece, piece_bits * piece - _WORD_BITS * word) for piece in range(cycle))
        first, *others = [_moved(pieces[piece::cycle], up) for piece, up in ups if -piece_bits < up < _WORD_BITS]
        np.bitwise_or(first, reduce(np.bitwise_or, others), out=words[word::per_cycle])


def _moved(numbers: Array, up: int) -> Array:
    """Return *numbers* with their bits moved up, or down."""
    if not up:
        return numbers
    return numbers << np.uint32(up) if up > 0 else numbers >> np.uint32(-up)


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
