"""Rows of a matrix of codes as numpy has them: float32 codes, and a scale (and a bias) for each group of a row.

Where few tokens are multiplied, the weights themselves are never made: a group's codes are, and what comes out is
scaled, ``sum over groups of scale x (codes @ x) + bias x sum of x``, as the kernels of quantised matrices do it.
Codes are taken apart many at a time, which takes a fraction of the time of ``mx.dequantize`` on a CPU.
"""

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from r1mac.convert.blocks import Array

_TOKENS_AT_ONCE = 4
_LOWER_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
# Where two halves of some bits are taken apart: how many first halves come before the second ones, of how many codes.
_APART = {3: (4, 4), 4: (8, 1), 6: (4, 2)}


class GroupedRows(NamedTuple):
    """Some rows of a matrix.

    Attributes:
        codes: float32 ``[rows, groups, size]``; it is overwritten.
        scales: float32 ``[rows, groups]``.
        biases: as *scales*, or None for zeros.
        order: which column of its group each code is of; None where they follow one another.
    """

    codes: Array
    scales: Array
    biases: Array | None
    order: Array | None = None

    def values(self) -> Array:
        """Return ``[rows, columns]``."""
        values = self._scaled()
        if self.biases is not None:
            values += self.biases[..., None]
        if self.order is not None:
            values = np.take(values, np.argsort(self.order), axis=-1)
        return values.reshape(len(values), -1)

    def times(self, tokens: "Tokens") -> Array:
        """Return the product of *tokens* with the rows, ``[tokens, rows]``."""
        rows, _, size = self.codes.shape
        count = len(tokens.rows)
        grouped, sums = tokens.by_groups(size, self.order)
        if _is_few(count, size):
            parts = np.matmul(grouped, self.codes.transpose(1, 2, 0))
            made: Array = np.einsum("gtr,gr->tr", parts[:, :count], np.ascontiguousarray(self.scales.T))
        else:
            made = grouped.reshape(count, -1) @ self._scaled().reshape(rows, -1).T
        if self.biases is not None:
            made += sums @ self.biases.T
        return made

    def _scaled(self) -> Array:
        np.multiply(self.codes, self.scales[..., None], out=self.codes)
        return self.codes


class Tokens:
    """What some matrices are multiplied with, put into their groups once for all that are alike.

    Args:
        rows: float32 ``[tokens, columns]``.
    """

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self._grouped: dict[tuple[int, int], tuple[Array | None, Array, Array]] = {}

    def by_groups(self, size: int, order: Array | None) -> tuple[Array, Array]:
        """Return the tokens in groups of *size*, each in an *order* as ``GroupedRows`` has it, and each group's sum.

        Sums are ``[tokens, groups]``. Few tokens are ``[groups, tokens, size]``, and so many are added to them that
        OpenBLAS multiplies them four at a time: three alone take it longer than four. More are
        ``[tokens, groups, size]``.
        """
        key = (size, id(order))
        if key not in self._grouped:
            self._grouped[key] = (order, *self._in_groups(size, order))  # kept, so that its id is no other's
        return self._grouped[key][1:]

    def _in_groups(self, size: int, order: Array | None) -> tuple[Array, Array]:
        count = len(self.rows)
        grouped = self.rows.reshape(count, -1, size)
        if order is not None:
            grouped = grouped.take(order, axis=-1)
        sums = grouped.sum(axis=-1)
        if not _is_few(count, size):
            return grouped, sums
        if count > 1 and (missing := -count % _TOKENS_AT_ONCE):
            grouped = np.concatenate([grouped, np.zeros((missing, *grouped.shape[1:]), grouped.dtype)])
        return grouped.swapaxes(0, 1), sums


def _is_few(tokens: int, size: int) -> bool:
    """Tell whether it is less work to scale what comes out than codes in groups of *size*."""
    return 2 * tokens <= size


def decoded_fp8(codes: Array) -> Array:
    """Return the float32 values of float8_e4m3fn *codes*, uint8 of any shape, without their scales."""
    if codes.size % 2:
        return np.take(_fp8_values(), codes)
    pairs: Array = _fp8_pairs().take(codes.reshape(-1).view(np.uint16))
    return pairs.view(np.float32).reshape(codes.shape)


