"""The rows of any source as float32, to compute with: a block at a time, every expert by itself.

Codes are multiplied with their scales as kernels do it: in float32, with no rounding to 16 bits in between.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.fp8 import FP8Tensor, powers_of_two
from r1mac.convert.grouped_rows import GroupedRows, Tokens, code_order, decoded_fp8, unpacked
from r1mac.convert.mlx_quantized import MLXQuantizedTensor
from r1mac.convert.names import expert_name
from r1mac.convert.safetensors_source import SafetensorsSource
from r1mac.convert.sources import Source
from r1mac.convert.stored import RawTensor, StoredTensor

_STACKED_AXES = 3


class _Expert(NamedTuple):
    """One matrix of a stack."""

    stack: str
    number: int


class FloatRows:
    """A source whose rows come as float32, and whose stacks of experts are matrices of their own.

    Args:
        source: any source.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.default_dtype: str | None = None
        self.is_quantized = False
        self.quantized_bits: float | None = None
        self.config: dict[str, Any] = source.config
        self.description = source.description
        self._experts: dict[str, _Expert] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in source.shapes().items():
            if len(shape) != _STACKED_AXES or expert_name(name, 0) is None:
                self._shapes[name] = shape
                continue
            for number in range(shape[0]):
                expert = str(expert_name(name, number))
                self._experts[expert], self._shapes[expert] = _Expert(name, number), shape[1:]
        self._flat: dict[str, StoredTensor | None] = {}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every tensor by name."""
        return self._shapes

    def size_bytes(self, name: str) -> int:
        """Return the bytes that a tensor takes as float32."""
        return 4 * prod(self._shapes[name])

    def row_step(self, name: str) -> int:
        """Return the number of rows whose multiples ``rows`` may be asked for."""
        if (expert := self._experts.get(name)) is None:
            return self._source.row_step(name)
        return self._shapes[name][0] if self._flattened(expert.stack) is None else 1

    def files(self, name: str) -> tuple[str, ...]:
        """Return the names of the files that ``rows`` reads for a tensor."""
        expert = self._experts.get(name)
        return self._source.files(expert.stack if expert else name)

    def value_type(self, name: str) -> str:  # noqa: ARG002 - all are alike
        """Return the MLX type that ``rows`` gives for a tensor."""
        return "float32"

    def rows(self, name: str, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* of a tensor, float32."""
        stored, before = self._stored(name)
        if stored is not None:
            return (
                mx.array(self.values(name, start, stop)) if on_cpu() else _in_mlx(stored, before + start, before + stop)
            )
        if (expert := self._experts.get(name)) is not None:
            whole = self._source.rows(expert.stack, expert.number, expert.number + 1)
            return whole[0][start:stop].astype(mx.float32)
        return self._source.rows(name, start, stop).astype(mx.float32)

    def values(self, name: str, start: int, stop: int) -> Array:
        """Return what ``rows`` does, as numpy has it."""
        stored, before = self._stored(name)
        if stored is None:
            return as_numpy(self.rows(name, start, stop))
        return _values(_in_numpy(stored, before + start, before + stop)).reshape(stop - start, *self._shapes[name][1:])

    def times(self, name: str, x: Tokens, start: int, stop: int) -> Array:
        """Return the product of *x* with rows *start* to *stop* of a matrix, ``[tokens, rows]``.

        Of a stack *start* and *stop* count its matrices, and the result has all their rows.

        numpy multiplies.
        """
        stored, before = self._stored(name)
        if stored is None:
            return x.rows @ _as_rows(as_numpy(self.rows(name, start, stop))).T
        rows = _in_numpy(stored, before + start, before + stop)
        return rows.times(x) if isinstance(rows, GroupedRows) else x.rows @ _as_rows(rows).T

    def read_together(self, name: str, room_bytes: int) -> int:
        """Return how many matrices like *name*, one after the other in a stack, *room_bytes* hold the codes of.

        It is one where they do not hold a single one as float32.
        """
        if (expert := self._experts.get(name)) is None or self.size_bytes(name) > room_bytes:
            return 1
        stack = self._flattened(expert.stack)
        if not isinstance(stack, MLXQuantizedTensor):
            return 1
        return max(room_bytes * stack.shape[0] // (stack.size_bytes * self._shapes[name][0]), 1)

    def times_each(self, names: Sequence[str], xs: Sequence[Tokens]) -> list[Array]:
        """Return the product of each of *xs* with its matrix of a stack; *names* follow one another there."""
        stack, first = self._stored(names[0])
        count = self._shapes[names[0]][0]
        assert isinstance(stack, MLXQuantizedTensor)
        assert self._stored(names[-1]) == (stack, first + count * (len(names) - 1))
        codes, scales, biases = _parts(stack, first, first + count * len(names))
        made = []
        for number, x in enumerate(xs):
            rows = slice(number * count, (number + 1) * count)
            made.append(_grouped(stack, codes[rows], scales[rows], biases[rows]).times(x))
        return made

    def needs_mlx(self, name: str) -> bool:
        """Tell whether MLX takes part in ``times``, so that it is for the thread that opened the source."""
        return self._stored(name)[0] is None

    def write_companions(self, into: Path) -> None:
        """Copy what goes with the weights into a folder."""
        self._source.write_companions(into)

    def _stored(self, name: str) -> tuple[StoredTensor | None, int]:
        """Return how a tensor is stored, where that is known here, and the rows of its stack before it."""
        if (expert := self._experts.get(name)) is not None:
            return self._flattened(expert.stack), expert.number * self._shapes[name][0]
        stored = self._source.stored(name) if isinstance(self._source, SafetensorsSource) else None
        return (stored if _is_known(stored) else None), 0

    def _flattened(self, stack: str) -> StoredTensor | None:
        """Return a stack of matrices as one matrix of all their rows, where its bytes allow it."""
        if stack not in self._flat:
            stored = self._source.stored(stack) if isinstance(self._source, SafetensorsSource) else None
            self._flat[stack] = _flat(stored) if _is_known(stored) else None
        return self._flat[stack]


def _is_known(stored: StoredTensor | None) -> bool:
    match stored:
        case RawTensor() | FP8Tensor():
            return True
        case MLXQuantizedTensor():
            return stored.biases is not None
    return False


def _flat(stored: StoredTensor | None) -> StoredTensor | None:
    match stored:
        case RawTensor(path=path, entry=entry):
            return RawTensor(path, replace(entry, shape=(prod(entry.shape[:-1]), entry.shape[-1])))
        case MLXQuantizedTensor():
            codes, scales, biases = map(_flat, (stored.codes, stored.scales, stored.biases))
            assert isinstance(codes, RawTensor)
            assert isinstance(scales, RawTensor)
            assert biases is None or isinstance(biases, RawTensor)
            return replace(stored, codes=codes, scales=scales, biases=biases)
    return None


def _in_mlx(stored: StoredTensor, start: int, stop: int) -> mx.array:
    match stored:
        case MLXQuantizedTensor(biases=biases) if biases is not None:
            codes = stored.codes.rows(start, stop)
            scales, lowest = (part.rows(start, stop).astype(mx.float32) for part in (stored.scales, biases))
            return mx.dequantize(codes, scales, lowest, group_size=stored.group_size, bits=stored.bits)
        case FP8Tensor():
            values = mx.from_fp8(stored.codes.rows(start, stop), dtype=mx.float32)
            return values * mx.array(_fp8_scales(stored, start, stop))
    return stored.rows(start, stop).astype(mx.float32)


def _in_numpy(stored: StoredTensor, start: int, stop: int) -> Array | GroupedRows:
    match stored:
        case MLXQuantizedTensor():
            return _grouped(stored, *_parts(stored, start, stop))
        case FP8Tensor():
            values = decoded_fp8(np.ascontiguousarray(stored.codes.numpy_rows(start, stop)))
            if stored.shape[1] % stored.block[1] == 0:
                scales = _fp8_row_scales(stored, start, stop)
                return GroupedRows(values.reshape(*scales.shape, stored.block[1]), scales, None)
            values *= _fp8_scales(stored, start, stop)
            return values
    assert isinstance(stored, RawTensor)
    return _widened(stored, start, stop)


def _parts(stored: MLXQuantizedTensor, start: int, stop: int) -> tuple[Array, Array, Array]:
    """Return some rows' words, scales and biases; only affine ones are asked for here."""
    assert stored.biases is not None
    words = stored.codes.numpy_rows(start, stop)
    return words, _widened(stored.scales, start, stop), _widened(stored.biases, start, stop)


def _grouped(stored: MLXQuantizedTensor, words: Array, scales: Array, biases: Array) -> GroupedRows:
    codes = unpacked(words, stored.bits).reshape(-1, scales.shape[-1], stored.group_size)
    order = code_order(stored.bits, stored.group_size)
    return GroupedRows(codes, _as_rows(scales), _as_rows(biases), order)


def _as_rows(values: Array) -> Array:
    """Return matrices of a stack as one of all their rows."""
    return values.reshape(-1, values.shape[-1])


def _values(rows: Array | GroupedRows) -> Array:
    return rows.values() if isinstance(rows, GroupedRows) else rows


def _widened(tensor: RawTensor, start: int, stop: int) -> Array:
    values = tensor.numpy_rows(start, stop)
    if tensor.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _fp8_row_scales(stored: FP8Tensor, start: int, stop: int) -> Array:
    """Return the scale of each block of columns for rows *start* to *stop*, ``[rows, blocks]``."""
    first, last = start // stored.block[0], -(-stop // stored.block[0])
    scales = stored.scales.numpy_rows(first, last)
    scales = scales if stored.scales.dtype == "F32" else powers_of_two(scales)
    rows: Array = scales.repeat(stored.block[0], axis=0)[start - first * stored.block[0] :][: stop - start]
    return rows


def _fp8_scales(stored: FP8Tensor, start: int, stop: int) -> Array:
    """Return the scale of each value of rows *start* to *stop*."""
    spread: Array = _fp8_row_scales(stored, start, stop).repeat(stored.block[1], axis=1)[:, : stored.shape[1]]
    return spread
