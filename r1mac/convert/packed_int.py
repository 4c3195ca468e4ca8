"""compressed-tensors «pack-quantized»: small whole numbers in words of 32 bits, as vLLM's tools write them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from r1mac.convert.stored import VALUE_TYPES, RawTensor, distinct, require_shape
from r1mac.errors import BadCheckpoint, BadRecipe

_PACKED, _SCALE, _ZERO, _SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
_WIDTHS = (2, 4, 8)
_SCALE_TYPES = ("F32", "F16", "BF16")
_MLX_GROUPS = (32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """A matrix of codes with a scale, and perhaps a zero point, for each group of columns.

    Codes are unsigned and lie lowest bits first; a code of ``2^(bits - 1)`` is zero unless there is a zero point.
    Zero points are packed alike, down the rows.

    Attributes:
        codes: int32 ``[rows, columns x bits / 32]``.
        scales: ``[rows, groups]``; one group is a scale for the whole row.
        zeros: int32 ``[ceil(rows x bits / 32), groups]``, or None.
        true_shape: int64 ``[2]``: rows and columns.
    """

    codes: RawTensor
    scales: RawTensor
    zeros: RawTensor | None
    true_shape: RawTensor
    bits: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return (self.codes.shape[0], self.codes.shape[1] * self._per_word)

    @property
    def size_bytes(self) -> int:
        """Bytes on disk, with scales and zero points."""
        return sum(part.size_bytes for part in (self.codes, self.scales, self.zeros) if part is not None)

    @property
    def row_step(self) -> int:
        """Rows whose zero points share a word."""
        return 1 if self.zeros is None else self._per_word

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files that ``rows`` reads."""
        return distinct(self.codes, self.scales, self.zeros, self.true_shape)

    @property
    def quantized_bits(self) -> int:
        """Width of a code."""
        return self.bits

    @property
    def _per_word(self) -> int:
        return 32 // self.bits

    @property
    def value_type(self) -> str:
        """The MLX type that ``rows`` gives."""
        return VALUE_TYPES[self.scales.dtype]

    def rows(self, start: int, stop: int) -> mx.array:
        """Return rows *start* to *stop* dequantised, in the scales' type.

        Raises:
            BadCheckpoint: the shape that the checkpoint says is not that of its codes.
        """
        said = tuple(int(length) for length in self.true_shape.numpy_rows(0, 2))
        if said != self.shape:
            raise BadCheckpoint(
                f"{self.true_shape.name} says {list(said)}, and {self.codes.name} holds {list(self.shape)}",
                hint="fetch the checkpoint again",
            )
        scales = self.scales.rows(start, stop)
        group_size = self.shape[1] // self.scales.shape[1]
        if self.zeros is None and group_size in _MLX_GROUPS:
            # The way of mlx-lm, which reads such a matrix as an affine one: the same bits.
            codes = self.codes.rows(start, stop).view(mx.uint32)
            biases = -(2 ** (self.bits - 1)) * scales
            return mx.dequantize(codes, scales, biases, group_size=group_size, bits=self.bits)
        levels = self._unpacked(self.codes.numpy_rows(start, stop)) - self._zero_levels(start, stop)
        per_group = mx.array(levels.astype(np.float32).reshape(stop - start, -1, group_size))
        return (per_group * scales.astype(mx.float32)[..., None]).reshape(stop - start, -1).astype(scales.dtype)

    def _zero_levels(self, start: int, stop: int) -> "np.ndarray[Any, Any] | int":
        """Return the code that means zero for each column, ``[rows, columns]``, or the one for all."""
        if self.zeros is None:
            return int(2 ** (self.bits - 1))
        words = self.zeros.numpy_rows(start // self._per_word, -(-stop // self._per_word))
        levels = self._unpacked(words.T).T[: stop - start]
        return levels.repeat(self.shape[1] // self.scales.shape[1], axis=1)

    def _unpacked(self, words: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        shifts = np.arange(self._per_word, dtype=np.uint32) * self.bits
        codes = (np.ascontiguousarray(words).view(np.uint32)[..., None] >> shifts) & (2**self.bits - 1)
        result: np.ndarray[Any, Any] = codes.reshape(words.shape[0], -1).astype(np.int32)
        return result


def find_packed(raw: Mapping[str, RawTensor], config: Mapping[str, Any]) -> tuple[dict[str, PackedTensor], set[str]]:
    """Return the packed matrices by name, and the names of all tensors that they are made of.

    Raises:
        BadRecipe: the format is another one of compressed-tensors'.
        BadCheckpoint: parts of a matrix are missing or do not fit each other.
    """
    bits = _width(config)
    found, used = {}, set()
    for packed_name in [name for name in raw if name.endswith(f".{_PACKED}")]:
        module = packed_name.removesuffix(f".{_PACKED}")
        parts = {part: raw.get(f"{module}.{part}") for part in (_SCALE, _ZERO, _SHAPE)}
        if f"{module}.weight_g_idx" in raw:
            raise BadCheckpoint(
                f"{module}.weight_g_idx puts columns in groups of another order, which r1mac does not read",
                hint="convert the original weights instead",
            )
        found[f"{module}.weight"] = _packed(raw[packed_name], parts, bits)
        used |= {packed_name, *(f"{module}.{part}" for part in parts)}
    return found, used & raw.keys()


def _packed(codes: RawTensor, parts: Mapping[str, RawTensor | None], bits: int) -> PackedTensor:
    scales, zeros, true_shape = parts[_SCALE], parts[_ZERO], parts[_SHAPE]
    if scales is None or true_shape is None:
        lacks = _SCALE if scales is None else _SHAPE
        raise BadCheckpoint(f"{codes.name} has no {lacks} beside it", hint="fetch the checkpoint again")
    if codes.dtype != "I32" or len(codes.shape) != 2:  # noqa: PLR2004
        raise BadCheckpoint(
            f"{codes.name} is {codes.dtype} {list(codes.shape)}, not a matrix of I32", hint="fetch it again"
        )
    per_word = 32 // bits
    rows, columns = codes.shape[0], codes.shape[1] * per_word
    groups = scales.shape[-1] if len(scales.shape) == 2 else 0  # noqa: PLR2004
    of = f"{codes.name} of {list(codes.shape)}"
    require_shape(scales, _SCALE_TYPES, (rows, max(groups, 1)), of=of)
    require_shape(true_shape, ("I64", "I32"), (2,), of=of)
    if columns % max(groups, 1):
        raise BadCheckpoint(
            f"{scales.name} has {groups} groups for the {columns} columns of {codes.name}", hint="fetch it again"
        )
    if zeros is not None:
        require_shape(zeros, ("I32",), (-(-rows // per_word), groups), of=of)
    return PackedTensor(codes=codes, scales=scales, zeros=zeros, true_shape=true_shape, bits=bits)


def _width(config: Mapping[str, Any]) -> int:
    settings = config.get("quantization_config") or {}
    groups = settings.get("config_groups")
    weights = [group.get("weights") or {} for group in groups.values()] if isinstance(groups, Mapping) else []
    widths = {scheme.get("num_bits") for scheme in weights}
    kinds = {scheme.get("type", "int") for scheme in weights}
    if settings.get("format") != "pack-quantized" or len(widths) != 1 or kinds != {"int"} or not widths <= {*_WIDTHS}:
        raise BadRecipe(
            f"the model is quantised as compressed-tensors {settings.get('format')!r} of "
            f"{', '.join(map(str, sorted(widths, key=str))) or 'unknown'} bits, which r1mac does not read",
            hint="convert the original weights instead; r1mac reads pack-quantized of 2, 4 or 8 bits",
        )
    (width,) = widths
    return int(str(width))