def unpacked(words: Array, bits: int) -> Array:
    """Return the codes in *words* (uint32 ``[..., words]``) as float32 ``[..., columns]``, in :func:`code_order`.

    Codes are a stream of bits, the lowest first.
    """
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(-1)
    match bits:
        case 8:
            return octets.astype(np.float32).reshape(*words.shape[:-1], -1)
        case 4:
            return _nibbles(octets.view(np.uint64)).astype(np.float32).reshape(*words.shape[:-1], -1)
        case 2:
            keys, width = octets, 8
        case 3 | 6:
            keys, width = _keys_of_12_bits(octets), 12
        case _:
            keys, width = _keys_of_10_bits(octets), 10
    found: Array = _codes_of(bits, width).take(keys)
    return found.view(np.float32).reshape(*words.shape[:-1], -1)


@cache
def code_order(bits: int, size: int) -> Array | None:
    """Return which column of its group, of *size*, each code of *bits* is that :func:`unpacked` gives.

    None where they follow one another.
    """
    if bits not in _APART:
        return None
    lanes, together = _APART[bits]
    order: Array = np.arange(size).reshape(-1, lanes, 2, together).swapaxes(1, 2).reshape(-1)
    return order


def _nibbles(lanes: Array) -> Array:
    """Return the 4-bit codes in *lanes* of eight octets: the lower ones of each lane, then the upper ones."""
    apart = np.empty((lanes.size, 2), np.uint64)
    np.bitwise_and(lanes, _LOWER_NIBBLES, out=apart[:, 0])
    np.bitwise_and(lanes >> np.uint64(4), _LOWER_NIBBLES, out=apart[:, 1])
    return apart.view(np.uint8)


def _keys_of_12_bits(octets: Array) -> Array:
    """Return the numbers that every three *octets* hold two of; of twelve octets the four lower ones come first."""
    count = octets.size // 3
    padded = np.empty(octets.size + 1, np.uint8)
    padded[:-1] = octets
    # Two octets from the first one of three on, and from the second one on.
    lower, upper = (np.ndarray((count,), np.uint16, padded, at, (3,)) for at in (0, 1))
    keys = np.empty((count // 4, 2), np.uint64)
    keys[:, 0] = np.bitwise_and(lower, 2**12 - 1).view(np.uint64)
    keys[:, 1] = np.right_shift(upper, 4).view(np.uint64)
    return keys.reshape(-1).view(np.uint16)


def _keys_of_10_bits(octets: Array) -> Array:
    """Return the numbers that every five *octets* hold four of."""
    fifths = octets.reshape(-1, 5).astype(np.uint64)
    whole = sum((fifths[:, index] << np.uint64(8 * index) for index in range(5)), np.zeros((), np.uint64))
    tens = [(whole >> np.uint64(10 * index)) & np.uint64(2**10 - 1) for index in range(4)]
    return np.stack(tens, axis=-1).astype(np.uint16).reshape(-1)


@cache
def _codes_of(bits: int, width: int) -> Array:
    """Return the codes in every number of *width* bits, as one value of the size that they have together."""
    numbers = np.arange(2**width, dtype=np.uint32)
    codes = [(numbers >> shift) & (2**bits - 1) for shift in range(0, width, bits)]
    table: Array = np.stack(codes, axis=-1).astype(np.float32)
    # numpy fetches one complex number much faster than two or four others.
    together: Any = np.complex64 if len(codes) == 2 else np.complex128  # noqa: PLR2004
    whole: Array = table.view(together).reshape(-1)
    return whole


@cache
def _fp8_pairs() -> Array:
    """Return the values of each of the 65,536 pairs of codes, as one complex number."""
    both: Array = np.take(_fp8_values(), np.arange(2**16, dtype=np.uint16).view(np.uint8)).view(np.complex64)
    return both


@cache
def _fp8_values() -> Array:
    """Return the value of each of the 256 codes of float8_e4m3fn."""
    codes = np.arange(256)
    exponents, fractions = (codes >> 3) & 15, codes & 7
    values = np.where(exponents == 0, fractions * 2.0**-9, (1 + fractions / 8) * 2.0 ** (exponents - 7.0))
    values[(codes & 127) == 127] = np.nan  # noqa: PLR2004
    signed: Array = np.where(codes < 128, values, -values).astype(np.float32)  # noqa: PLR2004
    return signed
