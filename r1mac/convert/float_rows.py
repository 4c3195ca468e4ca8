"""The rows of any source as float32, to compute with: a block at a time, every expert by itself.

Codes are multiplied with their scales as kernels do it: in float32, with no rounding to 16 bits in between.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from r1mac.convert.blocks import Array, as_numpy
from r1mac.convert.device import on_cpu
from r1mac.convert.fp8 import FP8Tensor, powers_of_two
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
                mx.array(_in_numpy(stored, before + start, before + stop))
                if on_cpu()
                else _in_mlx(stored, before + start, before + stop)
            )
        if (expert := self._experts.get(name)) is not None:
            whole = self._source.rows(expert.stack, expert.number, expert.number + 1)
            return whole[0][start:stop].astype(mx.float32)
        return self._source.rows(name, start, stop).astype(mx.float32)

    def numpy_rows(self, name: str, start: int, stop: int) -> Array:
        """Return what ``rows`` does as numpy has it."""
        stored, before = self._stored(name)
        if stored is None:
            return as_numpy(self.rows(name, start, stop))
        return _in_numpy(stored, before + start, before + stop)

    def needs_mlx(self, name: str) -> bool:
        """Tell whether MLX takes part in ``numpy_rows``, so that it is for the thread that opened the source."""
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


def _in_numpy(stored: StoredTensor, start: int, stop: int) -> Array:
    match stored:
        case MLXQuantizedTensor(biases=biases) if biases is not None:
            values = unpacked(stored.codes.numpy_rows(start, stop), stored.bits)
            scales, lowest = (_widened(part, start, stop) for part in (stored.scales, biases))
            groups = values.reshape(*scales.shape, stored.group_size)
            groups *= scales[..., None]
            groups += lowest[..., None]
            return values
        case FP8Tensor():
            values = _fp8_decoded(np.ascontiguousarray(stored.codes.numpy_rows(start, stop)))
            values *= _fp8_scales(stored, start, stop)
            return values
    assert isinstance(stored, RawTensor)
    return _widened(stored, start, stop)


def _widened(tensor: RawTensor, start: int, stop: int) -> Array:
    values = tensor.numpy_rows(start, stop)
    if tensor.dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _fp8_scales(stored: FP8Tensor, start: int, stop: int) -> Array:
    """Return the scale of each value of rows *start* to *stop*."""
    first, last = start // stored.block[0], -(-stop // stored.block[0])
    scales = stored.scales.numpy_rows(first, last)
    scales = scales if stored.scales.dtype == "F32" else powers_of_two(scales)
    rows: Array = scales.repeat(stored.block[0], axis=0)[start - first * stored.block[0] :][: stop - start]
    spread: Array = rows.repeat(stored.block[1], axis=1)[:, : stored.shape[1]]
    return spread


def _fp8_decoded(codes: Array) -> Array:
    if codes.size % 2:
        return np.take(_fp8_values(), codes)
    pairs: Array = np.take(_fp8_pairs(), codes.reshape(-1).view(np.uint16))
    return pairs.view(np.float32).reshape(codes.shape)


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


def unpacked(words: Array, bits: int) -> Array:
    """Return the codes in *words* (uint32 ``[..., words]``) as float32 ``[..., columns]``.

    Codes are a stream of bits, the lowest first. Some are looked up at a time, as many as a byte or 12 bits hold,
    which takes a fraction of the time of ``mx.dequantize`` on a CPU.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    columns = octets.shape[-1] * 8 // bits
    match bits:
        case 8:
            return octets.astype(np.float32)
        case 2 | 4:
            keys, width = octets, 8
        case 3 | 6:
            thirds = octets.reshape(*octets.shape[:-1], -1, 3).astype(np.uint16)
            low, middle, high = thirds[..., 0], thirds[..., 1], thirds[..., 2]
            keys, width = np.stack([low | (middle & 15) << 8, middle >> 4 | high << 4], axis=-1), 12
        case _:
            fifths = octets.reshape(*octets.shape[:-1], -1, 5).astype(np.uint64)
            whole = sum((fifths[..., index] << np.uint64(8 * index) for index in range(5)), np.zeros((), np.uint64))
            tens = [(whole >> np.uint64(10 * index)) & np.uint64(1023) for index in range(4)]
            keys, width = np.stack(tens, axis=-1).astype(np.uint16), 10
    found: Array = np.take(_codes_of(bits, width), keys.reshape(-1), axis=0)
    return found.view(np.float32).reshape(*words.shape[:-1], columns)


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
